"""The configuration of both unlearning scripts: what is poisoned, trained and unlearned.

The scripts' presets are instances of it. A flag that several studies read stands here; a flag of
one study stands in that study's file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import tyro

from datar import Dataset
from foundation.base.checks import BadInput, require
from foundation.base.labels import UNPOISONED
from foundation.engine.runner import Percent, flag_name
from poison_unlearn import POISONS, Method, Poison
from studies.families import FAMILIES, ModelFlags, Widths, parse_widths
from studies.methods import METHODS


def method_lines() -> str:
    """List all methods, each in a line with the first sentence of its docstring."""
    lines = ["Unlearning methods:"]
    for name, method in METHODS.items():
        docstring = type(method).__doc__ or ""
        sentence = docstring.split("\n\n")[0]
        lines.append(f"{name}: {' '.join(sentence.split())}")
    return "\n".join(lines)


MethodNames = Annotated[tuple[str, ...], tyro.conf.arg(help=method_lines())]

QUICK = {  # shared by the quick presets of both scripts
    "stages": ("data", "noise_sweep", "unlearning", "weight_map", "evaluation"),
    "evaluated": ("mlp", "qnn"),
    "oracle_epochs": (),  # as many epochs as teachers take in the other stages
    "teachers": 4,
    "draws": 1,
    "selection_runs": 0,  # nothing is chosen: hyper-parameters as in the other stages
    "noises": ("labels=30",),
    "long_epochs": 40,
    "control_epochs": 20,
    "tuning_runs": 2,
}


@dataclass(frozen=True, kw_only=True)
class Config(ModelFlags):
    """What to poison, train and unlearn."""

    stages: tuple[str, ...] = ("data", "noise_sweep", "unlearning", "weight_map")
    """Studies to run."""
    poisons: tuple[str, ...] = ("labels", "features")
    """Poisons of the noise sweep: names in poison_unlearn.POISONS."""
    alphas: tuple[Percent, ...] = tuple(range(0, 100, 10))
    """Poisoned shares of the noise sweep, in percent."""
    unlearn_labels: Percent = 30
    """Share of flipped labels to unlearn, in percent; 0 skips it."""
    unlearn_features: Percent = 0
    """Share of randomised samples to unlearn, in percent; 0 skips it."""
    unlearn_others: tuple[str, ...] = ()
    """Further poisons to unlearn, each with its share in percent, such as backdoor=10. Without a
    poison: subset=10 forgets random samples, class-0 all samples of a class."""
    methods: MethodNames = ("retrain", "cf", "scrub", "ga")
    hyper: tuple[str, ...] = ()
    """Hyper-parameters of methods, such as scrub.forget=0.4 or scrub.divergence=full."""
    evaluated: tuple[str, ...] = ("mlp", "qnn", "logistic", "quadratic")
    """Families of models of the stages evaluation, epochs, benchmark, finalists and influence."""
    evaluated_hidden: Widths = "16,4"
    """Hidden widths of the MLP of the stages evaluation and epochs."""
    teachers: int = 20
    """N of the stage evaluation: teachers, and models of each method, on one draw of the poison; of
    oracles there are three times as many."""
    draws: int = 3
    """Draws of the poison on which evaluation and finalists judge; hyper-parameters are chosen on
    two others."""
    oracle_epochs: tuple[str, ...] = ()
    """Epochs of teachers and oracles of that stage, by family, such as mlp=200; others: those of
    teachers elsewhere."""
    benchmarked_hidden: tuple[Widths, ...] = ("16,4", "64,16")
    """Hidden widths of each MLP of the stages benchmark, finalists and influence."""
    benchmarked_poisons: tuple[str, ...] = ("labels",)
    """Poisons of those stages, out of those that are unlearned."""
    selection_runs: int = 5
    """Runs of each setting of a method on each draw on which hyper-parameters are chosen; 0: the
    first is taken."""
    noises: tuple[str, ...] = ("labels=0", "labels=20", "labels=30", "labels=40", "one_class=20")
    """Poisons of the controls, each with its share in percent."""
    long_epochs: int = 1000
    """Epochs of the stage dynamics, and of all other long trainings."""
    control_epochs: int = 200
    """Most epochs of a contender; how many it gets is chosen."""
    tuning_runs: int = 5
    """Runs of each setting of which a fifth of the poisoned training set is held out, with its
    noisy labels, to choose epochs and hyper-parameters of the controls."""
    independent_teachers: bool = False
    """Draw poison and train a teacher anew for each unlearning run (published: one for all of
    them)."""
    one_program: tyro.conf.Suppress[bool] = False
    """Whether trainings of one method and size share one compiled program, whatever is recorded of
    them."""
    choices: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The preset's own hyper-parameters, before those of --hyper."""

    AXES = (
        *ModelFlags.AXES,
        "poisons",
        "methods",
        "evaluated",
        "evaluated_hidden",
        "draws",
        "benchmarked_hidden",
        "benchmarked_poisons",
        "noises",
    )

    def check(self):
        super().check()
        self.check_lists("methods", "poisons", "evaluated", "benchmarked_hidden", "noises")
        self.check_percents("unlearn_labels", "unlearn_features")
        least_values = {
            "teachers": 4,
            "draws": 1,
            "selection_runs": 0,
            "long_epochs": 1,
            "tuning_runs": 1,
            "control_epochs": 1,
        }
        for name, least in least_values.items():
            value = getattr(self, name)
            require(value >= least, flag_name(name), value, f"{least} or more")
        self._check_poisons()
        self.epochs_of_families("oracle_epochs")
        self.check_names("methods", METHODS)
        self.check_names("evaluated", FAMILIES)
        for widths in (self.evaluated_hidden, *self.benchmarked_hidden):
            parse_widths(widths)
        allowed = f"METHOD.FIELD=VALUE with a method of {', '.join(METHODS)}"
        owners = {assignment.partition(".")[0] for assignment in self.hyper}
        for name in owners:
            require(name in METHODS, "--hyper", name, allowed)
        for name in METHODS:
            self.method(name)

    def _check_poisons(self):
        self.check_names("poisons", [kind for kind in POISONS if kind not in UNPOISONED])
        self.check_names("benchmarked_poisons", POISONS)
        self.poisons_of("noises")
        names = [poison.name for poison in self._others_to_unlearn()]
        shares_of_flags = {"labels": self.unlearn_labels, "features": self.unlearn_features}
        are_distinct = len(set(names)) == len(self.unlearn_others)
        are_in_flags = any(shares_of_flags.get(name) for name in names)
        require(
            are_distinct and not are_in_flags,
            "--unlearn-others",
            " ".join(self.unlearn_others),
            "every kind of poison in one share alone",
        )

    def pool(self) -> Dataset | None:
        """Load samples like those of the data set, on which no run is judged; None: none."""
        return None

    def method(self, name: str, **changes: Any) -> Method:
        """Return the method of this name with the configuration's hyper-parameters."""
        method = METHODS[name]
        for argument in (*self.choices, *self.hyper):  # such as scrub.forget=0.4
            owner, _, assignment = argument.partition(".")
            if owner == name:
                field_name, _, value = assignment.partition("=")
                method = _assign(method, argument, field_name, value)
        return replace(method, **changes)

    def epochs_of_families(self, flag: str) -> dict[str, int]:
        """Return {family: epochs} of teachers and oracles, as a flag of this name lists them."""
        return parse_epochs(flag_name(flag), getattr(self, flag))

    def poisons_of(self, flag: str) -> dict[str, Poison]:
        """Return the poisons that a flag lists, by the way they are written, such as labels=30."""
        return parse_poisons(flag_name(flag), getattr(self, flag))

    def unlearn_poisons(self) -> list[Poison]:
        """Return the poisons that the unlearning studies unlearn, and what they forget as it is."""
        poisons = [Poison("labels", self.unlearn_labels), Poison("features", self.unlearn_features)]
        poisons += self._others_to_unlearn()
        return [each for each in poisons if each.alpha_percent or each.kind == "class"]

    def _others_to_unlearn(self) -> list[Poison]:
        flag = "unlearn_others"
        poisons = parse_poisons(flag_name(flag), self.unlearn_others, forgets=True)
        return list(poisons.values())


def parse_epochs(argument: str, assignments: Iterable[str]) -> dict[str, int]:
    """Parse epochs of families: ("mlp=50", "qnn=400") gives {"mlp": 50, "qnn": 400}.

    Raises BadInput, which names the argument, for anything else.
    """
    allowed = f"FAMILY=EPOCHS with a family of {', '.join(FAMILIES)}"
    epochs_of = {}
    for assignment in assignments:
        family, _, epochs = assignment.partition("=")
        is_valid = family in FAMILIES and bool(re.fullmatch(r"[1-9]\d{0,5}", epochs))
        require(is_valid, argument, assignment, allowed)
        epochs_of[family] = int(epochs)
    return epochs_of


def parse_poisons(
    argument: str, assignments: Iterable[str], *, forgets: bool = False
) -> dict[str, Poison]:
    """Parse poisons and their shares: ("labels=30",) gives {"labels=30": Poison("labels", 30)}.

    one_class-0=20 aims at class 0. forgets: whether subset=10 and class-0, which change no sample,
    are allowed, too. Raises BadInput, which names the argument, for anything else.
    """
    kinds = [kind for kind in POISONS if kind != "given" and (forgets or kind not in UNPOISONED)]
    shares = [kind for kind in kinds if kind != "class"]
    allowed = f"POISON=PERCENT with a poison of {', '.join(shares)}, 0 to 99"
    if forgets:
        allowed += ", or class-NUMBER"
    poisons = {}
    for assignment in assignments:
        name, _, percent = assignment.partition("=")
        kind, _, label = (name, "", "") if name in kinds else name.rpartition("-")
        has_share = bool(re.fullmatch(r"\d{1,2}", percent))
        has_label = name in kinds or bool(re.fullmatch(r"\d{1,3}", label))
        is_valid = kind in kinds and has_label
        is_valid &= has_share if kind != "class" else name == assignment
        require(is_valid, argument, assignment, allowed)
        try:
            aim = {"label": int(label)} if label else {}
            poisons[assignment] = Poison(kind, int(percent or 0), **aim)
        except BadInput as error:
            raise BadInput(f"{argument} {assignment}: {error}") from None
    return poisons


def _assign(method: Method, argument: str, name: str, text: str) -> Method:
    """Set a hyper-parameter of a method from its value as text; argument: as it was written."""
    types = {field.name: field.type for field in fields(method)}
    types.pop("training", None)
    allowed = f"the fields {', '.join(types) or 'of another method: it has none'}"
    require(name in types, "--hyper", argument, allowed)
    kind = types[name]
    if not isinstance(kind, str):
        kind = kind.__name__
    parsers = {
        "float": float,
        "int": int,
        "bool": lambda text: {"true": True, "false": False}[text.lower()],
    }
    try:
        parse = parsers.get(kind, str)
        return replace(method, **{name: parse(text)})
    except (ValueError, KeyError) as error:
        if ", allowed:" in str(error):
            reason = str(error)
        else:
            reason = f"{name}: got {text or 'nothing'}, allowed: a {kind}"
        raise BadInput(f"--hyper {argument}: {reason}") from None

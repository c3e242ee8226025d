"""The configuration of both unlearning scripts: what is poisoned, trained and unlearned. Their
presets are instances.

A flag stands here if several studies read it; the flags of one study stand in that study's file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import tyro

from foundation.base.checks import BadInput, require
from foundation.engine.runner import Percent, flag_name
from poison_unlearn import POISONS, Method, Poison
from studies.families import FAMILIES, ModelFlags, Widths, parse_widths
from studies.methods import METHODS


def method_lines() -> str:
    """What each method does, in a line: the first sentence of its docstring."""
    first = {
        name: (type(method).__doc__ or "").split("\n\n")[0] for name, method in METHODS.items()
    }
    return "Unlearning methods:\n" + "\n".join(
        f"{name}: {' '.join(line.split())}" for name, line in first.items()
    )


MethodNames = Annotated[tuple[str, ...], tyro.conf.arg(help=method_lines())]

QUICK = {  # of the presets quick
    "stages": ("data", "noise_sweep", "unlearning", "weight_map", "evaluation"),
    "evaluated": ("mlp", "qnn"),
    "oracle_epochs": (),  # trained as the other teachers there
    "teachers": 4,
    "draws": 1,
    "selection_runs": 0,  # the hyper-parameters of the other stages
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
    """Further poisons to unlearn, each with its share in percent, such as backdoor=10."""
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
        least = {"teachers": 4, "draws": 1, "selection_runs": 0, "long_epochs": 1, "tuning_runs": 1}
        for name, count in (least | {"control_epochs": 1}).items():
            value = getattr(self, name)
            require(value >= count, flag_name(name), value, f"{count} or more")
        self._check_poisons()
        self.epochs_of_families("oracle_epochs")
        self.check_names("methods", METHODS)
        self.check_names("evaluated", FAMILIES)
        for text in (self.evaluated_hidden, *self.benchmarked_hidden):
            parse_widths(text)
        allowed = f"METHOD.FIELD=VALUE with a method of {', '.join(METHODS)}"
        for name in {word.partition(".")[0] for word in self.hyper}:
            require(name in METHODS, "--hyper", name, allowed)
        for name in METHODS:
            self.method(name)

    def _check_poisons(self):
        for flag in ("poisons", "benchmarked_poisons"):
            self.check_names(flag, POISONS)
        for flag in ("noises", "unlearn_others"):
            self.poisons_of(flag)
        kinds = [word.partition("=")[0] for word in self.unlearn_others]
        of_their_own = {"labels": self.unlearn_labels, "features": self.unlearn_features}
        once = len(set(kinds)) == len(kinds) and not any(map(of_their_own.get, kinds))
        words = " ".join(self.unlearn_others)
        require(once, "--unlearn-others", words, "every kind of poison in one share alone")

    def method(self, name: str, **changes: Any) -> Method:
        """The method of this name with the configuration's hyper-parameters."""
        method = METHODS[name]
        for word in (*self.choices, *self.hyper):
            owner, _, assignment = word.partition(".")
            if owner == name:
                method = _assign(method, word, *assignment.partition("=")[::2])
        return replace(method, **changes)

    def epochs_of_families(self, flag: str) -> dict[str, int]:
        """{family: epochs} of a flag: of teachers and oracles of a stage."""
        return parse_epochs(flag_name(flag), getattr(self, flag))

    def poisons_of(self, flag: str) -> dict[str, Poison]:
        """The poisons that a flag names, such as labels=30, by its words."""
        return parse_poisons(flag_name(flag), getattr(self, flag))

    def unlearn_alphas(self) -> dict[str, int]:
        """{poison: percent} of what the unlearning studies unlearn."""
        alphas = {"labels": self.unlearn_labels, "features": self.unlearn_features}
        alphas |= {
            poison.kind: poison.alpha_percent
            for poison in self.poisons_of("unlearn_others").values()
        }
        return {poison: alpha for poison, alpha in alphas.items() if alpha}


def parse_epochs(argument: str, words: Iterable[str]) -> dict[str, int]:
    """("mlp=50", "qnn=400") -> {"mlp": 50, "qnn": 400}; BadInput, by the argument's name, for other
    words."""
    epochs_of = {}
    for word in words:
        name, _, epochs = word.partition("=")
        whole = name in FAMILIES and re.fullmatch(r"[1-9]\d{0,5}", epochs)
        require(
            bool(whole), argument, word, f"FAMILY=EPOCHS with a family of {', '.join(FAMILIES)}"
        )
        epochs_of[name] = int(epochs)
    return epochs_of


def parse_poisons(argument: str, words: Iterable[str]) -> dict[str, Poison]:
    """("labels=30",) -> {"labels=30": Poison("labels", 30)}; BadInput, by the argument's name, for
    other words."""
    poisons, allowed = {}, ", ".join(kind for kind in POISONS if kind != "given")
    for word in words:
        kind, _, percent = word.partition("=")
        good = kind in POISONS and kind != "given" and re.fullmatch(r"\d{1,2}", percent)
        require(bool(good), argument, word, f"POISON=PERCENT with a poison of {allowed}, 0 to 99")
        poisons[word] = Poison(kind, int(percent))
    return poisons


def _assign(method: Method, word: str, name: str, text: str) -> Method:
    """The method with a hyper-parameter of which the value is given as text."""
    types = {each.name: each.type for each in fields(method) if each.name != "training"}
    require(
        name in types,
        "--hyper",
        word,
        f"the fields {', '.join(types) or 'of another method: it has none'}",
    )
    kind = types[name] if isinstance(types[name], str) else types[name].__name__
    kinds = {
        "float": float,
        "int": int,
        "bool": lambda text: {"true": True, "false": False}[text.lower()],
    }
    try:
        return replace(method, **{name: kinds.get(kind, str)(text)})
    except (ValueError, KeyError) as error:
        reason = (
            str(error)
            if ", allowed:" in str(error)
            else f"{name}: got {text or 'nothing'}, allowed: a {kind}"
        )
        raise BadInput(f"--hyper {word}: {reason}") from None

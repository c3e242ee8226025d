"""Which claims hold: each of the paper's and of ours, its statistic, the control that decides, and the verdict.

    python claims.py results       # the table of FINDINGS.md, in Markdown

The rule was fixed before anything was computed. A claim *stands* if the interval of its effect excludes 0 in the
claimed direction, after Holm over the table, and no control comes within the margin; it is *weaker* if, that given, the
effect is less than half the published one; it *falls* if a control is within the margin or better with its whole
interval, or the effect is the other way with its whole interval; else it is *undecided*. Everything is paired: by run,
with the same poison and, where runs have one of their own, training set.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from foundation.base import storage
from foundation.base.checks import any_terminal
from foundation.measures import metrics
from foundation.measures.forgetting import SIGNIFICANT, holm
from studies import tables
from studies.tables import Studies, accuracies, at_equal_fit, at_their_ends, digits, ends_of_methods, under_gauges

MARGIN = 0.02  # of accuracies
PLACES = {"mnist": "MNIST", "xxz": "the ring"}


class Evidence(NamedTuple):
    """The mean of a paired difference, positive in the claimed direction, and its 95 % interval."""

    words: str
    value: float
    low: float
    high: float
    n: int
    p: float  # two-sided, of sign flips; NaN: the interval alone decides

    @property
    def text(self) -> str:
        low, high = (digits(end, sign="+") for end in (self.low, self.high))
        interval = f" [{low}, {high}]" * bool(self.high > self.low)
        return f"{digits(self.value, sign='+')}{interval}, n = {self.n}"


@dataclass(frozen=True)
class Claim:
    """A statement, the effect that it is about, and what could refute it: the claimed side minus each control."""

    whose: str  # the paper's or ours
    statement: str
    effect: Evidence
    controls: tuple[Evidence, ...]
    published: float | None = None  # effect
    margin: float = MARGIN

    @property
    def decisive(self) -> Evidence:
        """The control that comes nearest, or is farthest ahead."""
        return min(self.controls, key=lambda control: control.value)

    def verdict(self, adjusted_p: float) -> str:
        """By the rule above; adjusted_p: of the effect, NaN where its interval alone decides."""
        if self.effect.high < 0 or any(control.high <= self.margin for control in self.controls):
            return "falls"
        holds = self.effect.low > 0 and not adjusted_p >= SIGNIFICANT
        if not holds or any(control.value <= self.margin for control in self.controls):
            return "undecided"
        return "weaker" if self.published and self.effect.value < self.published / 2 else "stands"


def paired(words: str, own: pd.DataFrame, other: pd.DataFrame) -> Evidence:
    """The mean of own minus other, both with columns run and accuracy, over the runs that both have."""
    both = own.set_index("run").accuracy.align(other.set_index("run").accuracy, join="inner")
    difference = (both[0] - both[1]).dropna().values
    return of_values(words, difference)


def of_values(words: str, values: np.ndarray) -> Evidence:
    """The mean of values by run."""
    p = np.nan
    if len(values) > 1 and np.ptp(values):
        test = stats.permutation_test((values,), np.mean, permutation_type="samples", rng=np.random.default_rng(0))
        p = float(test.pvalue)
    return Evidence(words, float(np.mean(values)), *metrics.bootstrap_interval(values), len(values), p)


# ---- resisting ----


def resists(read: Studies, data: str, kind: str, alpha: int) -> Claim:
    """The QNN against the published MLP after the published epochs; controls: what was tuned on noisy labels."""
    runs = at_their_ends(read[data, "corrected", "dynamics"]).query(
        "measure == 'validation' and endpoint == 'published' and poison == @kind and alpha_percent == @alpha"
    )
    circuit, mlp = _first(runs, "QNN"), _first(runs, "MLP")
    effect = paired(f"QNN − {mlp}, published epochs", _of(runs, circuit), _of(runs, mlp))
    published = tables.PUBLISHED if data == "mnist" and kind == "labels" else {}
    theirs = published[circuit][alpha // 10] - published[mlp][alpha // 10] if circuit in published else None
    fitted = at_equal_fit(read[data, "corrected", "dynamics"]).query("poison == @kind and alpha_percent == @alpha")
    fit = paired(f"QNN after the last epoch − {mlp} at equal fit", _of(fitted, circuit), _of(fitted, mlp))
    name = PLACES[data] + ", fixed gauge" * (data == "xxz")
    what = f"{alpha} % of the labels flipped" + ", all of one class" * (kind == "one_class")
    statement = f"The QNN resists poison that the MLP learns: {name}, {what}"
    return Claim("the paper's", statement, effect, (fit, *_against_circuit(read, data, kind, alpha)), theirs)


def _contests(read: Studies, data: str, kind: str, alpha: int) -> pd.DataFrame:
    runs = accuracies(read[data, "corrected", "controls"], "validation")
    return runs.query("poison == @kind and alpha_percent == @alpha")


def _against_circuit(read: Studies, data: str, kind: str, alpha: int) -> Iterator[Evidence]:
    """The tuned QNN minus everything that was tuned and is no circuit."""
    runs = _contests(read, data, kind, alpha)
    circuit = _of(runs, _first(runs[runs.group == "published"], "QNN"))
    for other in runs[runs.family != "QNN"].model.unique():
        yield paired(f"QNN − {other}, both tuned on noisy labels", circuit, _of(runs, other))


def _first(runs: pd.DataFrame, family: str) -> str:
    """The model of a family; of several MLPs the largest."""
    own = runs[runs.family == family].sort_values("size", ascending=family != "MLP", kind="stable")
    return own.model.iloc[0]


def _of(runs: pd.DataFrame, model: str) -> pd.DataFrame:
    return runs[runs.model == model]


def under_the_gauge(read: Studies, alpha: int) -> Claim:
    """The ring with the published random phase; control: the same states, flips and batches in a fixed gauge."""
    runs = under_gauges(read["xxz", "paper", "gauge"]).query("alpha_percent == @alpha")
    circuit = _of(runs, _first(runs, "QNN"))
    mlp = _of(runs, _first(runs, "MLP"))
    by_gauge = {name: mlp[mlp.gauge == name] for name in ("random phase", "fixed")}
    effect, control = (paired(f"QNN − MLP, {name}", circuit, own) for name, own in by_gauge.items())
    statement = f"The QNN resists poison that the MLP learns: the ring as published, {alpha} % of the labels flipped"
    return Claim("the paper's", statement, effect, (control, *_against_circuit(read, "xxz", "labels", alpha)))


def features(read: Studies, data: str, alpha: int) -> Claim:
    """Randomised features; control: the corrected choices, of 20 runs."""
    found = []
    for preset in ("paper", "corrected"):
        runs = accuracies(read[data, preset, "noise_sweep"], "validation")
        runs = runs.query("poison == 'features' and alpha_percent == @alpha")
        names = [_first(runs, family) for family in ("QNN", "MLP")]
        found.append(paired(f"QNN − {names[1]}, {preset}", *(_of(runs, name) for name in names)))
    statement = f"The QNN resists randomised features better than the MLP: {PLACES[data]}, {alpha} %"
    return Claim("the paper's", statement, found[0], (found[1],))


# ---- unlearning ----


def forgets_by_its_term(read: Studies, data: str, method: str, measure: str) -> Claim:
    """What a method with a forget term does to the QNN's teacher; control: fine-tuning, which has none."""
    results = read[data, "corrected", "unlearning"]
    runs = ends_of_methods(accuracies(results, measure)).query("poison == 'labels'")
    runs = runs[runs.model == _first(runs, "QNN")].set_index("unlearner")
    sign = 1 if measure == "validation" else -1
    sides = {name: runs.loc[name].assign(accuracy=lambda own: sign * own.accuracy) for name in (method, "start", "cf")}
    title = runs.loc[method].title.iloc[0]
    effect, control = (paired(f"{title} − {word}", sides[method], sides[name]) for name, word in
                       (("start", "teacher"), ("cf", "Fine-tune")))  # fmt: skip
    what = "restore its accuracy" if measure == "validation" else "make it forget the poisoned labels"
    statement = f"It takes the forget term of {title} to {what}: the QNN, {PLACES[data]}, 30 %"
    return Claim("the paper's", statement, effect, (control,))


def unlearns_better(read: Studies, method: str) -> Claim:
    """Validation accuracy of the QNN less the MLP's after a method.

    Controls: teachers that fit the poison equally, and the QNN less a quadratic form without a circuit among these.
    """
    found = []
    parts = {
        "evaluation": ("teachers as they are", ["MLP"]),
        "matched_fit": ("teachers stopped at as much poison", ["MLP", "Quadratic"]),
    }
    for study, (words, families) in parts.items():
        runs = accuracies(read["mnist", "corrected", study], "validation").query("poison == 'labels' and draw == 0")
        runs = runs[runs.unlearner == method]
        circuit = _of(runs, _first(runs, "QNN"))
        for other in (_first(runs, family) for family in families):
            found.append(paired(f"QNN − {other}, {words}", circuit, _of(runs, other)))
    statement = f"After {runs.title.iloc[0]} the QNN is more accurate than the MLP: MNIST, 30 %"
    return Claim("the paper's", statement, found[0], tuple(found[1:]))


def stable_over_weights(read: Studies, data: str, method: str) -> Claim:
    """The share of a weight map near Retrain, the QNN's less the MLP's; control: nearer than .02 in place of .05."""
    maps, ends = read[data, "corrected", "weight_map"], read[data, "corrected", "unlearning"]
    retrain = ends.accuracy.sel(unlearner="retrain", poison="labels", split="validation").isel(epoch=-1)
    cells = maps.accuracy.sel(unlearner=method, poison="labels")

    family = maps.family.to_series()
    names = [next(name for name in family.index if family[name] == each) for each in ("QNN", "MLP")]
    runs = [run for run in cells.run.values if run in retrain.run.values]
    both = [(cells.sel(model=name, run=runs).transpose("run", ...).values, retrain.sel(model=name, run=runs).values)
            for name in names]  # fmt: skip

    def shares(chosen: np.ndarray, tolerance: float) -> float:
        """QNN minus MLP, of means over these of the runs."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a cell that was not tried has no mean
            own = [metrics.share_near(np.nanmean(cell[chosen], axis=0), np.nanmean(reference[chosen]),
                                      tolerance=tolerance) for cell, reference in both]  # fmt: skip
        return own[0] - own[1]

    generator, found = np.random.default_rng(0), []
    for tolerance in (0.05, 0.02):
        drawn = [shares(generator.integers(len(runs), size=len(runs)), tolerance) for _ in range(400)]
        low, high = np.percentile(drawn, (2.5, 97.5))
        words = f"share within {digits(tolerance)} of Retrain, QNN − {names[1]}"
        found.append(Evidence(words, shares(np.arange(len(runs)), tolerance), low, high, len(runs), np.nan))
    statement = f"The QNN is more stable over the weights of {tables.method_titles(maps)[method]}: {PLACES[data]}"
    return Claim("the paper's", statement, found[0], (found[1],))


def roughens(read: Studies, alpha: int) -> Claim:
    """log10 of the trace's ratio to the clean one, the MLP's less the QNN's; control: logistic regression's.

    Its loss is convex and has nothing to roughen: what its ratio rises by is confidence alone.
    """
    traces = read["hessian", "corrected", "landscape"].trace
    ratio = np.log10(traces.sel(alpha_percent=alpha) / traces.sel(alpha_percent=0))
    runs = tables.every_run(ratio.rename("accuracy").to_dataset().assign_coords(
        {name: read["hessian", "corrected", "landscape"][name] for name in ("family", "size")}))  # fmt: skip
    mlp, circuit, convex = (_of(runs, _first(runs, family)) for family in ("MLP", "QNN", "Logistic"))
    effect, control = (paired(f"log10 of the ratio, MLP − {name}", mlp, other) for name, other in
                       (("QNN", circuit), ("logistic regression", convex)))  # fmt: skip
    statement = f"Poison roughens the loss of the MLP and not that of the QNN: trace of the Hessian, {alpha} %"
    return Claim("the paper's", statement, effect, (control,), margin=0.0)


# ---- ours ----


def early_mlp(read: Studies, alpha: int) -> Claim:
    """The published MLP ahead of the QNN when both stop where noisy samples say; controls: every tuned circuit."""
    runs = at_their_ends(read["mnist", "corrected", "dynamics"]).query(
        "measure == 'validation' and poison == 'labels' and alpha_percent == @alpha"
    )
    mlp, circuit = _first(runs, "MLP"), _first(runs, "QNN")
    selected, late = (runs[runs.endpoint == name] for name in ("selected", "last"))
    effect = paired(f"{mlp} − QNN at the selected epochs", _of(selected, mlp), _of(selected, circuit))
    last = paired("the same − QNN after the last epoch", _of(selected, mlp), _of(late, circuit))
    tuned = _contests(read, "mnist", "labels", alpha)
    own = _of(tuned, _first(tuned[tuned.group == "published"], "MLP"))
    circuits = tuned[tuned.family == "QNN"].model.unique()
    others = [paired(f"tuned MLP − {name}", own, _of(tuned, name)) for name in circuits]
    statement = f"It takes no circuit: an MLP that stops where noisy samples say is ahead of the QNN, MNIST, {alpha} %"
    return Claim("ours", statement, effect, (last, *others))


def small_class(read: Studies, model: str) -> Claim:
    """A small function class ahead of the MLP after the published epochs; control: of the QNN after a long training."""
    runs = at_their_ends(read["mnist", "corrected", "dynamics"]).query(
        "measure == 'validation' and poison == 'labels' and alpha_percent == 30"
    )
    family = {"Logistic": "logistic regression", "Quadratic": "a bounded quadratic form"}[model]
    mlp, circuit, own = (_first(runs, each) for each in ("MLP", "QNN", model))
    at = {name: runs[runs.endpoint == name] for name in ("published", "last")}
    effect = paired(f"{own} − {mlp}, published epochs", _of(at["published"], own), _of(at["published"], mlp))
    control = paired(f"{own} − QNN, last epoch", _of(at["last"], own), _of(at["last"], circuit))
    statement = f"A small function class resists as the QNN does: {family}, MNIST, 30 %"
    return Claim("ours, before", statement, effect, (control,))


def encoding_decides(read: Studies) -> Claim:
    """Gradient ascent hurts the QNN under the columnwise encoding; control: the scale of its logits alone."""
    results = read["mnist", "corrected", "encodings"]
    runs = accuracies(results, "validation")
    last = runs.epoch.max()
    both = [runs[runs.epoch == epoch].set_index(["encoding", "model", "run"]).accuracy for epoch in (last, 0)]
    change = (both[0] - both[1]).reset_index()
    scaled = {name: own.model.unique() for name, own in change.groupby("encoding")}
    (usual,) = set(scaled["amplitude"]) & set(scaled["columnwise"])
    under = {(encoding, model == usual): own for (encoding, model), own in change.groupby(["encoding", "model"])}
    effect = paired("change under amplitude − columnwise", under["amplitude", True], under["columnwise", True])
    pairs = {
        "amplitude × 10 − columnwise": (("amplitude", False), ("columnwise", True)),
        "amplitude − columnwise × .1": (("amplitude", True), ("columnwise", False)),
    }
    controls = tuple(paired(f"change under {words}", *map(under.get, pair)) for words, pair in pairs.items())
    statement = "It is the encoding that makes gradient ascent hurt the QNN, and not the scale of its logits"
    return Claim("ours", statement, effect, controls)


CLAIMS: tuple[Callable[[Studies], Claim], ...] = (
    *(lambda read, alpha=alpha: resists(read, "mnist", "labels", alpha) for alpha in (20, 30, 40)),
    lambda read: resists(read, "mnist", "one_class", 20),
    *(lambda read, alpha=alpha: under_the_gauge(read, alpha) for alpha in (20, 40)),
    *(lambda read, alpha=alpha: resists(read, "xxz", "labels", alpha) for alpha in (20, 30, 40)),
    lambda read: resists(read, "xxz", "one_class", 20),
    lambda read: features(read, "mnist", 80),
    lambda read: features(read, "xxz", 80),
    *(
        lambda read, data=data, method=method, measure=measure: forgets_by_its_term(read, data, method, measure)
        for data in ("mnist", "xxz")
        for method in ("scrub", "ga")
        for measure in ("validation", "forget_poisoned")
    ),
    *(lambda read, method=method: unlearns_better(read, method) for method in ("scrub", "ga")),
    *(lambda read, alpha=alpha: roughens(read, alpha) for alpha in (20, 40)),
    *(lambda read, data=data: stable_over_weights(read, data, "scrub") for data in ("mnist", "xxz")),
    *(lambda read, alpha=alpha: early_mlp(read, alpha) for alpha in (20, 30, 40)),
    *(lambda read, model=model: small_class(read, model) for model in ("Logistic", "Quadratic")),
    encoding_decides,
)  # fmt: skip


def decided(read: Studies) -> pd.DataFrame:
    """Whose, statement, effect, control, difference, verdict of every claim of which the studies are there."""
    found, missing = [], []
    for make in CLAIMS:
        try:
            found.append(make(read))
        except ValueError as error:
            missing.append(str(error))
    for words in dict.fromkeys(missing):
        print(f"claims are left out: {words}", file=sys.stderr)
    adjusted = holm(np.array([claim.effect.p for claim in found]))
    rows = [
        (
            claim.whose, claim.statement, f"{claim.effect.words}: {claim.effect.text}",
            f"{claim.decisive.words}: {claim.decisive.text}", claim.verdict(p),
        )
        for claim, p in zip(found, adjusted, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "statement", "effect", "the control that decides", "verdict"])


def markdown(read: Studies) -> str:
    """The table of FINDINGS.md."""
    return tables.markdown_of(decided(read))


@any_terminal()
def main() -> int:
    print(markdown(Studies(storage.folder_argument(__doc__))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

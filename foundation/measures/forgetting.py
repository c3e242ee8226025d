"""Did it forget? Measures of how far models are from oracles, the floor under each, and what tells
them apart.

An oracle is trained as the teacher was, on the retained samples alone. Pure NumPy on what N models
say of the samples of one draw of the poison: `MEASURES` are functions of such models, of oracles,
and of which samples are what.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from foundation.base.checks import as_array, require


class Models(NamedTuple):
    """What N models that were trained alike say of s samples: the training set as poisoned, then
    the validation set."""

    z: np.ndarray  # (N, s) logits, positive where they are for the true label
    clean: np.ndarray  # (N, s) the same of the samples as they were before the poison
    relearn: np.ndarray  # (N,) steps until the poisoned forget set is learned again
    # (N,) its number: a method's model and that of its null arm start from one teacher
    run: np.ndarray

    def take(self, rows: np.ndarray | slice) -> Models:
        return Models(*(part[rows] for part in self))

    @property
    def count(self) -> int:
        return len(self.z)


class Parts(NamedTuple):
    """Which of the s samples are what: (s,) masks."""

    forget: np.ndarray  # known to be poisoned
    poisoned: np.ndarray  # poisoned, known or not
    retain: np.ndarray  # trained on, and not known to be poisoned
    validation: np.ndarray


def signs(labels: np.ndarray) -> np.ndarray:
    """1 where a label is 1, -1 where it is 0."""
    return np.where(np.asarray(labels) > 0, 1, -1)


def signed(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """z: logits (N, s), with the other sign where the true label (s,) is 0."""
    logits, labels = as_array(logits, "logits"), as_array(labels, "labels")
    require(
        logits.ndim == 2 and logits.shape[1:] == labels.shape,
        "labels",
        f"shape {labels.shape}",
        f"one for each column of the logits, {logits.shape}",
    )
    return logits.astype(float) * signs(labels)


# ---- measures ----


def wasserstein(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """W1 of each column between the empirical distributions of (N, s) and (M, s) values: (s,)."""
    count = math.lcm(len(left), len(right))
    sorted_ = [
        np.repeat(np.sort(each, axis=0), count // len(each), axis=0) for each in (left, right)
    ]
    return np.abs(sorted_[0] - sorted_[1]).mean(axis=0)


# of Gaussians fitted to N values, in units of the median of the oracles' standard deviations
SIGMA_FLOOR = 0.1


def _gaussians(models: np.ndarray, oracles: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of each column of both, none below SIGMA_FLOOR."""
    deviations = [each.std(axis=0, ddof=min(1, len(each) - 1)) for each in (models, oracles)]
    least = max(SIGMA_FLOOR * np.median(deviations[1]), 1e-6)
    for each, deviation in zip((models, oracles), deviations, strict=True):
        yield each.mean(axis=0), np.maximum(deviation, least)


def klom(models: np.ndarray, oracles: np.ndarray) -> np.ndarray:
    """KL(models || oracles) in nats of Gaussians fitted to each column of (N, s) and (M, s) values:
    (s,).

    KLoM (arXiv:2410.23232) bins the margins; of 20 models most bins are empty, so the two are taken
    for Gaussians here.
    """
    (mean, sd), (oracle_mean, oracle_sd) = _gaussians(models, oracles)
    return np.log(oracle_sd / sd) + (sd**2 + (mean - oracle_mean) ** 2) / (2 * oracle_sd**2) - 0.5


def epsilon(models: np.ndarray, oracles: np.ndarray, delta: float = 0.0) -> np.ndarray:
    """The ε of each column that the best threshold on (N, s) and (M, s) values shows, at most log N
    for δ = 0: (s,).

    max over thresholds, either side of which may be guessed to be unlearned, of log((1 - δ - FPR) /
    FNR) and log((1 - δ - FNR) / FPR), arXiv:2406.09073; counts have one added, so that no rate is
    0.
    """
    thresholds = np.sort(np.concatenate([models, oracles]), axis=0)[:, None]  # (N + M, 1, s)
    # (N + M, s)
    missed, false = ((models <= thresholds).sum(axis=1), (oracles > thresholds).sum(axis=1))
    best = np.zeros(models.shape[1])
    for fn, fp in ((missed, false), (len(models) - missed, len(oracles) - false)):
        fnr, fpr = (
            np.minimum((n + 1) / (len(of) + 1), 1) for n, of in ((fn, models), (fp, oracles))
        )
        for kept, wrong in ((fpr, fnr), (fnr, fpr)):
            best = np.maximum(best, np.log(np.maximum((1 - delta - kept) / wrong, 1)).max(axis=0))
    return best


def likelihood_ratios(models: np.ndarray, oracles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """U-LiRA's scores of all (N, s) values of the models, and of all of the oracles: flat, high
    where unlearned.

    log p(z | unlearned) - log p(z | oracle) with Gaussians for each column, fitted on one half of
    the models and of the oracles and asked on the other, both ways (arXiv:2403.01218).
    """
    scores: tuple[list, list] = [], []
    cuts = len(models) // 2, len(oracles) // 2
    halves = [(each[:cut], each[cut:]) for each, cut in zip((models, oracles), cuts, strict=True)]
    for fitted in (0, 1):
        (mean, sd), (oracle_mean, oracle_sd) = _gaussians(halves[0][fitted], halves[1][fitted])
        for found, half in zip(scores, halves, strict=True):
            z = half[1 - fitted]
            ratio = (
                ((z - oracle_mean) / oracle_sd) ** 2 / 2
                - ((z - mean) / sd) ** 2 / 2
                + np.log(oracle_sd / sd)
            )
            found.append(ratio.ravel())
    return np.concatenate(scores[0]), np.concatenate(scores[1])


def roc(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates of all thresholds on two sets of scores, from (0, 0) to (1,
    1)."""
    scores = np.concatenate([positive, negative])
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores
    is_positive = order < len(positive)
    rates = [
        np.append(0, np.cumsum(each)[last] / each.sum()) for each in (~is_positive, is_positive)
    ]
    return rates[0], rates[1]


def attack_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve of two sets of scores."""
    return float(np.trapezoid(*roc(positive, negative)[::-1]))


def attack_tpr(positive: np.ndarray, negative: np.ndarray, at: float = 0.05) -> float:
    """True positive rate where the false one is 5 %, between thresholds by a line."""
    return float(np.interp(at, *roc(positive, negative)))


def accuracies(models: Models, parts: Parts) -> np.ndarray:
    """Mean accuracy, with true labels, on the forget set, the retained and the validation samples:
    (3,)."""
    right = (models.z > 0).mean(axis=0)
    return np.array([right[part].mean() for part in (parts.forget, parts.retain, parts.validation)])


@dataclass(frozen=True)
class Measure:
    """A measure: a function of models, of the oracles that they are compared with, and of which
    samples are what.

    perfect: what it gives for models that are oracles; None: what it gives for the oracles
    themselves. needs_truth: it reads true labels, which data that came with their poison may not
    have.
    """

    function: Callable[[Models, Models, Parts], float]
    title: str
    perfect: float | None = 0.0
    needs_truth: bool = False

    def of_perfect(self, oracles: Models, parts: Parts) -> float:
        """What it would be for perfect unlearning."""
        return self.function(oracles, oracles, parts) if self.perfect is None else self.perfect

    def distance(self, models: Models, oracles: Models, parts: Parts) -> float:
        """How far from what it would be for perfect unlearning."""
        return abs(self.function(models, oracles, parts) - self.of_perfect(oracles, parts))


def _on(
    part: str, function: Callable[[np.ndarray, np.ndarray], np.ndarray], reduce: Callable = np.mean
) -> Callable:
    """The measure that reduces what a function gives for each sample of a part."""

    def measure(models: Models, oracles: Models, parts: Parts) -> float:
        chosen = getattr(parts, part)
        return float(reduce(function(models.z[:, chosen], oracles.z[:, chosen])))

    return measure


def _attacked(score: Callable[[np.ndarray, np.ndarray], float]) -> Callable:
    """The measure that scores U-LiRA's attack on the forget set."""
    return lambda models, oracles, parts: score(
        *likelihood_ratios(models.z[:, parts.forget], oracles.z[:, parts.forget])
    )


def accuracy_gap(models: Models, oracles: Models, parts: Parts) -> float:
    """Mean over forget set, retained and validation samples of the absolute difference of mean
    accuracies."""
    return float(np.abs(accuracies(models, parts) - accuracies(oracles, parts)).mean())


def tug_of_war(models: Models, oracles: Models, parts: Parts) -> float:
    """Π (1 - |difference of mean accuracies|) over forget set, retained and validation samples
    (arXiv:2406.01257)."""
    return float(np.prod(1 - np.abs(accuracies(models, parts) - accuracies(oracles, parts))))


def relearning(models: Models, oracles: Models, parts: Parts) -> float:
    """Mean steps until the poisoned forget set is as well known as to the teacher, over those of
    the oracles."""
    usual = oracles.relearn.mean()
    return float(models.relearn.mean() / usual) if usual > 0 else np.nan


def _corrected(part: str) -> Callable:
    """The measure that is the accuracy on a part as it was before the poison, with true labels
    (arXiv:2402.14015)."""
    return lambda models, oracles, parts: float((models.clean[:, getattr(parts, part)] > 0).mean())


PRIMARY = "w1"  # the measure of the verdicts
MEASURES: dict[str, Measure] = {
    "w1": Measure(_on("forget", wasserstein), "W1"),
    "w1_retain": Measure(_on("retain", wasserstein), "W1 retain"),
    "w1_validation": Measure(_on("validation", wasserstein), "W1 valid"),
    "klom": Measure(_on("forget", klom), "KLoM"),
    "klom_95": Measure(_on("forget", klom, lambda values: np.percentile(values, 95)), "KLoM 95 %"),
    "gap": Measure(accuracy_gap, "gap", needs_truth=True),
    "tow": Measure(tug_of_war, "ToW", 1.0, needs_truth=True),
    "epsilon": Measure(_on("forget", epsilon, np.median), "ε"),
    "auc": Measure(_attacked(attack_auc), "AUC", 0.5),
    "tpr": Measure(_attacked(attack_tpr), "TPR", 0.05),
    "relearn": Measure(relearning, "relearn", 1.0),
    "corrective": Measure(_corrected("poisoned"), "acc. poisoned", None, needs_truth=True),
    "corrective_validation": Measure(_corrected("validation"), "acc. valid", None),
}

# ---- what tells models from oracles ----

BOUNDED = ("value", "distance", "excess", "gain")
SCORES = (
    *BOUNDED,
    *(f"{name}_{end}" for name in BOUNDED for end in ("low", "high")),
    "floor",
    "unit",
    "null",
    "perfect",
)
SUBSAMPLES = 200
PERMUTATIONS = (
    19_999  # so many that Holm's correction over a few hundred rows leaves p < .05 attainable
)


def scores(
    measure: Measure,
    models: Models,
    floor: Models,
    oracles: Models,
    parts: Parts,
    null: Models | None = None,
) -> dict[str, float]:
    """A measure's value, its floor, and how far the models are above the floor and from the null
    arm, with bounds.

    models, floor (half A of the oracles) and null are all compared with oracles (half B). value,
    floor, null, perfect: of the models, half A, the null arm and perfect unlearning; distance: of
    the value from what is perfect; excess: the distance less that of half A; gain: the null arm's
    distance less the models'; unit: the distance of half A, the mean over halves drawn anew.
    NAME_low and NAME_high: 95 % bounds (`half_sample_interval`).
    """
    arms = {"models": models, "floor": floor, "oracles": oracles} | (
        {} if null is None else {"null": null}
    )

    def measured(
        models: Models, floor: Models, oracles: Models, null: Models | None = None
    ) -> np.ndarray:
        perfect = measure.of_perfect(oracles, parts)
        value, least, theirs = (
            np.nan if each is None else measure.function(each, oracles, parts)
            for each in (models, floor, null)
        )
        own = abs(value - perfect)
        return np.array([value, own, own - abs(least - perfect), abs(theirs - perfect) - own])

    estimates = measured(**arms)
    low, high = half_sample_interval(lambda own: measured(**own), arms, estimates)
    found = dict(zip(BOUNDED, estimates, strict=True))
    for end, bounds in {"low": low, "high": high}.items():
        found |= {f"{name}_{end}": bound for name, bound in zip(BOUNDED, bounds, strict=True)}
    found["floor"] = measure.function(floor, oracles, parts)
    found["perfect"] = measure.of_perfect(oracles, parts)
    found["null"] = np.nan if null is None else measure.function(null, oracles, parts)
    found["unit"] = typical_floor(measure, floor, oracles, parts)
    return found


NULL_OF = {"null": "models"}


def half_sample_interval(
    statistic: Callable[[dict[str, Models]], np.ndarray],
    arms: Mapping[str, Models],
    estimate: np.ndarray,
    *,
    pairs: Mapping[str, str] = NULL_OF,
) -> tuple[np.ndarray, np.ndarray]:
    """95 % bounds of statistics of several arms, by subsampling half of the models of each without
    replacement.

    The mean of half of N values, drawn without replacement, spreads about theirs as theirs does
    about the truth; a bootstrap repeats models, which makes of W1, KL and ε something else. Bounds
    stand about the estimate, so that what half as many models change in its mean (W1 is biased
    upwards) does not enter. Exact in its width for means. Simulated at N = 20 it is up to 1.5 times
    too wide for W1 and twice for KL where there is no difference, right where there is one, and for
    ε up to a quarter too narrow.

    pairs: arms that take the runs that another one, before them, takes: the null arm those of the
    method.
    """
    generator = np.random.default_rng(0)

    def once() -> np.ndarray:
        halves = {}
        for name, own in arms.items():
            paired = name in pairs and np.isin(own.run, halves[pairs[name]].run)
            rows = np.sort(generator.permutation(own.count)[: max(own.count // 2, 2)])
            halves[name] = own.take(np.flatnonzero(paired) if np.sum(paired) > 1 else rows)
        return statistic(halves)

    drawn = np.array([once() for _ in range(SUBSAMPLES)])
    moved = np.percentile(drawn - drawn.mean(axis=0), (97.5, 2.5), axis=0)
    return estimate - moved[0], estimate - moved[1]


def typical_floor(
    measure: Measure, floor: Models, oracles: Models, parts: Parts, splits: int = 50
) -> float:
    """The mean distance of one half of the oracles from the other, over random halves."""
    both = Models(*map(np.concatenate, zip(floor, oracles, strict=True)))
    generator = np.random.default_rng(0)
    orders = [generator.permutation(both.count) for _ in range(splits)]
    halves = [
        (both.take(order[: floor.count]), both.take(order[floor.count :])) for order in orders
    ]
    return float(np.mean([measure.distance(*half, parts) for half in halves]))


def permutation_p(
    measure: Measure, models: Models, floor: Models, oracles: Models, parts: Parts
) -> float:
    """How often models exchanged with those of half A are as far above it as these: one-sided,
    never 0.

    Both are compared with half B, which is left as it is. Over all exchanges where there are at
    most PERMUTATIONS of them, else over so many random ones.
    """
    both = Models(*map(np.concatenate, zip(models, floor, strict=True)))
    every, n = np.arange(both.count), models.count

    def excess(chosen: np.ndarray) -> float:
        sides = both.take(chosen), both.take(np.setdiff1d(every, chosen, assume_unique=True))
        return float(np.subtract(*(measure.distance(side, oracles, parts) for side in sides)))

    found = excess(every[:n])
    if math.comb(both.count, n) <= PERMUTATIONS:
        # these among them
        others = [excess(np.array(chosen)) for chosen in itertools.combinations(every, n)]
        return float(np.mean(np.array(others) >= found - 1e-12))
    generator = np.random.default_rng(0)
    others = [excess(np.sort(generator.permutation(every)[:n])) for _ in range(PERMUTATIONS)]
    return (1 + np.sum(np.array(others) >= found - 1e-12)) / (1 + PERMUTATIONS)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (k,) adjusted for k tests by Holm's rule; NaN where there is none."""
    p = np.asarray(p, float)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


SIGNIFICANT = 0.05
WITHIN = 0.1  # of what separates the teacher from the floor


def smallest_p(n: int) -> float:
    """The smallest p that `permutation_p` can give for n models against n of half A."""
    return max(1 / math.comb(2 * n, n), 1 / (1 + PERMUTATIONS))


def verdict(adjusted_p: float, excess_high: float, teacher_excess: float) -> str:
    """above: the floor, by the permutation test after Holm; within: a tenth of the teacher's
    excess; else undecided."""
    if adjusted_p < SIGNIFICANT:
        return "above"
    return "within" if excess_high < WITHIN * teacher_excess else "undecided"

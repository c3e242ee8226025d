"""Did it forget? Measures of the distance of models from oracles, their floors, and tests.

An oracle is trained as the teacher was, but on the retained samples alone. All code is pure NumPy
on the logits of N models for the samples of one draw of the poison. `MEASURES` are functions of
such models, of oracles, and of masks of the samples.
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
    """Results of N models that were trained alike, on s samples.

    The samples are the poisoned training set, then the validation set.
    """

    # (N, s) the margin: the logit of the true label's probability; of two classes the logit,
    # positive where it is for the true label
    z: np.ndarray
    clean: np.ndarray  # (N, s) z of the samples as they were before the poison
    relearn: np.ndarray  # (N,) steps until the poisoned forget set is learned again
    # (N,) numbers of the runs: within a run, a method and its null arm start from one teacher
    run: np.ndarray
    # of more than two classes: (N, s) whether the class is the true label, of the samples as
    # poisoned and as they were before, and (N, s, K) the probabilities
    hit: np.ndarray | None = None
    clean_hit: np.ndarray | None = None
    probability: np.ndarray | None = None

    def take(self, rows: np.ndarray | slice) -> Models:
        """Return some of the models; rows: positions, or a mask (N,)."""
        return Models(*(None if part is None else part[rows] for part in self))

    @property
    def count(self) -> int:
        """The number of models."""
        return len(self.z)


Of = Callable[[np.ndarray], float]  # a mask (N,) of models -> a measure of these models


class Parts(NamedTuple):
    """Masks of the parts of the s samples: (s,) each."""

    forget: np.ndarray  # known to be poisoned
    poisoned: np.ndarray  # poisoned, known or not
    retain: np.ndarray  # trained on, and not known to be poisoned
    validation: np.ndarray  # without a class that is to be forgotten
    of_class: np.ndarray | None = None  # the validation samples of that class


def signs(labels: np.ndarray) -> np.ndarray:
    """1 where a label is 1, -1 where it is 0."""
    return np.where(np.asarray(labels) > 0, 1, -1)


def signed(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negate logits (N, s) whose true label (s,) is 0, so that positive means correct: z."""
    logits = as_array(logits, "logits")
    labels = as_array(labels, "labels")
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
    quantiles = []
    for values in (left, right):
        ascending = np.sort(values, axis=0)
        quantiles.append(np.repeat(ascending, count // len(values), axis=0))
    left_quantiles, right_quantiles = quantiles
    return np.abs(left_quantiles - right_quantiles).mean(axis=0)


def wasserstein_of_some(models: Models, oracles: Models, parts: Parts) -> Of:
    """Prepare the mean W1 on the forget set of any of the models: a function of a mask (N,).

    It returns what `wasserstein` of these models does, to the bit. The models are sorted once, not
    for each mask: of the sorted ones, those of the mask stand in order. A permutation test asks for
    some 20,000 masks, which takes a ninth of the time.
    """
    z = models.z[:, parts.forget]
    order = np.argsort(z, axis=0, kind="stable").T  # (s, N)
    ascending = np.take_along_axis(z.T, order, axis=1)
    of_oracles = np.sort(oracles.z[:, parts.forget], axis=0)

    def mean_distance(mask: np.ndarray) -> float:
        n = np.count_nonzero(mask)
        chosen = ascending[mask[order]].reshape(len(order), n)
        count = math.lcm(n, len(of_oracles))
        # rows stand in memory as those of `wasserstein`, so that numpy adds them up in that order
        quantiles = np.repeat(np.ascontiguousarray(chosen.T), count // n, axis=0)
        of_both = np.repeat(of_oracles, count // len(of_oracles), axis=0)
        return float(np.mean(np.abs(quantiles - of_both).mean(axis=0)))

    return mean_distance


# smallest standard deviation of a fitted Gaussian, in units of the median of the oracles' ones
SIGMA_FLOOR = 0.1


def _gaussians(models: np.ndarray, oracles: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of each column of models, then of oracles.

    No deviation is below SIGMA_FLOOR.
    """
    arms = models, oracles
    deviations = []
    for values in arms:
        ddof = min(1, len(values) - 1)
        deviations.append(values.std(axis=0, ddof=ddof))
    typical = np.median(deviations[1])
    least = max(SIGMA_FLOOR * typical, 1e-6)
    for values, deviation in zip(arms, deviations, strict=True):
        mean = values.mean(axis=0)
        yield mean, np.maximum(deviation, least)


def klom(models: np.ndarray, oracles: np.ndarray) -> np.ndarray:
    """KL(models || oracles) of Gaussians fitted to columns of (N, s) and (M, s): (s,) in nats.

    KLoM (arXiv:2410.23232) bins the margins. With 20 models most bins are empty, so Gaussians are
    fitted here instead.
    """
    (mean, sd), (oracle_mean, oracle_sd) = _gaussians(models, oracles)
    second_moment = sd**2 + (mean - oracle_mean) ** 2  # about the oracles' mean
    return np.log(oracle_sd / sd) + second_moment / (2 * oracle_sd**2) - 0.5


def epsilon(models: np.ndarray, oracles: np.ndarray, delta: float = 0.0) -> np.ndarray:
    """The largest ε of each column over thresholds on (N, s) and (M, s) values: (s,).

    It is the maximum of log((1 - δ - FPR) / FNR) and log((1 - δ - FNR) / FPR) (arXiv:2406.09073)
    over all thresholds, either side of which may be guessed to be unlearned. Counts have one added,
    so that no rate is 0: ε is at most log N for δ = 0.
    """
    thresholds = np.sort(np.concatenate([models, oracles]), axis=0)[:, None]  # (N + M, 1, s)
    missed = (models <= thresholds).sum(axis=1)  # (N + M, s)
    false = (oracles > thresholds).sum(axis=1)
    n_models = len(models)
    n_oracles = len(oracles)
    largest = np.zeros(models.shape[1])
    other_side = (n_models - missed, n_oracles - false)
    for fn, fp in ((missed, false), other_side):
        fnr = np.minimum((fn + 1) / (n_models + 1), 1)
        fpr = np.minimum((fp + 1) / (n_oracles + 1), 1)
        for kept, wrong in ((fpr, fnr), (fnr, fpr)):
            ratio = np.maximum((1 - delta - kept) / wrong, 1)
            largest = np.maximum(largest, np.log(ratio).max(axis=0))
    return largest


def likelihood_ratios(models: np.ndarray, oracles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """U-LiRA's scores of all values (N, s) of models and (M, s) of oracles: flat, both.

    A score is log p(z | unlearned) - log p(z | oracle), high where unlearned, with Gaussians for
    each column. They are fitted on one half of the models and of the oracles and scored on the
    other half, both ways (arXiv:2403.01218).
    """
    model_cut = len(models) // 2
    oracle_cut = len(oracles) // 2
    model_halves = models[:model_cut], models[model_cut:]
    oracle_halves = oracles[:oracle_cut], oracles[oracle_cut:]
    model_scores: list[np.ndarray] = []
    oracle_scores: list[np.ndarray] = []
    for fitted, scored in ((0, 1), (1, 0)):
        gaussians = _gaussians(model_halves[fitted], oracle_halves[fitted])
        (mean, sd), (oracle_mean, oracle_sd) = gaussians
        for arm_scores, z in (
            (model_scores, model_halves[scored]),
            (oracle_scores, oracle_halves[scored]),
        ):
            from_oracles = ((z - oracle_mean) / oracle_sd) ** 2 / 2
            from_models = ((z - mean) / sd) ** 2 / 2
            ratio = from_oracles - from_models + np.log(oracle_sd / sd)
            arm_scores.append(ratio.ravel())
    return np.concatenate(model_scores), np.concatenate(oracle_scores)


def roc(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates of all thresholds on two sets of scores: (0, 0) to (1, 1)."""
    scores = np.concatenate([positive, negative])
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores
    is_positive = order < len(positive)
    rates = []
    for members in (~is_positive, is_positive):
        shares = np.cumsum(members)[is_last] / members.sum()
        rates.append(np.append(0, shares))
    false_positive_rates, true_positive_rates = rates
    return false_positive_rates, true_positive_rates


def attack_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve of two sets of scores."""
    false_positive_rates, true_positive_rates = roc(positive, negative)
    return float(np.trapezoid(true_positive_rates, false_positive_rates))


def attack_tpr(positive: np.ndarray, negative: np.ndarray, at: float = 0.05) -> float:
    """True positive rate at a false positive rate of 5 %, interpolated linearly."""
    return float(np.interp(at, *roc(positive, negative)))


def accuracies(models: Models, parts: Parts) -> np.ndarray:
    """Mean accuracies, with true labels, on forget set, retained and validation samples: (3,)."""
    right = models.z > 0 if models.hit is None else models.hit
    correct = right.mean(axis=0)
    masks = parts.forget, parts.retain, parts.validation
    return np.array([correct[mask].mean() for mask in masks])


@dataclass(frozen=True)
class Measure:
    """A measure: a function of models, of the oracles they are compared with, and of the parts.

    perfect: its value for perfect unlearning; None takes its value for the oracles themselves.
    needs_truth: it reads true labels, which data that came with their poison may not have.
    """

    function: Callable[[Models, Models, Parts], float]
    title: str
    perfect: float | None = 0.0
    needs_truth: bool = False

    def of_perfect(self, oracles: Models, parts: Parts) -> float:
        """The measure's value for perfect unlearning."""
        if self.perfect is None:
            return self.function(oracles, oracles, parts)
        return self.perfect

    def distance(self, models: Models, oracles: Models, parts: Parts) -> float:
        """Absolute difference of the measure from its value for perfect unlearning."""
        value = self.function(models, oracles, parts)
        return abs(value - self.of_perfect(oracles, parts))


def _on(
    part: str, function: Callable[[np.ndarray, np.ndarray], np.ndarray], reduce: Callable = np.mean
) -> Callable:
    """The measure that reduces the values of a function for the samples of one part."""

    def measure(models: Models, oracles: Models, parts: Parts) -> float:
        mask = getattr(parts, part)
        z = models.z[:, mask]
        z_of_oracles = oracles.z[:, mask]
        return float(reduce(function(z, z_of_oracles)))

    return measure


def _attacked(score: Callable[[np.ndarray, np.ndarray], float]) -> Callable:
    """The measure that scores U-LiRA's attack on the forget set."""

    def measure(models: Models, oracles: Models, parts: Parts) -> float:
        z = models.z[:, parts.forget]
        z_of_oracles = oracles.z[:, parts.forget]
        return score(*likelihood_ratios(z, z_of_oracles))

    return measure


def accuracy_gap(models: Models, oracles: Models, parts: Parts) -> float:
    """Mean |difference of mean accuracies| over forget set, retained and validation samples."""
    differences = accuracies(models, parts) - accuracies(oracles, parts)
    return float(np.abs(differences).mean())


def tug_of_war(models: Models, oracles: Models, parts: Parts) -> float:
    """Π (1 - |difference of mean accuracies|) over forget set, retained and validation samples.

    Source: arXiv:2406.01257.
    """
    differences = accuracies(models, parts) - accuracies(oracles, parts)
    return float(np.prod(1 - np.abs(differences)))


def total_variation(models: Models, oracles: Models, parts: Parts) -> float:
    """Total variation between mean class probabilities of models and oracles, mean on the forget
    set.

    It sees to which of more than two classes probability went, to which a margin is blind.
    """
    means = [arm.probability[:, parts.forget].mean(axis=0) for arm in (models, oracles)]
    return float(np.abs(np.subtract(*means)).sum(axis=1).mean() / 2)


def relearning(models: Models, oracles: Models, parts: Parts) -> float:
    """Mean steps of the models to relearn the poisoned forget set, over those of the oracles.

    It counts as relearned once a model knows it as well as the teacher did. NaN where the oracles
    need no steps.
    """
    steps = models.relearn.mean()
    steps_of_oracles = oracles.relearn.mean()
    return float(steps / steps_of_oracles) if steps_of_oracles > 0 else np.nan


def _corrected(part: str) -> Callable:
    """The measure that is the accuracy on a part as it was before the poison, with true labels.

    Source: arXiv:2402.14015.
    """

    def measure(models: Models, oracles: Models, parts: Parts) -> float:
        right = models.clean > 0 if models.clean_hit is None else models.clean_hit
        return float(right[:, getattr(parts, part)].mean())

    return measure


PRIMARY = "w1"  # the measure on which verdicts rest
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
STANDARD = tuple(MEASURES.items())  # without those that users add
OF_POISONED = ("corrective",)  # measures that need poisoned samples
# what is measured in addition of more than two classes, and where a class is to be forgotten
OF_CLASSES = {"tv": Measure(total_variation, "TV")}
OF_CLASS = {"w1_of_class": Measure(_on("of_class", wasserstein), "W1 valid, class")}
# by a measure's function: what prepares it for many subsets of the same models
OF_SOME = {MEASURES["w1"].function: wasserstein_of_some}

# ---- statistics: intervals, permutation tests and verdicts ----

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
# so many that Holm's correction over a few hundred rows leaves p < .05 attainable
PERMUTATIONS = 19_999


def scores(
    measure: Measure,
    models: Models,
    floor: Models,
    oracles: Models,
    parts: Parts,
    null: Models | None = None,
) -> dict[str, float]:
    """A measure's value, its floor, its excess over the floor and its gain on the null arm.

    models, floor (half A of the oracles) and null are all compared with oracles (half B). The keys
    of the result, SCORES:
    value, floor, null, perfect: the measure of the models, half A, the null arm, perfect unlearning
    distance: |value - perfect|
    excess: the models' distance less that of half A
    gain: the null arm's distance less that of the models
    unit: the mean distance of half A, over halves drawn anew (`typical_floor`)
    NAME_low, NAME_high: 95 % bounds of value, distance, excess, gain (`half_sample_interval`)
    """
    arms = {"models": models, "floor": floor, "oracles": oracles}
    if null is not None:
        arms["null"] = null
    value_of = _remembering(measure, arms, parts)

    def bounded_scores(
        models: Models, floor: Models, oracles: Models, null: Models | None = None
    ) -> np.ndarray:
        perfect = measure.perfect
        if perfect is None:
            perfect = value_of("oracles", oracles, oracles)
        value = value_of("models", models, oracles)
        floor_value = value_of("floor", floor, oracles)
        null_value = value_of("null", null, oracles)
        distance = abs(value - perfect)
        excess = distance - abs(floor_value - perfect)
        gain = abs(null_value - perfect) - distance
        return np.array([value, distance, excess, gain])

    estimates = bounded_scores(**arms)
    low, high = half_sample_interval(lambda halves: bounded_scores(**halves), arms, estimates)
    by_name = dict(zip(BOUNDED, estimates, strict=True))
    for end, bounds in (("low", low), ("high", high)):
        for name, bound in zip(BOUNDED, bounds, strict=True):
            by_name[f"{name}_{end}"] = bound
    by_name["floor"] = value_of("floor", floor, oracles)
    by_name["perfect"] = measure.of_perfect(oracles, parts)
    by_name["null"] = value_of("null", null, oracles)
    by_name["unit"] = typical_floor(measure, floor, oracles, parts)
    return by_name


def _remembering(
    measure: Measure, arms: Mapping[str, Models], parts: Parts
) -> Callable[[str, Models | None, Models], float]:
    """Return the measure of an arm, by its name, against oracles; NaN for None.

    Of few models the same halves are drawn again and again: each pair is measured once, unless the
    runs of an arm have no numbers of their own.
    """
    known: dict[tuple, float] = {}
    are_told_apart = all(len(np.unique(arm.run)) == arm.count for arm in arms.values())

    def value_of(name: str, arm: Models | None, oracles: Models) -> float:
        if arm is None:
            return np.nan
        if not are_told_apart:
            return measure.function(arm, oracles, parts)
        halves = (name, arm.run.tobytes(), oracles.run.tobytes())
        if halves not in known:
            known[halves] = measure.function(arm, oracles, parts)
        return known[halves]

    return value_of


NULL_OF = {"null": "models"}


def half_sample_interval(
    statistic: Callable[[dict[str, Models]], np.ndarray],
    arms: Mapping[str, Models],
    estimate: np.ndarray,
    *,
    pairs: Mapping[str, str] = NULL_OF,
) -> tuple[np.ndarray, np.ndarray]:
    """95 % bounds of statistics of several arms, from random halves of the models of each arm.

    The halves are drawn without replacement: the mean of half of N values spreads about the mean of
    all N as the mean of all N does about the truth. A bootstrap would repeat models, which changes
    W1, KL and ε. The bounds are centred on the estimate, so that the bias of half as many models
    (W1 is biased upwards) does not enter. The width is exact for means. Simulated at N = 20 without
    a difference between the arms, it is up to 1.5 times too wide for W1 and twice too wide for KL,
    with a difference it is right; for ε it is up to a quarter too narrow.

    pairs: arms that take the runs of an earlier arm's half: the null arm takes those of the method.
    """
    generator = np.random.default_rng(0)

    def statistic_of_halves() -> np.ndarray:
        halves = {}
        for name, arm in arms.items():
            is_paired = False
            if name in pairs:
                half_of_pair = halves[pairs[name]]
                is_paired = np.isin(arm.run, half_of_pair.run)
            n_drawn = max(arm.count // 2, 2)
            rows = np.sort(generator.permutation(arm.count)[:n_drawn])
            if np.sum(is_paired) > 1:
                rows = np.flatnonzero(is_paired)
            halves[name] = arm.take(rows)
        return statistic(halves)

    drawn = np.array([statistic_of_halves() for _ in range(SUBSAMPLES)])
    deviations = drawn - drawn.mean(axis=0)
    upper, lower = np.percentile(deviations, (97.5, 2.5), axis=0)
    return estimate - upper, estimate - lower


def _joined(first: Models, second: Models) -> Models:
    pairs = zip(first, second, strict=True)
    return Models(*(None if pair[0] is None else np.concatenate(pair) for pair in pairs))


def typical_floor(
    measure: Measure, floor: Models, oracles: Models, parts: Parts, splits: int = 50
) -> float:
    """The mean distance of one half of the oracles from the other, over random halves."""
    both = _joined(floor, oracles)
    generator = np.random.default_rng(0)
    distances = []
    for _ in range(splits):
        order = generator.permutation(both.count)
        half_a = both.take(order[: floor.count])
        half_b = both.take(order[floor.count :])
        distances.append(measure.distance(half_a, half_b, parts))
    return float(np.mean(distances))


def permutation_p(
    measure: Measure, models: Models, floor: Models, oracles: Models, parts: Parts
) -> float:
    """One-sided p-value of the excess over half A, by exchanges between models and half A; never 0.

    It is the share of exchanges whose excess is at least the observed one. All exchanges are tried
    where there are at most PERMUTATIONS, else PERMUTATIONS random ones. Half B, with which both
    sides are compared, stays.
    """
    both = _joined(models, floor)
    every = np.arange(both.count)
    n = models.count
    perfect = measure.of_perfect(oracles, parts)
    if measure.function in OF_SOME:
        value_of = OF_SOME[measure.function](both, oracles, parts)
    else:

        def value_of(mask: np.ndarray) -> float:
            return measure.function(both.take(mask), oracles, parts)

    def excess(chosen: np.ndarray) -> float:
        mask = np.zeros(both.count, bool)
        mask[chosen] = True
        return float(abs(value_of(mask) - perfect) - abs(value_of(~mask) - perfect))

    observed = excess(every[:n])
    threshold = observed - 1e-12  # against rounding
    if math.comb(both.count, n) <= PERMUTATIONS:
        # the observed one is among them
        exchanges = itertools.combinations(every, n)
        excesses = [excess(np.array(chosen)) for chosen in exchanges]
        return float(np.mean(np.array(excesses) >= threshold))
    generator = np.random.default_rng(0)
    excesses = []
    for _ in range(PERMUTATIONS):
        chosen = generator.permutation(every)[:n]
        excesses.append(excess(chosen))
    n_reached = np.sum(np.array(excesses) >= threshold)
    return (1 + n_reached) / (1 + PERMUTATIONS)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (k,) adjusted by Holm's rule for the tests among them; NaN where p is NaN."""
    p = np.asarray(p, float)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    increasing = np.maximum.accumulate(p[order] * factors)
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(increasing, 1)
    return adjusted


SIGNIFICANT = 0.05
WITHIN = 0.1  # share of the teacher's excess over the floor


def smallest_p(n: int) -> float:
    """The smallest p that `permutation_p` can give for n models against n of half A."""
    of_all_exchanges = 1 / math.comb(2 * n, n)
    of_drawn_exchanges = 1 / (1 + PERMUTATIONS)
    return max(of_all_exchanges, of_drawn_exchanges)


def verdict(adjusted_p: float, excess: float, excess_high: float, teacher_excess: float) -> str:
    """Above the floor, within a tenth of the teacher's excess, not testable, or undecided.

    above: the permutation test after Holm is significant. not testable: else, if the upper bound is
    farther from the excess than WITHIN times the teacher's, so that an excess of 0 would not be
    within either. within: else, if the upper bound of the excess is below that.
    """
    if adjusted_p < SIGNIFICANT:
        return "above"
    reach = WITHIN * teacher_excess
    if excess_high - excess >= reach:
        return "not testable"
    return "within" if excess_high < reach else "undecided"

"""Claims: a statement, its effect, the controls that could contradict it, and the verdict.

The rule, in this order. It, MARGIN and the one or two controls of each claim were named before the
studies own_labels, transition, equal_fit and aimed_flips were run, but after most other studies had
been computed once.

- A claim is *not testable* if what its effect or a control is compared with leaves less room than
  the margin, such as an accuracy of .99; or if so few draws give no p-value below .05 after Holm's
  correction over the table, whatever comes out.
- It *falls* if the interval of its effect ends below 0, or that of a control at the margin or
  below: the control does as well. A claim of parity may be behind its controls by the margin.
- It *stands* if the interval of its effect begins above 0, its p-value after Holm's correction is
  below .05, and the interval of every control begins above the margin. It is *weaker* if so, and
  the interval of its effect ends below half of the published effect.
- Else it is *undecided*.

Differences are paired by draw: both sides have one poison and, where runs have training sets of
their own, one training set. Runs on one draw are averaged first: many seeds are one draw. Intervals
are Student's t intervals of 95 % over draws; those of a claim's k controls are of 1 − .05 / k
(Bonferroni). Validation samples are taken as given, or are drawn with the training sets; but in the
noise sweep of the ring, where all runs are judged on the same few states, their choice widens the
intervals.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.measures.forgetting import SIGNIFICANT, holm
from foundation.report.frames import ResultFiles, accuracies
from foundation.report.layout import digits

MARGIN = 0.02  # of accuracies and shares
LEVEL = 0.95
FLIPS = 9999  # of signs, drawn where there are more


class Evidence(NamedTuple):
    """Paired differences, positive in the claimed direction: their mean over n draws, and p.

    p: two-sided, of sign flips; NaN for fewer than two draws. room: from the mean of the side that
    is subtracted to the end of the scale in the claimed direction; inf: the scale has no end.
    of_states: what the choice of a few validation samples adds to the variance of the mean.
    """

    name: str
    value: float
    sd: float  # over draws
    n: int
    p: float
    room: float = math.inf
    of_states: float = 0.0

    def interval(self, comparisons: int = 1) -> tuple[float, float]:
        """Student's t interval, Bonferroni-corrected for so many comparisons; NaN for n < 2."""
        if self.n < 2:
            return math.nan, math.nan
        error = math.sqrt(self.sd**2 / self.n + self.of_states)
        half = _quantile(comparisons, self.n - 1) * error
        return self.value - half, self.value + half

    @property
    def smallest_p(self) -> float:
        """The smallest p that sign flips of n differences can give, before Holm's correction."""
        return min(1.0, max(2.0 ** (1 - self.n), 2 / (FLIPS + 1)))

    def text(self, comparisons: int = 1) -> str:
        """The mean with its interval and n, such as +.12 [+.08, +.15], n = 20."""
        value = digits(self.value, sign="+")
        low, high = self.interval(comparisons)
        if high > low:
            value = f"{value} [{digits(low, sign='+')}, {digits(high, sign='+')}]"
        return f"{value}, n = {self.n}"


@cache
def _quantile(comparisons: int, freedom: int) -> float:
    """Of Student's t, so that an interval has its share of 95 % for so many comparisons."""
    return float(stats.t.ppf(1 - (1 - LEVEL) / comparisons / 2, freedom))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement, its effect, and the controls that could contradict it.

    whose: the paper's or ours. source: where the paper says so, or what of ours it follows.
    setting: how the models were trained, such as "as published".
    """

    whose: str
    source: str
    setting: str
    statement: str
    effect: Evidence
    controls: tuple[Evidence, ...]  # the claimed side minus each control
    published: float | None = None  # the published effect
    margin: float = MARGIN
    is_parity: bool = False  # the claimed side may be behind its controls by the margin

    def verdict(self, adjusted_p: float, claims: int = 1) -> str:
        """Apply the module's rule. adjusted_p: of the effect. claims: how many the table has."""
        if reason := self._not_testable(claims):
            return f"not testable: {reason}"
        low, high = self.effect.interval()
        of_controls = [control.interval(len(self.controls)) for control in self.controls]
        wanted = -self.margin if self.is_parity else self.margin
        does_as_well = [highest <= wanted for _, highest in of_controls]
        if high < 0 or any(does_as_well):
            return "falls"
        holds = low > 0 and adjusted_p < SIGNIFICANT
        is_ahead = [lowest > wanted for lowest, _ in of_controls]
        if not (holds and all(is_ahead)):
            return "undecided"
        is_weaker = self.published and high < self.published / 2
        return "weaker" if is_weaker else "stands"

    def _not_testable(self, claims: int) -> str:
        """Say why no numbers could decide the claim; "" where they could."""
        compared = (self.effect,) if self.is_parity else (self.effect, *self.controls)
        room = min(each.room for each in compared)
        if room < self.margin:
            return f"room {digits(room)}"
        if self.effect.smallest_p * claims > SIGNIFICANT:
            return f"n = {self.effect.n}"
        fewest = min(control.n for control in self.controls)
        return f"n = {fewest}" if fewest < 2 else ""


def paired(name: str, left: pd.DataFrame, right: pd.DataFrame, *, ceiling: float = 1.0) -> Evidence:
    """Average the accuracies left minus right over the draws that both have.

    left, right: frames with columns run and accuracy; with a column draw, the runs of a draw are
    averaged first. ceiling: the largest accuracy that there can be.
    """
    accuracies = [_by_draw(side) for side in (left, right)]
    left_accuracies, right_accuracies = accuracies[0].align(accuracies[1], join="inner")
    difference = (left_accuracies - right_accuracies).dropna()
    room = ceiling - float(right_accuracies[difference.index].mean())
    return of_values(name, difference.values, room=room)


def paired_on_states(name: str, left: xr.Dataset, right: xr.Dataset) -> Evidence:
    """Average the validation accuracies left minus right over the runs that both have.

    left, right: a model's results over (run, split). Where they say which of a few validation
    samples are right, (run, state), these count as drawn, too.
    """
    found = paired(name, *(accuracies(side, "validation") for side in (left, right)))
    if "right" not in left:  # there are many
        return found
    difference = (left.right - right.right).dropna("run", how="all")
    return found._replace(of_states=variance_of_states(difference.transpose("run", "state").values))


def variance_of_states(values: np.ndarray) -> float:
    """Return what the choice of states adds to the variance of the mean of (runs, states) values.

    Of a crossed design with random rows and columns, by its mean squares; 0 where it is negative.
    """
    n, m = values.shape
    rows, columns = (values.mean(axis=axis, keepdims=True) for axis in (1, 0))
    rest = values - rows - columns + values.mean()
    of_rest = (rest**2).sum() / ((n - 1) * (m - 1))
    return max(0.0, float(columns.var(ddof=1) / m - of_rest / (n * m)))


def _by_draw(runs: pd.DataFrame) -> pd.Series:
    unit = "draw" if "draw" in runs else "run"
    return runs.groupby(unit).accuracy.mean()


def of_values(name: str, values: np.ndarray, *, room: float = math.inf) -> Evidence:
    """Average the values of draws, (n,), with the p-value of sign flips."""
    p = math.nan
    if len(values) > 1:
        test = stats.permutation_test(
            (values,),
            np.mean,
            permutation_type="samples",
            n_resamples=FLIPS,
            rng=np.random.default_rng(0),
        )
        p = float(test.pvalue)
    mean = float(np.mean(values)) if len(values) else math.nan
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Evidence(name, mean, sd, len(values), p, room)


def first_of(runs: pd.DataFrame, family: str) -> str:
    """Return the largest MLP, or the smallest model of another family."""
    is_family = runs.family == family
    by_size = runs[is_family].sort_values("size", ascending=family != "MLP", kind="stable")
    return by_size.model.iloc[0]


def of_model(runs: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the rows of one model."""
    return runs[runs.model == model]


def of_family(runs: pd.DataFrame, family: str) -> pd.DataFrame:
    """Return the rows of a family's first model, see `first_of`."""
    return of_model(runs, first_of(runs, family))


def decided(read: ResultFiles, claims: Iterable[Callable[[ResultFiles], Claim]]) -> pd.DataFrame:
    """Decide the claims whose studies are there: a table with a row for each claim.

    Claims without their studies are left out, and the reason is printed on stderr.
    """
    decidable = []
    reasons = []
    for make in claims:
        try:
            decidable.append(make(read))
        except ValueError as error:
            reasons.append(str(error))
    for reason in dict.fromkeys(reasons):
        print(f"claims are left out: {reason}", file=sys.stderr)
    count = len(decidable)
    adjusted = holm(np.array([claim.effect.p for claim in decidable]))
    rows = []
    for claim, adjusted_p in zip(decidable, adjusted, strict=True):
        comparisons = len(claim.controls)
        controls = [f"{each.name}: {each.text(comparisons)}" for each in claim.controls]
        least_p = digits(min(1.0, claim.effect.smallest_p * count))
        effect = f"{claim.effect.name}: {claim.effect.text()}"
        texts = (claim.whose, claim.source, claim.setting, claim.statement, effect)
        rows.append((*texts, "; ".join(controls), least_p, claim.verdict(adjusted_p, count)))
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = [
    *("claim", "source", "setting", "statement"),
    *("effect", "named control", "least p", "verdict"),
]

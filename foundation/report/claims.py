"""Claims: a statement, its effect, the control that decides, and the verdict.

The rule was fixed before anything was computed.

- A claim *stands* if the interval of its effect excludes 0 in the claimed direction, with Holm's
  correction over the table, and no control comes within the margin.
- It is *weaker* if it stands, but its effect is less than half the published effect.
- It *falls* if the whole interval of a control is within the margin or ahead, or if the whole
  interval of the effect lies in the other direction.
- Else it is *undecided*.

All differences are paired by run: both sides have one poison and, where runs have training sets of
their own, one training set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from foundation.base.later import pandas as pd
from foundation.measures import metrics
from foundation.measures.forgetting import SIGNIFICANT, holm
from foundation.report.frames import ResultFiles
from foundation.report.layout import digits

MARGIN = 0.02  # of accuracies


class Evidence(NamedTuple):
    """The mean of a paired difference, positive in the claimed direction, and its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    n: int
    p: float  # two-sided, of sign flips; NaN: the interval alone decides

    @property
    def text(self) -> str:
        """The mean with its interval and n, such as +.12 [+.08, +.15], n = 20."""
        value = digits(self.value, sign="+")
        if self.high > self.low:
            low = digits(self.low, sign="+")
            high = digits(self.high, sign="+")
            value = f"{value} [{low}, {high}]"
        return f"{value}, n = {self.n}"


@dataclass(frozen=True)
class Claim:
    """A statement, its effect, and the controls that could refute it."""

    whose: str  # the paper's or ours
    statement: str
    effect: Evidence
    controls: tuple[Evidence, ...]  # the claimed side minus each control
    published: float | None = None  # the published effect
    margin: float = MARGIN

    @property
    def decisive(self) -> Evidence:
        """The control of the smallest difference: the nearest one, or the one farthest ahead."""
        return min(self.controls, key=lambda control: control.value)

    def verdict(self, adjusted_p: float) -> str:
        """Apply the module's rule; adjusted_p: of the effect, NaN where its interval decides."""
        control_ahead = any(control.high <= self.margin for control in self.controls)
        if self.effect.high < 0 or control_ahead:
            return "falls"
        holds = self.effect.low > 0 and not adjusted_p >= SIGNIFICANT
        control_near = any(control.value <= self.margin for control in self.controls)
        if not holds or control_near:
            return "undecided"
        is_weaker = self.published and self.effect.value < self.published / 2
        return "weaker" if is_weaker else "stands"


def paired(name: str, left: pd.DataFrame, right: pd.DataFrame) -> Evidence:
    """Average the accuracies left minus right over the runs that both have.

    left, right: frames with columns run and accuracy.
    """
    accuracies = [side.set_index("run").accuracy for side in (left, right)]
    left_accuracies, right_accuracies = accuracies[0].align(accuracies[1], join="inner")
    difference = (left_accuracies - right_accuracies).dropna().values
    return of_values(name, difference)


def of_values(name: str, values: np.ndarray) -> Evidence:
    """Average the values of runs, (n,), with an interval and the p-value of sign flips."""
    p = np.nan
    if len(values) > 1 and np.ptp(values):
        test = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", rng=np.random.default_rng(0)
        )
        p = float(test.pvalue)
    low, high = metrics.bootstrap_interval(values)
    mean = float(np.mean(values))
    return Evidence(name, mean, low, high, len(values), p)


def first_of(runs: pd.DataFrame, family: str) -> str:
    """Return the largest MLP, or the smallest model of another family."""
    is_family = runs.family == family
    by_size = runs[is_family].sort_values("size", ascending=family != "MLP", kind="stable")
    return by_size.model.iloc[0]


def of_model(runs: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the rows of one model."""
    return runs[runs.model == model]


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
    adjusted = holm(np.array([claim.effect.p for claim in decidable]))
    rows = []
    for claim, adjusted_p in zip(decidable, adjusted, strict=True):
        effect = f"{claim.effect.name}: {claim.effect.text}"
        control = f"{claim.decisive.name}: {claim.decisive.text}"
        verdict = claim.verdict(adjusted_p)
        rows.append((claim.whose, claim.statement, effect, control, verdict))
    return pd.DataFrame(
        rows, columns=["claim", "statement", "effect", "the control that decides", "verdict"]
    )

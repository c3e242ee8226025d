"""Claims: a statement, its effect, the control that decides, and the verdict.

The rule was fixed before anything was computed. A claim *stands* if the interval of its effect
excludes 0 in the claimed direction, after Holm over the table, and no control comes within the
margin; it is *weaker* if, that given, the effect is less than half the published one; it *falls* if
a control is within the margin or better with its whole interval, or the effect is the other way
with its whole interval; else it is *undecided*. Everything is paired: by run, with the same poison
and, where runs have one of their own, training set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from foundation.measures import metrics
from foundation.measures.forgetting import SIGNIFICANT, holm
from foundation.report.frames import ResultFiles
from foundation.report.layout import digits

MARGIN = 0.02  # of accuracies


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
    """A statement, the effect that it is about, and what could refute it: the claimed side minus
    each control."""

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
    """The mean of own minus other, both with columns run and accuracy, over the runs that both
    have."""
    both = own.set_index("run").accuracy.align(other.set_index("run").accuracy, join="inner")
    difference = (both[0] - both[1]).dropna().values
    return of_values(words, difference)


def of_values(words: str, values: np.ndarray) -> Evidence:
    """The mean of values by run."""
    p = np.nan
    if len(values) > 1 and np.ptp(values):
        test = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", rng=np.random.default_rng(0)
        )
        p = float(test.pvalue)
    return Evidence(
        words, float(np.mean(values)), *metrics.bootstrap_interval(values), len(values), p
    )


def first_of(runs: pd.DataFrame, family: str) -> str:
    """The model of a family; of several MLPs the largest."""
    own = runs[runs.family == family].sort_values("size", ascending=family != "MLP", kind="stable")
    return own.model.iloc[0]


def of_model(runs: pd.DataFrame, model: str) -> pd.DataFrame:
    return runs[runs.model == model]


def decided(read: ResultFiles, claims: Iterable[Callable[[ResultFiles], Claim]]) -> pd.DataFrame:
    """Whose, statement, effect, control, difference, verdict of every claim of which the studies
    are there."""
    found, missing = [], []
    for make in claims:
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
    return pd.DataFrame(
        rows, columns=["claim", "statement", "effect", "the control that decides", "verdict"]
    )

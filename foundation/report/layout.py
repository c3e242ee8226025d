"""Tables: a tidy frame, and which of its columns name a row, and which a column; as text and as
Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from foundation.engine.study import StudyTable
from foundation.report.frames import VERDICTS, ResultFiles, rank


@dataclass(frozen=True)
class Table:
    """A tidy frame, and how it is laid out: which of its columns name a row of the table, and which
    a column."""

    tidy: pd.DataFrame
    rows: tuple[str, ...]
    columns: tuple[str, ...] = ("measure",)
    # above a column: a format of its labels, and of n, the most runs of any number below
    head: str = "{measure}"
    measures: dict[str, str] | None = (
        None  # those that are shown, in this order, by these names; None: all
    )
    spread: tuple[str, ...] | None = None  # measures whose intervals are shown; None: all
    title: str = ""  # a format of n, the count of runs
    # of measures beside those in FORMATS
    formats: dict[str, Callable[[float], str]] = field(default_factory=dict)

    def cells(self) -> pd.DataFrame:
        """The text of all cells, between the names of the rows and the heads of the columns."""
        shown = self.measures or {name: name for name in self.tidy.measure.unique()}
        frame = self.tidy[self.tidy.measure.isin(shown)]
        frame = frame.sort_values(
            "measure", key=lambda names: names.map(list(shown).index), kind="stable"
        )
        frame = frame.assign(
            cell=list(map(self._cell, frame.itertuples())), measure=frame.measure.map(shown)
        )
        rows, columns = list(self.rows), list(self.columns)
        for name in rows + columns:
            # titles stand in the order of their methods
            dim = "unlearner" if name == "title" else name
            known = dict(zip(frame[name], frame[dim], strict=True))
            order = sorted(known, key=lambda label: rank(dim, known[label]))
            frame[name] = pd.Categorical(frame[name], order, ordered=True)
        wide = (
            frame.pivot(index=rows, columns=columns, values="cell")
            .fillna("–")
            .sort_index()
            .sort_index(axis=1)
        )
        labels = frame.groupby(columns, observed=True).n.max().reset_index()  # in the order of wide
        heads = [self.head.format(**own) for own in labels.to_dict("records")]
        return wide.set_axis(heads, axis=1).rename_axis(
            index=[NAMES.get(name, name) for name in rows]
        )

    def _cell(self, row) -> str:
        """A number with its interval, or what else is known of its spread; the number alone where
        all runs gave it."""
        usual = partial(digits, sign="+" * row.measure.startswith("difference"))
        write = (FORMATS | self.formats).get(row.measure, usual)
        if np.isnan(row.value) or (self.spread is not None and row.measure not in self.spread):
            return write(row.value)
        if np.isnan(row.low):
            return write(row.value) + (
                f" ± {write(row.sd)}" if np.isfinite(row.sd) else " (n = 1)" * (row.n == 1)
            )
        return write(row.value) + f" [{write(row.low)}, {write(row.high)}]" * (
            row.high - row.low > 1e-12
        )


def laid_out_table(
    study_table: StudyTable,
    read: ResultFiles,
    data: Sequence[str],
    presets: Sequence[str],
    **changes: Any,
) -> Table:
    """A study's table of these data sets and presets, one after the other; changes: of what the
    study says of it.

    Of several data sets each has rows of its own.
    """
    words = {
        each.name: getattr(study_table, each.name) for each in fields(Table) if each.name != "tidy"
    } | changes
    if len(data) > 1 and "data" not in words["rows"]:
        words["rows"] = ("data", *words["rows"])
    return Table(read.gather(study_table.frame, *data, presets=presets), **words)


NAMES = {
    "alpha_percent": "α in percent",
    "title": "unlearner",
    "runs": "n",
    "quantity": "median",
    "published": "published (mean)",
    "ring_split": "validation states",
    "model": "model",
}


def digits(value: float, *, sign: str = "") -> str:
    """An accuracy as the tables show it: .912, with the sign "+" a difference, +.012; a dash for
    NaN."""
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{sign}.3f}") if np.isfinite(value) else "–"


def significant(count: int) -> Callable[[float], str]:  # without an exponent: 330, 0.97
    return lambda value: f"{float(f'{value:.{count}g}'):g}" if np.isfinite(value) else "–"


FORMATS = {
    "QNN minus it": partial(digits, sign="+"),
    **dict.fromkeys(
        ("epoch", "QNN ahead", "QNN behind"),
        lambda count: f"{count:.0f}" if np.isfinite(count) else "–",
    ),
    "verdict": lambda place: VERDICTS[int(place)] if np.isfinite(place) else "–",
    "p": lambda p: f"{p:.1g}".replace("0.", ".") if p < 0.1 else digits(p),
    "rule": lambda count: f"{count:.0f}" if np.isfinite(count) else "–",
    **dict.fromkeys(
        (
            f"{name}{part}"
            for name in (
                "w1",
                "w1_retain",
                "w1_validation",
                "klom",
                "klom_95",
                "relearn",
                "epsilon",
            )
            for part in ("", " floor", " null", " gain", " unit")
        ),
        significant(3),
    ),
    **dict.fromkeys(("cost", "seconds", "executions"), significant(2)),
    "near Retrain": lambda share: f"{100 * share:.0f} %" if np.isfinite(share) else "–",
    **dict.fromkeys(("trace", "trace over Re, Im"), significant(3)),
    **dict.fromkeys(("ratio", "ratio over Re, Im", "mean ratio"), significant(2)),
    **dict.fromkeys(
        ("dead", "collapsed"), lambda count: f"{count:.0f}" if np.isfinite(count) else "–"
    ),
    "off": "{:.1f}".format,
}


def markdown(table: Table) -> str:
    return markdown_of(table.cells().reset_index())


def markdown_of(frame: pd.DataFrame) -> str:
    lines = [list(frame), ["---"] * frame.shape[1], *frame.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

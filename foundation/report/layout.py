"""Tables: lay out tidy frames in rows and columns, as text and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np

from foundation.base.later import pandas as pd
from foundation.engine.study import StudyTable
from foundation.report.frames import VERDICTS, ResultFiles, rank


@dataclass(frozen=True)
class Table:
    """A tidy frame, and which of its columns label the rows and the columns of a table."""

    tidy: pd.DataFrame
    rows: tuple[str, ...]
    columns: tuple[str, ...] = ("measure",)
    # above a column: a format of its labels and of n, the largest count of runs in the column
    head: str = "{measure}"
    # measures that are shown, in this order, and their names in the table; None: all
    measures: dict[str, str] | None = None
    spread: tuple[str, ...] | None = None  # measures whose intervals are shown; None: all
    title: str = ""  # a format of n, the count of runs
    # of measures that are not in FORMATS
    formats: dict[str, Callable[[float], str]] = field(default_factory=dict)

    def cells(self) -> pd.DataFrame:
        """Return all cells as text, with the labels of the rows and the heads of the columns."""
        frame = self._shown()
        rows = list(self.rows)
        columns = list(self.columns)
        for name in rows + columns:
            frame[name] = pd.Categorical(frame[name], _in_reading_order(frame, name), ordered=True)
        wide = frame.pivot(index=rows, columns=columns, values="cell").fillna("–")
        wide = wide.sort_index().sort_index(axis=1)
        row_names = [NAMES.get(name, name) for name in rows]
        return wide.set_axis(self._heads(frame), axis=1).rename_axis(index=row_names)

    def _shown(self) -> pd.DataFrame:
        """The rows of the measures that are shown, under the table's names for them, with a column
        of texts, cell."""
        names = self.measures or {name: name for name in self.tidy.measure.unique()}
        order = {name: number for number, name in enumerate(names)}
        frame = self.tidy[self.tidy.measure.isin(names)]
        # A column of measures stands in the order of their first rows.
        frame = frame.sort_values("measure", key=lambda column: column.map(order), kind="stable")
        texts = list(map(self._cell, frame.itertuples()))
        return frame.assign(cell=texts, measure=frame.measure.map(names))

    def _heads(self, frame: pd.DataFrame) -> list[str]:
        """The head of each column: its labels, and n, the most runs behind any of its numbers.

        The labels are ordered categories, so that groups come in the order of the columns.
        """
        most_runs = frame.groupby(list(self.columns), observed=True).n.max()
        labels_of_columns = most_runs.reset_index().to_dict("records")
        return [self.head.format(**labels) for labels in labels_of_columns]

    def _cell(self, row) -> str:
        """Write a number with its interval or standard deviation; alone where all runs agree.

        A row whose column `at_least` is True has a measure at the end of its range: ≥ 3.
        """
        is_difference = row.measure.startswith("difference")
        usual = partial(digits, sign="+" if is_difference else "")
        write = (FORMATS | self.formats).get(row.measure, usual)
        value = write(row.value)
        if getattr(row, "at_least", False) is True:
            value = f"≥ {value}"
        has_spread = self.spread is None or row.measure in self.spread
        if np.isnan(row.value) or not has_spread:
            return value
        if np.isnan(row.low):
            if np.isfinite(row.sd):
                return f"{value} ± {write(row.sd)}"
            return f"{value} (n = 1)" if row.n == 1 else value
        has_width = row.high - row.low > 1e-12
        if not has_width:
            return value
        return f"{value} [{write(row.low)}, {write(row.high)}]"


def _in_reading_order(frame: pd.DataFrame, name: str) -> list:
    """The labels in a column, as `rank` orders them; titles as the methods that they name."""
    ranked_by = "unlearner" if name == "title" else name
    ranks = {}
    for label, key in zip(frame[name], frame[ranked_by], strict=True):
        ranks[label] = rank(ranked_by, key)
    return sorted(ranks, key=ranks.get)


def laid_out_table(
    study_table: StudyTable,
    read: ResultFiles,
    data: Sequence[str],
    presets: Sequence[str],
    **changes: Any,
) -> Table:
    """Lay out a study's table for some data sets and presets.

    Several data sets get rows of their own. changes: fields of Table in place of the study's.
    """
    names = [spec.name for spec in fields(Table) if spec.name != "tidy"]
    layout = {name: getattr(study_table, name) for name in names} | changes
    if len(data) > 1 and "data" not in layout["rows"]:
        layout["rows"] = ("data", *layout["rows"])
    frame = read.gather(study_table.frame, *data, presets=presets)
    return Table(frame, **layout)


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
    """Write an accuracy: .912, or with the sign "+" a difference, +.012; a dash for NaN."""
    if not np.isfinite(value):
        return "–"
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{sign}.3f}")


def significant(count: int) -> Callable[[float], str]:
    """Return a format of this many significant digits, without an exponent: 330, 0.97."""

    def text(value: float) -> str:
        if not np.isfinite(value):
            return "–"
        rounded = float(f"{value:.{count}g}")
        return f"{rounded:g}"

    return text


def _whole(count: float) -> str:
    return f"{count:.0f}" if np.isfinite(count) else "–"


def _verdict(place: float) -> str:
    return VERDICTS[int(place)] if np.isfinite(place) else "–"


def _p_value(p: float) -> str:
    return f"{p:.1g}".replace("0.", ".") if p < 0.1 else digits(p)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "–"


_DISTANCES = (
    *(
        "w1",
        "w1_retain",
        "w1_validation",
        "w1_of_class",
        "tv",
        "klom",
        "klom_95",
        "relearn",
        "epsilon",
    ),
)
_OF_DISTANCES = [
    f"{name}{part}" for name in _DISTANCES for part in ("", " floor", " null", " gain", " unit")
]
FORMATS = {
    "QNN minus it": partial(digits, sign="+"),
    **dict.fromkeys(("epoch", "QNN ahead", "QNN behind"), _whole),
    "verdict": _verdict,
    "p": _p_value,
    "rule": _whole,
    **dict.fromkeys(_OF_DISTANCES, significant(3)),
    **dict.fromkeys(("cost", "seconds", "executions"), significant(2)),
    "near Retrain": _percent,
    **dict.fromkeys(("trace", "trace over Re, Im"), significant(3)),
    **dict.fromkeys(("ratio", "ratio over Re, Im", "mean ratio"), significant(2)),
    **dict.fromkeys(("dead", "collapsed"), _whole),
    "off": "{:.1f}".format,
}


def markdown(table: Table) -> str:
    """Write a table in Markdown."""
    return markdown_of(table.cells().reset_index())


def markdown_of(frame: pd.DataFrame) -> str:
    """Write a frame in Markdown, without its index."""
    rule = ["---"] * frame.shape[1]
    rows = frame.astype(str).values.tolist()
    lines = [list(frame), rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

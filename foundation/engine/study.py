"""Define the record of a study, one value that holds all that a study is.

A study stands in one file, which ends with its record: the question, the flags with their checks,
the plan of what is computed, the tables, the figures, the claims. Code that runs or reports a study
gets its record and needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from foundation.base.checks import plain

if TYPE_CHECKING:
    from datar import Dataset


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of one study.

    Subclasses add fields with the values of the preset paper, each documented by a string below it.
    """

    AXES: ClassVar[tuple[str, ...]] = ()
    """Fields that do not name the results folder: axes of the study's files."""

    def __post_init__(self):
        for item in fields(self):
            value = plain(getattr(self, item.name))
            object.__setattr__(self, item.name, value)

    def check(self, config: Any) -> None:
        """Raise BadInput, which names the field, for unusable values; config: all flags."""


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """A table of a study: its numbers and its layout, as in foundation.report.layout.Table.

    title: a script ends with the table of its data set and preset, under this title; "": the script
    does not print the table. findings: fields of the layout that differ among the tables of
    findings.py; None: the table is not one of them.
    """

    frame: Callable[..., Any]  # (result files, data set, preset) -> a tidy frame
    rows: tuple[str, ...]
    columns: tuple[str, ...] = ("measure",)
    head: str = "{measure}"
    measures: dict[str, str] | None = None
    spread: tuple[str, ...] | None = None
    title: str = ""
    # formats of measures that only this study has
    formats: dict[str, Callable[[float], str]] = field(default_factory=dict)
    findings: dict[str, Any] | None = field(default_factory=dict)
    presets: tuple[str, ...] = ("corrected",)  # side by side in the table of findings.py
    name: str = ""  # the table's name in findings.py; "": the study's name
    file: str = ""  # the name of the study file; "": the study's name


@dataclass(frozen=True, kw_only=True)
class StudyFigure:
    """A figure of a study, drawn from study files alone."""

    name: str  # the picture's file, without its ending
    # the study files -> a matplotlib figure, or None where they hold nothing to draw
    draw: Callable[..., Any]
    # paths from the figure's folder, without ending; (): the study's file
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that a study is."""

    name: str  # the stage, as --stages names it
    question: str  # in one sentence, for the help text
    # (config, data set) -> rows, study_files.Row: jobs, and where their numbers stand
    plan: Callable[[Any, Dataset], Iterable]
    flags: Flags | None = None  # with the values of the preset paper
    group: str = ""  # prefix of the flags, which studies of one file may share; "": the name
    corrected: dict[str, Any] = field(default_factory=dict)  # flags of the presets corrected
    quick: dict[str, Any] = field(default_factory=dict)  # flags of the presets quick
    tables: tuple[StudyTable, ...] = ()
    figures: tuple[StudyFigure, ...] = ()
    claims: tuple[Callable[[Any], Any], ...] = ()  # result files -> a claim
    # (config, data set) -> further data sets that the study's jobs read
    data: Callable[[Any, Dataset], dict[Any, Dataset]] | None = None
    reads: tuple[str, ...] = ()  # other studies whose files the tables, figures or claims read
    two_classes: bool = False  # whether it is for data of two classes alone

    @property
    def prefix(self) -> str:
        """The prefix of the study's flags."""
        return self.group or self.name


def by_name(studies: Iterable[Study]) -> dict[str, Study]:
    """Return the studies by name; of two studies with one name the later one is kept."""
    return {study.name: study for study in studies}

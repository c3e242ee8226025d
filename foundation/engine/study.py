"""The record of a study: all that a study is, in one value.

A study on the record stands in one file, which ends with its record: the question, the flags with
their checks, what is computed, the tables, the figures, the claims. What runs or reports a study is
given its record and needs nothing else.
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
    """The flags of one study; subclasses add fields with the values of the preset paper, each
    documented below it."""

    AXES: ClassVar[tuple[str, ...]] = ()
    """Fields that do not name the results folder: axes of the study's files."""

    def __post_init__(self):
        for each in fields(self):
            object.__setattr__(self, each.name, plain(getattr(self, each.name)))

    def check(self, config: Any) -> None:
        """Raise BadInput, by the field's own name, for values that cannot be used; config: all
        flags."""


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """A table of a study: its numbers, and how they are laid out, as in
    foundation.report.layout.Table.

    A script ends with the table of its data set and preset, under the title; "": it does not print
    the table. findings: what is laid out otherwise among the tables of findings.py; None: the table
    is none of these.
    """

    frame: Callable[..., Any]  # (result files, data set, preset) -> a tidy frame
    rows: tuple[str, ...]
    columns: tuple[str, ...] = ("measure",)
    head: str = "{measure}"
    measures: dict[str, str] | None = None
    spread: tuple[str, ...] | None = None
    title: str = ""
    # of measures that only this study has
    formats: dict[str, Callable[[float], str]] = field(default_factory=dict)
    findings: dict[str, Any] | None = field(default_factory=dict)
    presets: tuple[str, ...] = ("corrected",)  # that stand side by side there
    name: str = ""  # among the tables of findings.py; "": the study's
    file: str = ""  # the study file; "": the study's name


@dataclass(frozen=True, kw_only=True)
class StudyFigure:
    """A figure of a study, drawn from its files alone."""

    name: str  # of the picture's file, without its ending
    # the study files -> a matplotlib figure, or None where they hold nothing to draw
    draw: Callable[..., Any]
    # paths from the figure's folder, without ending; (): the study's file
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that a study is."""

    name: str  # the stage, as --stages has it
    question: str  # in one sentence, for the help text
    # (config, data set) -> rows: jobs, and where their numbers stand
    plan: Callable[[Any, Dataset], Iterable]
    flags: Flags | None = None  # with the values of the preset paper
    group: str = ""  # prefix of its flags, which studies of one file may share; "": its name
    corrected: dict[str, Any] = field(default_factory=dict)  # flags of the presets corrected
    quick: dict[str, Any] = field(default_factory=dict)  # flags of the presets quick
    tables: tuple[StudyTable, ...] = ()
    figures: tuple[StudyFigure, ...] = ()
    claims: tuple[Callable[[Any], Any], ...] = ()  # result files -> a claim
    data: Callable[[Any, Dataset], dict[Any, Dataset]] | None = (
        None  # further data sets that its jobs read
    )
    reads: tuple[str, ...] = ()  # other studies whose files its tables, figures or claims read

    @property
    def prefix(self) -> str:
        return self.group or self.name


def by_name(studies: Iterable[Study]) -> dict[str, Study]:
    """The studies by their names; of two of one name the later."""
    return {study.name: study for study in studies}

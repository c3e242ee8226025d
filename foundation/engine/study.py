"""The record of a study: all that a study is, in one value; and a configuration that has the flags of several.

A study on the record stands in one file, which ends with its record: the question, the flags with their checks, what is
computed, the tables, the figures, the claims. What runs or reports a study is given its record and needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from foundation.engine.runner import Flags, Settings

if TYPE_CHECKING:
    from datar import Dataset

C = TypeVar("C", bound=Settings)


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """A table of a study: its numbers, and how they are laid out, as in foundation.report.layout.Table.

    What a script prints at its end is the table of its data set and preset under the title. findings: what differs
    where data sets may stand side by side; None: it is not among the tables of findings.py.
    """

    frame: Callable[..., Any]  # (result files, data set, preset) -> a tidy frame
    rows: tuple[str, ...]
    columns: tuple[str, ...] = ("measure",)
    head: str = "{measure}"
    measures: dict[str, str] | None = None
    spread: tuple[str, ...] | None = None
    title: str = ""
    formats: dict[str, Callable[[float], str]] = field(default_factory=dict)  # of measures that only this study has
    findings: dict[str, Any] | None = field(default_factory=dict)
    name: str = ""  # among the tables of findings.py; "": the study's
    file: str = ""  # the study file; "": the study's name


@dataclass(frozen=True, kw_only=True)
class StudyFigure:
    """A figure of a study, drawn from its files alone."""

    name: str  # of the picture's file, without its ending
    draw: Callable[..., Any]  # the study files -> a matplotlib figure, or None where they hold nothing to draw
    files: tuple[str, ...] = ()  # paths from the figure's folder, without ending; (): the study's file


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that a study is."""

    name: str  # the stage, as --stages has it
    question: str  # in one sentence, for the help text
    plan: Callable[[Any, Dataset], Iterable]  # (config, data set) -> rows: jobs, and where their numbers stand
    flags: Flags | None = None  # with the values of the preset paper
    group: str = ""  # prefix of its flags; "": its name
    quick: dict[str, Any] = field(default_factory=dict)  # flags of the presets quick
    tables: tuple[StudyTable, ...] = ()
    figures: tuple[StudyFigure, ...] = ()
    claims: tuple[Callable[[Any], Any], ...] = ()  # result files -> a claim
    data: Callable[[Any, Dataset], dict[Any, Dataset]] | None = None  # further data sets that its jobs read

    @property
    def prefix(self) -> str:
        return self.group or self.name


def plans(studies: Iterable[Study]) -> dict[str, Callable[[Any, Dataset], Iterable]]:
    """What each study computes, by its name."""
    return {study.name: study.plan for study in studies}


def config_class(name: str, base: type[C], studies: Sequence[Study], *, module: str) -> type[C]:
    """A subclass of a configuration with the flags of studies, nested (--capacity.runs), and their names as stages.

    Raises TypeError where two studies have one name, or one group of flags, or a group is a flag of `base`.
    """
    names = [study.name for study in studies]
    groups = [(study.prefix, type(study.flags), field(default=study.flags)) for study in studies if study.flags]
    prefixes = [prefix for prefix, _, _ in groups]
    taken = {each.name for each in fields(base)} & set(prefixes)
    twice = {word for words in (names, prefixes) for word in words if words.count(word) > 1}
    if taken or twice:
        raise TypeError(f"studies: {', '.join(sorted(taken | twice))}: names that are there already")
    questions = "; ".join(f"{study.name}: {study.question}" for study in studies)
    usual = next(each.default for each in fields(base) if each.name == "stages")
    help_text = f"Studies to run. {questions}."
    stages = ("stages", Annotated[tuple[Literal[tuple(names)], ...], tyro.conf.arg(help=help_text)], usual)
    return make_dataclass(name, [stages, *groups], bases=(base,), frozen=True, kw_only=True,
                          namespace={"__module__": module, "__doc__": base.__doc__})  # fmt: skip


def quick_values(config: Settings, studies: Iterable[Study]) -> dict[str, Flags]:
    """The groups of flags of a configuration with the values that studies have in the presets quick."""
    quick = [study for study in studies if study.flags and study.quick]
    return {study.prefix: replace(getattr(config, study.prefix), **study.quick) for study in quick}

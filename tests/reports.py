"""Tables and figures of a folder of results, by the names of their studies."""

from pathlib import Path

import findings
from foundation.report import closing
from foundation.report.frames import ResultFiles
from foundation.report.layout import markdown


def print_summary(folder: Path, stages: tuple[str, ...]) -> None:
    closing.print_summary(folder, findings.named(*stages))


def save_all(folder: Path) -> list[Path]:
    return closing.save_all(folder, findings.STUDIES)


def findings_tables(folder: Path, *names: str) -> dict[str, str]:
    """The tables of FINDINGS.md in Markdown, by name; some of them, or all."""
    read = ResultFiles(folder)
    tables = findings.tables()
    return {name: markdown(tables[name](read)) for name in names or tables}

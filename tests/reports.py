"""Tables and figures of a folder of results, by the names of their studies."""

from pathlib import Path

import findings
from foundation.report import closing


def print_summary(folder: Path, stages: tuple[str, ...]) -> None:
    closing.print_summary(folder, findings.named(*stages))


def save_all(folder: Path) -> list[Path]:
    return closing.save_all(folder, findings.STUDIES)

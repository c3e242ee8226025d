"""Tables and figures of a folder of results, by the names of their studies."""

from pathlib import Path

import findings
from foundation.report import closing

BY_NAME = {study.name: study for study in findings.STUDIES}


def print_summary(folder: Path, stages: tuple[str, ...]) -> None:
    closing.print_summary(folder, [BY_NAME[stage] for stage in stages])


def save_all(folder: Path) -> list[Path]:
    return closing.save_all(folder, findings.STUDIES)

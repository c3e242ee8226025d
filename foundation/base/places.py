"""Where the project's own files stand, and where the user's cache is."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the project's folder
PACKAGES = ("foundation", "studies")  # its folders of modules


def own_files(root: Path = ROOT) -> list[Path]:
    """The project's Python files, those that compute or report: root modules and packages, in order
    of their paths."""
    nested = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return sorted([*root.glob("*.py"), *nested])


def cache_folder() -> Path:
    """The user's cache folder of this project (XDG_CACHE_HOME, or ~/.cache), not necessarily there
    yet.

    Of a user without a home, such as one that a container runs under a number: a folder among the
    temporary files.
    """
    try:
        return (
            Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantum-unlearning"
        )
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"quantum-unlearning-{os.getuid()}"

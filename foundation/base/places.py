"""Find the project's files and the user's cache folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the project's folder
PACKAGES = ("foundation", "studies")  # folders of the project that hold modules


def own_files(root: Path = ROOT) -> list[Path]:
    """List the Python files of the product (root modules and packages) in order of their paths."""
    folders = [root / package for package in PACKAGES]
    nested = [path for folder in folders for path in folder.rglob("*.py")]
    return sorted([*root.glob("*.py"), *nested])


def cache_folder() -> Path:
    """Return the project's folder in the user's cache (XDG_CACHE_HOME, or ~/.cache).

    The folder need not exist. A user without a home, as in a container that runs under a numeric
    user id, has it among the temporary files.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        cache = Path(given or Path.home() / ".cache")
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"quantum-unlearning-{os.getuid()}"
    return cache / "quantum-unlearning"

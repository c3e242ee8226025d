"""Find the project's files and the user's cache folder."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
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
    user id, has a new one among the temporary files, which goes with the process: another user
    could have made a folder of a name that can be guessed.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        cache = Path(given or Path.home() / ".cache")
    except RuntimeError:
        cache = _temporary_folder()
    return cache / "quantum-unlearning"


@functools.cache
def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="quantum-unlearning-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)

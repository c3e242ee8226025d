"""Keep compiled programs on disk, each bound to its name by a checksum; never run another one.

JAX's own cache runs what a file holds: an entry under another one's name gives wrong numbers.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

import jax

from foundation.base import storage

SUFFIX = ".program"
CHECKSUM_BYTES = 32


class Programs:
    """A folder of compiled programs, as JAX's compilation cache asks for one.

    A file holds a checksum of the program and of its name, and the program. What does not match is
    removed, and compiled again.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Return the file of a program."""
        return self.folder / f"{key}{SUFFIX}"

    def get(self, key: str) -> bytes | None:
        """Read a program; None where it is missing or no longer what was written."""
        try:
            content = self.path(key).read_bytes()
        except OSError:
            return None
        checksum = content[:CHECKSUM_BYTES]
        program = content[CHECKSUM_BYTES:]
        if checksum == _checksum(key, program):
            return program
        self.remove(key)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Write a program; without room on the disk it is not kept."""
        with suppress(OSError), storage.replacing(self.path(key)) as temporary:
            temporary.write_bytes(_checksum(key, value) + value)

    def remove(self, key: str) -> None:
        """Remove a program that cannot be used."""
        with suppress(OSError):
            self.path(key).unlink()


def _checksum(key: str, program: bytes) -> bytes:
    name = hashlib.sha256(key.encode()).digest()
    return hashlib.sha256(name + program).digest()


def use_checked_programs() -> None:
    """Let JAX keep its programs by Programs; without any cache where JAX offers no place for it."""
    try:
        from jax._src import compilation_cache
    except ImportError:
        compilation_cache = None
    if not hasattr(compilation_cache, "get_file_cache"):
        jax.config.update("jax_enable_compilation_cache", False)
        return
    compilation_cache.get_file_cache = _programs_at


def _programs_at(path: str) -> tuple[Programs, str]:
    return Programs(Path(path)), path


def private_folder(folder: Path) -> str | None:
    """Make a folder that the user alone can write; None, and a line, where it is another user's."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.getuid() and stat.S_ISDIR(status.st_mode):
            folder.chmod(0o700)
            return str(folder)
        reason = "it belongs to another user"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    print(f"note: compiled programs are not kept in {folder} ({reason})", file=sys.stderr)
    return None

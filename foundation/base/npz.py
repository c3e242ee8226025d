"""Read arrays from .npz files, refuse unusable files in one line, and hash arrays."""

from __future__ import annotations

import difflib
import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from foundation.base.checks import BadInput, first_line, listed, require

MAX_NPZ_BYTES = 2**29  # an .npz that declares a larger size is refused unread


def sha256(*arrays: np.ndarray) -> str:
    """Hash type, shape and bytes of the arrays, in order, to a hexadecimal SHA-256 digest."""
    digest = hashlib.sha256()
    for array in arrays:
        header = f"{array.dtype.str}{array.shape}".encode()
        digest.update(header + array.tobytes())
    return digest.hexdigest()


def read_npz(
    path: str | Path, keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Read the named arrays of an .npz, without pickles.

    optional: arrays that the file may lack. Raises FileNotFoundError without a file, and for every
    defect BadInput, a ValueError that names the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"data: no file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        size = f"{declared} bytes declared in {path}"
        require(declared <= MAX_NPZ_BYTES, "data", size, f"at most {MAX_NPZ_BYTES}")
        with np.load(path, allow_pickle=False) as file:
            present = [key for key in (*keys, *optional) if key in file]
            arrays = {key: _plain_array(file, key) for key in present}
            others = [key for key in file if key not in (*keys, *optional)]
        _report_unread(others, optional)
        readable = [key for key, array in arrays.items() if isinstance(array, np.ndarray)]
        missing = [key for key in keys if key not in readable]
        allowed = f"an .npz with arrays {', '.join(keys)}"
        require(not missing, "data", f"{path} without {', '.join(missing)}", allowed)
    except BadInput:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds of error
        raise BadInput(f"data: {path} is not a readable .npz ({first_line(error)})") from None
    return arrays


def _report_unread(names: list[str], optional: tuple[str, ...]) -> None:
    """Refuse arrays whose names look like optional ones; name all others on stderr.

    Without optional arrays nothing is said, because such files are read as they are published.
    """
    for name in names:
        near = difflib.get_close_matches(name.lower(), optional, n=1, cutoff=0.7)
        require(not near, "data", f"an array {name}", f"{', '.join(near)}, or another name")
    if names and optional:
        print(f"note: data: not read: {listed(names)}", file=sys.stderr)


def _plain_array(file: Any, key: str) -> np.ndarray:
    try:
        return file[key]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
    allowed = "numbers or text: save it with .to_numpy(float) or .to_numpy(str)"
    require(False, f"data: {key}", "Python objects", allowed)


def splits_of(path: Path) -> set[str]:
    """Return the splits that an .npz holds: S for each array x_S, as train, val or test."""
    if not path.is_file():
        raise FileNotFoundError(f"data: no file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"data: {path} is not a readable .npz ({first_line(error)})") from None
    arrays = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
    return {name.removeprefix("x_") for name in arrays if name.startswith("x_")}

"""Arrays of anyone's .npz files, refused in one line where they are of no use; and the digest of
arrays."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from foundation.base.checks import BadInput, first_line, require

MAX_NPZ_BYTES = 2**29  # declared size above which an .npz is refused unread


def sha256(*arrays: np.ndarray) -> str:
    """Hex digest over type, shape and bytes of the arrays in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def read_npz(
    path: str | Path, keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The named arrays of an .npz, without pickles; every defect is a ValueError that names the
    file.

    optional: those that are read where they are there.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"data: no file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        require(
            declared <= MAX_NPZ_BYTES,
            "data",
            f"{declared} bytes declared in {path}",
            f"at most {MAX_NPZ_BYTES}",
        )
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: _plain_array(file, key) for key in (*keys, *optional) if key in file}
            close = [
                (key, other) for key in file for other in optional if key.lower() == other != key
            ]
        require(not close, "data", *(close[0] if close else ("", "")))
        missing = [key for key in keys if not isinstance(arrays.get(key), np.ndarray)]
        require(
            not missing,
            "data",
            f"{path} without {', '.join(missing)}",
            f"an .npz with arrays {', '.join(keys)}",
        )
    except BadInput:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds, by what is broken
        raise BadInput(f"data: {path} is not a readable .npz ({first_line(error)})") from None
    return arrays


def _plain_array(file: Any, key: str) -> np.ndarray:
    try:
        return file[key]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
    require(
        False,
        f"data: {key}",
        "Python objects",
        "numbers or text: save it with .to_numpy(float) or .to_numpy(str)",
    )


def splits_of(path: Path) -> set[str]:
    """The words behind x_ in an .npz: train, val, test."""
    if not path.is_file():
        raise FileNotFoundError(f"data: no file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name[2:-4]
                for name in archive.namelist()
                if name.startswith("x_") and name.endswith(".npy")
            }
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"data: {path} is not a readable .npz ({first_line(error)})") from None

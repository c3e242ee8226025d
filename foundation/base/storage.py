"""Files: labelled results (netCDF-4) and named arrays (safetensors), written whole, verified when
read; provenance.

A file is written beside its place, synced and renamed, and carries a checksum: what is damaged is
not read. No pickles.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes

from foundation.base.places import ROOT, own_files

PACKAGES = (
    "jax",
    "jaxlib",
    "tensorcircuit-ng",
    "optax",
    "numpy",
    "scipy",
    "scikit-learn",
    "matfree",
)


class Damaged(ValueError):
    """A file is truncated, altered or not one of ours."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, synced to disk, when the block ends
    without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder: temporary files that are an hour old."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if datetime.now().timestamp() - path.stat().st_mtime > 3600:
                path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_dataset(path: Path, dataset: xr.Dataset) -> None:
    """Write a dataset as netCDF-4, closed by a seal over its bytes; attributes are numbers or
    strings.

    Long ones, the listing of jobs, are compressed, which HDF5 does to arrays alone: they are most
    of a file.
    """
    long = {
        name: _packed(text)
        for name, text in dataset.attrs.items()
        if isinstance(text, str) and len(text) > LONG
    }
    dataset = dataset.assign_attrs(long)
    compressed = {
        name: {"zlib": True} for name, array in dataset.data_vars.items() if array.size > 1000
    }
    buffer = io.BytesIO()
    dataset.to_netcdf(buffer, engine="h5netcdf", encoding=compressed)
    content = buffer.getvalue()
    with replacing(path) as temporary:
        temporary.write_bytes(content + _seal(content))


def read_dataset(path: str | Path) -> xr.Dataset:
    """A result file in memory; Damaged, a ValueError, where its seal does not match: HDF5 gets no
    damaged bytes."""
    if not (path := Path(path)).is_file():
        raise FileNotFoundError(f"results: no file at {path}")
    file = path.read_bytes()
    content = file[: -len(_seal(b""))]
    if not file.endswith(_seal(content)):
        raise Damaged(
            f"results: {path} is damaged, or no result file (its checksum does not match)"
        )
    with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as dataset:
        dataset.load()
    return dataset.assign_attrs({name: _unpacked(held) for name, held in dataset.attrs.items()})


LONG = 4000  # characters of an attribute
PACKED = "zlib+base85:"


def _packed(text: str) -> str:
    return PACKED + base64.b85encode(zlib.compress(text.encode(), 9)).decode()


def _unpacked(held: Any) -> Any:
    is_packed = isinstance(held, str) and held.startswith(PACKED)
    return zlib.decompress(base64.b85decode(held[len(PACKED) :])).decode() if is_packed else held


def _seal(content: bytes) -> bytes:
    """The end of a result file, at which readers of netCDF do not look."""
    return b"\nsha256:" + hashlib.sha256(content).hexdigest().encode()


def result_folders(folder: str | Path) -> list[Path]:
    """The folders below this one with finished studies."""
    return sorted({path.parent for path in Path(folder).rglob("*.nc")})


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], record: dict[str, Any]) -> None:
    """Write named arrays as safetensors, with their record and checksum in the header."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    text = json.dumps(record, sort_keys=True)
    metadata = {"record": text, "sha256": _tensor_checksum(arrays, text)}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors_bytes(arrays, metadata=metadata))


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Named arrays and their record from a safetensors file; Damaged where they do not match the
    checksum."""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise FileNotFoundError(f"results: no file at {path}") from None
    except Exception as error:
        raise Damaged(f"results: {path} cannot be read ({type(error).__name__})") from None
    if metadata.get("sha256") != _tensor_checksum(tensors, metadata.get("record", "")):
        raise Damaged(f"results: {path} is damaged (its checksum does not match)")
    return tensors, json.loads(metadata["record"])


def read_record(path: Path) -> dict[str, Any]:
    """The record of a safetensors file, without its arrays and unverified; empty where there is
    none."""
    with suppress(Exception), safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["record"])
    return {}


def _tensor_checksum(tensors: Mapping[str, np.ndarray], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        digest.update(
            f"{name}{tensors[name].dtype.str}{tensors[name].shape}".encode()
            + tensors[name].tobytes()
        )
    return digest.hexdigest()


def merge(parts: list[xr.Dataset]) -> xr.Dataset:
    """Datasets of the same variables in one over the union of their coordinates; later ones win,
    gaps are NaN or ''."""
    indexes = {  # sorted: the order in which parts were computed is no matter
        name: np.unique(
            np.concatenate([part[name].values for part in parts if name in part.indexes])
        )
        for name in dict.fromkeys(name for part in parts for name in part.indexes)
    }
    merged = xr.Dataset(coords=indexes)
    for name in dict.fromkeys(
        name for part in parts for name in part.variables if name not in indexes
    ):
        holders = [part for part in parts if name in part.variables]
        dims, dtype = holders[0][name].dims, np.result_type(*(part[name].dtype for part in holders))
        fill, dtype = (
            ("", object)
            if dtype.kind in "OUST"
            else (np.nan, dtype if dtype.kind == "f" else float)
        )
        array = np.full([len(indexes[dim]) for dim in dims], fill, dtype)
        for part in holders:
            places = [np.searchsorted(indexes[dim], part[dim].values) for dim in dims]
            array[np.ix_(*places)] = part[name].transpose(*dims).values
        merged[name] = (dims, array)
    return merged.set_coords(
        [name for part in parts for name in part.coords if name not in indexes]
    )


def provenance() -> dict[str, str]:
    """Time, machine, versions and commit, kept beside what is computed now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"finished": now, "machine": machine(), "versions": versions(), "commit": git_commit()}


@functools.cache
def machine(device: str = "cpu") -> str:
    """What computes: the accelerator if there is one, processor, cores and system, without the
    machine's name."""
    words = (
        *([] if device == "cpu" else [device]),
        processor(),
        f"{cores()} cores",
        platform.system(),
    )
    return ", ".join((*words, f"Python {platform.python_version()}"))


@functools.cache
def processor() -> str:
    """The kind of processor: with it, results change in their last bits."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:(.*)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def versions() -> str:
    return ", ".join(f"{package} {version(package)}" for package in PACKAGES)


def code_digest() -> str:
    """Of the project's Python files as they are now: 16 hex digits."""
    digest = hashlib.sha256()
    for path in own_files():
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def git_commit() -> str:
    """The project's commit, with '+dirty' where a Python file differs from it; 'unknown' outside
    git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ("git", *words), cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        # else a copy of the code within someone else's repository
        if not git("rev-parse", "--show-prefix"):
            return git("rev-parse", "HEAD") + (
                "+dirty" if git("status", "--porcelain", "--", "*.py") else ""
            )
    return "unknown"

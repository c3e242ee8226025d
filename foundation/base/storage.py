"""Write and read result files, and describe the machine and code that computed them.

Labelled results are netCDF-4, named arrays are safetensors; there are no pickles. A file is written
under a temporary name, synced and renamed. It carries a checksum, and a damaged file is refused.
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
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes

from foundation.base.later import xarray as xr
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
    """A file is truncated, altered or no file of this project."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path whose file replaces `path`, synced, if the block raises no error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    token = os.urandom(8).hex()
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove temporary files older than an hour, which killed writers left in a folder."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            age = datetime.now().timestamp() - path.stat().st_mtime  # seconds
            if age > 3600:
                path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_dataset(path: Path, dataset: xr.Dataset) -> None:
    """Write a dataset as netCDF-4, followed by a checksum of its bytes.

    Attributes are numbers or strings. Long strings, such as the listing of jobs, are most of a
    file; they are compressed here because HDF5 compresses arrays alone.
    """
    packed = {
        name: _packed(text)
        for name, text in dataset.attrs.items()
        if isinstance(text, str) and len(text) > LONG
    }
    dataset = dataset.assign_attrs(packed)
    large = [name for name, array in dataset.data_vars.items() if array.size > 1000]
    encoding = {name: {"zlib": True} for name in large}
    buffer = io.BytesIO()
    dataset.to_netcdf(buffer, engine="h5netcdf", encoding=encoding)
    content = buffer.getvalue()
    with replacing(path) as temporary:
        temporary.write_bytes(content + _seal(content))


def read_dataset(path: str | Path) -> xr.Dataset:
    """Read a result file into memory.

    Raises FileNotFoundError, and Damaged, a ValueError, where the checksum does not match. The
    checksum comes first, because HDF5 must not parse damaged bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"results: no file at {path}")
    status = path.stat()
    version = (status.st_ino, status.st_mtime_ns, status.st_size)
    return _dataset_of(path.resolve(), version).copy(deep=True)


@functools.lru_cache(maxsize=100)
def _dataset_of(path: Path, version: tuple[int, ...]) -> xr.Dataset:
    """Read a version of a file, once in a process: parsing takes up to half a second."""
    file = path.read_bytes()
    content = file[: -len(_seal(b""))]
    if not file.endswith(_seal(content)):
        raise Damaged(
            f"results: {path} is damaged, or no result file (its checksum does not match)"
        )
    dataset = _parsed(content)
    unpacked = {name: _unpacked(value) for name, value in dataset.attrs.items()}
    return dataset.assign_attrs(unpacked)


def _parsed(content: bytes) -> xr.Dataset:
    """Return what `xr.open_dataset` returns for a result file, in a seventh of its time.

    xarray's reader, by h5netcdf, takes half a second for a file of 40 small variables. It is asked
    where a variable is no plain number, truth value or text, or has attributes of its own.
    Coordinates that are no axis are named in the attributes `coordinates` of variables and of the
    file.
    """
    import h5py

    with h5py.File(io.BytesIO(content)) as file:
        if all(map(_is_plain, file.values())):
            return _plain_dataset(file)
    with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as dataset:
        return dataset.load()


OF_NETCDF = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "coordinates", "_FillValue"}


def _is_plain(array: Any) -> bool:
    """Whether a variable of a netCDF-4 file is read as it stands there."""
    import h5py

    if not isinstance(array, h5py.Dataset):
        return False
    names = {name for name in array.attrs if not name.startswith("_Netcdf4")}
    is_bool = names - OF_NETCDF == {"dtype"} and array.attrs["dtype"] == "bool"
    is_text = h5py.check_string_dtype(array.dtype) is not None
    fill = array.attrs.get("_FillValue", np.nan)
    has_values = array.dtype.kind in "iuf" or is_text
    return has_values and (is_bool or names <= OF_NETCDF) and bool(np.all(np.isnan(fill)))


def _plain_dataset(file: Any) -> xr.Dataset:
    """Read a netCDF-4 file of plain variables, in xarray's order."""
    attributes = {}
    for name, value in file.attrs.items():
        attributes[name] = value[0] if np.shape(value) == (1,) else value
    attributes.pop("_NCProperties", None)
    beside = attributes.pop("coordinates", "").split()
    variables = {}
    for name, array in file.items():
        title = array.attrs.get("NAME", b"")
        if title.startswith(b"This is a netCDF dimension but not a netCDF variable"):
            continue
        beside += array.attrs.get("coordinates", "").split()
        variables[name] = (_axes_of(array), _values_of(array))
    coords = {}
    for name, (axes, _) in variables.items():
        if axes == [name] or name in beside:
            coords[name] = variables[name]
    values = {name: variables[name] for name in variables if name not in coords}
    return xr.Dataset(values, coords, attributes)


def _axes_of(array: Any) -> list[str]:
    """Name the axes of a variable of a netCDF-4 file; an axis' own values have its name.

    An axis is a data set of the class of dimension scales, to which variables refer.
    """
    if "CLASS" in array.attrs:
        return [array.name.removeprefix("/")]
    axes = []
    for references in array.attrs.get("DIMENSION_LIST", ()):
        axis = array.file[references[0]]
        axes.append(axis.name.removeprefix("/"))
    return axes


def _values_of(array: Any) -> np.ndarray:
    """Read a variable of a netCDF-4 file; text as NumPy's strings, truth values from whole ones."""
    if array.dtype == object:
        return np.asarray(array.asstr()[()], object).astype(str)
    values = array[()]
    return np.asarray(values, bool) if "dtype" in array.attrs else values


LONG = 4000  # an attribute of more characters is compressed
PACKED = "zlib+base85:"


def _packed(text: str) -> str:
    compressed = zlib.compress(text.encode(), 9)
    return PACKED + base64.b85encode(compressed).decode()


def _unpacked(value: Any) -> Any:
    is_packed = isinstance(value, str) and value.startswith(PACKED)
    if not is_packed:
        return value
    compressed = base64.b85decode(value.removeprefix(PACKED))
    return zlib.decompress(compressed).decode()


def _seal(content: bytes) -> bytes:
    """Return the checksum line that ends a result file; readers of netCDF do not look at it."""
    return b"\nsha256:" + hashlib.sha256(content).hexdigest().encode()


def result_folders(folder: str | Path) -> list[Path]:
    """List the folders that hold finished studies, below a folder or itself."""
    return sorted({path.parent for path in Path(folder).rglob("*.nc")})


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], record: dict[str, Any]) -> None:
    """Write named arrays as safetensors, with their record and a checksum in the header."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    text = json.dumps(record, sort_keys=True)
    metadata = {"record": text, "sha256": _tensor_checksum(arrays, text)}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors_bytes(arrays, metadata=metadata))


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read named arrays and their record from a safetensors file.

    Raises FileNotFoundError, and Damaged where the checksum does not match.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise FileNotFoundError(f"results: no file at {path}") from None
    except Exception as error:
        raise Damaged(f"results: {path} cannot be read ({type(error).__name__})") from None
    if metadata.get("sha256") != _tensor_checksum(tensors, metadata.get("record", "")):
        raise Damaged(f"results: {path} is damaged (its checksum does not match)")
    return tensors, json.loads(metadata["record"])


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a safetensors file alone, unverified; {} where it cannot be read."""
    with suppress(Exception), safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["record"])
    return {}


def _tensor_checksum(tensors: Mapping[str, np.ndarray], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        header = f"{name}{tensor.dtype.str}{tensor.shape}".encode()
        digest.update(header + tensor.tobytes())
    return digest.hexdigest()


def merge(parts: list[xr.Dataset]) -> xr.Dataset:
    """Merge datasets over the union of their coordinates; of two values in a cell the later wins.

    Cells without a value hold NaN, or "" in variables of text.
    """
    indexes = _union_of_indexes(parts)
    merged = xr.Dataset(coords=indexes)
    names = dict.fromkeys(name for part in parts for name in part.variables)
    variables = [name for name in names if name not in indexes]
    for name in variables:
        holders = [part for part in parts if name in part.variables]
        dims = holders[0][name].dims
        dtypes = [part[name].dtype for part in holders]
        shape = [len(indexes[dim]) for dim in dims]
        array = _gaps(shape, np.result_type(*dtypes))
        for part in holders:
            places = [np.searchsorted(indexes[dim], part[dim].values) for dim in dims]
            cells = np.ix_(*places)
            array[cells] = part[name].transpose(*dims).values
        merged[name] = (dims, array)
    coordinates = [name for part in parts for name in part.coords]
    return merged.set_coords([name for name in coordinates if name not in indexes])


def _union_of_indexes(parts: list[xr.Dataset]) -> dict[Any, np.ndarray]:
    """Return the labels of each axis, sorted, so that the order of the parts does not matter."""
    names = dict.fromkeys(name for part in parts for name in part.indexes)
    indexes = {}
    for name in names:
        holders = [part for part in parts if name in part.indexes]
        labels = [part[name].values for part in holders]
        indexes[name] = np.unique(np.concatenate(labels))
    return indexes


def _gaps(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Return an array of gaps, of a type that also holds values of `dtype`."""
    if dtype.kind in "OUST":
        return np.full(shape, "", object)
    with_nan = dtype if dtype.kind == "f" else float
    return np.full(shape, np.nan, with_nan)


def provenance() -> dict[str, str]:
    """Return time, machine, versions and commit, to be kept beside a result computed now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"finished": now, "machine": machine(), "versions": versions(), "commit": git_commit()}


@functools.cache
def machine(device: str = "cpu") -> str:
    """Describe accelerator (unless "cpu"), processor, cores, system and Python of this machine.

    The machine's own name is left out.
    """
    accelerator = [] if device == "cpu" else [device]
    python = f"Python {platform.python_version()}"
    system = platform.system()
    parts = (*accelerator, processor(), f"{cores()} cores", system, python)
    return ", ".join(parts)


@functools.cache
def processor() -> str:
    """Name the processor's model: results of different models differ in their last bits."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        model = re.search(r"model name\s*:(.*)", cpuinfo.read_text())
        if model:
            return model[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def features() -> tuple[str, ...]:
    """List what the processor can do, such as avx2: libraries choose their kernels by it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    flags = re.search(r"(?:flags|Features)\s*:(.*)", text)
    return tuple(sorted(flags[1].split())) if flags else (platform.machine(),)


KERNEL = "Haswell"  # which every processor with AVX2 can run


def usual_kernel() -> str:
    """Name the kernel that OpenBLAS is told to take, so that machines agree; "" leaves it free.

    OpenBLAS would take another one on each kind of processor, and eigenvectors differ.
    """
    return KERNEL if {"avx2", "fma"} <= set(features()) else ""


@functools.cache
def kernels() -> str:
    """Name the kernels of BLAS that this process computes with, as Haswell; "" for none."""
    import scipy.linalg  # noqa: F401 - loads the library that JAX computes with
    from threadpoolctl import threadpool_info

    names = {library.get("architecture") for library in threadpool_info()}
    return ", ".join(sorted(filter(None, names)))


def cores() -> int:
    """Count the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def versions() -> str:
    """Name the installed versions of PACKAGES."""
    return ", ".join(f"{package} {version(package)}" for package in PACKAGES)


def code_digest() -> str:
    """Hash the project's Python files as they are now, with their paths: 16 hex digits."""
    digest = hashlib.sha256()
    for path in own_files():
        name = path.relative_to(ROOT).as_posix()
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def git_commit() -> str:
    """Return the project's commit, with "+dirty" where a Python file differs from it.

    "unknown" outside git, and for a copy of the project inside another repository.
    """

    # without variables such as GIT_DIR, which name another repository
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}

    def git(*arguments: str) -> str:
        options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
        finished = subprocess.run(("git", *arguments), check=True, **options)
        return finished.stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        folder_in_repository = git("rev-parse", "--show-prefix")
        if not folder_in_repository:
            commit = git("rev-parse", "HEAD")
            is_dirty = git("status", "--porcelain", "--", "*.py") != ""
            return f"{commit}+dirty" if is_dirty else commit
    return "unknown"

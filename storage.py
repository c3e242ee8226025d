"""Labelled result files with their provenance, written so that nothing finished is ever lost.

A study is computed in chunks. Each chunk becomes a netCDF-4 file of its own as it ends (temporary file,
fsync, rename); when all that were asked for are there, they are gathered into `<study>.nc` in the same way
and only then removed. Parameters are kept as safetensors files. No pickles.

Every chunk carries its *identity*, all that its numbers depend on. A chunk found with another identity is
refused by name of what differs; one that is damaged is set aside, never read and never deleted.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes

FORMAT = 1  # of the files; part of every identity
ASIDE = "-set-aside"  # behind a folder's name: where its damaged and former files are kept
PACKAGES = ("jax", "jaxlib", "tensorcircuit-ng", "optax", "numpy", "scipy", "scikit-learn", "matfree")


class Refused(ValueError):
    """The folder or a file in it is not fit for what was asked."""


class Mismatch(Refused):
    """Results in the folder come from another configuration."""


class Damaged(Refused):
    """A file is truncated, altered or not one of ours."""


class Busy(Refused):
    """Another process is writing to the folder."""


# ---- whole files ----


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, synced to disk, when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_dataset(path: Path, dataset: xr.Dataset) -> None:
    """Write a dataset as netCDF-4, closed by a seal over its bytes; attributes are numbers or strings."""
    compressed = {name: {"zlib": True} for name, array in dataset.data_vars.items() if array.size > 1000}
    buffer = io.BytesIO()
    dataset.to_netcdf(buffer, engine="h5netcdf", encoding=compressed)
    content = buffer.getvalue()
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content + _seal(content))


def read_dataset(path: str | Path) -> xr.Dataset:
    """Read a result file into memory, once its seal has been verified: HDF5 is never given damaged bytes.

    Raises FileNotFoundError, or Damaged (a ValueError) where it is not a file that `write_dataset` finished.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"results: no file at {path}")
    content, seal = _without_seal(path.read_bytes())
    if seal != _seal(content):
        raise Damaged(f"results: {path} is damaged, or no result file (its checksum does not match)")
    with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as file:
        return file.load()


def result_folders(folder: str | Path) -> list[Path]:
    """The folders below this one with finished studies, without those that were set aside."""
    below = {path.parent.relative_to(folder) for path in Path(folder).rglob("*.nc")}
    finished = [path for path in below if not any(part == "chunks" or part.endswith(ASIDE) for part in path.parts)]
    return [Path(folder) / path for path in sorted(finished)]


def folder_argument(description: str) -> Path:
    """The one argument of a script that reads results: a folder. Ends the process where there is none."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder with results")
    folder = parser.parse_args().folder
    if not folder.is_dir():
        parser.exit(2, f"error: FOLDER: got {folder}, allowed: a folder with results\n")
    return folder


SEAL = b"\nsha256:"  # and 64 hex digits: the end of a result file, which readers of netCDF do not look at


def _seal(content: bytes) -> bytes:
    return SEAL + hashlib.sha256(content).hexdigest().encode()


def _without_seal(file: bytes) -> tuple[bytes, bytes]:
    """The bytes of a result file, and those of the seal behind them."""
    return file[: -len(SEAL) - 64], file[-len(SEAL) - 64 :]


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], record: dict[str, Any]) -> None:
    """Write named arrays as safetensors, with their record and checksum in the header."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    text = json.dumps(record, sort_keys=True)
    metadata = {"record": text, "sha256": _tensor_checksum(arrays, text)}
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(safetensors_bytes(arrays, metadata=metadata))


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Named arrays and their record from a safetensors file; Damaged where they do not match the checksum."""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
        record = json.loads(metadata["record"])
    except FileNotFoundError:
        raise FileNotFoundError(f"results: no file at {path}") from None
    except Exception as error:
        raise Damaged(f"results: {path} cannot be read ({type(error).__name__})") from None
    if metadata.get("sha256") != _tensor_checksum(tensors, metadata["record"]):
        raise Damaged(f"results: {path} is damaged (its checksum does not match)")
    return tensors, record


def _tensor_checksum(tensors: Mapping[str, np.ndarray], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype.str}{tensors[name].shape}".encode() + tensors[name].tobytes())
    return digest.hexdigest()


# ---- the folder of one data set and preset ----


class Store:
    """The results of one data set and preset: `<study>.nc`, chunks on their way there, and parameters.

    config: the full configuration, stored with every file. data: provenance of the data set.
    """

    def __init__(self, folder: str | Path, *, config: dict[str, Any], data: dict[str, Any]):
        self.folder = Path(folder)
        self.config = config
        self.data = data

    def study_path(self, study: str) -> Path:
        return self.folder / f"{study}.nc"

    def chunk_path(self, study: str, name: str) -> Path:
        return self.folder / "chunks" / study / f"{name}.nc"

    def tensor_path(self, study: str, name: str) -> Path:
        return self.folder / "parameters" / study / f"{name}.safetensors"

    def studies(self) -> list[str]:
        """Names of the studies of which anything is stored."""
        folders = [path for kind in ("chunks", "parameters") for path in self.folder.glob(f"{kind}/*")]
        return sorted({path.name for path in folders} | {path.stem for path in self.folder.glob("*.nc")})

    def done(self, study: str) -> dict[str, dict[str, Any]]:
        """The records of all finished chunks of a study, by name. Files that are damaged are set aside, and named."""
        records = self._intact(_study_records, self.study_path(study)) if self.study_path(study).is_file() else {}
        records = records or {}
        for path in sorted(self.chunk_path(study, "*").parent.glob("*.nc")):
            records |= self._intact(_chunk_records, path) or {}
        for path in sorted(self.tensor_path(study, "*").parent.glob("*.safetensors")):
            record = self._intact(_tensor_record, path)
            if record is None:
                records.pop(path.stem, None)  # its numbers may be there, but the whole chunk is to be
            elif not record["dataset"]:  # else its data set was still to be written when the run was killed
                records[path.stem] = record
        return records

    def _intact(self, read: Callable[[Path], Any], path: Path) -> Any:
        """What `read` gives of a file; None where it is damaged, and then it is set aside."""
        try:
            return read(path)
        except Damaged as error:
            kept = self.set_aside(path)
            print(f"{error}; kept as {kept}; what it held is computed again where it is needed", file=sys.stderr)
            return None

    def set_aside(self, path: Path) -> Path:
        """Move a file of this folder, or the folder itself, to a folder beside it; returns where it is now."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        kept = self.folder.with_name(f"{self.folder.name}{ASIDE}") / stamp / path.relative_to(self.folder)
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.rename(kept)
        return kept

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to this folder. Raises Busy where one does; a kill ends its lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder.with_name(f".{self.folder.name}.lock"), timeout=0):
                for kind in ("nc", "safetensors"):  # what writers left that were killed
                    for path in self.folder.rglob(f".*.{kind}.*.tmp"):
                        path.unlink()
                yield
        except Timeout:
            raise Busy(
                f"--out: another process is at work in {self.folder}; wait for its end, or choose another --out"
            ) from None

    def save(
        self,
        study: str,
        name: str,
        record: dict[str, Any],
        dataset: xr.Dataset | None,
        tensors: Mapping[str, np.ndarray],
    ) -> None:
        """Write what a chunk computed: parameters first, so that a chunk whose data set is there is there whole."""
        if tensors:
            own = {"dataset": dataset is not None, "study": study, "name": name}
            write_tensors(self.tensor_path(study, name), tensors, record | own)
        if dataset is not None:
            path = self.chunk_path(study, name)
            chunks = json.dumps({name: record}, sort_keys=True)
            write_dataset(path, dataset.assign_attrs(study=study, chunks=chunks))

    def tensors(self, study: str, name: str) -> dict[str, np.ndarray]:
        return read_tensors(self.tensor_path(study, name))[0]

    def compare(self, study: str, name: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        """Raise Mismatch, naming each entry in which what is stored of a chunk differs from what is wanted."""
        differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        if differing:
            pairs = ((key, _short(found.get(key)), _short(wanted.get(key))) for key in differing)
            details = ", ".join(f"{key} {there} there and {here} here" for key, there, here in pairs)
            source = f" (data read from: {self.data.get('source')})" if "data" in differing else ""
            remedy = "choose another --out, or move these results aside with --fresh"
            raise Mismatch(f"out: {self.folder} holds {study}/{name} of another run: {details}{source}; {remedy}")

    def _former_configs(self, attributes: dict[str, Any]) -> list[dict[str, Any]]:
        """The configurations under which chunks of a study were computed before, from its file, without this one."""
        known = json.loads(attributes.get("former_configs", "[]"))
        known += [json.loads(attributes["config"])] if "config" in attributes else []
        return [config for number, config in enumerate(known) if config != self.config and config not in known[:number]]

    def gather(self, study: str) -> xr.Dataset | None:
        """Merge the study's file and its chunks into the study's file, then remove the chunks."""
        paths = sorted(self.chunk_path(study, "*").parent.glob("*.nc"))
        parts = [read_dataset(path) for path in [self.study_path(study), *paths] if path.is_file()]
        if not paths:
            return parts[0] if parts else None
        records = {name: record for part in parts for name, record in json.loads(part.attrs["chunks"]).items()}
        merged = merge(parts).assign_attrs(
            study=study,
            config=json.dumps(self.config, sort_keys=True),
            former_configs=json.dumps(self._former_configs(parts[0].attrs), sort_keys=True),
            data=json.dumps(self.data, sort_keys=True),
            seconds=sum(record["seconds"] for record in records.values()),
            chunks=json.dumps(records, sort_keys=True),
            **_run_attributes(records),
        )
        write_dataset(self.study_path(study), merged)
        for path in paths:
            path.unlink()
        return merged


def _study_records(path: Path) -> dict[str, dict[str, Any]]:
    """The records of the chunks that a study's file holds; Damaged where it is none of ours, or another study's."""
    return _records(path, path.stem)


def _records(path: Path, study: str) -> dict[str, dict[str, Any]]:
    try:
        attributes = read_dataset(path).attrs
        if attributes["study"] != study:
            raise Damaged(f"results: {path} holds {attributes['study']}, not what its name says")
        records = json.loads(attributes["chunks"])
        return {name: record | {"identity": dict(record["identity"])} for name, record in records.items()}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise Damaged(f"results: {path} has no record of what it holds ({type(error).__name__})") from None


def _chunk_records(path: Path) -> dict[str, dict[str, Any]]:
    records = _records(path, path.parent.name)
    if set(records) != {path.stem}:
        raise Damaged(f"results: {path} holds {', '.join(records) or 'nothing'}, not what its name says")
    return records


def _tensor_record(path: Path) -> dict[str, Any]:
    record = read_tensors(path)[1]
    if not isinstance(record, dict) or not isinstance(record.get("dataset"), bool) or "identity" not in record:
        raise Damaged(f"results: {path} has no record of what it holds")
    if (record.get("study"), record.get("name")) != (path.parent.name, path.stem):
        raise Damaged(f"results: {path} holds {record.get('name')}, not what its name says")
    return record


def _run_attributes(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Start, machine, versions and commits of a file's chunks; several of one kind are joined by '; '."""
    kinds = ("machine", "versions", "commit")
    several = {kind: "; ".join(sorted({record[kind] for record in records.values()})) for kind in kinds}
    return {"started": min(record["started"] for record in records.values()), **several}


def merge(parts: list[xr.Dataset]) -> xr.Dataset:
    """Lay datasets of the same variables into one over the union of their coordinates; later ones win.

    Combinations that no part holds are NaN. Coordinates are sorted, so the result does not depend on the
    order in which chunks were finished.
    """
    coordinates = {
        name: np.unique(np.concatenate([np.atleast_1d(part[name].values) for part in parts if name in part.coords]))
        for name in dict.fromkeys(name for part in parts for name in part.coords)
    }
    merged = xr.Dataset(coords=coordinates)
    for name in dict.fromkeys(name for part in parts for name in part.data_vars):
        holders = [part[name] for part in parts if name in part]
        shape = [len(coordinates[dim]) for dim in holders[0].dims]
        array = xr.DataArray(
            np.full(shape, np.nan), {dim: coordinates[dim] for dim in holders[0].dims}, attrs=holders[0].attrs
        )
        for part in holders:
            array.loc[{dim: part[dim].values for dim in part.dims}] = part.values
        merged[name] = array
    return merged


def _short(value: Any) -> str:
    """A value as a message shows it: of a hash the beginning."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)


# ---- provenance ----


def run_record(identity: dict[str, Any], started: datetime, seconds: float) -> dict[str, Any]:
    """What is kept of a chunk beside its numbers: identity, start, seconds, machine, versions, commit."""
    return {
        "identity": identity,
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "machine": machine(),
        "versions": versions(),
        "commit": git_commit(),
    }


@functools.cache
def machine() -> str:
    """Processor, cores and system, without the machine's name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {cores()} cores, {platform.system()}, Python {platform.python_version()}"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def versions() -> str:
    return ", ".join(f"{package} {version(package)}" for package in PACKAGES)


@functools.cache
def git_commit() -> str:
    """The project's commit, with '+dirty' where a Python file differs from it; 'unknown' outside git."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != here:
            return "unknown"  # a copy of the code within someone else's repository
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "--", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

"""Study files: the readable view of what jobs computed, OUT/<data set>/<folder>/<study>.nc.

A file lists the jobs of its rows. A command reads it, adds the rows of its own jobs and writes it anew under a short
lock; what it did not ask for stays. What a file lists is done, also in a clone that has no job files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from filelock import FileLock, Timeout

import storage
from checks import BadInput, first_line, require
from jobs import Arrays, Job, Store, job_key, recorded_fields

LOCK_SECONDS = 600  # how long to wait for another process that writes the same file


@dataclass(frozen=True)
class Row:
    """A job, and where its numbers stand in a study's file.

    place: {axis: label}. table: (row, arrays) -> labelled variables. runs: those of its runs that are shown; None
    where the job has no runs. words: coordinates along one axis of the place, {name: (axis, value)}.
    """

    study: str
    job: Job
    place: dict[str, Any]
    table: Callable[[Row, Arrays], xr.Dataset]
    runs: range | None = None
    words: dict[str, tuple[str, Any]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Equal for rows that fill the same cells of the file."""
        place = {axis: label.item() if isinstance(label, np.generic) else label for axis, label in self.place.items()}
        return json.dumps([place, getattr(self.job, "block", type(self.job).__name__)])

    def part(self, arrays: Arrays) -> xr.Dataset:
        table = self.table(self, arrays)
        table = table.sel(run=list(self.runs)) if self.runs is not None else table
        return table.assign_coords({name: (axis, [value]) for name, (axis, value) in self.words.items()})


Listing = dict[str, dict[str, Any]]  # of a file's rows, by address: the key, fields and record of the job, and its runs


class StudyFile:
    """One study's file, which need not be there yet.

    Raises BadInput where it holds results of other data. One that is damaged, or that lists no jobs, is named, and what
    it held is computed again; it is kept beside the new one.
    """

    def __init__(self, path: Path, data: dict[str, Any]):
        self.path, self.data = path, data

    def listing(self) -> Listing:
        found = self.read()
        return {} if found is None else json.loads(found.attrs["jobs"])

    def read(self, *, set_aside: bool = False) -> xr.Dataset | None:
        """The file, None where there is none that can be used."""
        try:
            found = storage.read_dataset(self.path)
            if not isinstance(json.loads(found.attrs["jobs"]), dict):
                raise TypeError
            theirs = json.loads(found.attrs["data"])
            if not isinstance(theirs, dict) or found.attrs["study"] != self.path.stem:
                raise TypeError
        except FileNotFoundError:
            return None
        except (storage.Damaged, KeyError, TypeError, ValueError) as error:
            reason = (
                error if isinstance(error, storage.Damaged) else f"results: {self.path} lists no jobs of this study"
            )
            kept = f"kept as {self.path.name}.damaged; " if set_aside else ""
            print(f"{reason}; {kept}what it held is computed again where it is needed", file=sys.stderr)
            if set_aside:
                self.path.replace(self.path.with_name(f"{self.path.name}.damaged"))
            return None
        differing = sorted(name for name in theirs.keys() | self.data.keys() if theirs.get(name) != self.data.get(name))
        if "sha256" in differing:
            differing.remove("sha256")
            pairs = [f"{name} {theirs.get(name)} there and {self.data.get(name)} here" for name in differing]
            words = ", ".join(pairs) or "of the same name"
            allowed = f"a folder without results of other data ({words}); choose another --out"
            require(False, "--out", self.path, allowed)
        return found

    def add(self, rows: Iterable[tuple[Row, Arrays, dict[str, Any]]], config: dict[str, Any]) -> None:
        """Write the file with these rows, each with its job's arrays and record; they replace those at their addresses.

        A row whose job has no key is written and not listed.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            found = self.read(set_aside=True)
            listed = {} if found is None else json.loads(found.attrs["jobs"])
            parts = []
            for row, arrays, record in rows:
                parts.append(row.part(arrays))
                former = listed.pop(row.address, {}).get("runs") or []
                found = None if found is None else _without(found, row, parts[-1], former)
                if record["key"]:
                    listed[row.address] = {"runs": None if row.runs is None else list(row.runs), **record}
            merged = storage.merge([*([] if found is None else [found]), *parts])
            merged.attrs = self._attributes(listed, config)
            storage.write_dataset(self.path, merged)

    def _attributes(self, listed: Listing, config: dict[str, Any]) -> dict[str, Any]:
        kinds = ("machine", "versions", "commit")
        mixed = {kind: "; ".join(sorted({entry[kind] for entry in listed.values()})) for kind in kinds}
        for kind, words in {"machine": "machines", "versions": "sets of versions"}.items():
            if ";" in mixed[kind]:
                print(f"note: {self.path} holds results of several {words}: {mixed[kind]}", file=sys.stderr)
        return {
            "study": self.path.stem,
            "config": json.dumps(config, sort_keys=True, default=str),
            "data": json.dumps(self.data, sort_keys=True),
            "jobs": json.dumps(listed, sort_keys=True),
            "seconds": sum(entry["seconds"] for entry in listed.values()),
            "finished": max((entry["finished"] for entry in listed.values()), default=""),
            **mixed,
        }


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others from writing this file; BadInput where its file system has no locks."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(f"--out: {path} has been written by another process for {LOCK_SECONDS} seconds") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BadInput(f"--out: got {path.parent}, allowed: a file system with locks ({reason})") from None
    try:
        yield
    finally:
        lock.release()


def job_arrays(path: str | Path, run: int = 0, **place: Any) -> Arrays:
    """What one run of a study computed, from the job's own file: final parameters, logits and which samples are what.

    path: OUT/DATA/FOLDER/STUDY.nc. place: labels along the axes of its table, such as model="QNN[depth=6]",
    poison="labels", alpha_percent=30. The arrays of a run: see `perform` of the job (experiments.Fit); its model's
    parameters: experiments.tensors_to_params(model, arrays).

    Raises BadInput where the study has no such run, or the jobs' files are not there (a clone has none).
    """
    listing = json.loads(storage.read_dataset(path).attrs["jobs"])
    for address, entry in listing.items():
        if json.loads(address)[0] == place and run in (entry["runs"] or []):
            file = Path(path).parents[2] / "jobs" / f"{entry['key']}.safetensors"
            if not file.is_file():
                raise BadInput(f"jobs: got no {file}, allowed: a folder that was computed here (--out elsewhere)")
            first = entry["fields"].get("block", 0) * entry["fields"].get("size", 5)
            return {
                name: array[run - first] if array.ndim else array
                for name, array in storage.read_tensors(file)[0].items()
            }
    some = "; ".join(
        sorted({" ".join(f"{axis}={label!r}" for axis, label in json.loads(each)[0].items()) for each in listing})[:3]
    )
    raise BadInput(f"place: got run {run} of {place}, allowed: what {path} holds, such as {some}")


def is_listed(row: Row, listing: Listing) -> bool:
    """Whether a file with this listing has all the row's runs."""
    entry = listing.get(row.address, {})
    same = entry.get("key") == job_key(row.job) is not None
    return same and (row.runs is None or set(row.runs) <= set(entry["runs"]))


def _without(found: xr.Dataset, row: Row, part: xr.Dataset, former: list[int]) -> xr.Dataset:
    """The file without what stands at a row's place, in the runs of its job and of the former one: nothing stays."""
    if not row.place:
        return found.drop_vars([name for name in part.data_vars if name in found])
    if any(axis not in found.indexes or label not in found[axis].values for axis, label in row.place.items()):
        return found
    chosen = {axis: found[axis].values == label for axis, label in row.place.items()}
    if "run" in part.dims:
        chosen["run"] = np.isin(found.run.values, [*former, *row.job.runs])
    for name, array in found.data_vars.items():
        if set(row.place) <= set(array.dims) and ("run" in array.dims or name in part):
            places = [np.flatnonzero(chosen.get(dim, np.ones(size))) for dim, size in array.sizes.items()]
            array.values[np.ix_(*places)] = np.nan
    return found


# ---- what is missing, without computing it ----


def describe_plan(rows: list[Row], missing: list[Job], store: Store, listings: Iterable[dict]) -> list[str]:
    """Lines on what is there, what is missing, how that differs from what is there, and what it will cost."""
    entries = [entry for listing in listings for entry in listing.values()] + list(store.records().values())
    known = [(_flat(entry["fields"]), entry["seconds"]) for entry in entries]
    lines, times = [], []
    for study in dict.fromkeys(row.study for row in rows):
        own = {row.job for row in rows if row.study == study}
        lines.append(f"{study}: {len(own)} jobs, {len(own - set(missing))} there, {len(own & set(missing))} missing")
    for group in _groups(missing):
        seconds, words = _nearest(_flat(recorded_fields(group[0])), known)
        times.append(seconds * len(group))
        estimate = f"about {times[-1] / 60:.1f} core-minutes" if seconds else "no time known"
        lines.append(f"  {len(group)} x {group[0].title}: {estimate}; {words}")
    unknown = f", and {times.count(0)} kinds of job of which no time is known" if 0 in times else ""
    return [*lines, f"{len(missing)} jobs to compute, about {sum(times) / 60:.1f} core-minutes{unknown}"]


def _nearest(here: frozenset, known: list[tuple[frozenset, float]]) -> tuple[float, str]:
    """Seconds of the job that is most like this one, and in what it differs; 0 where there is none of its kind."""
    alike = [entry for entry in known if _kind(entry[0]) == _kind(here)]
    if not alike:
        return 0.0, "nothing like it is there"
    there, seconds = min(alike, key=lambda entry: len(entry[0] ^ here))
    return seconds, _difference(there, here)


def _kind(fields: frozenset) -> frozenset:
    return frozenset((path, value) for path, value in fields if path in ("is", "model.is"))


def _groups(jobs: list[Job]) -> list[list[Job]]:
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.kind, job.title), []).append(job)
    return list(groups.values())


def _flat(fields: Any, path: str = "") -> frozenset[tuple[str, str]]:
    """Nested fields as a set of (dotted path, value)."""
    if isinstance(fields, dict):
        return frozenset(pair for name, own in fields.items() for pair in _flat(own, f"{path}.{name}".strip(".")))
    return frozenset([(path, json.dumps(fields))])


def _difference(there: frozenset, here: frozenset) -> str:
    old, new = dict(there - here), dict(here - there)
    names = sorted(name for name in old.keys() | new.keys())
    pairs = [f"{name} {_short(old.get(name))} there, {_short(new.get(name))} here" for name in names[:4]]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"nearest: {'; '.join(pairs)}{more}" if names else "the same settings"


def _short(text: str | None) -> str:
    return "default" if text is None else text.strip('"')[:40]

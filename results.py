"""Study files: the readable view of what jobs computed, OUT/<data set>/<folder>/<study>.nc.

A file lists the jobs of its rows. A command reads it, adds the rows of its own jobs and writes it anew under a short
lock; what it did not ask for stays. What a file lists is done, also in a clone that has no job files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr
from filelock import FileLock

import storage
from checks import BadInput
from jobs import Arrays, Job, Store, job_fields, job_key

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
        return json.dumps([self.place, getattr(self.job, "block", type(self.job).__name__)], default=str)

    def part(self, arrays: Arrays) -> xr.Dataset:
        table = self.table(self, arrays)
        table = table.sel(run=list(self.runs)) if self.runs is not None else table
        return table.assign_coords({name: (axis, [value]) for name, (axis, value) in self.words.items()})


class StudyFile:
    """One study's file, which need not be there yet.

    Raises BadInput where it holds results of other data. A damaged one is named, and what it held is computed again.
    """

    def __init__(self, path: Path, data: dict[str, Any]):
        self.path, self.data = path, data

    def read(self) -> xr.Dataset | None:
        """The file, None where there is none."""
        try:
            found = storage.read_dataset(self.path)
            json.loads(found.attrs["jobs"])
        except FileNotFoundError:
            return None
        except (storage.Damaged, KeyError, ValueError) as error:
            reason = error if isinstance(error, storage.Damaged) else f"results: {self.path} lists no jobs"
            kept = self.path.with_name(f"{self.path.name}.damaged")
            self.path.replace(kept)
            print(f"{reason}; kept as {kept.name}; what it held is computed again where it is needed", file=sys.stderr)
            return None
        theirs, ours = json.loads(found.attrs["data"]), self.data
        if theirs["sha256"] != ours["sha256"]:
            differing = ", ".join(
                f"{name} {theirs.get(name)} there and {ours.get(name)} here"
                for name in sorted(theirs.keys() | ours.keys())
                if theirs.get(name) != ours.get(name) and name != "sha256"
            )
            raise BadInput(f"--out: {self.path} holds results of other data ({differing or 'of the same name'}); "
                           "choose another --out")  # fmt: skip
        return found

    def listing(self) -> dict[str, dict[str, Any]]:
        """The jobs of the file's rows: by key their address, runs and records."""
        found = self.read()
        return {} if found is None else json.loads(found.attrs["jobs"])

    def add(self, rows: Iterable[tuple[Row, Arrays, dict[str, Any]]], config: dict[str, Any]) -> None:
        """Write the file with these rows, each with its job's arrays and record; those of the same address go."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCK_SECONDS):
            found = self.read()
            listed = {} if found is None else json.loads(found.attrs["jobs"])
            by_address = {entry["address"]: key for key, entry in listed.items()}
            parts = [] if found is None else [found]
            for row, arrays, record in rows:
                parts.append(row.part(arrays))
                listed.pop(by_address.get(row.address), None)
                if record["key"]:
                    runs = None if row.runs is None else list(row.runs)
                    listed[record["key"]] = {"address": row.address, "runs": runs} | record
            merged = storage.merge(parts)
            merged.attrs = self._attributes(listed, config)
            storage.write_dataset(self.path, merged)

    def _attributes(self, listed: dict[str, dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
        kinds = ("machine", "versions", "commit")
        mixed = {kind: "; ".join(sorted({entry[kind] for entry in listed.values()})) for kind in kinds}
        return {
            "study": self.path.stem,
            "config": json.dumps(config, sort_keys=True, default=str),
            "data": json.dumps(self.data, sort_keys=True),
            "jobs": json.dumps(listed, sort_keys=True),
            "seconds": sum(entry["seconds"] for entry in listed.values()),
            "finished": max((entry["finished"] for entry in listed.values()), default=""),
            **mixed,
        }


def is_listed(row: Row, listing: dict[str, dict[str, Any]]) -> bool:
    """Whether a file with this listing has all the row's runs."""
    entry = listing.get(job_key(row.job) or "")
    return entry is not None and (row.runs is None or set(row.runs) <= set(entry["runs"]))


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
        seconds, words = _nearest(_flat(_fields(group[0])), known)
        times.append(seconds * len(group))
        estimate = f"about {times[-1] / 60:.1f} core-minutes" if seconds else "no time known"
        lines.append(f"  {len(group)} x {group[0].title}: {estimate}; {words}")
    unknown = f", and {times.count(0)} kinds of job of which no time is known" if 0 in times else ""
    return [*lines, f"{len(missing)} jobs to compute, about {sum(times) / 60:.1f} core-minutes{unknown}"]


def _fields(job: Job) -> dict[str, Any]:
    return job_fields(job) if job_key(job) else {}


def _nearest(here: frozenset, known: list[tuple[frozenset, float]]) -> tuple[float, str]:
    """Seconds of the job that is most like this one, and in what it differs; 0 where there is none of its kind."""
    alike = [entry for entry in known if _kind(entry[0]) == _kind(here)]
    if not alike:
        return 0.0, "nothing like it is there"
    there, seconds = max(alike, key=lambda entry: len(entry[0] & here))
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

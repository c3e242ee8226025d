"""Study files: the readable view of what jobs computed, OUT/<data set>/<folder>/<study>.nc.

A file lists the jobs of its rows. A command reads it, adds the rows of its own jobs and writes it
anew under a short lock; what it did not ask for stays. What a file lists is done, also in a clone
that has no job files.
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

from foundation.base import storage
from foundation.base.checks import BadInput, first_line, require
from foundation.engine.jobs import Arrays, Job, Store, job_key, recorded_fields

LOCK_SECONDS = 600  # how long to wait for another process that writes the same file


@dataclass(frozen=True)
class Row:
    """A job, and where its numbers stand in a study's file.

    place: {axis: label}. table: (row, arrays) -> labelled variables. runs: those of its runs that
    are shown; None where the job has no runs. words: coordinates along one axis of the place,
    {name: (axis, value)}.
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
        block = getattr(self.job, "block", type(self.job).__name__)
        # of NumPy's numbers
        return json.dumps([self.place, block], default=lambda label: label.item())

    def part(self, arrays: Arrays) -> xr.Dataset:
        table = self.table(self, arrays)
        table = table if self.runs is None else table.sel(run=list(self.runs))
        return table.assign_coords(
            {name: (axis, [value]) for name, (axis, value) in self.words.items()}
        )


# of a file's rows, by address: the key, fields and record of the job, and its runs
Listing = dict[str, dict[str, Any]]


class StudyFile:
    """One study's file, which need not be there yet.

    One that is damaged, or that lists no jobs, is named and kept beside the new one; what it held
    is computed again.
    """

    def __init__(self, path: Path, data: dict[str, Any]):
        self.path, self.data = path, data

    def listing(self) -> Listing:
        found = self.read()
        return {} if found is None else json.loads(found.attrs["jobs"])

    def read(self, *, set_aside: bool = False) -> xr.Dataset | None:
        """The file, None where there is none that can be used; BadInput where it holds results of
        other data."""
        try:
            found = storage.read_dataset(self.path)
            jobs, theirs = (json.loads(found.attrs[name]) for name in ("jobs", "data"))
            if not (
                isinstance(jobs, dict)
                and isinstance(theirs, dict)
                and found.attrs["study"] == self.path.stem
            ):
                raise TypeError
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            unlisted = f"results: {self.path} lists no jobs of this study"
            reason = error if isinstance(error, storage.Damaged) else unlisted
            kept = f"kept as {self.path.name}.damaged; " if set_aside else ""
            print(
                f"{reason}; {kept}what it held is computed again where it is needed",
                file=sys.stderr,
            )
            if set_aside:
                self.path.replace(self.path.with_name(f"{self.path.name}.damaged"))
            return None
        names = sorted((theirs.keys() | self.data.keys()) - {"sha256"})
        both = [(name, theirs.get(name), self.data.get(name)) for name in names]
        words = ", ".join(
            f"{name} {there} there and {here} here" for name, there, here in both if there != here
        )
        allowed = (
            f"a folder without results of other data ({words or 'of the same name'}); choose "
            "another --out"
        )
        require(theirs.get("sha256") == self.data.get("sha256"), "--out", self.path, allowed)
        return found

    def add(
        self, rows: Iterable[tuple[Row, Arrays, dict[str, Any]]], config: dict[str, Any]
    ) -> None:
        """Write the file with these rows, each with its job's arrays and record, in place of those
        at their address."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            found, parts = self.read(set_aside=True), []
            found = xr.Dataset(attrs={"jobs": "{}"}) if found is None else found
            listed = json.loads(found.attrs["jobs"])
            for row, arrays, record in rows:
                parts.append(row.part(arrays))
                found = _without(
                    found, row, parts[-1], listed.pop(row.address, {}).get("runs") or []
                )
                if record["key"]:  # a job without one is computed anew each time
                    listed[row.address] = {
                        "runs": None if row.runs is None else list(row.runs),
                        **record,
                    }
            merged = storage.merge([found, *parts])
            storage.write_dataset(self.path, merged.assign_attrs(self._attributes(listed, config)))

    def _attributes(self, listed: Listing, config: dict[str, Any]) -> dict[str, Any]:
        kinds = ("machine", "versions", "commit")
        mixed = {
            kind: "; ".join(sorted({entry[kind] for entry in listed.values()})) for kind in kinds
        }
        for kind, words in {"machine": "machines", "versions": "sets of versions"}.items():
            if ";" in mixed[kind]:
                print(
                    f"note: {self.path} holds results of several {words}: {mixed[kind]}",
                    file=sys.stderr,
                )
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
        raise BadInput(
            f"--out: {path} has been written by another process for {LOCK_SECONDS} seconds"
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BadInput(
            f"--out: got {path.parent}, allowed: a file system with locks ({reason})"
        ) from None
    try:
        yield
    finally:
        lock.release()


def job_arrays(path: str | Path, run: int = 0, **place: Any) -> Arrays:
    """What one run of a study computed, from the job's own file: final parameters, logits and which
    samples are what.

    path: OUT/DATA/FOLDER/STUDY.nc. place: labels along the axes of its table, such as
    model="QNN[depth=6]", poison="labels", alpha_percent=30. The arrays of a run: see `perform` of
    the job (protocol.Fit); its model's parameters: protocol.tensors_to_params(model, arrays).

    Raises BadInput where the study has no such run, or the jobs' files are not there (a clone has
    none).
    """
    listing = json.loads(storage.read_dataset(path).attrs["jobs"])
    for address, entry in listing.items():
        if json.loads(address)[0] == place and run in (entry["runs"] or []):
            file = Path(path).parents[2] / "jobs" / f"{entry['key']}.safetensors"
            if not file.is_file():
                raise BadInput(
                    f"jobs: got no {file}, allowed: a folder that was computed here (--out "
                    "elsewhere)"
                )
            first = entry["fields"].get("block", 0) * entry["fields"].get("size", 5)
            return {
                name: array[run - first] if array.ndim else array
                for name, array in storage.read_tensors(file)[0].items()
            }
    some = "; ".join(
        sorted(
            {
                " ".join(f"{axis}={label!r}" for axis, label in json.loads(each)[0].items())
                for each in listing
            }
        )[:3]
    )
    raise BadInput(f"place: got run {run} of {place}, allowed: what {path} holds, such as {some}")


def is_listed(row: Row, listing: Listing) -> bool:
    """Whether a file with this listing has all the row's runs."""
    entry = listing.get(row.address, {})
    same = entry.get("key") == job_key(row.job) is not None
    return same and (row.runs is None or set(row.runs) <= set(entry["runs"]))


def _without(found: xr.Dataset, row: Row, part: xr.Dataset, former: list[int]) -> xr.Dataset:
    """The file without what stands at a row's place, in the runs of its job and of the former one:
    nothing stays."""
    if not row.place:
        return found.drop_vars([name for name in part.data_vars if name in found])
    chosen = {
        axis: found[axis].values == label
        for axis, label in row.place.items()
        if axis in found.indexes
    }
    if "run" in part.dims and "run" in found.indexes:
        chosen["run"] = np.isin(found.run.values, [*former, *row.job.runs])
    for name, array in found.data_vars.items():
        if set(row.place) <= set(array.dims) and ("run" in array.dims or name in part):
            places = [
                np.flatnonzero(chosen.get(dim, np.ones(size))) for dim, size in array.sizes.items()
            ]
            array.values[np.ix_(*places)] = np.nan
    return found


def describe_plan(
    rows: list[Row], missing: list[Job], store: Store, listings: Iterable[dict]
) -> list[str]:
    """Lines on what is there, what is missing, how that differs from what is there, and what it
    will cost."""
    entries = [entry for listing in listings for entry in listing.values()] + list(
        store.records().values()
    )
    known = [(_flat(entry["fields"]), entry["seconds"]) for entry in entries]
    lines, times = [], []
    for study in dict.fromkeys(row.study for row in rows):
        own = {row.job for row in rows if row.study == study}
        lines.append(
            f"{study}: {len(own)} jobs, {len(own - set(missing))} there, {len(own & set(missing))} "
            "missing"
        )
    groups: dict[tuple, list[Job]] = {}
    for job in missing:
        groups.setdefault((job.kind, job.title), []).append(job)
    for group in groups.values():
        seconds, words = _nearest(_flat(recorded_fields(group[0])), known)
        times.append(seconds * len(group))
        estimate = f"about {times[-1] / 60:.1f} core-minutes" if seconds else "no time known"
        lines.append(f"  {len(group)} x {group[0].title}: {estimate}; {words}")
    unknown = f", and {times.count(0)} kinds of job of which no time is known" if 0 in times else ""
    return [
        *lines,
        f"{len(missing)} jobs to compute, about {sum(times) / 60:.1f} core-minutes{unknown}",
    ]


def _flat(fields: Any, path: str = "") -> dict[str, str]:
    """The leaves of nested fields, by their dotted paths."""
    if not isinstance(fields, dict):
        return {path: json.dumps(fields)}
    parts = [_flat(value, f"{path}.{name}".strip(".")) for name, value in fields.items()]
    return {name: text for part in parts for name, text in part.items()}


def _nearest(here: dict[str, str], known: list[tuple[dict[str, str], float]]) -> tuple[float, str]:
    """Seconds of the job that is most like this one, and in what it differs; 0 where there is none
    of its kind."""
    alike = [
        entry
        for entry in known
        if all(entry[0].get(name) == here.get(name) for name in ("is", "model.is"))
    ]
    if not alike:
        return 0.0, "nothing like it is there"
    there, seconds = min(alike, key=lambda entry: len(entry[0].items() ^ here.items()))
    names = sorted(dict(there.items() ^ here.items()))
    pairs = [
        (name, *(own.get(name, "default").strip('"')[:40] for own in (there, here)))
        for name in names[:4]
    ]
    words = "; ".join(f"{name} {old} there, {new} here" for name, old, new in pairs)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return seconds, f"nearest: {words}{more}" if names else "the same settings"

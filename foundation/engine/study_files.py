"""Read and write study files, the readable view of results: OUT/<data set>/<folder>/<study>.nc.

A file lists the jobs of its rows. A command reads the file, adds the rows of its jobs and writes it
anew under a short lock; all other rows stay. A job that a file lists counts as done, also in a
clone that has no job files.
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
from filelock import FileLock, Timeout

from foundation.base import storage
from foundation.base.checks import BadInput, first_line, require
from foundation.base.later import xarray as xr
from foundation.engine import keys
from foundation.engine.jobs import Arrays, Job, Store, job_key, recorded_fields
from foundation.engine.sources import NoSource

LOCK_SECONDS = 600  # how long to wait for another process that writes the same file


@dataclass(frozen=True)
class Row:
    """A job and the place of its numbers in a study's file.

    place: {axis: label}. table: (row, arrays) -> labelled variables. runs: the job's runs that are
    shown; None where the job has no runs. coords: coordinates along one axis of the place,
    {name: (axis, value)}.
    """

    study: str
    job: Job
    place: dict[str, Any]
    table: Callable[[Row, Arrays], xr.Dataset]
    runs: range | None = None
    coords: dict[str, tuple[str, Any]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Text that is equal for rows that fill equal cells of the file."""
        block = getattr(self.job, "block", type(self.job).__name__)
        # the default converts NumPy's numbers
        return json.dumps([self.place, block], default=lambda label: label.item())

    def part(self, arrays: Arrays) -> xr.Dataset:
        """Return the row's labelled variables from the arrays of its job."""
        table = self.table(self, arrays)
        if self.runs is not None:
            table = table.sel(run=list(self.runs))
        coordinates = {}
        for name, (axis, value) in self.coords.items():
            coordinates[name] = (axis, [value])
        return table.assign_coords(coordinates)


RowWithArrays = tuple[Row, Arrays, dict[str, Any]]  # with the arrays and the record of its job
# for each row of a file, by address: the key, fields and record of its job, and the row's runs
Listing = dict[str, dict[str, Any]]


class StudyFile:
    """The file of one study, which need not exist yet.

    A file that is damaged or lists no jobs is named on stderr and, when written, kept beside the
    new one; its results are computed again.
    """

    def __init__(self, path: Path, data: dict[str, Any]):
        self.path, self.data = path, data

    def listing(self) -> Listing:
        """Return what the file says of its rows; {} where there is no file."""
        dataset = self.read()
        return {} if dataset is None else json.loads(dataset.attrs["jobs"])

    def read(self, *, set_aside: bool = False) -> xr.Dataset | None:
        """Read the file; None where it is missing or unusable.

        set_aside: rename an unusable file. Raises BadInput where it holds results of other data.
        """
        try:
            dataset = storage.read_dataset(self.path)
            jobs = json.loads(dataset.attrs["jobs"])
            data = json.loads(dataset.attrs["data"])
            are_dicts = isinstance(jobs, dict) and isinstance(data, dict)
            if not are_dicts or dataset.attrs["study"] != self.path.stem:
                raise TypeError
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            self._report_unusable(error, set_aside)
            return None
        self._require_own_data(data)
        return dataset

    def _report_unusable(self, error: Exception, set_aside: bool) -> None:
        unlisted = f"results: {self.path} lists no jobs of this study"
        reason = error if isinstance(error, storage.Damaged) else unlisted
        kept = f"kept as {self.path.name}.damaged; " if set_aside else ""
        message = f"{reason}; {kept}what it held is computed again where it is needed"
        print(message, file=sys.stderr)
        if set_aside:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            self.path.replace(aside)

    def _require_own_data(self, data: dict[str, Any]) -> None:
        """Raise BadInput unless these data, of which the file has results, are those of the run."""
        if data.get("sha256") == self.data.get("sha256"):
            return
        differences = []
        names = data.keys() | self.data.keys()
        for name in sorted(names - {"sha256"}):
            in_file = data.get(name)
            given = self.data.get(name)
            if in_file != given:
                differences.append(f"{name} {in_file} there and {given} here")
        details = ", ".join(differences) or "of the same name"
        allowed = f"a folder without results of other data ({details}); choose another --out"
        require(False, "--out", self.path, allowed)

    def require_one_kind(self, listing: Listing, rows: list[Row]) -> None:
        """Refuse to mix numbers of different settings in the file.

        rows: those that are to be computed. BadInput where the file holds other rows, computed with
        other settings, with other code of the project, or before NUMERICS rose.
        """
        addresses = {row.address for row in rows}
        if not rows:
            return
        here: dict[str, Any] = dict.fromkeys(keys.OF_PROCESS)
        try:
            here |= keys.of_process()
        except NoSource:  # then no row gets into the listing
            return
        for address, entry in listing.items():
            there = {name: entry["fields"].get(name) for name in keys.OF_PROCESS}
            if address not in addresses and there != here:
                difference = _difference_of_kinds(there, here)
                got = f"{self.path}, which holds numbers of other settings ({difference})"
                allowed = "all of its rows at once, or another --out"
                require(False, "--out", got, allowed)

    def add(self, rows: Iterable[RowWithArrays], config: dict[str, Any]) -> None:
        """Write the file with these rows in place of older rows at their addresses.

        rows: each with the arrays and the record of its job.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            dataset = self.read(set_aside=True)
            if dataset is None:
                dataset = xr.Dataset(attrs={"jobs": "{}"})
            listing = json.loads(dataset.attrs["jobs"])
            parts = []
            for row, arrays, record in rows:
                part = row.part(arrays)
                parts.append(part)
                former_runs = listing.pop(row.address, {}).get("runs") or []
                dataset = _without(dataset, row, part, former_runs)
                if record["key"]:  # a job without a key is computed anew each time
                    runs = None if row.runs is None else list(row.runs)
                    listing[row.address] = {"runs": runs, **record}
            merged = storage.merge([dataset, *parts])
            attributes = self._attributes(listing, config)
            storage.write_dataset(self.path, merged.assign_attrs(attributes))

    def _attributes(self, listing: Listing, config: dict[str, Any]) -> dict[str, Any]:
        entries = listing.values()
        mixed = {
            kind: "; ".join(sorted({entry[kind] for entry in entries}))
            for kind in ("machine", "versions", "commit")
        }
        for kind, plural in {"machine": "machines", "versions": "sets of versions"}.items():
            if ";" in mixed[kind]:
                note = f"note: {self.path} holds results of several {plural}: {mixed[kind]}"
                print(note, file=sys.stderr)
        return {
            "study": self.path.stem,
            "config": json.dumps(config, sort_keys=True, default=keys.word_of),
            "data": json.dumps(self.data, sort_keys=True),
            "jobs": json.dumps(listing, sort_keys=True),
            "seconds": sum(entry["seconds"] for entry in entries),
            "finished": max((entry["finished"] for entry in entries), default=""),
            **mixed,
        }


def differences(before: xr.Dataset | None, after: xr.Dataset) -> str:
    """Say which numbers of a study's file differ from those that were there."""
    if before is None:
        return "no numbers were there"
    compared = 0
    texts = []
    common = before.data_vars.keys() & after.data_vars.keys()
    for name in sorted(common):
        changes = _changes(before[name], after[name])
        compared += len(changes)
        n_different = int((changes > 0).sum())
        if n_different:
            texts.append(f"{name}: {n_different} differ, by {changes.max():.2g} at most")
    return "; ".join(texts) or f"{compared} numbers, all as they were"


def _changes(before: xr.DataArray, after: xr.DataArray) -> np.ndarray:
    """Return |after - before| of all numbers that both arrays have at equal labels: (numbers,)."""
    old, new = xr.align(before, after, join="inner")
    have_equal_axes = set(old.dims) == set(new.dims)
    are_numbers = old.dtype.kind in "biuf"
    if not have_equal_axes or not are_numbers:
        return np.zeros(0)
    old_values = old.transpose(*new.dims).values.astype(float)
    change = np.abs(new.values.astype(float) - old_values)
    return change[np.isfinite(change)]


def _difference_of_kinds(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Say in what two descriptions of a process differ, in a few words."""
    texts = _differences_of(_flat(there), _flat(here))
    return "; ".join(texts[:3])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing the file; BadInput without locks, or after LOCK_SECONDS."""
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
    """Load the arrays of one run: final parameters, logits, masks of poisoned and known samples.

    path: OUT/DATA/FOLDER/STUDY.nc. place: labels along the axes of its table, such as
    model="QNN[depth=6]", poison="labels", alpha_percent=30. `perform` of the job (protocol.Fit)
    documents the arrays, protocol.tensors_to_params(model, arrays) gives the model's parameters.

    Raises BadInput where the study has no such run, or where the job's file is missing: a clone has
    no job files.
    """
    listing = json.loads(storage.read_dataset(path).attrs["jobs"])
    for address, entry in listing.items():
        is_there = json.loads(address)[0] == place
        if is_there and run in (entry["runs"] or []):
            return _arrays_of_run(Path(path), entry, run)
    places = {_place_as_text(address) for address in listing}
    examples = "; ".join(sorted(places)[:3])
    raise BadInput(
        f"place: got run {run} of {place}, allowed: what {path} holds, such as {examples}"
    )


def _arrays_of_run(path: Path, entry: dict[str, Any], run: int) -> Arrays:
    """Load the arrays of one run of a job; entry: the job's entry in the listing of the file."""
    file = path.parents[2] / "jobs" / f"{entry['key']}.safetensors"
    if not file.is_file():
        raise BadInput(
            f"jobs: got no {file}, allowed: a folder that was computed here (--out elsewhere)"
        )
    fields = entry["fields"]
    first_run = fields.get("block", 0) * fields.get("size", 5)
    place_in_block = run - first_run
    arrays, _ = storage.read_tensors(file)
    return of_run(arrays, place_in_block)


def of_run(arrays: Arrays, number: int) -> Arrays:
    """Take the arrays of one run out of those of a block; number: of the run in the block."""
    return {name: array[number] if array.ndim else array for name, array in arrays.items()}


def _place_as_text(address: str) -> str:
    place = json.loads(address)[0]
    return " ".join(f"{axis}={label!r}" for axis, label in place.items())


def is_listed(row: Row, listing: Listing) -> bool:
    """Whether a file with this listing holds all runs of the row."""
    entry = listing.get(row.address, {})
    key = job_key(row.job)
    if key is None or entry.get("key") != key:
        return False
    if row.runs is None:
        return True
    return set(row.runs) <= set(entry["runs"])


def _without(dataset: xr.Dataset, row: Row, part: xr.Dataset, former_runs: list[int]) -> xr.Dataset:
    """Blank the cells at a row's place, in the runs of its job and of the job that stood there.

    part: the row's new variables. A row without a place drops them from the file.
    """
    if not row.place:
        return dataset.drop_vars([name for name in part.data_vars if name in dataset])
    chosen = {
        axis: dataset[axis].values == label
        for axis, label in row.place.items()
        if axis in dataset.indexes
    }
    if "run" in part.dims and "run" in dataset.indexes:
        blanked_runs = [*former_runs, *row.job.runs]
        chosen["run"] = np.isin(dataset.run.values, blanked_runs)
    for name, array in dataset.data_vars.items():
        has_place = set(row.place) <= set(array.dims)
        if has_place and ("run" in array.dims or name in part):
            cells = _cells(array, chosen)
            array.values[cells] = np.nan
    return dataset


def _cells(array: xr.DataArray, chosen: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return the index of the cells whose labels are chosen; axes not in `chosen` stay whole."""
    masks = []
    for dim, size in array.sizes.items():
        whole = np.ones(size)
        masks.append(chosen.get(dim, whole))
    return np.ix_(*map(np.flatnonzero, masks))


def describe_plan(
    rows: list[Row], missing: list[Job], store: Store, listings: Iterable[dict]
) -> list[str]:
    """Describe in lines which jobs are stored, which are missing, and what these will cost.

    Beside each group of missing jobs stands the stored job that is most like them.
    """
    entries = [entry for listing in listings for entry in listing.values()]
    entries += store.records().values()
    known = [(_flat(entry["fields"]), entry["seconds"]) for entry in entries]
    unstored = set(missing)
    lines = []
    times = []
    for study in dict.fromkeys(row.study for row in rows):
        wanted = {row.job for row in rows if row.study == study}
        needed = wanted & unstored
        counts = f"{len(wanted - needed)} there, {len(needed)} missing"
        lines.append(f"{study}: {len(wanted)} jobs, {counts}")
    groups: dict[tuple, list[Job]] = {}
    for job in missing:
        groups.setdefault((job.kind, job.title), []).append(job)
    for group in groups.values():
        first = group[0]
        fields = _flat(recorded_fields(first))
        seconds, comparison = _nearest(fields, known)
        time = seconds * len(group)
        times.append(time)
        estimate = f"about {time / 60:.1f} core-minutes" if seconds else "no time known"
        jobs = f"{len(group)} x {first.title}"
        lines.append(f"  {jobs}: {estimate}; {comparison}")
    total = f"{len(missing)} jobs to compute, about {sum(times) / 60:.1f} core-minutes"
    if 0 in times:
        total += f", and {times.count(0)} kinds of job of which no time is known"
    return [*lines, total]


Leaves = dict[str, str]  # nested fields as JSON, by their dotted paths


def _flat(fields: Any, path: str = "") -> Leaves:
    """Return the leaves of nested fields as JSON, by their dotted paths."""
    if not isinstance(fields, dict):
        return {path: json.dumps(fields)}
    leaves = {}
    for name, value in fields.items():
        dotted = f"{path}.{name}".strip(".")
        leaves |= _flat(value, dotted)
    return leaves


def _nearest(here: Leaves, known: list[tuple[Leaves, float]]) -> tuple[float, str]:
    """Return the seconds of the known job that is most like this one, and how it differs.

    here: the fields of this job. known: (fields, seconds) of each stored job. Only jobs of this
    job's class and model class are compared; 0 seconds where there are none.
    """
    alike = [entry for entry in known if _are_alike(entry[0], here)]
    if not alike:
        return 0.0, "nothing like it is there"

    def distance(entry: tuple[Leaves, float]) -> int:
        fields, _ = entry
        return len(fields.items() ^ here.items())

    there, seconds = min(alike, key=distance)
    texts = _differences_of(there, here)
    if not texts:
        return seconds, "the same settings"
    unnamed = texts[4:]
    more = f" and {len(unnamed)} more" if unnamed else ""
    return seconds, f"nearest: {'; '.join(texts[:4])}{more}"


def _differences_of(there: Leaves, here: Leaves) -> list[str]:
    """Say each field that differs, sorted by name."""
    unequal = there.items() ^ here.items()
    names = sorted({name for name, _ in unequal})
    return [
        f"{name} {_shortened(there, name)} there, {_shortened(here, name)} here" for name in names
    ]


def _are_alike(here: Leaves, there: Leaves) -> bool:
    """Whether jobs with these fields are of one class, and their models too."""
    names = ("is", "model.is")
    return all(here.get(name) == there.get(name) for name in names)


def _shortened(fields: Leaves, name: str) -> str:
    return fields.get(name, "default").strip('"')[:40]

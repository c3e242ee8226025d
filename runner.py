"""What all main scripts share: flags, one-line errors, signals, and the run from a configuration to its study files."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import numpy as np
import tyro
from tqdm import tqdm

import results
import storage
from checks import BadInput, Checked, refusing, require
from datar import Dataset
from jobs import Deadly, Finished, Job, Local, Store, job_key, with_needs
from results import Row, StudyFile

# ---- flags and errors ----


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what is wrong with input, results folder or disk into one line on stderr and exit code 2."""
    try:
        yield
    except (BadInput, storage.Refused, OSError, Deadly) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        _leave(2)
    except MemoryError as error:
        print(f"error: out of memory ({' '.join(str(error).split())[:300]})", file=sys.stderr)
        _leave(2)
    except RuntimeError as error:
        if type(error).__name__ not in ("JaxRuntimeError", "XlaRuntimeError"):
            raise
        print(f"error: the computation failed ({' '.join(str(error).split())[:300]})", file=sys.stderr)
        _leave(2)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)


@contextmanager
def stoppable() -> Iterator[None]:
    """End the process with exit code 128 + signal when Ctrl-C or SIGTERM stops the block."""

    def stop(number, frame):
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as stopped:
        print(f"stopped by {signal.Signals(stopped.args[0]).name}", file=sys.stderr)
        _leave(128 + stopped.args[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


Percent = Annotated[int, tyro.conf.arg(metavar="PERCENT")]


@dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """What to run: the flags that all main scripts have."""

    preset: Literal["paper", "corrected", "quick"] = "paper"
    """Which set of defaults the other flags start from: paper is what the published code did, corrected the
    same with its flaws mended, quick a small corrected one of a few minutes."""
    stages: tuple[str, ...]
    """Studies to run."""
    models: tuple[str, ...]
    """Families of models."""
    runs: int = 5
    """Repetitions, each with its own seed."""
    seed: int = 0
    """Root of all random numbers."""
    out: Path = Path("results")
    """Folder for results and figures: OUT/DATASET/PRESET/."""
    plan: bool = False
    """Say what is there, what is missing and how many core-minutes it will take, and compute nothing."""
    data: Path | None = None
    """The .npz to read the data from, instead of the default source."""
    workers: int = 0
    """Processes, each on one core; a matter of speed and memory, the bits are the same. 0: one a core."""
    alphas: tuple[Percent, ...]
    """Poisoned shares, in percent."""
    block: tyro.conf.Suppress[int] = 5
    """Runs that one job computes."""
    optimization_level: tyro.conf.Suppress[int] = 3
    """XLA's: at 1, programs that compile for longer than they run are done sooner."""

    AXES: ClassVar[tuple[str, ...]] = ("preset", "stages", "models", "runs", "out", "plan", "data", "workers", "alphas")
    """Fields that do not name the results folder: axes of the files, and what changes no number."""
    presets: ClassVar[dict[str, Settings]] = {}
    """The presets by name, to which a configuration is compared for the name of its folder."""

    def blocks(self, runs: int | None = None) -> range:
        """The blocks that hold the first `runs` runs, all that are asked for by default."""
        return range(-(-(self.runs if runs is None else runs) // self.block))

    def shown(self, block: range, runs: int | None = None) -> range:
        """Those runs of a block that are shown."""
        return range(block.start, min(block.stop, self.runs if runs is None else runs))

    def check(self):
        require(0 <= self.workers <= 64, "--workers", self.workers, "1 to 64, or 0 for one a core")
        require(self.runs >= 1, "--runs", self.runs, "1 or more")
        require(0 <= self.seed < 2**32, "--seed", self.seed, "0 to 4294967295")
        self.check_lists("stages", "models", "alphas")
        self.check_percents("alphas")

    def check_lists(self, *names: str):
        for name in names:
            values = getattr(self, name)
            require(len(values) > 0, flag_name(name), "nothing", "at least one value")
            require(len(set(values)) == len(values), flag_name(name), " ".join(map(str, values)), "each value once")

    def check_percents(self, *names: str):
        for name in names:
            for alpha in np.atleast_1d(getattr(self, name)):
                require(0 <= alpha < 100, flag_name(name), alpha, "0 to 99 percent")


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_command_line(presets: dict[str, Settings], description: str) -> Settings:
    """The configuration from the command line: the flags, over the defaults of the preset that is named."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default="paper")
    name = chooser.parse_known_args()[0].preset
    default = presets.get(name, presets["paper"])  # an unknown name is refused by tyro, with the choices
    before = refusing.set(one_line_errors)
    try:
        return tyro.cli(type(default), default=default, description=description)
    finally:
        refusing.reset(before)


# ---- from a configuration to study files ----

Study = Callable[[Any, Dataset], Iterator[Row]]


def run_studies(
    config: Settings, dataset: Dataset, studies: dict[str, Study], *, under: str | None = None, standard: str = "",
    others: tuple[Dataset, ...] = (),
) -> Path | None:  # fmt: skip
    """Run the configuration's stages on a data set; returns the folder with the results, OUT/DATASET/FOLDER.

    studies: what each stage computes. under: the folder between, in place of the data set's name. standard: word on the
    data that joins the folder's name, empty for the preset's own. others: further data sets that jobs read. With
    --plan it prints what is missing and returns None. Raises BadInput where the folder holds results of other data.
    """
    folder = config.out / (under or dataset.name) / folder_name(config, standard)
    with _optimization(config.optimization_level):
        return _run_studies(config, dataset, studies, folder, others)


@contextmanager
def _optimization(level: int) -> Iterator[None]:
    """XLA's flag for this level, which the keys of jobs and the processes that compute read from the environment."""
    before = os.environ.get("XLA_FLAGS")
    if level != 3 and "xla_backend_optimization_level" not in (before or ""):
        os.environ["XLA_FLAGS"] = f"{before or ''} --xla_backend_optimization_level={level}".strip()
    try:
        yield
    finally:
        os.environ.pop("XLA_FLAGS", None)
        os.environ.update({} if before is None else {"XLA_FLAGS": before})


def _run_studies(
    config: Settings, dataset: Dataset, studies: dict[str, Study], folder: Path, others: tuple[Dataset, ...]
) -> Path | None:
    rows = [row for stage in config.stages for row in studies[stage](config, dataset)]
    require(len(rows) > 0, "--stages", " ".join(config.stages), "stages that have something to compute")
    rows = list({(row.study, row.address): row for row in rows}.values())
    store = Store(config.out / "jobs")
    files = {study: StudyFile(folder / f"{study}.nc", dataset.provenance) for study in {row.study: 0 for row in rows}}
    listings = {study: file.listing() for study, file in files.items()}
    new = [row for row in rows if not results.is_listed(row, listings[row.study])]
    missing = with_needs([row.job for row in new], store.has)
    if config.plan:
        print("\n".join(results.describe_plan(rows, missing, store, listings.values())))
        return None
    storage.git_commit()  # kept: the commit of the code that runs, not of what the tree holds when a job ends
    for own in (writable_folder(folder), store.folder):
        storage.sweep(own)
    datasets = {each.provenance["sha256"]: each for each in (dataset, *others)}
    unstored = compute(missing, datasets, store, workers=config.workers or storage.cores())
    for study, file in files.items():
        own = [row for row in new if row.study == study]
        if own:  # read one after the other: all arrays of a study may fill gigabytes
            file.add(((row, *(unstored.get(row.job) or store.load(row.job))) for row in own), said(config))
    return folder


def said(config: Settings) -> dict[str, Any]:
    """The configuration as it is stored: without what changes no number, and no path of this machine."""
    unsaid = ("out", "workers", "plan")
    words = {name: value for name, value in dataclasses.asdict(config).items() if name not in unsaid}
    return words | {"data": config.data.name if config.data else None}


def folder_name(config: Settings, standard: str = "") -> str:
    """The preset, and each flag that changes numbers, is no axis of the files and differs from it: paper+seed=1."""
    own, usual = (dict(_leaves(each)) for each in (config, config.presets.get(config.preset, config)))
    words = [f"{name}={value}" for name, value in own.items() if value != usual.get(name)]
    words += [f"data={standard}"] if standard else []
    name = "+".join([config.preset, *words])
    return name if len(name) <= 150 else f"{config.preset}+{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _leaves(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a configuration's fields that are no axes."""
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if not path and each.name in config.AXES:
            continue
        name = f"{path}{each.name}"
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{name}.")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            yield name, re.sub(r"[^\w.,=-]+", "-", text)


def compute(jobs: list[Job], datasets: dict[str, Dataset], store: Store, *, workers: int) -> dict[Job, tuple]:
    """Compute jobs side by side and store each as it ends; returns arrays and records of those that have no key.

    Stopped by a signal or an error, it says what is kept: all jobs that are done by then. Those that are still being
    computed are given up.
    """
    unstored: dict[Job, tuple] = {}
    saved = 0

    def keep(done: Finished) -> None:
        if job_key(done.job) is None:
            unstored[done.job] = (done.arrays, done.record)
        else:
            store.save(*done)

    if not jobs:
        return unstored
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds between updates: a log file is not a screen
    total = sum(job.trainings for job in jobs)
    local = Local(jobs, datasets, store, workers)
    try:
        with tqdm(total=total, unit="training", mininterval=interval, maxinterval=interval) as bar:
            for done in local.compute():
                keep(done)
                saved += 1
                bar.set_description(done.job.title, refresh=False)
                bar.update(done.job.trainings)
    except BaseException as reason:
        with suppress(OSError):
            for done in local.leftovers():
                keep(done)
                saved += 1
        mended = isinstance(reason, (KeyboardInterrupt, OSError))  # by doing nothing, or by making room
        way_on = "; the same command goes on from there" if mended else ""
        print(f"stopped with {saved} of {len(jobs)} jobs computed, all of them kept in {store.folder}{way_on}",
              file=sys.stderr)  # fmt: skip
        raise
    finally:
        local.end()
    return unstored


def writable_folder(folder: Path) -> Path:
    """Make the folder; BadInput in one line where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise BadInput(f"--out: cannot write to {folder} ({error.strerror})") from None

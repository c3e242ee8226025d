"""What all main scripts share: flags, one-line errors, seeds, and the runner that computes the chunks that are missing.

The runner knows nothing of models: a study gives it chunks; it computes those that no file holds yet, side by side,
stores each as it ends and gathers them into one file a study.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import jax
import numpy as np
import tyro
import xarray as xr
from tqdm import tqdm

import circuits
import storage
from datar import BadInput, Dataset, cache_folder, require

# ---- flags and errors ----


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what is wrong with input, results folder or disk into one line on stderr and exit code 2."""
    try:
        yield
    except (BadInput, storage.Refused, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        _leave(2)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:  # models or batches that no memory holds, as a rule
        print(f"error: the computation failed ({' '.join(str(error).split())[:300]})", file=sys.stderr)
        _leave(2)


WORKER = "chunk"  # how the names of threads begin that compute chunks


def _leave(code: int) -> NoReturn:
    """End the process; at once where threads compute, which cannot be told to stop and would be waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.name.startswith(WORKER) for thread in threading.enumerate()):
        os._exit(code)
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


_refusing: ContextVar[Callable] = ContextVar("_refusing", default=nullcontext)


class Checked:
    """A dataclass whose `check` raises a ValueError for bad values; on a command line that is one line."""

    def __post_init__(self):
        with _refusing.get()():
            self.check()


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
    fresh: bool = False
    """Start anew: what is in the folder is moved to OUT/DATASET/PRESET-set-aside/, never deleted. To go on with a run
    that was stopped, leave it out."""
    data: Path | None = None
    """The .npz to read the data from, instead of the default source."""
    workers: int = 0
    """Chunks computed at once, each on one core; a matter of speed and memory. 0: one a core, at most 4."""
    alphas: tuple[Percent, ...]
    """Poisoned shares, in percent."""

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
    refusing = _refusing.set(one_line_errors)
    try:
        return tyro.cli(type(default), default=default, description=description)
    finally:
        _refusing.reset(refusing)


# ---- seeds ----


def random_key(seed: int, *purpose: str | int) -> jax.Array:
    """The key of one random choice, from what it is for: no draw depends on which others were made.

    Python's own `hash` is salted anew in each process, so the purpose is folded in as a CRC-32.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(json.dumps(purpose).encode()))


# ---- chunks ----


class Computed(NamedTuple):
    """What a chunk computes: a labelled data set, and arrays to keep beside it."""

    dataset: xr.Dataset | None
    tensors: dict[str, np.ndarray]


@dataclass(frozen=True)
class Chunk:
    """A piece of work that is stored as it ends.

    identity: all that its numbers depend on; of models and methods, their names. compute: takes the tensors of the
    chunk it `needs`, if any. trainings: how many it runs, for the progress bar. axes: the entries of the identity in
    which chunks of one file may differ, each with the entries that go with it. agrees_with: other studies whose chunks
    have to come from the same configuration.
    """

    study: str
    name: str
    identity: dict[str, Any]
    compute: Callable[..., Computed]
    trainings: int
    needs: Chunk | None = None
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    agrees_with: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        return self.study, self.name

    def comparable(self, study: str, found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those entries of another chunk's identity, and of this one's, that have to be equal."""
        if study != self.study and study not in self.agrees_with:
            return {}, {}
        differing = [axis for axis in self.axes if found.get(axis) != self.identity.get(axis)]
        free = {entry for axis in differing for entry in (axis, *self.axes[axis])}
        held = found.keys() | self.identity.keys() if study == self.study else found.keys() & self.identity.keys()
        return tuple({key: own[key] for key in held - free if key in own} for own in (found, self.identity))


def shared_identity(config: Settings, dataset: Dataset) -> dict[str, Any]:
    """What all chunks in a folder have in common."""
    return {
        "format": storage.FORMAT,
        "data": dataset.provenance["sha256"],
        "seed": config.seed,
        "runs": config.runs,
    }


def slug(*words: str | int) -> str:
    """A file name from labels: "QNN[depth=6]", "labels", 30 -> "QNN-depth=6_labels_30"."""
    return "_".join(re.sub(r"[^\w.=]+", "-", str(word)).strip("-") for word in words)


Study = Callable[[Any, Dataset], list[Chunk]]  # from a configuration (of Settings) and data


def run_studies(config: Settings, dataset: Dataset, studies: dict[str, Study], *, under: str | None = None) -> Path:
    """Run the configuration's stages on a data set; returns the folder with the results, OUT/DATASET/PRESET.

    studies: what each stage computes. under: the folder between, in place of the data set's name. Raises
    storage.Refused where the folder holds results of another run, or another process is at work in it.
    """
    storage.git_commit()  # kept: the commit of the code that runs, not of what the tree holds when a chunk ends
    circuits.set_xla_flag("xla_cpu_multi_thread_eigen", "false")  # a chunk a core: bits that no core count changes
    use_compilation_cache()
    shared = shared_identity(config, dataset)
    unsaid = ("out", "workers", "fresh")
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in unsaid}
    settings["data"] = config.data.name if config.data else None  # its path is of no use elsewhere
    folder = config.out / (under or dataset.name) / config.preset
    store = storage.Store(writable_folder(folder), config=settings, data=dataset.provenance)
    chunks = [chunk for stage in config.stages for chunk in studies[stage](config, dataset)]
    require(len(chunks) > 0, "--stages", " ".join(config.stages), "stages that have something to compute")
    with store.locked():
        if config.fresh and any(folder.iterdir()):
            print(f"--fresh: what was in {folder} is kept as {store.set_aside(folder)}", file=sys.stderr)
        run(plan(chunks, store, shared=shared), store, workers=config.workers or min(storage.cores(), 4))
        for study in dict.fromkeys(chunk.study for chunk in chunks):
            store.gather(study)
    return folder


def plan(chunks: list[Chunk], store: storage.Store, *, shared: dict[str, Any]) -> list[Chunk]:
    """The chunks still to compute, each once and behind the one it needs.

    shared: the part of the identity that all chunks of this folder have to have, whatever their study.
    Raises storage.Mismatch where a stored chunk is of another run, whether or not it is one of these. Damaged files
    are set aside.
    """
    wanted = _by_key(chunks)
    needed = _by_key([chunk.needs for chunk in chunks if chunk.needs])
    known = wanted | needed
    done = set()
    for study in store.studies():
        for name, record in store.done(study).items():
            found = record["identity"]
            if (study, name) in known:
                store.compare(study, name, found, known[study, name].identity)
            store.compare(study, name, {key: found[key] for key in found.keys() & shared.keys()}, shared)
            for chunk in known.values():
                store.compare(study, name, *chunk.comparable(study, found))
            done.add((study, name))
    missing = [chunk for chunk in wanted.values() if chunk.key not in done]
    first = {chunk.needs.key: chunk.needs for chunk in missing if chunk.needs and chunk.needs.key not in done}
    return [*first.values(), *_kinds_in_turn(missing)]


def _by_key(chunks: list[Chunk]) -> dict[tuple[str, str], Chunk]:
    """Each chunk once; two that would write one file with different numbers are refused."""
    by_key: dict[tuple[str, str], Chunk] = {}
    for chunk in chunks:
        same = by_key.setdefault(chunk.key, chunk).identity == chunk.identity
        require(same, "/".join(chunk.key), "two models, methods or weights of one name", "names that tell them apart")
    return by_key


def _kinds_in_turn(chunks: list[Chunk]) -> list[Chunk]:
    """The same chunks, the first of each kind in front: workers side by side do not compile the same program twice."""
    seen: Counter = Counter()
    turns = []
    for chunk in chunks:
        kind = (chunk.study, chunk.identity.get("model"), chunk.identity.get("method"))
        turns.append(seen[kind])
        seen[kind] += 1
    return [chunk for _, chunk in sorted(zip(turns, chunks, strict=True), key=lambda pair: pair[0])]


def run(missing: list[Chunk], store: storage.Store, *, workers: int = 1) -> None:
    """Compute the chunks that `plan` found missing, `workers` at a time, and store each as it ends.

    Stopped by a signal or an error, it says what is kept: all chunks that are done by then. Those that are still being
    computed are given up.
    """
    total = sum(chunk.trainings for chunk in missing)
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds between updates: a log file is not a screen
    bar = tqdm(total=total, unit="training", disable=not missing, mininterval=interval, maxinterval=interval)
    pool = ThreadPoolExecutor(workers, thread_name_prefix=WORKER)
    futures: dict[tuple[str, str], Future] = {}
    for chunk in missing:  # each behind the one it needs, so that none waits for one that has no worker
        futures[chunk.key] = pool.submit(_compute, chunk, futures.get(chunk.needs and chunk.needs.key), store)
    unsaved = {futures[chunk.key]: chunk for chunk in missing}

    def save(future: Future) -> Chunk:
        record, computed = future.result()
        chunk = unsaved[future]
        store.save(*chunk.key, record, *computed)
        del unsaved[future]
        return chunk

    try:
        with bar:
            for future in as_completed(list(unsaved)):
                chunk = save(future)
                bar.set_description(f"{chunk.study} {chunk.name}", refresh=False)
                bar.update(chunk.trainings)
    except BaseException as reason:
        pool.shutdown(wait=False, cancel_futures=True)
        for future in list(unsaved):
            if future.done() and not future.cancelled() and not future.exception():
                with suppress(OSError):
                    save(future)
        kept = f"{len(missing) - len(unsaved)} of {len(missing)} chunks computed, all of them kept in {store.folder}"
        mended = isinstance(reason, (KeyboardInterrupt, OSError))  # by doing nothing, or by making room
        way_on = "; the same command, without --fresh, goes on from there" if mended else ""
        print(f"stopped with {kept}{way_on}", file=sys.stderr)
        raise
    pool.shutdown()


def _compute(chunk: Chunk, needed: Future | None, store: storage.Store) -> tuple[dict[str, Any], Computed]:
    """A chunk's record and results, once the one that it needs is there."""
    inputs = ()
    if chunk.needs:
        inputs = (needed.result()[1].tensors if needed else store.tensors(*chunk.needs.key),)
    started, clock = datetime.now(UTC), time.perf_counter()
    computed = chunk.compute(*inputs)
    return storage.run_record(chunk.identity, started, time.perf_counter() - clock), computed


# ---- the machine ----


def writable_folder(folder: Path) -> Path:
    """Make the folder; ValueError in one line where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise BadInput(f"--out: cannot write to {folder} ({error.strerror})") from None


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that a second start does not compile again."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

"""Jobs: what is to be computed, as a value; the store of their results; and the processes that compute them.

A job is a frozen dataclass that carries all that its numbers depend on. Its key is a hash of that, so a result is found
by what it is, and never compared afterwards. Jobs are computed in processes of one thread each, because XLA's results
depend on the size of its thread pool; the process that asks for them starts no backend.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import keys
import storage
from datar import Dataset, cache_folder

ATTEMPTS = 4  # of a job whose process dies
AHEAD = 2  # jobs handed to a process at once: it computes one while the other's results are stored

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something to compute from a data set and from what other jobs gave; subclasses add fields and `perform`.

    data: the SHA-256 of the data set it reads.
    """

    data: str

    @property
    def needs(self) -> tuple[Job, ...]:
        """The jobs whose arrays it starts from."""
        return ()

    @property
    def trainings(self) -> int:
        """How many trainings it stands for, for the progress bar."""
        return 0

    @property
    def kind(self) -> tuple:
        """Equal for jobs that run one compiled program: they are kept on one process."""
        return (type(self).__name__,)

    @property
    def title(self) -> str:
        """What the progress bar calls it."""
        return type(self).__name__.lower()

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Compute it; raises BadInput, in one line, for what cannot be computed."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Runs(Job):
    """A job that computes a block of runs: runs block * size and the size - 1 after it, each with its own seed."""

    seed: int = 0
    block: int = 0
    size: int = 5

    @property
    def runs(self) -> range:
        return range(self.block * self.size, (self.block + 1) * self.size)

    @property
    def trainings(self) -> int:
        return self.size


def job_fields(job: Job) -> dict[str, Any]:
    """All that the job's numbers depend on, as JSON; of jobs that it needs, their own. NoSource where code has none."""
    return keys.describe(job)


def job_key(job: Job) -> str | None:
    """64 hex digits that name the job's result; None where something in it has no source."""
    try:
        return keys.key_of(job_fields(job))
    except keys.NoSource:
        return None


def random_key(seed: int, *purpose: str | int) -> jax.Array:
    """The key of one random choice, from what it is for: no draw depends on which others were made.

    Python's own `hash` is salted anew in each process, so the purpose is folded in as a CRC-32.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(json.dumps(purpose).encode()))


# ---- the store ----


class Store:
    """The results of jobs, a file each, named by their keys. A damaged one is named, and computed again."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def has(self, job: Job) -> bool:
        """Whether the job's result is there, whole."""
        key = job_key(job)
        return key is not None and self.path(key).is_file() and self._intact(key) is not None

    def load(self, job: Job) -> tuple[Arrays, dict[str, Any]]:
        return storage.read_tensors(self.path(job_key(job)))

    def save(self, job: Job, arrays: Arrays, record: dict[str, Any]) -> None:
        storage.write_tensors(self.path(job_key(job)), arrays, record)

    def records(self) -> dict[str, dict[str, Any]]:
        """The record of every result, by key, as it stands in the file's head."""
        found = {path.stem: storage.read_record(path) for path in sorted(self.folder.glob("*.safetensors"))}
        return {key: record for key, record in found.items() if record}

    def _intact(self, key: str) -> dict[str, Any] | None:
        try:
            record = storage.read_tensors(self.path(key))[1]
            if record.get("key") == key:
                return record
            raise storage.Damaged(f"results: {self.path(key)} holds {record.get('key')}, not what its name says")
        except storage.Damaged as error:
            print(f"{error}; it is computed again where it is needed", file=sys.stderr)
            return None


# ---- the processes ----

BITS = {"PJRT_NPROC": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # one thread, whatever the machine
XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type="  # jaxlib 0.10.2 crashes now and then with YNNPACK's products


def one_thread() -> dict[str, str]:
    """Environment variables under which a process computes the project's bits, set before JAX's backend starts.

    A pool of one thread; compiled programs are kept in the user's cache folder unless the user names another.
    """
    given = os.environ.get("XLA_FLAGS", "")
    name = XLA_FLAGS.partition("=")[0]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    own = {variable: os.environ.get(variable, value) for variable, value in cache.items()}
    return BITS | own | {"XLA_FLAGS": given if name in given else f"{given} {XLA_FLAGS}".strip()}


_datasets: dict[str, Dataset] = {}  # of a process that computes, by their SHA-256


def _begin(datasets: dict[str, Dataset], flags: dict[str, Any], parent: int) -> None:
    """The first thing that a process does: keep the data, take over JAX's settings, and end when its parent does."""
    from loky import process_executor

    process_executor._USE_PSUTIL = False  # else it restarts a process that has compiled much, taking that for a leak
    _datasets.update(datasets)
    for name, value in flags.items():
        jax.config.update(name, value)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends its children

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _perform(job: Job, inputs: list[Arrays | Path]) -> tuple[Arrays, float]:
    """A job's arrays and the seconds they took, in a process that computes."""
    clock = time.perf_counter()
    read = [_read(each) if isinstance(each, Path) else each for each in inputs]
    arrays = job.perform(_datasets[job.data], *read)
    return {name: np.asarray(array) for name, array in arrays.items()}, time.perf_counter() - clock


@lru_cache(maxsize=8)
def _read(path: Path) -> Arrays:
    return storage.read_tensors(path)[0]


class Worker:
    """A process of one thread, started anew after its death, and the jobs that it was handed."""

    def __init__(self, datasets: dict[str, Dataset]):
        self.datasets = datasets
        self.handed: dict[Future, Job] = {}
        self.kinds: set[tuple] = set()
        self._start()

    def _start(self) -> None:
        from loky import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(
            1,
            env=one_thread(),
            initializer=_begin,
            initargs=(self.datasets, keys.jax_settings(), os.getpid()),
            timeout=3600,
        )

    def hand(self, job: Job, inputs: list[Arrays | Path]) -> None:
        self.handed[self.pool.submit(_perform, job, inputs)] = job

    def revive(self) -> list[Job]:
        """Start the process anew; returns the jobs it had, the one that it was computing first."""
        jobs = list(self.handed.values())
        self.end()
        self.handed.clear()
        self.kinds.clear()
        self._start()
        return jobs

    def end(self) -> None:
        self.pool.shutdown(wait=False, kill_workers=True)


class Finished(NamedTuple):
    """A job that is done: its arrays, and the record that is kept beside them."""

    job: Job
    arrays: Arrays
    record: dict[str, Any]


class Deadly(Exception):
    """Jobs whose process died time after time; all others are done."""


class Local:
    """This machine's processes: they are handed jobs, each once those that it needs are done.

    What a job needs is among the jobs, or in the store.
    """

    def __init__(self, jobs: Sequence[Job], datasets: dict[str, Dataset], store: Store, workers: int):
        self.store = store
        asked = set(jobs)
        self.waits_for = {job: {need for need in job.needs if need in asked} for job in asked}
        self.children: dict[Job, list[Job]] = {}
        self.ready: dict[tuple, deque[Job]] = {}
        self.kept: dict[Job, Arrays] = {}  # of jobs without a key: no file has them
        self.deaths: Counter[Job] = Counter()
        for job in dict.fromkeys(jobs):
            for need in self.waits_for[job]:
                self.children.setdefault(need, []).append(job)
            if not self.waits_for[job]:
                self._queue(job)
        self.workers = [Worker(datasets) for _ in range(min(workers, len(asked)))]

    def _queue(self, job: Job) -> None:
        self.ready.setdefault(job.kind, deque()).append(job)

    def compute(self) -> Iterator[Finished]:
        """The jobs' results as they come.

        Raises what a job raised, at once; Deadly at the end, where a job's process died ATTEMPTS times.
        """
        while True:
            for worker in sorted(self.workers, key=lambda worker: len(worker.handed)):
                self._hand_out(worker)
            futures = [future for worker in self.workers for future in worker.handed]
            if not futures:  # what is left needs a deadly job
                break
            wait(futures, return_when=FIRST_COMPLETED)
            for worker in self.workers:
                for done in self._collect(worker):
                    yield done
                    self._release(done.job)
        deadly = [job.title for job, deaths in self.deaths.items() if deaths >= ATTEMPTS]
        if deadly:
            names = ", ".join(deadly)
            raise Deadly(f"a process died {ATTEMPTS} times (out of memory?) at {names}; all others are done")

    def _hand_out(self, worker: Worker) -> None:
        while len(worker.handed) < AHEAD:
            kind = self._choose(worker)
            if kind is None:
                return
            job = self.ready[kind].popleft()
            worker.kinds.add(kind)
            inputs = [self.kept[need] if need in self.kept else self.store.path(job_key(need)) for need in job.needs]
            worker.hand(job, inputs)

    def _choose(self, worker: Worker) -> tuple | None:
        """A kind of which jobs are ready: one that this process has compiled, else one that none has, else the most."""
        ready = {kind: jobs for kind, jobs in self.ready.items() if jobs}
        if worker.handed and sum(map(len, ready.values())) <= len(self.workers):
            return None  # the last jobs go to those that are free
        own = [kind for kind in ready if kind in worker.kinds]
        others = {kind for other in self.workers for kind in other.kinds}
        new = [kind for kind in ready if kind not in others]
        if own or new:
            return (own or new)[0]
        return None if worker.handed else max(ready, key=lambda kind: len(ready[kind]), default=None)

    def _collect(self, worker: Worker) -> Iterator[Finished]:
        from loky.process_executor import BrokenProcessPool

        for future in [future for future in worker.handed if future.done()]:
            if isinstance(future.exception(), BrokenProcessPool):
                self._bury(worker)
                return
            job = worker.handed.pop(future)
            yield self._finished(job, future)

    def _finished(self, job: Job, future: Future) -> Finished:
        arrays, seconds = future.result()
        if job_key(job) is None:
            self.kept[job] = arrays
        return Finished(job, arrays, record(job, seconds))

    def _release(self, done: Job) -> None:
        """Queue the jobs that waited for this one alone."""
        for job in self.children.get(done, ()):
            self.waits_for[job].discard(done)
            if not self.waits_for[job]:
                self._queue(job)

    def _bury(self, worker: Worker) -> None:
        """Hand the jobs of a process that died to others; the one that it was computing at most ATTEMPTS times."""
        first, *others = worker.revive()
        self.deaths[first] += 1
        for job in [*others, *([first] if self.deaths[first] < ATTEMPTS else [])]:
            self.ready[job.kind].appendleft(job)

    def leftovers(self) -> Iterator[Finished]:
        """What is done and was not taken yet, when the work is given up."""
        for worker in self.workers:
            for future, job in worker.handed.items():
                if future.done() and not future.exception():
                    yield self._finished(job, future)

    def end(self) -> None:
        for worker in self.workers:
            worker.end()


def record(job: Job, seconds: float) -> dict[str, Any]:
    """What is kept of a job beside its arrays: its key and fields, and where they come from."""
    cost = {"trainings": job.trainings, "seconds": round(seconds, 3)}
    return {"key": job_key(job), "fields": recorded_fields(job), **cost, **storage.provenance()}


def recorded_fields(job: Job) -> dict[str, Any]:
    """What the job's key is a hash of; empty where it has none."""
    return {} if job_key(job) is None else keys.with_process(job_fields(job))


def with_needs(jobs: Iterable[Job], is_there: Callable[[Job], bool]) -> list[Job]:
    """Those of the jobs, and of all that they need, that are not there; each once, behind what it needs."""
    asked: dict[Job, bool] = {}  # whether it is missing
    found: list[Job] = []

    def add(job: Job) -> None:
        if job in asked:
            return
        asked[job] = not is_there(job)
        if asked[job]:
            for need in job.needs:
                add(need)
            found.append(job)

    for job in jobs:
        add(job)
    return found

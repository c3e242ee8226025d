"""Jobs: what is to be computed, as a value; the store of their results; and the processes that
compute them.

A job carries all that its numbers depend on. Its key is a hash of that, so a result is found by
what it is, and never compared afterwards. Jobs are computed in processes of one thread each,
because XLA's results depend on the size of its thread pool; the process that asks for them starts
no backend.
"""

from __future__ import annotations

import glob
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from loky import BrokenProcessPool, ProcessPoolExecutor, process_executor

from foundation.base import storage
from foundation.base.checks import BadInput, first_line
from foundation.base.places import cache_folder
from foundation.engine import keys

if TYPE_CHECKING:
    from datar import Dataset

ATTEMPTS = 4  # of a job whose process dies
AHEAD = 2  # jobs handed to a process at once: it computes one while the other's results are stored

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something to compute from a data set and from what other jobs gave; subclasses add fields and
    `perform`."""

    data: str  # the SHA-256 of the data set it reads

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
    """A job that computes a block of runs: runs block * size and the size - 1 after it, each with
    its own seed."""

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
    """All that the job's numbers depend on, as JSON; of jobs that it needs, their own. NoSource
    where code has none."""
    return keys.fields_of(job)


def job_key(job: Job) -> str | None:
    """64 hex digits that name the job's result; None where something in it has no source."""
    with suppress(keys.NoSource):
        return keys.key_of(job_fields(job))
    return None


def random_key(seed: int, *purpose: str | int) -> jax.Array:
    """The key of one random choice, from what it is for (its CRC-32: `hash` is salted): no draw
    depends on others."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(json.dumps(purpose).encode()))


# ---- the store ----


@dataclass(frozen=True)
class Store:
    """The results of jobs, a file each, named by their keys. A damaged one is named, and computed
    again."""

    folder: Path

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def has(self, job: Job) -> bool:
        """Whether the job's result is there, whole."""
        if (key := job_key(job)) is None or not self.path(key).is_file():
            return False
        try:
            theirs = storage.read_tensors(self.path(key))[1].get("key")
            if theirs != key:
                raise storage.Damaged(
                    f"results: {self.path(key)} holds {theirs}, not what its name says"
                )
        except storage.Damaged as error:
            print(f"{error}; it is computed again where it is needed", file=sys.stderr)
            return False
        return True

    def load(self, job: Job) -> tuple[Arrays, dict[str, Any]]:
        return storage.read_tensors(self.path(job_key(job)))

    def save(self, job: Job, arrays: Arrays, record: dict[str, Any]) -> None:
        storage.write_tensors(self.path(job_key(job)), arrays, record)

    def records(self) -> dict[str, dict[str, Any]]:
        """The record of every result, by key, as it stands in the file's head."""
        paths = sorted(self.folder.glob("*.safetensors"))
        return {path.stem: record for path in paths if (record := storage.read_record(path))}


# ---- the processes ----

# read when JAX's backend starts
BITS = {
    "PJRT_NPROC": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
# jaxlib 0.10.2 crashes now and then with YNNPACK's products
XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type="

_datasets: dict[str, Dataset] = {}  # of a process that computes, by their SHA-256
_read = lru_cache(maxsize=8)(storage.read_tensors)  # many jobs start from one teacher
# What the last pools had that ended: locks that a thread collects, as the process ends, would be
# warned of.
_ended: deque[dict] = deque(maxlen=64)


class Setting(NamedTuple):
    """What a process that computes is given before its first job."""

    datasets: dict[str, Dataset]  # by their SHA-256
    flags: dict[str, Any]  # of JAX
    environment: dict[str, str]

    @classmethod
    def own(cls, datasets: dict[str, Dataset]) -> Setting:
        """That of a process which computes as this one would, in one thread."""
        return cls(datasets, keys.jax_settings(), one_thread())


def one_thread() -> dict[str, str]:
    """The environment of a process of one thread; it keeps compiled programs, in a folder that the
    user may name."""
    given = os.environ.get("XLA_FLAGS", "")
    flags = given if XLA_FLAGS.partition("=")[0] in given else f"{given} {XLA_FLAGS}".strip()
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    kept = {name: os.environ.get(name, value) for name, value in cache.items()}
    shared = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    }
    return BITS | kept | shared | {"XLA_FLAGS": flags, "JAX_PLATFORMS": keys.backend()}


def _begin(setting: Setting, parent: int) -> None:
    """The first thing that a process does: keep the data, take over JAX's settings, and end when
    its parent does."""
    process_executor._USE_PSUTIL = (
        False  # else it restarts a process that has compiled much, taking that for a leak
    )
    _datasets.update(setting.datasets)
    for name, value in setting.flags.items():
        jax.config.update(name, value)
    # Ctrl-C goes to the parent, which ends its children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.showwarning = _mend_cache(warnings.showwarning)

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _mend_cache(show: Callable) -> Callable:
    """Remove compiled programs that cannot be read, cut off by a kill: JAX would leave them there
    for ever."""

    def said(message, *arguments, **keywords):
        found = re.match(
            r"Error reading persistent compilation cache entry for '([^']+)'", str(message)
        )
        if not found:
            return show(message, *arguments, **keywords)
        for path in Path(jax.config.jax_compilation_cache_dir).glob(f"{glob.escape(found[1])}-*"):
            path.unlink(missing_ok=True)

    return said


def device() -> str:
    """What this process computes on: cpu, or the name of an accelerator."""
    try:
        return jax.devices()[0].device_kind
    except RuntimeError as error:
        value, allowed = (
            jax.config.jax_platforms,
            f"a device that is there, such as cpu ({first_line(error)})",
        )
        raise BadInput(f"JAX_PLATFORMS: got {value}, allowed: {allowed}") from None


class Result(NamedTuple):
    """What a process gives back."""

    arrays: Arrays
    seconds: float
    machine: str  # processor or accelerator, system and versions of what computed it


def perform(job: Job, inputs: list[Arrays | Path]) -> Result:
    """Compute a job, in a process that does."""
    name = device()
    clock = time.perf_counter()
    read = [_read(each)[0] if isinstance(each, Path) else each for each in inputs]
    arrays = {
        name: np.asarray(array) for name, array in job.perform(_datasets[job.data], *read).items()
    }
    return Result(arrays, time.perf_counter() - clock, storage.machine(name))


class Worker:
    """A process of one thread, and the jobs that it was handed: it computes the first of them."""

    def __init__(self, setting: Setting):
        self.setting = setting
        begin = {"initializer": _begin, "initargs": (setting, os.getpid())}
        self.pool = ProcessPoolExecutor(1, env=setting.environment, timeout=3600, **begin)
        self.handed: dict[Future, Job] = {}
        self.kinds: set[tuple] = set()

    def submit(self, job: Job, inputs: list[Arrays | Path]) -> Future:
        """The Result of a job, of which `inputs` are arrays or files that hold them."""
        return self.pool.submit(perform, job, inputs)

    def end(self) -> None:
        _ended.append(vars(self.pool).copy())
        self.pool.shutdown(wait=False, kill_workers=True)


class Finished(NamedTuple):
    """A job that is done: its arrays, and the record that is kept beside them."""

    job: Job
    arrays: Arrays
    record: dict[str, Any]


class Deadly(Exception):
    """Jobs whose process died time after time; all others are done."""


class Executor:
    """Hands jobs to workers, each once those that it needs are done, or are in the store.
    Subclasses have workers."""

    patience: float | None = (
        None  # seconds between two looks at which workers there are; None: nobody joins them
    )
    # a job ends so whose process died
    lost: tuple[type[BaseException], ...] = (BrokenProcessPool, CancelledError)

    def __init__(self, jobs: Sequence[Job], store: Store):
        self.store = store
        asked = set(jobs)
        self.waiting = TopologicalSorter(
            {job: [need for need in job.needs if need in asked] for job in jobs}
        )
        self.waiting.prepare()
        self.ready: defaultdict[tuple, deque[Job]] = defaultdict(deque)  # by kind
        self.kept: dict[Job, Arrays] = {}  # of jobs without a key: no file has them
        self.deaths: Counter[Job] = Counter()
        self.workers: list[Worker] = []

    def look(self) -> None:
        """Take in workers that have come, and bury those that have gone."""

    def replace(self, worker: Worker) -> None:
        """Another one in place of a worker that was lost, where that can be had."""

    def compute(self) -> Iterator[Finished]:
        """The jobs' results as they come; raises what a job raised, at once, and Deadly when all
        others are done."""
        while True:
            self.look()
            for job in self.waiting.get_ready():
                self.ready[job.kind].append(job)
            for worker in sorted(self.workers, key=lambda worker: len(worker.handed)):
                self._hand_out(worker)
            computing = [next(iter(worker.handed)) for worker in self.workers if worker.handed]
            if computing:
                wait(computing, self.patience, return_when=FIRST_COMPLETED)
            elif self.patience and any(self.ready.values()):
                time.sleep(self.patience)
            else:  # what is left needs a deadly job
                break
            for worker in list(self.workers):
                for done in self._collect(worker):
                    yield done
                    self.waiting.done(done.job)
        deadly = ", ".join(job.title for job, deaths in self.deaths.items() if deaths >= ATTEMPTS)
        if deadly:
            raise Deadly(
                f"a process died {ATTEMPTS} times (out of memory?) at {deadly}; all others are done"
            )

    def _hand_out(self, worker: Worker) -> None:
        while len(worker.handed) < AHEAD and (kind := self._choose(worker)) is not None:
            job = self.ready[kind].popleft()
            worker.kinds.add(kind)
            inputs = [
                self.kept[need] if need in self.kept else self.store.path(job_key(need))
                for need in job.needs
            ]
            try:
                future = worker.submit(job, inputs)
            except self.lost as error:  # it died after it was handed the last one
                future = Future()
                future.set_exception(error)
            worker.handed[future] = job

    def _choose(self, worker: Worker) -> tuple | None:
        """A kind of which jobs are ready: one that this process has compiled, else one that none
        has, else the most."""
        ready = {kind: jobs for kind, jobs in self.ready.items() if jobs}
        if worker.handed and sum(map(len, ready.values())) <= len(self.workers):
            return None  # the last jobs go to those that are free
        taken = {kind for other in self.workers for kind in other.kinds}
        best = [kind for kind in ready if kind in worker.kinds] + [
            kind for kind in ready if kind not in taken
        ]
        if best or worker.handed:
            return best[0] if best else None
        return max(ready, key=lambda kind: len(ready[kind]), default=None)

    def _collect(self, worker: Worker) -> Iterator[Finished]:
        """What the process has done, in the order in which it was handed out; raises what a job
        raised."""
        while worker.handed and (first := next(iter(worker.handed))).done():
            if isinstance(_failure(first), self.lost):
                self.bury(worker)
                return
            yield self._finished(worker.handed.pop(first), first)

    def _finished(self, job: Job, future: Future) -> Finished:
        result = future.result()
        own = record(job, result.seconds, result.machine)
        if own["key"] is None:
            self.kept[job] = result.arrays
        return Finished(job, result.arrays, own)

    def bury(self, worker: Worker) -> None:
        """Hand the jobs of a process that died to others; the one that it was computing at most
        ATTEMPTS times."""
        worker.end()
        self.workers.remove(worker)
        self.replace(worker)
        jobs = list(worker.handed.values())
        self.deaths.update(jobs[:1])
        for job in reversed(jobs):
            if self.deaths[job] < ATTEMPTS:
                self.ready[job.kind].appendleft(job)

    def leftovers(self) -> Iterator[Finished]:
        """What is done and was not taken yet, when the work is given up."""
        for worker in self.workers:
            for future, job in worker.handed.items():
                if future.done() and not _failure(future):
                    yield self._finished(job, future)

    def end(self) -> None:
        for worker in self.workers:
            worker.end()


def _failure(future: Future) -> BaseException | None:
    return CancelledError() if future.cancelled() else future.exception()


class Local(Executor):
    """This machine's processes: one a core, or one an accelerator; workers: another number, 0 for
    that."""

    def __init__(
        self, jobs: Sequence[Job], datasets: dict[str, Dataset], store: Store, workers: int
    ):
        super().__init__(jobs, store)
        setting, devices = Setting.own(datasets), accelerators()
        for place in range(min(workers or len(devices) or storage.cores(), len(set(jobs)))):
            own = {"CUDA_VISIBLE_DEVICES": devices[place % len(devices)]} if devices else {}
            self.workers.append(Worker(setting._replace(environment=setting.environment | own)))

    def replace(self, worker: Worker) -> None:
        self.workers.append(Worker(worker.setting))


def accelerators() -> list[str]:
    """The GPUs that processes may use, by the names that CUDA_VISIBLE_DEVICES takes; none where
    jobs run on the CPU."""
    if keys.backend() == "cpu":
        return []
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    with suppress(OSError, subprocess.CalledProcessError):
        command = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return []


def record(job: Job, seconds: float, machine: str | None = None) -> dict[str, Any]:
    """What is kept of a job beside its arrays: its key and fields, and where they come from."""
    cost = {"trainings": job.trainings, "seconds": round(seconds, 3)}
    fields = recorded_fields(job)
    own = {"key": keys.key_of(fields) if fields else None, "fields": fields, **cost}
    return own | storage.provenance() | ({"machine": machine} if machine else {})


def recorded_fields(job: Job) -> dict[str, Any]:
    """What the job's key is a hash of; empty where it has none."""
    with suppress(keys.NoSource):
        return keys.with_process(job_fields(job))
    return {}


def with_needs(jobs: Iterable[Job], is_there: Callable[[Job], bool]) -> list[Job]:
    """Those of the jobs, and of all that they need, that are not there; each once, behind what it
    needs."""
    is_there = cache(is_there)
    found: dict[Job, None] = {}

    def add(job: Job) -> None:
        if job not in found and not is_there(job):
            for need in job.needs:
                add(need)
            found[job] = None

    for job in jobs:
        add(job)
    return list(found)

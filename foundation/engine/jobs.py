"""Describe computations as jobs, compute them in processes, and store their results.

A job is a value that carries all that its numbers depend on. Its key is a hash of these fields, so
a result is found by its key and never compared afterwards. Each process that computes has one
thread, because XLA's results depend on the size of its thread pool; the process that asks for jobs
starts no backend.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
from foundation.engine import keys, own_code
from foundation.engine.programs import Programs, private_folder, use_checked_programs
from foundation.engine.sources import NoSource

if TYPE_CHECKING:
    from datar import Dataset

ATTEMPTS = 4  # how often a job is tried whose process dies
AHEAD = 2  # jobs handed to a process at once: it computes one while another's results are stored

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A computation from a data set and from the arrays of other jobs.

    Subclasses add fields and `perform`.
    """

    data: str  # the SHA-256 of the data set that the job reads

    @property
    def needs(self) -> tuple[Job, ...]:
        """The jobs whose arrays this job starts from."""
        return ()

    @property
    def trainings(self) -> int:
        """The number of trainings that the progress bar counts for this job."""
        return 0

    @property
    def kind(self) -> tuple:
        """Equal for jobs that run one compiled program, so that one process computes them."""
        return (type(self).__name__,)

    @property
    def title(self) -> str:
        """The job's name on the progress bar."""
        return type(self).__name__.lower()

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Compute the job's arrays; BadInput, in one line, where that is impossible."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs(Job):
    """A job that computes one block of runs, each with its own seed.

    The block holds runs block * size to block * size + size - 1.
    """

    seed: int = 0
    block: int = 0
    size: int = 5

    @property
    def runs(self) -> range:
        """The numbers of the runs."""
        return range(self.block * self.size, (self.block + 1) * self.size)

    @property
    def trainings(self) -> int:
        """One for each run."""
        return self.size


def job_fields(job: Job) -> dict[str, Any]:
    """Describe all that the job's numbers depend on as JSON, including the jobs that it needs.

    Raises NoSource where code in it has no source.
    """
    return keys.fields_of(job)


def job_key(job: Job) -> str | None:
    """Return 64 hex digits that name the job's result; None where code in it has no source."""
    with suppress(NoSource):
        return keys.key_of(job_fields(job))
    return None


def random_key(seed: int, *purpose: str | int) -> jax.Array:
    """Return the key of one random choice, from its purpose, so that no draw depends on others.

    The purpose enters by its CRC-32, because Python salts `hash`.
    """
    checksum = zlib.crc32(json.dumps(purpose).encode())
    return jax.random.fold_in(jax.random.key(seed), checksum)


def keys_of_runs(seed: int, *purpose: str | int, runs: Iterable[int]) -> jax.Array:
    """Return the keys of one random choice in each run: (runs,)."""
    return jax.numpy.stack([random_key(seed, *purpose, run) for run in runs])


def values_of(job: Job, kind: type[Job] | None = None) -> dict[str, Any]:
    """Return a job's fields by name; kind: those alone that this base class of the job has."""
    names = [field.name for field in dataclasses.fields(kind or job)]
    return {name: getattr(job, name) for name in names}


# ---- the store ----


@dataclasses.dataclass(frozen=True)
class Store:
    """The results of jobs, one file each, named by the job's key.

    A damaged file is reported, and its job is computed again.
    """

    folder: Path

    def path(self, key: str) -> Path:
        """Return where the result of a job with this key lies."""
        return self.folder / f"{key}.safetensors"

    def has(self, job: Job) -> bool:
        """Whether the job's result is stored undamaged; a damaged file is named on stderr."""
        key = job_key(job)
        if key is None or not self.path(key).is_file():
            return False
        path = self.path(key)
        try:
            _, record = storage.read_tensors(path)
            stored_key = record.get("key")
            if stored_key != key:
                raise storage.Damaged(f"results: {path} holds {stored_key}, not what its name says")
        except storage.Damaged as error:
            print(f"{error}; it is computed again where it is needed", file=sys.stderr)
            return False
        return True

    def load(self, job: Job) -> tuple[Arrays, dict[str, Any]]:
        """Read a job's arrays and their record."""
        return storage.read_tensors(self.path(job_key(job)))

    def save(self, job: Job, arrays: Arrays, record: dict[str, Any]) -> None:
        """Write a job's arrays and their record."""
        storage.write_tensors(self.path(job_key(job)), arrays, record)

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the record of every result, by key, from the head of its file."""
        paths = sorted(self.folder.glob("*.safetensors"))
        records = {path.stem: storage.read_record(path) for path in paths}
        return {key: record for key, record in records.items() if record}


# ---- the processes ----

# environment variables that change bits; JAX's backend reads them as it starts
BITS = {
    "PJRT_NPROC": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
# jaxlib 0.10.2 crashes now and then with YNNPACK's products
XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type="

_datasets: dict[str, Dataset] = {}  # data sets of a process that computes, by their SHA-256
_read = lru_cache(maxsize=8)(storage.read_tensors)  # cached: many jobs start from one teacher
# The attributes of pools that have ended are kept: Python would warn of their locks if a thread
# collected them as the process ends.
_ended: deque[dict] = deque(maxlen=64)


class Setting(NamedTuple):
    """Data, flags and environment that a process gets before its first job."""

    datasets: dict[str, Dataset]  # by their SHA-256
    flags: dict[str, Any]  # of JAX
    environment: dict[str, str]
    # what the process that asks has put in place of the project's own code: (name, object)
    replaced: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def own(cls, datasets: dict[str, Dataset]) -> Setting:
        """Return the setting of a process that computes as this one would, in one thread."""
        replaced = tuple(own_code.replaced())
        return cls(datasets, keys.jax_settings(), one_thread(), replaced)


def one_thread() -> dict[str, str]:
    """Return the environment of a process of one thread that keeps compiled programs.

    Variables of the user's environment may name another folder for them.
    """
    given = os.environ.get("XLA_FLAGS", "")
    name_of_flag = XLA_FLAGS.partition("=")[0]
    flags = given if name_of_flag in given else f"{given} {XLA_FLAGS}".strip()
    cache = {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    given_folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = given_folder or private_folder(cache_folder() / "xla")
    if folder:
        cache["JAX_COMPILATION_CACHE_DIR"] = folder
    if kernel := storage.usual_kernel():
        cache["OPENBLAS_CORETYPE"] = kernel
    kept = {name: os.environ.get(name, value) for name, value in cache.items()}
    shared = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    }
    return BITS | kept | shared | {"XLA_FLAGS": flags, "JAX_PLATFORMS": keys.backend()}


def _begin(setting: Setting, parent: int) -> None:
    """Start a process that computes: keep the data, set JAX's flags, and end with the parent."""
    use_checked_programs()
    # else loky restarts a process that has compiled much, because it takes that for a leak
    process_executor._USE_PSUTIL = False
    _datasets.update(setting.datasets)
    for name, value in setting.flags.items():
        jax.config.update(name, value)
    for name, value in setting.replaced:
        own_code.replace(name, value)
    # Ctrl-C is for the parent, which ends its children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.showwarning = _mend_cache(warnings.showwarning)

    def end_with_parent():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _mend_cache(show: Callable) -> Callable:
    """Wrap `show`, which shows warnings: remove compiled programs that JAX warns it cannot read.

    Another version, or another processor, may have written them.
    """

    def mend_or_show(message, *arguments, **keywords):
        unreadable = re.match(
            r"Error reading persistent compilation cache entry for '([^']+)'", str(message)
        )
        if not unreadable:
            return show(message, *arguments, **keywords)
        Programs(Path(jax.config.jax_compilation_cache_dir)).remove(unreadable[1])

    return mend_or_show


def device() -> str:
    """Name the device that this process computes on: cpu, or an accelerator's name."""
    try:
        return jax.devices()[0].device_kind
    except RuntimeError as error:
        value = jax.config.jax_platforms
        allowed = f"a device that is there, such as cpu ({first_line(error)})"
        raise BadInput(f"JAX_PLATFORMS: got {value}, allowed: {allowed}") from None


def kind_of_machine() -> str:
    """Describe what of this process's machine changes bits: processor and BLAS, or accelerator."""
    name = device()
    if name != "cpu":
        return name
    features = " ".join(storage.features())
    digest = hashlib.sha256(features.encode()).hexdigest()
    return f"{storage.processor()}, features {digest[:8]}, BLAS kernel {storage.kernels()}"


class Result(NamedTuple):
    """A job's arrays, as the process that computed them returns them."""

    arrays: Arrays
    seconds: float
    machine: str  # as storage.machine describes it
    kernels: str = ""  # of BLAS


def perform(job: Job, inputs: list[Arrays | Path]) -> Result:
    """Compute a job; called in a process that computes.

    inputs: arrays of the jobs that it needs, or the files that hold them.
    """
    device_name = device()
    start = time.perf_counter()
    arrays_of_needs = [_loaded(item) for item in inputs]
    computed = job.perform(_datasets[job.data], *arrays_of_needs)
    arrays = {name: np.asarray(array) for name, array in computed.items()}
    seconds = time.perf_counter() - start
    return Result(arrays, seconds, storage.machine(device_name), storage.kernels())


def _loaded(item: Arrays | Path) -> Arrays:
    if not isinstance(item, Path):
        return item
    arrays, _ = _read(item)
    return arrays


class Worker:
    """A process of one thread, and the jobs handed to it, of which it computes the first."""

    def __init__(self, setting: Setting):
        self.setting = setting
        begin = {"initializer": _begin, "initargs": (setting, os.getpid())}
        self.pool = ProcessPoolExecutor(1, env=setting.environment, timeout=3600, **begin)
        self.handed: dict[Future, Job] = {}
        self.kinds: set[tuple] = set()

    def submit(self, job: Job, inputs: list[Arrays | Path]) -> Future:
        """Return the future Result of a job; inputs are arrays, or files that hold them."""
        return self.pool.submit(perform, job, inputs)

    def end(self) -> None:
        """End the process, whatever it computes."""
        _ended.append(vars(self.pool).copy())
        self.pool.shutdown(wait=False, kill_workers=True)


class Finished(NamedTuple):
    """A finished job with its arrays and the record that is kept beside them."""

    job: Job
    arrays: Arrays
    record: dict[str, Any]


class Deadly(Exception):
    """Raised for jobs whose process died ATTEMPTS times, once all other jobs are done."""


class Executor:
    """Hand each job to a worker once the jobs that it needs are done or stored.

    Subclasses provide the workers.
    """

    # seconds between two looks at which workers are there; None: no worker joins later
    patience: float | None = None
    # errors of a job whose process died
    lost: tuple[type[BaseException], ...] = (BrokenProcessPool, CancelledError)

    def __init__(self, jobs: Sequence[Job], store: Store):
        self.store = store
        asked = set(jobs)
        needs = {}
        for job in jobs:
            needs[job] = [need for need in job.needs if need in asked]
        self.waiting = TopologicalSorter(needs)
        self.waiting.prepare()
        self.ready: defaultdict[tuple, deque[Job]] = defaultdict(deque)  # by kind
        self.kept: dict[Job, Arrays] = {}  # arrays of jobs without a key, which no file holds
        self.deaths: Counter[Job] = Counter()
        self.workers: list[Worker] = []

    def look(self) -> None:
        """Take in workers that have joined, and bury workers that have gone."""

    def replace(self, worker: Worker) -> None:
        """Start a worker in place of a lost one, where that is possible."""

    def compute(self) -> Iterator[Finished]:
        """Yield the jobs' results as they finish.

        Raises a job's error at once, and Deadly when all jobs but the deadly ones are done.
        """
        while True:
            self.look()
            for job in self.waiting.get_ready():
                self.ready[job.kind].append(job)
            for worker in sorted(self.workers, key=lambda worker: len(worker.handed)):
                self._hand_out(worker)
            busy = [worker for worker in self.workers if worker.handed]
            computing = [next(iter(worker.handed)) for worker in busy]
            if computing:
                wait(computing, self.patience, return_when=FIRST_COMPLETED)
            elif self.patience and any(self.ready.values()):
                time.sleep(self.patience)
            else:  # no job is left, or all that are left need a deadly one
                break
            for worker in list(self.workers):
                for finished in self._collect(worker):
                    yield finished
                    self.waiting.done(finished.job)
        given_up = [job for job, deaths in self.deaths.items() if deaths >= ATTEMPTS]
        deadly = ", ".join(job.title for job in given_up)
        if deadly:
            raise Deadly(
                f"a process died {ATTEMPTS} times (out of memory?) at {deadly}; all others are done"
            )

    def _hand_out(self, worker: Worker) -> None:
        while len(worker.handed) < AHEAD:
            kind = self._choose(worker)
            if kind is None:
                return
            job = self.ready[kind].popleft()
            worker.kinds.add(kind)
            inputs = [self._input(need) for need in job.needs]
            try:
                future = worker.submit(job, inputs)
            except self.lost as error:  # the process died after it was handed its last job
                future = Future()
                future.set_exception(error)
            worker.handed[future] = job

    def _input(self, need: Job) -> Arrays | Path:
        if need in self.kept:
            return self.kept[need]
        return self.store.path(job_key(need))

    def _choose(self, worker: Worker) -> tuple | None:
        """Choose the kind of the worker's next job among the kinds of ready jobs, or None.

        First choice is a kind that the worker has compiled, second one that no worker has, last,
        for a free worker, the kind with the most jobs.
        """
        ready = {kind: jobs for kind, jobs in self.ready.items() if jobs}
        count = sum(map(len, ready.values()))
        if worker.handed and count <= len(self.workers):
            return None  # the last jobs go to free workers
        taken = {kind for other in self.workers for kind in other.kinds}
        compiled = [kind for kind in ready if kind in worker.kinds]
        untaken = [kind for kind in ready if kind not in taken]
        if compiled or untaken:
            return [*compiled, *untaken][0]
        if worker.handed:
            return None
        return max(ready, key=lambda kind: len(ready[kind]), default=None)

    def _collect(self, worker: Worker) -> Iterator[Finished]:
        """Yield the worker's finished jobs in the order of their handing out.

        Raises a job's error; buries the worker where its process died.
        """
        while worker.handed and (first := next(iter(worker.handed))).done():
            if isinstance(_failure(first), self.lost):
                self.bury(worker)
                return
            yield self._finished(worker.handed.pop(first), first)

    def _finished(self, job: Job, future: Future) -> Finished:
        result = future.result()
        record_of_job = record(job, result.seconds, result.machine)
        record_of_job["kernels"] = result.kernels
        if record_of_job["key"] is None:
            self.kept[job] = result.arrays
        return Finished(job, result.arrays, record_of_job)

    def bury(self, worker: Worker) -> None:
        """Return the jobs of a process that died to the ready ones, for other workers.

        The job that it was computing, the first, is tried at most ATTEMPTS times.
        """
        worker.end()
        self.workers.remove(worker)
        self.replace(worker)
        jobs = list(worker.handed.values())
        self.deaths.update(jobs[:1])
        for job in reversed(jobs):
            if self.deaths[job] < ATTEMPTS:
                self.ready[job.kind].appendleft(job)

    def leftovers(self) -> Iterator[Finished]:
        """Yield jobs that are done and were not collected when the work is given up."""
        for worker in self.workers:
            for future, job in worker.handed.items():
                if future.done() and not _failure(future):
                    yield self._finished(job, future)

    def end(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.end()


def _failure(future: Future) -> BaseException | None:
    return CancelledError() if future.cancelled() else future.exception()


class Local(Executor):
    """Processes of this machine.

    workers: their number; 0: one for each accelerator, or for each core where there is none.
    """

    def __init__(
        self, jobs: Sequence[Job], datasets: dict[str, Dataset], store: Store, workers: int
    ):
        super().__init__(jobs, store)
        setting = Setting.own(datasets)
        devices = accelerators()
        wanted = workers or len(devices) or storage.cores()
        for place in range(min(wanted, len(set(jobs)))):
            visible = {"CUDA_VISIBLE_DEVICES": devices[place % len(devices)]} if devices else {}
            environment = setting.environment | visible
            self.workers.append(Worker(setting._replace(environment=environment)))

    def replace(self, worker: Worker) -> None:
        """Start a process in place of one that died."""
        self.workers.append(Worker(worker.setting))


def accelerators() -> list[str]:
    """List the GPUs that processes may use, by their names in CUDA_VISIBLE_DEVICES.

    The list is empty where jobs run on the CPU.
    """
    if keys.backend() == "cpu":
        return []
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    with suppress(OSError, subprocess.CalledProcessError):
        command = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return []


def record(job: Job, seconds: float, machine: str | None = None) -> dict[str, Any]:
    """Return a job's key, fields, cost and provenance, to be kept beside its arrays.

    machine: the description of the machine that computed it; None: this machine.
    """
    cost = {"trainings": job.trainings, "seconds": round(seconds, 3)}
    fields = recorded_fields(job)
    key = keys.key_of(fields) if fields else None
    computed_on = {"machine": machine} if machine else {}
    return {"key": key, "fields": fields, **cost} | storage.provenance() | computed_on


def recorded_fields(job: Job) -> dict[str, Any]:
    """Return the fields that the job's key is a hash of; {} where code in it has no source."""
    with suppress(NoSource):
        return keys.with_process(job_fields(job))
    return {}


def with_needs(jobs: Iterable[Job], is_there: Callable[[Job], bool]) -> list[Job]:
    """List the missing jobs among the jobs and all that they need.

    Each stands once, after the jobs that it needs. is_there: whether a job's result is stored; the
    needs of a stored job are not looked at.
    """
    is_there = cache(is_there)
    missing: dict[Job, None] = {}

    def add(job: Job) -> None:
        if job not in missing and not is_there(job):
            for need in job.needs:
                add(need)
            missing[job] = None

    for job in jobs:
        add(job)
    return list(missing)

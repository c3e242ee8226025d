"""Compute jobs on a cluster with dask.distributed; each Dask worker starts one process for them.

Only the process that asks writes results. It sends the data once to each worker that fits (equal
code, equal versions, one kind of processor), and then the jobs one by one. The packages needed are
in requirements/cluster.txt.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle
import dask
from distributed import Client, KilledWorker, get_worker
from loky import BrokenProcessPool

from foundation.base import storage
from foundation.base.checks import BadInput, first_line, require
from foundation.base.places import ROOT
from foundation.engine import jobs

if TYPE_CHECKING:
    from datar import Dataset

QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}  # in dask_jobqueue
PATIENCE = 10.0  # seconds after which a scheduler that does not answer is given up


class NotBegun(Exception):
    """A worker got a job of a run unknown to it: it was restarted under its old address."""


class Code(NamedTuple):
    """The project's code and packages; results of different ones may differ."""

    commit: str
    digest: str
    versions: str

    @classmethod
    def own(cls) -> Code:
        """Return the code that runs here."""
        return cls(storage.git_commit(), storage.code_digest(), storage.versions())

    def differs(self, other: Code) -> str:
        """Say in what this code differs from another, "" where it does not."""
        if self.digest != other.digest:
            return (
                f"its code is of commit {self.commit[:12]}, allowed: {other.commit[:12]}, with the "
                "same changes"
            )
        packages_here = set(self.versions.split(", "))
        different = packages_here.difference(other.versions.split(", "))
        if different:
            return f"it has {', '.join(sorted(different))}, allowed: {other.versions}"
        return ""


class Place(NamedTuple):
    """The code and the processor of a worker."""

    code: Code
    processor: str  # as jobs.kind_of_machine describes it


# ---- the process that asks ----


class Cluster(jobs.Executor):
    """The workers of a Dask scheduler; they may come and go while jobs are computed."""

    patience = 0.5
    lost = (*jobs.Executor.lost, KilledWorker, NotBegun)

    def __init__(
        self,
        asked: Sequence[jobs.Job],
        datasets: dict[str, Dataset],
        store: jobs.Store,
        where: str,
        workers: int,
    ):
        super().__init__(asked, store)
        self.run = f"unlearning-{uuid.uuid4().hex[:8]}"  # a shared scheduler has several runs
        self.code = Code.own()
        self.setting = cloudpickle.dumps(jobs.Setting.own(datasets))
        folders = [str(ROOT), *filter(None, sys.path)]
        self.errand = errand(folders)
        # by address, Dask's future of `begin`; its release ends the worker's process
        self.met: dict[str, Any] = {}
        self.refused: dict[str, str] = {}  # by address, the reason
        # the processor of the first worker that fits: a run has one kind
        self.processor: str | None = None
        self.looked = self.alone_since = time.monotonic()
        self.client, self.queue = connect(where, workers)

    def look(self) -> None:
        """Take in workers that have joined and fit, and bury those that have gone."""
        next_look = self.looked + self.patience
        if self.workers and time.monotonic() < next_look:
            return
        present = self._present()
        self.looked = time.monotonic()
        for address in self.met.keys() - present.keys():
            del self.met[address]
            self.refused.pop(address, None)
        gone = [worker for worker in self.workers if worker.address not in present]
        for worker in gone:
            self.bury(worker)
        for address, threads in present.items():
            if address not in self.met:
                self.met[address] = self._begin(address, threads)
        taken_in = {worker.address for worker in self.workers}
        known = taken_in | self.refused.keys()
        answered = [
            address
            for address, future in self.met.items()
            if address not in known and future.done()
        ]
        for address in answered:
            self._take_in(address)
        all_are_refused = len(self.refused) == len(self.met)
        if self.refused and all_are_refused and not self.workers:
            reason = next(iter(self.refused.values()))
            raise BadInput(f"--cluster: {reason}; no other worker is there")
        self._say_that_it_waits()

    def replace(self, worker: Remote) -> None:
        """Use a Dask worker again whose process died: it is alive and starts another process."""
        if worker.address in self.met:
            self.workers.append(Remote(self, worker.address))

    def end(self) -> None:
        """Leave the scheduler, and end the queue's jobs."""
        with suppress(Exception):  # the scheduler may be gone
            super().end()
        with suppress(Exception):
            self.client.close(timeout=5)
        if self.queue:
            self.queue.close()

    def _present(self) -> dict[str, int]:
        """Return the number of threads of each of the scheduler's workers, by address."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return dict(self.client.nthreads(callback_timeout=PATIENCE))
            # Dask raises one of these without a connection
            except (OSError, TimeoutError, AttributeError) as error:
                if time.monotonic() > until:
                    reason = first_line(error) or type(error).__name__
                    raise ConnectionError(
                        f"--cluster: the scheduler does not answer any more ({reason})"
                    ) from None
                time.sleep(0.2)

    def _begin(self, address: str, threads: int) -> Any:
        options = {"workers": [address], "allow_other_workers": False, "pure": False}
        arguments = (self.run, tuple(self.code), threads, self.setting)
        return self.client.submit(self.errand, "begin", *arguments, **options)

    def _take_in(self, address: str) -> None:
        try:
            place = self.met[address].result(timeout=PATIENCE)
            reason = self._misfit(place)
        except ImportError as error:
            reason = (
                f"it cannot import the project ({first_line(error)}); start it in a copy of the "
                "project"
            )
        except BadInput as error:
            reason = str(error)
        except (*self.lost, TimeoutError):  # the worker has gone again
            return
        if reason:
            self.refused[address] = f"worker {address}: {reason}"
            print(f"refused {self.refused[address]}", file=sys.stderr)
        else:
            self.workers.append(Remote(self, address))

    def _misfit(self, place: Place) -> str:
        """Say why a worker does not fit, "" where it fits; the first to fit sets the processor."""
        difference = place.code.differs(self.code)
        if difference:
            return difference
        self.processor = self.processor or place.processor
        if place.processor != self.processor:
            return f"it is {place.processor}, allowed: {self.processor}"
        return ""

    def _say_that_it_waits(self) -> None:
        """Print one line each time that no worker has been there for 3 seconds."""
        now = time.monotonic()
        if self.workers:
            self.alone_since = now
        elif self.alone_since + 3 < now:
            print("waiting for workers to join the scheduler", file=sys.stderr)
            self.alone_since = float("inf")


class Remote(jobs.Worker):
    """The process of one Dask worker."""

    def __init__(self, cluster: Cluster, address: str):
        self.address = address
        self.run = cluster.run
        self.errand = cluster.errand
        self.pool = cluster.client.get_executor(
            workers=[address], allow_other_workers=False, pure=False
        )
        self.handed = {}
        self.kinds = set()

    def submit(self, job: jobs.Job, inputs: list[jobs.Arrays | Path]) -> Future:
        """Return the future Result of a job that the worker's process computes."""
        arrays = [_loaded(item) for item in inputs]
        content = cloudpickle.dumps((job, arrays))
        return self.pool.submit(self.errand, "perform", self.run, content)

    def end(self) -> None:
        """Hand out nothing more to the worker."""
        self.pool.shutdown(wait=False)


def _loaded(item: jobs.Arrays | Path) -> jobs.Arrays:
    if not isinstance(item, Path):
        return item
    arrays, _ = storage.read_tensors(item)
    return arrays


def connect(where: str, workers: int) -> tuple[Client, Any]:
    """Return a client of the scheduler, and the queue that was asked for workers, or None.

    where: a key of QUEUES, or the scheduler's address or file. Raises BadInput where it leads to
    no scheduler.
    """
    # quiet, because this module reports what matters in one line
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})
    allowed = (
        "the address of a Dask scheduler (tcp://host:8786), its scheduler file, or "
        f"{', '.join(QUEUES)}"
    )
    if where in QUEUES:
        positive = f"1 or more with --cluster {where}: processes to ask it for"
        require(workers > 0, "--workers", workers, positive)
        queue = _queue(where)
        queue.scale(workers)
        return Client(queue, set_as_default=False), queue
    is_file = Path(where).is_file()
    is_address = re.match(r"\w+://", where) is not None
    require(is_file or is_address, "--cluster", where, allowed)
    scheduler = {"scheduler_file": where} if is_file else {"address": where}
    try:
        return Client(**scheduler, timeout=PATIENCE, set_as_default=False), None
    # no scheduler there, no JSON in the file, TLS without certificates
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            f"--cluster: got {where} ({first_line(error)}), allowed: {allowed}"
        ) from None


def _queue(where: str) -> Any:
    """Start the cluster of a batch system as the user's settings of dask_jobqueue describe it.

    In place of missing settings stand one core, one worker a core, 4 GB a core, and this Python.
    """
    handler = signal.getsignal(signal.SIGINT)
    import dask_jobqueue  # takes over Ctrl-C, which is given back

    signal.signal(signal.SIGINT, handler)
    settings = dask.config.get(f"jobqueue.{where}", {}) or {}
    cores = settings.get("cores") or 1
    defaults = {
        "cores": cores,
        "processes": cores,
        "memory": f"{4 * cores}GB",
        "python": sys.executable,
    }
    given = [key for key in defaults if settings.get(key)]
    missing = {key: value for key, value in defaults.items() if key not in given}
    cluster_class = getattr(dask_jobqueue, QUEUES[where])
    return cluster_class(**missing)


def errand(folders: list[str]) -> Callable:
    """Return run(name, *arguments), which calls the function of that name in this module.

    Dask pickles `run` by value, so that a worker needs no import to unpickle it; on the worker,
    `run` finds the project in `folders`.
    """

    def run(name: str, *arguments: Any) -> Any:
        import sys
        from pathlib import Path

        unknown = [folder for folder in folders if folder not in sys.path]
        sys.path += [folder for folder in unknown if Path(folder).is_dir()]
        from foundation.engine import cluster

        return getattr(cluster, name)(*arguments)

    return run


# ---- a worker ----

_processes: dict[str, jobs.Worker] = {}  # the process of each run, by the run's name


def begin(run: str, code: tuple[str, str, str], threads: int, setting: bytes) -> Place:
    """Start the process that computes the run's jobs; it lives while the asker keeps this result.

    A worker whose code differs from `code` starts no process; the Place that it returns tells why.
    Raises BadInput where the worker has several threads.
    """
    code_here = Code.own()
    if code_here.differs(Code(*code)):
        return Place(code_here, storage.processor())
    allowed = "1: start as many workers as there are cores (--nworkers)"
    require(threads == 1, "--nthreads", threads, allowed)
    # Dask's nanny makes the worker a daemon, and a daemon may have no children
    multiprocessing.current_process()._config["daemon"] = False
    _processes[run] = jobs.Worker(_for_this_machine(pickle.loads(setting)))
    worker = get_worker()
    arguments = (run, worker, worker.get_current_task())
    threading.Thread(target=_end_with, args=arguments, daemon=True).start()
    kind = _processes[run].pool.submit(jobs.kind_of_machine).result()
    return Place(code_here, kind)


def _for_this_machine(setting: jobs.Setting) -> jobs.Setting:
    """Leave OpenBLAS its own kernel where the asker's would not run on this processor."""
    kernel = setting.environment.get("OPENBLAS_CORETYPE")
    environment = dict(setting.environment)
    if kernel == storage.KERNEL and storage.usual_kernel() != kernel:
        del environment["OPENBLAS_CORETYPE"]
    return setting._replace(environment=environment)


def _end_with(run: str, worker: Any, task: str) -> None:
    """End the run's process once Dask has forgotten the task, because the asker ended or died."""
    while task in worker.state.tasks:
        time.sleep(0.5)
    _processes.pop(run).end()


def perform(run: str, content: bytes) -> jobs.Result:
    """Compute a job in the run's process; content: the job and its inputs, pickled."""
    if run not in _processes:
        raise NotBegun(run)
    process = _processes[run]
    try:
        return process.pool.submit(_perform, content).result()
    except BrokenProcessPool:
        process.end()
        if _processes.get(run) is process:
            _processes[run] = jobs.Worker(process.setting)
        raise


def _perform(content: bytes) -> jobs.Result:
    try:
        job, inputs = pickle.loads(content)
    except (ImportError, AttributeError) as error:
        allowed = "code that workers can import, or code of the script or notebook itself"
        raise BadInput(
            f"--cluster: got a job that a worker cannot read ({first_line(error)}), allowed: "
            f"{allowed}"
        ) from None
    return jobs.perform(job, inputs)

"""Jobs on a cluster, by dask.distributed: each Dask worker computes in a process of its own, as on
this machine.

The process that asks is the only one that writes. It sends the data once to each worker that fits
(same code, same versions, one kind of processor), and jobs one by one. What it needs beside the
rest: requirements/cluster.txt.
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

QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}  # of dask_jobqueue
PATIENCE = 10.0  # seconds without an answer after which a scheduler is given up


class NotBegun(Exception):
    """A worker was handed a job and knows nothing of its run: it was started anew under its old
    address."""


class Code(NamedTuple):
    """What computes; results of two of them may differ."""

    commit: str
    digest: str
    versions: str

    @classmethod
    def own(cls) -> Code:
        return cls(storage.git_commit(), storage.code_digest(), storage.versions())

    def differs(self, other: Code) -> str:
        """In words, "" where nothing does."""
        if self.digest != other.digest:
            return (
                f"its code is of commit {self.commit[:12]}, allowed: {other.commit[:12]}, with the "
                "same changes"
            )
        theirs = ", ".join(sorted(set(self.versions.split(", ")) - set(other.versions.split(", "))))
        return f"it has {theirs}, allowed: {other.versions}" if theirs else ""


class Place(NamedTuple):
    """Where a worker computes."""

    code: Code
    processor: str  # or the accelerator


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
        self.run = f"unlearning-{uuid.uuid4().hex[:8]}"  # a shared scheduler sees several
        self.code, self.setting = Code.own(), cloudpickle.dumps(jobs.Setting.own(datasets))
        self.errand = errand([str(ROOT), *filter(None, sys.path)])
        # by address, Dask's future of `begin`; released, it ends the worker's process
        self.met: dict[str, Any] = {}
        self.refused: dict[str, str] = {}  # by address, why
        self.processor: str | None = None  # of the first worker that fits: a run has one kind
        self.looked = self.alone_since = time.monotonic()
        self.client, self.queue = connect(where, workers)

    def look(self) -> None:
        if self.workers and time.monotonic() < self.looked + self.patience:
            return
        present, self.looked = self._present(), time.monotonic()
        for address in self.met.keys() - present.keys():
            del self.met[address]
            self.refused.pop(address, None)
        for worker in [each for each in self.workers if each.address not in present]:
            self.bury(worker)
        for address, threads in present.items():
            self.met[address] = self.met.get(address) or self._begin(address, threads)
        known = {worker.address for worker in self.workers} | self.refused.keys()
        for address in [
            each for each, future in self.met.items() if each not in known and future.done()
        ]:
            self._take_in(address)
        if self.refused and not self.workers and len(self.refused) == len(self.met):
            raise BadInput(
                f"--cluster: {next(iter(self.refused.values()))}; no other worker is there"
            )
        self._say_that_it_waits()

    def replace(self, worker: Remote) -> None:
        """A Dask worker whose process died lives on, and begins another one by itself."""
        if worker.address in self.met:
            self.workers.append(Remote(self, worker.address))

    def end(self) -> None:
        with suppress(Exception):  # of a scheduler that is gone
            super().end()
        with suppress(Exception):
            self.client.close(timeout=5)
        if self.queue:
            self.queue.close()

    def _present(self) -> dict[str, int]:
        """The addresses of the scheduler's workers, and their threads."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return dict(self.client.nthreads(callback_timeout=PATIENCE))
            # Dask's own words for no connection
            except (OSError, TimeoutError, AttributeError) as error:
                if time.monotonic() > until:
                    reason = first_line(error) or type(error).__name__
                    raise ConnectionError(
                        f"--cluster: the scheduler does not answer any more ({reason})"
                    ) from None
                time.sleep(0.2)

    def _begin(self, address: str, threads: int) -> Any:
        only = {"workers": [address], "allow_other_workers": False, "pure": False}
        return self.client.submit(
            self.errand, "begin", self.run, tuple(self.code), threads, self.setting, **only
        )

    def _take_in(self, address: str) -> None:
        try:
            place = self.met[address].result(timeout=PATIENCE)
            self.processor = self.processor or (
                None if place.code.differs(self.code) else place.processor
            )
            other = (
                ""
                if place.processor == self.processor
                else f"it is {place.processor}, allowed: {self.processor}"
            )
            reason = place.code.differs(self.code) or other
        except ImportError as error:
            reason = (
                f"it cannot import the project ({first_line(error)}); start it in a copy of the "
                "project"
            )
        except BadInput as error:
            reason = str(error)
        except (*self.lost, TimeoutError):  # it has gone again
            return
        if reason:
            self.refused[address] = f"worker {address}: {reason}"
            print(f"refused {self.refused[address]}", file=sys.stderr)
        else:
            self.workers.append(Remote(self, address))

    def _say_that_it_waits(self) -> None:
        """One line, once each time that no worker has been there for a while."""
        now = time.monotonic()
        if self.workers:
            self.alone_since = now
        elif self.alone_since + 3 < now:
            print("waiting for workers to join the scheduler", file=sys.stderr)
            self.alone_since = float("inf")


class Remote(jobs.Worker):
    """The process of one Dask worker."""

    def __init__(self, cluster: Cluster, address: str):
        self.address, self.run, self.errand = address, cluster.run, cluster.errand
        self.pool = cluster.client.get_executor(
            workers=[address], allow_other_workers=False, pure=False
        )
        self.handed, self.kinds = {}, set()

    def submit(self, job: jobs.Job, inputs: list[jobs.Arrays | Path]) -> Future:
        arrays = [
            storage.read_tensors(each)[0] if isinstance(each, Path) else each for each in inputs
        ]
        return self.pool.submit(self.errand, "perform", self.run, cloudpickle.dumps((job, arrays)))

    def end(self) -> None:
        self.pool.shutdown(wait=False)


def connect(where: str, workers: int) -> tuple[Client, Any]:
    """A client of the scheduler, and the queue of a cluster that was asked for workers, or None."""
    # what matters is said in one line, by us
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})
    allowed = (
        "the address of a Dask scheduler (tcp://host:8786), its scheduler file, or "
        f"{', '.join(QUEUES)}"
    )
    if where in QUEUES:
        require(
            workers > 0,
            "--workers",
            workers,
            f"1 or more with --cluster {where}: processes to ask it for",
        )
        queue = _queue(where)
        queue.scale(workers)
        return Client(queue, set_as_default=False), queue
    is_file = Path(where).is_file()
    require(is_file or re.match(r"\w+://", where) is not None, "--cluster", where, allowed)
    try:
        return Client(
            **({"scheduler_file": where} if is_file else {"address": where}),
            timeout=PATIENCE,
            set_as_default=False,
        ), None
    # nobody there, no JSON, TLS without certificates
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            f"--cluster: got {where} ({first_line(error)}), allowed: {allowed}"
        ) from None


def _queue(where: str) -> Any:
    """The cluster of this kind as the user's dask_jobqueue settings describe it, one worker a
    core."""
    before = signal.getsignal(signal.SIGINT)
    import dask_jobqueue  # takes over Ctrl-C

    signal.signal(signal.SIGINT, before)
    own = dask.config.get(f"jobqueue.{where}", {}) or {}
    cores = own.get("cores") or 1
    defaults = {
        "cores": cores,
        "processes": cores,
        "memory": f"{4 * cores}GB",
        "python": sys.executable,
    }
    return getattr(dask_jobqueue, QUEUES[where])(
        **{key: value for key, value in defaults.items() if not own.get(key)}
    )


def errand(folders: list[str]) -> Callable:
    """A function that calls one of this module on a worker; it travels as code, and finds the
    project in `folders`."""

    def run(name: str, *arguments: Any) -> Any:
        import sys
        from pathlib import Path

        sys.path += [
            folder for folder in folders if folder not in sys.path and Path(folder).is_dir()
        ]
        from foundation.engine import cluster

        return getattr(cluster, name)(*arguments)

    return run


# ---- a worker ----

_processes: dict[str, jobs.Worker] = {}  # by run


def begin(run: str, code: tuple[str, str, str], threads: int, setting: bytes) -> Place:
    """Start the process that computes the run's jobs, for as long as the one who asked keeps this
    result.

    What computes with other code begins nothing, and says so by what it returns.
    """
    own = Code.own()
    if own.differs(Code(*code)):
        return Place(own, storage.processor())
    require(
        threads == 1,
        "--nthreads",
        threads,
        "1: start as many workers as there are cores (--nworkers)",
    )
    multiprocessing.current_process()._config["daemon"] = (
        False  # Dask's nanny sets it: such may have no children
    )
    _processes[run] = jobs.Worker(pickle.loads(setting))
    worker = get_worker()
    threading.Thread(
        target=_end_with, args=(run, worker, worker.get_current_task()), daemon=True
    ).start()
    device = _processes[run].pool.submit(jobs.device).result()
    return Place(own, storage.processor() if device == "cpu" else device)


def _end_with(run: str, worker: Any, task: str) -> None:
    """End the run's process when Dask has forgotten the task: the one who asked has ended, or was
    killed."""
    while task in worker.state.tasks:
        time.sleep(0.5)
    _processes.pop(run).end()


def perform(run: str, content: bytes) -> jobs.Result:
    """The result of a pickled job and its inputs, computed in the run's process."""
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

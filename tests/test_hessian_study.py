"""The landscape script as a user meets it, and what its numbers are made of."""

import json
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import changed

from datar import Split
from foundation.base import storage
from foundation.measures.metrics import accuracy
from foundation.report import drawing
from landscape import dead_relus, hessian, hessian_trace
from models import MLP, QNN
from run_hessian import CORRECTED, PAPER, QUICK, main
from studies.hessian import _train_runs, draw, hessian_spectra, hessian_traces, loss_slices
from studies.hessian import plan as landscapes

pytestmark = pytest.mark.usefixtures("in_this_process")

TINY = (  # noqa: SIM905 - as one types them
    "--preset quick --runs 2 --hidden 3 --depth 1 --landscape.held-out 20 --landscape.loss-samples "
    "10 --training.epochs 2 --landscape.extremes 2 --landscape.lanczos-steps 20 "
    "--landscape.slice-points 3 --models mlp qnn logistic"
).split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The script, in this process."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*words):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(cache))
            patch.setattr(sys, "argv", ["run_hessian.py", *map(str, words)])
            return main()

    return run


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("landscape")
    assert run(*TINY, "--out", out) == 0
    return out


def folder_of(out):
    (folder,) = (out / "hessian").iterdir()
    return folder


def results(out):
    return storage.read_dataset(folder_of(out) / "landscape.nc")


def jobs_of(config, dataset, model, alpha):
    """The job of a model and a share of flipped labels, of the first block."""
    rows = landscapes(replace(config, models=(model,), alphas=(alpha,)), dataset)
    return next(iter(rows)).job


def test_the_file_is_complete_and_labelled(finished):
    study = results(finished)
    assert set(study.model.values) == {"MLP[3]", "QNN[depth=1,xy,cnot]", "Logistic"}
    assert study.trace.dims == ("model", "alpha_percent", "run") and study.sizes["run"] == 2
    assert (
        study.trace.notnull().all()
        and np.all(study.trace_error == 0)
        and study.accuracy.notnull().all()
    )
    assert study.slice_loss.dims == ("model", "alpha_percent", "direction", "first", "second")
    assert study.slice_loss.notnull().all() and list(study.direction.values) == [
        "eigenvectors",
        "random",
    ]
    networks = study.sel(model=["MLP[3]", "Logistic"])
    assert (
        networks.trace_complex.isnull().all()
        and study.trace_complex.sel(model="QNN[depth=1,xy,cnot]").notnull().all()
    )
    assert networks.extreme.notnull().any(["alpha_percent", "run", "place"]).all()
    assert json.loads(study.attrs["config"])["landscape"]["held_out"] == 20
    words = study.sel(model=["MLP[3]", "QNN[depth=1,xy,cnot]", "Logistic"])
    assert words.family.values.tolist() == ["MLP", "QNN", "Logistic"]
    assert words["size"].values.tolist() == [1024 * 3 + 3 + 3 + 1, 10 * 2, 1025]
    assert (study.slice_run == 0).all()
    for name in ("hessian_traces", "hessian_spectra", "loss_slices"):
        assert (folder_of(finished) / f"{name}.png").stat().st_size > 10_000


def test_eigenvalues_add_up_to_the_trace_and_hold_the_extremes(finished):
    study = results(finished)
    np.testing.assert_allclose(study.eigenvalues.sum("rank"), study.trace, rtol=1e-3, atol=1e-5)
    spectra = study.eigenvalues.dropna("rank", how="all")
    assert np.all(
        np.diff(
            spectra.sel(model="QNN[depth=1,xy,cnot]").dropna("rank").transpose("rank", ...), axis=0
        )
        <= 0
    )
    for model in ("MLP[3]", "Logistic"):
        own = study.sel(model=model)
        # to the nearest exact one that is not 0
        distance = np.abs(own.eigenvalues - own.extreme).min("rank")
        found = own.extreme.notnull().values
        assert np.all(
            (np.minimum(distance, np.abs(own.extreme)) <= own.extreme_error + 1e-6).values[found]
        )


def test_a_stored_number_is_that_of_the_model_trained_on_the_stored_draw(finished, mnist):
    """Run 1 of the poisoned MLP, put together from the parts."""
    training = replace(QUICK.training, epochs=2)
    config = changed(
        QUICK, hidden="3", landscape={"held_out": 20, "loss_samples": 10}, training=training
    )
    job = jobs_of(config, mnist, "mlp", 40)
    model, draws = MLP(1024, (3,)), [draw(job, mnist, run) for run in job.runs]
    assert job.model == model and len(draws) == 3
    keys = jax.numpy.stack([job.key(run) for run in job.runs])
    splits = jax.tree.map(lambda *leaves: np.stack(leaves), *(each.train for each in draws))
    params = jax.tree.map(lambda leaf: leaf[1], _train_runs(model, training, splits, keys))
    stored = results(finished).sel(model="MLP[3]", alpha_percent=40, run=1)
    assert float(stored.trace) == pytest.approx(
        float(hessian_trace(model, params, draws[1].loss)[0]), rel=1e-4
    )
    held_out = float(accuracy(model.logits(params, draws[1].held_out.x), draws[1].held_out.y))
    assert float(stored.accuracy.sel(split="held_out")) == pytest.approx(held_out, abs=1e-6)
    centre = stored.slice_loss.isel(first=1, second=1)
    assert np.ptp(centre.values) == 0  # both planes go through the trained parameters of one run


def test_a_draw_is_a_stratified_split_with_flips_of_any_class(mnist):
    jobs = {alpha: jobs_of(PAPER, mnist, "mlp", alpha) for alpha in (0, 20, 40)}
    clean, poisoned = (draw(jobs[alpha], mnist, 0) for alpha in (0, 40))
    for part in (clean, poisoned):
        assert len(part.train.y) == 350 and len(part.held_out.y) == 150 and len(part.loss.y) == 100
        assert part.held_out.y.sum() == 75
    # the split does not depend on the poison
    np.testing.assert_array_equal(clean.train.x, poisoned.train.x)
    np.testing.assert_array_equal(clean.loss.x, poisoned.loss.x)
    assert np.sum(clean.train.y != poisoned.train.y) == 140 and clean.train.y.sum() == 175
    rows = {row.tobytes() for row in clean.held_out.x}
    assert (
        not rows & {row.tobytes() for row in clean.train.x}
        and {row.tobytes() for row in clean.loss.x} <= rows
    )
    assert np.any(draw(jobs[0], mnist, 1).held_out.x != clean.held_out.x)
    flipped = []
    for run in range(6):
        before, after = (draw(jobs[alpha], mnist, run).train.y for alpha in (0, 20))
        flipped.append(np.sum((after != before) & (before == 1)))
    assert set(flipped) != {35}  # not balanced by class


def test_a_draw_is_the_same_for_every_model_and_in_every_block(mnist):
    config = replace(PAPER, runs=10)
    for name in ("qnn", "logistic"):
        one, other = (draw(jobs_of(config, mnist, model, 40), mnist, 7) for model in ("mlp", name))
        for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(left, right)
    rows = list(landscapes(replace(config, models=("mlp",), alphas=(40,)), mnist))
    assert [row.job.block for row in rows] == [0, 1] and [
        row.job.slices is None for row in rows
    ] == [False, True]


def test_a_dead_network_is_counted_and_drawn(finished):
    study = results(finished).copy(deep=True)
    study["dead"].loc[{"model": "MLP[3]", "alpha_percent": 40, "run": 0}] = 1
    figure = hessian_traces(study)
    assert "Hollow: 1 run whose network died" in figure.get_supxlabel().replace("\n", " ")
    drawing.plt.close(figure)


def test_dead_relus_are_counted():
    model = MLP(4, (3, 2))
    params = [
        (np.ones((3, 4)), np.array([0.0, 0.0, -100.0])),
        (np.ones((2, 3)), np.zeros(2)),
        (np.ones((1, 2)), np.zeros(1)),
    ]
    split = Split(np.ones((5, 4), np.float32), np.zeros(5))
    assert dead_relus(model, params, split) == 1
    assert dead_relus(model, [(params[0][0], params[0][1] - 100), *params[1:]], split) == 5


def test_a_second_start_computes_nothing(run, finished, capfd):
    before = {
        path: path.read_bytes() for path in (*finished.rglob("*.nc"), *finished.glob("jobs/*"))
    }
    capfd.readouterr()
    assert run(*TINY, "--out", finished) == 0
    assert "training" not in capfd.readouterr().err
    assert {path: path.read_bytes() for path in before} == before and len(before) == 1 + 6


def test_another_share_and_model_join_the_file(run, finished, tmp_path):
    """And what is there stays as it is, slices included."""
    alone = run(*TINY, "--out", tmp_path, "--models", "logistic", "--alphas", "0", "--workers", "1")
    joined = run(*TINY, "--out", tmp_path, "--models", "mlp", "--alphas", "40", "--workers", "1")
    assert alone == joined == 0
    both, whole = results(tmp_path), results(finished)
    for model, alpha in (("Logistic", 0), ("MLP[3]", 40)):
        own, expected = (study.sel(model=model, alpha_percent=alpha) for study in (both, whole))
        ranks = own["rank"].values
        for name in own.data_vars:
            there = (
                expected[name].sel(rank=ranks) if "rank" in expected[name].dims else expected[name]
            )
            np.testing.assert_array_equal(own[name], there, err_msg=name)


def test_presets():
    assert PAPER.runs == 5 and CORRECTED.runs == 20 and PAPER.alphas == (0, 20, 30, 40)
    assert (PAPER.training.epochs, PAPER.training.batch_size, PAPER.training.learning_rate) == (
        50,
        32,
        0.01,
    )
    assert PAPER.hidden == "8,2" and PAPER.depth == 5 and PAPER.landscape.loss_samples == 100


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--landscape.loss-samples", "151"], "--landscape.loss-samples"),
        (["--landscape.held-out", "500"], "--landscape.held-out"),
        (["--landscape.slice-points", "4"], "--landscape.slice-points"),
        (["--landscape.mlp-radii", "0", "1"], "--landscape.mlp-radii"),
        (["--landscape.extremes", "41"], "--landscape.extremes"),
        (["--alphas", "100"], "--alphas"),
        (["--hidden", "eight"], "--hidden"),
        (["--training.epochs", "-1"], "epochs"),
    ],
)
def test_bad_flags_get_one_line(run, flags, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--preset", "quick", "--out", tmp_path, *flags)
    stderr = capsys.readouterr().err
    assert stop.value.code == 2 and said in stderr and len(stderr.splitlines()) == 1


def test_the_trace_of_the_circuit_is_that_of_its_hessian(mnist):
    model = QNN(10, 1, "xy", "cnot")
    split = Split(mnist.train.x[::50], mnist.train.y[::50])
    params = model.init(jax.random.key(0)) * 100
    trace, error = hessian_trace(model, params, split)
    assert error == 0 and float(trace) == pytest.approx(
        float(np.trace(hessian(model, params, split))), rel=1e-5
    )


def test_trainings_that_diverge_are_marked_and_drawn_without(run, tmp_path, capsys):
    """At a learning rate of 1e38 all of them do: tables and figures have nothing to show, and say
    how many."""
    assert (
        run(*TINY, "--models", "mlp", "qnn", "--training.learning-rate", "1e38", "--out", tmp_path)
        == 0
    )
    study = results(tmp_path)
    assert (
        (study.diverged == 1).all() and study.trace.isnull().all() and study.accuracy.isnull().all()
    )
    assert "diverged, and left out of all means: 8 of 8 trainings" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.png"))


def test_one_that_diverged_is_left_out_of_the_figures(finished, tmp_path):
    study = results(finished)
    one = (study.model == study.model[0]) & (study.run == 0) & (study.alpha_percent == 40)
    numbers = [name for name in study.data_vars if "run" in study[name].dims]
    hurt = study.assign({name: study[name].where(~one) for name in numbers})
    hurt["diverged"] = study.diverged.where(~one, 1.0)
    for draw_figure in (hessian_traces, hessian_spectra, loss_slices):
        text = draw_figure(hurt).get_supxlabel()
        assert "1 training that diverged is left out" in " ".join(text.split())

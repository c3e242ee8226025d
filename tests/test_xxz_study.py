"""The XXZ script as a user meets it, and what both models see of the states."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import circuits
import experiments
import storage
from datar import load_xxz, xxz_spectrum
from experiments import draw_poison, tensors_to_params, trimmed
from metrics import cross_entropy
from models import MLP, QNN, train
from poison_unlearn import METHODS, Weights, unlearn
from run_unlearn_xxz import CORRECTED, PAPER, QUICK, main

ROOT = Path(__file__).parents[1]
GAUGES = ("fixed", "random_sign", "random_phase")
TINY = (  # noqa: SIM905 - as one types them
    "--preset quick --n-sites 4 --runs 2 --gauge-runs 2 --alphas 0 30 --hidden 4 --label-hidden 3 --unlearn-hidden 4 "
    "--depth 1 --depths 2 --map-weights 0 0.5 --methods retrain ga "
    "--mlp.sweep.epochs 3 --mlp.teacher.epochs 3 --mlp.unlearn.epochs 2 "
    "--qnn.sweep.epochs 2 --qnn.teacher.epochs 2 --qnn.unlearn.epochs 2"
).split()
EVERY_STAGE = ("data", "noise_sweep", "unlearning", "weight_map", "depths", "gauge")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder for this module: states are diagonalised and programs compiled once in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def xxz(cache):
    """The script in a process of its own; compiling is most of the time, and faster unoptimised."""

    def run(*words):
        command = [sys.executable, ROOT / "run_unlearn_xxz.py", *map(str, words)]
        environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "COLUMNS": "120"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="module")
def finished(xxz, tmp_path_factory):
    """A tiny run of every stage, and its folder."""
    out = tmp_path_factory.mktemp("out")
    done = xxz(*TINY, "--out", out, "--stages", *EVERY_STAGE)
    assert done.returncode == 0, done.stderr
    return out / "xxz" / "quick", done


def read(folder, study):
    return storage.read_dataset(folder / f"{study}.nc")


# ---- the script ----


def test_every_stage_ends_in_a_labelled_file_and_a_figure(finished):
    folder, done = finished
    sweep, curves, cells, gauges = (read(folder, name) for name in ("noise_sweep", "unlearning", "weight_map", "gauge"))
    assert set(sweep.model.values) == {"MLP[4]", "MLP[3]", "QNN[depth=1]", "QNN[depth=2]"}
    labels, features = (sweep.accuracy.sel(poison=poison) for poison in ("labels", "features"))
    assert labels.notnull().all()
    assert features.sel(model=["MLP[4]", "QNN[depth=1]"]).notnull().all()
    assert features.sel(model=["MLP[3]", "QNN[depth=2]"]).isnull().all()
    assert curves.accuracy.notnull().all() and set(curves.poison.values) == {"labels", "features"}
    assert cells.accuracy.sel({"method": "scrub"}).notnull().all()
    assert gauges.accuracy.dims == ("model", "gauge", "alpha_percent", "run", "split")
    assert gauges.accuracy.sel(model="MLP[4]").notnull().all()
    assert gauges.accuracy.sel(model="QNN[depth=1]").count("gauge").values.max() == 1
    for name in ("spectrum", "noise_sweep", "model_sizes", "unlearning", "weight_map", "gauge"):
        assert (folder / f"{name}.png").stat().st_size > 10_000 and (folder / f"{name}.pdf").is_file()
    assert all(word in done.stdout for word in ("Noise sweep", "Unlearning", "Weight maps", "Gauge control"))


def test_the_spectrum_is_kept_for_its_figure(finished):
    kept, levels = read(finished[0], "data"), xxz_spectrum(4)
    np.testing.assert_array_equal(kept.delta, levels.delta)
    np.testing.assert_array_equal(kept.energy_per_site, levels.energy / 4)
    np.testing.assert_array_equal(kept.gap, levels.gap)
    assert kept.is_train.sum() == 82 and kept.is_val.sum() == 84


def test_a_second_start_computes_nothing(xxz, finished):
    folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".nc", ".safetensors")}
    again = xxz(*TINY, "--out", folder.parents[1], "--stages", *EVERY_STAGE)
    assert again.returncode == 0 and "training/s" not in again.stderr, again.stderr
    assert {path: path.read_bytes() for path in before} == before and len(before) > 10


def test_stages_one_by_one_give_the_same_bits(xxz, finished, tmp_path):
    """The depths first and alone, then the rest of the noise sweep joins their file."""
    for stages in (["depths"], ["noise_sweep", "data"]):
        done = xxz(*TINY, "--out", tmp_path, "--models", "qnn", "--stages", *stages)
        assert done.returncode == 0, done.stderr
    for study in ("noise_sweep", "data"):
        alone, together = read(tmp_path / "xxz" / "quick", study), read(finished[0], study)
        assert alone.equals(together.sel({name: alone[name].values for name in ("model",) if name in alone.coords}))


def test_the_fixed_gauge_of_the_control_is_the_noise_sweep(finished):
    """Same seeds, masks and data, so the same numbers."""
    sweep, gauges = read(finished[0], "noise_sweep").accuracy, read(finished[0], "gauge").accuracy
    for model in ("MLP[4]", "QNN[depth=1]"):
        expected = sweep.sel(model=model, poison="labels")
        np.testing.assert_array_equal(gauges.sel(model=model, gauge="fixed"), expected)


def test_results_under_another_gauge_are_refused(xxz, finished):
    refused = xxz(*TINY, "--out", finished[0].parents[1], "--gauge", "random_sign")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "data " in refused.stderr and "--out" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "said", "lines"),
    [
        (["--gauge", "coulomb"], "random_phase", 8),  # tyro's own box
        (["--stages", "depth"], "depths", 8),
        (["--depths", "0"], "--depths", 1),
        (["--gauge-runs", "0"], "--gauge-runs", 1),
        (["--n-sites", "7"], "n_sites: got 7", 1),
        (["--n-sites", "40"], "n_sites: got 40", 1),
        (["--data", "no/such/file.npz"], "no/such/file.npz", 1),
        (["--data", "{folder}/zeros.npz", "--n-sites", "4"], "data: ys", 1),
        (["--out", "/proc/nowhere", "--n-sites", "4"], "--out", 1),
    ],
)
def test_bad_input_gets_one_clear_message_and_exit_code_2(flags, said, lines, tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "zeros.npz", xs=np.zeros((294, 16)), ys=np.zeros(294))
    words = [flag.format(folder=tmp_path) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["run_unlearn_xxz.py", "--preset", "quick", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    stderr = capsys.readouterr().err
    assert stop.value.code == 2 and said in " ".join(stderr.split())
    assert 1 <= len(stderr.splitlines()) <= lines


def test_paper_is_the_published_protocol():
    """DESIGN's table of the protocol, value by value."""
    assert (PAPER.gauge, PAPER.kl, PAPER.scrub_forget, PAPER.independent_teachers) == (
        "random_phase", "published", "clean", False,
    )  # fmt: skip
    assert (PAPER.hidden, PAPER.label_hidden) == (("64,16",), ("32,8", "16,4", "8,4", "8,2"))
    assert (PAPER.depth, PAPER.depths, PAPER.n_sites, PAPER.runs) == (4, (5, 6, 7), 12, 5)
    assert (PAPER.unlearn_hidden, PAPER.unlearn_labels, PAPER.unlearn_features) == ("64,16", 30, 80)
    assert PAPER.alphas == tuple(range(0, 100, 10)) and set(PAPER.poisons) == {"labels", "features"}
    assert PAPER.map_weights == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert (PAPER.ce_weight, PAPER.forget_weight, PAPER.kl_weight) == (1.0, 0.2, 0.0)
    assert dataclasses.astuple(PAPER.mlp)[:3] == ((400, 32, 0.01), (400, 32, 0.01), (50, 0, 0.01))
    assert dataclasses.astuple(PAPER.qnn)[:3] == ((200, 32, 0.03), (200, 32, 0.03), (50, 0, 0.005))
    assert "depths" not in PAPER.stages and "gauge" not in PAPER.stages
    assert (CORRECTED.gauge, CORRECTED.kl, CORRECTED.scrub_forget) == ("fixed", "full", "poisoned")
    assert CORRECTED.independent_teachers and CORRECTED.mlp == PAPER.mlp and CORRECTED.qnn == PAPER.qnn


# ---- what the models see ----


@pytest.mark.parametrize(("n_sites", "depth"), [(6, 5), (12, 4)])
def test_qnn_predictions_do_not_depend_on_the_gauge(n_sites, depth):
    """Reduced to density matrices (depth 4 of 12 sites) or as states (depth 5 of 6), from parameters of order 1."""
    model = QNN(n_sites, depth)
    params = 100 * model.init(jax.random.key(1))

    def predictions(gauge):
        return jax.nn.sigmoid(model.logits(params, model.prepare(load_xxz(n_sites=n_sites, gauge=gauge, seed=5).val.x)))

    fixed = predictions("fixed")
    assert np.ptp(fixed) > 0.01  # they depend on the state
    for gauge in ("random_sign", "random_phase"):
        np.testing.assert_allclose(predictions(gauge), fixed, atol=1e-5)


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("poison", ["labels", "features"])
def test_both_models_see_the_same_states(gauge, poison):
    """The QNN's 6 qubits hold what the MLP reads as (Re, Im), poisoned samples included."""
    dataset = load_xxz(n_sites=6, gauge=gauge)
    seen = {}
    for model in (MLP(128, (4,)), QNN(6, 2)):
        data = experiments._unlearnable(CORRECTED, dataset, model, poison, 30, "ga")
        seen[model.label] = data.retain, data.forget, data.measured
    for mlp, qnn in zip(seen["MLP[4]"], seen["QNN[depth=2]"], strict=True):
        np.testing.assert_array_equal(mlp.y, qnn.y)
        states = mlp.x[..., :64] + 1j * mlp.x[..., 64:]  # (draws, n, 64)
        reduced = jnp.stack([circuits.reduce_states(draw, 2) for draw in states])
        np.testing.assert_allclose(reduced, qnn.x, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(states, axis=-1), 1, atol=1e-5)
        assert bool(states.imag.any()) == (gauge == "random_phase")


def test_labels_are_flipped_alike_under_all_gauges():
    drawn = [draw_poison(CORRECTED, load_xxz(n_sites=4, gauge=gauge), "labels", 30, 1) for gauge in GAUGES]
    assert drawn[0].mask.sum() == 24
    for other in drawn[1:]:
        np.testing.assert_array_equal(other.mask, drawn[0].mask)
        np.testing.assert_array_equal(other.split.y, drawn[0].split.y)


@pytest.mark.parametrize(("config", "scrub_reads"), [(PAPER, "forget_clean"), (CORRECTED, "forget_poisoned")])
def test_which_features_each_method_forgets(config, scrub_reads):
    """ga always ascends on the poisoned ones; scrub reads the clean ones where it is as published."""
    dataset = load_xxz(n_sites=4, gauge=config.gauge)
    model = MLP(32, (4,))
    draw = draw_poison(config, dataset, "features", 80, 0)
    assert draw.mask.sum() == 66 and not np.allclose(draw.forget_clean.x, draw.forget_poisoned.x)
    for method, name in (("ga", "forget_poisoned"), ("scrub", scrub_reads)):
        forget = experiments._unlearnable(config, dataset, model, "features", 80, method).forget
        np.testing.assert_array_equal(forget.x[0], model.prepare(getattr(draw, name).x))
        np.testing.assert_array_equal(forget.y[0], dataset.train.y[draw.mask])


def test_ascent_raises_the_loss_on_the_poisoned_features():
    dataset, model = load_xxz(n_sites=4), MLP(32, (4,))
    draw = draw_poison(CORRECTED, dataset, "features", 50, 0)
    retain, forget = (split._replace(x=model.prepare(split.x)) for split in (draw.retain, draw.forget_poisoned))
    teacher = model.init(jax.random.key(0))
    weights = Weights(ce=0.0, forget=1.0)
    after, _ = unlearn(
        METHODS["ga"], model, teacher, retain, forget,
        weights=weights, epochs=5, batch_size=0, learning_rate=0.01, key=jax.random.key(1),
    )  # fmt: skip
    before, raised = (float(cross_entropy(model.logits(params, forget.x), forget.y)) for params in (teacher, after))
    assert raised > before + 0.01


@pytest.mark.parametrize("poison", ["labels", "features"])
def test_stored_accuracies_are_those_of_the_stored_parameters(finished, poison):
    """Every split of the unlearning curves, at their end, against a plain NumPy network on the data drawn anew."""
    folder, _ = finished
    curves = read(folder, "unlearning").accuracy.isel(epoch=-1)
    assert json.loads(read(folder, "unlearning").attrs["config"])[f"unlearn_{poison}"] == 30
    dataset = load_xxz(n_sites=4)
    for method in ("retrain", "ga"):
        tensors, _ = storage.read_tensors(folder / "parameters" / "unlearning" / f"MLP-4_{poison}_{method}.safetensors")
        params = tensors_to_params(MLP(32, (4,)), tensors)
        for run in range(2):
            draw = draw_poison(QUICK, dataset, poison, 30, run)
            splits = {
                "validation": dataset.val, "train": draw.split, "retain": draw.retain,
                "forget_poisoned": draw.forget_poisoned, "forget_clean": draw.forget_clean,
            }  # fmt: skip
            if poison == "features":
                true_labels = dataset.train.y[draw.mask]
                np.testing.assert_array_equal(draw.forget_poisoned.y, true_labels)
                np.testing.assert_array_equal(draw.forget_clean.y, true_labels)
            for name, split in splits.items():
                expected = np.mean(
                    (network([np.asarray(a[run]) for pair in params for a in pair], split.x) > 0) == split.y
                )
                stored = curves.sel({"model": "MLP[4]", "poison": poison, "method": method, "run": run, "split": name})
                assert float(stored) == pytest.approx(expected, abs=1e-6), name


def network(arrays, x):
    """Logits of a ReLU network from its weights and biases in turn, in NumPy: (n,)."""
    activity = np.concatenate([x.real, x.imag], axis=1)
    *hidden, last_weights, last_bias = arrays
    for weights, bias in zip(hidden[::2], hidden[1::2], strict=True):
        activity = np.maximum(activity @ weights.T + bias, 0)
    return (activity @ last_weights.T + last_bias)[:, 0]


def test_leaving_out_features_that_are_zero_changes_nothing():
    dataset = load_xxz(n_sites=6, gauge="random_phase")
    model = MLP(128, (8, 4))
    small = trimmed(model, dataset.train.x, dataset.val.x)
    assert len(small.features) == 2 * 20  # 6 choose 3 amplitudes, real and imaginary
    keywords = {"epochs": 10, "batch_size": 32, "learning_rate": 0.01, "key": jax.random.key(3)}
    whole = train(model, dataset.train, **keywords)
    part = train(small, dataset.train._replace(x=small.prepare(dataset.train.x)), **keywords)
    used = np.array(small.features)
    np.testing.assert_allclose(whole[0][0][:, used], part[0][0], atol=1e-5)
    first = model.init(jax.random.split(keywords["key"])[0])[0][0]
    np.testing.assert_array_equal(np.delete(whole[0][0], used, axis=1), np.delete(first, used, axis=1))
    assert np.abs(whole[0][0][:, used] - first[:, used]).max() > 0.01
    np.testing.assert_allclose(
        model.logits(whole, dataset.val.x), small.logits(part, small.prepare(dataset.val.x)), atol=1e-4
    )
    assert trimmed(model, np.ones((2, 64), np.complex64) * (1 + 1j)) is model

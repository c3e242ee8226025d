"""The classifier of scikit-learn: its own checks, pipelines, searches, and unlearning."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import refused
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from models import MLP, Training, train
from poison_unlearn import METHODS, unlearn
from studies.estimator import UnlearningClassifier
from studies.quadratic import QuadraticForm

QUICK = {"epochs": 30, "batch_size": 0, "learning_rate": 0.1, "random_state": 0}
ORDER = {"check_methods_sample_order_invariance": "to 1e-7: logits are in single precision"}
OF_STATES = {
    **ORDER,
    "check_estimators_dtypes": "a sample of zeros is no quantum state",
    "check_classifiers_train": "x and -x are one state, and its blobs lie around 0",
}


def failing(estimator):
    return OF_STATES if estimator.model == "qnn" else ORDER


@parametrize_with_checks([UnlearningClassifier(hidden=(), **QUICK)], expected_failed_checks=failing)
def test_scikit_learns_checks_of_a_network(estimator, check):
    check(estimator)


@pytest.mark.on_demand
@parametrize_with_checks(
    [UnlearningClassifier("qnn", depth=2, **QUICK)], expected_failed_checks=failing
)
def test_scikit_learns_checks_of_a_circuit(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def samples():
    """60 samples of 12 features, whose labels are words and follow the first feature."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 12)) + 1
    return x, np.where(x[:, 0] > 1, "yes", "no")


def test_a_network_is_that_of_models(samples):
    """Of the same key, bit for bit; a model of one's own goes in as it is."""
    x, y = samples
    fitted = UnlearningClassifier(hidden=(4,), **QUICK).fit(x, y)
    split = fitted._train
    np.testing.assert_array_equal(split.y, (y == "yes").astype(int))
    params = train(
        MLP(12, (4,)), split, epochs=30, batch_size=0, learning_rate=0.1, key=fitted._key
    )
    np.testing.assert_array_equal(params[0][0], fitted.params_[0][0])
    own = UnlearningClassifier(MLP(12, (4,)), **QUICK).fit(x, y)
    np.testing.assert_array_equal(own.decision_function(x), fitted.decision_function(x))


def test_pipelines_searches_and_cross_validation(samples):
    x, y = samples
    circuit = UnlearningClassifier("qnn", depth=1, **QUICK)
    pipeline = make_pipeline(StandardScaler(with_mean=False), PCA(4), circuit).fit(x, y)
    assert pipeline[-1].model_.n_qubits == 2 and 0 <= pipeline.score(x, y) <= 1
    network = UnlearningClassifier(hidden=(), **QUICK)
    assert cross_val_score(network, x, y, cv=2).mean() > 0.7
    search = GridSearchCV(network, {"learning_rate": [1e-6, 0.1]}, cv=2).fit(x, y)
    assert search.best_params_ == {"learning_rate": 0.1}
    assert set(search.predict(x)) == {"yes", "no"}


def test_unlearning_is_that_of_the_library(samples):
    x, y = samples
    mask = np.arange(60) < 12
    flipped = np.where(mask, np.where(y == "yes", "no", "yes"), y)
    method = replace(METHODS["scrub"], training=Training(5, 0, 0.01))
    words = QUICK | {"epochs": 60, "learning_rate": 0.03}
    fitted = UnlearningClassifier(hidden=(8,), **words).fit(x, flipped)
    before, split = fitted.params_, fitted._train
    assert fitted.unlearn(mask, method) is fitted
    after, _ = unlearn(
        method,
        fitted.model_,
        before,
        split.take(~mask),
        split.take(mask),
        key=jax.random.fold_in(fitted._key, 1),
    )
    np.testing.assert_array_equal(after[0][0], fitted.params_[0][0])
    assert (fitted.params_[0][0] != before[0][0]).any()
    fitted.unlearn(mask.astype(int).tolist(), "retrain")
    assert fitted.score(x[~mask], y[~mask]) > 0.8
    repaired = fitted.unlearn(mask, "repair", y_true=y)
    assert repaired.score(x, y) > 0.8


@pytest.mark.parametrize("model", ["mlp", "qnn"])
def test_three_classes_are_words_too(model):
    """Of the largest of three features, which a circuit reads as amplitudes."""
    x = np.random.default_rng(1).random((90, 3)) ** 3
    y = np.array(["ant", "bee", "cow"])[x.argmax(axis=1)]
    fitted = UnlearningClassifier(model, **{**QUICK, "epochs": 100}).fit(x, y)
    of_classes = fitted.predict_proba(x)
    assert of_classes.shape == (90, 3) and fitted.decision_function(x).shape == (90, 3)
    np.testing.assert_array_equal(fitted.classes_[of_classes.argmax(axis=1)], fitted.predict(x))
    assert fitted.score(x, y) > 0.75
    before = fitted.score(x[y == "ant"], y[y == "ant"])
    fitted.unlearn(y == "ant", "retrain")
    after = fitted.score(x[y == "ant"], y[y == "ant"])
    # a circuit has no bias: it may read a class off samples unlike any that it saw
    assert before > 0.6 and (after == 0 if model == "mlp" else after < before)
    with refused("n_classes: got 5, allowed: 2 to 4, the bit strings of 2 qubits"):
        UnlearningClassifier("qnn").fit(x, np.arange(90) % 5)


def test_what_is_wrong_is_one_line(samples):
    x, y = samples
    with pytest.raises(NotFittedError):
        UnlearningClassifier().unlearn(np.ones(60, bool))
    fitted = UnlearningClassifier(hidden=(), **QUICK).fit(x, y)
    mask = np.arange(60) < 12
    for wrong, said in (
        (mask[:9], r"forget: got bool \(9,\), allowed: a mask \(60,\)"),
        (np.arange(60), "forget: got int64"),
        (~mask | mask, "forget: got 60 of 60 samples, allowed: some, not all"),
    ):
        with refused(said):
            fitted.unlearn(wrong)
    with refused("method: got nonsense, allowed: .*scrub"):
        fitted.unlearn(mask, "nonsense")
    with refused("y_true: got None, allowed: labels before the poison"):
        fitted.unlearn(mask, "repair")
    with refused("y_true: got other labels"):
        fitted.unlearn(mask, "repair", y_true=np.full(60, "maybe"))
    with refused("method: got LastLayers .it has no layers"):
        own = UnlearningClassifier(QuadraticForm(12, 2), **QUICK).fit(x, y)
        own.unlearn(mask, "cf_k")
    with refused('model: got \'cnn\', allowed: "mlp", "qnn" or a model'):
        UnlearningClassifier("cnn").fit(x, y)
    with refused("X: got a sample of zeros"):
        UnlearningClassifier("qnn", **QUICK).fit(x * mask[:, None], y)
    with refused("learning-rate: got 0"):
        UnlearningClassifier(learning_rate=0).fit(x, y)


def test_random_states(samples):
    x, y = samples
    one, other, again = (
        UnlearningClassifier(hidden=(), **QUICK | {"random_state": seed}).fit(x, y).params_[0][0]
        for seed in (1, 2, np.random.RandomState(1))
    )
    assert (one != other).any() and (one == again).all()

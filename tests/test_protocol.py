"""One compiled program for all records gives what a program for each record gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import protocol
from datar import load_xxz
from models import MLP, QNN, Training
from poison_unlearn import METHODS, Descent, Method, Poison, Retrain
from protocol import Fit
from studies.methods import METHODS as ALL_METHODS

TRAINING = Training(3, 8, 0.05)
MODELS = {"narrowed MLP": MLP(32, (4,)), "QNN": QNN(4, 2)}


@pytest.fixture(scope="module")
def dataset():
    """Real states of which most amplitudes are 0, so that the network is narrowed."""
    return load_xxz(n_sites=4, gauge="fixed")


def fit(model, record, poison="labels"):
    return Fit(
        data="d",
        model=model,
        poison=Poison(poison, 30),
        method=Retrain(training=TRAINING),
        size=2,
        record=record,
        side_by_side=isinstance(model, MLP),
    )


def perform_both(job, dataset, *inputs):
    """The arrays of a job by programs of its own, and by the shared one."""
    return [replace(job, one_program=shared).perform(dataset, *inputs) for shared in (False, True)]


def assert_equal(own, shared):
    assert own.keys() == shared.keys()
    for name, array in own.items():
        assert np.shape(shared[name]) == np.shape(array), name
        np.testing.assert_allclose(shared[name], array, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("name", "record"), [("narrowed MLP", "end"), ("narrowed MLP", "logits"), ("QNN", "curves")]
)
def test_every_record_is_the_same(name, record, dataset):
    """Of teachers, of oracles, which train on the retained samples, and of methods."""
    teacher = fit(MODELS[name], "logits")
    taught = teacher.perform(dataset)
    assert_equal(*perform_both(replace(teacher, record=record), dataset))
    assert_equal(*perform_both(replace(teacher, record=record, retains=True), dataset))
    for method in ("scrub", "retrain"):
        method = replace(METHODS[method], training=TRAINING)
        job = replace(teacher, method=method, start=teacher, record=record)
        assert_equal(*perform_both(job, dataset, taught))


@pytest.mark.parametrize("values", [{"measured": (0, 2)}, {"poison": Poison("features", 30)}])
def test_epochs_that_are_asked_for_and_poisons_of_inputs_are_the_same(values, dataset):
    job = replace(fit(MLP(32, (4,)), "curves"), **values)
    assert_equal(*perform_both(job, dataset))


def test_a_method_of_one_step_has_two_points(dataset):
    teacher = fit(MLP(32, (4,)), "logits")
    job = replace(teacher, method=ALL_METHODS["newton"], start=teacher, record="curves")
    own, shared = perform_both(job, dataset, teacher.perform(dataset))
    assert_equal(own, shared)
    assert shared["accuracy"].shape == (2, 2, len(protocol.SPLITS))


@dataclass(frozen=True)
class NearTheTeacher(Descent):
    """Reads the teacher's logits, though it starts from fresh parameters."""

    title = "near"
    is_fresh = True

    def loss(self, task, params, batch):
        logits = task.logits(params, batch.retain.x)
        return jnp.mean((logits - batch.retain_teacher - 1) ** 2)


@dataclass(frozen=True)
class WithoutHistory(Method):
    """A method of a user's own that measures nothing on its way."""

    title = "quiet"

    def __call__(self, task, key, measure=None):
        return jax.tree.map(lambda leaf: 2 * leaf, task.teacher), None


@pytest.mark.parametrize("record", ["end", "curves"])
def test_methods_of_ones_own_get_the_same(record, dataset):
    """A fresh method without teachers has its own fresh parameters as the teacher."""
    job = replace(fit(MLP(32, (4,)), record), method=NearTheTeacher(training=TRAINING))
    assert_equal(*perform_both(job, dataset))
    teacher = fit(MLP(32, (4,)), "logits")
    job = replace(teacher, start=teacher, method=WithoutHistory(), record=record)
    assert_equal(*perform_both(job, dataset, teacher.perform(dataset)))


def test_runs_that_leave_the_finite_numbers_diverged(dataset):
    training = Training(3, 8, 1e30)
    job = replace(fit(MLP(32, (4,)), "curves"), method=Retrain(training=training))
    own, shared = perform_both(job, dataset)
    np.testing.assert_array_equal(own["diverged"], shared["diverged"])
    assert own["diverged"].any()


def test_trainings_of_one_method_and_size_share_two_programs(dataset):
    """Whatever is recorded, poisoned or started from: one that trains and one that measures."""
    model = QNN(4, 3)  # of this file alone
    before = [program._cache_size() for program in (protocol.train_block, protocol.measure_block)]
    oracle = replace(fit(model, "end"), retains=True, one_program=True)
    taught = replace(fit(model, "logits"), one_program=True).perform(dataset)
    kinds = set()
    for record, kind in (("end", "labels"), ("logits", "features"), ("curves", "labels")):
        job = replace(oracle, record=record, poison=Poison(kind, 30))
        job.perform(dataset)
        started = replace(job, start=oracle, method=job.method)
        started.perform(dataset, taught)
        kinds |= {job.kind, started.kind}
    after = [program._cache_size() for program in (protocol.train_block, protocol.measure_block)]
    # one more that trains: that of the teacher, on all samples
    assert np.subtract(after, before).tolist() == [2, 1] and len(kinds) == 1

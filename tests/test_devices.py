"""The stage hardware on a small ring: what is read, with which noise and how many shots."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import reports
from conftest import changed, refused

import run_unlearn_xxz
from datar import load_xxz
from foundation.base import storage
from foundation.engine.runner import run_studies
from foundation.quantum.device import Noise
from models import Training
from poison_unlearn import Poison
from protocol import tensors_to_params
from studies import device as devices
from studies.families import build_qnn
from studies.rows import training_job

pytestmark = pytest.mark.usefixtures("in_this_process")

SHORT = Training(4, 32, 0.1)
DEVICE = changed(
    run_unlearn_xxz.QUICK,
    stages=("hardware",),
    depth=1,
    methods=("cf",),
    workers=2,
    hardware={
        "noise": ("none", "p1=0.01,readout=0.1"),
        "shots": (64,),
        "trained_shots": 16,
        "alphas": (0, 30),
        "runs": 2,
    },
    qnn=replace(
        run_unlearn_xxz.QUICK.qnn, sweep=SHORT, teacher=SHORT, unlearn=Training(2, 0, 0.05)
    ),
)


@pytest.fixture(scope="module")
def ring():
    return load_xxz(n_sites=4)


@pytest.fixture(scope="module")
def studied(tmp_path_factory, ring):
    out = tmp_path_factory.mktemp("devices")
    folder = run_studies(replace(DEVICE, out=out), ring, run_unlearn_xxz.STUDIES)
    return folder, {
        name: storage.read_dataset(folder / f"{name}.nc")
        for name in ("hardware", "hardware_unlearning")
    }


def test_a_reading_without_shots_is_the_accuracy_of_the_training(ring):
    model = build_qnn(ring, 1, noise=Noise(0.01, 0.0, 0.1))
    fit = training_job(DEVICE, ring, SHORT, DEVICE.qnn, model, Poison("labels", 30), 0)
    arrays = fit.perform(ring)
    place = {"data": fit.data, "seed": fit.seed, "block": 0, "size": fit.size}
    exact = devices.Reading(start=fit, shots=0, **place).perform(ring, arrays)
    np.testing.assert_allclose(exact["accuracy"], arrays["accuracy"][:, 0], atol=1e-6)
    many = devices.Reading(start=fit, shots=10**6, **place).perform(ring, arrays)
    np.testing.assert_allclose(many["accuracy"], exact["accuracy"], atol=0.05)
    one = devices.Reading(start=fit, shots=1, **place)
    first, again = one.perform(ring, arrays), one.perform(ring, arrays)
    np.testing.assert_array_equal(first["accuracy"], again["accuracy"])
    by_hand = jax.vmap(
        lambda key: replace(model, shots=1).logits(
            jax.tree.map(lambda leaf: leaf[0], tensors_to_params(model, arrays)),
            model.prepare(ring.val.x),
            key=key,
        )
    )(jax.random.split(jax.random.key(0), 200))
    chance = np.mean((np.asarray(by_hand) > 0) == ring.val.y)
    assert abs(first["accuracy"][0] - chance) < 5 * 0.5 / np.sqrt(len(ring.val.y))


def test_the_stage_is_complete(studied):
    found, unlearned = studied[1].values()
    assert (
        found.accuracy.sel(model="QNN[depth=1]")
        .notnull()
        .all(("run", "alpha_percent"))
        .sel(shots=[0, 64])
        .all()
    )
    drawn = found.accuracy.sel(model="QNN[depth=1,shots=16]", alpha_percent=30)
    assert drawn.sel(shots=[0, 16]).notnull().all() and drawn.sel(shots=64).isnull().all()
    assert found.noise.to_series()["QNN[depth=1,p1=0.01,readout=0.1]"] == "p1=0.01,readout=0.1"
    assert unlearned.accuracy.notnull().all() and set(unlearned.shots.values) == {0, 64}
    executions = found.executions.to_series()["QNN[depth=1]"]
    assert executions == 82 * 1024 * (1 + 2 * 3) * SHORT.epochs  # three angles act


def test_tables_and_figures_are_made_of_it(studied, capsys):
    folder, _ = studied
    reports.print_summary(folder, ("hardware",))
    assert "shots" in capsys.readouterr().out
    assert "devices" in {path.stem for path in reports.save_all(folder)}


@pytest.mark.parametrize("word", ["p3=1", "p1", "p1=x", "p1=0.1,p1=0.2", "", "p1=2"])
def test_noise_that_makes_no_sense_is_refused_in_one_line(word):
    with refused("^(noise|p1): got "):
        devices.parse_noise(word)


def test_states_without_norm_1_are_refused(ring):
    bad = replace(ring, train=ring.train._replace(x=2 * ring.train.x))
    with refused("^x: got samples of norm 2"):
        list(devices.plan(DEVICE, bad))

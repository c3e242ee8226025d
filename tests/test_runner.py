"""The runner: what it plans, what it refuses, in which order it computes."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from conftest import refused

import experiments
import run_hessian
import run_unlearn_mnist
import storage
from experiments import STUDIES, Training
from models import QNN
from runner import Chunk, Computed, plan, run, run_studies

SHARED = {"format": storage.FORMAT, "seed": 0}
QUICK = replace(run_unlearn_mnist.QUICK, models=("mlp",))


def chunk(study="sweep", name="a", needs=None, **identity):
    def compute(*tensors):
        value = 1.0 + sum(float(each["w"][0]) for each in tensors)
        dataset = xr.Dataset({"accuracy": (["name"], [value])}, {"name": [name]})
        return Computed(dataset if study != "teacher" else None, {"w": np.array([value])})

    return Chunk(study, name, SHARED | {"name": name} | identity, compute, 1, needs, axes={"name": ()})


@pytest.fixture
def store(tmp_path):
    return storage.Store(tmp_path / "out", config={}, data={"source": "nowhere"})


def test_what_is_missing_is_computed_behind_what_it_needs_and_kept(store):
    teacher = chunk("teacher", "t")
    wanted = [chunk(name="b", needs=teacher), chunk(name="a")]
    missing = plan(wanted, store, shared=SHARED)
    assert [each.name for each in missing] == ["t", "b", "a"]
    run(missing, store, workers=2)
    assert store.gather("sweep").accuracy.sel(name=["a", "b"]).values.tolist() == [1, 2]
    assert plan(wanted, store, shared=SHARED) == []


def test_an_error_in_one_chunk_keeps_the_others(store, capsys):
    def fail():
        raise ZeroDivisionError

    failing = replace(chunk(name="z"), compute=fail)
    with pytest.raises(ZeroDivisionError):
        run(plan([chunk(name="a"), failing], store, shared=SHARED), store)
    said = capsys.readouterr().err
    assert "1 of 2 chunks computed" in said and "goes on from there" not in said  # it would fail again
    assert [each.name for each in plan([chunk(name="a"), failing], store, shared=SHARED)] == ["z"]


def test_two_chunks_of_one_name_are_refused(store):
    with refused("sweep/a: got two models, methods or weights of one name"):
        plan([chunk(), chunk(rate=1)], store, shared=SHARED)
    assert len(plan([chunk(), chunk()], store, shared=SHARED)) == 1


# ---- one file, one configuration ----


def with_training(config, study, **changes):
    mlp = replace(config.mlp, **{study: replace(getattr(config.mlp, study), **changes)})
    return replace(config, mlp=mlp)


SWEEP = replace(QUICK, stages=("noise_sweep",), poisons=("labels",), alphas=(0,))
UNLEARNING = replace(QUICK, stages=("unlearning",), methods=("cf",))
GA = replace(UNLEARNING, methods=("ga",))
MAP = replace(QUICK, stages=("weight_map",))
LATER_STARTS = {  # what is stored, what is asked for then, and the entry in which they differ: None where they do not
    "another share": (SWEEP, replace(SWEEP, alphas=(60,)), None),
    "another poison": (SWEEP, replace(SWEEP, poisons=("features",)), None),
    "another network": (SWEEP, replace(SWEEP, hidden=("3",)), None),
    "another family": (SWEEP, with_training(replace(SWEEP, models=("qnn",)), "sweep", epochs=5), None),
    "another share, longer": (SWEEP, with_training(replace(SWEEP, alphas=(60,)), "sweep", epochs=5), "training"),
    "another poison, longer": (SWEEP, with_training(replace(SWEEP, poisons=("features",)), "sweep", epochs=5), "train"),
    "another share, other runs": (SWEEP, replace(SWEEP, alphas=(60,), runs=3), "runs"),
    "another method": (UNLEARNING, GA, None),
    "both poisons": (UNLEARNING, replace(UNLEARNING, unlearn_features=50), None),
    "scrub, full and published": (
        replace(UNLEARNING, methods=("scrub",)),
        replace(UNLEARNING, methods=("scrub",), unlearn_hidden="3", kl="published"),
        "kl",
    ),
    "another method, other weights": (UNLEARNING, replace(GA, ce_weight=3.0), "weights"),
    "another method, longer": (
        UNLEARNING,
        with_training(GA, "unlearn", epochs=3),
        "un",
    ),
    "another method, another share": (
        UNLEARNING,
        replace(GA, unlearn_labels=40),
        "alpha_percent",
    ),
    "another method, one teacher": (
        UNLEARNING,
        replace(GA, independent_teachers=False),
        "independent_teachers",
    ),
    "curves, then maps": (UNLEARNING, MAP, None),
    "curves, then maps, longer": (UNLEARNING, with_training(MAP, "unlearn", epochs=3), "unlearn_training"),
    "maps of another network, fewer runs": (
        MAP,
        replace(MAP, unlearn_hidden="3", weight_map_runs=1),
        "weight_map_runs",
    ),
}


def chunks_of(config, dataset):
    return [each for stage in config.stages for each in STUDIES[stage](config, dataset)]


def pretend(chunks, store):
    """Store the chunks, and what they need, as if they had been computed."""
    for each in [*{c.needs.key: c.needs for c in chunks if c.needs}.values(), *chunks]:
        value = xr.Dataset({"accuracy": (["name"], [1.0])}, {"name": [each.name]})
        record = storage.run_record(each.identity, storage.datetime.now(storage.UTC), 0.0)
        store.save(*each.key, record, None if each.study == "teacher" else value, {"w": np.ones(1)})


@pytest.mark.parametrize(("first", "second", "differing"), LATER_STARTS.values(), ids=LATER_STARTS)
def test_a_file_holds_one_configuration(first, second, differing, store, mnist):
    """Chunks that the second start does not ask for are compared with it too, in all that has to be common."""
    pretend(chunks_of(first, mnist), store)
    shared = experiments.shared_identity(second, mnist)
    if differing is None:
        assert plan(chunks_of(second, mnist), store, shared=shared)
    else:
        with pytest.raises(storage.Mismatch, match=f"of another run: .*{differing}"):
            plan(chunks_of(second, mnist), store, shared=shared)


def test_a_landscape_holds_one_configuration(store, mnist):
    config = replace(run_hessian.QUICK, models=("mlp",), alphas=(0,))
    pretend(run_hessian.landscapes(config, mnist), store)
    shared = experiments.shared_identity(config, mnist)
    assert len(plan(run_hessian.landscapes(replace(config, alphas=(0, 40)), mnist), store, shared=shared)) == 1
    with pytest.raises(storage.Mismatch, match="loss_samples"):
        plan(run_hessian.landscapes(replace(config, alphas=(40,), loss_samples=20), mnist), store, shared=shared)


def test_a_model_of_ones_own_is_told_apart_by_its_fields():
    @dataclasses.dataclass(frozen=True)
    class Own:
        width: int
        label = "Own"

    def circuit(params, inputs):
        return None

    first, second = (QNN(2, ansatz=circuit, shape=shape) for shape in ((1,), (2,)))
    for one, other in ((Own(1), Own(2)), (first, second)):
        assert one.label == other.label
        assert experiments.model_identity(one) != experiments.model_identity(other)
        assert " at 0x" not in str(experiments.model_identity(one))
    assert experiments.model_identity(QNN(2, 1)) == {"model": "QNN[depth=1]"}


def test_stages_that_compute_nothing_are_refused(mnist, tmp_path):
    config = replace(UNLEARNING, unlearn_labels=0, out=tmp_path)
    with refused("--stages: got unlearning"):
        run_studies(config, mnist, STUDIES)


def test_the_keywords_of_a_training_are_its_fields():
    assert Training(0, 0, 1.0).keywords() == {"epochs": 0, "batch_size": 0, "learning_rate": 1.0}

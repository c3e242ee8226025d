"""Data that came with their poison: what is not known of them is not shown."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import refused

import run_unlearn_mnist
from datar import load_npz
from foundation.base import storage
from foundation.engine.runner import run_studies
from foundation.engine.study import by_name
from studies import discovery
from studies.evaluation import oracle_epochs

STUDIES = by_name(run_unlearn_mnist.STUDIES)
SMALL = replace(run_unlearn_mnist.QUICK, runs=2, models=("mlp",), methods=("cf",))
WORDS = np.array(["cat", "dog"] * 12)
MASK = np.arange(24) % 4 < 2  # as many of each class
SCORES = ("accuracy", "loss")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Flipped labels with a mask, and beside it nothing, the true labels, or other samples."""
    generator = np.random.default_rng(0)
    x, x_val = generator.normal(size=(2, 24, 6))
    noisy = np.where(MASK, np.roll(WORDS, 1), WORDS)
    datasets = {}
    for name, before in {"none": {}, "y": {"y_clean": WORDS}, "x": {"x_clean": x[::-1]}}.items():
        path = tmp_path_factory.mktemp("given") / f"{name}.npz"
        arrays = {"x_train": x, "y_train": noisy, "x_val": x_val, "y_val": WORDS}
        np.savez(path, **arrays, **before, poison_mask=MASK)
        datasets[name] = load_npz(path)
    return datasets


def test_one_of_labels_and_samples_before_the_poison_is_a_truth(given):
    assert {name: dataset.truth_is_known for name, dataset in given.items()} == {
        "none": False,
        "y": True,
        "x": True,
    }
    assert len({dataset.provenance["sha256"] for dataset in given.values()}) == 3
    assert given["none"].identified().provenance == given["none"].provenance


@pytest.mark.parametrize("name", ["none", "y", "x"])
def test_without_truth_there_are_neither_numbers_nor_panels_of_it(
    given, name, tmp_path, in_this_process
):
    config = replace(SMALL, out=tmp_path, stages=("unlearning",))
    folder = run_studies(config, given[name], run_unlearn_mnist.STUDIES)
    found = storage.read_dataset(folder / "unlearning.nc")
    of_truth = found[[*SCORES]].sel(split="forget_clean")
    for score in SCORES:
        assert of_truth[score].notnull().all() == (name != "none")
    assert found.accuracy.drop_sel(split="forget_clean").notnull().all()
    figure = STUDIES["unlearning"].figures[0].draw(found)
    assert len(figure.axes) == (2 if name == "none" else 3)
    plt.close(figure)


def test_detectors_are_not_judged_by_an_unknown_truth(given):
    for name, dataset in given.items():
        fit = next(row.job for row in STUDIES["unlearning"].plan(SMALL, dataset))
        fit = replace(fit, start=None, retains=False, record="logits", teacher_run=None)
        shown = discovery.judged(fit, fit.perform(dataset), dataset)["accuracy"]
        parts = dict(zip(discovery.PARTS, shown.T, strict=True))
        assert np.isnan(parts["poisoned"]).all() == (name == "none")
        assert np.isfinite(parts["validation"]).all()


def test_an_unknown_truth_does_not_count_in_the_rule_for_epochs(given, tmp_path, in_this_process):
    config = replace(SMALL, out=tmp_path, stages=("epochs",), evaluated=("mlp",))
    folder = run_studies(config, given["none"], run_unlearn_mnist.STUDIES)
    found = storage.read_dataset(folder / "epochs.nc")
    assert found.accuracy.sel(split="forget_clean").isnull().all()
    settled = found.copy(deep=True)
    settled["accuracy"] = 0 * settled.accuracy + 0.5
    assert oracle_epochs(settled).epochs.tolist() == [settled.epochs.values[0]]
    (figure,) = (shown.draw(found) for shown in STUDIES["epochs"].figures)
    assert "forget set, true labels" not in figure.axes[0].get_legend_handles_labels()[1]
    plt.close(figure)


def test_methods_that_read_what_the_poison_replaced_need_it(given):
    config = replace(SMALL, methods=("cf", "repair"))
    for stage in ("unlearning", "weight_map"):
        with refused(r"^--methods: got repair, which reads samples before their poison, allowed: "):
            list(STUDIES[stage].plan(config, given["none"]))
        list(STUDIES[stage].plan(config, given["y"]))
    published = replace(config, methods=("scrub",), choices=("scrub.reads=clean",))
    with refused(r"^--methods: got scrub, .*\(--hyper scrub.reads=poisoned\)"):
        list(STUDIES["unlearning"].plan(published, given["none"]))
    own = replace(published, hyper=("scrub.reads=poisoned",))
    assert list(STUDIES["unlearning"].plan(own, given["none"]))


def test_the_benchmark_leaves_them_out_and_says_why(given):
    benchmark = replace(SMALL.benchmark, methods=("cf", "repair"))
    config = replace(SMALL, benchmark=benchmark, evaluated=("mlp",))
    for name in ("none", "y"):
        rows = list(STUDIES["benchmark"].plan(config, given[name]))
        reasons = {row.coords["left_out"][1] for row in rows if "left_out" in row.coords}
        expected = "repair: the data lack the samples before their poison"
        assert reasons == ({expected} if name == "none" else {""})

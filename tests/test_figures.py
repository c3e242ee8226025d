"""Figures of results that are not as usual."""

import json

import numpy as np
import pytest
import xarray as xr

import figures
import storage


def sweep(models, poisons=("labels",)):
    """A noise sweep of these models, two shares and three runs, with random accuracies."""
    coords = {"model": list(models), "poison": list(poisons), "alpha_percent": [0, 30], "run": [0, 1, 2],
              "split": ["train", "validation"]}  # fmt: skip
    values = np.random.default_rng(0).uniform(size=[len(labels) for labels in coords.values()])
    return xr.Dataset({"accuracy": (list(coords), values)}, coords, {"config": json.dumps({})})


def lines(figure):
    return {line.get_label() for axis in figure.axes for line in axis.lines}


def test_models_of_ones_own_are_drawn_beside_the_others():
    names = ("MLP[64,16]", "MLP[16,4]", "QNN[depth=6]", "Logistic", "Mine")
    figure = figures.presets_side_by_side({"paper": sweep(names[:3]), "corrected": sweep(names)})
    assert {"MLP[64,16]", "QNN[depth=6]", "Logistic", "Mine"} <= lines(figure)
    assert "MLP[16,4]" not in lines(figure)


def test_sizes_are_those_of_networks_and_circuits_and_no_hidden_layer_is_the_smallest():
    names = ("MLP[64,16]", "MLP[8,2]", "QNN[depth=6]", "Logistic", "Quadratic[rank=16]")
    drawn = {label for label in lines(figures.model_sizes(sweep(names))) if not label.startswith("_")}
    assert drawn == {"MLP[64,16]", "MLP[8,2]", "Logistic", "QNN[depth=6]"}


def test_without_flipped_labels_there_is_nothing_to_compare(tmp_path):
    features = sweep(["MLP[4]"], ["features"])
    assert figures.model_sizes(features) is None
    for preset in ("paper", "corrected"):
        storage.write_dataset(tmp_path / preset / "noise_sweep.nc", features)
    assert figures.save_comparison(tmp_path) == []
    assert [path.name for path in figures.save_all(tmp_path / "paper")] == ["noise_sweep.png"]


def test_both_presets_are_drawn_into_the_folder_above(tmp_path):
    for preset in ("paper", "corrected"):
        storage.write_dataset(tmp_path / preset / "noise_sweep.nc", sweep(["MLP[4]", "QNN[depth=1]"]))
    assert figures.save_comparison(tmp_path) == [tmp_path / "presets.png"]
    assert (tmp_path / "presets.png").stat().st_size > 10_000 and (tmp_path / "presets.pdf").is_file()


@pytest.mark.parametrize("count", [0, 2])
def test_a_caption_counts_what_diverged(count):
    results = sweep(["MLP[4]"])
    results["diverged"] = xr.zeros_like(results.accuracy.isel(split=0, drop=True))
    results["diverged"][0, 0, 0, :count] = 1
    text = " ".join(figures.noise_sweep(results).get_supxlabel().split())
    assert ("2 trainings that diverged are left out" in text) == (count == 2)
    assert "n = 3 runs" in text

"""Figures of results that are not as usual."""

import json

import numpy as np
import pytest
import xarray as xr
from conftest import refused, run_python
from matplotlib.colors import to_hex

import figures
import storage
import tables


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
    assert drawn == set(names)


def curves(methods):
    """Unlearning curves of one network, two runs and three epochs, with random accuracies."""
    coords = {"model": ["MLP[4]"], "poison": ["labels"], "method": list(methods), "run": [0, 1], "epoch": [0, 1, 2],
              "split": ["validation", "retain", "forget_poisoned", "forget_clean", "train"]}  # fmt: skip
    values = np.random.default_rng(0).uniform(size=[len(labels) for labels in coords.values()])
    config = {
        "independent_teachers": True,
        "mlp": {"unlearn": {"batch_size": 0}},
        "qnn": {"unlearn": {"batch_size": 0}},
    }
    return xr.Dataset({"accuracy": (list(coords), values)}, coords, {"config": json.dumps(config)})


def test_methods_of_ones_own_are_drawn_and_listed():
    """Also where the process that draws has never heard of them."""
    results = curves(["cf", "undecided"])
    assert {"Fine-tune", "undecided"} <= lines(figures.unlearning_curves(results))
    _, table = tables.unlearning_summary({"unlearning": results})
    assert [str(cell) for cell in table.columns[2].cells] == ["start", "cf", "undecided"]


def weight_map(weights):
    """A weight map of one network over this grid of both weights, of which the curves have 0.2 and 0."""
    coords = {"model": ["MLP[4]"], "poison": ["labels"], "method": ["ga", "scrub"], "kl_weight": weights,
              "forget_weight": weights, "run": [0, 1]}  # fmt: skip
    values = np.random.default_rng(0).uniform(size=[len(labels) for labels in coords.values()])
    config = {"forget_weight": 0.2, "kl_weight": 0.0}
    return xr.Dataset({"accuracy": (list(coords), values)}, coords, {"config": json.dumps(config)})


@pytest.mark.parametrize(("weights", "cross"), [([0.0, 0.2, 0.4], (1, 0)), ([0.0, 0.4, 0.8], None)])
def test_the_weights_of_the_curves_are_marked_where_the_map_has_them(weights, cross):
    figure = figures.weight_maps(weight_map(weights))
    (line,) = figure.axes[0].lines
    assert [tuple(point) for point in line.get_xydata()] == ([cross] if cross else [])
    assert ("cross" in figure.get_supxlabel()) == bool(cross)


@pytest.mark.parametrize(("draw", "results"), [(figures.unlearning_curves, curves(["cf"])),
                                               (figures.weight_maps, weight_map([0.0, 0.4]))])  # fmt: skip
def test_where_all_diverged_there_is_nothing_to_draw(draw, results):
    assert draw(results.assign(accuracy=np.nan * results.accuracy)) is None


def test_models_and_methods_have_colours_of_their_own():
    styles = [*figures.FAMILY_STYLE.values(), *figures.METHOD_STYLE.values(), figures.SPARE_STYLE]
    colours = {to_hex(style[0]) for style in styles}
    assert len(colours) == len(styles)


def test_each_model_of_the_gauge_control_has_lines_of_its_own():
    coords = {"model": ["MLP[4]", "Logistic"], "gauge": ["fixed", "random_phase"], "alpha_percent": [0, 30],
              "run": [0, 1], "split": ["train", "validation"]}  # fmt: skip
    values = np.random.default_rng(0).uniform(size=[len(labels) for labels in coords.values()])
    figure = figures.gauge_control(xr.Dataset({"accuracy": (list(coords), values)}, coords))
    drawn = {(to_hex(line.get_color()), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(drawn) == 4


def test_bands_stay_where_accuracies_can_be():
    results = sweep(["MLP[4]"])
    results.accuracy[...] = np.array([0.0, 1.0, 1.0])[:, None]
    (axis,) = figures.noise_sweep(results).axes
    heights = np.concatenate([band.get_paths()[0].vertices[:, 1] for band in axis.collections])
    assert heights.min() >= 0 and heights.max() <= 1 and np.ptp(heights) > 0


@pytest.mark.parametrize("script", ["figures", "tables"])
def test_the_scripts_that_read_results_explain_themselves(script, tmp_path):
    said = run_python(f"{script}.py", "--help")
    assert said.returncode == 0 and "FOLDER" in said.stdout
    said = run_python(f"{script}.py", str(tmp_path / "nowhere"))
    assert said.returncode == 2 and said.stderr.startswith("error: FOLDER: got") and said.stderr.count("\n") == 1


def test_tables_name_the_file_that_is_missing(tmp_path):
    with refused("has no mnist/paper/noise_sweep.nc"):
        tables.readme_tables(tmp_path)


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

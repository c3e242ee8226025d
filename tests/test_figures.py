"""Figures of synthetic studies: what is drawn, named and counted."""

import json

import numpy as np
import pytest
import reports
import xarray as xr
from conftest import call_script, run_python
from matplotlib.colors import to_hex
from test_tables import TITLES, TRAINING, curves, gauge, landscape, study, sweep, weight_map

from foundation.base import storage
from foundation.report import drawing
from studies import gauge as gauge_study
from studies import hessian, noise_sweep, unlearning
from studies import samples as samples_study


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    drawing.plt.close("all")


def labels(figure):
    return {
        line.get_label()
        for axis in figure.axes
        for line in axis.lines
        if not line.get_label().startswith("_")
    }


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def caption(figure):
    return " ".join(figure.get_supxlabel().split())


def styles(axis):
    return {
        (to_hex(line.get_color()), line.get_linestyle(), line.get_marker()) for line in axis.lines
    }


def samples(poisons=("labels", "features")):
    """What the poisons look like: embeddings and images."""
    embedding = study(
        {"version": ["none", *poisons], "sample": range(30), "axis": ["x", "y"]}, "embedding"
    )
    marks = study({"version": ["none", *poisons], "sample": range(30)}, "label", "poisoned").round()
    images = study(
        {
            "poison": poisons,
            "stage": ["before", "after"],
            "example": range(3),
            "row": range(4),
            "column": range(4),
        },
        "image",
        data={"digits": [4, 9]},
    )
    numbers = study(
        {"poison": poisons, "stage": ["before", "after"], "example": range(3)}, "image_label"
    ).round()
    results = xr.merge(
        [each.drop_vars("diverged") for each in (embedding, marks, images, numbers)],
        compat="override",
    )
    shown = [0.0 if version == "none" else 30.0 for version in results.version.values]
    return results.assign_coords(shown_percent=("version", shown)).assign_attrs(images.attrs)


# ---- models ----


def test_models_of_ones_own_are_drawn_beside_the_others():
    names = (
        "MLP[64,16]",
        "MLP[16,4]",
        "QNN[depth=6]",
        "QNN[depth=4]",
        "Logistic",
        "Mine",
        "Mine[large]",
    )
    figure = noise_sweep.presets_side_by_side(
        {"paper": sweep(names[:4]), "corrected": sweep(names, runs=4)}
    )
    assert labels(figure) == {"MLP[64,16]", "QNN[depth=4]", "Logistic", "Mine", "Mine[large]"}
    assert len(styles(figure.axes[1])) == 5
    assert titles(figure) == ["published choices, n = 3", "corrected choices, n = 4"]
    assert len(figure.legends[0].get_texts()) == 5  # each model once


def test_a_family_is_read_from_the_file_and_not_from_a_label():
    results = sweep(["Mine", "Logistic"]).assign_coords(family=("model", ["MLP", "QNN"]))
    assert {
        to_hex(style[0]) for style in drawing.model_styles(results, ["Mine", "Logistic"]).values()
    } == {to_hex(drawing.FAMILY_STYLE[family][0]) for family in ("MLP", "QNN")}


def test_sizes_have_a_panel_for_each_family_of_several():
    names = (
        "MLP[64,16]",
        "MLP[8,2]",
        "MLP[16,4]",
        "QNN[depth=6]",
        "Logistic",
        "Quadratic[rank=16]",
        "Mine",
        "Mine[large]",
    )
    figure = noise_sweep.model_sizes(sweep(names))
    panels = [[line.get_label() for line in axis.lines] for axis in figure.axes]
    assert panels == [
        ["MLP[8,2]", "MLP[16,4]", "MLP[64,16]", "Logistic"],
        ["QNN[depth=6]", "Quadratic[rank=16]"],
        ["Mine", "Mine[large]"],
    ]
    brightness = [sum(line.get_color()) for line in figure.axes[0].lines[:3]]
    assert brightness == sorted(brightness, reverse=True)
    # no labels were flipped
    assert noise_sweep.model_sizes(sweep(["MLP[4]"], ["features"])) is None


def test_models_and_methods_have_colours_of_their_own():
    drawn = [*drawing.FAMILY_STYLE.values(), *drawing.METHOD_STYLE.values(), drawing.SPARE_STYLE]
    assert len({to_hex(style[0]) for style in drawn}) == len(drawn)


def test_a_dozen_methods_of_ones_own_are_told_apart():
    spare = drawing.method_styles(curves([f"mine{number}" for number in range(12)] + ["cf"]))
    assert len({(to_hex(colour), str(line)) for colour, line in spare.values()}) == 13


def test_each_model_of_the_gauge_control_has_lines_of_its_own():
    figure = gauge_study.figure(gauge(["MLP[64,16]", "Logistic", "QNN[depth=4]"]))
    names = {f"{model}, {under}" for model in ("MLP[64,16]", "Logistic")
             for under in ("fixed", "random phase", "random sign")}  # fmt: skip
    assert (
        labels(figure) == names | {"QNN[depth=4], any gauge"} and len(styles(figure.axes[0])) == 7
    )
    assert "QNN[depth=4]: trained once" in caption(figure)


# ---- runs ----


def test_bands_stay_where_accuracies_can_be():
    results = sweep(["MLP[4]"])
    results.accuracy[...] = np.array([0.0, 1.0, 1.0])[:, None]
    (axis,) = noise_sweep.sweep_figure(results).axes
    heights = np.concatenate([band.get_paths()[0].vertices[:, 1] for band in axis.collections])
    assert heights.min() >= 0 and heights.max() <= 1 and np.ptp(heights) > 0


def test_many_lines_have_no_bands_and_the_caption_says_so():
    for methods, banded in ((list(TITLES), True), ([*TITLES, "mine"], False)):
        figure = unlearning.unlearning_curves(curves(methods))
        assert bool(figure.axes[0].collections) == banded == ("no bands" not in caption(figure))


@pytest.mark.parametrize("count", [0, 2])
def test_a_caption_counts_what_diverged(count):
    results = sweep(["MLP[4]"])
    results["diverged"][0, 0, 0, :count] = 1
    text = caption(noise_sweep.sweep_figure(results))
    assert ("2 trainings that diverged are left out" in text) == (count == 2)
    assert "n = 3 runs" in text


def test_the_mean_that_is_drawn_is_that_of_the_runs():
    results = sweep(["QNN[depth=6]"], runs=4)
    (axis,) = noise_sweep.sweep_figure(results).axes
    (line,) = [line for line in axis.lines if line.get_label() == "validation"]
    np.testing.assert_allclose(
        line.get_ydata(), results.accuracy.sel(split="validation").mean("run").squeeze()
    )


def test_models_without_all_poisons_are_named_where_they_are_left_out():
    results = sweep(["MLP[4]", "MLP[8,2]"], ["labels", "features"])
    results["accuracy"] = results.accuracy.where(
        (results.model != "MLP[8,2]") | (results.poison == "labels")
    )
    figure = noise_sweep.sweep_figure(results)
    assert titles(figure) == ["MLP[4], flipped labels", "MLP[4], randomised features"]
    assert "not drawn, given fewer poisons: MLP[8,2]" in caption(figure)


# ---- methods and their weights ----


def test_methods_of_ones_own_are_drawn_by_their_titles():
    figure = unlearning.unlearning_curves(curves(["cf", "undecided"]))
    assert labels(figure) == {"Fine-tune", "Undecided"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Fine-tune", "Undecided"]


@pytest.mark.parametrize(
    ("independent", "batch_size", "said"), [(False, 0, True), (True, 0, False), (False, 32, False)]
)
def test_runs_that_nothing_tells_apart_are_said_to_be_the_same(independent, batch_size, said):
    training = {"unlearn": {"batch_size": batch_size}}
    text = caption(
        unlearning.unlearning_curves(
            curves(independent_teachers=independent, mlp=training, qnn=TRAINING)
        )
    )
    assert (
        "MLP runs of all methods but Retrain are the same" in text
    ) == said and "QNN" not in text


@pytest.mark.parametrize(("grid", "cross"), [([0.0, 0.2, 0.4], (1, 0)), ([0.0, 0.4, 0.8], None)])
def test_the_weights_of_the_curves_are_marked_where_the_map_has_them(grid, cross):
    figure = unlearning.map_figure(weight_map(grid=grid))
    assert [title.split("\n")[0] for title in titles(figure)] == ["Scrub", "Gradient ascent"]
    heat = figure.axes[0]
    assert [tuple(point) for line in heat.lines for point in line.get_xydata()] == (
        [cross] if cross else []
    )
    assert ("cross" in caption(figure)) == bool(cross)


def test_any_method_has_a_map_of_its_own_weights():
    """A heat map over two of them, by their names; a line over one; each over the values that it
    was given."""
    results = weight_map(
        ["scrub", "newton", "ascent"],
        grid=(0.0, 0.2, 0.4),
        names={"newton": ("damping", "ridge"), "ascent": ("steps", "")},
    )
    inside = (results["first"] < 0.3) & (results.second > 0.1)
    results["accuracy"] = results.accuracy.where((results.unlearner != "newton") | inside)
    figure = unlearning.map_figure(results)
    panels = {axis.get_title().split("\n")[0]: axis for axis in figure.axes if axis.get_title()}
    assert {name: (axis.get_xlabel(), axis.get_ylabel()) for name, axis in panels.items()} == {
        "Scrub": ("forget weight", "KL weight"),
        "Newton": ("damping", "ridge"),
        "Ascent": ("steps", "validation accuracy"),
    }
    (image,) = panels["Newton"].images
    expected = (
        results.accuracy.sel(unlearner="newton")
        .mean("run")
        .squeeze()
        .transpose("second", "first")[1:, :2]
    )
    np.testing.assert_allclose(image.get_array(), expected)
    (line,) = panels["Ascent"].lines
    assert line.get_xdata().tolist() == [0.0, 0.2, 0.4]


# ---- poisons ----


def test_a_poison_of_ones_own_is_drawn_by_its_name():
    poisons = ("labels", "stripes")
    assert "MLP[4], stripes" in titles(noise_sweep.sweep_figure(sweep(["MLP[4]"], poisons)))
    figure = unlearning.unlearning_curves(curves(poisons=poisons))
    assert titles(figure) == ["MLP[4], flipped labels"] * 3 + ["MLP[4], stripes"] * 3
    assert figure.axes[4].get_ylabel() == "forgetting accuracy,\nas poisoned"
    assert "stripes" in titles(unlearning.map_figure(weight_map(poisons=poisons)))[2]
    drawn = samples_study.poison_embeddings(samples(poisons))
    assert titles(drawn) == ["no poison", "flipped labels", "stripes"]
    assert "30 % flipped labels and 30 % stripes" in caption(drawn)
    drawn = samples_study.poison_examples(samples(poisons))
    assert {axis.get_ylabel() for axis in drawn.axes} == {
        "",
        "before",
        "flipped labels,\nafter",
        "stripes,\nafter",
    }
    assert "label 0 stands for the digit 4, label 1 for 9" in caption(drawn)


def test_what_a_study_does_not_hold_is_not_drawn():
    bare = samples().drop_dims(["sample", "example"])
    assert (
        samples_study.poison_embeddings(bare) is None
        and samples_study.poison_examples(bare) is None
    )
    assert samples_study.spectrum_figure(bare) is None and hessian.loss_slices(landscape()) is None


@pytest.mark.parametrize(("draw", "results"), [(unlearning.unlearning_curves, curves(["cf"])),
                                               (unlearning.map_figure, weight_map())])  # fmt: skip
def test_where_all_diverged_there_is_nothing_to_draw(draw, results):
    assert draw(results.assign(accuracy=np.nan * results.accuracy)) is None


# ---- landscape ----


def test_traces_are_drawn_over_their_clean_median():
    results = landscape(["MLP[8,2]", "QNN[depth=4]", "QNN[depth=5,xy,cnot]", "Logistic"])
    results["dead"].loc[{"model": "MLP[8,2]", "alpha_percent": 40, "run": 1}] = 1
    figure = hessian.hessian_traces(results)
    assert labels(figure) == set(map(str, results.model.values))
    assert (
        len(
            {
                to_hex(line.get_color())
                for line in figure.axes[0].lines
                if line.get_label() in results.model
            }
        )
        == 4
    )
    drawn = np.concatenate(
        [line.get_ydata() for line in figure.axes[0].lines if line.get_marker() == "o"]
    )
    own = results.trace.sel(model="MLP[8,2]")
    np.testing.assert_allclose(
        sorted(drawn), sorted((own / own.isel(alpha_percent=0).median()).values.ravel())
    )
    assert "Hollow: 1 run whose network died" in caption(figure)


# ---- files ----


def test_findings_explains_itself_and_asks_for_a_folder(tmp_path):
    said = run_python("findings.py", "--help", PYTHONIOENCODING="ascii")
    assert said.returncode == 0 and "FOLDER" in said.stdout
    for words in (["tables", str(tmp_path / "nowhere")], ["claims", str(tmp_path), "--csv", "x"]):
        said = call_script("findings.py", *words)
        assert (
            said.returncode == 2
            and said.stderr.startswith("error: ")
            and said.stderr.count("\n") == 1
        )
        assert "allowed: " in said.stderr


def test_figures_are_written_beside_their_data(tmp_path):
    for preset in ("paper", "corrected"):
        storage.write_dataset(
            tmp_path / preset / "noise_sweep.nc", sweep(["MLP[4]", "QNN[depth=4]"])
        )
    assert reports.save_all(tmp_path) == [tmp_path / "presets.png"]
    assert reports.save_all(tmp_path / "paper") == [
        tmp_path / "paper" / name for name in ("noise_sweep.png", "model_sizes.png")
    ]
    for picture in (tmp_path / "presets", tmp_path / "paper" / "noise_sweep"):
        assert (
            picture.with_suffix(".png").stat().st_size > 10_000
            and picture.with_suffix(".pdf").is_file()
        )


def test_without_flipped_labels_there_is_nothing_to_compare(tmp_path):
    for preset in ("paper", "corrected"):
        storage.write_dataset(tmp_path / preset / "noise_sweep.nc", sweep(["MLP[4]"], ["features"]))
    assert reports.save_all(tmp_path) == []
    assert [path.name for path in reports.save_all(tmp_path / "paper")] == ["noise_sweep.png"]


def test_a_figure_that_fails_is_named_and_loses_no_other(tmp_path, capfd):
    """One file of an older version, one that is damaged, one whole."""
    storage.write_dataset(tmp_path / "paper" / "noise_sweep.nc", sweep(["MLP[4]"]))
    storage.write_dataset(tmp_path / "paper" / "unlearning.nc", curves().drop_vars("title"))
    storage.write_dataset(tmp_path / "paper" / "weight_map.nc", weight_map())
    content = (tmp_path / "paper" / "weight_map.nc").read_bytes()
    (tmp_path / "paper" / "weight_map.nc").write_bytes(content[:-100])
    said = call_script("findings.py", "figures", tmp_path)
    errors = capfd.readouterr().err  # of the processes that draw
    assert said.returncode == 2 and (said.stdout + errors).isascii()
    assert [line.rsplit("/", 1)[1] for line in said.stdout.splitlines()] == [
        "noise_sweep.png",
        "model_sizes.png",
    ]
    named = [line.split(":")[0].rsplit("/", 1)[1] for line in errors.splitlines()]
    assert named == ["unlearning", "weight_map"]
    assert "title" in errors and "damaged" in errors


def test_a_configuration_without_a_family_of_ones_own_is_enough(tmp_path):
    results = curves(models=["Mine", "MLP[4]"], independent_teachers=False)
    assert json.loads(results.attrs["config"]).keys() == {"independent_teachers", "mlp", "qnn"}
    assert titles(unlearning.unlearning_curves(results))[-1] == "Mine, flipped labels"

"""The record of a study: configurations made of several, their flags and folders, and tables of
axes of one's own."""

import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import xarray as xr
from conftest import refused

import run_unlearn_mnist
import run_unlearn_xxz
from foundation.base import storage
from foundation.base.checks import require
from foundation.engine.folders import folder_name
from foundation.engine.runner import Settings, config_class, preset_values
from foundation.engine.study import Flags, Study, StudyTable, by_name
from foundation.report.frames import ResultFiles, accuracies, difference, over_runs
from foundation.report.layout import laid_out_table


@dataclass(frozen=True, kw_only=True)
class ToyFlags(Flags):
    """Of the stage toy."""

    deep_runs: int = 3
    """Repetitions."""
    rate: float = 0.5
    """Of what."""

    AXES = ("deep_runs",)

    def check(self, config):
        require(
            self.deep_runs <= config.runs,
            "deep_runs",
            self.deep_runs,
            f"at most --runs, {config.runs}",
        )


@dataclass(frozen=True, kw_only=True)
class Base(Settings):
    """A configuration."""

    stages: tuple[str, ...] = ("toy",)
    models: tuple[str, ...] = ("mlp",)
    alphas: tuple[int, ...] = (0,)


TOY = Study(
    name="toy",
    question="what is a toy",
    plan=lambda *_: [],
    flags=ToyFlags(),
    quick={"deep_runs": 2},
)
OTHER = Study(
    name="other", question="what else", plan=lambda *_: [], flags=ToyFlags(rate=0.1), group="others"
)
Made = config_class("Made", Base, [TOY, OTHER], module=__name__)
Made.presets = {"paper": Made(preset="paper")}


def test_a_configuration_has_the_flags_of_its_studies():
    config = Made()
    assert (config.toy.rate, config.others.rate) == (0.5, 0.1) and Made.__module__ == __name__
    assert pickle.loads(pickle.dumps(config)) == config
    assert preset_values(config, [TOY, OTHER], "quick") == {"toy": ToyFlags(deep_runs=2)}
    assert list(by_name([TOY, OTHER])) == ["toy", "other"]


def test_what_is_wrong_with_a_flag_is_said_by_its_whole_name():
    with refused(r"^--toy\.deep-runs: got 9, allowed: at most --runs, 5"):
        Made(toy=ToyFlags(deep_runs=9))
    ToyFlags(deep_runs=9)  # alone it is not checked
    assert Made(toy=ToyFlags(deep_runs=np.int64(4))).toy.deep_runs == 4


def test_a_nested_flag_names_the_folder_unless_it_is_an_axis_of_its_own_study():
    assert folder_name(Made(toy=ToyFlags(deep_runs=1))) == "paper"
    assert folder_name(Made(toy=ToyFlags(rate=0.25))) == "paper+toy.rate=0.25"
    assert folder_name(Made(others=ToyFlags(rate=0.25))) == "paper+others.rate=0.25"


@pytest.mark.parametrize(
    ("studies", "said"),
    [
        ([TOY, replace(TOY, group="second")], "toy"),
        ([TOY, replace(OTHER, group="toy")], "toy"),
        ([replace(TOY, group="runs")], "runs"),
    ],
)
def test_names_that_are_there_already_are_refused(studies, said):
    with pytest.raises(TypeError, match=said):
        config_class("Made", Base, studies, module=__name__)


@pytest.mark.parametrize("script", [run_unlearn_mnist, run_unlearn_xxz])
def test_every_stage_of_a_script_has_a_question(script):
    assert all(
        study.question and not study.question.endswith((".", "?")) for study in script.STUDIES
    )
    assert set(script.QUICK.stages) <= {study.name for study in script.STUDIES}


# ---- tables of a study with an axis of its own ----


@pytest.fixture
def with_an_axis(tmp_path):
    """Accuracies of two models at three places of an axis that no table of the project knows, by
    run."""
    values = np.random.default_rng(0).uniform(size=(2, 3, 4))
    axes = {"model": ["MLP[4]", "QNN[depth=1]"], "ring_size": [4, 6, 8], "run": range(4)}
    accuracy = xr.DataArray(values, axes).expand_dims(split=["validation"])
    words = {"family": ("model", ["MLP", "QNN"]), "size": ("model", [1.0, 2.0])}
    storage.write_dataset(
        tmp_path / "toys" / "mine" / "toy.nc",
        accuracy.to_dataset(name="accuracy").assign_coords(words),
    )
    return tmp_path, values


def frame(read, data, preset):
    return over_runs(accuracies(read[data, preset, "toy"], "validation"))


def test_what_stands_at_different_places_is_not_pooled(with_an_axis):
    folder, values = with_an_axis
    table = StudyTable(
        frame=frame, rows=("model",), columns=("ring_size",), head="{ring_size} sites", spread=()
    )
    laid_out = laid_out_table(table, ResultFiles(folder), ["toys"], ["mine"])
    assert list(laid_out.tidy.columns[:4]) == ["family", "size", "model", "ring_size"]
    np.testing.assert_allclose(laid_out.tidy.value, values.mean(axis=2).ravel())
    assert list(laid_out.cells().columns) == ["4 sites", "6 sites", "8 sites"]


def test_differences_are_taken_at_one_place(with_an_axis):
    folder, values = with_an_axis
    runs = accuracies(ResultFiles(folder)["toys", "mine", "toy"], "validation")
    network, circuit = (runs[runs.family == family] for family in ("MLP", "QNN"))
    found = difference(circuit, network, "model")
    assert found.ring_size.tolist() == [4, 6, 8] and (found.n == 4).all()
    np.testing.assert_allclose(found.value, (values[1] - values[0]).mean(axis=1))


def test_several_data_sets_stand_below_each_other(with_an_axis):
    folder, _ = with_an_axis
    other = folder / "others" / "mine"
    other.mkdir(parents=True)
    (other / "toy.nc").write_bytes((folder / "toys" / "mine" / "toy.nc").read_bytes())
    table = StudyTable(frame=frame, rows=("model",), columns=("ring_size",), head="{ring_size}")
    laid_out = laid_out_table(table, ResultFiles(folder), ["toys", "others"], ["mine"])
    assert laid_out.rows == ("data", "model") and len(laid_out.cells()) == 4

"""The study capacity: its labels, its flags, what it computes, prints and draws."""

from dataclasses import replace

import numpy as np
import pytest
import reports
from conftest import refused
from test_controls import BASE
from test_evaluation import small_data

import run_unlearn_mnist
from foundation.base import storage
from foundation.engine.folders import folder_name
from foundation.engine.runner import run_studies
from studies import capacity

pytestmark = pytest.mark.usefixtures("in_this_process")

CONFIG = replace(
    BASE, stages=("capacity",), capacity=capacity.CapacityFlags(samples=(8, 20), runs=2)
)


@pytest.fixture(scope="module")
def data():
    return small_data()


def test_random_labels_say_nothing_of_the_samples(data):
    draw = capacity.RANDOM.draw(data, key=3)
    assert draw.split.y.sum() == data.train.y.sum() and draw.mask.all() and draw.known.all()
    agree = [
        (capacity.RANDOM.draw(data, key=key).split.y == data.train.y).mean() for key in range(200)
    ]
    assert np.mean(agree) == pytest.approx(0.5, abs=5 * np.std(agree) / np.sqrt(200))


def test_it_has_its_numbers_its_table_and_its_figure(data, tmp_path, capsys):
    folder = run_studies(replace(CONFIG, out=tmp_path), data, run_unlearn_mnist.STUDIES)
    results = storage.read_dataset(folder / "capacity.nc")
    assert results.samples.values.tolist() == [8, 20] and results.run.values.tolist() == [0, 1]
    fitted = results.accuracy.sel(split="train")
    assert fitted.notnull().all() and float(fitted.max()) > 0.5
    reports.print_summary(folder, ("capacity",))
    assert "purely random labels" in capsys.readouterr().out
    assert "capacity" in {path.stem for path in reports.save_all(folder)}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"runs": 0}, "--capacity.runs: got 0"),
        ({"samples": ()}, "--capacity.samples: got nothing"),
        ({"samples": (10, 10)}, "--capacity.samples: got 10 10"),
        ({"samples": (0,)}, "--capacity.samples: got 0"),
    ],
)
def test_bad_flags_are_one_line(flags, said):
    with refused(said):
        replace(CONFIG, capacity=replace(CONFIG.capacity, **flags))


def test_its_flags_do_not_name_the_folder():
    usual = run_unlearn_mnist.CORRECTED
    changed = replace(
        usual, capacity=capacity.CapacityFlags(samples=np.array([7]), runs=np.int64(1))
    )
    assert folder_name(changed) == folder_name(
        usual
    ) == "corrected" and changed.capacity.samples == (7,)

"""The fall of accuracy at one half: fits of planted curves, pooled images, the class mean by NumPy,
the stage on a small study, and its claim."""

import itertools

import numpy as np
import pytest
import reports
import xarray as xr
from conftest import changed, refused
from test_controls import BASE
from test_evaluation import small_data

import run_unlearn_mnist
from datar import load_mnist
from foundation.base import storage
from foundation.engine.runner import run_studies
from foundation.report.frames import ResultFiles
from poison_unlearn import Poison
from protocol import Drawn
from studies import transition

pytestmark = pytest.mark.usefixtures("in_this_process")
SHARES = np.array([30, 40, 44, 46, 48, 50, 52, 54, 56, 60, 70]) / 100


@pytest.mark.parametrize("planted", [(0.48, 0.5, 0.05), (0.4, 0.52, 0.2), (0.45, 0.47, 0.1)])
def test_a_planted_curve_is_found(planted):
    a, c, w = planted
    curve = 0.5 + a * np.tanh((c - SHARES) / w)
    noise = np.random.default_rng(0).normal(0, 0.005, len(SHARES))
    np.testing.assert_allclose(transition.fitted(SHARES, curve), (-a / w, c, w), rtol=1e-4)
    np.testing.assert_allclose(transition.fitted(SHARES, curve + noise), (-a / w, c, w), rtol=0.15)


def test_the_slope_of_a_learner_of_all_labels_is_minus_one():
    slope, crossing, _ = transition.fitted(SHARES, 1 - SHARES)
    assert slope == pytest.approx(-1, abs=0.02) and crossing == pytest.approx(0.5, abs=0.005)


def test_images_are_pooled_block_by_block():
    images = load_mnist(source="embedded", per_class=20)
    both = changed(BASE, transition={"qubits": (6, 8)})
    sizes = transition.images_of_sizes(both, images)
    assert list(sizes) == [10, 6, 8] and sizes[10] is images
    for qubits, side in ((6, 8), (8, 16)):
        pooled = sizes[qubits]
        assert pooled.train.x.shape == (len(images.train.y), 2**qubits)
        np.testing.assert_array_equal(pooled.val.y, images.val.y)
        image = np.zeros((32, 32))
        image[2:30, 2:30] = images.val.x[3, :784].reshape(28, 28)
        size = 32 // side
        expected = [
            image[i * size : (i + 1) * size, j * size : (j + 1) * size].mean()
            for i, j in itertools.product(range(side), repeat=2)
        ]
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(pooled.val.x[3], expected, atol=1e-6)
    hashes = {each.provenance["sha256"] for each in sizes.values()}
    assert len(hashes) == 3


def test_what_is_no_image_is_not_pooled():
    assert list(transition.images_of_sizes(BASE, small_data())) == [4]


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    config = changed(
        BASE,
        stages=("transition",),
        out=tmp_path_factory.mktemp("transition"),
        depth=1,
        transition={"samples": (20, 60, 5000), "shares": (20, 50, 80), "runs": 2},
    )
    data = small_data()
    return data, config, run_studies(config, data, run_unlearn_mnist.STUDIES)


def test_every_model_and_size_has_its_curve(studied, capsys):
    _, config, folder = studied
    found = storage.read_dataset(folder / "transition.nc")
    assert found.samples.values.tolist() == [20, 60]  # there are no 5,000
    assert found.accuracy.sel(split="validation").notnull().all()
    assert set(found.family.values) == {"MLP", "QNN", "Logistic", "Trivial"}
    reports.print_summary(folder, config.stages)
    said = capsys.readouterr().out
    assert "slope" in said and "exponent" in said
    assert {"transition"} == {path.stem for path in reports.save_all(folder)}


def test_the_class_mean_is_that_of_numpy(studied):
    """On the same draws, run by run."""
    data, config, folder = studied
    found = storage.read_dataset(folder / "transition.nc").accuracy
    for alpha, count in itertools.product((20, 50), (20, 60)):
        drawn = Drawn(
            data=data.provenance["sha256"],
            poison=Poison("labels", alpha),
            seed=config.seed,
            size=config.block,
            redrawn=True,
            samples=count,
        )
        of_mean = found.sel(
            model="nearest class mean", alpha_percent=alpha, samples=count, split="validation"
        ).squeeze()
        for run, sets in zip(of_mean.values, drawn.sets(data), strict=False):
            x, y = sets.draw.split
            means = [x[y == label].mean(axis=0) for label in (0, 1)]
            distances = [np.linalg.norm(sets.val.x - mean, axis=1) for mean in means]
            right = np.mean((distances[1] < distances[0]) == sets.val.y)
            assert run == pytest.approx(right, abs=1e-6)


def test_settings_that_are_impossible_are_refused():
    for wrong, match in (
        ({"qubits": (7,)}, "--transition.qubits: got 7, allowed: 6 or 8"),
        ({"samples": (1,)}, "--transition.samples: got 1"),
        ({"runs": 0}, "--transition.runs: got 0"),
    ):
        with refused(match):
            changed(BASE, transition=wrong)


# ---- the claim ----


def made_up(folder, slopes):
    """Curves of twelve runs with these slopes at one half, by family."""
    models = {"MLP": "MLP[64,16]", "QNN": "QNN[depth=6]", "Trivial": "nearest class mean"}
    generator = np.random.default_rng(0)
    curves = np.stack([
        [
            0.5 + 0.45 * np.tanh((0.5 - SHARES) * slope * generator.normal(1, 0.05) / 0.45)
            for _ in range(12)
        ]
        for slope in slopes
    ])  # fmt: skip
    axes = {
        "model": list(models.values()),
        "run": np.arange(12),
        "alpha_percent": (100 * SHARES).round().astype(int),
    }
    accuracy = xr.DataArray(curves, axes).expand_dims(
        qubits=[10], samples=[500], poison=["labels"], split=["validation"]
    )
    results = accuracy.rename("accuracy").to_dataset()
    results = results.assign_coords(family=("model", list(models)), size=("model", [1.0, 1.0, 0.0]))
    path = folder / "mnist" / "corrected" / "transition.nc"
    storage.write_dataset(path, results.assign(diverged=xr.zeros_like(results.accuracy)))
    return ResultFiles(folder)


@pytest.mark.parametrize(
    ("slopes", "expected"), [((1, 4, 2), "stands"), ((1, 4, 8), "falls"), ((4, 1, 0.5), "falls")]
)
def test_a_transition_is_the_circuits_where_no_class_mean_is_as_steep(tmp_path, slopes, expected):
    """Slopes of the MLP, the QNN and the mean of each class."""
    claim = transition.steeper(made_up(tmp_path, slopes), "mnist", "MNIST")
    assert claim.verdict(claim.effect.p) == expected
    assert claim.effect.value == pytest.approx(slopes[1] - slopes[0], rel=0.1)

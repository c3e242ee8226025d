"""What the README shows works as it stands there."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments
import poison_unlearn
import run_unlearn_mnist
import storage
from datar import Split
from models import MLP
from poison_unlearn import METHODS, Weights, unlearn
from run_unlearn_mnist import QUICK
from runner import run_studies
from tables import readme_tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def example(word):
    """The code block of the README that holds a word."""
    (block,) = [block for block in BLOCKS if word in block]
    return compile(block, "README.md", "exec")


def test_the_method_that_the_readme_adds_runs(monkeypatch):
    """The example's method leaves the forget set less decided than fine-tuning does."""
    monkeypatch.setattr(poison_unlearn, "METHODS", dict(METHODS))
    names = {}
    exec(example("METHODS["), names)
    (added,) = names["METHODS"].keys() - METHODS.keys()

    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 8)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    model, retain, forget = MLP(8, (6,)), Split(x[:40], y[:40]), Split(x[40:], 1 - y[40:])
    options = {"weights": Weights(forget=5.0), "epochs": 40, "batch_size": 16, "learning_rate": 0.05}
    ends = {}
    for name in ("cf", added):
        teacher = model.init(jax.random.key(1))
        params, _ = unlearn(names["METHODS"][name], model, teacher, retain, forget, key=jax.random.key(2), **options)
        ends[name] = float(np.abs(model.logits(params, forget.x)).mean())
    assert ends[added] < 0.5 * ends["cf"]


TINY = {"runs": 1, "alphas": (0,), "stages": ("noise_sweep",), "poisons": ("labels",), "hidden": ("4",), "depth": 1}


def test_the_model_that_the_readme_adds_goes_through_a_study(monkeypatch, tmp_path, mnist):
    """It learns the digits, under its own name."""
    monkeypatch.setattr(experiments, "FAMILIES", experiments.FAMILIES.copy())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exec(example("class Probabilities"), {"__name__": "__main__"})
    config = replace(QUICK, models=("probabilities",), out=tmp_path, **TINY)
    sweep = storage.read_dataset(run_studies(config, mnist, experiments.STUDIES) / "noise_sweep.nc")
    assert sweep.model.values.tolist() == ["Probabilities"] and float(sweep.accuracy.min()) > 0.9


def test_the_data_set_that_the_readme_adds_goes_through_a_study(monkeypatch, tmp_path):
    """Its own last line, with a smaller configuration."""
    monkeypatch.setattr(run_unlearn_mnist, "QUICK", replace(QUICK, out=tmp_path, **TINY))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exec(example("def load_cancer"), {"__name__": "__main__"})
    sweep = storage.read_dataset(tmp_path / "cancer" / "quick" / "noise_sweep.nc")
    assert sweep.alpha_percent.values.tolist() == [0, 30] and set(sweep.model.values) == {"MLP[4]", "QNN[depth=1]"}
    assert float(sweep.accuracy.sel(model="MLP[4]", alpha_percent=0, split="validation").mean()) > 0.9


TABLES = (
    "mnist",
    "controls",
    "features",
    "unlearning-mnist",
    "xxz",
    "gauge",
    "sizes",
    "unlearning-xxz",
    "maps",
    "landscape",
)


@pytest.fixture(scope="module")
def tables_of_the_results():
    return readme_tables(ROOT / "results")


@pytest.mark.parametrize("name", TABLES)
def test_every_number_in_the_tables_is_that_of_the_committed_results(name, tables_of_the_results):
    """The README's tables are what `python tables.py results` prints."""
    assert tables_of_the_results.keys() == set(TABLES)
    assert f"<!-- {name} -->\n\n{tables_of_the_results[name]}\n" in README
    assert "python tables.py results" in README


def test_pictures_and_files_that_the_readme_names_are_there():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    files = re.findall(r"`((?:run_\w+|\w+)\.(?:py|ipynb|txt|cff))`", README)
    missing = [name for name in {*pictures, *files} if not (ROOT / name).is_file()]
    assert not missing


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^make (\w+) +#", README, re.MULTILINE))))
def test_make_targets_that_the_readme_names_exist(line):
    assert re.search(rf"^{line}:", (ROOT / "Makefile").read_text(), re.MULTILINE)

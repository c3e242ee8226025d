"""What the README shows works as it stands there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import poison_unlearn
from datar import Split
from models import MLP
from poison_unlearn import METHODS, Weights, unlearn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_method_that_the_readme_adds_runs(monkeypatch):
    """The example's method leaves the forget set less decided than fine-tuning does."""
    (block,) = [block for block in BLOCKS if "METHODS[" in block]
    monkeypatch.setattr(poison_unlearn, "METHODS", dict(METHODS))
    names = {}
    exec(compile(block, "README.md", "exec"), names)
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


def test_pictures_and_files_that_the_readme_names_are_there():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    files = re.findall(r"`((?:run_\w+|\w+)\.(?:py|ipynb|txt|cff))`", README)
    missing = [name for name in {*pictures, *files} if not (ROOT / name).is_file()]
    assert not missing


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^make (\w+) +#", README, re.MULTILINE))))
def test_make_targets_that_the_readme_names_exist(line):
    assert re.search(rf"^{line}:", (ROOT / "Makefile").read_text(), re.MULTILINE)

"""Circuits, landscape and models in double precision: comparisons to 1e-10, and finite
differences."""

import re

import jax
import pytest
from conftest import run_python
from test_circuits import BLOCK_CASES, SIZES

CHOSEN = (
    "(test_circuits and agree) or (test_models and (double or lapack)) or (test_landscape and "
    "(differences or (agree and not (case0 or case4 or case5))))"
)


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="this is the process of its own")
def test_all_that_agrees_does_so_to_ten_digits():
    files = [f"tests/test_{name}.py" for name in ("circuits", "landscape", "models")]
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", CHOSEN)
    process = run_python(*words, JAX_ENABLE_X64="1")
    assert process.returncode == 0, process.stdout[-3000:]
    of_circuits = sum(-(-len(sizes) // 3) for sizes in SIZES.values()) + 4
    of_circuits += len(BLOCK_CASES[1::3])
    of_landscape, of_models = 12, 10
    passed = of_circuits + of_landscape + of_models
    assert re.search(rf"\b{passed} passed", process.stdout), process.stdout[-300:]

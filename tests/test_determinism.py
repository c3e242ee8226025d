"""The same bits on any number of cores, with any number of workers; tests/faults.py varies the
cache as well."""

import os
import shutil

import faults
import numpy as np
import pytest
from conftest import PROGRAMS

from foundation.base import storage
from foundation.engine import keys

REFERENCE = faults.ROOT / "tests" / "reference.nc"
ANEW = (
    "the reference numbers moved: raise keys.NUMERICS, and then: python tests/faults.py "
    "--reference tests/reference.nc"
)

pytestmark = pytest.mark.skipif(
    shutil.which("taskset") is None or not hasattr(os, "sched_getaffinity"),
    reason="cores are chosen by taskset",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the MNIST study on one core, by one worker."""
    folder = tmp_path_factory.mktemp("conditions")
    run(folder, "out0", cores=1, workers=1)
    return folder


def run(folder, out, **options):
    faults.run_digits(folder / out, folder / "home", programs=PROGRAMS, **options)


@pytest.mark.parametrize(
    ("cores", "workers"), [(2, 2), pytest.param(2, 4, marks=pytest.mark.on_demand)]
)
def test_the_same_bits_on_two_cores(folder, cores, workers):
    if len(os.sched_getaffinity(0)) < cores:
        pytest.skip("one core")
    run(folder, "again", cores=cores, workers=workers)
    again = faults.contents(folder / "again")
    faults.assert_same_bits(again, faults.contents(folder / "out0"))
    shutil.rmtree(folder / "again")
    studies = {path for path, _ in again if path.endswith(".nc")}
    assert len(studies) == 2 and len({path for path, _ in again}) > 10


def test_the_numbers_are_those_of_the_reference(folder):
    """The same bits on its kind of machine with its versions, else close; levels of optimisation
    differ by less."""
    found, expected = faults.reference(folder / "out0"), storage.read_dataset(REFERENCE)
    assert expected.attrs["numerics"] == keys.NUMERICS, (
        "NUMERICS was raised: make the reference anew"
    )
    same = all(found.attrs[name] == expected.attrs[name] for name in ("processor", "versions"))
    tolerances = {
        "accuracy": 0.05,
        "swept_accuracy": 0.05,
        "loss": 3e-4,
        "swept_loss": 3e-4,
        "logit": 0.01,
    }
    assert (
        set(found.data_vars) == set(expected.data_vars) == tolerances.keys()
        and found.sizes == expected.sizes
    )
    for name, tolerance in tolerances.items():
        near = 0.0 if same else tolerance
        np.testing.assert_allclose(
            found[name], expected[name], rtol=0, atol=near, err_msg=f"{name}: {ANEW}"
        )


def test_what_is_compared_with_the_reference_is_no_constant():
    expected = storage.read_dataset(REFERENCE)
    for name in ("loss", "swept_loss", "logit"):
        assert float(expected[name].std("run").mean()) > 1e-3

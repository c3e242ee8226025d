"""One kill, in the suite; the other faults on demand: `make test-on-demand`, with few repetitions,
and `python tests/faults.py`, with more of them and their figures."""

import faults
import pytest
from conftest import PROGRAMS


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return faults.Bench(tmp_path_factory.mktemp("faults"), PROGRAMS)


@pytest.mark.on_demand
@pytest.mark.parametrize(
    "fault",
    [
        faults.stop,
        faults.start_two,
        faults.fill_disk,
        faults.ask_for_others,
        faults.kill_worker,
        faults.damage,
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_fault_costs_nothing(bench, fault):
    assert all(count > 0 for count in fault(bench).values())


def test_a_kill_costs_nothing(bench):
    assert faults.kill(bench, 1)["kills"] == 1


@pytest.mark.on_demand
def test_three_kills_cost_nothing(bench):
    figures = faults.kill(bench, 3)
    assert figures["kills"] == 3 and figures["of them after new jobs"] > 0


def test_nothing_is_written_elsewhere(bench):
    """Below the home folder of all these runs: the project's cache, and what matplotlib keeps."""
    home = bench.folder / "home"
    written = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    elsewhere = [
        path
        for path in written
        if not path.startswith((".cache/quantum-unlearning/", ".cache/matplotlib/"))
    ]
    assert written and not elsewhere
    assert not list((bench.folder / "tmp").iterdir())

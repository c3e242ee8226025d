"""The benchmark runs and says what it should: structure only, times are nobody's to assert."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Folder and output of a tiny run."""
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, ROOT / "bench" / "bench.py", "--smoke", "--out", out]
    done = subprocess.run(
        command, cwd=out, env=dict(os.environ), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def results(smoke):
    return json.loads((smoke[0] / "results.json").read_text())


def test_every_contender_is_timed_and_agrees_with_ours(results):
    rows = results["training_step"]
    labels = " ".join(row["label"] for row in rows)
    for name in ("ours", "all layers", "under scan", "unrolled", "PennyLane", "roofline"):
        assert name in labels
    for row in rows:
        assert 0 < row["min"] <= row["median"] and row["n"] >= 2 and row["min_ratio"] > 0
        assert (
            row["difference"] is None if "roofline" in row["label"] else row["difference"] <= 1e-4
        )
    assert all(row["compile"] > 0 for row in rows if "PennyLane" not in row["label"])
    assert max(row["difference"] or 0 for row in rows) > 0, (
        "nothing but ours was compared with ours"
    )


def test_the_mlp_is_compared_at_equal_work(results):
    ours, keras = results["mlp"]
    assert "ours" in ours["label"] and "Keras" in keras["label"]
    for row in (ours, keras):
        assert row["with_compile"] > row["total"] > 0 and 0 <= row["accuracy"] <= 1


def test_growth_covers_every_size(results):
    assert set(results["growth"]) == {"qubits", "depth", "samples", "runs"}
    for points in results["growth"].values():
        assert points and all(point["min"] > 0 and point["compile"] > 0 for point in points)
    assert {point["label"] for point in results["growth"]["runs"]} == {"vmap", "lax.map"}


def test_the_second_start_is_measured_with_a_warm_cache(results):
    first, second = results["start_up"]
    assert all(
        row[kind] > 0
        for row in (first, second)
        for kind in ("whole", "trace", "compile", "first_step")
    )
    assert first["peak_megabytes"] > 0 and results["peak_megabytes"] > 0


def test_the_numbers_carry_where_they_come_from(results, smoke):
    context = results["context"]
    assert all(context[name] for name in ("started", "machine", "cores", "versions", "commit"))
    assert len(context["load_average"]) == 3 and all(
        name in context["versions"] for name in ("jax", "pennylane")
    )
    text = json.dumps(results)
    assert (
        str(ROOT) not in text and str(Path.home()) + "/" not in text and str(smoke[0]) not in text
    )


def test_the_figure_and_the_tables_are_there(smoke):
    out, printed = smoke
    assert (out / "scaling.png").stat().st_size > 10_000
    for title in (
        "Training step of the QNN",
        "trainings of the MLP",
        "against qubits",
        "Start of a script",
        "Peak",
    ):
        assert title in printed
    assert {path.name for path in out.iterdir()} == {"results.json", "scaling.png"}


@pytest.mark.on_demand
def test_scaling_is_measured_and_what_is_there_is_kept(tmp_path):
    command = [
        sys.executable,
        ROOT / "bench" / "scale.py",
        "--smoke",
        "--out",
        tmp_path,
        "--parts",
        "steps",
        "ring",
    ]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    kept = (tmp_path / "scale.json").read_text()
    assert {(row["part"], row["size"]) for row in json.loads(kept)} == {
        ("steps", 2), ("steps", 3), ("steps", 4), ("ring", 4), ("ring", 6),
    }  # fmt: skip
    assert all(row["seconds"] > 0 and row["gib"] > 0 and row["machine"] for row in json.loads(kept))
    assert (
        "core-hours = trainings x epochs" in first.stdout
        and (tmp_path / "scale.png").stat().st_size > 1000
    )
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "scale.json").read_text() == kept and "{" not in again.stdout

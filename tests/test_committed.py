"""The committed results are those that the presets plan: in a clone there is nothing to compute."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import changed

import run_hessian
import run_unlearn_mnist
import run_unlearn_xxz
from datar import Dataset, Split
from foundation.base import storage
from foundation.engine import keys
from foundation.engine.study_files import is_listed
from studies import splits, tuning

ROOT = Path(__file__).parents[1]
MAIN = ("data", "noise_sweep", "unlearning", "weight_map")
JUDGED = ("epochs", "evaluation", "benchmark", "finalists", "influence")
CONTROLS = ("dynamics", "controls", "capacity", "equal_steps", "discovery")
# Studies that read other data sets than the script's are left to the tables of FINDINGS.
CONTENDING = (*tuning.CONTENDERS, *tuning.ESTIMATORS)
CASES = [
    (run_unlearn_mnist, "mnist", "paper", MAIN, ()),
    (
        run_unlearn_mnist,
        "mnist",
        "corrected",
        (*MAIN, *JUDGED, *CONTROLS, "hardware"),
        ("mlp", "qnn", "quadratic"),
    ),
    (run_unlearn_xxz, "xxz", "paper", (*MAIN, "depths", "gauge"), ()),
    (run_unlearn_xxz, "xxz", "corrected", (*MAIN, *JUDGED, *CONTROLS, "splits"), ()),
    (run_hessian, "hessian", "paper", ("landscape",), ()),
    (run_hessian, "hessian", "corrected", ("landscape",), ()),
]


@pytest.fixture(autouse=True)
def usual_settings(monkeypatch):
    """The keys are those of a user's process, not of the suite's, which compiles with less
    optimisation."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def listed(folder, study):
    return json.loads(storage.read_dataset(folder / f"{study}.nc").attrs["jobs"])


def stand_in(folder, study):
    """A data set of the committed one's shapes and name, without its images: keys depend on its
    hash alone."""
    data = json.loads(storage.read_dataset(folder / f"{study}.nc").attrs["data"])
    if "n_sites" in data:
        x, n_features, name = (
            np.zeros((data["n_train"], 2 ** data["n_sites"]), np.complex64),
            4096,
            "xxz",
        )
    else:
        x, n_features, name = (
            np.eye(1, 1024, dtype=np.float32).repeat(data["n_train"], axis=0),
            784,
            "mnist",
        )
    train = Split(x, np.arange(data["n_train"], dtype=np.int32) % 2)
    return Dataset(train, Split(x[:4], train.y[:4]), name, n_features, data)


def rings_of(folder):
    """Stand-ins for the rings of the stage splits, by the hashes that are committed.

    The last bits of eigenvectors, and so the hashes, depend on the processor.
    """
    found = {}
    for address, entry in listed(folder, "splits").items():
        place = json.loads(address)[0]
        if set(place) == {"sites", "ring_split"}:
            x = np.zeros((82, 2 ** place["sites"]), np.complex64)
            train = Split(x, np.arange(82, dtype=np.int32) % 2)
            own = {"sha256": entry["fields"]["data"]}
            ring = Dataset(train, Split(x[:4], train.y[:4]), "xxz", x.shape[1], own)
            found[place["sites"], place["ring_split"]] = ring
    return found


@pytest.mark.parametrize(
    ("script", "data", "preset", "stages", "models"), CASES, ids=lambda case: str(case)[:9]
)
def test_every_job_that_a_preset_plans_is_listed_in_the_committed_files(
    script, data, preset, stages, models, monkeypatch
):
    folder = ROOT / "results" / data / preset
    if "splits" in stages:
        planned = list(splits.rings(script.PRESETS[preset], None))
        rings = rings_of(folder)
        assert sorted(rings) == sorted(planned)
        monkeypatch.setattr(splits, "rings", lambda *_: {ring: rings[ring] for ring in planned})
    config = script.PRESETS[preset]
    config = replace(config, models=models) if models else config
    config = (
        changed(config, controls={"contenders": CONTENDING}) if "controls" in stages else config
    )
    dataset = stand_in(folder, "landscape" if data == "hessian" else "noise_sweep")
    plans = [study.plan for study in script.STUDIES if study.name in stages]
    rows = [row for plan in plans for row in plan(config, dataset)]
    listings = {study: listed(folder, study) for study in {row.study for row in rows}}
    if "quadratic" in config.models:  # of which only sweep and curves are committed
        rows = [
            row
            for row in rows
            if row.study != "weight_map" or not row.place["model"].startswith("Quadratic")
        ]
    with keys.remembering():
        missing = [row.address for row in rows if not is_listed(row, listings[row.study])]
    assert rows and not missing, missing[:5]


def committed():
    """The study files in git: beside them stands what the README's commands made. In an archive
    without git, all."""
    tracked = subprocess.run(
        ["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    names = tracked or [str(path) for path in (ROOT / "results").glob("*/*/*.nc")]
    return [ROOT / name for name in names if name.endswith(".nc")]


def test_records_say_where_the_numbers_come_from():
    assert len(committed()) >= 20
    for path in committed():
        attributes = storage.read_dataset(path).attrs
        assert all(
            attributes[name]
            for name in ("machine", "versions", "commit", "finished", "seconds", "config")
        )
        with keys.remembering():
            for entry in json.loads(attributes["jobs"]).values():
                check_entry(entry)


def check_entry(entry):
    fields = dict(entry["fields"])
    assert "source" not in json.dumps(fields)
    assert fields.pop("numerics") == keys.NUMERICS
    fields.pop("settings")
    assert entry["key"] == keys.key_of(fields)

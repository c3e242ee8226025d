"""Files: round trips, damage, merging, and what is kept of where results come from."""

import io
import json
import os
import pickle
import platform
import stat
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.base import storage

RECORD = {"key": "0" * 64, "fields": {"seed": 0}, "seconds": 1.5}


def part(model, alphas, value):
    """A part of a study: accuracy of one model at some alphas, two runs."""
    accuracy = np.full((1, len(alphas), 2), value) + np.arange(2) / 100
    coords = {"model": [model], "alpha_percent": alphas, "run": [0, 1]}
    return xr.Dataset({"accuracy": (list(coords), accuracy)}, coords)


def test_a_data_set_comes_back_as_it_was(tmp_path):
    dataset = part("QNN[depth=6]", [0, 30], 0.5).assign_attrs(words="α", seconds=1.25, number=7)
    dataset["accuracy"][0, 0, 0] = np.nan
    storage.write_dataset(tmp_path / "a.nc", dataset)
    back = storage.read_dataset(tmp_path / "a.nc")
    xr.testing.assert_identical(back.drop_attrs(), dataset.drop_attrs())
    assert {key: back.attrs[key] for key in dataset.attrs} == dataset.attrs


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.nc"
    storage.write_dataset(path, part("MLP", [0], 0.5))
    before = path.read_bytes()
    with pytest.raises(OSError, match="disk full"), storage.replacing(path) as temporary:
        temporary.write_bytes(b"half of it")
        raise OSError("disk full")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """The content is synced, then renamed, then the folder is synced: power may fail in between."""
    events = []

    def fsync(handle):
        status = os.fstat(handle)
        events.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)

    replace = Path.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (events.append("rename"), replace(self, target))
    )
    path = tmp_path / "new" / "folder" / "a.nc"
    storage.write_dataset(path, part("MLP", [0], 0.5))
    assert events == [path.stat().st_size, "rename", "folder"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_folders_with_results_are_those_with_a_finished_study(tmp_path):
    """Not those of jobs, of damaged files alone, or of what a killed writer left."""
    for name in (
        "mnist/paper/a.nc",
        "mnist/paper/b.nc",
        "xxz/quick+seed=1/a.nc",
        "jobs/0123.safetensors",
        "xxz/paper/a.nc.damaged",
        "xxz/paper/.a.nc.x1y2.tmp",
        "xxz/paper/.a.nc.lock",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = storage.result_folders(tmp_path)
    assert found == [tmp_path / "mnist" / "paper", tmp_path / "xxz" / "quick+seed=1"]
    assert storage.result_folders(tmp_path / "mnist" / "paper") == [tmp_path / "mnist" / "paper"]


TENSORS = {
    "['w']": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 3), np.float32),
    "integers": np.arange(3),
    "nan": np.array([np.nan, -0.0, np.inf]),
}


def test_tensors_come_back_as_they_were(tmp_path):
    storage.write_tensors(tmp_path / "a.safetensors", TENSORS, RECORD | {"words": "α"})
    back, record = storage.read_tensors(tmp_path / "a.safetensors")
    assert record == RECORD | {"words": "α"} and back.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array, strict=True)


def test_a_scalar_parameter_stays_one(tmp_path):
    storage.write_tensors(tmp_path / "a.safetensors", {"params": np.float32(2)}, RECORD)
    assert storage.read_tensors(tmp_path / "a.safetensors")[0]["params"].shape == ()


def test_nothing_is_pickled(tmp_path):
    """Objects cannot be written, and a pickle is a damaged file that isn't run."""
    objects = np.array([{}], object)
    for write in (
        lambda path: storage.write_dataset(path, xr.Dataset({"x": ("n", objects)})),
        lambda path: storage.write_tensors(path, {"x": objects}, RECORD),
    ):
        with pytest.raises(Exception, match=r"object|dict"):
            write(tmp_path / "file")
        assert list(tmp_path.iterdir()) == []

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (tmp_path / "file").write_bytes(pickle.dumps(Bomb()))
    for read in (storage.read_dataset, storage.read_tensors):
        with pytest.raises(storage.Damaged):
            read(tmp_path / "file")
    assert not (tmp_path / "exploded").exists()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    storage.write_dataset(
        folder / "a.nc", part("MLP[64,16]", [0, 30, 60], 0.5).assign_attrs(seed=3)
    )
    storage.write_tensors(
        folder / "a.safetensors", {"params": np.arange(24.0, dtype=np.float32)}, RECORD
    )
    return folder


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@settings(max_examples=150)
def test_a_flipped_bit_is_found_or_harmless(written, where, bit):
    """A changed result file is Damaged; parameters are, or still hold exactly the data: never other
    data."""
    for name, read in (("a.nc", storage.read_dataset), ("a.safetensors", storage.read_tensors)):
        content = bytearray((written / name).read_bytes())
        content[int(where * len(content))] ^= 1 << bit
        damaged = written / f"damaged-{name}"
        damaged.write_bytes(content)
        try:
            found = read(damaged)
        except storage.Damaged as error:
            assert "damaged-" in str(error) and "\n" not in str(error)
            continue
        # of which a bit of the header's padding may be of no consequence
        assert name == "a.safetensors"
        original = read(written / name)
        np.testing.assert_array_equal(found[0]["params"], original[0]["params"])
        assert found[1] == original[1]


@pytest.mark.parametrize("content", [b"", b"CDF\x01", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_foreign_and_truncated_files_are_damaged(tmp_path, written, content):
    path = tmp_path / "a.nc"
    path.write_bytes(content)
    with pytest.raises(storage.Damaged, match=r"a\.nc"):
        storage.read_dataset(path)
    for size in (0, 100, len((written / "a.nc").read_bytes()) - 1):
        path.write_bytes((written / "a.nc").read_bytes()[:size])
        with pytest.raises(storage.Damaged):
            storage.read_dataset(path)


def test_a_file_without_our_checksum_is_refused(tmp_path):
    part("MLP", [0], 0.5).to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    with pytest.raises(storage.Damaged, match="checksum"):
        storage.read_dataset(tmp_path / "foreign.nc")


def test_missing_files_are_named(tmp_path):
    for read, name in ((storage.read_dataset, "a.nc"), (storage.read_tensors, "a.safetensors")):
        with pytest.raises(FileNotFoundError, match=name):
            read(tmp_path / name)


def test_merging_does_not_depend_on_the_order():
    parts = [part("MLP", [30, 0], 0.1), part("QNN", [0], 0.2), part("MLP", [60], 0.3)]
    merged = storage.merge(parts)
    xr.testing.assert_identical(merged, storage.merge(parts[::-1]))
    assert merged.accuracy.sizes == {"model": 2, "alpha_percent": 3, "run": 2}
    assert float(merged.accuracy.sel(model="MLP", alpha_percent=60, run=1)) == pytest.approx(0.31)
    assert merged.accuracy.sel(model="QNN", alpha_percent=60).isnull().all()


@given(
    st.permutations([(model, alpha) for model in ("MLP", "QNN", "α") for alpha in (0, 30, 5)]),
    st.integers(1, 9),
)
def test_merging_is_filling_a_table(order, n):
    """Any number of parts in any order, against a dictionary."""
    values = {place: index for index, place in enumerate(sorted(order))}
    merged = storage.merge(
        [part(model, [alpha], values[model, alpha]) for model, alpha in order[:n]]
    )
    assert merged.model.values.tolist() == sorted({model for model, _ in order[:n]})
    assert merged.alpha_percent.values.tolist() == sorted({alpha for _, alpha in order[:n]})
    for model in merged.model.values:
        for alpha in merged.alpha_percent.values:
            expected = values[model, alpha] if (model, alpha) in order[:n] else np.nan
            cell = merged.accuracy.sel(model=model, alpha_percent=alpha, run=0)
            np.testing.assert_array_equal(cell, expected)


def test_later_parts_win_where_both_have_values():
    merged = storage.merge([part("MLP", [0, 30], 0.1), part("MLP", [30], 0.9)])
    assert float(merged.accuracy.sel(model="MLP", alpha_percent=0, run=0)) == 0.1
    assert float(merged.accuracy.sel(model="MLP", alpha_percent=30, run=0)) == 0.9


def worded(model, samples, family, logit):
    """A part with a coordinate of words along one axis, words along another, and numbers in half
    precision."""
    coords = {"model": [model], "sample": samples, "family": ("model", [family])}
    coords["part"] = ("sample", [f"part {sample % 2}" for sample in samples])
    logits = np.full((1, len(samples)), logit, np.float16)
    return xr.Dataset({"logit": (("model", "sample"), logits), "count": ("model", [3])}, coords)


def test_words_merge_into_words_and_half_precision_stays_so(tmp_path):
    parts = [worded("QNN[depth=6]", [0, 1], "QNN", 0.5), worded("MLP[4]", [1, 2, 3], "MLP", 2.5)]
    merged = storage.merge(parts)
    xr.testing.assert_identical(merged, storage.merge(parts[::-1]))
    assert merged.family.values.tolist() == ["MLP", "QNN"] and set(merged.coords) >= {
        "family",
        "part",
    }
    assert merged.part.values.tolist() == ["part 0", "part 1"] * 2
    assert merged.logit.dtype == np.float16 and np.isnan(merged.logit.sel(model="MLP[4]", sample=0))
    assert merged["count"].values.tolist() == [3.0, 3.0]
    storage.write_dataset(tmp_path / "a.nc", merged)
    back = storage.read_dataset(tmp_path / "a.nc")
    again = storage.merge([back, worded("MLP[4]", [4], "MLP", 1.5)])  # words come back as objects
    assert again.part.values.tolist() == ["part 0", "part 1", "part 0", "part 1", "part 0"]
    assert (
        again.logit.dtype == np.float16 and float(again.logit.sel(model="MLP[4]", sample=4)) == 1.5
    )
    np.testing.assert_array_equal(again.logit.sel(sample=range(4)), merged.logit)


def test_words_that_no_part_holds_are_empty():
    with_title = part("MLP", [0], 0.1).assign_coords(title=("model", ["Multilayer"]))
    merged = storage.merge([with_title, part("QNN", [0], 0.2)])
    assert merged.title.values.tolist() == ["Multilayer", ""]


def test_axes_in_another_order_merge_by_their_names():
    merged = storage.merge(
        [
            part("MLP", [0, 30], 0.1),
            part("QNN", [0, 30], 0.2).transpose("run", "alpha_percent", "model"),
        ]
    )
    assert merged.accuracy.dims == ("model", "alpha_percent", "run")
    expected = part("QNN", [0, 30], 0.2).accuracy.sel(model="QNN")
    np.testing.assert_array_equal(merged.accuracy.sel(model="QNN"), expected)


def test_a_variable_without_axes_and_one_that_a_part_lacks():
    one, two = (
        part("MLP", [0], 0.1).assign(total=2.0),
        part("QNN", [0], 0.2).assign(loss=("model", [0.7])),
    )
    merged = storage.merge([one, two])
    assert float(merged.total) == 2.0
    np.testing.assert_array_equal(merged.loss, [np.nan, 0.7])


def test_provenance_names_no_machine_and_no_path():
    record = storage.provenance()
    text = json.dumps(record)
    assert set(record) == {"finished", "machine", "versions", "commit"}
    assert "jax" in record["versions"] and "Python" in record["machine"]
    assert datetime.fromisoformat(record["finished"]).tzinfo is not None
    assert str(Path.home()) + "/" not in text and platform.node() not in text


def test_a_long_attribute_is_packed_and_comes_back_as_it_was(tmp_path):
    """The listing of jobs is most of a study's file."""
    text = json.dumps({str(number): {"key": "ä" * 64} for number in range(2000)})
    study = xr.Dataset({"accuracy": ("run", np.arange(3.0))}, attrs={"jobs": text, "note": "short"})
    storage.write_dataset(tmp_path / "a.nc", study)
    assert storage.read_dataset(tmp_path / "a.nc").identical(study)
    assert (tmp_path / "a.nc").stat().st_size < len(text) / 5


def test_files_are_read_as_xarray_reads_them(tmp_path):
    """Names, axes without labels, numbers of one value, text, NaN; in xarray's order."""
    dataset = part("QNN[depth=6]", [0, 30], 0.5).assign_attrs(words="α", seconds=1.25, number=7)
    dataset["free"] = ("place", "rank"), np.arange(6, dtype=np.int8).reshape(2, 3)
    dataset["chosen"] = (), np.nan
    dataset["said"] = "model", np.array(["a β"], object)
    dataset = dataset.assign_coords(family=("model", ["Q"]), size=3, place=[5.0, 7.0])
    dataset["none"] = "empty", np.zeros(0)
    dataset["word"] = (), np.array("γ", object)
    dataset["held"] = "model", [True]
    path = tmp_path / "a.nc"
    storage.write_dataset(path, dataset)
    ours = storage.read_dataset(path)
    with xr.open_dataset(io.BytesIO(path.read_bytes()), engine="h5netcdf") as theirs:
        theirs.load()
    xr.testing.assert_identical(ours, theirs)
    assert (~ours.held).values.tolist() == [False]
    for name in ("variables", "data_vars", "coords", "sizes", "attrs"):
        assert list(getattr(ours, name)) == list(getattr(theirs, name))
    assert {name: array.dtype for name, array in ours.variables.items()} == {
        name: array.dtype for name, array in theirs.variables.items()
    }


def test_what_is_not_plain_is_read_by_xarray(tmp_path):
    """Dates, numbers of units, attributes of a variable: of a user's own table."""
    dataset = part("MLP", [0], 0.5).assign(
        day=("run", np.array(["2026-11-30", "2026-12-01"], "datetime64[ns]"))
    )
    dataset["weight"] = ("run", [1.5, 2.5], {"units": "kg"})
    storage.write_dataset(tmp_path / "a.nc", dataset)
    back = storage.read_dataset(tmp_path / "a.nc")
    xr.testing.assert_identical(back.drop_attrs(deep=False), dataset.drop_attrs(deep=False))
    assert back.day.dtype.kind == "M" and back.weight.attrs == {"units": "kg"}

"""Result files: round trips, damage, merging, and the cycle of chunks and studies."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import storage

RECORD = {"identity": {"seed": 0}, "seconds": 1.5, "started": "2026-01-01T00:00:00+00:00", "machine": "m",
          "versions": "v", "commit": "c"}  # fmt: skip


def part(model, alphas, value):
    """A chunk's data set: accuracy of one model at some alphas, two runs."""
    accuracy = np.full((1, len(alphas), 2), value) + np.arange(2) / 100
    coords = {"model": [model], "alpha_percent": alphas, "run": [0, 1]}
    return xr.Dataset({"accuracy": (list(coords), accuracy)}, coords)


@pytest.fixture
def store(tmp_path):
    return storage.Store(tmp_path / "xxz" / "quick", config={"seed": 0}, data={"sha256": "0" * 64})


def save(store, name, dataset, tensors=None):
    store.save("noise_sweep", name, RECORD | {"identity": {"seed": 0, "name": name}}, dataset, tensors or {})


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


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    storage.write_dataset(folder / "a.nc", part("MLP[64,16]", [0, 30, 60], 0.5).assign_attrs(seed=3))
    storage.write_tensors(folder / "a.safetensors", {"params": np.arange(24.0, dtype=np.float32)}, RECORD)
    return folder


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@settings(max_examples=150)
def test_a_flipped_bit_is_found_or_harmless(written, where, bit):
    """A changed file either reads as Damaged or still holds exactly the data: never other data."""
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
        original = read(written / name)
        if name == "a.nc":
            assert found.equals(original) and found.attrs == original.attrs
        else:
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


def test_later_parts_win_where_both_have_values():
    merged = storage.merge([part("MLP", [0, 30], 0.1), part("MLP", [30], 0.9)])
    assert float(merged.accuracy.sel(model="MLP", alpha_percent=0, run=0)) == 0.1
    assert float(merged.accuracy.sel(model="MLP", alpha_percent=30, run=0)) == 0.9


def test_chunks_become_one_study(store):
    save(store, "mlp_0", part("MLP", [0], 0.1))
    save(store, "qnn_0", part("QNN", [0], 0.2), {"w": np.ones(3)})
    assert set(store.done("noise_sweep")) == {"mlp_0", "qnn_0"}
    merged = store.gather("noise_sweep")
    assert not store.chunk_path("noise_sweep", "mlp_0").exists()
    assert set(store.done("noise_sweep")) == {"mlp_0", "qnn_0"}
    assert store.done("noise_sweep")["mlp_0"]["identity"] == {"seed": 0, "name": "mlp_0"}
    assert merged.attrs["seconds"] == 3.0 and json.loads(merged.attrs["config"]) == {"seed": 0}
    np.testing.assert_array_equal(store.tensors("noise_sweep", "qnn_0")["w"], np.ones(3))
    xr.testing.assert_identical(store.gather("noise_sweep"), storage.read_dataset(store.study_path("noise_sweep")))


def test_a_merge_killed_before_the_chunks_were_removed_is_repeated(store, tmp_path):
    save(store, "mlp_0", part("MLP", [0], 0.1))
    save(store, "qnn_0", part("QNN", [0], 0.2))
    shutil.copytree(store.folder / "chunks", tmp_path / "kept")
    once = store.gather("noise_sweep")
    shutil.copytree(tmp_path / "kept", store.folder / "chunks", dirs_exist_ok=True)
    xr.testing.assert_identical(store.gather("noise_sweep"), once)
    assert not list((store.folder / "chunks").rglob("*.nc"))


def test_chunks_of_a_later_start_join_the_study(store):
    save(store, "mlp_0", part("MLP", [0], 0.1))
    store.gather("noise_sweep")
    save(store, "mlp_30", part("MLP", [30], 0.3))
    merged = store.gather("noise_sweep")
    assert merged.alpha_percent.values.tolist() == [0, 30] and merged.accuracy.notnull().all()
    assert merged.attrs["seconds"] == 3.0


def test_a_difference_is_named_with_both_values(tmp_path):
    same = {"seed": 0, "model": "MLP", "extra": 1}
    storage.compare("noise_sweep", "mlp", same, dict(same), tmp_path)
    with pytest.raises(storage.Mismatch) as refusal:
        storage.compare("noise_sweep", "mlp", same, {"seed": 1, "model": "MLP"}, tmp_path)
    assert "seed 0 there and 1 here" in str(refusal.value) and "extra 1 there and None here" in str(refusal.value)
    assert "model" not in str(refusal.value).split("(")[1]


def test_the_record_names_no_machine_and_no_path():
    record = storage.run_record({"seed": 0}, storage.datetime.now(storage.UTC), 1.23456)
    text = json.dumps(record)
    assert record["seconds"] == 1.235 and "jax" in record["versions"]
    assert str(storage.Path.home()) + "/" not in text and storage.platform.node() not in text

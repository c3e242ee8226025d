"""Result files: round trips, damage, merging, and the cycle of chunks and studies."""

import json
import os
import pickle
import shutil
import stat
from pathlib import Path

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


def test_a_file_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """The content is synced, then renamed, then the folder is synced: power may fail in between."""
    events = []

    def fsync(handle):
        status = os.fstat(handle)
        events.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)

    replace = Path.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", lambda self, target: (events.append("rename"), replace(self, target)))
    path = tmp_path / "new" / "folder" / "a.nc"
    storage.write_dataset(path, part("MLP", [0], 0.5))
    assert events == [path.stat().st_size, "rename", "folder"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_what_a_killed_writer_left_is_not_read(store):
    save(store, "mlp_0", part("MLP", [0], 0.1), {"w": np.ones(3)})
    for path in (store.chunk_path("noise_sweep", "qnn_0"), store.tensor_path("noise_sweep", "qnn_0")):
        (path.parent / f".{path.name}.x1y2.tmp").write_bytes(b"half of it")
    assert set(store.done("noise_sweep")) == {"mlp_0"}
    assert store.gather("noise_sweep").model.values.tolist() == ["MLP"]


def test_a_chunk_killed_between_its_two_files_is_not_done(store, monkeypatch):
    """Parameters are written first; what is missing then is to be computed again."""
    monkeypatch.setattr(storage, "write_dataset", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(store, "mlp_0", part("MLP", [0], 0.1), {"w": np.ones(3)})
    assert store.done("noise_sweep") == {}


def test_a_chunk_of_parameters_alone_is_done_when_they_are_written(store):
    save(store, "teacher", None, {"w": np.ones(3)})
    assert set(store.done("noise_sweep")) == {"teacher"}
    assert store.gather("noise_sweep") is None and not store.study_path("noise_sweep").exists()


def damaged_and_set_aside(store, path, capsys):
    """What `done` says of the study when a file is damaged; the file is named and kept, byte for byte."""
    content = path.read_bytes()
    records = store.done("noise_sweep")
    said = capsys.readouterr().err
    assert path.name in said and said.count("\n") == 1 and not path.exists()
    (kept,) = store.folder.with_name("quick-set-aside").glob(f"*/{path.relative_to(store.folder)}")
    assert kept.read_bytes() == content
    return records


def test_a_damaged_chunk_is_set_aside_and_not_done(store, capsys):
    for name in ("mlp_0", "qnn_0"):
        save(store, name, part(name, [0], 0.1))
    path = store.chunk_path("noise_sweep", "mlp_0")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(storage.Damaged, match=r"mlp_0\.nc"):
        store.gather("noise_sweep")
    assert set(damaged_and_set_aside(store, path, capsys)) == {"qnn_0"}


def test_a_damaged_study_takes_its_chunks_with_it(store, capsys):
    save(store, "mlp_0", part("MLP", [0], 0.1))
    store.gather("noise_sweep")
    store.study_path("noise_sweep").write_bytes(b"")
    assert damaged_and_set_aside(store, store.study_path("noise_sweep"), capsys) == {}


def test_a_chunk_whose_parameters_are_damaged_is_not_done(store, capsys):
    save(store, "mlp_0", part("MLP", [0], 0.1), {"w": np.ones(300)})
    store.gather("noise_sweep")
    path = store.tensor_path("noise_sweep", "mlp_0")
    path.write_bytes(path.read_bytes()[:-1])
    assert damaged_and_set_aside(store, path, capsys) == {}


def test_a_chunk_under_another_name_is_not_what_it_says(store, capsys):
    save(store, "mlp_0", part("MLP", [0], 0.1))
    store.chunk_path("noise_sweep", "mlp_0").rename(store.chunk_path("noise_sweep", "mlp_30"))
    assert damaged_and_set_aside(store, store.chunk_path("noise_sweep", "mlp_30"), capsys) == {}


def test_a_sealed_file_without_a_record_is_none_of_ours(store, capsys):
    store.chunk_path("noise_sweep", "mlp_0").parent.mkdir(parents=True)
    storage.write_dataset(store.chunk_path("noise_sweep", "mlp_0"), part("MLP", [0], 0.1))
    assert damaged_and_set_aside(store, store.chunk_path("noise_sweep", "mlp_0"), capsys) == {}


def test_a_study_under_another_name_is_not_what_it_says(store, capsys):
    save(store, "mlp_0", part("MLP", [0], 0.1))
    store.gather("noise_sweep")
    store.study_path("noise_sweep").rename(store.study_path("gauge"))
    assert store.done("gauge") == {} and "holds noise_sweep" in capsys.readouterr().err


def test_parameters_under_another_name_are_not_what_they_say(store, capsys):
    save(store, "mlp_0", None, {"w": np.ones(3)})
    store.tensor_path("noise_sweep", "mlp_0").rename(store.tensor_path("noise_sweep", "mlp_30"))
    assert damaged_and_set_aside(store, store.tensor_path("noise_sweep", "mlp_30"), capsys) == {}


def test_a_folder_is_set_aside_as_often_as_asked(store):
    for n in (1, 2):
        save(store, "mlp_0", part("MLP", [0], 0.1))
        assert (store.set_aside(store.folder) / "chunks").is_dir() and not store.folder.exists()
        assert len(list(store.folder.with_name("quick-set-aside").iterdir())) == n


def test_what_killed_writers_left_goes_when_the_next_one_starts(store):
    save(store, "mlp_0", part("MLP", [0], 0.1), {"w": np.ones(3)})
    left = [path.with_name(f".{path.name}.x1y2.tmp") for path in store.folder.rglob("*.*")]
    for path in left:
        path.write_bytes(b"half of it")
    with store.locked():
        assert len(left) == 2 and not any(path.exists() for path in left)
    assert set(store.done("noise_sweep")) == {"mlp_0"}


def test_configurations_of_earlier_starts_are_kept(store):
    for model in ("mlp", "qnn", "mlp"):
        store.config = {"models": [model]}
        save(store, f"{model}_0", part(model, [0], 0.1))
        merged = store.gather("noise_sweep")
    assert json.loads(merged.attrs["config"]) == {"models": ["mlp"]}
    assert json.loads(merged.attrs["former_configs"]) == [{"models": ["qnn"]}]


def test_all_studies_of_a_folder_are_found(store):
    save(store, "mlp_0", part("MLP", [0], 0.1))
    store.save("teacher", "mlp", RECORD, None, {"w": np.ones(3)})
    store.save("gauge", "mlp_0", RECORD, part("MLP", [0], 0.1), {})
    store.gather("gauge")
    assert store.studies() == ["gauge", "noise_sweep", "teacher"]


def test_of_two_that_write_to_a_folder_one_is_turned_away(store):
    second = storage.Store(store.folder, config={}, data={})
    with store.locked(), pytest.raises(storage.Busy, match="another process"), second.locked():
        pytest.fail("two at once")
    with second.locked():  # free again
        pass


def test_folders_with_results_are_those_that_are_in_use(tmp_path):
    for name in ("mnist/paper/a.nc", "mnist/paper/chunks/a/b.nc", "mnist/paper-set-aside/2026/a.nc", "xxz/quick/a.nc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = storage.result_folders(tmp_path)
    assert found == [tmp_path / "mnist" / "paper", tmp_path / "xxz" / "quick"]


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
    storage.write_dataset(folder / "a.nc", part("MLP[64,16]", [0, 30, 60], 0.5).assign_attrs(seed=3))
    storage.write_tensors(folder / "a.safetensors", {"params": np.arange(24.0, dtype=np.float32)}, RECORD)
    return folder


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@settings(max_examples=150)
def test_a_flipped_bit_is_found_or_harmless(written, where, bit):
    """A changed result file is Damaged; parameters are, or still hold exactly the data: never other data."""
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
        assert name == "a.safetensors"  # of which a bit of the header's padding may be of no consequence
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


@given(st.permutations([(model, alpha) for model in ("MLP", "QNN", "α") for alpha in (0, 30, 5)]), st.integers(1, 9))
def test_merging_is_filling_a_table(order, n):
    """Any number of chunks in any order, against a dictionary."""
    values = {place: index for index, place in enumerate(sorted(order))}
    merged = storage.merge([part(model, [alpha], values[model, alpha]) for model, alpha in order[:n]])
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


def test_a_difference_is_named_with_both_values(store):
    same = {"seed": 0, "model": "MLP", "extra": 1}
    store.compare("noise_sweep", "mlp", same, dict(same))
    with pytest.raises(storage.Mismatch) as refusal:
        store.compare("noise_sweep", "mlp", same, {"seed": 1, "model": "MLP"})
    assert "seed 0 there and 1 here" in str(refusal.value) and "extra 1 there and None here" in str(refusal.value)
    assert "model" not in str(refusal.value).split("of another run")[1]
    with pytest.raises(storage.Mismatch, match="data 000000000000… there and 111111111111… here"):
        store.compare("noise_sweep", "mlp", {"data": "0" * 64}, {"data": "1" * 64})


def test_the_record_names_no_machine_and_no_path():
    record = storage.run_record({"seed": 0}, storage.datetime.now(storage.UTC), 1.23456)
    text = json.dumps(record)
    assert record["seconds"] == 1.235 and "jax" in record["versions"]
    assert str(storage.Path.home()) + "/" not in text and storage.platform.node() not in text

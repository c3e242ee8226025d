"""Study files: rows added and replaced, other data, damage, two writers; and what --plan says is
missing."""

import json
import threading
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from conftest import refused
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.base import storage
from foundation.base.checks import BadInput
from foundation.engine import jobs, keys
from foundation.engine import study_files as results
from foundation.engine.jobs import Job, Store, job_fields, job_key, with_needs
from foundation.engine.study_files import Row, StudyFile, describe_plan, is_listed
from models import MLP, QNN, Model

DATA = {"source": "keras", "digits": [1, 9], "sha256": "a" * 64}
CONFIG = {"seed": 0}


@pytest.fixture(autouse=True)
def looked_at_once():
    """What differs of the project's code, as while a study runs."""
    with keys.remembering():
        yield


@dataclass(frozen=True, kw_only=True)
class Toy(Job):
    """Five runs of a model, as far as a file can tell."""

    model: Model
    alpha: int = 0
    rate: float = 0.1
    parts: tuple[Job, ...] = ()
    block: int = 0
    size: int = 5

    @property
    def needs(self):
        return self.parts

    @property
    def kind(self):
        return ("toy", self.model.label)

    @property
    def title(self):
        return f"toy {self.model.label}"

    @property
    def runs(self):
        return range(self.block * self.size, (self.block + 1) * self.size)


@dataclass(frozen=True, kw_only=True)
class Other(Job):
    """Another kind of job, without runs."""


NETWORK, CIRCUIT = MLP(8, (4,)), QNN(3, 2)
toy = partial(Toy, data=DATA["sha256"], model=NETWORK)


def table(row, arrays):
    """accuracy (model, alpha_percent, run)."""
    coords = {axis: [label] for axis, label in row.place.items()} | {"run": list(row.job.runs)}
    return xr.Dataset({"accuracy": (list(coords), arrays["accuracy"].reshape(1, 1, -1))}, coords)


def row(job, runs=None, *, study="sweep", words=None, **place):
    place = {"model": job.model.label, "alpha_percent": job.alpha} | place
    return Row(
        study, job, place, table, runs or job.runs, words or {"family": ("model", job.model.family)}
    )


def computed(each, value=None, seconds=60.0):
    """A row with its job's arrays, run r of which gives its value + r / 100, and its record."""
    value = each.job.alpha / 100 if value is None else value
    record = jobs.record(each.job, seconds) | {
        "finished": f"2026-01-01T00:{each.job.alpha:02}:00+00:00"
    }
    return each, {"accuracy": value + np.array(each.job.runs) / 100}, record


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mnist" / "paper" / "sweep.nc"


def opened(path, **changes):
    return StudyFile(path, DATA | changes)


def cell(path, run=0, alpha=0, model="MLP[4]"):
    return float(storage.read_dataset(path).accuracy.sel(model=model, alpha_percent=alpha, run=run))


def jobs_of(*rows):
    """The keys of the rows' jobs, by the address of each."""
    return {each.address: job_key(each.job) for each in rows}


def listed(path):
    """What a file says of itself: the keys of its jobs by the addresses of their rows."""
    return {address: entry["key"] for address, entry in opened(path).listing().items()}


# ---- rows ----


def test_a_file_that_is_not_there_lists_nothing_and_is_not_made(path):
    assert opened(path).read() is None and opened(path).listing() == {}
    assert not path.parent.exists()


def test_rows_stand_at_their_place_with_their_words_and_their_jobs_are_listed(path):
    rows = [row(toy(alpha=alpha, model=model)) for alpha in (30, 0) for model in (NETWORK, CIRCUIT)]
    opened(path).add([computed(each, seconds=1.5) for each in rows], CONFIG)
    found = storage.read_dataset(path)
    assert found.accuracy.dims == ("model", "alpha_percent", "run")
    assert found.alpha_percent.values.tolist() == [0, 30] and found.run.values.tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert dict(zip(found.model.values, found.family.values, strict=True)) == {
        "MLP[4]": "MLP",
        "QNN[depth=2]": "QNN",
    }
    np.testing.assert_allclose(
        found.accuracy.sel(model="QNN[depth=2]", alpha_percent=30), 0.3 + np.arange(5) / 100
    )
    listing = opened(path).listing()
    assert listed(path) == jobs_of(*rows)
    assert all(is_listed(each, listing) for each in rows) and not is_listed(
        row(toy(alpha=60)), listing
    )
    assert found.attrs["study"] == "sweep" and found.attrs["seconds"] == 6.0
    assert json.loads(found.attrs["config"]) == CONFIG and json.loads(found.attrs["data"]) == DATA
    assert (
        found.attrs["finished"] == "2026-01-01T00:30:00+00:00"
        and found.attrs["machine"] == storage.machine()
    )
    assert list(path.parent.glob("*.nc")) == [path]


def test_an_entry_of_the_listing_is_its_jobs_record_and_the_rows_runs(path):
    """With the numerics and JAX's settings among the fields, as they are part of the key."""
    each, arrays, record = computed(row(toy(alpha=30), range(3)))
    opened(path).add([(each, arrays, record)], CONFIG)
    assert opened(path).listing() == {each.address: {"runs": [0, 1, 2], **record}}
    assert record["fields"] == job_fields(each.job) | {
        "numerics": keys.NUMERICS,
        "settings": keys.settings(),
    }


def test_a_job_under_other_settings_is_not_listed(path, monkeypatch):
    opened(path).add([computed(row(toy()))], CONFIG)
    monkeypatch.setattr(keys, "NUMERICS", keys.NUMERICS + 1)
    assert not is_listed(row(toy()), opened(path).listing())


def test_what_a_command_did_not_ask_for_stays(path):
    opened(path).add([computed(row(toy(alpha=0)))], CONFIG)
    opened(path).add([computed(row(toy(alpha=30)))], CONFIG | {"seed": 1})
    assert cell(path, alpha=0, run=2) == pytest.approx(0.02) and cell(
        path, alpha=30
    ) == pytest.approx(0.3)
    assert len(opened(path).listing()) == 2
    attributes = storage.read_dataset(path).attrs
    assert json.loads(attributes["config"]) == {"seed": 1} and attributes["seconds"] == 120


def test_machines_and_commits_that_differ_are_all_named(path):
    for alpha, commit in ((0, "one"), (30, "two"), (60, "one")):
        each, arrays, record = computed(row(toy(alpha=alpha)))
        opened(path).add([(each, arrays, record | {"commit": commit})], CONFIG)
    assert storage.read_dataset(path).attrs["commit"] == "one; two"


def test_results_of_several_machines_in_one_file_are_pointed_out(path, capsys):
    """They may differ by rounding; what one machine adds again is no news."""
    for alpha, machine in ((0, "Xeon"), (30, "EPYC")):
        each, arrays, record = computed(row(toy(alpha=alpha)))
        opened(path).add([(each, arrays, record | {"machine": machine})], CONFIG)
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and f"{path} holds results of several" in said
        and "EPYC; Xeon" in said
    )


def test_a_row_of_the_same_address_takes_the_old_ones_place(path):
    """As after an edit of a method: the old job is listed no more."""
    old, new, neighbour = row(toy()), row(toy(rate=0.2)), row(toy(block=1))
    opened(path).add([computed(old, 0.5), computed(neighbour, 0.6)], CONFIG)
    opened(path).add([computed(new, 0.7)], CONFIG)
    assert cell(path, run=0) == 0.7 and cell(path, run=5) == pytest.approx(0.65)
    assert listed(path) == jobs_of(new, neighbour)


@pytest.mark.parametrize(
    ("stop", "block_size"), [(2, 5), (2, 2)], ids=["fewer runs shown", "smaller blocks"]
)
def test_nothing_of_a_replaced_row_stays(path, stop, block_size):
    """Else runs of an edited method and of the one before would be averaged."""
    other = row(toy(alpha=30))
    opened(path).add([computed(row(toy()), 0.5), computed(other)], CONFIG)
    opened(path).add([computed(row(toy(rate=0.2, size=block_size), range(stop)), 0.7)], CONFIG)
    found = storage.read_dataset(path).accuracy.sel(model="MLP[4]").reindex(run=range(5))
    np.testing.assert_allclose(found.sel(alpha_percent=0), [0.7, 0.71, *[np.nan] * 3])
    np.testing.assert_allclose(found.sel(alpha_percent=30), 0.3 + np.arange(5) / 100)


def curves(row, arrays):
    """accuracy (model, alpha_percent, run, epoch); of the first block a slice (model,
    alpha_percent, epoch) too."""
    coords = {axis: [label] for axis, label in row.place.items()}
    values = arrays["accuracy"][None, None]
    epochs = {"epoch": np.arange(values.shape[-1])}
    dims = [*coords, "run", "epoch"]
    table = xr.Dataset({"accuracy": (dims, values)}, coords | {"run": list(row.job.runs)} | epochs)
    slices = {} if row.job.block else {"slice": ([*coords, "epoch"], values[:, :, 0])}
    return table.assign(
        {name: xr.DataArray(array, dims=dims) for name, (dims, array) in slices.items()}
    )


def traced(job, value, epochs):
    """A row with curves of one value."""
    return (
        replace(row(job), table=curves),
        {"accuracy": np.full((5, epochs), value)},
        jobs.record(job, 1.0),
    )


def test_nothing_of_a_longer_training_stays(path):
    """Fewer epochs: what the old curves had behind their end is empty, and so with what has no
    runs."""
    opened(path).add(
        [traced(toy(), 0.5, 4), traced(toy(alpha=30), 0.6, 4), traced(toy(block=1), 0.8, 4)], CONFIG
    )
    opened(path).add([traced(toy(rate=0.2), 0.7, 2)], CONFIG)
    found = storage.read_dataset(path).sel(model="MLP[4]")
    end = [0.7, 0.7, np.nan, np.nan]
    new, neighbour = (
        found.accuracy.sel(alpha_percent=0, run=list(runs)) for runs in (range(5), range(5, 10))
    )
    np.testing.assert_allclose(new, [end] * 5)
    np.testing.assert_allclose(neighbour, 0.8)
    np.testing.assert_allclose(found.slice.sel(alpha_percent=0), end)
    np.testing.assert_allclose(found.accuracy.sel(alpha_percent=30, run=list(range(5))), 0.6)
    np.testing.assert_allclose(found.slice.sel(alpha_percent=30), 0.6)


def test_what_one_block_alone_gives_stays_when_another_is_added(path):
    """As landscapes, whose slices are those of the first block: more runs of them must not empty
    its cells."""
    opened(path).add([traced(toy(), 0.5, 4)], CONFIG)
    opened(path).add([traced(toy(block=1), 0.6, 4)], CONFIG)
    found = storage.read_dataset(path).sel(model="MLP[4]", alpha_percent=0)
    np.testing.assert_allclose(found.accuracy.mean("epoch"), [0.5] * 5 + [0.6] * 5)
    np.testing.assert_allclose(found.slice, 0.5)


def test_a_row_without_a_place_is_replaced_whole(path):
    def spectrum(row, arrays):
        return xr.Dataset(
            {"gap": ("delta", arrays["gap"])}, {"delta": np.arange(len(arrays["gap"]))}
        )

    each = Row("data", Other(data=DATA["sha256"]), {}, spectrum)
    for gap in ([1.0, 2.0, 3.0], [4.0, 5.0]):
        opened(path).add([(each, {"gap": np.array(gap)}, jobs.record(each.job, 1.0))], CONFIG)
    np.testing.assert_array_equal(storage.read_dataset(path).gap.sel(delta=[0, 1]), [4.0, 5.0])
    assert 3.0 not in storage.read_dataset(path).gap and listed(path) == jobs_of(each)


def test_rows_of_code_without_a_source_are_written_and_not_listed(path):
    """So they are computed anew each time; what was listed in their place is not there any more."""
    old, other = row(toy()), row(toy(alpha=30))
    opened(path).add([computed(old, 0.5), computed(other)], CONFIG)
    each, arrays, record = computed(row(toy(rate=0.2)), 0.7)
    opened(path).add([(each, arrays, record | {"key": None, "fields": {}})], CONFIG)
    assert cell(path) == 0.7 and listed(path) == jobs_of(other)


def test_jobs_without_runs_and_blocks_are_rows_too(path):
    def spectrum(row, arrays):
        return xr.Dataset({"gap": ("delta", arrays["gap"])}, {"delta": [0.5, 1.5]})

    each = Row("data", Other(data=DATA["sha256"]), {}, spectrum)
    opened(path).add([(each, {"gap": np.array([1.0, 2.0])}, jobs.record(each.job, 1.0))], CONFIG)
    assert is_listed(each, opened(path).listing())
    assert storage.read_dataset(path).gap.values.tolist() == [1.0, 2.0]


def test_only_the_runs_that_are_shown_are_in_the_file(path):
    """And more of them are asked for later, of the same job."""
    job = toy(block=1)
    few, more, all_of_it = (row(job, range(5, stop)) for stop in (7, 8, 10))
    opened(path).add([computed(more, 0.5)], CONFIG)
    assert storage.read_dataset(path).run.values.tolist() == [5, 6, 7]
    listing = opened(path).listing()
    assert (
        is_listed(few, listing) and is_listed(more, listing) and not is_listed(all_of_it, listing)
    )
    opened(path).add([computed(all_of_it, 0.5)], CONFIG)
    assert storage.read_dataset(path).run.values.tolist() == [5, 6, 7, 8, 9]
    assert is_listed(all_of_it, opened(path).listing()) and len(opened(path).listing()) == 1


def test_two_names_of_one_method_are_one_job_and_two_rows(path):
    """What is listed at one place is not there at another, until it is added."""
    here, there = row(toy()), row(toy(), model="alias")
    assert job_key(here.job) == job_key(there.job)
    opened(path).add([computed(here, 0.5)], CONFIG)
    assert is_listed(here, opened(path).listing()) and not is_listed(there, opened(path).listing())
    opened(path).add([computed(there, 0.5)], CONFIG)
    assert listed(path) == jobs_of(here, there) and len(listed(path)) == 2
    assert is_listed(here, opened(path).listing()) and is_listed(there, opened(path).listing())
    np.testing.assert_array_equal([cell(path), cell(path, model="alias")], [0.5, 0.5])
    opened(path).add([computed(row(toy(rate=0.2)), 0.7)], CONFIG)  # and one of the two is edited
    np.testing.assert_array_equal([cell(path), cell(path, model="alias")], [0.7, 0.5])
    assert is_listed(there, opened(path).listing()) and not is_listed(here, opened(path).listing())


ROWS = [
    row(toy(alpha=alpha, model=model, block=block))
    for alpha in (0, 30)
    for model in (MLP(8, (4,)), MLP(8, ()))
    for block in (0, 1)
]


@given(st.permutations(ROWS), st.lists(st.integers(0, len(ROWS)), max_size=3))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_is_the_same_in_whatever_order_its_rows_came(tmp_path_factory, order, cuts):
    """And in however many commands: all of it, attributes included."""
    folder, bounds = tmp_path_factory.mktemp("order"), [0, *sorted(cuts), len(ROWS)]
    opened(folder / "sweep.nc").add([computed(each) for each in ROWS], CONFIG)
    for start, stop in pairwise(bounds):
        opened(folder / "other" / "sweep.nc").add(
            [computed(each) for each in order[start:stop]], CONFIG
        )
    xr.testing.assert_identical(
        *(storage.read_dataset(folder / name) for name in ("sweep.nc", "other/sweep.nc"))
    )


def test_addresses_tell_places_blocks_and_kinds_of_job_apart():
    rows = [
        row(toy()),
        row(toy(alpha=30)),
        row(toy(block=1)),
        row(toy(model=CIRCUIT)),
        row(toy(), unlearner="cf"),
        replace(row(toy()), job=Other(data="d")),
    ]
    assert len({each.address for each in rows}) == len(rows)
    places = {"alpha_percent": np.int64(30), "model": np.str_("MLP[4]")}
    assert row(toy(alpha=30), **places).address == row(toy(alpha=30)).address
    assert row(toy(rate=0.2)).address == row(toy(), range(2)).address == row(toy()).address


# ---- other data ----


def test_results_of_other_data_are_refused_in_one_line_and_stay(path):
    opened(path).add([computed(row(toy()))], CONFIG)
    before = path.read_bytes()
    other = opened(path, sha256="b" * 64, digits=[4, 9], encoding="amplitude")
    for attempt in (
        other.read,
        other.listing,
        lambda: other.add([computed(row(toy(alpha=30)))], CONFIG),
    ):
        with refused(
            r"^--out: got .*sweep\.nc, allowed: a folder without results of other data \(", BadInput
        ):
            attempt()
    with pytest.raises(BadInput) as refusal:
        other.listing()
    said = str(refusal.value)
    assert (
        "digits [1, 9] there and [4, 9] here" in said
        and "encoding None there and amplitude here" in said
    )
    assert "source" not in said and "sha256" not in said and said.endswith("choose another --out")
    with refused(r"other data \(of the same name\); choose another --out$", BadInput):
        opened(path, sha256="b" * 64).listing()
    assert path.read_bytes() == before and len(opened(path).listing()) == 1


def test_the_source_of_other_data_is_said_and_no_checksums(path):
    opened(path).add([computed(row(toy()))], CONFIG)
    with pytest.raises(
        BadInput, match=r"\(source keras there and embedded here\); choose another --out$"
    ):
        opened(path, sha256="b" * 64, source="embedded").listing()


def test_the_same_data_from_another_place_are_the_same(path):
    opened(path).add([computed(row(toy()))], CONFIG)
    opened(path, source="file mnist.npz").add([computed(row(toy(alpha=30)))], CONFIG)
    assert len(opened(path).listing()) == 2


# ---- damage ----


def sealed(**attributes):
    """A file with our checksum and these attributes alone."""

    def spoil(path):
        storage.write_dataset(path, xr.Dataset({"x": ("n", [1.0])}).assign_attrs(attributes))

    return spoil


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "a flipped bit": flip_a_bit,
    "foreign": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500)),
    "without a list of jobs": sealed(data=json.dumps(DATA)),
    "a list that is none": sealed(jobs="{", data=json.dumps(DATA)),
    "a number for a list": sealed(jobs=3, data=json.dumps(DATA)),
    "a list of another form": sealed(jobs="[]", data=json.dumps(DATA)),
    "without data": sealed(jobs="{}"),
    "data that are none": sealed(jobs="{}", data="{"),
    "a number for data": sealed(jobs="{}", data=3),
    "data of another form": sealed(jobs="{}", data="3"),
}
each_damage = pytest.mark.parametrize("spoil", DAMAGE.values(), ids=DAMAGE)


@each_damage
def test_a_damaged_file_is_named_kept_and_begun_anew(path, capsys, spoil):
    opened(path).add([computed(row(toy()))], CONFIG)
    spoil(path)
    content = path.read_bytes()
    opened(path).add([computed(row(toy(alpha=30)))], CONFIG)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said
    assert "; kept as sweep.nc.damaged; what it held is computed again" in said
    assert path.with_name("sweep.nc.damaged").read_bytes() == content
    assert listed(path) == jobs_of(row(toy(alpha=30))) and capsys.readouterr().err == ""
    assert storage.result_folders(path.parents[2]) == [path.parent]


@each_damage
def test_reading_a_damaged_file_names_it_and_leaves_it_where_it_is(path, capsys, spoil):
    """As with --plan, which writes nothing."""
    path.parent.mkdir(parents=True)
    storage.write_dataset(path, xr.Dataset({"x": ("n", np.arange(50.0))}))
    spoil(path)
    content = path.read_bytes()
    assert opened(path).listing() == {} and opened(path).read() is None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[0] == said[1] and str(path) in said[0] and "kept" not in said[0]
    assert said[0].endswith("; what it held is computed again where it is needed")
    assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_a_file_damaged_between_reading_and_adding_loses_no_new_row(path, capsys):
    file = opened(path)
    file.add([computed(row(toy()))], CONFIG)
    listing = file.listing()
    path.write_bytes(path.read_bytes()[:-100])
    file.add([computed(row(toy(alpha=30)))], CONFIG)
    assert len(listing) == 1 and listed(path) == jobs_of(row(toy(alpha=30)))
    assert "kept as sweep.nc.damaged" in capsys.readouterr().err


def test_a_writer_that_fails_leaves_the_file_and_the_lock(path, monkeypatch):
    opened(path).add([computed(row(toy()))], CONFIG)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr(storage, "write_dataset", fail)
        opened(path).add([computed(row(toy(alpha=30)))], CONFIG)
    assert path.read_bytes() == before
    opened(path).add([computed(row(toy(alpha=30)))], CONFIG)
    assert len(opened(path).listing()) == 2


# ---- two writers ----


def test_of_two_writers_the_second_waits_and_adds_to_what_the_first_wrote(path, monkeypatch):
    """The second starts while the first has read the file and not yet written it."""
    merge, second, waited = storage.merge, [], []

    def late():
        opened(path).add([computed(row(toy(alpha=30)))], CONFIG)

    def slow_merge(parts):
        if not second:
            second.append(threading.Thread(target=late))
            second[0].start()
            second[0].join(0.5)
            waited.append(second[0].is_alive())
        return merge(parts)

    monkeypatch.setattr(storage, "merge", slow_merge)
    opened(path).add([computed(row(toy()))], CONFIG)
    second[0].join(60)
    assert waited == [True] and not second[0].is_alive()
    assert listed(path) == jobs_of(row(toy()), row(toy(alpha=30)))
    assert storage.read_dataset(path).accuracy.notnull().all()


def test_a_writer_does_not_wait_for_ever(path, monkeypatch):
    monkeypatch.setattr(results, "LOCK_SECONDS", 0.05)
    held, done = threading.Event(), threading.Event()

    def hold():
        with FileLock(path.with_name(".sweep.nc.lock")):
            held.set()
            done.wait(60)

    path.parent.mkdir(parents=True)
    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(60)
        with refused(r"^--out: .*sweep\.nc has been written by another process"):
            opened(path).add([computed(row(toy()))], CONFIG)
    finally:
        done.set()
        holder.join(60)
    assert not path.exists()


# ---- what is missing ----


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "jobs")


def plan(rows, store, path):
    """The lines for these rows, as a command with --plan finds what is missing."""
    listing = opened(path).listing()
    missing = with_needs([each.job for each in rows if not is_listed(each, listing)], store.has)
    return describe_plan(rows, missing, store, [listing])


def test_where_nothing_is_there_no_time_is_known(store, path):
    rows = [row(toy(alpha=alpha)) for alpha in (0, 30)] + [row(toy(), study="gauge", gauge="fixed")]
    assert plan(rows, store, path) == [
        "sweep: 2 jobs, 0 there, 2 missing",
        "gauge: 1 jobs, 0 there, 1 missing",
        "  2 x toy MLP[4]: no time known; nothing like it is there",
        "2 jobs to compute, about 0.0 core-minutes, and 1 kinds of job of which no time is known",
    ]
    assert not store.folder.exists() and not path.parent.exists()


def test_what_is_listed_or_stored_is_there_and_tells_how_long_the_others_take(store, path):
    added, stored, *missing = (
        row(toy(alpha=alpha, block=block)) for alpha in (10, 20) for block in (0, 1)
    )
    opened(path).add([computed(added, seconds=90)], CONFIG)
    _, arrays, record = computed(stored, seconds=90)
    store.save(stored.job, arrays, record)
    assert plan([added, stored, *missing], store, path) == [
        "sweep: 4 jobs, 2 there, 2 missing",
        "  2 x toy MLP[4]: about 3.0 core-minutes; nearest: alpha 10 there, 20 here",
        "2 jobs to compute, about 3.0 core-minutes",
    ]
    assert plan([added, stored], store, path) == [
        "sweep: 2 jobs, 2 there, 0 missing",
        "0 jobs to compute, about 0.0 core-minutes",
    ]
    assert not store.has(missing[0].job)


def test_jobs_that_others_need_are_to_be_computed_too(store, path):
    """They are no rows of the study, and cost all the same."""
    teacher = toy(rate=0.3)
    _, arrays, record = computed(row(toy(rate=0.2)), seconds=60)
    store.save(toy(rate=0.2), arrays, record)
    lines = plan([row(toy(alpha=30, parts=(teacher,)))], store, path)
    assert lines[0] == "sweep: 1 jobs, 0 there, 1 missing" and lines[-1].startswith(
        "2 jobs to compute, about 2.0 core"
    )
    assert "nearest: rate 0.2 there, 0.3 here" in lines[1]


def test_kinds_of_job_and_of_model_are_not_compared_with_each_other(store, path):
    """A circuit's time says nothing of a network's."""
    opened(path).add([computed(row(toy(model=CIRCUIT)), seconds=600)], CONFIG)
    assert plan([row(toy()), row(toy(model=QNN(3, 3)))], store, path) == [
        "sweep: 2 jobs, 0 there, 2 missing",
        "  1 x toy MLP[4]: no time known; nothing like it is there",
        "  1 x toy QNN[depth=3]: about 10.0 core-minutes; nearest: model.depth 2 there, 3 here",
        "2 jobs to compute, about 10.0 core-minutes, and 1 kinds of job of which no time is known",
    ]


def test_fields_at_their_default_are_called_so_and_many_are_counted(store, path):
    opened(path).add([computed(row(toy(alpha=10, rate=0.2)))], CONFIG)
    assert (
        "nearest: alpha 10 there, default here; rate 0.2 there, 0.5 here"
        in plan([row(toy(rate=0.5))], store, path)[1]
    )
    many = replace(toy(alpha=40, rate=0.7, block=3, size=2, model=MLP(9, (5,))))
    line = plan([row(many)], store, path)[1]
    assert (
        line.endswith("model.n_features 8 there, 9 here and 2 more") and line.count(" there, ") == 4
    )


def test_the_nearest_job_is_the_one_with_the_fewest_differences(store):
    """Fields at their default are not in the record, so that many differences may hide behind equal
    overlap."""
    records = [
        jobs.record(job, seconds)
        for job, seconds in ((toy(alpha=10, rate=0.2, block=4), 600.0), (toy(), 60.0))
    ]
    listings = [{str(place): record for place, record in enumerate(records)}]
    wanted = row(toy(block=1))
    lines = describe_plan([wanted], [wanted.job], store, listings)
    assert (
        lines[1] == "  1 x toy MLP[4]: about 1.0 core-minutes; nearest: block default there, 1 here"
    )


def test_jobs_of_code_without_a_source_have_no_known_time(store, path):
    names = {"Toy": Toy, "dataclass": dataclass}
    exec(
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(Toy):\n    def perform(self, "
        "dataset):\n        return {}",
        names,
    )
    mine = names["Mine"](data=DATA["sha256"], model=NETWORK)
    assert job_key(mine) is None
    opened(path).add([computed(row(toy()))], CONFIG)
    lines = plan([row(mine), row(toy())], store, path)
    assert lines[0] == "sweep: 2 jobs, 1 there, 1 missing"
    assert lines[1] == "  1 x toy MLP[4]: no time known; nothing like it is there"

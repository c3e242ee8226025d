"""The XXZ script as a user meets it, and what both models see of the states."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import call_script, run_python

from datar import load_xxz
from foundation.base import storage
from foundation.measures.metrics import cross_entropy
from foundation.quantum import circuits
from foundation.quantum.ring import xxz_spectrum
from models import MLP, QNN, Training, train
from poison_unlearn import METHODS, GradientAscent, Poison, Retrain, Task, unlearn
from protocol import Fit, inputs_of_sets, tensors_to_params
from run_unlearn_xxz import CORRECTED, PAPER, main

GAUGES = ("fixed", "random_sign", "random_phase")
TINY = (  # noqa: SIM905 - as one types them
    "--preset quick --n-sites 4 --runs 2 --gauge-control.runs 2 --alphas 0 30 --hidden 4 "
    "--label-hidden 3 --unlearn-hidden 4 --depth 1 --depths.layers 2 --weight-map.weights 0 0.5 "
    "--methods retrain ga --mlp.sweep.epochs 3 --mlp.teacher.epochs 3 --mlp.unlearn.epochs 2 "
    "--qnn.sweep.epochs 2 --qnn.teacher.epochs 2 --qnn.unlearn.epochs 2"
).split()
XXZ = "run_unlearn_xxz.py"
EVERY_STAGE = ("data", "noise_sweep", "unlearning", "weight_map", "depths", "gauge")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder for this module: states are diagonalised and programs compiled once in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(cache, in_this_process, tmp_path_factory):
    """A tiny run of every stage, and its folder."""
    out = tmp_path_factory.mktemp("out")
    done = call_script(XXZ, *TINY, "--out", out, "--stages", *EVERY_STAGE)
    assert done.returncode == 0, done.stderr
    return folder_of(out), done


def folder_of(out):
    (folder,) = (out / "xxz").iterdir()
    return folder


def read(folder, study):
    return storage.read_dataset(folder / f"{study}.nc")


# ---- the script ----


def test_every_stage_ends_in_a_labelled_file_and_a_figure(finished):
    folder, done = finished
    sweep, curves, cells, gauges = (
        read(folder, name) for name in ("noise_sweep", "unlearning", "weight_map", "gauge")
    )
    assert set(sweep.model.values) == {"MLP[4]", "MLP[3]", "QNN[depth=1]", "QNN[depth=2]"}
    labels, features = (sweep.accuracy.sel(poison=poison) for poison in ("labels", "features"))
    poisoned = {"alpha_percent": 30}
    assert labels.sel(poisoned).notnull().all() and labels.sel(split="validation").notnull().all()
    assert features.sel(poisoned).sel(model=["MLP[4]", "QNN[depth=1]"]).notnull().all()
    assert features.sel(model=["MLP[3]", "QNN[depth=2]"]).isnull().all()
    assert curves.accuracy.notnull().all() and set(curves.poison.values) == {"labels", "features"}
    assert (
        cells.unlearner.values.tolist() == ["ga"]
        and cells.accuracy.sel(first=0.5, second=0.0).notnull().all()
    )
    assert gauges.accuracy.dims == ("model", "gauge", "alpha_percent", "run", "split")
    assert set(gauges.gauge.values) == set(GAUGES)
    seen = gauges.accuracy.sel(split="validation")
    assert (
        seen.sel(model="MLP[4]").notnull().all()
        and seen.sel(model="QNN[depth=1]", gauge="fixed").notnull().all()
    )
    assert seen.sel(model="QNN[depth=1]").count("gauge").values.max() == 1
    for found, size in ((sweep, 4 * 4 * 2), (gauges, 4 * 4)):
        deepest = found.isel(model=-1)
        assert deepest.family == "QNN" and deepest["size"] == size
    for name in ("spectrum", "noise_sweep", "model_sizes", "unlearning", "weight_map", "gauge"):
        assert (folder / f"{name}.png").stat().st_size > 10_000 and (
            folder / f"{name}.pdf"
        ).is_file()
    assert all(
        word in done.stdout
        for word in ("Noise sweep", "Unlearning", "Weight maps", "Gauge control")
    )


def test_the_spectrum_is_kept_for_its_figure(finished):
    kept, levels = read(finished[0], "data"), xxz_spectrum(4)
    np.testing.assert_array_equal(kept.delta, levels.delta)
    np.testing.assert_array_equal(kept.energy_per_site, levels.energy / 4)
    np.testing.assert_array_equal(kept.gap, levels.gap)
    assert kept.is_train.sum() == 82 and kept.is_val.sum() == 84


def test_a_second_start_computes_nothing(finished):
    """Started as a user starts it, in a process of its own."""
    folder, _ = finished
    before = {
        path: path.read_bytes()
        for path in (*folder.glob("*.nc"), *folder.parents[1].glob("jobs/*"))
    }
    words = (*TINY, "--out", str(folder.parents[1]), "--stages", *EVERY_STAGE)
    again = run_python(XXZ, *words, COLUMNS="120")
    assert again.returncode == 0 and "training" not in again.stderr, again.stderr
    assert {path: path.read_bytes() for path in before} == before and len(before) > 10


def test_stages_one_by_one_give_the_same_bits(in_this_process, finished, tmp_path):
    """The depths first and alone, then the rest of the noise sweep joins their file."""
    for stages in (["depths"], ["noise_sweep", "data"]):
        done = call_script(XXZ, *TINY, "--out", tmp_path, "--models", "qnn", "--stages", *stages)
        assert done.returncode == 0, done.stderr
    for study in ("noise_sweep", "data"):
        alone, together = read(folder_of(tmp_path), study), read(finished[0], study)
        assert alone.equals(
            together.sel({name: alone[name].values for name in ("model",) if name in alone.coords})
        )


def test_the_fixed_gauge_of_the_control_is_the_noise_sweep(finished):
    """Same seeds, masks and data: the same jobs, computed once."""
    sweep, gauges = read(finished[0], "noise_sweep"), read(finished[0], "gauge")
    for model in ("MLP[4]", "QNN[depth=1]"):
        expected = sweep.accuracy.sel(model=model, poison="labels")
        np.testing.assert_array_equal(gauges.accuracy.sel(model=model, gauge="fixed"), expected)
    ours, theirs = (
        {each["key"] for each in json.loads(study.attrs["jobs"]).values()}
        for study in (sweep, gauges)
    )
    # and the network under two other gauges
    assert len(ours & theirs) == 2 * 2 and len(theirs) == 2 * 2 + 2 * 2


def test_what_the_poison_looks_like_stands_beside_the_spectrum(finished):
    data = read(finished[0], "data")
    assert data.embedding.dims == ("version", "sample", "axis") and data.embedding.notnull().all()
    assert dict(zip(data.version.values, data.shown_percent.values, strict=True)) == {
        "none": 0, "labels": 30, "features": 30,
    }  # fmt: skip
    assert data.poisoned.sum("sample").sel(
        version=["none", "labels", "features"]
    ).values.tolist() == [0, 24, 24]
    assert "image" not in data


@pytest.mark.parametrize(
    ("flags", "said", "lines"),
    [
        (["--gauge", "coulomb"], "random_phase", 8),  # tyro's own box
        (["--stages", "depth"], "depths", 8),
        (["--depths.layers", "0"], "--depths.layers", 1),
        (["--gauge-control.runs", "0"], "--gauge-control.runs", 1),
        (["--n-sites", "7"], "n_sites: got 7", 1),
        (["--n-sites", "40"], "n_sites: got 40", 1),
        (["--data", "no/such/file.npz"], "no/such/file.npz", 1),
        (["--data", "{folder}/zeros.npz", "--n-sites", "4"], "data: ys", 1),
        (["--out", "/proc/nowhere", "--n-sites", "4"], "--out", 1),
    ],
)
def test_bad_input_gets_one_clear_message_and_exit_code_2(
    flags, said, lines, tmp_path, monkeypatch, capsys
):
    np.savez(tmp_path / "zeros.npz", xs=np.zeros((294, 16)), ys=np.zeros(294))
    words = [flag.format(folder=tmp_path) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["run_unlearn_xxz.py", "--preset", "quick", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    stderr = capsys.readouterr().err
    assert stop.value.code == 2 and said in " ".join(stderr.split())
    assert 1 <= len(stderr.splitlines()) <= lines


def test_paper_is_the_published_protocol():
    """DESIGN's table of the protocol, value by value."""
    assert (PAPER.gauge, PAPER.independent_teachers) == ("random_phase", False)
    assert (PAPER.hidden, PAPER.label_hidden) == (("64,16",), ("32,8", "16,4", "8,4", "8,2"))
    assert (PAPER.depth, PAPER.depths.layers, PAPER.n_sites, PAPER.runs) == (4, (5, 6, 7), 12, 5)
    assert (PAPER.unlearn_hidden, PAPER.unlearn_labels, PAPER.unlearn_features) == ("64,16", 30, 80)
    assert PAPER.alphas == tuple(range(0, 100, 10)) and set(PAPER.poisons) == {"labels", "features"}
    assert PAPER.weight_map.weights == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    scrub, ga = PAPER.method("scrub"), PAPER.method("ga")
    assert (scrub.divergence, scrub.reads, scrub.mapped()) == (
        "published",
        "clean",
        ("forget", "kl"),
    )
    assert (scrub.hyper(), ga.hyper()) == (
        {"ce": 1.0, "forget": 0.2, "kl": 0.0},
        {"ce": 1.0, "forget": 0.2},
    )
    trainings = [(400, 32, 0.01, None), (400, 32, 0.01, None), (50, 0, 0.01, None)]  # by Adam
    assert (
        list(map(dataclasses.astuple, (PAPER.mlp.sweep, PAPER.mlp.teacher, PAPER.mlp.unlearn)))
        == trainings
    )
    trainings = [(200, 32, 0.03, None), (200, 32, 0.03, None), (50, 0, 0.005, None)]
    assert (
        list(map(dataclasses.astuple, (PAPER.qnn.sweep, PAPER.qnn.teacher, PAPER.qnn.unlearn)))
        == trainings
    )
    assert "depths" not in PAPER.stages and "gauge" not in PAPER.stages
    scrub = CORRECTED.method("scrub")
    assert (CORRECTED.gauge, scrub.divergence, scrub.reads) == ("fixed", "full", "poisoned")
    assert (
        CORRECTED.independent_teachers and CORRECTED.mlp == PAPER.mlp and CORRECTED.qnn == PAPER.qnn
    )


# ---- what the models see ----


@pytest.mark.parametrize(("n_sites", "depth"), [(6, 5), (12, 4)])
def test_qnn_predictions_do_not_depend_on_the_gauge(n_sites, depth):
    """Reduced to density matrices (depth 4 of 12 sites) or as states (depth 5 of 6), from
    parameters of order 1."""
    model = QNN(n_sites, depth)
    params = 100 * model.init(jax.random.key(1))

    def predictions(gauge):
        return jax.nn.sigmoid(
            model.logits(
                params, model.prepare(load_xxz(n_sites=n_sites, gauge=gauge, seed=5).val.x)
            )
        )

    fixed = predictions("fixed")
    assert np.ptp(fixed) > 0.01  # they depend on the state
    for gauge in ("random_sign", "random_phase"):
        np.testing.assert_allclose(predictions(gauge), fixed, atol=1e-5)


def unlearned(dataset, model, poison, alpha, **fields):
    """A job that unlearns, behind one that teaches."""
    method = Retrain(training=Training(5, 0, 0.01))
    teacher = Fit(
        data="d", model=model, poison=Poison(poison, alpha), method=method, size=2, **fields
    )
    return replace(teacher, start=teacher, method=METHODS["ga"])


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("poison", ["labels", "features"])
def test_both_models_see_the_same_states(gauge, poison):
    """The QNN's 6 qubits hold what the MLP reads as (Re, Im), poisoned samples included."""
    dataset = load_xxz(n_sites=6, gauge=gauge)
    jobs = [unlearned(dataset, model, poison, 30) for model in (MLP(128, (4,)), QNN(6, 2))]
    (_, mlp), (_, qnn) = (inputs_of_sets(job.model, job.sets(dataset), job.forgets) for job in jobs)
    seen = [
        (mlp.retain.x, qnn.retain.x),
        (mlp.forget.x, qnn.forget.x),
        (mlp.forget_clean.x, qnn.forget_clean.x),
        (mlp.inputs, qnn.inputs),
        (mlp.validation[None], qnn.validation[None]),
    ]
    for narrow, circuit in seen:
        wide = np.zeros((*narrow.shape[:-1], 128), np.float32)
        wide[..., np.arange(128) if mlp.columns is None else mlp.columns] = narrow
        states = wide[..., :64] + 1j * wide[..., 64:]  # (draws, n, 64)
        reduced = jnp.stack([circuits.reduce_states(draw, 2) for draw in states])
        np.testing.assert_allclose(reduced, circuit, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(states, axis=-1), 1, atol=1e-5)
        assert bool(states.imag.any()) == (gauge == "random_phase")
    np.testing.assert_array_equal(mlp.labels, qnn.labels)
    for one, other in (
        (mlp.retain, qnn.retain),
        (mlp.forget, qnn.forget),
        (mlp.forget_clean, qnn.forget_clean),
    ):
        np.testing.assert_array_equal(one.y, other.y)


def test_labels_are_flipped_alike_under_all_gauges():
    datasets = [load_xxz(n_sites=4, gauge=gauge) for gauge in GAUGES]
    drawn = [
        unlearned(dataset, MLP(32, (4,)), "labels", 30).draws(dataset)[1] for dataset in datasets
    ]
    assert drawn[0].mask.sum() == 24
    for other in drawn[1:]:
        np.testing.assert_array_equal(other.mask, drawn[0].mask)
        np.testing.assert_array_equal(other.split.y, drawn[0].split.y)


@pytest.mark.parametrize(
    ("config", "scrub_reads"), [(PAPER, "forget_clean"), (CORRECTED, "forget_poisoned")]
)
def test_which_features_each_method_forgets(config, scrub_reads):
    """ga always ascends on the poisoned ones; scrub reads the clean ones where it is as
    published."""
    dataset = load_xxz(n_sites=4, gauge=config.gauge)
    model = MLP(32, (4,))
    job = unlearned(dataset, model, "features", 80)
    draw, (_, block) = (
        job.draws(dataset)[0],
        inputs_of_sets(job.model, job.sets(dataset), job.forgets),
    )
    assert draw.mask.sum() == 66 and not np.allclose(draw.forget_clean.x, draw.forget_poisoned.x)
    task = Task(model, None, block.retain, block.forget, block.forget_clean, None)
    columns = slice(None) if block.columns is None else np.asarray(block.columns)
    for method, name in (("ga", "forget_poisoned"), ("scrub", scrub_reads)):
        forget = config.method(method).forget_set(task)
        np.testing.assert_array_equal(forget.x[0], model.prepare(getattr(draw, name).x)[:, columns])
        np.testing.assert_array_equal(forget.y[0], dataset.train.y[draw.mask])


def test_ascent_raises_the_loss_on_the_poisoned_features():
    dataset, model = load_xxz(n_sites=4), MLP(32, (4,))
    draw = unlearned(dataset, model, "features", 50).draws(dataset)[0]
    retain, forget = (
        split._replace(x=model.prepare(split.x)) for split in (draw.retain, draw.forget_poisoned)
    )
    teacher = model.init(jax.random.key(0))
    ascent = GradientAscent(ce=0.0, forget=1.0, training=Training(5, 0, 0.01))
    after, _ = unlearn(ascent, model, teacher, retain, forget, key=jax.random.key(1))
    before, raised = (
        float(cross_entropy(model.logits(params, forget.x), forget.y))
        for params in (teacher, after)
    )
    assert raised > before + 0.01


@pytest.mark.parametrize("poison", ["labels", "features"])
def test_stored_accuracies_are_those_of_the_stored_parameters(finished, poison):
    """Every split of the unlearning curves, at their end, against a plain NumPy network on the data
    drawn anew."""
    folder, _ = finished
    study, dataset, model = read(folder, "unlearning"), load_xxz(n_sites=4), MLP(32, (4,))
    curves = study.accuracy.isel(epoch=-1).sel(model="MLP[4]", poison=poison)
    for method in ("retrain", "ga"):
        words = {"model": "MLP[4]", "poison": poison, "unlearner": method}
        (key,) = [each["key"] for address, each in json.loads(study.attrs["jobs"]).items()
                  if json.loads(each.get("address", address))[0] == words]  # fmt: skip
        tensors, _ = storage.read_tensors(folder.parents[1] / "jobs" / f"{key}.safetensors")
        params = tensors_to_params(model, tensors)
        for run, draw in enumerate(unlearned(dataset, model, poison, 30).draws(dataset)):
            splits = {
                "validation": dataset.val, "train": draw.split, "retain": draw.retain,
                "forget_poisoned": draw.forget_poisoned, "forget_clean": draw.forget_clean,
            }  # fmt: skip
            if poison == "features":
                true_labels = dataset.train.y[draw.mask]
                np.testing.assert_array_equal(draw.forget_poisoned.y, true_labels)
                np.testing.assert_array_equal(draw.forget_clean.y, true_labels)
            for name, split in splits.items():
                logits = network([np.asarray(a[run]) for pair in params for a in pair], split.x)
                stored = curves.sel(unlearner=method, run=run, split=name)
                assert float(stored) == pytest.approx(np.mean((logits > 0) == split.y), abs=1e-6), (
                    name
                )


def network(arrays, x):
    """Logits of a ReLU network from its weights and biases in turn, in NumPy: (n,)."""
    activity = np.concatenate([x.real, x.imag], axis=1)
    *hidden, last_weights, last_bias = arrays
    for weights, bias in zip(hidden[::2], hidden[1::2], strict=True):
        activity = np.maximum(activity @ weights.T + bias, 0)
    return (activity @ last_weights.T + last_bias)[:, 0]


@dataclass(frozen=True)
class Whole:
    """An MLP that cannot be narrowed."""

    network: MLP

    @property
    def label(self):
        return self.network.label

    def init(self, key):
        return self.network.init(key)

    def prepare(self, x):
        return self.network.prepare(x)

    def logits(self, params, x):
        return self.network.logits(params, x)


@pytest.mark.parametrize("run", [0, 1])
def test_all_runs_start_from_the_one_teacher_that_is_named(run):
    """As published. No epoch is trained, so that the parameters are the teacher's."""
    dataset = load_xxz(n_sites=4)
    teacher = unlearned(dataset, MLP(32, (4,)), "labels", 30).start
    taught = teacher.perform(dataset)
    still = replace(METHODS["cf"], training=Training(0, 0, 0.01))
    after = replace(teacher, method=still, start=teacher, teacher_run=run).perform(dataset, taught)
    names = [name for name in taught if name.startswith("params")]
    assert names and not np.array_equal(taught[names[0]][0], taught[names[0]][1])
    for name in names:
        np.testing.assert_array_equal(after[name], taught[name][[run, run]])


@pytest.mark.parametrize("start", [False, True])
def test_leaving_out_features_that_are_zero_changes_nothing(start):
    dataset = load_xxz(n_sites=6, gauge="random_phase")
    arrays = {}
    for model in (MLP(128, (8, 4)), Whole(MLP(128, (8, 4)))):
        training = Training(10, 32, 0.01)
        teacher = Fit(
            data="d",
            model=model,
            poison=Poison("labels", 30),
            method=Retrain(training=training),
            size=2,
        )
        given = teacher.perform(dataset)
        job = (
            replace(teacher, start=teacher, method=GradientAscent(training=training))
            if start
            else teacher
        )
        arrays[type(model)] = job.perform(dataset, given) if start else given
    narrow, whole = arrays.values()
    assert narrow.keys() == whole.keys() and narrow["size"] == whole["size"]
    for name in whole:
        np.testing.assert_allclose(narrow[name], whole[name], rtol=0, atol=2e-4, err_msg=name)
    weights = narrow["params[0][0]"]
    unused = np.all(np.isclose(weights, whole["params[0][0]"], rtol=0, atol=0), axis=(0, 1))
    assert unused.sum() >= 128 - 2 * 20  # 6 choose 3 amplitudes, real and imaginary, are not zero
    assert np.abs(weights).sum() > 0


def test_a_teacher_of_the_job_is_a_model_trained_on_the_poisoned_split():
    """Up to the keys, which are the job's own: as accurate as `train` on the same data."""
    dataset, model = load_xxz(n_sites=4), MLP(32, (8,))
    training = Training(150, 32, 0.03)
    job = Fit(
        data="d",
        model=model,
        poison=Poison("labels", 10),
        method=Retrain(training=training),
        size=2,
    )
    arrays = job.perform(dataset)
    split = job.draws(dataset)[1].split
    params = train(model, split, **training.keywords(), key=jax.random.key(5))
    accuracy = np.mean((np.asarray(model.logits(params, dataset.val.x)) > 0) == dataset.val.y)
    assert abs(arrays["accuracy"][1, 0] - accuracy) < 0.1 and accuracy > 0.9
    np.testing.assert_array_equal(arrays["mask"][1], job.draws(dataset)[1].mask)

"""Choices by each run's own noisy labels: against choices by hand and by scikit-learn; the pool;
the stage on a small study."""

from dataclasses import replace

import numpy as np
import pytest
import reports
from conftest import changed, random_split, refused
from sklearn.svm import SVC
from test_controls import BASE, fit_of, permute_validation_labels
from test_evaluation import small_data

import protocol
import run_unlearn_mnist
import run_unlearn_xxz
from datar import Dataset, Split
from foundation.base import storage
from foundation.engine.runner import run_studies
from foundation.report.frames import ResultFiles
from poison_unlearn import Poison
from protocol import Fit, values_of
from studies import own_labels
from studies.classics import CLASSICS, BoostedTrees, FidelitySVM, RadialSVM, Ridge, fidelity
from studies.own_labels import HeldOut, OwnTuned, Picked, chosen_by_runs, judged_and_pool
from studies.tuning import VALIDATION, Tuning

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def data():
    return small_data()


# ---- what is chosen ----


def test_each_run_takes_its_own_least_loss():
    """(settings, points, runs); where a setting diverged it is out of that run's choice."""
    loss = np.ones((3, 4, 3))
    loss[2, 1, 0] = loss[0, 3, 1] = loss[1, 0, 2] = 0.5
    loss[1, 2] = np.nan
    settings, points = chosen_by_runs(loss)
    assert settings.tolist() == [2, 0, 1] and points.tolist() == [1, 3, 0]


def own_tuned(data, *rates):
    held_out = {"held_out_percent": 20, "held_out_of": "all"}
    trials = tuple((fit_of(data, rate=rate, **held_out),) for rate in rates)
    tuning = Tuning(data=data.provenance["sha256"], trials=trials)
    fit = fit_of(data, measured=(), record="end", rate=rates[0])
    return OwnTuned(**values_of(fit, Fit), tuning=tuning)


def test_a_run_is_trained_on_all_its_samples_with_what_it_chose(data):
    job = own_tuned(data, 0.01, 0.1)
    loss = np.ones((2, 4, 2))
    loss[0, 3, 0] = loss[1, 1, 1] = 0.5
    found = job.perform(data, {"loss": loss})
    for run, (rate, point) in enumerate([(0.01, 3), (0.1, 1)]):
        usual = fit_of(data, rate=rate).perform(data)
        np.testing.assert_array_equal(found["accuracy"][run], usual["accuracy"][run, point])
        np.testing.assert_array_equal(found["loss"][run], usual["loss"][run, point])
    assert found["setting"].tolist() == [0, 1] and found["epoch"].tolist() == [6, 2]
    assert not found["diverged"].any() and job.needs == (job.tuning,)


def test_samples_that_a_run_holds_out_are_of_its_own_training_set(data):
    job = own_tuned(data, 0.01)
    ((trial,),) = job.tuning.trials
    for whole, cut in zip(job.sets(data), trial.sets(data), strict=True):
        own = set(map(bytes, whole.draw.split.x))
        assert set(map(bytes, cut.val.x)) | set(map(bytes, cut.draw.split.x)) == own


def drawn_of(data, **options):
    return {
        "data": data.provenance["sha256"],
        "poison": Poison("labels", 40),
        "size": 3,
        "redrawn": True,
    } | options


@pytest.mark.parametrize("by_run", [True, False])
def test_an_estimator_takes_the_setting_that_scikit_learn_finds(data, by_run):
    """At 40 % of flips, from the samples of each run alone, or on average; the first of equals."""
    candidates = FidelitySVM().settings()
    held_out = HeldOut(
        **drawn_of(data), candidates=candidates, held_out_percent=20, held_out_of="all"
    )
    job = Picked(**drawn_of(data), held_out=held_out, by_run=by_run)
    scores = held_out.perform(data)
    found = job.perform(data, scores)

    def gram(left, right):
        return np.abs(np.asarray(left, complex) @ np.asarray(right, complex).conj().T) ** 2

    def accuracy(c, train, test):
        machine = SVC(C=c, kernel="precomputed").fit(gram(train.x, train.x), train.y)
        return np.mean(machine.predict(gram(test.x, train.x)) == test.y)

    table = np.array([
        [accuracy(each.c, sets.draw.split, sets.val) for sets in held_out.sets(data)]
        for each in candidates
    ])  # fmt: skip
    np.testing.assert_allclose(scores["score"], table, atol=0.051)  # of 20 samples one
    if not by_run:
        table = np.repeat(table.mean(axis=1, keepdims=True), 3, axis=1)
    assert found["setting"].tolist() == table.argmax(axis=0).tolist()
    for run, sets in enumerate(job.sets(data)):
        c = candidates[found["setting"][run]].c
        expected = accuracy(c, sets.draw.split, sets.val)
        assert found["accuracy"][run, VALIDATION] == pytest.approx(expected, abs=0.02)


def test_permuted_validation_labels_change_no_choice(data, monkeypatch):
    def choices():
        protocol._recent.clear()
        job = own_tuned(data, 0.01, 0.1)
        trained = [trial.perform(data) for (trial,) in job.tuning.trials]
        tuned = job.perform(data, job.tuning.perform(data, *trained))
        held_out = HeldOut(
            **drawn_of(data),
            candidates=Ridge().settings(),
            held_out_percent=20,
            held_out_of="all",
        )
        picked = Picked(**drawn_of(data), held_out=held_out, by_run=True)
        found = picked.perform(data, held_out.perform(data))
        judged = [each["accuracy"][:, VALIDATION] for each in (tuned, found)]
        return (tuned["setting"], tuned["epoch"], found["setting"]), judged

    before, judged = choices()
    permute_validation_labels(monkeypatch)
    after, others = choices()
    for mine, theirs in zip(before, after, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(judged, others)  # what is judged does depend on them


# ---- data ----


def test_the_pool_has_no_sample_on_which_a_run_is_judged():
    train, val = random_split(30, 4), random_split(200, 4, seed=1)
    whole = Dataset(train, val, "mine", 4, {"n_train": 30, "n_val": 200}).identified()
    parts = judged_and_pool(BASE, whole)
    assert parts.keys() == {"judged", "pool"}
    samples = {name: [*part.train.x, *part.val.x] for name, part in parts.items()}
    assert [len(samples[name]) for name in parts] == [138, 92]
    together = sorted(map(bytes, [*samples["judged"], *samples["pool"]]))
    assert together == sorted(map(bytes, [*train.x, *val.x]))  # each once
    for part in parts.values():
        assert len(part.train.y) == 30 == part.provenance["n_train"]
        assert part.provenance["sha256"] == part.identified().provenance["sha256"]
    assert len({part.provenance["sha256"] for part in (whole, *parts.values())}) == 3


def test_too_few_samples_have_no_pool(data):
    assert judged_and_pool(BASE, data) == {"judged": data}


# ---- estimators ----


@pytest.mark.parametrize("is_complex", [False, True])
def test_the_kernel_is_the_fidelity(is_complex):
    left, right = (
        random_split(n, 6, seed=n, complex_states=is_complex).x.astype(complex) for n in (5, 7)
    )
    rows = (np.concatenate([x.real, x.imag], axis=1) for x in (left, right))
    expected = np.abs(left.conj() @ right.T) ** 2
    np.testing.assert_allclose(fidelity(*rows), expected, atol=1e-12)


@pytest.mark.parametrize("estimator", CLASSICS.values(), ids=CLASSICS)
@pytest.mark.parametrize("is_complex", [False, True])
def test_estimators_learn_a_plain_rule_of_real_and_complex_states(estimator, is_complex):
    """Which of two states is near, whatever its phase."""
    x, y = random_split(120, 4, complex_states=is_complex)
    states = np.eye(4)[y] + 0.3 * x
    fitted = estimator.fit(states[:80].astype(x.dtype), y[:80])
    assert np.mean(fitted.predict(states[80:].astype(x.dtype)) == y[80:]) > 0.9
    settings = estimator.settings()
    assert len(settings) == len(set(settings)) == 4 and estimator in settings


def test_a_norm_is_no_feature_of_a_state():
    x, y = random_split(40, 4)
    machine = FidelitySVM().fit(x, y)
    np.testing.assert_array_equal(machine.predict(x), machine.predict(7 * x))


def test_what_is_no_setting_is_refused():
    for make in (FidelitySVM, RadialSVM, Ridge):
        with refused("got 0.0, allowed: a positive, finite number"):
            make(0.0)
    with refused("rounds"):
        BoostedTrees(0)
    with refused("nonsense"):
        changed(BASE, own_labels={"contenders": ("nonsense",)})


def test_the_ring_has_a_pool_of_states_of_its_own():
    """Half a step further in Δ, and none of those that are judged."""
    config = replace(run_unlearn_xxz.CORRECTED, n_sites=4)
    parts = judged_and_pool(config, config.load())
    judged, pool = (
        {bytes(x) for split in (parts[name].train, parts[name].val) for x in split.x}
        for name in ("judged", "pool")
    )
    assert len(judged) == len(pool) == 166 and not judged & pool
    plan = own_labels.plan(changed(config, noises=("labels=30",)), config.load())
    pooled = [row.job.held_out for row in plan if getattr(row.job, "by_run", True) is False]
    assert pooled and all(job.block >= 200 for job in pooled)  # no draw of a judged run
    others = replace(small_data(), name="other")  # samples of another kind have no such pool
    assert list(judged_and_pool(config, others)) == ["judged"]


# ---- the stage ----


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """On samples that are enough for a pool."""
    few = small_data()
    parts = (
        few.train.take(np.arange(24)),
        Split(
            np.concatenate([few.train.x[24:], few.val.x]),
            np.concatenate([few.train.y[24:], few.val.y]),
        ),
    )
    sizes = {"n_train": 24, "n_val": len(parts[1].y)}
    data = replace(few, train=parts[0], val=parts[1], provenance=few.provenance | sizes)
    config = changed(
        BASE,
        stages=("own_labels",),
        noises=("labels=30",),
        out=tmp_path_factory.mktemp("own"),
        own_labels={"contenders": ("mlp", "mlp_decay", "class_mean", "kernel")},
    )
    return config, run_studies(config, data.identified(), run_unlearn_mnist.STUDIES)


def test_every_contender_has_a_number_for_each_choice_that_it_can_make(studied, capsys):
    config, folder = studied
    found = storage.read_dataset(folder / "own_labels.nc")
    judged = found.accuracy.sel(split="validation", poison="labels", alpha_percent=30)
    has_runs = judged.notnull().all("run").to_pandas()
    assert set(has_runs.columns) == set(own_labels.CHOICES)
    of_mlp = [name for name in has_runs.index if name.endswith("weight decay")]
    assert has_runs.loc["fidelity-kernel SVM"].all() and has_runs.loc[of_mlp].own.all()
    assert not has_runs.loc[of_mlp, "as is"].any()  # no published one has a decay
    assert has_runs.loc["nearest class mean"].tolist() == [
        name == "as is" for name in has_runs.columns
    ]
    assert found.chosen_epoch.sel(choice="own").notnull().any()
    reports.print_summary(folder, config.stages)
    assert "as is: validation" in capsys.readouterr().out
    assert {"own_labels"} == {path.stem for path in reports.save_all(folder)}


def test_a_table_has_a_row_for_each_contender(studied):
    shown = own_labels.by_choice(ResultFiles(studied[1].parents[1]), *studied[1].parts[-2:])
    assert shown[shown.measure == "validation"].groupby("choice").model.nunique().to_dict() == {
        "as is": 3,
        "own": 3,
        "pooled": 3,
    }

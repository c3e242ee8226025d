"""Poison that is partly known, or has to be found: what is measured, what is ranked, and that no
truth is read."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reports
from conftest import changed, refused
from jax.flatten_util import ravel_pytree
from test_evaluation import SMALL, small_data

import run_unlearn_mnist
from datar import load_mnist
from foundation.base import storage
from foundation.engine.runner import run_studies
from foundation.engine.study import by_name
from foundation.report import frames
from models import MLP, Training
from poison_unlearn import METHODS, Poison, Retrain
from protocol import Fit, tensors_to_params
from studies import detectors, discovery
from studies.discovery import DETECTORS, FULL, PARTS, Detection, Found, Partly, known_cases
from studies.oracles import Choice

pytestmark = pytest.mark.usefixtures("in_this_process")

KNOWN = changed(
    SMALL,
    stages=("discovery",),
    selection_runs=1,
    discovery={
        "poisons": ("labels=30",),
        "known": (0, 50, 100),
        "runs": 3,
        "methods": ("retrain", "cf", "ga"),
    },
)


@pytest.fixture(scope="module")
def data():
    return small_data()


@pytest.fixture(scope="module")
def studied(tmp_path_factory, data):
    """The stage on a small study, once: its folder, and its files by name."""
    folder = run_studies(
        replace(KNOWN, out=tmp_path_factory.mktemp("discovery")), data, run_unlearn_mnist.STUDIES
    )
    return folder, {
        name: storage.read_dataset(folder / f"{name}.nc")
        for name in ("discovery", "detection", "detected")
    }


# ---- jobs by themselves ----


def case_of(data):
    """A small MLP's case, a choice of one setting of fine-tuning, and a block of two teachers."""
    _, case, unlearn = next(known_cases(replace(KNOWN, selection_runs=0), data))
    method = replace(METHODS["cf"], training=unlearn)
    choice = Choice(data=case.data, case=replace(case, n=0), candidates=(method,))
    return case, method, choice, discovery._fit(KNOWN, case, case.training_method, 0)


@pytest.fixture(scope="module")
def teachers(data):
    case, method, choice, teacher = case_of(data)
    return case, method, choice, teacher, teacher.perform(data)


def detection_of(data, teacher, arrays):
    job = Detection(
        data=teacher.data,
        seed=teacher.seed,
        size=2,
        teacher=teacher,
        folds=tuple(detectors.folds_of(teacher)),
    )
    return job, job.perform(data, arrays, *(fold.perform(data) for fold in job.folds))


def test_folds_hold_out_every_sample_once(data, teachers):
    """Of both runs, each by its own order; with their noisy labels."""
    teacher = teachers[3]
    kept = np.stack([fold.kept(data) for fold in detectors.folds_of(teacher)])
    assert kept.shape == (detectors.FOLDS, 2, 80) and ((~kept).sum(axis=0) == 1).all()
    assert (kept[:, 0] != kept[:, 1]).any()
    fold = next(detectors.folds_of(teacher))
    for own, whole, mask in zip(fold.sets(data), teacher.sets(data), fold.kept(data), strict=True):
        np.testing.assert_array_equal(own.val.y, whole.draw.split.y[~mask])
        np.testing.assert_array_equal(own.draw.split.x, whole.draw.split.x[mask])
        np.testing.assert_array_equal(own.draw.mask, whole.draw.mask[mask])


def test_where_all_is_known_the_numbers_are_those_of_unlearning(data, teachers):
    """To the bit: the same jobs under the setting, with the parts counted by hand from their
    logits."""
    case, method, choice, teacher, arrays = teachers
    job = discovery._partly(teacher, Partly, "cf", method, choice, case.poison)
    mine = job.perform(data, arrays, choice.perform(data))
    usual = replace(teacher, method=method, start=teacher).perform(data, arrays)
    right = (usual["logit"] > 0) == (usual["label"] > 0)
    for run in range(2):
        of_clean = right[run, 80:160]
        expected = [
            right[run, 160:].mean(),
            of_clean[usual["mask"][run]].mean(),
            of_clean[usual["known"][run]].mean(),
        ]
        assert mine["accuracy"][run, :3].tolist() == expected
    # nothing is hidden, there is no trigger
    assert np.isnan(mine["accuracy"][:, PARTS.index("hidden") :]).all()


@pytest.mark.parametrize("share", [25, 50])
def test_the_poisoned_samples_are_those_known_and_those_hidden(data, teachers, share):
    case, method, choice, teacher, arrays = teachers
    poison = replace(case.poison, known_percent=share)
    job = discovery._partly(teacher, Partly, "cf", method, choice, poison)
    found = job.perform(data, arrays, choice.perform(data))["accuracy"]
    poisoned, known, hidden = (
        found[:, PARTS.index(name)] for name in ("poisoned", "known", "hidden")
    )
    count, own = 24, round(24 * share / 100)
    np.testing.assert_allclose(poisoned, (own * known + (count - own) * hidden) / count, atol=1e-6)


def test_forgetting_what_was_found_is_forgetting_it_as_if_it_were_known(data, teachers):
    """A detector that finds just the poison gives the numbers of a poison that is known whole."""
    case, method, choice, teacher, arrays = teachers
    known = discovery._partly(teacher, Partly, "cf", method, choice, case.poison)
    detection, found = detection_of(data, teacher, arrays)
    job = discovery._partly(
        teacher, Found, "cf", method, choice, case.poison, detection=detection, detector="loss"
    )
    perfect = found | {"found": np.repeat(found["poisoned"][:, None], len(DETECTORS), axis=1)}
    chosen = choice.perform(data)
    mine, theirs = job.perform(data, arrays, chosen, perfect), known.perform(data, arrays, chosen)
    np.testing.assert_allclose(mine["accuracy"], theirs["accuracy"], atol=0.03)
    whole = discovery._partly(
        teacher,
        Found,
        FULL,
        teacher.method,
        None,
        case.poison,
        detection=detection,
        detector="loss",
    )
    retrained = discovery._partly(teacher, Partly, FULL, teacher.method, None, case.poison)
    np.testing.assert_allclose(
        whole.perform(data, perfect)["accuracy"], retrained.perform(data)["accuracy"], atol=0.03
    )


def test_where_nothing_is_found_nothing_is_done(data, teachers):
    case, method, choice, teacher, arrays = teachers
    detection, found = detection_of(data, teacher, arrays)
    none = found | {"found": np.zeros_like(found["found"])}
    untouched = discovery.judged(teacher, arrays, data)["accuracy"]
    for name, own, start in (("cf", choice, (arrays, choice.perform(data))), (FULL, None, ())):
        job = discovery._partly(
            teacher,
            Found,
            name,
            method if own else teacher.method,
            own,
            case.poison,
            detection=detection,
            detector="loss",
        )
        accuracy = job.perform(data, *start, none)["accuracy"]
        np.testing.assert_allclose(accuracy[:, :2], untouched[:, :2], atol=0.03)


# ---- detection ----


def test_suspicion_is_the_loss_of_the_teacher_and_of_models_that_have_not_seen_the_sample(
    data, teachers
):
    _, _, _, teacher, arrays = teachers
    job, found = detection_of(data, teacher, arrays)
    signs = np.where(arrays["label"][:, :80] > 0, 1, -1)
    np.testing.assert_allclose(
        found["suspicion"][:, 0], -signs * arrays["logit"][:, :80], rtol=1e-5
    )
    fold = job.folds[3]
    own = fold.perform(data)
    params = jax.tree.map(lambda leaf: leaf[1], tensors_to_params(fold.model, own))
    held = ~fold.kept(data)[1]
    x = teacher.sets(data)[1].draw.split.x[held]
    expected = -signs[1][held] * np.asarray(fold.model.logits(params, fold.model.prepare(x)))
    np.testing.assert_allclose(found["suspicion"][1, 1, held], expected, rtol=1e-4, atol=1e-5)
    sizes = found["found"].sum(axis=2)
    assert (sizes == sizes[:, :1]).all() and (sizes % (80 / detectors.STEPS) == 0).all()
    for run, detector in np.ndindex(2, len(DETECTORS)):
        taken = found["found"][run, detector]
        assert (
            found["suspicion"][run, detector][taken].min()
            >= found["suspicion"][run, detector][~taken].max()
        )


def test_self_influence_is_that_of_dense_matrices(data, teachers):
    """r² J (J'WJ/n + μ)^-1 J' with the whole matrix over the parameters."""
    _, _, _, teacher, arrays = teachers
    _, found = detection_of(data, teacher, arrays)
    model, split = teacher.model, teacher.sets(data)[0].draw.split
    flat, unravel = ravel_pytree(
        jax.tree.map(lambda leaf: leaf[0], tensors_to_params(model, arrays))
    )
    with jax.enable_x64(True):
        flat, x = jnp.asarray(flat, float), jnp.asarray(split.x, float)

        def logits(flat):
            return model.logits(jax.tree.map(lambda leaf: leaf.astype(float), unravel(flat)), x)

        jacobian = np.asarray(jax.jacrev(logits)(flat))
        p = np.asarray(jax.nn.sigmoid(logits(flat)))
    weight = np.maximum(p * (1 - p), 1e-6)
    matrix = jacobian.T @ (weight[:, None] * jacobian) / 80
    kernel = np.sqrt(weight)[:, None] * (jacobian @ jacobian.T) * np.sqrt(weight) / 80
    damping = detectors.DAMPING * np.linalg.eigvalsh(kernel)[-1]
    solved = np.linalg.solve(matrix + damping * np.eye(len(matrix)), jacobian.T)
    influence = (p - split.y) ** 2 * np.einsum("ip,pi->i", jacobian, solved)
    ours = found["suspicion"][0, DETECTORS.index("influence")]
    chosen = weight > 1e-4  # beyond, the floor under the weights counts
    np.testing.assert_allclose(ours[chosen], np.log(influence[chosen]), atol=0.05)


def test_confident_learning_counts_the_labels_that_disagree():
    """Well separated probabilities and 30 of 200 labels flipped: all of them, and no other."""
    truth = np.arange(200) % 2
    logits = np.where(truth == 1, 3.0, -3.0) + np.random.default_rng(0).normal(size=200) / 2
    labels = truth.copy()
    labels[:30] = 1 - labels[:30]
    assert detectors._labels_in_doubt(labels, logits) == 30
    assert detectors._labels_in_doubt(truth, logits) == 0
    assert 0 <= detectors._labels_in_doubt(labels, np.zeros(200)) < 200  # models that say nothing


def test_no_true_label_is_read_where_poison_is_looked_for(data, teachers):
    """Other validation labels, and other clean labels of the training set, change nothing that is
    found."""
    _, _, _, teacher, arrays = teachers
    _, found = detection_of(data, teacher, arrays)
    other = small_data(validation_seed=5)
    _, again = detection_of(other, teacher, teacher.perform(other))
    for name in ("suspicion", "found", "counted"):
        np.testing.assert_array_equal(again[name], found[name])
    lied = arrays | {
        "label": np.concatenate([arrays["label"][:, :80], 1 - arrays["label"][:, 80:]], axis=1)
    }
    _, again = detection_of(data, teacher, lied)
    np.testing.assert_array_equal(again["found"], found["found"])


# ---- a backdoor ----


def test_a_backdoor_works_on_a_model_trained_with_it_and_not_on_an_oracle():
    """Real images: the attack succeeds where it was learned; on an oracle at the rate of its
    errors."""
    images = load_mnist(source="embedded", per_class=100)
    model, training = MLP(1024, (16, 4)), Training(60, 64, 0.01)
    fit = Fit(
        data="images",
        model=model,
        poison=Poison("backdoor", 20),
        method=Retrain(training=training),
        size=2,
    )
    taught = discovery.judged(fit, fit.perform(images), images)
    oracle = replace(fit, retains=True)
    clean = discovery.judged(oracle, oracle.perform(images), images)
    attack, validation = PARTS.index("attack"), PARTS.index("validation")
    assert (taught["accuracy"][:, attack] > 0.9).all() and (
        clean["accuracy"][:, attack] < 0.1
    ).all()
    assert (taught["accuracy"][:, validation] > 0.95).all()  # nothing else gives it away


# ---- the stage ----


def test_the_stage_is_complete(studied):
    found, detection, detected = studied[1].values()
    assert set(found.unlearner.values) == {"teacher", FULL, "retrain", "cf", "ga"}
    assert found.known_percent.values.tolist() == [0, 50, 100] and found.sizes["run"] == 3
    assert set(found.model.values) == {"MLP[16]", "MLP[16], weight decay"}
    validation = found.accuracy.sel(split="validation", poison="labels", alpha_percent=30)
    there = validation.notnull().all(("run", "model"))
    assert (
        there.sel(unlearner=["retrain", "cf"]).all()
        and there.sel(known_percent=[50, 100]).drop_sel(unlearner="teacher").all()
    )
    assert there.sel(unlearner="teacher").values.tolist() == [True, False, False]
    assert not there.sel(unlearner="ga", known_percent=0)  # there is nothing to forget
    assert detection.average_precision.notnull().all() and detection.sizes["detector"] == 3
    assert (
        detected.accuracy.sel(detector="influence", unlearner=FULL, split="validation")
        .notnull()
        .all()
    )
    assert (
        detected.accuracy.sel(detector="influence", unlearner="cf", split="validation")
        .isnull()
        .all()
    )


def test_tables_and_figures_are_made_of_it(studied, capsys):
    folder, found = studied
    reports.print_summary(folder, ("discovery",))
    said = capsys.readouterr().out
    assert "50 % known" in said and "confident learning" in said and "Detect, then" in said
    assert {"known_shares", "detection", "detected"} <= {
        path.stem for path in reports.save_all(folder)
    }
    read, (data, preset) = frames.ResultFiles(folder.parents[1]), folder.parts[-2:]
    shown = discovery.known_shares(read, data, preset)
    own = shown.query(
        "measure == 'difference in poisoned' and known_percent == 50 and model == 'MLP[16]'"
    )
    accuracy = found["discovery"].accuracy.sel(model="MLP[16]", split="poisoned").squeeze()
    by_hand = accuracy.sel(unlearner="cf", known_percent=50) - accuracy.sel(
        unlearner="teacher", known_percent=0
    )
    assert own.query("unlearner == 'cf'").value.item() == pytest.approx(float(by_hand.mean()))
    precision = found["detection"].precision
    assert (precision.diff("recall") <= 1e-9).all() and (precision <= 1).all()


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("discovery", {"known": (0, 120)}, r"--discovery\.known"),
        ("discovery", {"known": ()}, r"--discovery\.known"),
        ("discovery", {"known": (50, 50)}, r"--discovery\.known"),
        ("discovery", {"poisons": ("labels",)}, r"--discovery\.poisons"),
        ("discovery", {"poisons": ("given=10",)}, r"--discovery\.poisons"),
        ("discovery", {"runs": 0}, r"--discovery\.runs"),
        ("discovery", {"methods": ("amnesia",)}, r"--discovery\.methods"),
        ("discovery", {"decay": -1.0}, r"--discovery\.decay"),
        ("unlearn_others", ("labels=20",), "--unlearn-others"),
        ("unlearn_others", ("quid=20", "quid=30"), "--unlearn-others"),
        ("unlearn_others", ("quid=200",), "--unlearn-others"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(field, value, flag):
    with refused(f"^{flag}: got "):
        changed(KNOWN, **{field: value})


def test_every_poison_may_be_unlearned_and_shown():
    config = replace(SMALL, unlearn_others=("quid=20", "one_class=10"), poisons=("boundary",))
    config.check()
    unlearned = {poison.name: poison.alpha_percent for poison in config.unlearn_poisons()}
    assert unlearned == {"labels": 30, "quid": 20, "one_class": 10}
    (row,) = by_name(run_unlearn_mnist.STUDIES)["data"].plan(config, small_data())
    assert [(each.kind, each.alpha_percent) for each in row.job.poisons] == [
        ("labels", 30),
        ("features", 30),
        ("boundary", 30),
        ("quid", 20),
        ("one_class", 10),
    ]

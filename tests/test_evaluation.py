"""Measures against analytic values and independent implementations; the stage on a small study."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import reports
from conftest import ROOT, changed, refused, separable_split
from scipy import integrate, stats

import protocol
import run_unlearn_mnist
import run_unlearn_xxz
from datar import Dataset, Split
from foundation.base import storage
from foundation.base.checks import BadInput
from foundation.base.npz import sha256
from foundation.engine.jobs import Store
from foundation.engine.runner import run_studies
from foundation.measures import forgetting as evaluation
from foundation.measures.forgetting import (
    MEASURES,
    Models,
    Parts,
    epsilon,
    klom,
    scores,
    signed,
    wasserstein,
)
from foundation.report import layout
from models import Training
from poison_unlearn import Task
from protocol import tensors_to_params
from studies import evaluation as evaluation_study
from studies import influence, judging, oracles
from studies.methods import METHODS

pytestmark = pytest.mark.usefixtures("in_this_process", "few_subsamples")

MANY = 4000


def models_of(z, relearn=None):
    """Models with these logits, on poisoned and on clean samples alike."""
    return Models(z, z, np.ones(len(z)) if relearn is None else relearn, np.arange(len(z)))


def draw(mean, sd=1.0, *, n=MANY, samples=6, seed=0):
    """n models whose logits are Gaussian, of samples that are all of the same kind."""
    z = np.random.default_rng(seed).normal(mean, sd, (n, samples))
    return models_of(z, np.random.default_rng(seed).poisson(20, n).astype(float))


def every_part(samples=6):
    """All samples are what is asked for."""
    return Parts(*np.ones((4, samples), bool))


# ---- against analytic values ----


@pytest.mark.parametrize(
    ("mean", "sd", "expected"), [(0.7, 1.0, 0.7), (0, 2.0, np.sqrt(2 / np.pi)), (-3, 1.0, 3.0)]
)
def test_w1_of_gaussians(mean, sd, expected):
    """|shift| for equal widths; |σ - 1| E|x| for equal means; within five standard errors, and its
    bias."""
    error = np.sqrt((1 + sd**2) / MANY)
    for part in ("w1", "w1_retain", "w1_validation"):
        found = MEASURES[part].function(draw(mean, sd), draw(0, seed=1), every_part())
        assert found == pytest.approx(expected, abs=5 * error)


@pytest.mark.parametrize(("mean", "sd"), [(0.5, 1.0), (0, 2.0), (1.0, 0.5)])
def test_klom_of_gaussians(mean, sd):
    expected = -np.log(sd) + (sd**2 + mean**2) / 2 - 0.5
    found = MEASURES["klom"].function(draw(mean, sd), draw(0, seed=1), every_part())
    assert found == pytest.approx(expected, abs=5 * (abs(mean) + sd**2 + 1) / np.sqrt(MANY))


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_the_attack_is_as_good_as_the_known_likelihood_ratio(shift):
    """Of two Gaussians apart by d: AUC Φ(d / √2), and at 5 % false positives Φ(d - 1.645)."""
    models, those = draw(shift, samples=20), draw(0, samples=20, seed=1)
    auc, tpr = (MEASURES[name].function(models, those, every_part(20)) for name in ("auc", "tpr"))
    expected = stats.norm.cdf(shift / np.sqrt(2))
    assert auc == pytest.approx(expected, abs=5 * 0.3 / np.sqrt(20 * MANY) + 0.002)
    at_five = stats.norm.cdf(shift - stats.norm.ppf(0.95))
    assert tpr == pytest.approx(at_five, abs=0.01)
    known = (
        evaluation.attack_auc(models.z.ravel() * shift, those.z.ravel() * shift) if shift else 0.5
    )
    assert auc == pytest.approx(known, abs=0.003)


@pytest.mark.parametrize("budget", [0.5, 1.0, 2.0])
def test_epsilon_of_randomised_response_is_its_budget(budget):
    """True with probability e^ε / (1 + e^ε): (ε, 0) exactly, and far below the cap."""
    honest, n = np.exp(budget) / (1 + np.exp(budget)), 3000
    generator = np.random.default_rng(0)
    models, those = (
        np.sort(generator.random((n, 3)) < share, axis=0).astype(float)
        for share in (honest, 1 - honest)
    )
    found = epsilon(models, those)
    error = np.sqrt(2 * (1 - honest) / honest / n) + np.sqrt(2 * honest / (1 - honest) / n)
    np.testing.assert_allclose(found, budget, atol=4 * error)
    assert (found < np.log(n) / 2).all()


def test_epsilon_and_delta_of_the_gaussian_mechanism():
    """The ε of a shift of 1 at δ = .2: that of the best threshold on the exact distributions, below
    that on draws."""
    at = np.linspace(-6, 6, 4001)
    fpr, fnr = stats.norm.sf(at), stats.norm.cdf(at - 1)
    exact = np.log(np.maximum(1 - 0.2 - fpr, 1e-300) / fnr).max()
    found = epsilon(draw(1, n=1500).z, draw(0, n=1500, seed=1).z, delta=0.2)
    assert 0.3 < exact < found.mean() < exact + 0.15


@pytest.mark.parametrize("n", [4, 20])
def test_epsilon_is_at_most_the_logarithm_of_the_number_of_models(n):
    apart = epsilon(np.full((n, 2), 5.0), np.full((n, 2), -5.0))
    np.testing.assert_allclose(apart, np.log(n))
    np.testing.assert_allclose(epsilon(np.zeros((n, 2)), np.zeros((n, 2))), 0)


def test_accuracies_of_gaussians():
    models, those, parts = draw(1.0), draw(0.0, seed=1), every_part()
    right = stats.norm.cdf(1.0)
    expected = {
        "corrective": right,
        "corrective_validation": right,
        "gap": right - 0.5,
        "tow": (1.5 - right) ** 3,
    }
    for name, value in expected.items():
        assert MEASURES[name].function(models, those, parts) == pytest.approx(value, abs=0.02)
    assert MEASURES["relearn"].function(models, those, parts) == pytest.approx(1, abs=0.05)


# ---- against independent implementations ----


def groups(n=20, samples=9, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(0.5, 1.5, (n, samples)), generator.normal(0, 1, (n + 5, samples))


def test_w1_is_that_of_scipy():
    left, right = groups()
    expected = [stats.wasserstein_distance(*pair) for pair in zip(left.T, right.T, strict=True)]
    np.testing.assert_allclose(wasserstein(left, right), expected, rtol=1e-12)


def test_klom_is_the_integral_over_the_densities():
    left, right = groups()
    for found, own, theirs in zip(klom(left, right), left.T, right.T, strict=True):
        p, q = (stats.norm(each.mean(), each.std(ddof=1)) for each in (own, theirs))
        integral, _ = integrate.quad(
            lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -20, 20, limit=200
        )
        assert found == pytest.approx(integral, rel=1e-6)


def test_narrow_gaussians_have_the_width_of_the_floor():
    """A tenth of the median of the oracles' widths, of both: equal means then give 0, and no
    infinity comes out."""
    right = groups()[1]
    constant = np.tile(right.mean(axis=0), (6, 1))
    least = 0.1 * np.median(right.std(axis=0, ddof=1))
    expected = (
        np.log(right.std(axis=0, ddof=1) / least) + least**2 / (2 * right.var(axis=0, ddof=1)) - 0.5
    )
    np.testing.assert_allclose(klom(constant, right), expected, rtol=1e-9)
    assert np.isfinite(klom(constant, constant)).all() and np.allclose(klom(constant, constant), 0)


def test_epsilon_is_the_best_of_all_threshold_attacks():
    """From the definition: each threshold, either side, both forms of the bound, with one added to
    each count."""
    left, right = groups(n=7)

    def attack(own, theirs, threshold, above):
        guess = (
            (lambda values: values > threshold) if above else (lambda values: values <= threshold)
        )
        fnr = min((np.sum(~guess(own)) + 1) / (len(own) + 1), 1)
        fpr = min((np.sum(guess(theirs)) + 1) / (len(theirs) + 1), 1)
        sides = [(1 - fpr) / fnr, (1 - fnr) / fpr]
        return max(0.0, *(np.log(side) for side in sides if side > 0))

    for found, own, theirs in zip(epsilon(left, right), left.T, right.T, strict=True):
        every = [attack(own, theirs, t, above) for t in (*own, *theirs) for above in (True, False)]
        assert found == pytest.approx(max(every))


def test_the_roc_curve_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    # with equal scores
    positive, negative = (generator.integers(0, 9, 50), generator.integers(2, 11, 80))
    labels, together = np.repeat([1, 0], [50, 80]), np.concatenate([positive, negative])
    assert evaluation.attack_auc(positive, negative) == pytest.approx(
        roc_auc_score(labels, together)
    )


# ---- mistakes that others made ----


def shuffled(models, order):
    return models._replace(z=models.z[:, order], clean=models.clean[:, order])


@pytest.mark.parametrize("name", MEASURES)
def test_shuffling_the_samples_of_all_changes_nothing(name):
    """Of models, oracles and masks alike: samples are compared one by one, and by nothing else."""
    generator = np.random.default_rng(0)
    order = generator.permutation(40)
    parts = Parts(
        np.arange(40) < 10,
        np.arange(40) < 12,
        (np.arange(40) >= 10) & (np.arange(40) < 25),
        np.arange(40) >= 25,
    )
    places = np.linspace(-3, 3, 40)
    models, those = (
        models_of(places + generator.normal(0, 1, (12, 40)), generator.poisson(9, 12) + 1.0)
        for _ in range(2)
    )
    found = MEASURES[name].function(models, those, parts)
    moved = Parts(*(part[order] for part in parts[:4]))
    again = MEASURES[name].function(shuffled(models, order), shuffled(those, order), moved)
    assert again == pytest.approx(found, rel=1e-12)


def test_two_passes_over_a_shuffled_loader_are_no_comparison():
    """Where one side alone is shuffled, oracles are far from themselves: what is stored is in the
    order of the data."""
    places = np.linspace(-3, 3, 40)
    those = [
        models_of(places + np.random.default_rng(seed).normal(0, 0.2, (20, 40))) for seed in (0, 1)
    ]
    order, parts = np.random.default_rng(0).permutation(40), every_part(40)
    apart = MEASURES["w1"].function(shuffled(those[0], order), those[1], parts)
    assert apart > 10 * MEASURES["w1"].function(*those, parts)


def test_z_is_signed_by_the_label_that_the_logit_is_of():
    """p and 1 - p are not mixed up: of a right logit z is positive, and the loss log(1 + exp(-z))
    small."""
    logits, labels = np.array([[3.0, -3.0, 3.0, -3.0]]), np.array([1, 0, 0, 1])
    z = signed(logits, labels)
    np.testing.assert_array_equal(z, [[3, 3, -3, -3]])
    p = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(np.logaddexp(0, -z), -np.log(np.where(labels == 1, p, 1 - p)))
    with refused("labels"):
        signed(logits, labels[:3])


# ---- floors and verdicts ----


def arms(shift, *, n=20, seed=0, samples=30):
    generator = np.random.default_rng(seed)
    return [
        models_of(generator.normal(mean, 1, (n, samples)), generator.poisson(20, n) + 1.0)
        for mean in (shift, 0, 0)
    ]


def test_an_oracle_in_a_methods_place_is_within_the_floor_on_every_measure(monkeypatch):
    """In 12 draws no more excesses have an interval above 0 than chance gives; of a method that is
    off, all have."""
    monkeypatch.setattr(evaluation, "SUBSAMPLES", 100)
    parts = every_part(30)
    above = dict.fromkeys(MEASURES, 0)
    for seed in range(12):
        for name, measure in MEASURES.items():
            above[name] += scores(measure, *arms(0, seed=seed), parts)["excess_low"] > 0
    assert max(above.values()) <= 4, above  # 2.5 % of 12 is .3
    for name in MEASURES.keys() - {"relearn", "corrective_validation"}:
        found = scores(MEASURES[name], *arms(-2.0), parts)
        assert found["excess_low"] > 0 and found["distance"] > 2 * found["unit"], name


def test_p_of_an_oracle_is_uniform_and_that_of_a_teacher_small(monkeypatch):
    monkeypatch.setattr(evaluation, "PERMUTATIONS", 199)
    parts, measure = every_part(30), MEASURES["w1"]
    p = [evaluation.permutation_p(measure, *arms(0, seed=seed), parts) for seed in range(60)]
    assert stats.kstest(p, "uniform").pvalue > 0.01 and np.mean(np.array(p) < 0.05) < 0.15
    assert (
        evaluation.permutation_p(measure, *arms(1.0), parts) == 1 / 200 == evaluation.smallest_p(20)
    )
    assert evaluation.smallest_p(4) == pytest.approx(1 / 70)
    # of all exchanges
    assert evaluation.permutation_p(measure, *arms(3.0, n=4), parts) == pytest.approx(1 / 70)


def test_half_samples_cover_the_truth_as_often_as_they_say(monkeypatch):
    """Of a mean of 20: the interval holds 0 in about 93 % of cases (a normal one with a known width
    in 95 %)."""
    monkeypatch.setattr(evaluation, "SUBSAMPLES", 200)
    held = 0
    for seed in range(200):
        own = {"models": draw(0, n=20, samples=1, seed=seed)}
        estimate = np.array([own["models"].z.mean()])
        low, high = evaluation.half_sample_interval(
            lambda own: np.array([own["models"].z.mean()]), own, estimate
        )
        held += low[0] <= 0 <= high[0]
    assert 0.88 <= held / 200 <= 0.98


def test_holms_rule():
    """The smallest times four, the next times three, never falling, and without those that were not
    tested."""
    found = evaluation.holm(np.array([0.04, 0.01, np.nan, 0.03, 0.5]))
    np.testing.assert_allclose(found, [0.09, 0.04, np.nan, 0.09, 0.5])


@pytest.mark.parametrize(
    ("p", "excess", "excess_high", "teacher_excess", "words"),
    [
        (0.01, 0.0, 0.0, 9.0, "above"),
        (0.2, 0.1, 0.8, 9.0, "within"),
        (0.2, 0.2, 1.0, 9.0, "undecided"),
        (0.2, 0.0, 0.1, -1.0, "not testable"),
        (0.2, 0.1, 1.1, 9.0, "not testable"),  # an excess of 0 would end at 1, above .9
        (0.2, -0.3, 0.7, 9.0, "not testable"),  # by luck below it
        (1.0, -0.8, -0.5, 9.0, "within"),
    ],
)
def test_verdicts(p, excess, excess_high, teacher_excess, words):
    assert evaluation.verdict(p, excess, excess_high, teacher_excess) == words


# ---- the stage ----


def small_data(*, validation_seed=None):
    train, val = separable_split(80, 16), separable_split(60, 16, seed=1)
    if validation_seed is not None:
        val = Split(val.x, np.random.default_rng(validation_seed).permutation(val.y))
    return Dataset(train, val, "small", 16, {"source": "drawn", "sha256": sha256(*train, *val)})


SHORT = Training(60, 16, 0.03)
SMALL = replace(
    run_unlearn_mnist.QUICK,
    stages=("evaluation",),
    evaluated=("mlp",),
    evaluated_hidden="16",
    teachers=4,
    draws=2,
    selection_runs=2,
    methods=("cf", "ga"),
    block=2,
    workers=2,
    optimization_level=0,
    unlearn_labels=30,
    mlp=replace(run_unlearn_mnist.QUICK.mlp, teacher=SHORT, unlearn=Training(5, 16, 0.01)),
)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    data = small_data()
    folder = run_studies(replace(SMALL, out=out), data, run_unlearn_mnist.STUDIES)
    return (
        data,
        out,
        {name: storage.read_dataset(folder / f"{name}.nc") for name in ("evaluation", "selection")},
        folder,
    )


def test_the_study_is_complete(studied):
    found, chosen = studied[2]["evaluation"], studied[2]["selection"]
    assert (
        set(found.unlearner.values) == {"teacher", "oracle", "cf", "ga"}
        and found.sizes["draw"] == 2
    )
    assert set(found.measure.values) == set(MEASURES)
    assert (
        found[["value", "distance", "floor", "unit", "excess_low", "excess_high", "p"]]
        .notnull()
        .to_array()
        .all()
    )
    assert (
        found.null.sel(unlearner=["cf", "ga"]).notnull().all()
        and found.null.sel(unlearner="teacher").isnull().all()
    )
    assert (found.lost == 0).all() and found.accuracy.notnull().sum("run").min() == 4
    assert chosen.accuracy.sizes["setting"] == 4 and chosen.chosen.notnull().all()
    assert (
        chosen.setting_words.sel(unlearner="ga").values.ravel().tolist()[3]
        == "rate 0.04, ce 1, forget 0.05"
    )


def test_the_choice_is_the_largest_smaller_of_held_out_accuracy_and_forgetting(studied):
    chosen = studied[2]["selection"].sel(model="MLP[16]", poison="labels")
    for name in ("cf", "ga"):
        own = chosen.sel(unlearner=name)
        both = np.minimum(own.accuracy.mean(("draw", "run")), own.forgetting.mean(("draw", "run")))
        assert int(own.chosen) == int(both.argmax("setting"))


def test_a_teacher_of_an_mlp_is_far_above_the_floor_and_an_oracle_is_not(studied):
    found = studied[2]["evaluation"].sel(model="MLP[16]", poison="labels", measure="w1")
    ratio = (found.distance / found.unit).mean("draw")
    assert float(ratio.sel(unlearner="teacher")) > 3 > 2 > float(ratio.sel(unlearner="oracle"))


def test_what_is_trained_is_what_is_scored_and_oracles_never_saw_the_forget_set(studied):
    """The stored logits are those of the stored parameters; and the retained samples hold none of
    the forget set."""
    data, out, *_ = studied
    store, rows = Store(out / "jobs"), list(evaluation_study.plan(SMALL, data))
    model = rows[0].job.case.model if hasattr(rows[0].job, "case") else rows[0].job.model
    fits = [row.job for row in rows if isinstance(row.job, protocol.Fit)]
    for job in fits[:: max(len(fits) // 6, 1)]:
        arrays = store.load(job)[0]
        params = tensors_to_params(
            model, {name: array[0] for name, array in arrays.items() if name.startswith("params")}
        )
        logits = model.logits(params, np.concatenate([data.train.x, data.train.x, data.val.x]))
        np.testing.assert_allclose(arrays["logit"][0], logits, atol=1e-4)
    oracle = next(row.job for row in rows if row.place.get("unlearner") == "oracle")
    masks, block = protocol.block_inputs(oracle, data)
    kept = {sample.tobytes() for sample in np.asarray(block.retain.x[0])}
    forgotten = {sample.tobytes() for sample in np.asarray(block.forget.x[0])}
    assert (
        forgotten and not kept & forgotten and len(kept) + len(forgotten) == masks["mask"].shape[1]
    )


def test_teachers_and_the_groups_of_oracles_share_no_first_parameters(studied):
    """As their jobs give them where nothing is trained, for N that is no multiple of what a job
    computes."""
    data = studied[0]
    case, _ = next(oracles.cases(SMALL, data, [0], 11))
    case = replace(case, training=replace(case.training, epochs=0), most_runs=10)
    groups = [case.teachers(), *(case.oracles(group) for group in oracles.ORACLES)]
    assert [len(group) for group in groups] == [2, 2, 2, 2]
    assert all(sum(len(case.shown(job)) for job in group) == 11 for group in groups)
    first = [
        job.perform(data)["params[0][0]"][: len(case.shown(job))]
        for group in groups
        for job in group
    ]
    assert len({each.tobytes() for each in np.concatenate(first)}) == 44


def test_eleven_models_are_the_first_eleven_of_two_jobs_without_those_that_diverged(studied):
    data = studied[0]
    case, _ = next(oracles.cases(SMALL, data, [0], 11))
    case = replace(case, training=replace(case.training, epochs=0), most_runs=10)
    blocks = [job.perform(data) for job in case.oracles("B")]
    blocks[1]["diverged"][2] = True
    steps = [{"steps": np.arange(6) + 10 * number} for number in (0, 1)]
    models = judging.gathered(case, list(zip(blocks, steps, strict=True)))
    assert models.run.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    assert models.relearn.tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 13, 14]
    n = len(data.train.y)
    logits = np.concatenate([each["logit"] for each in blocks])[models.run]
    signs = evaluation.signs(data.train.y)
    np.testing.assert_allclose(models.z[:, :n], logits[:, :n] * signs, rtol=1e-6)
    np.testing.assert_allclose(models.clean[:, :n], logits[:, n : 2 * n] * signs, rtol=1e-6)


def test_the_null_arm_trains_on_all_samples_for_as_many_steps(studied):
    """Its retained samples hold the poisoned ones; 56 retained in batches of 16 are four steps, all
    80 five."""
    data = studied[0]
    case, unlearn = next(oracles.cases(SMALL, data, [0], 4))
    case = replace(case, most_runs=4)
    choice = oracles.Choice(
        data=case.data, case=case, candidates=(SMALL.method("cf", training=unlearn),)
    )
    (null,) = case.chosen(choice, null=True)
    masks, block = protocol.block_inputs(null, data)
    assert (
        block.retain.y.shape == (4, 80)
        and block.forget.y.shape == (4, 0)
        and masks["known"].sum() == 4 * 24
    )
    for epochs, expected in ((5, 4), (10, 8), (1, 1)):
        method = SMALL.method("cf", training=replace(unlearn, epochs=epochs))
        found = oracles.null_of(method, *oracles.split_sizes(case.poison, data))
        assert (found.training.epochs, found.training.batch_size) == (expected, 16)


def test_a_method_and_its_null_arm_are_resampled_in_pairs():
    """What both have from their teachers cancels in the gain: its interval is narrow, that of the
    distance is not."""
    generator = np.random.default_rng(0)
    of_teacher = generator.normal(0, 3, (20, 1))
    models, null = (
        models_of(shift + of_teacher + generator.normal(0, 0.1, (20, 30))) for shift in (20.0, 22.0)
    )
    those = [models_of(generator.normal(0, 0.1, (20, 30))) for _ in range(2)]
    found = scores(MEASURES["w1"], models, *those, every_part(30), null=null)
    assert found["gain"] == pytest.approx(2, abs=0.1)
    assert (
        found["gain_high"] - found["gain_low"]
        < 0.3
        < 1
        < found["distance_high"] - found["distance_low"]
    )


def test_fewer_than_ten_held_out_samples_choose_nothing(studied):
    """Of ten samples of a class few are retained where most are poisoned; nor does a poison that
    the data came with."""
    data = studied[0]
    case, unlearn = next(oracles.cases(SMALL, data, [0], 4))
    method = SMALL.method("cf", training=unlearn)
    assert oracles.choice_of(SMALL, case, method, data).is_asked  # a fifth of 56
    few = replace(case, poison=replace(case.poison, alpha_percent=50))
    assert not oracles.choice_of(SMALL, few, method, data).is_asked  # a fifth of 40


def test_data_that_came_with_their_poison_are_one_draw_whose_truth_may_be_unknown(tmp_path):
    """Accuracies on true labels are then left out; W1, KLoM, ε and the attack need none."""
    from datar import Given

    clean, val = separable_split(80, 16), separable_split(60, 16, seed=1)
    mask = np.arange(80) < 24
    train = Split(clean.x, np.where(mask, 1 - clean.y, clean.y).astype(np.int32))
    for name, before in {"unknown": train, "known": clean}.items():
        source = {"source": "drawn", "sha256": sha256(*train, *val, *before)}
        data = Dataset(train, val, name, 16, source, given=Given(mask, mask, before))
        config = replace(SMALL, out=tmp_path, methods=("cf",), draws=3)
        found = storage.read_dataset(
            run_studies(config, data, run_unlearn_mnist.STUDIES) / "evaluation.nc"
        )
        assert found.draw.values.tolist() == [0] and not (tmp_path / name / "selection.nc").exists()
        truth = [key for key, measure in MEASURES.items() if measure.needs_truth]
        assert bool(found.value.sel(measure=truth).isnull().all()) == (name == "unknown")
        assert found.value.sel(measure=["w1", "klom", "epsilon", "auc"]).notnull().all()
    assert float(found.value.sel(measure="corrective", unlearner="oracle").mean()) > 0.8


def test_permuted_validation_labels_change_no_choice_and_no_verdict(studied, tmp_path):
    """Another data set by its hash: all is computed anew."""
    other = small_data(validation_seed=5)
    assert other.provenance != studied[0].provenance
    folder = run_studies(replace(SMALL, out=tmp_path), other, run_unlearn_mnist.STUDIES)
    for study, names in {
        "selection": ("accuracy", "forgetting", "chosen"),
        "evaluation": ("p",),
    }.items():
        again = storage.read_dataset(folder / f"{study}.nc")
        for name in names:
            np.testing.assert_array_equal(again[name], studied[2][study][name])
    again = storage.read_dataset(folder / "evaluation.nc")
    for name in ("distance", "excess_high", "unit"):
        np.testing.assert_array_equal(
            again[name].sel(measure="w1"), studied[2]["evaluation"][name].sel(measure="w1")
        )
    assert not np.array_equal(again.distance, studied[2]["evaluation"].distance)
    verdicts = [judging.over_draws(each).query("measure == 'verdict'").value.tolist()
                for each in (again, studied[2]["evaluation"])]  # fmt: skip
    np.testing.assert_array_equal(*verdicts)


def test_epochs_are_chosen_without_the_validation_set():
    """Held-out samples are of the training set, and stand in place of the validation set."""
    data = small_data()
    config = changed(SMALL, stages=("epochs",), epochs={"grid": (2, 4)})
    jobs = [row.job for row in evaluation_study.plan_epochs(config, data)]
    assert {job.held_out_percent for job in jobs} == {20} and {job.draw for job in jobs} == set(
        oracles.CHOICE_DRAWS
    )
    _, block = protocol.block_inputs(jobs[0], data)
    train, held = (
        {row.tobytes() for row in each} for each in (data.train.x, np.asarray(block.validation))
    )
    assert held and held <= train
    seen = {row.tobytes() for part in (block.retain, block.forget) for row in np.asarray(part.x[0])}
    assert not held & seen and len(held) + len(seen) == len(train)


def test_the_rule_takes_the_first_count_at_which_doubling_changes_little():
    import xarray as xr

    generator = np.random.default_rng(0)
    means = np.array([0.5, 0.8, 0.9, 0.901, 0.9])
    accuracy = means[:, None, None, None] + generator.normal(0, 0.01, (5, 2, 8, 3))
    dims = ("model", "poison", "epochs", "draw", "run", "split")
    coords = {
        "model": ["M"],
        "poison": ["labels"],
        "epochs": [50, 100, 200, 400, 800],
        "draw": [0, 1],
        "run": range(8),
        "split": ["validation", "retain", "forget_clean"],
    }
    results = xr.Dataset({"accuracy": (dims, accuracy[None, None])}, coords)
    results = results.assign_coords(family=("model", ["MLP"]), size=("model", [1.0]))
    assert evaluation_study.oracle_epochs(results).epochs.tolist() == [200]
    rising = results.assign(accuracy=results.accuracy + results["epochs"] / 800)
    assert np.isnan(evaluation_study.oracle_epochs(rising).epochs).all()


def test_the_figures_and_the_table(studied, capsys):
    folder = studied[3]
    drawn = {path.stem for path in reports.save_all(folder)}
    assert {
        "forgetting_scores",
        "forgetting_logits",
        "forgetting_attack",
        "forgetting_cost",
    } <= drawn
    reports.print_summary(folder, ("evaluation",))
    heads = next(
        line
        for line in capsys.readouterr().out.splitlines()
        if " W1 " in line and "poison" not in line
    )
    assert all(
        name in heads
        for name in ("floor", "random halves", "null arm", " p ", "verdict", "KLoM", "ε")
    )


def test_what_diverges_is_counted_and_scored_by_nothing_and_a_null_arm_that_does_costs_no_score(
    tmp_path,
):
    """At such a rate fine-tuning has no logits, nor has the null arm; ascent is left with dead
    ReLUs."""
    config = replace(
        SMALL,
        methods=("cf", "ga"),
        draws=1,
        selection_runs=0,
        out=tmp_path,
        hyper=("ga.forget=1e30",),
        mlp=replace(SMALL.mlp, unlearn=Training(5, 16, 1e30)),
    )
    folder = run_studies(config, small_data(), run_unlearn_mnist.STUDIES)
    found = storage.read_dataset(folder / "evaluation.nc")
    assert (
        float(found.lost.sel(unlearner="cf").max()) == 8
        and found[["distance", "p"]].sel(unlearner="cf").isnull().to_array().all()
    )
    own = found.sel(unlearner="ga", measure="w1")
    assert (
        float(own.lost.max()) == 4
        and own[["distance", "excess_low", "p"]].notnull().to_array().all()
    )
    assert own[["null", "gain"]].isnull().to_array().all()
    assert len(reports.save_all(folder)) >= 4


@pytest.mark.parametrize(
    ("script", "data"), [(run_unlearn_mnist, "mnist"), (run_unlearn_xxz, "xxz")]
)
def test_the_finalists_are_the_best_five_of_the_committed_benchmark(script, data):
    assert sorted(script.CORRECTED.benchmark.finalists) == sorted(
        evaluation_study.best_methods(committed(data, "benchmark"))
    )


# ---- the benchmark, and linear response ----


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory):
    config = changed(
        SMALL,
        stages=("benchmark", "influence"),
        evaluated=("mlp", "quadratic"),
        benchmarked_hidden=("16",),
        benchmark={"methods": ("cf", "cf_k", "newton", "ascent", "repair"), "budget": 0.5},
        selection_runs=0,
        qnn=replace(SMALL.qnn, teacher=SHORT, unlearn=Training(5, 16, 0.01)),
        out=tmp_path_factory.mktemp("benchmark"),
    )
    data = small_data()
    folder = run_studies(config, data, run_unlearn_mnist.STUDIES)
    return (
        config,
        data,
        folder,
        {name: storage.read_dataset(folder / f"{name}.nc") for name in ("benchmark", "influence")},
    )


def test_no_method_of_the_benchmark_takes_more_than_its_budget(benchmarked):
    """And those that descend come within an epoch of it; ascent takes less, a step with an exact
    Hessian its own."""
    found = benchmarked[3]["benchmark"].gradients.sel(model="MLP[16]", poison="labels", draw=0)
    share = found / float(found.sel(unlearner="oracle"))
    assert float(share.sel(unlearner=["cf", "cf_k", "ascent", "repair"]).max()) <= 0.5
    assert float(share.sel(unlearner=["cf", "cf_k", "repair"]).min()) > 0.45
    assert float(share.sel(unlearner="ascent")) < 0.1
    # of 289 parameters
    assert float(share.sel(unlearner="newton")) == pytest.approx((2 + 289) / SHORT.epochs)


def test_what_cannot_run_on_a_model_is_a_dash_with_a_reason(benchmarked, capsys):
    found = benchmarked[3]["benchmark"].sel(poison="labels", draw=0, measure="w1")
    (quadratic,) = [name for name in found.model.values if name.startswith("Quadratic")]
    missing = found.distance.isnull().sel(model=quadratic)
    assert missing.unlearner.values[missing.values].tolist() == ["cf_k"]
    assert (
        found.left_out.sel(model=quadratic) == "cf_k: it has no layers"
        and found.left_out.sel(model="MLP[16]") == ""
    )
    assert found.reads_truth.sel(unlearner=["repair", "cf"]).values.tolist() == [1, 0]
    reports.print_summary(benchmarked[2], ("benchmark", "influence"))
    said = capsys.readouterr().out
    assert "Repair" in said or "repair" in said
    assert f"not on {quadratic}: cf_k: it has no layers" in said and "linear response" in said


def test_finalists_are_judged_on_more_draws_by_the_same_jobs(benchmarked):
    config, data, *_ = benchmarked
    own = changed(config, benchmark={"finalists": ("newton", "cf")}, draws=2)
    rows, before = (
        list(evaluation_study.plan_finalists(own, data)),
        {row.job for row in evaluation_study.plan_benchmark(config, data)},
    )
    judged = [row for row in rows if row.study == "finalists"]
    assert {row.place["draw"] for row in judged} == {0, 1}
    assert {row.place["unlearner"] for row in judged} == {"teacher", "oracle", "newton", "cf"}
    assert {row.job for row in judged if row.place["draw"] == 0} <= before
    with pytest.raises(BadInput, match=r"--benchmark\.finalists"):
        list(evaluation_study.plan_finalists(changed(config, benchmark={"finalists": ()}), data))


def test_what_has_no_number_is_a_row_of_dashes(benchmarked):
    table = layout.markdown(
        layout.Table(
            judging.over_draws(benchmarked[3]["benchmark"]),
            ("model", "title"),
            measures={"w1": "W1", "cost": "cost"},
        )
    )
    (line,) = [line for line in table.splitlines() if "CF-k" in line and "Quadratic" in line]
    assert line.endswith("| CF-k | – | – |") and "Repair †" in table


def test_runs_that_name_one_class_are_counted(benchmarked):
    found = benchmarked[3]["benchmark"].copy(deep=True)
    place = {
        "model": "MLP[16]",
        "unlearner": "cf",
        "poison": "labels",
        "draw": 0,
        "split": "validation",
    }
    found.accuracy.loc[place | {"run": [0, 2]}] = 0.53
    found.accuracy.loc[place | {"run": [1, 3]}] = 0.97
    own = judging.over_draws(found).set_index(["model", "unlearner", "measure"]).value
    assert own["MLP[16]", "cf", "collapsed"] == 2


def test_the_best_are_those_of_the_least_mean_rank_without_those_that_read_the_truth(benchmarked):
    found = benchmarked[3]["benchmark"].copy(deep=True)
    ranks = {
        "cf": (3, 3),
        "cf_k": (1, np.nan),
        "newton": (2, 1),
        "ascent": (5, 5),
        "repair": (0, 0),
    }
    for method, distances in ranks.items():
        for model, distance in zip(found.model.values, distances, strict=True):
            found.distance.loc[{"model": model, "unlearner": method, "measure": "w1"}] = distance
    assert evaluation_study.best_methods(found, 3) == ["cf_k", "newton", "cf"]


def test_linear_response_is_the_directional_derivative_along_the_newton_step(benchmarked):
    """By finite differences of the logits, from the stored parameters; and the step's own change is
    the method's."""
    config, data, *_ = benchmarked
    (row, *_) = influence.plan(config, data)
    case, store = row.job.case, Store(config.out / "jobs")
    linear = next(job for job in row.job.needs if isinstance(job, influence.LinearResponse))
    found, teacher = (store.load(job)[0] for job in (linear, linear.start))
    params = tensors_to_params(
        case.model, {name: own[0] for name, own in teacher.items() if name.startswith("params")}
    )
    _, block = protocol.block_inputs(case.oracles()[0], data)
    retain = Split(block.retain.x[0], block.retain.y[0])
    x = np.concatenate(
        [
            case.poison.draw(data, key=0).split.x * 0
            + np.asarray(block.inputs[0])[: len(data.train.y)],
            data.val.x,
        ]
    )
    task = Task(case.model, params, retain, retain, retain, params)
    after, _ = METHODS["newton"](task, jax.random.key(0))
    signs = evaluation.signs(np.concatenate([data.train.y, data.val.y]))
    step = jax.tree.map(lambda a, b: a - b, after, params)
    ahead, behind = (
        case.model.logits(jax.tree.map(lambda p, s, e=e: p + e * s, params, step), x)
        for e in (1e-3, -1e-3)
    )
    np.testing.assert_allclose(
        found["predicted"][0], signs * (ahead - behind) / 2e-3, rtol=0.05, atol=0.02
    )
    whole = case.model.logits(after, x) - case.model.logits(params, x)
    np.testing.assert_allclose(found["stepped"][0], signs * whole, rtol=0.01, atol=0.01)


def test_the_correlations_are_those_of_the_changes_that_are_stored(benchmarked):
    found = benchmarked[3]["influence"].sel(model="MLP[16]", poison="labels")
    for part in ("forget", "retain", "validation"):
        own = found.sel(of=part)
        chosen = own.member.values == 1
        expected = np.corrcoef(found.predicted.values[chosen], found.true.values[chosen])[0, 1]
        value, low, high = own.correlation.sel(bound=influence.BOUNDS).values
        assert value == pytest.approx(expected, abs=1e-4) and -1 <= low <= value <= high <= 1
        share = float(own.share.sel(bound="value"))
        assert share == pytest.approx(
            found.predicted.values[chosen].mean() / found.true.values[chosen].mean(), rel=1e-3
        )
    assert {"linear_response", "benchmark_scores", "benchmark_cost"} <= {
        p.stem for p in reports.save_all(benchmarked[2])
    }


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("benchmark", {"budget": 0.0}),
        ("benchmark", {"budget": np.nan}),
        ("benchmark", {"finalists": ("fly",)}),
        ("benchmark", {"methods": ("fly",)}),
        ("teachers", 3),
        ("draws", 0),
        ("selection_runs", -1),
        ("epochs", {"grid": (50, 120)}),
        ("epochs", {"grid": (0,)}),
        ("oracle_epochs", ("mlp",)),
        ("oracle_epochs", ("tree=5",)),
        ("oracle_epochs", ("mlp=0",)),
        ("evaluated", ("forest",)),
        ("evaluated_hidden", "16;4"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(flag, value):
    with refused("allowed"):
        changed(SMALL, **{flag: value})


# ---- the committed results ----


def committed(data, study):
    path = ROOT / "results" / data / "corrected" / f"{study}.nc"
    return storage.read_dataset(path)


@pytest.mark.parametrize(
    ("data", "script"), [("mnist", run_unlearn_mnist), ("xxz", run_unlearn_xxz)]
)
def test_the_committed_epochs_are_those_that_the_rule_finds(data, script):
    """One count for each family: the larger, where it has two poisons."""
    found = (
        evaluation_study.oracle_epochs(committed(data, "epochs"))
        .groupby("family")
        .epochs.agg(lambda own: own.max(skipna=False))
    )
    used = {
        name.lower(): count
        for name, count in script.CORRECTED.epochs_of_families("oracle_epochs").items()
    }
    assert used == {family.lower(): count for family, count in found.items()}


@pytest.mark.parametrize("data", ["mnist", "xxz"])
def test_in_the_committed_results_oracles_are_within_the_floor_and_the_mlps_teacher_above(data):
    found = committed(data, "evaluation")
    assert found.sizes["draw"] == 3 and len(json.loads(found.attrs["jobs"])) > 100
    oracle = found.sel(unlearner="oracle")
    above = (oracle.excess_low > 0).where(oracle.excess.notnull())
    assert float(above.mean()) < 0.1  # 2.5 % are above by chance
    assert float((oracle.p < 0.05).mean()) < 0.2
    teacher = found.sel(unlearner="teacher", poison="labels", measure="w1")
    mlp = teacher.sel(model=[name for name in teacher.model.values if name.startswith("MLP")])
    assert (mlp.distance > 3 * mlp.unit).all() and (mlp.p < 0.01).all()


# ---- many subsets of the same models ----


@pytest.mark.parametrize(("n", "m", "kind"), [(4, 4, float), (6, 5, float), (3, 8, np.float32)])
def test_w1_of_some_models_is_that_of_these_models_to_the_bit(n, m, kind):
    """Equal logits among them; arms of different sizes."""
    generator = np.random.default_rng(n)
    z = generator.normal(0, 1, (n, 40)).astype(kind)
    z[:, ::5] = np.round(z[:, ::5])
    arm, others = models_of(z), models_of(generator.normal(0, 1, (m, 40)).astype(kind))
    parts = every_part(40)._replace(forget=np.arange(40) % 3 > 0)
    w1 = MEASURES["w1"]
    of_some = evaluation.OF_SOME[w1.function](arm, others, parts)
    for size in range(1, n + 1):
        mask = np.isin(np.arange(n), generator.permutation(n)[:size])
        assert of_some(mask) == w1.function(arm.take(mask), others, parts)


def test_the_exchanges_are_those_of_the_measure_itself():
    """With and without the way of many subsets, all of them and drawn ones."""
    generator = np.random.default_rng(0)
    arms = [models_of(generator.normal(shift, 1, (5, 30))) for shift in (1.5, 0, 0)]
    w1 = MEASURES["w1"]
    plain = replace(w1, function=lambda *arguments: w1.function(*arguments))
    for most in (evaluation.PERMUTATIONS, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "PERMUTATIONS", most)
            found, expected = (
                evaluation.permutation_p(measure, *arms, every_part(30)) for measure in (w1, plain)
            )
        assert found == expected < 1


def test_halves_that_are_drawn_again_give_what_they_gave(monkeypatch):
    """Of four models there are six halves; a measure is called once for each pair of halves."""
    generator = np.random.default_rng(1)
    arms = [models_of(generator.normal(shift, 1, (4, 12))) for shift in (0.4, 0, 0, 0.2)]
    w1, calls = MEASURES["w1"], []

    def counted(models, oracles, parts):
        calls.append((models.run.tobytes(), oracles.run.tobytes()))
        return w1.function(models, oracles, parts)

    monkeypatch.setattr(evaluation, "SUBSAMPLES", 200)
    measure = replace(w1, function=counted)
    models, floor, those, null = arms
    found = scores(measure, models, floor, those, every_part(12), null=null)
    # halves of three arms against those of the oracles, the whole arms, and the random floors
    assert len(calls) <= 3 * 6 * 6 + 3 + 50

    def value(halves):
        return np.array([w1.function(halves["models"], halves["oracles"], every_part(12))])

    low, high = evaluation.half_sample_interval(
        value,
        {"models": models, "floor": floor, "oracles": those, "null": null},
        np.array([found["value"]]),
    )
    assert found["value_low"] == pytest.approx(low[0], rel=1e-12)
    assert found["value_high"] == pytest.approx(high[0], rel=1e-12)


def test_models_of_one_number_are_not_taken_for_one_another():
    """Two draws that are put together may hold a number twice."""
    generator = np.random.default_rng(2)
    arms = [models_of(generator.normal(shift, 1, (6, 12))) for shift in (0.4, 0, 0)]
    told_apart = scores(MEASURES["w1"], *arms, every_part(12))
    arms[0] = arms[0]._replace(run=np.zeros(6, int))
    found = scores(MEASURES["w1"], *arms, every_part(12))
    assert found == pytest.approx(told_apart, rel=0, abs=0, nan_ok=True)

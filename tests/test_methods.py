"""Each further method against NumPy, one step at a time; its degenerate cases; on circuits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal, random_split, refused
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import landscape
from datar import Split
from models import MLP, QNN, Training
from poison_unlearn import METHODS, Batch, FineTune, Retrain, Task, unlearn
from studies import methods
from studies.methods import (
    Ascent,
    BadTeacher,
    FisherNoise,
    FreshLastLayers,
    LastLayers,
    Newton,
    Repair,
    SalUn,
    ScrubAlternating,
    SelectiveDampening,
    Sparse,
)
from studies.quadratic import QuadraticForm

KEY = jax.random.key(0)
D, N, F = 5, 12, 7
ONE_STEP = Training(1, 0, 0.01)


def drawn(model, *, n=N, f=F, width=D, seed=0):
    """A task of random data, with a teacher and fresh parameters that are all apart."""
    retain, forget = random_split(n, width, seed=seed), random_split(f, width, seed=seed + 1)
    clean = Split(forget.x, 1 - forget.y)
    as_jax = [Split(model.prepare(each.x), jnp.asarray(each.y)) for each in (retain, forget, clean)]
    teacher, fresh = (
        jax.tree.map(lambda leaf: 3 * leaf, model.init(jax.random.key(k))) for k in (1, 2)
    )
    return Task(model, teacher, *as_jax, fresh)


def whole(method, task, measure=None):
    """Its parameters and history, compiled whole, as jobs have it: one program in place of one for
    each operation."""
    compiled = jax.jit(lambda arrays: method(arrays._replace(model=task.model), KEY, measure))
    return compiled(task._replace(model=None))


LOGISTIC = MLP(D, ())


def numbers(task, params):
    """Of a logistic regression: inputs with a 1 for the bias, labels, and logits of teacher and
    student, in NumPy."""

    def flat(params):
        ((weights, bias),) = params
        return np.concatenate([np.asarray(weights).ravel(), np.asarray(bias)])

    found = []
    for part in (task.retain, task.forget):
        x = np.concatenate([np.asarray(part.x, float), np.ones((len(part.y), 1))], axis=1)
        found.append((x, np.asarray(part.y, float), x @ flat(task.teacher), x @ flat(params)))
    return found


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gradient_of(method, task, params, *, epoch=0, own=None):
    """Of the method's loss at a student's parameters, flat in the order of NumPy's above."""
    n = len(task.retain.y)
    own = method.before(task, KEY) if own is None else own
    teacher = task.logits(task.teacher, jnp.concatenate([task.retain.x, task.forget.x]))
    forget = method.forget_set(task)
    batch = Batch(
        task.retain, jnp.ones(n), teacher[:n], forget, teacher[n:], jnp.int32(epoch), KEY, own
    )
    gradient = jax.jit(jax.grad(lambda params: method.loss(task, params, batch)))(params)
    ((weights, bias),) = gradient
    return np.concatenate([weights.ravel(), bias])


def ce(x, y, logits):
    return x.T @ (sigmoid(logits) - y) / len(y)


def kl(x, teacher, student, temperature=1.0):
    """The gradient of τ² KL(σ(t / τ) || σ(s / τ)): τ (σ(s / τ) - σ(t / τ)) x."""
    return (
        temperature
        * x.T
        @ (sigmoid(student / temperature) - sigmoid(teacher / temperature))
        / len(teacher)
    )


TASK = drawn(LOGISTIC)
STUDENT = LOGISTIC.init(jax.random.key(9))
(XR, YR, TR, SR), (XF, YF, TF, SF) = numbers(TASK, STUDENT)


def fresh_logits():
    ((weights, bias),) = TASK.fresh
    return XF @ np.concatenate([np.asarray(weights).ravel(), np.asarray(bias)])


FLAT = np.concatenate([np.asarray(leaf).ravel() for leaf in STUDENT[0]])
LABELS = np.asarray(jax.random.bernoulli(KEY, 0.5, (F,)), float)
LOSSES = {
    "ascent": (Ascent(), 0, lambda: -ce(XF, YF, SF)),
    "cf_k": (LastLayers(), 0, lambda: ce(XR, YR, SR)),
    "scrub, away": (ScrubAlternating(temperature=2.0), 0, lambda: -kl(XF, TF, SF, 2.0)),
    "scrub, back": (
        ScrubAlternating(alpha=0.5, gamma=0.9, temperature=2.0),
        1,
        lambda: 0.5 * kl(XR, TR, SR, 2.0) + 0.9 * ce(XR, YR, SR),
    ),
    "scrub, later": (
        ScrubAlternating(alpha=0.5),
        4,
        lambda: 0.5 * kl(XR, TR, SR, 4.0) + 0.99 * ce(XR, YR, SR),
    ),
    "salun": (SalUn(share=1.0), 0, lambda: ce(XR, YR, SR) + ce(XF, LABELS, SF)),
    "bad_teacher": (
        BadTeacher(temperature=2.0),
        0,
        lambda: (N * kl(XR, TR, SR, 2.0) + F * kl(XF, fresh_logits(), SF, 2.0)) / (N + F),
    ),
    "l1_sparse": (Sparse(l1=0.1), 0, lambda: ce(XR, YR, SR) + 0.1 * np.sign(FLAT)),
    "repair": (Repair(), 0, lambda: (N * ce(XR, YR, SR) + F * ce(XF, 1 - YF, SF)) / (N + F)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_the_loss_is_that_of_numpy(name):
    method, epoch, expected = LOSSES[name]
    np.testing.assert_allclose(
        gradient_of(method, TASK, STUDENT, epoch=epoch), expected(), atol=2e-6
    )


@pytest.mark.parametrize("name", ["ascent", "repair", "bad_teacher", "l1_sparse"])
def test_a_step_is_adams_along_it(name):
    """θ - rate g / (|g| + 1e-8), from the teacher, over all samples."""
    method, epoch, _ = LOSSES[name]
    params, _ = whole(replace(method, training=ONE_STEP), TASK)
    gradient = gradient_of(method, TASK, TASK.teacher, epoch=epoch)
    before, after = (
        np.concatenate([np.asarray(leaf).ravel() for leaf in each[0]])
        for each in (TASK.teacher, params)
    )
    np.testing.assert_allclose(
        after, before - 0.01 * gradient / (np.abs(gradient) + 1e-8), atol=1e-6
    )


# ---- degenerate cases ----

NETWORK = MLP(D, (4, 3))
CIRCUIT = QNN(4, 3)
SHORT = Training(4, 5, 0.02)


def run(method, task):
    return whole(replace(method, training=SHORT), task)[0]


@pytest.mark.parametrize(("model", "k", "width"), [(NETWORK, 3, D), (CIRCUIT, 3, 16)])
def test_all_layers_are_fine_tuning_and_retraining(model, k, width):
    task = drawn(model, width=width)
    assert_trees_equal(run(LastLayers(k=k), task), run(FineTune(), task), rtol=1e-5, atol=1e-6)
    assert_trees_equal(run(FreshLastLayers(k=k), task), run(Retrain(), task), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("model", "width"), [(NETWORK, D), (CIRCUIT, 16)])
@pytest.mark.parametrize("method", [LastLayers(k=1), FreshLastLayers(k=2)])
def test_first_layers_stay_the_teachers(model, width, method):
    """And the last ones move: of a circuit those next to the measurement, whose angles are within
    the light cone."""
    task = drawn(model, width=width)
    after, mask = run(method, task), model.last_layers(task.teacher, method.k)
    start = method.start(task)
    moved = 0
    for leaf, old, first, last in zip(
        *map(jax.tree.leaves, (after, task.teacher, start, mask)), strict=True
    ):
        last = np.broadcast_to(last, leaf.shape)
        np.testing.assert_array_equal(leaf[~last], old[~last])
        moved += np.sum(np.asarray(leaf)[last] != np.asarray(first)[last])
    assert moved >= 3


def test_scrub_without_ascent_and_alpha_is_fine_tuning():
    task = drawn(NETWORK)
    method = ScrubAlternating(ascents=0, alpha=0.0, gamma=1.0, rewind="none")
    assert_trees_equal(run(method, task), run(FineTune(), task), rtol=1e-6, atol=1e-7)


def test_rewinding_takes_the_epoch_whose_error_on_the_forget_set_is_nearest_to_held_out_error():
    """Whose labels are flipped as well; no true label is read."""
    task = drawn(NETWORK, n=40, f=20)
    method = replace(ScrubAlternating(), training=Training(8, 0, 0.1))
    params, curve = method(task, KEY, lambda params: ravel_pytree(params)[0])
    held = np.asarray(jax.random.permutation(jax.random.fold_in(KEY, 2), 40))[:8]
    theta, unravel = ravel_pytree(params)
    np.testing.assert_array_equal(curve[-1], theta)

    def error(theta, x, y):
        return np.mean((np.asarray(NETWORK.logits(unravel(theta), x)) > 0) != (np.asarray(y) > 0))

    order = np.asarray(jax.random.permutation(jax.random.fold_in(KEY, 2), 40))[8:]
    rest = task._replace(retain=Split(task.retain.x[order], task.retain.y[order]))
    last, every = replace(method, rewind="none")(rest, KEY, lambda params: ravel_pytree(params)[0])
    np.testing.assert_array_equal(every[1:-1], curve[1:-1])
    reference = error(ravel_pytree(last)[0], task.retain.x[held], 1 - task.retain.y[held])
    distances = [abs(error(own, task.forget.x, task.forget.y) - reference) for own in every[1:]]
    np.testing.assert_array_equal(theta, every[1 + int(np.argmin(distances))])
    lied = task._replace(forget_clean=Split(task.forget.x, task.forget.y))
    assert_trees_equal(method(lied, KEY)[0], params)


def test_a_bad_teacher_without_a_forget_set_is_distillation():
    task = drawn(LOGISTIC)
    empty = task._replace(forget=Split(task.forget.x[:0], task.forget.y[:0]))
    gradient = gradient_of(BadTeacher(), empty, STUDENT)
    np.testing.assert_allclose(gradient, kl(XR, TR, SR), atol=2e-6)


def test_salun_moves_the_share_of_the_weights_where_the_forget_set_acts_most():
    task = drawn(LOGISTIC)
    mask = np.concatenate(
        [np.asarray(leaf).ravel() for leaf in SalUn(share=0.5).before(task, KEY)[0]]
    )
    size = np.abs(ce(XF, YF, TF))
    assert mask.sum() == 3 and set(np.flatnonzero(mask)) == set(np.argsort(size)[-3:])
    after = run(SalUn(share=0.5), task)
    moved = np.concatenate(
        [(a != b).ravel() for a, b in zip(after[0], task.teacher[0], strict=True)]
    )
    np.testing.assert_array_equal(moved, mask)


def test_dampening_with_alpha_infinite_changes_nothing():
    task = drawn(NETWORK)
    assert_trees_equal(whole(SelectiveDampening(alpha=np.inf), task)[0], task.teacher)


# ---- one step ----


def squared(x, y, logits):
    """Mean of the squared gradients of single samples: (p - y)² x²."""
    return np.mean((sigmoid(logits) - y)[:, None] ** 2 * x**2, axis=0)


def flat_teacher():
    return np.concatenate([np.asarray(leaf).ravel() for leaf in TASK.teacher[0]])


def flat(params):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in params[0]])


def test_dampening_is_that_of_numpy():
    method = SelectiveDampening(alpha=1.1, dampening=0.7)
    forget, retain = squared(XF, YF, TF), squared(XR, YR, TR)
    every = (F * forget + N * retain) / (F + N)
    expected = (
        np.where(forget > 1.1 * every, np.minimum(0.7 * every / forget, 1), 1) * flat_teacher()
    )
    found = flat(method(TASK, KEY)[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert 0 < np.sum(found != flat_teacher()) < len(found)


def test_noise_has_the_width_of_the_inverse_fisher_information_and_the_mean_of_the_teacher():
    method = FisherNoise(strength=1e-4, most=60.0)
    (drawn_,) = jax.jit(jax.vmap(lambda key: method(TASK, key)[0]))(jax.random.split(KEY, 300))
    drawn_ = np.concatenate([np.asarray(leaf).reshape(300, -1) for leaf in drawn_], axis=1)
    inverse = 1 / squared(XR, YR, TR)
    expected = np.sqrt(1e-4 * np.minimum(inverse, 60.0))
    assert (inverse > 60).any() and (inverse < 60).any()
    np.testing.assert_allclose(drawn_.std(axis=0), expected, rtol=0.2)
    assert (np.abs(drawn_.mean(axis=0) - flat_teacher()) < 5 * expected / np.sqrt(300)).all()


def best_step(hessian, gradient, start):
    """The damped step with the least loss on the retained samples, in NumPy."""
    largest = np.linalg.eigvalsh(hessian).max()
    every = [
        np.linalg.solve(hessian + mu * largest * np.eye(len(hessian)), gradient)
        for mu in methods.DAMPINGS
    ]

    def loss(theta):
        return np.mean(np.logaddexp(0, XR @ theta) - YR * (XR @ theta))

    return start - min(every, key=lambda step: loss(start - step))


@pytest.mark.parametrize("exact", [600, 0])
def test_a_newton_step_is_that_of_the_dense_matrix(exact, monkeypatch):
    """Of logistic regression Gauss-Newton is exact: both forms, p × p and n × n, are one."""
    monkeypatch.setattr(methods, "EXACT", exact)
    p = sigmoid(TR)
    hessian = (XR * (p * (1 - p))[:, None]).T @ XR / N
    found = flat(whole(Newton(), TASK)[0])
    np.testing.assert_allclose(
        found, best_step(hessian, ce(XR, YR, TR), flat_teacher()), rtol=0.02, atol=0.02
    )


def test_the_kernel_form_is_gauss_newton_of_a_network():
    task = drawn(NETWORK)
    theta, unravel = ravel_pytree(task.teacher)

    def logits(theta):
        return NETWORK.logits(unravel(theta), task.retain.x)

    jacobian, z = np.asarray(jax.jacrev(logits)(theta), float), np.asarray(logits(theta), float)
    p = sigmoid(z)
    matrix = (jacobian * (p * (1 - p))[:, None]).T @ jacobian / N
    gradient = jacobian.T @ (p - np.asarray(task.retain.y)) / N
    largest = np.linalg.eigvalsh(matrix).max()
    found = methods.newton_steps(NETWORK, task.teacher, task.retain, logits, exact=0)
    for damping, step in list(zip(methods.DAMPINGS, found, strict=True))[3:]:
        expected = np.linalg.solve(matrix + damping * largest * np.eye(len(matrix)), gradient)
        np.testing.assert_allclose(step, expected, atol=2e-3 * np.abs(expected).max())


def test_newton_on_a_quadratic_loss_lands_on_the_minimum():
    generator = np.random.default_rng(0)
    root = generator.normal(size=(6, 6))
    hessian, least, start = (
        root @ root.T + np.eye(6),
        generator.normal(size=6),
        generator.normal(size=6),
    )
    steps = methods.damped_steps(jnp.asarray(hessian), jnp.asarray(hessian @ (start - least)))
    np.testing.assert_allclose(start - np.asarray(steps[0]), least, atol=1e-3)


def test_where_the_loss_has_a_minimum_the_step_predicts_what_retraining_does():
    """Logistic regression on noisy labels that no plane parts: a tenth is taken out, beside SciPy's
    two minima."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, D)).astype(np.float32)
    y = ((x[:, 0] + generator.normal(size=400)) > 0).astype(np.int32)
    out = np.arange(400) < 40
    y[out] = 1 - y[out]

    def minimum(x, y):
        x1 = np.c_[x, np.ones(len(x))].astype(float)
        found = minimize(
            lambda t: np.mean(np.logaddexp(0, x1 @ t) - y * (x1 @ t)), np.zeros(D + 1), tol=1e-10
        )
        return found.x

    teacher, oracle = minimum(x, y), minimum(x[~out], y[~out])
    params = [
        (jnp.asarray(teacher[None, :-1], jnp.float32), jnp.asarray(teacher[-1:], jnp.float32))
    ]
    retain, forget = (
        Split(jnp.asarray(x[~out]), jnp.asarray(y[~out])),
        Split(jnp.asarray(x[out]), jnp.asarray(y[out])),
    )
    after = flat(Newton()(Task(LOGISTIC, params, retain, forget, forget, params), KEY)[0])
    x1 = np.c_[x, np.ones(len(x))]
    predicted, true = x1 @ (after - teacher), x1 @ (oracle - teacher)
    assert (
        np.corrcoef(predicted, true)[0, 1] > 0.99 and 0.8 < np.std(predicted) / np.std(true) < 1.2
    )


def test_a_step_that_makes_it_worse_is_not_taken(monkeypatch):
    monkeypatch.setattr(methods, "newton_steps", lambda *_, **__: -100 * jnp.ones((2, 6)))
    assert_trees_equal(whole(Newton(), TASK)[0], TASK.teacher)


# ---- circuits ----


@pytest.mark.parametrize(
    "method", [SelectiveDampening(alpha=1.0), FisherNoise(strength=0.01), Newton()]
)
def test_angles_outside_the_light_cone_stay(method):
    """And those within it move."""
    model = QNN(5, 2)
    task = drawn(model, width=32)
    task = task._replace(teacher=0.5 * jax.random.normal(KEY, task.teacher.shape))
    logit = jax.grad(lambda params, x: model.logits(params, x[None])[0])
    gradient = jax.jit(jax.vmap(logit, (None, 0)))(task.teacher, task.retain.x)
    acts = np.abs(gradient).max(axis=0) > 1e-6
    moved = np.abs(np.asarray(whole(method, task)[0]) - np.asarray(task.teacher))
    assert (~acts).any() and moved[~acts].max() < 1e-6 and moved[acts].max() > 1e-4


def test_newton_of_a_circuit_takes_its_exact_hessian():
    model = QNN(3, 2)
    task = drawn(model, width=8)
    hessian = np.asarray(landscape.hessian(model, task.teacher, task.retain), float)
    theta = np.asarray(task.teacher).ravel()
    gradient = np.asarray(
        jax.grad(landscape.loss_function(model, task.retain))(task.teacher), float
    ).ravel()
    values, vectors = np.linalg.eigh(hessian)
    size = np.abs(values)
    every = [vectors @ (vectors.T @ gradient / (size + mu * size.max())) for mu in methods.DAMPINGS]
    loss = landscape.loss_function(model, task.retain)
    losses = [
        float(loss(jnp.asarray((theta - step).reshape(task.teacher.shape), jnp.float32)))
        for step in every
    ]
    best = theta - every[int(np.argmin(losses))]
    np.testing.assert_allclose(np.asarray(whole(Newton(), task)[0]).ravel(), best, atol=0.05)


# ---- all of them ----


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("model", "width"),
    [(MLP(16, (4,)), 16), (QNN(4, 2), 16), (MLP(16, ()), 16), (QuadraticForm(16, 2), 16)],
)
def test_every_method_ends_finite_on_every_model_that_it_is_for(name, model, width):
    method = replace(METHODS[name], training=Training(3, 0, 0.01))
    if method.why_not(model):
        assert name in ("cf_k", "eu_k", *methods.OF_MORE_CLASSES)
        is_of_more = name in methods.OF_MORE_CLASSES
        assert is_of_more or isinstance(model, QuadraticForm) or not model.hidden
        return
    retain, forget = random_split(20, width), random_split(8, width, seed=1)
    teacher = model.init(KEY)
    options = {"key": KEY, "measure": lambda params: ravel_pytree(params)[0]}
    after, history = jax.jit(
        lambda start: unlearn(method, model, start, retain, forget, **options)
    )(teacher)
    assert np.isfinite(ravel_pytree(after)[0]).all()
    np.testing.assert_allclose(history[-1], ravel_pytree(after)[0], rtol=1e-6, atol=1e-7)
    assert len(method.settings()) <= 4 and method.cost(model, 20, 8) > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LastLayers(k=0), "k: got 0"),
        (lambda: ScrubAlternating(ascents=-1), "ascents: got -1"),
        (lambda: ScrubAlternating(temperature=0), "temperature: got 0"),
        (lambda: ScrubAlternating(rewind="back"), "rewind: got back"),
        (lambda: SalUn(share=1.5), "share: got 1.5"),
        (lambda: BadTeacher(temperature=-1), "temperature: got -1"),
        (lambda: SelectiveDampening(alpha=-1), "alpha: got -1"),
        (lambda: SelectiveDampening(dampening=np.inf), "dampening: got inf"),
        (lambda: FisherNoise(strength=np.nan), "strength: got nan"),
        (lambda: Sparse(l1=-0.1), "l1: got -0.1"),
        (lambda: run(LastLayers(k=9), drawn(NETWORK)), "k: got 9, allowed: 1 to 3"),
    ],
)
def test_bad_hyper_parameters_are_one_line(make, words):
    with refused(words):
        make()


def test_what_reads_the_truth_says_so():
    assert {name for name, method in METHODS.items() if method.reads_truth} == {"repair"}
    assert replace(METHODS["scrub"], reads="clean").reads_truth


# ---- what they cost ----


def test_an_epoch_of_ascent_takes_the_forget_set_and_one_of_descent_the_retained_samples():
    """Two of 4 epochs ascend, 4 full steps on 7 samples each; a fifth of 50 retained samples is
    held out."""
    method = ScrubAlternating(training=Training(4, 10, 0.01))
    assert method.gradients(50, 7) == 2 * 4 * 7 + 2 * 40
    assert replace(method, rewind="none").gradients(50, 7) == 2 * 5 * 7 + 2 * 50
    assert replace(method, training=Training(1, 10, 0.01)).gradients(50, 7) == 4 * 7


def test_newton_pays_for_each_column_of_an_exact_hessian_and_for_none_of_the_kernel():
    circuit, network = QNN(4, 3), MLP(1024, (4,))
    assert (
        Newton().cost(circuit, 50, 7) == 50 * (2 + 4 * 3 * 4)
        and Newton().cost(network, 50, 7) == 2 * 50
    )
    assert FineTune(training=Training(4, 10, 0.01)).cost(circuit, 50, 7) == 4 * 50


def test_every_setting_of_dampening_can_select_weights_where_a_third_is_forgotten():
    assert all(setting.alpha < (N + F) / F for setting in SelectiveDampening().settings())


def test_last_layers_are_for_models_that_have_others():
    assert (
        LastLayers().why_not(MLP(5, ()))
        == LastLayers(k=3).why_not(NETWORK)
        == "it has no other layers"
    )
    assert not LastLayers(k=2).why_not(NETWORK) and not LastLayers(k=2).why_not(QNN(3, 3))
    assert (
        LastLayers(k=3).why_not(QNN(3, 3))
        and LastLayers().why_not(QuadraticForm(8, 2)) == "it has no layers"
    )

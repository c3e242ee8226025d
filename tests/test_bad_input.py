"""Bad input of every kind: one line that says what was wrong and what is allowed, never a traceback
or a number."""

import sys
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_split
from hypothesis import given
from hypothesis import strategies as st

import landscape
import run_hessian
import run_unlearn_mnist
import run_unlearn_xxz
from datar import Dataset, Split, load_mnist, load_xxz, pad
from foundation.base import storage
from foundation.base.checks import BadInput, require, require_whole
from foundation.base.npz import read_npz
from foundation.engine.command_line import parse_command_line
from foundation.measures import metrics
from foundation.quantum import circuits
from foundation.quantum.ring import xxz_hamiltonian, xxz_spectrum
from models import MLP, QNN, Training, fit, train
from poison_unlearn import (
    METHODS,
    POISONS,
    GradientAscent,
    Poison,
    Scrub,
    flip_labels,
    randomize_features,
    relabel_randomly,
    unlearn,
)
from studies.quadratic import QuadraticForm

KEY = jax.random.key(0)
SPLIT = random_split(8, 4)
NETWORK, CIRCUIT = MLP(4, (3,)), QNN(2, 1)
PARAMS, ANGLES = NETWORK.init(KEY), CIRCUIT.init(KEY)
ONE_EPOCH = {"epochs": 1, "batch_size": 0, "learning_rate": 0.1, "key": KEY}
NAN = Split(np.full((8, 4), np.nan, np.float32), SPLIT.y)
SHORT = Split(SPLIT.x, SPLIT.y[:-1])
EMPTY = Split(SPLIT.x[:0], SPLIT.y[:0])
TOY = Dataset(SPLIT, SPLIT, "toy", 4, {"sha256": "toy"})


def training(**changes):
    return lambda: train(NETWORK, SPLIT, **(ONE_EPOCH | changes))


def unlearning(method="ga", retain=SPLIT, forget=SPLIT, **changes):
    return lambda: unlearn(METHODS[method], NETWORK, PARAMS, retain, forget, key=KEY, **changes)


def directions(shape, **changes):
    settings = {"radius": 1.0, "points": 3} | changes
    return lambda: landscape.loss_slice(NETWORK, PARAMS, SPLIT, jnp.ones(shape), **settings)


P = 4 * 3 + 3 + 3 + 1  # parameters of the network

LIBRARY = {  # what is wrong with it: (the call, what the message names)
    "digits alike": (lambda: load_mnist(digits=(1, 1)), "digits"),
    "one digit": (lambda: load_mnist(digits=(1,)), "digits"),
    "digit out of range": (lambda: load_mnist(digits=(1, 10)), "digits"),
    "digits no tuple": (lambda: load_mnist(digits=19), "digits"),
    "unknown encoding": (lambda: load_mnist(encoding="angle"), "encoding"),
    "unknown source": (lambda: load_mnist(source="internet"), "source"),
    "no images": (lambda: load_mnist(per_class=0), "per_class"),
    "half an image": (lambda: load_mnist(per_class=2.5), "per_class"),
    "more images than there are": (
        lambda: load_mnist(per_class=501, source="embedded"),
        "per_class",
    ),
    "odd ring": (lambda: load_xxz(n_sites=5), "n_sites"),
    "ring too small": (lambda: load_xxz(n_sites=2), "n_sites"),
    "ring too large": (lambda: load_xxz(n_sites=18), "n_sites"),
    "unknown gauge": (lambda: load_xxz(n_sites=4, gauge="lorenz"), "gauge"),
    "negative seed": (lambda: load_xxz(n_sites=4, seed=-1), "seed"),
    "spectrum of an odd ring": (lambda: xxz_spectrum(7), "n_sites"),
    "hamiltonian of two sites": (lambda: xxz_hamiltonian(2, 1.0), "n_sites"),
    "vectors to pad": (lambda: pad(np.ones(3)), "x"),
    "nothing to pad": (lambda: pad(np.ones((3, 0))), "x"),
    "no features": (lambda: MLP(0), "n_features"),
    "float features": (lambda: MLP(4.0), "n_features"),
    "list of widths": (lambda: MLP(4, [64]), "hidden"),
    "width of zero": (lambda: MLP(4, (64, 0)), "hidden"),
    "width of a half": (lambda: MLP(4, (0.5,)), "hidden"),
    "boolean width": (lambda: MLP(4, (True,)), "hidden"),
    "one qubit": (lambda: QNN(1), "n_qubits"),
    "no layers": (lambda: QNN(4, 0), "depth"),
    "float layers": (lambda: QNN(4, 2.0), "depth"),
    "unknown rotations": (lambda: QNN(4, 2, "xz"), "rotations"),
    "unknown entangler": (lambda: QNN(4, 2, "xyx", "swap"), "entangler"),
    "shape without ansatz": (lambda: QNN(4, shape=(3,)), "shape"),
    "network fed too many features": (lambda: NETWORK.logits(PARAMS, np.ones((2, 5))), "x"),
    "network fed one sample": (lambda: NETWORK.logits(PARAMS, np.ones(4)), "x"),
    "circuit prepared with another length": (lambda: CIRCUIT.prepare(np.ones((2, 5))), "x"),
    "circuit fed another length": (
        lambda: QNN(2, 1, "xy", "cnot").logits(jnp.ones((1, 2, 2)), jnp.ones((2, 8))),
        "x",
    ),
    "angles of another circuit": (
        lambda: circuits.expectation(jnp.ones((1, 2, 2)), jnp.ones((2, 4))),
        "params",
    ),
    "angles without layers": (
        lambda: circuits.expectation(jnp.ones((2, 4)), jnp.ones((2, 4))),
        "params",
    ),
    "unknown circuit": (lambda: circuits.expectation(ANGLES, SPLIT.x, entangler="cz"), "entangler"),
    "negative epochs": (training(epochs=-1), "epochs"),
    "half an epoch": (training(epochs=0.5), "epochs"),
    "negative batch": (training(batch_size=-1), "batch_size"),
    "rate of zero": (training(learning_rate=0), "learning_rate"),
    "rate of NaN": (training(learning_rate=float("nan")), "learning_rate"),
    "infinite rate": (training(learning_rate=float("inf")), "learning_rate"),
    "fewer labels than samples": (lambda: train(NETWORK, SHORT, **ONE_EPOCH), "split"),
    "training on nothing": (lambda: train(NETWORK, EMPTY, **ONE_EPOCH), "n_samples"),
    "fitting nothing": (lambda: fit(lambda *_: 0.0, PARAMS, 0, **ONE_EPOCH), "n_samples"),
    "negative share": (lambda: flip_labels(SPLIT, -0.1, key=KEY), "fraction"),
    "share of one": (lambda: flip_labels(SPLIT, 1.0, key=KEY), "fraction"),
    "share of NaN": (lambda: relabel_randomly(SPLIT, float("nan"), key=KEY), "fraction"),
    "labels of 2": (lambda: flip_labels(Split(SPLIT.x, SPLIT.y + 1), 0.5, key=KEY), "split.y"),
    "fewer labels to flip": (lambda: flip_labels(SHORT, 0.5, key=KEY), "split"),
    "NaN samples": (lambda: randomize_features(NAN, 0.5, key=KEY), "split.x"),
    "more features than there are": (
        lambda: randomize_features(SPLIT, 0.5, key=KEY, n_features=5),
        "n_features",
    ),
    "no features to randomise": (
        lambda: randomize_features(SPLIT, 0.5, key=KEY, n_features=0),
        "n_features",
    ),
    "more than a class holds": (
        lambda: flip_labels(Split(SPLIT.x, SPLIT.y * 0), 0.5, key=KEY),
        "fraction",
    ),
    "unknown poison": (lambda: Poison("arsenic", 30), "poison"),
    "share of a half percent": (lambda: Poison("labels", 0.5), "alpha_percent"),
    "share of all": (lambda: Poison("labels", 100), "alpha_percent"),
    "more known than there is": (lambda: Poison("labels", 30, 101), "known_percent"),
    "poison of more than a class holds": (
        lambda: Poison("labels", 90).draw(
            replace(TOY, train=Split(SPLIT.x, np.arange(8) // 7)), key=0
        ),
        "fraction",
    ),
    "negative weight": (lambda: Scrub(forget=-1.0), "forget"),
    "NaN weight": (lambda: GradientAscent(ce=float("nan")), "ce"),
    "infinite weight": (lambda: Scrub(kl=float("inf")), "kl"),
    "unknown divergence": (lambda: Scrub(divergence="renyi"), "divergence"),
    "unknown version of the forget set": (lambda: Scrub(reads="both"), "reads"),
    "negative epochs of a method": (lambda: Training(-1, 0, 0.1), "epochs"),
    "half a batch": (lambda: Training(1, 0.5, 0.1), "batch-size"),
    "rate of zero of a method": (lambda: Training(1, 0, 0.0), "learning-rate"),
    "rank of zero": (lambda: QuadraticForm(4, 0), "rank"),
    "rank above the features": (lambda: QuadraticForm(4, 5), "rank"),
    "nothing to forget": (unlearning(forget=EMPTY), "forget"),
    "nothing to forget, scrub": (unlearning("scrub", forget=EMPTY), "forget"),
    "nothing to retain": (unlearning("cf", retain=EMPTY), "n_samples"),
    "forget set of other samples": (unlearning(forget=random_split(8, 5)), "forget"),
    "clean forget set of other samples": (
        unlearning(forget_clean=random_split(8, 5)),
        "forget_clean",
    ),
    "fewer labels to retain": (unlearning(retain=SHORT), "retain"),
    "labels of another length": (lambda: metrics.accuracy(jnp.ones(3), jnp.ones(4)), "labels"),
    "logits in a column": (lambda: metrics.cross_entropy(jnp.ones((3, 1)), jnp.ones(3)), "logits"),
    "landscape of nothing": (lambda: landscape.loss_function(NETWORK, EMPTY), "split"),
    "no eigenvalues": (
        lambda: landscape.extreme_eigenvalues(NETWORK, PARAMS, SPLIT, k=0, key=KEY),
        "k",
    ),
    "too many eigenvalues": (
        lambda: landscape.extreme_eigenvalues(NETWORK, PARAMS, SPLIT, k=P, key=KEY),
        "k",
    ),
    "no direction": (
        lambda: landscape.filter_normalised_directions(NETWORK, PARAMS, key=KEY, number=0),
        "number",
    ),
    "even slice": (directions((2, P), points=4), "points"),
    "one direction": (directions((1, P)), "directions"),
    "directions of another model": (directions((2, P + 1)), "directions"),
}


@pytest.mark.parametrize("call, named", LIBRARY.values(), ids=LIBRARY)
def test_the_library_refuses_it_in_one_line(call, named):
    with pytest.raises(ValueError) as refusal:
        call()
    message = str(refusal.value)
    assert (
        "\n" not in message
        and message.startswith(named)
        and ": got " in message
        and ", allowed: " in message
    )


@given(
    st.one_of(
        st.floats(),
        st.integers(max_value=-1),
        st.text(),
        st.booleans(),
        st.none(),
        st.lists(st.integers()),
    )
)
def test_only_whole_numbers_count(value):
    with pytest.raises(BadInput, match="n: got"):
        require_whole("n", value, 0)


@given(
    st.one_of(
        st.floats(max_value=0, exclude_max=True), st.floats(min_value=1), st.just(float("nan"))
    )
)
def test_only_shares_below_one_poison(fraction):
    for poison in POISONS.values():
        with pytest.raises(BadInput, match="fraction: got"):
            poison(TOY, fraction, key=KEY)


@given(
    st.one_of(
        st.integers(max_value=-1), st.integers(min_value=101), st.floats(), st.booleans(), st.text()
    )
)
def test_only_whole_percents_are_shares(share):
    for field in ("alpha_percent", "known_percent"):
        with pytest.raises(BadInput, match=f"{field}: got"):
            Poison("labels", **{field: share})


def test_what_is_refused_is_said_in_one_line():
    with pytest.raises(ValueError) as refusal:
        require(False, "--flag", 3, "1, 2")
    assert type(refusal.value) is BadInput and str(refusal.value) == "--flag: got 3, allowed: 1, 2"
    require(True, "--flag", 3, "1, 2")


@given(
    st.one_of(
        st.floats(max_value=0, exclude_max=True), st.sampled_from([float("inf"), float("nan")])
    )
)
def test_no_weight_is_negative_or_infinite(weight):
    with pytest.raises(BadInput, match="forget: got"):
        Scrub(forget=weight)


# ---- flags ----

FLAGS = {  # of all three scripts
    "--preset nonsense": "paper",
    "--runs 0": "--runs",
    "--runs many": "--runs",
    "--seed -1": "--seed",
    "--seed 4294967296": "--seed",
    "--workers -1": "--workers",
    "--workers 65": "--workers",
    "--alphas 100": "--alphas",
    "--alphas -10": "--alphas",
    "--alphas 30 30": "--alphas",
    "--alphas 0.3": "--alphas",
    "--alphas": "--alphas",
    "--stages": "--stages",
    "--stages dreams": "--stages",
    "--models svm": "--models",
    "--models mlp mlp": "--models",
    "--depth 0": "--depth",
    "--hidden 64;16": "--hidden",
    "--hidden 0": "--hidden",
    "--nonsense 1": "--nonsense",
}
UNLEARNING_FLAGS = {
    "--poisons arsenic": "--poisons",
    "--unlearn-labels 100": "--unlearn-labels",
    "--unlearn-features -1": "--unlearn-features",
    "--methods amnesia": "retrain, cf, scrub, ga",
    "--methods": "--methods",
    "--hyper scrub.ce=-1": "--hyper scrub.ce=-1: ce: got -1.0",
    "--hyper ga.forget=inf": "--hyper ga.forget=inf: forget: got inf",
    "--hyper scrub.kl=nan": "--hyper scrub.kl=nan: kl: got nan",
    "--hyper scrub.kl=much": "--hyper scrub.kl=much: kl: got much",
    "--hyper scrub.kl": "--hyper scrub.kl: kl: got nothing",
    "--hyper ga.kl=1": "--hyper: got ga.kl=1, allowed: the fields ce, forget",
    "--hyper cf.ce=1": "--hyper: got cf.ce=1",
    "--hyper amnesia.ce=1": "retrain, cf, scrub, ga",
    "--hyper scrub.training=1": "--hyper: got scrub.training=1",
    "--hyper scrub.divergence=half": "--hyper scrub.divergence=half: divergence: got half, "
    "allowed: full, published",
    "--hyper scrub.reads=both": "--hyper scrub.reads=both: reads: got both, allowed: poisoned, "
    "clean",
    "--weight-map.weights 0.1 -0.1": "--weight-map.weights",
    "--weight-map.weights 0.1 0.1": "--weight-map.weights",
    "--weight-map.runs -1": "--weight-map.runs",
    "--mlp.sweep.epochs -1": "epochs",
    "--mlp.teacher.batch-size -1": "batch-size",
    "--qnn.unlearn.learning-rate 0": "learning-rate",
    "--qnn.unlearn.learning-rate nan": "learning-rate",
    "--mlp.side-by-side perhaps": "perhaps",
}
HESSIAN_FLAGS = {
    "--landscape.held-out 1": "--landscape.held-out",
    "--landscape.loss-samples 0": "--landscape.loss-samples",
    "--landscape.loss-samples 151": "--landscape.loss-samples",
    "--landscape.slice-points 4": "--landscape.slice-points",
    "--landscape.mlp-radii 1 0": "--landscape.mlp-radii",
    "--landscape.qnn-radii nan 1": "--landscape.qnn-radii",
    "--landscape.extremes 1": "--landscape.extremes",
    "--landscape.lanczos-steps 3": "--landscape.extremes",
    "--training.learning-rate -1": "learning-rate",
}
SCRIPTS = {
    run_unlearn_mnist: FLAGS
    | UNLEARNING_FLAGS
    | {
        "--encoding angle": "--encoding",
        "--source internet": "--source",
        "--digits 1 1": "--digits",
        "--digits 1 10": "--digits",
        "--digits 4": "--digits",
        "--digits one nine": "--digits",
    },
    run_unlearn_xxz: FLAGS
    | UNLEARNING_FLAGS
    | {
        "--gauge lorenz": "--gauge",
        "--gauge-control.runs 0": "--gauge-control.runs",
        "--depths.layers 0": "--depths.layers",
    },
    run_hessian: FLAGS | HESSIAN_FLAGS,
}
CASES = [
    (script, flags, named) for script, cases in SCRIPTS.items() for flags, named in cases.items()
]


@pytest.mark.parametrize(
    "script, flags, named", CASES, ids=[f"{s.__name__} {f}" for s, f, _ in CASES]
)
def test_a_script_refuses_it_with_exit_code_2(script, flags, named, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.__name__, *flags.split()])
    with pytest.raises(SystemExit) as end:
        parse_command_line(script.PRESETS, script.STUDIES, script.__doc__)
    said = capsys.readouterr().err
    assert (
        end.value.code == 2
        and named in said
        and "Traceback" not in said
        and len(said.splitlines()) <= 12
    )


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        (run_unlearn_xxz, ["--n-sites", "5"], "n_sites"),
        (run_unlearn_xxz, ["--n-sites", "18"], "n_sites"),
        (run_unlearn_xxz, ["--data", "no/such.npz"], "no/such.npz"),
        (run_unlearn_mnist, ["--data", "no/such.npz"], "no/such.npz"),
        (run_unlearn_mnist, ["--preset", "quick", "--out", "/proc/nowhere"], "--out"),
        (run_unlearn_mnist, ["--preset", "quick", "--out", __file__], "--out"),
        (
            run_hessian,
            ["--preset", "quick", "--landscape.held-out", "499", "--out", "HERE"],
            "--landscape.held-out",
        ),
        (run_unlearn_mnist, ["--preset", "quick", "--data", "FEW", "--out", "HERE"], "per_class"),
        (
            run_unlearn_xxz,
            ["--preset", "quick", "--n-sites", "4", "--unlearn-labels", "1", "--out", "HERE"],
            "--unlearn-labels",
        ),
    ],
)
def test_what_only_the_data_can_tell_is_one_line_too(
    script, flags, said, monkeypatch, capsys, tmp_path
):
    few = tmp_path / "few.npz"
    images = np.ones((4, 28, 28))
    np.savez(
        few,
        x_train=images,
        y_train=np.array([1, 9, 1, 9]),
        x_test=images,
        y_test=np.array([1, 9, 1, 9]),
    )
    places = {"HERE": str(tmp_path), "FEW": str(few)}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", [script.__name__, *(places.get(flag, flag) for flag in flags)])
    with pytest.raises(SystemExit) as end:
        script.main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and said in error and error.count("\n") == 1


# ---- files that nobody vouches for ----


def test_a_zip_bomb_is_refused_unread(tmp_path):
    """A gigabyte of zeros packed into a megabyte, by what its directory declares."""
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x_train.npy", "w") as member,
    ):
        for _ in range(600):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(BadInput, match="bytes declared"):
        read_npz(path, ("x_train",))


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "claim.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(80)
        )
    with pytest.raises(BadInput, match=r"claim\.npz"):
        read_npz(path, ("x",))


def test_objects_in_an_npz_are_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(tmp_path / "objects.npz", x=np.array([Bomb()], object))
    with pytest.raises(BadInput, match="x: got Python objects"):
        read_npz(tmp_path / "objects.npz", ("x",))
    assert not (tmp_path / "exploded").exists()


def test_result_files_that_are_none(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    with pytest.raises(storage.Damaged, match=r"a\.nc"):
        storage.read_dataset(tmp_path / "a.nc")

"""How fast the models train here, beside other ways to compute the same numbers.

    make bench                            # or: python bench/bench.py; about five minutes on 2 cores
    python bench/bench.py --slow          # unrolled TensorCircuit at one more depth: minutes
    python bench/bench.py --smoke --out /tmp/bench    # tiny sizes: does it run?

1. The QNN's training step (value and gradient of the mean cross-entropy of 256 images of 1024
   amplitudes, 10 qubits, depth 6, complex64): this project, TensorCircuit gate by gate, PennyLane
   lightning, and 0.8 GFlop at the machine's own float32 matrix-product rate as the roofline. Values
   and gradients have to agree to 1e-4.
2. Five trainings of the MLP (64,16) on MNIST against five Keras fits (one is measured, and counts
   five times).
3. How the step's cost grows with qubits, depth, samples and runs.
4. What a script's first and second start spend on compilation (persistent cache).

All on one thread, as the processes of a study. The contenders of a table are timed in turns, so
that other load on the machine hits all alike; even so, compare numbers within one run only. Times
are those of calls with warm caches, compilation apart. Writes OUT/results.json and OUT/scaling.png.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from datar import load_mnist
from foundation.base import storage
from foundation.engine.folders import writable_folder
from foundation.engine.jobs import one_thread
from foundation.engine.runner import one_line_errors
from foundation.measures.metrics import accuracy, cross_entropy
from foundation.quantum import circuits
from models import MLP, QNN, train

ROOFLINE_FLOP = 0.8e9  # a fixed yardstick: what the first light-cone prototype computed in one step
PRODUCT = 1024  # rows and columns of the roofline's matrices
TOLERANCE = 1e-4  # to which all contenders have to agree, in value and in gradient
TURN = 0.15  # seconds a fast contender is repeated for when its turn comes


Size = namedtuple("Size", ["qubits", "depth", "samples", "runs"], defaults=[1])


class Sizes(NamedTuple):
    """What is measured. growth: the values of each size in turn, the others being those of
    `base`."""

    base: Size
    growth: dict[str, tuple[int, ...]]
    unrolled_depths: tuple[int, ...] = (2,)
    repetitions: int = 9
    fits: int = 5
    epochs: int = 100


FULL = Sizes(
    Size(10, 6, 256),
    {
        "qubits": (4, 6, 8, 10, 12, 14),
        "depth": (1, 2, 3, 4, 6, 8, 12),
        "samples": (32, 64, 128, 256, 512, 1024, 2048),
        "runs": (1, 2, 5),
    },
)
SMOKE = Sizes(
    Size(3, 2, 8), {"qubits": (2, 3), "depth": (2,), "samples": (8,), "runs": (2,)}, (2,), 2, 2, 2
)


class Program(NamedTuple):
    """Something to time: `run()` returns arrays; its time counts `scale`-fold. compile: seconds,
    None where none is."""

    label: str
    run: Callable[[], Any]
    compile: float | None = None
    scale: float = 1.0


def compiled(label: str, function: Callable, *arguments: Any, scale: float = 1.0) -> Program:
    """Trace, compile and time the compilation of a JAX function of these arguments."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return Program(label, partial(program, *arguments), time.perf_counter() - start, scale)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def in_turns(programs: list[Program], repetitions: int) -> pd.DataFrame:
    """Time programs in turns, a row for each; a turn of a fast one holds several repetitions."""
    for program in programs:
        seconds(program.run)  # warm up
    per_turn = [1 + int(TURN / seconds(program.run)) for program in programs]
    times = [[] for _ in programs]
    for _ in range(repetitions):
        for program, repeats, own in zip(programs, per_turn, times, strict=True):
            own += [program.scale * seconds(program.run) for _ in range(repeats)]
    frame = pd.DataFrame(programs)[["label", "compile"]]
    return frame.assign(
        min=list(map(min, times)), median=list(map(np.median, times)), n=list(map(len, times))
    )


def with_ratios(frame: pd.DataFrame, *kinds: str) -> pd.DataFrame:
    """Beside these columns, their ratios to the first row, which is ours."""
    return frame.assign(**{f"{kind}_ratio": frame[kind] / frame[kind][0] for kind in kinds})


# ---- 1: the QNN's training step ----


@cache
def problem(size: Size, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Angles (depth, qubits, 4), real normalised states (samples, 2**qubits) and labels
    (samples,)."""
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(size.samples, 2**size.qubits))
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    params = generator.uniform(-np.pi, np.pi, (size.depth, size.qubits, 4))
    return tuple(
        jnp.asarray(array, jnp.float32) for array in (params, states, np.arange(size.samples) % 2)
    )


def step(logits: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable:
    """(params, states, labels) -> the loss and its gradient, for a model's logits."""
    return jax.value_and_grad(
        lambda params, states, labels: cross_entropy(logits(params, states), labels)
    )


@cache
def our_step(size: Size, label: str = "ours") -> Program:
    """This project's; the time per run of several, each with angles and states of its own, by vmap
    or lax.map."""
    one = step(QNN(size.qubits, size.depth).logits)
    if label == "ours":
        return compiled(label, one, *problem(size))
    stacked = map(jnp.stack, zip(*(problem(size, seed) for seed in range(size.runs)), strict=True))
    many = {
        "vmap": jax.vmap(one),
        "lax.map": lambda *arrays: jax.lax.map(lambda each: one(*each), arrays),
    }
    return compiled(label, many[label], *stacked, scale=1 / size.runs)


def evolved_logits(params: jax.Array, states: jax.Array) -> jax.Array:
    """Ours without the light cone: every layer acts on the states, as fused blocks."""
    probabilities = jnp.abs(circuits.evolve(params, states)) ** 2
    return QNN.scale * (probabilities[:, 0::2] - probabilities[:, 1::2]).sum(axis=1)


def scanned_logits(params: jax.Array, states: jax.Array) -> jax.Array:
    """TensorCircuit gate by gate, one layer compiled and scanned over: what an expert would
    write."""
    qubits, tensorcircuit = params.shape[1], circuits.tensorcircuit_on_jax()

    def layer(state, angles):
        return circuits.ansatz(angles[None], state).state(), None

    def expectation(state):
        state = jax.lax.scan(layer, state.astype(jnp.complex64), params)[0]
        return tensorcircuit.Circuit(qubits, inputs=state).expectation_ps(z=[qubits - 1]).real

    return QNN.scale * jax.vmap(expectation)(states)


def chain_rule(
    values: np.ndarray, jacobians: np.ndarray, labels: jax.Array
) -> tuple[jax.Array, np.ndarray]:
    """Loss and gradient from expectations (n,) and their gradients (n, angles)."""
    logits = QNN.scale * jnp.asarray(values, jnp.float32)
    loss, slopes = jax.value_and_grad(cross_entropy)(logits, labels)
    return loss, QNN.scale * np.asarray(slopes) @ jacobians


def lightning_step(params: jax.Array, states: jax.Array, labels: jax.Array) -> Callable[[], tuple]:
    """Loss and gradient by PennyLane's lightning.qubit and its adjoint differentiation, as a
    function of nothing.

    Sample by sample: the adjoint method knows no parameter broadcasting. The device is called
    directly: a QNode and autograd around it double the time. The chain rule through the
    cross-entropy is put on by hand.
    """
    import pennylane as qml

    (depth, qubits, _), states = params.shape, np.asarray(states)
    device = qml.device("lightning.qubit", wires=qubits, c_dtype=np.complex64)
    wanted = qml.devices.ExecutionConfig(gradient_method="adjoint", use_device_gradient=True)
    config = device.setup_execution_config(wanted)

    def tape(layers, state):
        gates = [qml.StatePrep(state, wires=range(qubits))]
        for layer in layers:
            for qubit, (x_first, y, x_last, _) in enumerate(layer):
                gates += [qml.RX(x_first, qubit), qml.RY(y, qubit), qml.RX(x_last, qubit)]
            gates += [
                qml.IsingZZ(angles[3], [qubit, (qubit + 1) % qubits])
                for qubit, angles in enumerate(layer)
            ]
        angles = range(1, 1 + params.size)  # parameter 0 is the state
        return qml.tape.QuantumScript(
            gates, [qml.expval(qml.Z(qubits - 1))], trainable_params=angles
        )

    def run():
        tapes = [tape(params.tolist(), state) for state in states]
        values, jacobians = device.execute_and_compute_derivatives(tapes, config)
        loss, gradient = chain_rule(values, np.asarray(jacobians), labels)
        gradient = gradient.reshape(depth, -1)  # in the gates' order
        rotations, bonds = gradient[:, : 3 * qubits], gradient[:, 3 * qubits :]
        return loss, np.concatenate([rotations.reshape(depth, qubits, 3), bonds[..., None]], axis=2)

    return run


def contenders(sizes: Sizes) -> list[tuple[Program, Size]]:
    """All ways to compute the step, each with the size that is measured."""
    circuits.tensorcircuit_on_jax()  # its import is no compilation
    base, few = sizes.base, sizes.base._replace(samples=8)
    ways = {
        "ours, all layers evolved": evolved_logits,
        "TensorCircuit, gate by gate under scan": scanned_logits,
    }
    pairs = [(our_step(base), base)]
    pairs += [
        (compiled(label, step(logits), *problem(base)), base) for label, logits in ways.items()
    ]
    # TensorCircuit as it comes: the whole circuit, vmapped over the states
    for depth in sizes.unrolled_depths:
        own, times = base._replace(depth=depth), base.depth / depth
        logits = QNN(
            base.qubits, depth, ansatz=circuits.ansatz, shape=(depth, base.qubits, 4)
        ).logits
        label = f"TensorCircuit, gate by gate unrolled: depth {depth} measured, times {times:g}"
        pairs.append((compiled(label, step(logits), *problem(own), scale=times), own))
    times = base.samples / few.samples
    label = f"PennyLane lightning, adjoint: {few.samples} samples measured, times {times:g}"
    return [*pairs, (Program(label, lightning_step(*problem(few)), scale=times), few)]


def training_step(sizes: Sizes) -> pd.DataFrame:
    """Time all contenders in turns. Exits where one does not compute what ours does."""
    programs, differences = [], []
    for program, size in contenders(sizes):
        pairs = zip(program.run(), our_step(size).run(), strict=True)
        programs.append(program)
        differences.append(max(float(np.max(np.abs(theirs - own))) for theirs, own in pairs))
        if not differences[-1] <= TOLERANCE:
            raise SystemExit(
                f"error: {program.label} differs from ours by {differences[-1]:.1e}, over "
                f"{TOLERANCE:.0e}"
            )
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(PRODUCT, PRODUCT)), jnp.float32)
    label = f"roofline: 0.8 GFlop at the rate of a float32 product of {PRODUCT}×{PRODUCT}"
    roofline = compiled(label, jnp.matmul, matrix, matrix, scale=ROOFLINE_FLOP / (2 * PRODUCT**3))
    frame = with_ratios(in_turns([*programs, roofline], sizes.repetitions), "min", "median")
    rate = ROOFLINE_FLOP / 1e9 / frame["min"].iloc[-1:]
    return frame.assign(difference=[*differences, None], gflop_per_second=rate)


# ---- 2: the MLP; 3: how the step's cost grows; 4: a script's start ----


def mlp_trainings(sizes: Sizes) -> pd.DataFrame:
    """Trainings in one vmapped call in turns with a Keras fit, which counts as many times; equal
    epochs and batches."""
    from tensorflow import keras

    split = load_mnist(per_class=250, source="embedded").train
    model, keys = MLP(split.x.shape[1]), jax.random.split(jax.random.key(0), sizes.fits)
    training = partial(train, epochs=sizes.epochs, batch_size=256, learning_rate=0.005)
    ours = compiled(
        f"ours, {sizes.fits} in one call",
        jax.vmap(lambda key: training(model, split, key=key)),
        keys,
    )
    network = model.to_keras(model.init(keys[0]))
    network.compile(keras.optimizers.Adam(0.005), keras.losses.BinaryCrossentropy(from_logits=True))
    fresh = network.get_weights()

    def fit(epochs=sizes.epochs):
        network.set_weights(fresh)
        network.fit(split.x, split.y, batch_size=256, epochs=epochs, verbose=0)

    first = sizes.fits * seconds(partial(fit, 1))  # Keras compiles in here
    theirs = Program(f"Keras, {sizes.fits} × model.fit (one measured)", fit, first, sizes.fits)
    frame = in_turns([ours, theirs], sizes.fits)
    logits = jax.vmap(model.logits, (0, None))(ours.run(), split.x), network(split.x).numpy().T
    frame["accuracy"] = [
        float(np.mean([accuracy(each, split.y) for each in own])) for own in logits
    ]
    frame["total"], frame["with_compile"] = frame["median"], frame["median"] + frame["compile"]
    return with_ratios(frame, "total", "with_compile")


def growth(sizes: Sizes) -> pd.DataFrame:
    """The step's time against one size at a time, the others as in the first table; against runs:
    time per run."""
    frames = []
    for name, values in sizes.growth.items():
        labels = ("vmap", "lax.map") if name == "runs" else ("ours",)
        points = [(value, label) for value in values for label in labels]
        programs = [
            our_step(sizes.base._replace(**{name: value}), label) for value, label in points
        ]
        frames.append(
            in_turns(programs, sizes.repetitions).assign(
                varied=name, value=[value for value, _ in points]
            )
        )
    return pd.concat(frames)


def draw_growth(frame: pd.DataFrame, title: str, path: Path) -> None:
    """One panel a size, both axes logarithmic; dashed: proportional to amplitudes, layers or
    samples."""
    from foundation.report import drawing

    drawing.use_style()
    figure, axes = drawing.plt.subplots(1, frame.varied.nunique(), figsize=(10.4, 2.6))
    for axis, (name, points) in zip(axes, frame.groupby("varied", sort=False), strict=True):
        # (values, labels)
        times = 1e3 * points.pivot(index="value", columns="label", values="median")
        values, runs = times.index, name == "runs"
        times.index = 2**values if name == "qubits" else values
        if not runs:
            times["proportional"] = times["ours"].iloc[0] * times.index / times.index[0]
        times.plot(
            ax=axis, style=["o-", "s-" if runs else "--"], markersize=4, logx=True, logy=not runs
        )
        axis.set(xlabel=name, ylabel="ms per step and run" if runs else "ms per step")
        axis.set_xticks(times.index, values)
        axis.minorticks_off()
        axis.legend(frameon=False)
    axes[-1].set_ylim(bottom=0)
    figure.suptitle(title, fontsize="small")
    figure.savefig(path)
    drawing.plt.close(figure)


def print_start_up(*size: int) -> None:
    """In a process of its own: print as JSON what stands between a script's start and its first
    step's result."""
    given, own = problem(Size(*size)), step(QNN(*size[:2]).logits)
    imported = time.perf_counter()
    lowered = jax.jit(own).lower(*given)
    traced = time.perf_counter()
    program = lowered.compile()
    spent = {"trace": traced - imported, "compile": time.perf_counter() - traced}
    print(
        json.dumps(
            spent
            | {"first_step": seconds(partial(program, *given)), "peak_megabytes": peak_megabytes()}
        )
    )


def start_ups(sizes: Sizes) -> pd.DataFrame:
    """Two starts one after the other, with a compilation cache that is empty at the first."""
    command, rows = (
        [sys.executable, "-c", f"import bench; bench.print_start_up{tuple(sizes.base)}"],
        [],
    )
    with tempfile.TemporaryDirectory() as folder:
        own = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "PYTHONPATH": str(Path(__file__).parent),
        }
        for label in ("first start, empty cache", "second start"):
            start = time.perf_counter()
            printed = subprocess.check_output(command, env=own, text=True)
            whole = time.perf_counter() - start
            rows.append({"label": label, "whole": whole} | json.loads(printed.splitlines()[-1]))
    return pd.DataFrame(rows)


# ---- what is printed and kept ----

SECTIONS = {  # of the results: what measures it, and the title of its table
    "training_step": (training_step, "Training step of the QNN, value and gradient ({base})"),
    "mlp": (
        mlp_trainings,
        "{sizes.fits} trainings of the MLP (64,16), {sizes.epochs} epochs, batch 256",
    ),
    "growth": (growth, "Training step against qubits, depth, samples and runs (time per run)"),
    "start_up": (start_ups, "Start of a script, in a process of its own"),
}
HEADINGS = {
    "compile": "compile s",
    "min": "min ms",
    "median": "median ms",
    "n": "n",
    "min_ratio": "/ ours (min)",
    "median_ratio": "(median)",
    "difference": "difference",
    "gflop_per_second": "GFlop/s",
    "total": "trainings s",
    "total_ratio": "/ ours",
    "with_compile": "both s",
    "with_compile_ratio": "/ ours",
    "accuracy": "train accuracy",
    "whole": "whole process s",
    "trace": "of which trace s",
    "first_step": "first step s",
    "peak_megabytes": "peak MB",
}


def context() -> dict[str, Any]:
    """Where and when the numbers were taken."""
    told = storage.provenance()
    (tensorflow, *_) = packages_distributions()["tensorflow"]  # or tensorflow-cpu
    for package in ("pennylane", "pennylane-lightning", tensorflow, "keras"):
        told["versions"] += f", {package} {version(package)}"
    load = [round(load, 2) for load in os.getloadavg()]
    return {"started": told.pop("finished"), **told, "cores": storage.cores(), "load_average": load}


def peak_megabytes() -> float:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.is_file():  # a child's ru_maxrss would start from its parent's
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS, in bytes


def table(frame: pd.DataFrame) -> str:
    """Three significant digits, whole numbers in full; seconds as milliseconds where the heading
    says so."""
    rows = frame.set_index([name for name in ("varied", "value", "label") if name in frame])
    rows.index.names = [None] * rows.index.nlevels
    cells = rows[[name for name in rows if name in HEADINGS]].rename(columns=HEADINGS)
    cells = cells * [1e3 if heading.endswith("ms") else 1 for heading in cells]
    return cells.to_string(
        na_rep="", float_format=lambda x: f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"
    )


def records(frame: pd.DataFrame) -> Any:
    """Rows as they are kept; those of the growth by what is varied."""
    if "varied" in frame:
        return {
            name: records(own.drop(columns="varied"))
            for name, own in frame.groupby("varied", sort=False)
        }
    return json.loads(frame.to_json(orient="records", double_precision=15))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(__file__).parent
    parser.add_argument(
        "--out", type=Path, default=folder, help="folder for results.json and scaling.png"
    )
    parser.add_argument(
        "--slow",
        action="store_true",
        help="TensorCircuit unrolled at depth 3 too: minutes to compile",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes: whether it runs, under a minute"
    )
    arguments = parser.parse_args()
    with one_line_errors():
        writable_folder(arguments.out)
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    # as studies compute
    os.environ |= one_thread() | {
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
    }
    # TensorFlow: quiet, on the CPU too
    os.environ |= {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    sizes = (
        SMOKE
        if arguments.smoke
        else FULL._replace(unrolled_depths=(2, 3) if arguments.slow else (2,))
    )
    base = "{samples} samples, {qubits} qubits, depth {depth}".format(**sizes.base._asdict())

    results, frames = {"context": context()}, {}
    print("\n".join(f"{name}: {value}" for name, value in results["context"].items()))
    for name, (measure, title) in SECTIONS.items():
        print(f"... {name}", file=sys.stderr, flush=True)
        frame = frames[name] = measure(sizes)
        results[name] = records(frame)
        print(f"\n{title.format(base=base, sizes=sizes)}\n{table(frame)}")
    results["peak_megabytes"] = peak = peak_megabytes()
    print(f"\nPeak resident memory of all this, TensorFlow and PennyLane included: {peak:.0f} MB")
    title = f"QNN training step, value and gradient; {base} unless varied"
    draw_growth(frames["growth"], title, arguments.out / "scaling.png")
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

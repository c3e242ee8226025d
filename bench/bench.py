"""How fast the models train here, beside other ways to compute the same numbers.

    make bench                            # or: python bench/bench.py; about five minutes on 2 cores
    python bench/bench.py --slow          # unrolled TensorCircuit at one more depth: minutes of compilation
    python bench/bench.py --smoke --out /tmp/bench    # tiny sizes: does it run?

1. The QNN's training step (value and gradient of the mean cross-entropy of 256 images of 1024 amplitudes, 10
   qubits, depth 6, complex64): this project, TensorCircuit gate by gate, PennyLane lightning, and 0.8 GFlop at
   the machine's own float32 matrix-product rate as the roofline. Values and gradients have to agree to 1e-4.
2. Five trainings of the MLP (64,16) on MNIST against five Keras fits.
3. How the step's cost grows with qubits, depth, samples and runs.
4. What a script's first and second start spend on compilation (persistent cache).

Everything runs on one thread, as the processes of a study do. All contenders of a table are timed in turns, so that
other load on the machine hits all alike; even so, compare numbers within one run only. Times are those of calls with
warm caches, compilation apart. Writes OUT/results.json and OUT/scaling.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import circuits
import storage
from datar import load_mnist
from jobs import one_thread
from metrics import accuracy, cross_entropy
from models import MLP, QNN, Training, train
from runner import one_line_errors, writable_folder

PACKAGES = ("pennylane", "pennylane-lightning", "tensorflow", "keras")
THREAD_SETTINGS = ("PJRT_NPROC", "XLA_FLAGS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
ROOFLINE_FLOP = 0.8e9  # a fixed yardstick: what the first light-cone prototype computed in one step
PRODUCT = 1024  # rows and columns of the roofline's matrices
PENNYLANE_SAMPLES = 8
TOLERANCE = 1e-4  # to which all contenders have to agree, in value and in gradient
TURN = 0.15  # seconds a fast contender is repeated for when its turn comes

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    qubits: int = 10
    depth: int = 6
    samples: int = 256
    unrolled_depths: tuple[int, ...] = (2,)
    repetitions: int = 9
    fits: int = 5
    epochs: int = 100
    growth: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "qubits": (4, 6, 8, 10, 12, 14),
            "depth": (1, 2, 3, 4, 6, 8, 12),
            "samples": (32, 64, 128, 256, 512, 1024, 2048),
            "runs": (1, 2, 5),
        }
    )


SMOKE = Sizes(
    qubits=3, depth=2, samples=8, repetitions=2, fits=2, epochs=2,
    growth={"qubits": (2, 3), "depth": (2,), "samples": (8,), "runs": (2,)},
)  # fmt: skip


# ---- timing ----


class Program(NamedTuple):
    """Something to time: `run()` returns arrays; its time counts `scale`-fold. compile_seconds: None if it has none."""

    label: str
    run: Callable[[], Any]
    compile_seconds: float | None = None
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


def in_turns(programs: list[Program], repetitions: int) -> Rows:
    """Time programs in turns, a row for each; a turn of a fast one holds several repetitions."""
    for program in programs:
        seconds(program.run)  # warm up
    per_turn = [1 + int(TURN / seconds(program.run)) for program in programs]
    times = [[] for _ in programs]
    for _ in range(repetitions):
        for program, repeats, own in zip(programs, per_turn, times, strict=True):
            own += [program.scale * seconds(program.run) for _ in range(repeats)]
    return [timed(*pair) for pair in zip(programs, times, strict=True)]


def timed(program: Program, times: list[float]) -> dict[str, Any]:
    spread = {"min": min(times), "median": float(np.median(times)), "n": len(times)}
    return {"label": program.label, "compile": program.compile_seconds} | spread


# ---- 1: the QNN's training step ----


@cache
def problem(qubits: int, depth: int, samples: int, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Angles (depth, qubits, 4), real normalised states (samples, 2**qubits) and labels (samples,)."""
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(samples, 2**qubits))
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    params = generator.uniform(-np.pi, np.pi, (depth, qubits, 4))
    return tuple(jnp.asarray(array, jnp.float32) for array in (params, states, np.arange(samples) % 2))


def step(logits: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable:
    """(params, states, labels) -> the loss and its gradient, for a model's logits."""
    return jax.value_and_grad(lambda params, states, labels: cross_entropy(logits(params, states), labels))


def our_logits(params: jax.Array, states: jax.Array) -> jax.Array:
    depth, qubits, _ = params.shape
    return QNN(qubits, depth).logits(params, states)


@cache
def our_step(qubits: int, depth: int, samples: int) -> Program:
    return compiled("", step(our_logits), *problem(qubits, depth, samples))


def evolved_logits(params: jax.Array, states: jax.Array) -> jax.Array:
    """The same without the light cone: every layer acts on the states, as fused blocks."""
    probabilities = jnp.abs(circuits.evolve(params, states)) ** 2
    return QNN.scale * (probabilities[:, 0::2] - probabilities[:, 1::2]).sum(axis=1)


def unrolled_logits(params: jax.Array, states: jax.Array) -> jax.Array:
    """TensorCircuit as it comes: the whole circuit, gate by gate, vmapped over the states."""
    depth, qubits, _ = params.shape
    return QNN(qubits, depth, ansatz=circuits.ansatz, shape=params.shape).logits(params, states)


def scanned_logits(params: jax.Array, states: jax.Array) -> jax.Array:
    """TensorCircuit gate by gate, one layer compiled and scanned over: what an expert would write."""
    qubits = params.shape[1]
    tensorcircuit = circuits.tensorcircuit_on_jax()

    def layer(state, angles):
        return circuits.ansatz(angles[None], state).state(), None

    def expectation(state):
        state = jax.lax.scan(layer, state.astype(jnp.complex64), params)[0]
        return tensorcircuit.Circuit(qubits, inputs=state).expectation_ps(z=[qubits - 1]).real

    return QNN.scale * jax.vmap(expectation)(states)


def lightning_step(params: jax.Array, states: jax.Array, labels: jax.Array) -> Callable[[], tuple]:
    """A function that gives loss and gradient by PennyLane's lightning.qubit, adjoint, sample by sample.

    The adjoint method knows no parameter broadcasting. The device is called directly: a QNode and autograd
    around it double the time. The cross-entropy's derivative (sigmoid - label) is put on by hand.
    """
    import pennylane as qml

    depth, qubits, _ = params.shape
    states, labels = np.asarray(states), np.asarray(labels)
    device = qml.device("lightning.qubit", wires=qubits, c_dtype=np.complex64)
    wanted = qml.devices.ExecutionConfig(gradient_method="adjoint", use_device_gradient=True)
    config = device.setup_execution_config(wanted)

    def run():
        tapes = [pennylane_tape(params.tolist(), state) for state in states]
        values, jacobians = device.execute_and_compute_derivatives(tapes, config)
        logits = QNN.scale * np.asarray(values)
        residual = 1 / (1 + np.exp(-logits)) - labels
        loss = np.mean(np.logaddexp(0, logits) - labels * logits)
        gradient = QNN.scale * residual @ np.asarray(jacobians) / len(labels)  # in the order of the tape's gates
        rotations, bonds = np.split(gradient.reshape(depth, -1), [3 * qubits], axis=1)
        return loss, np.concatenate([rotations.reshape(depth, qubits, 3), bonds[..., None]], axis=2)

    return run


def pennylane_tape(params: list, state: np.ndarray) -> Any:
    import pennylane as qml

    qubits = len(params[0])
    gates = [qml.StatePrep(state, wires=range(qubits))]
    for layer in params:
        for qubit, (x_first, y, x_last, _) in enumerate(layer):
            gates += [qml.RX(x_first, qubit), qml.RY(y, qubit), qml.RX(x_last, qubit)]
        gates += [qml.IsingZZ(angles[3], [qubit, (qubit + 1) % qubits]) for qubit, angles in enumerate(layer)]
    trainable = range(1, 1 + 4 * qubits * len(params))  # parameter 0 is the state
    return qml.tape.QuantumScript(gates, [qml.expval(qml.Z(qubits - 1))], trainable_params=trainable)


def contenders(sizes: Sizes) -> list[tuple[Program, Program]]:
    """The ways to compute the step, each beside ours of the problem that it solves, which may be a smaller one."""
    circuits.tensorcircuit_on_jax()  # its import is no compilation
    size = sizes.qubits, sizes.depth, sizes.samples
    others = [
        ("ours, all layers evolved", evolved_logits, size, 1.0),
        ("TensorCircuit, gate by gate under scan", scanned_logits, size, 1.0),
    ]
    for depth in sizes.unrolled_depths:
        times = sizes.depth / depth
        label = f"TensorCircuit, gate by gate unrolled: depth {depth} measured, times {times:g}"
        others.append((label, unrolled_logits, (sizes.qubits, depth, sizes.samples), times))
    times, few = sizes.samples / PENNYLANE_SAMPLES, (sizes.qubits, sizes.depth, PENNYLANE_SAMPLES)
    label = f"PennyLane lightning, adjoint: {PENNYLANE_SAMPLES} samples measured, times {times:g}"
    return [
        (our_step(*size)._replace(label="ours"), our_step(*size)),
        *((compiled(label, step(logits), *problem(*own), scale=scale), our_step(*own))
          for label, logits, own, scale in others),
        (Program(label, lightning_step(*problem(*few)), scale=times), our_step(*few)),
    ]  # fmt: skip


def training_step(sizes: Sizes) -> Rows:
    """Time all contenders in turns. Exits where one does not compute what ours does."""
    programs, differences = [], []
    for program, ours in contenders(sizes):
        pairs = zip(program.run(), ours.run(), strict=True)
        difference = max(float(np.max(np.abs(theirs - own))) for theirs, own in pairs)
        if not difference <= TOLERANCE:
            raise SystemExit(f"error: {program.label} differs from ours by {difference:.1e}, over {TOLERANCE:.0e}")
        programs.append(program)
        differences.append(difference)
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(PRODUCT, PRODUCT)), jnp.float32)
    label = f"roofline: 0.8 GFlop at the rate of a float32 product of {PRODUCT}×{PRODUCT}"
    programs.append(compiled(label, jnp.matmul, matrix, matrix, scale=ROOFLINE_FLOP / (2 * PRODUCT**3)))
    rows = in_turns(programs, sizes.repetitions)
    for row, difference in zip(rows, [*differences, None], strict=True):
        row["difference"] = difference
    return with_ratios(rows, "min", "median")


def with_ratios(rows: Rows, *kinds: str) -> Rows:
    """The rows, each with the ratios of these numbers to those of the first row, which is ours."""
    return [row | {f"{kind}_ratio": row[kind] / rows[0][kind] for kind in kinds} for row in rows]


# ---- 2: the MLP ----


def mlp_trainings(sizes: Sizes) -> Rows:
    """Trainings in one vmapped call in turns with as many Keras fits, of equal epochs and batches."""
    from tensorflow import keras

    split = load_mnist(per_class=250, source="embedded").train
    model, keys = MLP(split.x.shape[1]), jax.random.split(jax.random.key(0), sizes.fits)
    training = Training(sizes.epochs, batch_size=256, learning_rate=0.005)
    one_training = lambda key: train(model, split, **training.keywords(), key=key)  # noqa: E731
    ours = compiled(f"ours, {sizes.fits} in one call", jax.vmap(one_training), keys)
    accuracies = [accuracy(logits, split.y) for logits in jax.vmap(model.logits, (0, None))(ours.run(), split.x)]
    our_times, first_epochs, fits, correct = [], [], [], []
    for key in keys:
        network = model.to_keras(model.init(key))
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        network.compile(optimizer=keras.optimizers.Adam(training.learning_rate), loss=loss)
        fit = partial(network.fit, split.x, split.y, batch_size=training.batch_size, verbose=0)
        first_epochs.append(seconds(partial(fit, epochs=1)))  # Keras compiles in here
        fits.append(seconds(partial(fit, epochs=sizes.epochs)))
        correct.append(accuracy(network(split.x)[:, 0].numpy(), split.y))
        our_times += [seconds(ours.run) for _ in range(3)]
    theirs = Program(f"Keras, {sizes.fits} × model.fit", fit, sum(first_epochs))
    rows = [
        timed(ours, our_times) | {"total": float(np.median(our_times)), "accuracy": float(np.mean(accuracies))},
        timed(theirs, fits) | {"total": sum(fits), "accuracy": float(np.mean(correct))},
    ]
    rows = [row | {"with_compile": row["total"] + row["compile"]} for row in rows]
    return with_ratios(rows, "total", "with_compile")


# ---- 3: how the step's cost grows ----


def several_runs(sizes: Sizes, runs: int, label: str) -> Program:
    """The step of several runs, each with its own angles and states, vmapped or one after the other."""
    problems = [problem(sizes.qubits, sizes.depth, sizes.samples, seed) for seed in range(runs)]
    stacked = [jnp.stack(arrays) for arrays in zip(*problems, strict=True)]
    one = step(our_logits)
    mapped = {"vmap": jax.vmap(one), "lax.map": lambda *arrays: jax.lax.map(lambda each: one(*each), arrays)}
    return compiled(label, mapped[label], *stacked, scale=1 / runs)


def growth(sizes: Sizes) -> dict[str, Rows]:
    """The step's time against one size at a time, the others as in the first table; against runs: time per run."""
    base = {"qubits": sizes.qubits, "depth": sizes.depth, "samples": sizes.samples}
    rows = {}
    for name, values in sizes.growth.items():
        if name == "runs":
            values = np.repeat(values, 2).tolist()
            labels = itertools.cycle(["vmap", "lax.map"])
            programs = [several_runs(sizes, runs, label) for runs, label in zip(values, labels, strict=False)]
        else:
            programs = [our_step(**base | {name: value}) for value in values]
        measured = in_turns(programs, sizes.repetitions)
        rows[name] = [{"value": value} | row for value, row in zip(values, measured, strict=True)]
    return rows


def draw_growth(rows: dict[str, Rows], title: str, path: Path) -> None:
    """One panel a size, both axes logarithmic; dashed: proportional to amplitudes, layers or samples."""
    import figures

    figures.use_style()
    figure, axes = figures.plt.subplots(1, len(rows), figsize=(2.6 * len(rows), 2.6))
    for axis, (name, points) in zip(axes, rows.items(), strict=True):
        for (label, own), marker in zip(pd.DataFrame(points).groupby("label", sort=False), "os", strict=False):
            places, times = (2**own.value if name == "qubits" else own.value), 1e3 * own["median"]
            axis.plot(places, times, marker=marker, markersize=4, label=label or None)
        if name == "runs":
            axis.set(xscale="log", xlabel=name, ylabel="ms per step and run", ylim=(0, None))
        else:
            proportional = times.iloc[0] * places / places.iloc[0]
            axis.plot(places, proportional, "--", color="0.6", zorder=0, label="proportional")
            axis.set(xscale="log", xlabel=name, yscale="log")
        axis.legend(frameon=False)
        axis.set_xticks(places, own.value)
        axis.minorticks_off()
    axes[0].set_ylabel("ms per step")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path)
    figures.plt.close(figure)


# ---- 4: a script's start ----


def print_start_up(qubits: int, depth: int, samples: int) -> None:
    """In a process of its own: print as JSON what stands between a script's start and its first step's result."""
    given = problem(qubits, depth, samples)
    imported = time.perf_counter()
    lowered = jax.jit(step(our_logits)).lower(*given)
    traced = time.perf_counter()
    program = lowered.compile()
    spent = {"trace": traced - imported, "compile": time.perf_counter() - traced}
    print(json.dumps(spent | {"first_step": seconds(partial(program, *given)), "peak_megabytes": peak_megabytes()}))


def start_ups(sizes: Sizes) -> Rows:
    """Two starts one after the other, with a compilation cache that is empty at the first."""
    code = f"import bench; bench.print_start_up({sizes.qubits}, {sizes.depth}, {sizes.samples})"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        own = {"JAX_COMPILATION_CACHE_DIR": folder, "PYTHONPATH": str(Path(__file__).parent)}
        for label in ("first start, empty cache", "second start"):
            start = time.perf_counter()
            printed = subprocess.check_output([sys.executable, "-c", code], env=os.environ | own, text=True)
            whole = time.perf_counter() - start
            rows.append({"label": label, "whole": whole} | json.loads(printed.splitlines()[-1]))
    return rows


# ---- what is printed and kept ----


def context() -> dict[str, Any]:
    """Where and when the numbers were taken."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": storage.machine(),
        "cores": storage.cores(),
        "thread_settings": {name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ},
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": ", ".join([storage.versions(), *(f"{package} {version(package)}" for package in PACKAGES)]),
        "commit": storage.git_commit(),
    }


def peak_megabytes() -> float:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.is_file():  # a child's ru_maxrss would start from its parent's
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes, on macOS


TIMES = {"compile": "compile s", "min": "min ms", "median": "median ms", "n": "n"}
SECTIONS = {  # of the results: what measures it, the title of its table, {key: heading} of the columns
    "training_step": (
        training_step,
        "Training step of the QNN, value and gradient ({samples} samples, {qubits} qubits, depth {depth})",
        TIMES | {"min_ratio": "/ ours (min)", "median_ratio": "(median)", "difference": "difference"},
    ),
    "mlp": (
        mlp_trainings,
        "{fits} trainings of the MLP (64,16), {epochs} epochs, batch 256",
        {"compile": "compile s", "total": "trainings s", "total_ratio": "/ ours", "with_compile": "both s",
         "with_compile_ratio": "/ ours", "accuracy": "train accuracy"},
    ),
    "growth": (growth, "Training step against qubits, depth, samples and runs (time per run)", TIMES),
    "start_up": (
        start_ups,
        "Start of a script, in a process of its own",
        {"whole": "whole process s", "trace": "of which trace", "compile": "compile", "first_step": "first step",
         "peak_megabytes": "peak MB"},
    ),
}  # fmt: skip


def table(rows: Rows | dict[str, Rows], columns: dict[str, str]) -> str:
    """The columns {key: heading} of rows; times in seconds are shown in milliseconds where the heading says so."""
    if isinstance(rows, dict):
        own = [(f"{name} {row['value']} {row['label']}", row) for name, points in rows.items() for row in points]
        rows = [row | {"label": label.strip()} for label, row in own]
    frame = pd.DataFrame(rows).set_index("label").rename_axis(None)[list(columns)]
    factors = [1e3 if heading.endswith("ms") else 1 for heading in columns.values()]
    frame = (frame * factors).set_axis(columns.values(), axis=1)
    return frame.to_string(na_rep="", float_format=lambda x: f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=folder, help="folder for results.json and scaling.png")
    parser.add_argument("--slow", action="store_true", help="TensorCircuit unrolled at depth 3 too: minutes to compile")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: whether it runs, under a minute")
    arguments = parser.parse_args()
    with one_line_errors():
        writable_folder(arguments.out)
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    os.environ |= one_thread() | {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}  # as studies compute
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}  # TensorFlow: quiet, on the CPU too
    sizes = SMOKE if arguments.smoke else Sizes(unrolled_depths=(2, 3) if arguments.slow else (2,))

    results = {"context": context()}
    print("\n".join(f"{name}: {value}" for name, value in results["context"].items()))
    for name, (measure, title, columns) in SECTIONS.items():
        print(f"... {name}", file=sys.stderr, flush=True)
        results[name] = measure(sizes)
        print(f"\n{title.format(**vars(sizes))}\n{table(results[name], columns)}")
    ours, _, scanned, *_, roofline = results["training_step"]
    rate = roofline["gflop_per_second"] = ROOFLINE_FLOP / 1e9 / roofline["min"]
    results["peak_megabytes"] = peak_megabytes()
    print(f"\nThe matrix product runs at {rate:.0f} GFlop/s. In minima, ours takes "
          f"{ours['min'] / roofline['min']:.1f} times the roofline and\nTensorCircuit under scan "
          f"{scanned['min_ratio']:.1f} times as long as ours.\n\n"
          "Peak resident memory of all this, TensorFlow and PennyLane included: "
          f"{results['peak_megabytes']:.0f} MB")  # fmt: skip
    base = "{samples} samples, {qubits} qubits, depth {depth}".format(**vars(sizes))
    title = f"QNN training step, value and gradient; {base} unless varied"
    draw_growth(results["growth"], title, arguments.out / "scaling.png")
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

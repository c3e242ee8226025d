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

Everything runs on one thread, as the processes of a study do. All contenders of a table are timed in turns,
repetition by repetition, so that other load on the machine hits all of them alike; even so, compare numbers within
one run only. Times are those of calls with warm caches, compilation apart. Writes OUT/results.json and
OUT/scaling.png.
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

import circuits
import storage
from datar import Split, load_mnist
from jobs import one_thread
from metrics import accuracy, cross_entropy
from models import MLP, QNN, train
from runner import one_line_errors, writable_folder

PACKAGES = ("pennylane", "pennylane-lightning", "tensorflow", "keras")
THREAD_SETTINGS = ("PJRT_NPROC", "XLA_FLAGS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
ROOFLINE_FLOP = 0.8e9  # a fixed yardstick: what the first light-cone prototype computed in one step
TOLERANCE = 1e-4  # to which all contenders have to agree, in value and in gradient
TURN = 0.15  # seconds a fast contender is repeated for when its turn comes


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    qubits: int = 10
    depth: int = 6
    samples: int = 256
    product: int = 1024  # rows and columns of the roofline's matrices
    unrolled_depths: tuple[int, ...] = (2,)
    pennylane_samples: int = 8
    repetitions: int = 9
    fits: int = 5
    epochs: int = 100
    per_class: int | None = 250  # MNIST images; None draws random samples
    growth_repetitions: int = 7
    growth: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "qubits": (4, 6, 8, 10, 12, 14),
            "depth": (1, 2, 3, 4, 6, 8, 12),
            "samples": (32, 64, 128, 256, 512, 1024, 2048),
            "runs": (1, 2, 5),
        }
    )


SMOKE = Sizes(
    qubits=3, depth=2, samples=8, product=256, unrolled_depths=(2,), pennylane_samples=8, repetitions=2, fits=2,
    epochs=2, per_class=None, growth_repetitions=2,
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


def in_turns(programs: list[Program], repetitions: int) -> list[dict[str, Any]]:
    """Time programs in turns, a row for each; a turn of a fast one holds several repetitions."""
    for program in programs:
        seconds(program.run)  # warm up
    per_turn = [1 + int(TURN / seconds(program.run)) for program in programs]
    times = [[] for _ in programs]
    for _ in range(repetitions):
        for program, repeats, own in zip(programs, per_turn, times, strict=True):
            own += [program.scale * seconds(program.run) for _ in range(repeats)]
    return [
        {"label": program.label, "compile": program.compile_seconds, **summary(own)}
        for program, own in zip(programs, times, strict=True)
    ]


def summary(times: list[float]) -> dict[str, float]:
    return {"min": min(times), "median": float(np.median(times)), "n": len(times)}


# ---- 1: the QNN's training step ----


class Problem(NamedTuple):
    """Angles (depth, qubits, 4), real normalised states (n, 2**qubits) and labels (n,)."""

    params: jax.Array
    states: jax.Array
    labels: jax.Array


@cache
def problem(qubits: int, depth: int, samples: int, seed: int = 0) -> Problem:
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(samples, 2**qubits))
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    params = generator.uniform(-np.pi, np.pi, (depth, qubits, 4))
    labels = np.arange(samples) % 2
    return Problem(*(jnp.asarray(array, jnp.float32) for array in (params, states, labels)))


def step(logits: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable:
    """(params, states, labels) -> the loss and its gradient, for a model's logits."""
    return jax.value_and_grad(lambda params, states, labels: cross_entropy(logits(params, states), labels))


def our_logits(params: jax.Array, states: jax.Array) -> jax.Array:
    depth, qubits, _ = params.shape
    return QNN(qubits, depth).logits(params, states)


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


def lightning_step(given: Problem) -> Callable[[], tuple[float, np.ndarray]]:
    """Loss and gradient by PennyLane's lightning.qubit and its adjoint differentiation, sample by sample.

    The adjoint method knows no parameter broadcasting. The device is called directly: a QNode and autograd
    around it double the time. The cross-entropy's derivative (sigmoid - label) is put on by hand.
    """
    import pennylane as qml

    qubits = given.params.shape[1]
    params, states, labels = map(np.asarray, given)
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
        rotations, bonds = np.split(gradient.reshape(len(params), -1), [3 * qubits], axis=1)
        return loss, np.concatenate([rotations.reshape(-1, qubits, 3), bonds[..., None]], axis=2)

    return run


def pennylane_tape(params: list, state: np.ndarray) -> Any:
    import pennylane as qml

    qubits = len(params[0])
    with qml.queuing.AnnotatedQueue() as queue:
        qml.StatePrep(state, wires=range(qubits))
        for layer in params:
            for qubit, (x_first, y, x_last, _) in enumerate(layer):
                qml.RX(x_first, qubit)
                qml.RY(y, qubit)
                qml.RX(x_last, qubit)
            for qubit, angles in enumerate(layer):
                qml.IsingZZ(angles[3], [qubit, (qubit + 1) % qubits])
        qml.expval(qml.Z(qubits - 1))
    tape = qml.tape.QuantumScript.from_queue(queue)
    tape.trainable_params = range(1, 1 + 4 * qubits * len(params))  # parameter 0 is the state
    return tape


def contenders(sizes: Sizes) -> tuple[list[Program], list[Problem | None]]:
    """The rows of the first table, and the problem that each solves (None for the roofline)."""
    whole = problem(sizes.qubits, sizes.depth, sizes.samples)
    few = problem(sizes.qubits, sizes.depth, sizes.samples)
    few = Problem(few.params, *(array[: sizes.pennylane_samples] for array in few[1:]))
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(sizes.product,) * 2), jnp.float32)
    circuits.tensorcircuit_on_jax()  # its import is no compilation

    entries = [
        (compiled("ours", step(our_logits), *whole), whole),
        (compiled("ours, all layers evolved", step(evolved_logits), *whole), whole),
        (compiled("TensorCircuit, gate by gate under scan", step(scanned_logits), *whole), whole),
    ]
    for depth in sizes.unrolled_depths:
        given = problem(sizes.qubits, depth, sizes.samples)
        label = f"TensorCircuit, gate by gate unrolled: depth {depth} measured, times {sizes.depth / depth:g}"
        entries.append((compiled(label, step(unrolled_logits), *given, scale=sizes.depth / depth), given))
    times = sizes.samples / sizes.pennylane_samples
    label = f"PennyLane lightning, adjoint: {sizes.pennylane_samples} samples measured, times {times:g}"
    entries.append((Program(label, lightning_step(few), scale=times), few))
    share = ROOFLINE_FLOP / (2 * sizes.product**3)
    label = f"roofline: 0.8 GFlop at the rate of a float32 product of {sizes.product}×{sizes.product}"
    entries.append((compiled(label, jnp.matmul, matrix, matrix, scale=share), None))
    programs, problems = zip(*entries, strict=True)
    return list(programs), list(problems)


def differences_from_ours(programs: list[Program], problems: list[Problem | None]) -> list[float | None]:
    """Largest difference of each contender's value and gradient from ours on the same problem."""
    ours = {problem_size(problems[0]): programs[0].run()}
    differences = []
    for program, given in zip(programs, problems, strict=True):
        if given is None:
            differences.append(None)
            continue
        if problem_size(given) not in ours:
            ours[problem_size(given)] = jax.jit(step(our_logits))(*given)
        pairs = zip(program.run(), ours[problem_size(given)], strict=True)
        differences.append(max(float(np.max(np.abs(theirs - own))) for theirs, own in pairs))
    return differences


def problem_size(given: Problem) -> tuple[int, ...]:
    return given.params.shape + given.states.shape


def training_step(sizes: Sizes) -> list[dict[str, Any]]:
    """Time all contenders in turns. Exits where one does not compute what ours does."""
    programs, problems = contenders(sizes)
    differences = differences_from_ours(programs, problems)
    for program, difference in zip(programs, differences, strict=True):
        if difference is not None and not difference <= TOLERANCE:
            raise SystemExit(f"error: {program.label} differs from ours by {difference:.1e}, over {TOLERANCE:.0e}")
    rows = in_turns(programs, sizes.repetitions)
    for row, difference in zip(rows, differences, strict=True):
        ratios = {f"{kind}_ratio": row[kind] / rows[0][kind] for kind in ("min", "median")}
        row |= {"difference": difference} | ratios
    rows[-1]["gflop_per_second"] = ROOFLINE_FLOP / 1e9 / rows[-1]["min"]
    return rows


# ---- 2: the MLP ----


def mlp_split(sizes: Sizes) -> Split:
    if sizes.per_class:
        return load_mnist(per_class=sizes.per_class, source="embedded").train
    _, states, labels = problem(sizes.qubits, 1, sizes.samples)
    return Split(np.asarray(states), np.asarray(labels))


def keras_network(model: MLP, key: jax.Array, learning_rate: float) -> Any:
    """The model with fresh parameters as a compiled Keras model."""
    from tensorflow import keras

    network = model.to_keras(model.init(key))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    network.compile(optimizer=keras.optimizers.Adam(learning_rate), loss=loss)
    return network


def mlp_trainings(sizes: Sizes) -> list[dict[str, Any]]:
    """Trainings in one vmapped call in turns with as many Keras fits, of equal epochs and batches."""
    split = mlp_split(sizes)
    model, keys = MLP(split.x.shape[1]), jax.random.split(jax.random.key(0), sizes.fits)
    training = {"epochs": sizes.epochs, "batch_size": 256, "learning_rate": 0.005}
    ours = compiled("ours", jax.vmap(lambda key: train(model, split, **training, key=key)), keys)
    ours.run()
    our_times, first_epochs, fits, correct = [], [], [], []
    for key in keys:
        network = keras_network(model, key, training["learning_rate"])
        fit = partial(network.fit, split.x, split.y, batch_size=training["batch_size"], verbose=0)
        first_epochs.append(seconds(partial(fit, epochs=1)))  # Keras compiles in here
        fits.append(seconds(partial(fit, epochs=sizes.epochs)))
        correct.append(accuracy(network(split.x)[:, 0].numpy(), split.y))
        our_times += [seconds(ours.run) for _ in range(3)]
    our_correct = [accuracy(logits, split.y) for logits in jax.vmap(model.logits, (0, None))(ours.run(), split.x)]
    rows = [
        {"label": f"ours, {sizes.fits} in one call", "compile": ours.compile_seconds, **summary(our_times)},
        {"label": f"Keras, {sizes.fits} × model.fit", "compile": sum(first_epochs), "sum": sum(fits), **summary(fits)},
    ]
    for row, total, accuracies in zip(rows, (rows[0]["median"], sum(fits)), (our_correct, correct), strict=True):
        row |= {"total": total, "with_compile": total + row["compile"], "accuracy": float(np.mean(accuracies))}
    for row in rows:
        row |= {f"{kind}_ratio": row[kind] / rows[0][kind] for kind in ("total", "with_compile")}
    return rows


# ---- 3: how the step's cost grows ----


@cache
def our_step(qubits: int, depth: int, samples: int) -> Program:
    return compiled("", step(our_logits), *problem(qubits, depth, samples))


def several_runs(sizes: Sizes, runs: int, *, together: bool) -> Program:
    """The step of several runs, each with its own angles and states, vmapped or one after the other."""
    problems = [problem(sizes.qubits, sizes.depth, sizes.samples, seed) for seed in range(runs)]
    stacked = [jnp.stack(arrays) for arrays in zip(*problems, strict=True)]
    one = step(our_logits)
    if together:
        return compiled("vmap", jax.vmap(one), *stacked, scale=1 / runs)
    return compiled("lax.map", lambda *arrays: jax.lax.map(lambda each: one(*each), arrays), *stacked, scale=1 / runs)


def growth(sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """The step's time against one size at a time, the others as in the first table; against runs: time per run."""
    base = {"qubits": sizes.qubits, "depth": sizes.depth, "samples": sizes.samples}
    rows = {}
    for name, values in sizes.growth.items():
        note(f"growth with {name}")
        if name == "runs":
            values = [runs for runs in values for _ in range(2)]
            programs = [several_runs(sizes, runs, together=place % 2 == 0) for place, runs in enumerate(values)]
        else:
            programs = [our_step(**base | {name: value}) for value in values]
        timed = in_turns(programs, sizes.growth_repetitions)
        rows[name] = [{"value": value} | row for value, row in zip(values, timed, strict=True)]
    return rows


def draw_growth(rows: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """One panel a size, both axes logarithmic; dashed: proportional to amplitudes, layers or samples."""
    import figures

    figures.use_style()
    figure, axes = figures.plt.subplots(1, len(rows), figsize=(2.6 * len(rows), 2.6))
    for axis, (name, points) in zip(axes, rows.items(), strict=True):
        for label, marker in (("vmap", "o"), ("lax.map", "s")) if name == "runs" else (("", "o"),):
            own = [point for point in points if point["label"] == label]
            place = [2 ** point["value"] if name == "qubits" else point["value"] for point in own]
            axis.plot(place, [1e3 * point["median"] for point in own], marker=marker, markersize=4, label=label or None)
        if name != "runs":
            first = 1e3 * own[0]["median"]
            axis.plot(place, [first * x / place[0] for x in place], "--", color="0.6", zorder=0, label="proportional")
        axis.legend(frameon=False)
        axis.set(xscale="log", yscale="linear" if name == "runs" else "log", xlabel=name)
        if name == "runs":
            axis.set_ylim(bottom=0)
        axis.set_xticks(place, [point["value"] for point in own])
        axis.minorticks_off()
    axes[0].set_ylabel("ms per step")
    axes[-1].set_ylabel("ms per step and run")
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
    spent |= {"first_step": seconds(partial(program, *given)), "peak_megabytes": peak_megabytes()}
    print(json.dumps(spent))


def start_ups(sizes: Sizes) -> list[dict[str, Any]]:
    """Two starts one after the other, with a compilation cache that is empty at the first."""
    code = f"import bench; bench.print_start_up({sizes.qubits}, {sizes.depth}, {sizes.samples})"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label in ("first start, empty cache", "second start"):
            own = {"JAX_COMPILATION_CACHE_DIR": folder, "PYTHONPATH": str(Path(__file__).parent)}
            environment = os.environ | one_thread() | own
            command = [sys.executable, "-c", code]
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            whole = time.perf_counter() - start
            rows.append({"label": label, "whole": whole} | json.loads(done.stdout.splitlines()[-1]))
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
    unit = 1 if sys.platform == "darwin" else 1e3  # macOS counts bytes, others kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def note(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Text left in the first column, figures right in the others; None is an empty cell."""
    cells = [columns, *([cell if isinstance(cell, str) else digits(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        print("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip())


def digits(number: float | None) -> str:
    """Three significant digits, whole numbers in full."""
    if number is None:
        return ""
    if isinstance(number, int) or abs(number) >= 100:
        return f"{number:.0f}"
    return f"{number:.3g}"


def milliseconds(row: dict[str, Any]) -> list[float]:
    return [1e3 * row["min"], 1e3 * row["median"], row["n"]]


def print_training_step(rows: list[dict[str, Any]], sizes: Sizes) -> None:
    shape = f"{sizes.samples} samples, {sizes.qubits} qubits, depth {sizes.depth}"
    columns = ["", "compile s", "min ms", "median ms", "n", "/ ours (min)", "(median)", "difference"]
    cells = [
        [row["label"], row["compile"] if row["difference"] is not None else None, *milliseconds(row),
         row["min_ratio"], row["median_ratio"], None if row["difference"] is None else f"{row['difference']:.0e}"]
        for row in rows
    ]  # fmt: skip
    print_table(f"Training step of the QNN, value and gradient ({shape})", columns, cells)
    print(f"The matrix product runs at {rows[-1]['gflop_per_second']:.0f} GFlop/s. In minima, ours takes "
          f"{1 / rows[-1]['min_ratio']:.1f} times the\nroofline and TensorCircuit under scan "
          f"{rows[2]['min_ratio']:.1f} times as long as ours.")  # fmt: skip


def print_mlp(rows: list[dict[str, Any]], sizes: Sizes) -> None:
    columns = ["", "compile s", "trainings s", "/ ours", "both s", "/ ours", "train accuracy"]
    kinds = ("compile", "total", "total_ratio", "with_compile", "with_compile_ratio", "accuracy")
    cells = [[row["label"], *(row[kind] for kind in kinds)] for row in rows]
    print_table(f"{sizes.fits} trainings of the MLP (64,16), {sizes.epochs} epochs, batch 256", columns, cells)


def print_growth(rows: dict[str, list[dict[str, Any]]]) -> None:
    for name, points in rows.items():
        labels = [f"{point['value']} {point['label']}".strip() for point in points]
        cells = [[label, point["compile"], *milliseconds(point)] for label, point in zip(labels, points, strict=True)]
        title = f"Training step against {name}" + (", time per run" if name == "runs" else "")
        print_table(title, [name, "compile s", "min ms", "median ms", "n"], cells)


def print_start_ups(rows: list[dict[str, Any]]) -> None:
    columns = ["", "whole process s", "of which trace", "compile", "first step", "peak MB"]
    kinds = ("whole", "trace", "compile", "first_step", "peak_megabytes")
    cells = [[row["label"], *map(row.get, kinds)] for row in rows]
    print_table("Start of a script, in a process of its own", columns, cells)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here, help="folder for results.json and scaling.png")
    parser.add_argument("--slow", action="store_true", help="TensorCircuit unrolled at depth 3 too: minutes to compile")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: whether it runs, under a minute")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors():
        writable_folder(arguments.out)
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    os.environ |= one_thread() | {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}  # as studies compute
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}  # TensorFlow: quiet, on the CPU too
    sizes = SMOKE if arguments.smoke else Sizes(unrolled_depths=(2, 3) if arguments.slow else (2,))
    results = {"context": context()}
    print("\n".join(f"{name}: {value}" for name, value in results["context"].items()))

    note("training step: compiling all contenders")
    results["training_step"] = training_step(sizes)
    print_training_step(results["training_step"], sizes)
    note("MLP")
    results["mlp"] = mlp_trainings(sizes)
    print_mlp(results["mlp"], sizes)
    results["growth"] = growth(sizes)
    print_growth(results["growth"])
    note("start of a script")
    results["start_up"] = start_ups(sizes)
    print_start_ups(results["start_up"])

    results["peak_megabytes"] = peak_megabytes()
    print(f"\nPeak resident memory of all this, TensorFlow and PennyLane included: {results['peak_megabytes']:.0f} MB")
    base = f"{sizes.samples} samples, {sizes.qubits} qubits, depth {sizes.depth}"
    draw_growth(
        results["growth"], f"QNN training step, value and gradient; {base} unless varied", arguments.out / "scaling.png"
    )
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

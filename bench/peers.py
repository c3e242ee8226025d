"""The QNN's training step beside other packages' in one run: same states, loss, gradient, one core.

    python bench/peers.py                       # 10, 12 and 14 qubits, 256 samples, depth 6
    python bench/peers.py --smoke --out /tmp    # tiny sizes: does it run?

Value and gradient of the mean cross-entropy of random real states in single precision. Ways that
take a sample after the other, or too long, are measured on fewer samples, whose time is counted
as often as it goes into all; a way's values and gradients on these have to agree with ours to 1e-4.
The ways of a size are timed in turns, five times each. Packages that are not installed are left
out; `pip install mindquantum pyqtorch torch` brings those that the project does not need.
Writes OUT/peers.json and OUT/peers.png.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

import bench  # of this folder; makes the project's modules known
from bench import Program, Size
from foundation.engine.folders import writable_folder
from foundation.engine.jobs import one_thread
from foundation.engine.runner import one_line_errors
from models import QNN

SIZES = [Size(qubits, 6, 256) for qubits in (10, 12, 14)]
REPETITIONS = 5


def mindquantum_step(params: jax.Array, states: jax.Array, labels: jax.Array) -> Callable:
    """MindQuantum's vector simulator and its adjoint differentiation, sample by sample."""
    from mindquantum.core.circuit import Circuit
    from mindquantum.core.gates import RX, RY, Rzz
    from mindquantum.core.operators import Hamiltonian, QubitOperator
    from mindquantum.simulator import Simulator

    depth, qubits, _ = params.shape
    circuit = Circuit()
    for layer in range(depth):
        for qubit in range(qubits):
            place = qubits - 1 - qubit  # its qubit 0 is the least significant
            for position, rotation in enumerate((RX, RY, RX)):
                circuit += rotation(f"{layer} {qubit} {position}").on(place)
        for qubit in range(qubits):
            bond = [qubits - 1 - qubit, qubits - 1 - (qubit + 1) % qubits]
            circuit += Rzz(f"{layer} {qubit} 3").on(bond)
    places = [tuple(map(int, name.split())) for name in circuit.params_name]
    angles = np.array([params[place] for place in places])
    hamiltonian = Hamiltonian(QubitOperator("Z0"))
    simulators = []
    for state in np.asarray(states, np.complex64):
        simulator = Simulator("mqvector", qubits)
        simulator.set_qs(state)
        simulators.append(simulator.get_expectation_with_grad(hamiltonian, circuit))

    def run():
        results = [function(angles) for function in simulators]
        values = np.array([value.real.item() for value, _ in results])
        jacobians = np.array([gradient.real.ravel() for _, gradient in results])
        loss, gradient = bench.chain_rule(values, jacobians, labels)
        by_angle = np.zeros(params.shape)
        by_angle[tuple(np.transpose(places))] = gradient
        return loss, by_angle

    return run


def pyqtorch_step(params: jax.Array, states: jax.Array, labels: jax.Array) -> Callable:
    """PyQTorch with all samples in one batch, differentiated by torch; RZZ as CNOT RZ CNOT."""
    import pyqtorch
    import torch

    torch.set_num_threads(1)
    depth, qubits, _ = params.shape
    gates = []
    for layer in range(depth):
        for qubit in range(qubits):
            for position, rotation in enumerate((pyqtorch.RX, pyqtorch.RY, pyqtorch.RX)):
                gates.append(rotation(qubit, f"{layer} {qubit} {position}"))
        for qubit in range(qubits):
            neighbour = (qubit + 1) % qubits
            gates.append(pyqtorch.CNOT(qubit, neighbour))
            gates.append(pyqtorch.RZ(neighbour, f"{layer} {qubit} 3"))
            gates.append(pyqtorch.CNOT(qubit, neighbour))
    circuit = pyqtorch.QuantumCircuit(qubits, gates).to(dtype=torch.complex64)
    observable = pyqtorch.Observable(pyqtorch.Z(qubits - 1)).to(dtype=torch.complex64)
    batch = torch.tensor(np.asarray(states, np.complex64).T.copy())
    batch = batch.reshape(*(2,) * qubits, len(states))
    angles = {}
    for place in np.ndindex(*params.shape):
        value = torch.tensor(float(params[place]), dtype=torch.float32, requires_grad=True)
        angles[" ".join(map(str, place))] = value
    targets = torch.tensor(np.asarray(labels), dtype=torch.float32)

    def run():
        values = pyqtorch.expectation(circuit, batch, angles, observable)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(QNN.scale * values, targets)
        gradients = torch.autograd.grad(loss, list(angles.values()), allow_unused=True)
        numbers = [0.0 if gradient is None else gradient.item() for gradient in gradients]
        return loss.item(), np.array(numbers).reshape(params.shape)

    return run


def scanned_step(params: jax.Array, states: jax.Array, labels: jax.Array) -> Program:
    """TensorCircuit gate by gate, a layer compiled and scanned over, on a batch of states."""
    return bench.compiled("", bench.step(bench.scanned_logits), params, states, labels)


class Way(NamedTuple):
    """A package's way to compute the step."""

    package: str
    label: str
    make: Callable[..., Any]  # (params, states, labels) -> a program, or a function of nothing
    samples: tuple[int, int, int]  # that are measured, at 10, 12 and 14 qubits


WAYS = (
    Way("tensorcircuit", "TensorCircuit, scan", scanned_step, (256, 128, 16)),
    Way("pennylane_lightning", "PennyLane lightning, adjoint", bench.lightning_step, (16, 8, 4)),
    Way("mindquantum", "MindQuantum, adjoint", mindquantum_step, (16, 8, 4)),
    Way("pyqtorch", "PyQTorch, autograd", pyqtorch_step, (256, 64, 16)),
)


def programs_of(size: Size, place: int) -> Iterator[tuple[Program, Size]]:
    """Ours and each installed way, with the size that is measured."""
    yield bench.our_step(size), size
    for way in WAYS:
        if importlib.util.find_spec(way.package) is None:
            print(f"{way.label}: {way.package} is not installed", file=sys.stderr)
            continue
        few = size._replace(samples=min(way.samples[place], size.samples))
        made = way.make(*bench.problem(few))
        run, seconds = (made.run, made.compile) if isinstance(made, Program) else (made, None)
        yield Program(way.label, run, seconds, size.samples / few.samples), few


def measured(sizes: list[Size]) -> pd.DataFrame:
    """Time all ways at each size in turns. Exits where one does not compute what ours does."""
    frames = []
    for place, size in enumerate(sizes):
        print(f"... {size.qubits} qubits", file=sys.stderr, flush=True)
        programs, samples, differences = [], [], []
        for program, few in programs_of(size, place):
            pairs = zip(program.run(), bench.our_step(few).run(), strict=True)
            difference = max(float(np.max(np.abs(theirs - own))) for theirs, own in pairs)
            if not difference <= bench.TOLERANCE:
                raise SystemExit(f"error: {program.label} differs from ours by {difference:.1e}")
            programs.append(program)
            samples.append(few.samples)
            differences.append(difference)
        frame = bench.with_ratios(bench.in_turns(programs, REPETITIONS), "min", "median")
        frames.append(
            frame.assign(
                value=size.qubits, varied="qubits", samples=samples, difference=differences
            )
        )
    return pd.concat(frames, ignore_index=True)


def draw(frame: pd.DataFrame, size: Size, path: Path) -> None:
    """Draw milliseconds a step against qubits, a line for each way."""
    from foundation.report import drawing

    drawing.use_style()
    figure, axis = drawing.plt.subplots(figsize=(5.2, 3.4))
    times = 1e3 * frame.pivot(index="value", columns="label", values="min")
    order = times.iloc[-1].sort_values().index
    times[order].plot(ax=axis, logy=True, style=["o-", "s-", "^-", "D-", "v-"], markersize=4)
    axis.set(xlabel="qubits", ylabel="ms a step, one core", xticks=times.index)
    axis.set_title(f"Loss and gradient, {size.samples} samples, depth {size.depth}")
    axis.legend(frameon=False)
    figure.savefig(path)
    drawing.plt.close(figure)


def context() -> dict[str, Any]:
    """Where, when and with which versions the numbers were taken."""
    told = bench.context()
    for way in WAYS:
        name = way.package.replace("_", "-")
        if importlib.util.find_spec(way.package) and name not in told["versions"]:
            distribution = "tensorcircuit-ng" if name == "tensorcircuit" else name
            told["versions"] += f", {distribution} {version(distribution)}"
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=folder, help="folder for the two files")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: whether it runs")
    arguments = parser.parse_args()
    with one_line_errors():
        writable_folder(arguments.out)
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ |= one_thread()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sizes = [Size(3, 2, 8), Size(4, 2, 8)] if arguments.smoke else SIZES
    results = {"command": "python bench/peers.py", "context": context()}
    print("\n".join(f"{name}: {value}" for name, value in results["context"].items()))
    frame = measured(sizes)
    print(f"\n{sizes[0].samples} samples, depth {sizes[0].depth}\n{bench.table(frame)}")
    results["steps"] = bench.records(frame)["qubits"]
    draw(frame, sizes[0], arguments.out / "peers.png")
    (arguments.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

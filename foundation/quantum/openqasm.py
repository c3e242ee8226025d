"""Read and write circuits as OpenQASM 2, and import TensorCircuit on JAX."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from foundation.base.checks import BadInput, first_line, listed, require

if TYPE_CHECKING:
    import tensorcircuit


def tensorcircuit_on_jax():
    """TensorCircuit on JAX, in JAX's present precision.

    The first call imports it, which takes seconds. TensorCircuit changes JAX's 64-bit mode when it
    is imported and when its precision is set; JAX's mode is put back here.
    """
    before = jax.enable_x64.get_global()
    # the mode here and now, which differs from the global one within `jax.enable_x64(True)`
    dtype = "complex128" if jax.config.jax_enable_x64 else "complex64"
    try:
        import tensorcircuit

        if tensorcircuit.backend.name != "jax":
            tensorcircuit.set_backend("jax")
        if tensorcircuit.dtypestr != dtype:
            tensorcircuit.set_dtype(dtype)
    finally:
        jax.config.update("jax_enable_x64", before)
    return tensorcircuit


@dataclass(frozen=True)
class OpenQasm:
    """The circuit of an OpenQASM 2 text as an ansatz in which every angle of a gate is trained.

    A gate that the text defines is replaced by the gates of its definition. Instructions other than
    unitary gates (reset, if, a measurement before the end) are refused. Needs qiskit. PennyLane
    writes such texts: `pennylane.to_openqasm(qnode, wires=range(n_qubits))(…)`; without `wires` it
    numbers the qubits by their first use.

    measured: the qubit whose Z is read; None takes the qubit that the text measures where it
    measures exactly one, else the last qubit.
    """

    text: str
    name: str = "OpenQASM"
    measured: int | None = None

    @cached_property
    def _read(self) -> tuple[int, list[Gate], int]:
        """Read the number of qubits, the gates, and the qubit whose Z is read."""
        try:
            from qiskit import QuantumCircuit
        except ImportError:
            raise BadInput(
                "OpenQASM: got no qiskit, allowed: pip install qiskit, which reads and writes it"
            ) from None
        try:
            circuit = QuantumCircuit.from_qasm_str(self.text)
        except Exception as error:  # qiskit's own kinds, by what is wrong with the text
            raise BadInput(f"OpenQASM: got {first_line(error)}, allowed: OpenQASM 2") from None
        n = circuit.num_qubits
        require(n > 0, "OpenQASM", "a text without qubits", "OpenQASM 2 with a qreg")
        gates, measured_at_end = _gates(circuit)
        measured = self.measured
        if measured is None:
            measured = measured_at_end.pop() if len(measured_at_end) == 1 else -1
        require(-n <= measured < n, "measured", measured, f"0 to {n - 1}, a qubit of the circuit")
        return n, gates, measured % n

    @property
    def n_qubits(self) -> int:
        """The number of qubits of the text."""
        return self._read[0]

    @property
    def angles(self) -> np.ndarray:
        """(angles,) The angles in the text, in the order of its gates."""
        _, gates, _ = self._read
        angles = []
        for _, _, angles_or_matrix in gates:
            if isinstance(angles_or_matrix, list):
                angles += angles_or_matrix
        return np.array(angles, np.float32)

    def __call__(self, params: jax.Array, inputs: jax.Array | None = None) -> tensorcircuit.Circuit:
        n, gates, measured = self._read
        circuit = tensorcircuit_on_jax().Circuit(n, inputs=inputs)
        first = 0  # place of the gate's first angle
        for name, qubits, angles_or_matrix in gates:
            if isinstance(angles_or_matrix, list):
                last = first + len(angles_or_matrix)
                angles = [params[place] for place in range(first, last)]
                method, keywords = PARAMETRIC[name]
                getattr(circuit, method)(*qubits, **keywords(*angles))
                first = last
            else:
                circuit.any(*qubits, unitary=jnp.asarray(angles_or_matrix), name=name)
        if measured != n - 1:
            circuit.swap(measured, n - 1)  # the model reads the last qubit
        return circuit


def _turn(angle: jax.Array) -> dict[str, jax.Array]:
    return {"theta": angle}


def _three_angles(theta: jax.Array, phi: jax.Array, lbd: jax.Array) -> dict[str, jax.Array]:
    return {"theta": theta, "phi": phi, "lbd": lbd}


_SAME_NAME = ("rx", "ry", "rz", "rxx", "ryy", "rzz", "crx", "cry", "crz")
# gates of OpenQASM by qiskit's name: TensorCircuit's name, and its arguments from the angles
PARAMETRIC = {
    **{name: (name, _turn) for name in _SAME_NAME},
    "p": ("phase", _turn),
    "u1": ("phase", _turn),
    "cp": ("cphase", _turn),
    "cu1": ("cphase", _turn),
    "u2": ("u", lambda phi, lbd: {"theta": np.pi / 2, "phi": phi, "lbd": lbd}),
    "u": ("u", _three_angles),
    "u3": ("u", _three_angles),
    "cu3": ("cu", _three_angles),
}


Gate = tuple[str, tuple[int, ...], Any]  # name, qubits, angles or matrix


def _gates(circuit: Any) -> tuple[list[Gate], set[int]]:
    """The gates of qiskit's circuit, and the qubits that it measures at its end."""
    gates: list[Gate] = []
    measured: set[int] = set()
    for instruction in circuit.data:
        name = instruction.operation.name
        if name == "barrier":
            continue
        qubits = tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)
        late = sorted(measured & set(qubits))
        refused = f"{name} behind a measurement of qubit {late}"
        require(not late, "OpenQASM", refused, "measurements at the end")
        if name == "measure":
            measured |= set(qubits)
        else:
            gates += _gates_of(instruction.operation, qubits)
    return gates, measured


def _gates_of(operation: Any, qubits: tuple[int, ...]) -> list[Gate]:
    """The gates of one of qiskit's operations, which other operations may define."""
    name = operation.name
    angles = [float(angle) for angle in operation.params if np.isscalar(angle)]
    refused = f"{name} with an angle of {listed(angles)}"
    require(all(np.isfinite(angles)), "OpenQASM", refused, "finite angles")
    is_gate = hasattr(operation, "to_matrix") and getattr(operation, "condition", None) is None
    if is_gate and name in PARAMETRIC:
        return [(name, qubits, angles)]
    if is_gate and operation.definition is not None and (angles or not _has_matrix(operation)):
        inner_gates, _ = _gates(operation.definition)
        gates = []
        for inner_name, places, angles_or_matrix in inner_gates:
            inner_qubits = tuple(qubits[place] for place in places)
            gates.append((inner_name, inner_qubits, angles_or_matrix))
        return gates
    is_fixed = is_gate and not angles and _has_matrix(operation)
    allowed = "gates that are unitary, and measurements at the end"
    require(is_fixed, "OpenQASM", f"the instruction {name}", allowed)
    reversed_qubits = qubits[::-1]  # qiskit's first qubit is the least significant
    return [(name, reversed_qubits, operation.to_matrix())]


def _has_matrix(operation: Any) -> bool:
    try:
        return operation.to_matrix() is not None
    except Exception:  # an opaque operation, or one that only others define
        return False


def to_openqasm(circuit: tensorcircuit.Circuit) -> str:
    """Write the circuit as OpenQASM 2; needs qiskit."""
    try:
        return circuit.to_openqasm()
    except ImportError:
        raise BadInput(
            "OpenQASM: got no qiskit, allowed: pip install qiskit, which reads and writes it"
        ) from None
    except Exception as error:  # a user's gate that OpenQASM does not have
        raise BadInput(
            f"OpenQASM: got {first_line(error)}, allowed: gates that OpenQASM 2 has"
        ) from None

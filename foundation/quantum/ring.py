"""The XXZ ring: its couplings and their splits, and its ground states, diagonalised and cached."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from foundation.base.checks import BadInput, require
from foundation.base.npz import read_npz, sha256
from foundation.base.places import cache_folder

RingSplit = Literal["interleaved", "far", "near", "one_sided"]
_Terms = tuple[Any, Any]  # Σ XX + YY and Σ ZZ over the bonds, scipy.sparse.csr_array

# (294,) Δ of the XXZ ring, -0.94 to 1.99; the transition is at Δ = 1
COUPLINGS = (np.arange(294) - 94) / 100
XXZ_TRAIN = np.r_[107:189:2, 200:282:2]  # (82,) indices into COUPLINGS, 41 on either side of Δ = 1
XXZ_VAL = np.r_[106:190:2, 199:283:2]  # (84,) indices into COUPLINGS, 42 on either side of Δ = 1
# (166,) indices of the states that are computed; union1d would load numpy.ma
XXZ_USED = np.sort(np.r_[XXZ_TRAIN, XXZ_VAL])
XXZ_FORMAT = 2  # of the cache file; raise it with every change of the computation
MAX_SITES = 16  # the 166 states of 16 sites fill 87 MB
# energy; at smaller gaps the Hamiltonian no longer determines the eigenvector
MIN_GAP = 1e-6


class Spectrum(NamedTuple):
    """Lowest levels of the XXZ ring at the data set's couplings: (166,) each, in ascending Δ."""

    delta: np.ndarray
    # total energy of the ground state, in units of the exchange (Pauli matrices, not spins)
    energy: np.ndarray
    gap: np.ndarray  # to the next level of the whole space
    is_train: np.ndarray  # whether the state is in the training split
    is_val: np.ndarray  # whether it is in the validation split


def xxz_points(split: RingSplit) -> tuple[np.ndarray, np.ndarray]:
    """(82,) and (84,) indices into COUPLINGS of the training and the validation states.

    Of each phase, 41 states are for training: every other one (interleaved), those farthest from
    the transition (far), those nearest to it (near), or those of lowest Δ (one_sided).
    """
    if split == "interleaved":
        return XXZ_TRAIN, XXZ_VAL
    phases = np.split(XXZ_USED, 2)  # (83,) each, by ascending Δ
    ascending = slice(None)
    descending = slice(None, None, -1)
    orders_of_splits = {"far": (ascending, descending), "near": (descending, ascending)}
    orders = orders_of_splits.get(split, (ascending, ascending))
    phases_and_orders = zip(phases, orders, strict=True)
    ordered = [phase[order] for phase, order in phases_and_orders]
    train = np.concatenate([points[:41] for points in ordered])
    val = np.concatenate([points[41:] for points in ordered])
    return np.sort(train), np.sort(val)


def xxz_spectrum(n_sites: int = 12) -> Spectrum:
    """Ground-state energies and gaps at the data set's 166 couplings, from the states' cache."""
    check_even(n_sites)
    delta = COUPLINGS[XXZ_USED]
    levels = _cached_levels(n_sites, delta)
    is_train = np.isin(XXZ_USED, XXZ_TRAIN)
    is_val = ~is_train
    return Spectrum(delta, levels["energy"], levels["gap"], is_train, is_val)


def xxz_hamiltonian(n_sites: int, delta: float) -> Any:
    """H = Σ_i X_i X_{i+1} + Y_i Y_{i+1} + Δ Z_i Z_{i+1} on a ring, as a sparse matrix of SciPy.

    n_sites: 3 to 16 qubits. delta: Δ.
    """
    is_allowed = n_sites in range(3, MAX_SITES + 1)
    require(is_allowed, "n_sites", n_sites, f"3 to {MAX_SITES}")
    exchange, alignment = _ring_terms(n_sites, np.arange(2**n_sites))
    return exchange + delta * alignment


def check_even(n_sites: int) -> None:
    """Refuse rings of odd or too many sites."""
    allowed = f"even numbers from 4 to {MAX_SITES} (the ground states of odd rings are degenerate)"
    require(n_sites in range(4, MAX_SITES + 1, 2), "n_sites", n_sites, allowed)


def neel(n_sites: int) -> int:
    """Basis index of |0101…01⟩."""
    return int("01" * (n_sites // 2), 2)


def ground_states(n_sites: int, shift: float = 0.0) -> np.ndarray:
    """(166, 2**n_sites) ground states in the fixed gauge; shift: what is added to each Δ."""
    states = np.zeros((len(XXZ_USED), 2**n_sites))
    amplitudes = _cached_levels(n_sites, COUPLINGS[XXZ_USED] + shift)["amplitudes"]
    sector = _sector(n_sites, n_sites // 2)
    states[:, sector] = amplitudes
    return states


def _cached_levels(n_sites: int, couplings: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of `_diagonalise`, read from the cache, or computed and cached.

    A cache file that cannot be read or fails its checksum is reported and replaced.
    """
    header = f"{XXZ_FORMAT} {n_sites}".encode()
    key = hashlib.sha256(header + couplings.tobytes()).hexdigest()[:16]
    path = cache_folder() / f"xxz-{n_sites}-{key}.npz"
    try:
        return _read_cache(path)
    except (ValueError, OSError) as error:
        if not isinstance(error, FileNotFoundError):
            print(
                f"XXZ: computing the states anew, the cached ones are of no use ({error})",
                file=sys.stderr,
            )
    arrays = _diagonalise(n_sites, couplings)
    try:
        _write_cache(path, arrays)
    except OSError as error:
        print(f"XXZ: the states cannot be kept for the next time ({error})", file=sys.stderr)
    return arrays


def _read_cache(path: Path) -> dict[str, np.ndarray]:
    arrays = read_npz(path, ("amplitudes", "energy", "gap", "sha256"))
    if str(arrays.pop("sha256")) != _checksum(path, arrays):
        raise BadInput(f"data: {path} does not match its checksum")
    return arrays


def _checksum(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Hash the arrays and the file's name, so that no file passes under another one's name."""
    return sha256(np.array(path.name), *arrays.values())


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    # not at the top: it loads xarray, and MNIST does without
    from foundation.base.storage import replacing

    with replacing(path) as temporary, temporary.open("wb") as file:
        checksum = _checksum(path, arrays)
        np.savez(file, **arrays, sha256=np.array(checksum))


def _diagonalise(n_sites: int, couplings: np.ndarray) -> dict[str, np.ndarray]:
    """Energies and gaps (n,), and amplitudes (n, d) of the ground states in the fixed gauge.

    couplings: Δ (n,).

    The amplitudes are those of the d basis states of zero magnetisation, in ascending order.
    """
    from tqdm import tqdm

    sectors = _sectors(n_sites)
    progress = tqdm(
        couplings,
        desc=f"XXZ ground states, {n_sites} sites",
        unit="state",
        delay=2,
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )
    states = [_ground_state(sectors, delta) for delta in progress]
    by_quantity = zip(*states, strict=True)
    energy, gap, amplitudes = map(np.array, by_quantity)
    # The gauge makes the amplitude of |0101…01⟩ positive. The largest amplitude would not fix the
    # sign: the two Néel states tie, and for n_sites / 2 odd they differ in sign.
    neel_place = np.searchsorted(_sector(n_sites, n_sites // 2), neel(n_sites))
    signs = np.sign(amplitudes[:, neel_place])
    amplitudes *= signs[:, None]
    return {"amplitudes": amplitudes, "energy": energy, "gap": gap}


def _ground_state(sectors: list[_Terms], delta: float) -> tuple[float, float, np.ndarray]:
    """Total energy, gap in the whole space, and amplitudes in the zero-magnetisation sector.

    The amplitudes come with an arbitrary sign. For Δ > -1 an even ring has exactly one ground
    state, and it lies in this sector: with the signs of X and Y flipped on every other site, no
    matrix element between two basis states is positive, and the matrix elements connect all basis
    states (Perron-Frobenius). The next level of the whole space is the second level of this sector
    (Δ > 1: the other superposition of the two Néel states) or the lowest level of a neighbouring
    sector (Δ < 1), since the lowest energies of the sectors rise with |magnetisation|: proven at
    Δ = 1 (Lieb & Mattis, J. Math. Phys. 3, 749 (1962)), checked by the tests at the other Δ in use.
    At Δ ≤ -1 the computed gap is zero or negative. Raises ValueError where it is below MIN_GAP.
    """
    levels, vectors = _lowest(sectors[0], delta, 2)
    neighbour_levels, _ = _lowest(sectors[1], delta, 1)
    next_level = min(levels[1], neighbour_levels[0])
    gap = next_level - levels[0]
    require(
        gap >= MIN_GAP,
        "delta",
        f"{delta:g}, gap {gap:.2g}",
        f"gaps of {MIN_GAP:g} or more (degenerate otherwise)",
    )
    return levels[0], gap, vectors[:, 0]


def _lowest(terms: _Terms, delta: float, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k lowest levels, ascending, and their eigenvectors (d, k), to rounding."""
    from scipy.sparse.linalg import eigsh

    exchange, alignment = terms
    # The start has no symmetry: from a symmetric one, Lanczos would never reach levels of another
    # symmetry.
    start = np.random.default_rng(0).normal(size=exchange.shape[0])
    hamiltonian = exchange + delta * alignment
    levels, vectors = eigsh(hamiltonian, k=k, which="SA", v0=start)
    order = np.argsort(levels)
    return levels[order], vectors[:, order]


def _sectors(n_sites: int) -> list[_Terms]:
    """The ring's terms in the sector of zero magnetisation and in that with one spin flipped."""
    half = n_sites // 2
    bases = [_sector(n_sites, ones) for ones in (half, half - 1)]
    return [_ring_terms(n_sites, basis) for basis in bases]


def _sector(n_sites: int, ones: int) -> np.ndarray:
    """Ascending indices of the basis states with this many ones."""
    indices = np.arange(2**n_sites)
    return np.flatnonzero(np.bitwise_count(indices) == ones)


def _ring_terms(n_sites: int, basis: np.ndarray) -> _Terms:
    """The ring's terms, (d, d) each, on d ascending basis indices that exchanges do not leave."""
    from scipy import sparse  # costs a fifth of a second, and loading MNIST does without it

    places = 1 << np.arange(n_sites)[::-1]  # of qubit 0, 1, …
    bits = (basis[:, None] & places) != 0  # (d, n_sites)
    unequal = bits != np.roll(bits, -1, axis=1)  # (d, n_sites): bond i joins sites i and i + 1
    row, bond = np.nonzero(unequal)
    # XX + YY exchanges the two bits of a bond with amplitude 2 where they differ, and annihilates
    # equal bits.
    bits_of_bond = places | np.roll(places, -1)
    exchanged = basis[row] ^ bits_of_bond[bond]
    column = np.searchsorted(basis, exchanged)
    amplitudes = np.full(len(row), 2.0)
    d = len(basis)
    exchange = sparse.csr_array((amplitudes, (row, column)), shape=(d, d))
    diagonal = n_sites - 2.0 * unequal.sum(axis=1)
    alignment = sparse.diags_array(diagonal, format="csr")
    return exchange, alignment

"""The XXZ ring: its couplings and how they are split, exact diagonalisation of its ground states,
and their cache."""

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
XXZ_VAL = np.r_[106:190:2, 199:283:2]  # (84,), 42 on either side
# (166,) the states that are computed; union1d would load numpy.ma
XXZ_USED = np.sort(np.r_[XXZ_TRAIN, XXZ_VAL])
XXZ_FORMAT = 1  # of the cache file; to be raised with every change of what is computed
MAX_SITES = 16  # the 166 states of 16 sites fill 87 MB
# energy; closer to the next level, an eigenvector is no longer determined by the Hamiltonian
MIN_GAP = 1e-6


class Spectrum(NamedTuple):
    """Lowest levels of the XXZ ring at the couplings of the data set, each (166,), in ascending
    delta."""

    delta: np.ndarray
    # of the ground state, total, in units of the exchange (Pauli matrices, not spins)
    energy: np.ndarray
    gap: np.ndarray  # to the next level of the whole space
    is_train: np.ndarray  # which split the state is in
    is_val: np.ndarray


def xxz_points(split: RingSplit) -> tuple[np.ndarray, np.ndarray]:
    """(82,) and (84,) indices into COUPLINGS of the training and the validation states."""
    if split == "interleaved":
        return XXZ_TRAIN, XXZ_VAL
    phases = np.split(XXZ_USED, 2)  # (83,) each, by ascending Δ
    outwards = {
        "far": (slice(None), slice(None, None, -1)),
        "near": (slice(None, None, -1), slice(None)),
    }
    orders = outwards.get(split, (slice(None), slice(None)))
    ordered = [phase[order] for phase, order in zip(phases, orders, strict=True)]
    train, val = (
        np.sort(np.concatenate([own[part] for own in ordered]))
        for part in (slice(41), slice(41, None))
    )
    return train, val


def xxz_spectrum(n_sites: int = 12) -> Spectrum:
    """Ground-state energy and gap at the 166 couplings of the data set, from the same cache as the
    states."""
    check_even(n_sites)
    levels, is_train = _cached_levels(n_sites), np.isin(XXZ_USED, XXZ_TRAIN)
    return Spectrum(COUPLINGS[XXZ_USED], levels["energy"], levels["gap"], is_train, ~is_train)


def xxz_hamiltonian(n_sites: int, delta: float) -> Any:
    """H = Σ_i X_i X_{i+1} + Y_i Y_{i+1} + Δ Z_i Z_{i+1} on a ring of 3 to 16 qubits, a sparse
    matrix of SciPy."""
    require(n_sites in range(3, MAX_SITES + 1), "n_sites", n_sites, f"3 to {MAX_SITES}")
    exchange, alignment = _ring_terms(n_sites, np.arange(2**n_sites))
    return exchange + delta * alignment


def check_even(n_sites: int) -> None:
    allowed = f"even numbers from 4 to {MAX_SITES} (the ground states of odd rings are degenerate)"
    require(n_sites in range(4, MAX_SITES + 1, 2), "n_sites", n_sites, allowed)


def neel(n_sites: int) -> int:
    """Basis index of |0101…01⟩."""
    return int("01" * (n_sites // 2), 2)


def ground_states(n_sites: int) -> np.ndarray:
    """(166, 2**n_sites) ground states in the fixed gauge."""
    states = np.zeros((len(XXZ_USED), 2**n_sites))
    states[:, _sector(n_sites, n_sites // 2)] = _cached_levels(n_sites)["amplitudes"]
    return states


def _cached_levels(n_sites: int) -> dict[str, np.ndarray]:
    """What `_diagonalise` returns, from the cache where it is there and sound, and kept there where
    it is not."""
    key = hashlib.sha256(
        f"{XXZ_FORMAT} {n_sites}".encode() + COUPLINGS[XXZ_USED].tobytes()
    ).hexdigest()[:16]
    path = cache_folder() / f"xxz-{n_sites}-{key}.npz"
    try:
        return _read_cache(path)
    except (ValueError, OSError) as error:
        if not isinstance(error, FileNotFoundError):
            print(
                f"XXZ: computing the states anew, the cached ones are of no use ({error})",
                file=sys.stderr,
            )
    arrays = _diagonalise(n_sites)
    try:
        _write_cache(path, arrays)
    except OSError as error:
        print(f"XXZ: the states cannot be kept for the next time ({error})", file=sys.stderr)
    return arrays


def _read_cache(path: Path) -> dict[str, np.ndarray]:
    arrays = read_npz(path, ("amplitudes", "energy", "gap", "sha256"))
    if str(arrays.pop("sha256")) != sha256(*arrays.values()):
        raise BadInput(f"data: {path} does not match its checksum")
    return arrays


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    # not at the top: it loads xarray, and MNIST does without
    from foundation.base.storage import replacing

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays, sha256=np.array(sha256(*arrays.values())))


def _diagonalise(n_sites: int) -> dict[str, np.ndarray]:
    """Energy, gap (166,), amplitudes (166, d): in the fixed gauge, on the d ascending states of
    zero magnetisation."""
    from tqdm import tqdm

    sectors = _sectors(n_sites)
    progress = tqdm(
        COUPLINGS[XXZ_USED],
        desc=f"XXZ ground states, {n_sites} sites",
        unit="state",
        delay=2,
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )
    states = [_ground_state(sectors, delta) for delta in progress]
    energy, gap, amplitudes = map(np.array, zip(*states, strict=True))
    # The largest amplitude will not do: the two Néel states tie, and for n_sites / 2 odd they
    # differ in sign.
    place = np.searchsorted(_sector(n_sites, n_sites // 2), neel(n_sites))
    amplitudes *= np.sign(amplitudes[:, place])[:, None]
    return {"amplitudes": amplitudes, "energy": energy, "gap": gap}


def _ground_state(sectors: list[_Terms], delta: float) -> tuple[float, float, np.ndarray]:
    """Total energy, gap in the whole space, and amplitudes in the zero-magnetisation sector, of no
    certain sign.

    For Δ > -1 the ground state of an even ring lies in that sector and is alone there: with the
    signs of X and Y turned on every other site no matrix element between two basis states is
    positive, and they connect them all (Perron-Frobenius). The next level of the whole space is the
    second of this sector (Δ > 1: the other superposition of the two Néel states) or the lowest of a
    neighbouring one (Δ < 1), since the lowest energies of the sectors rise with |magnetisation|:
    proven at Δ = 1 (Lieb & Mattis, J. Math. Phys. 3, 749 (1962)), checked by the tests at the other
    Δ in use. At Δ ≤ -1 the gap found is zero or negative. Raises ValueError where it is below
    MIN_GAP.
    """
    levels, vectors = _lowest(sectors[0], delta, 2)
    neighbour, _ = _lowest(sectors[1], delta, 1)
    gap = min(levels[1], neighbour[0]) - levels[0]
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
    # A start without any symmetry: from a symmetric one, Lanczos steps would never reach the other
    # levels.
    start = np.random.default_rng(0).normal(size=exchange.shape[0])
    levels, vectors = eigsh(exchange + delta * alignment, k=k, which="SA", v0=start)
    order = np.argsort(levels)
    return levels[order], vectors[:, order]


def _sectors(n_sites: int) -> list[_Terms]:
    """The ring's terms within the sectors of magnetisation zero and one spin flipped from it."""
    return [
        _ring_terms(n_sites, _sector(n_sites, ones)) for ones in (n_sites // 2, n_sites // 2 - 1)
    ]


def _sector(n_sites: int, ones: int) -> np.ndarray:
    """Ascending indices of the basis states with this many ones."""
    return np.flatnonzero(np.bitwise_count(np.arange(2**n_sites)) == ones)


def _ring_terms(n_sites: int, basis: np.ndarray) -> _Terms:
    """The ring's terms, each (d, d), on d ascending basis indices that exchanges don't lead out
    of."""
    from scipy import sparse  # costs a fifth of a second, and loading MNIST does without it

    places = 1 << np.arange(n_sites)[::-1]  # of qubit 0, 1, …
    bits = (basis[:, None] & places) != 0  # (d, n_sites)
    unequal = bits != np.roll(bits, -1, axis=1)  # (d, n_sites): bond i joins sites i and i + 1
    row, bond = np.nonzero(unequal)
    # XX + YY exchanges the two bits of a bond with amplitude 2 where they differ, and annihilates
    # equal ones.
    column = np.searchsorted(basis, basis[row] ^ (places | np.roll(places, -1))[bond])
    exchange = sparse.csr_array(
        (np.full(len(row), 2.0), (row, column)), shape=(len(basis), len(basis))
    )
    return exchange, sparse.diags_array(n_sites - 2.0 * unequal.sum(axis=1), format="csr")

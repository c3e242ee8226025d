"""XXZ data against dense diagonalisation, the Bethe ansatz, free fermions, and damage done to its
files."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import scipy.sparse.linalg
from scipy.optimize import root
from scipy.sparse.linalg import eigsh

from datar import load_xxz
from foundation.base import npz
from foundation.quantum import ring
from foundation.quantum.ring import xxz_hamiltonian, xxz_spectrum

PAULI = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder for this module; the 12 sites are diagonalised once in it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """The project's folder in a fresh cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "quantum-unlearning"


def forbid_diagonalisation(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("diagonalised although the states are there")

    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", refuse)


@functools.cache
def kron_terms(n_sites: int) -> tuple[np.ndarray, np.ndarray]:
    """Σ XX + YY and Σ ZZ on the ring by Kronecker products: the slow, obvious way."""

    def bond(pauli, i):
        factors = [np.eye(2)] * n_sites
        factors[i] = factors[(i + 1) % n_sites] = pauli
        return functools.reduce(np.kron, factors)

    x, y, z = (sum(bond(pauli, i) for i in range(n_sites)).real for pauli in PAULI)
    return x + y, z


def dense(n_sites: int, delta: float) -> np.ndarray:
    exchange, alignment = kron_terms(n_sites)
    return exchange + delta * alignment


def bethe_energy(n_sites: int, delta: float) -> float:
    """Ground-state energy from the Bethe equations n θ₁(λⱼ) = 2π Iⱼ + Σₖ θ₂(λⱼ - λₖ) of n/2 flipped
    spins."""
    flipped = n_sites // 2
    quanta = np.arange(flipped) - (flipped - 1) / 2
    if delta < 1:
        eta = np.arccos(delta)

        def theta(x, order):
            return 2 * np.arctan(np.tanh(x) / np.tan(order * eta / 2))

        def energies(x):
            return np.sin(eta) ** 2 / (np.cosh(2 * x) - np.cos(eta))
    else:
        eta = np.arccosh(delta)

        def theta(x, order):
            return 2 * np.arctan(np.tan(x) / np.tanh(order * eta / 2)) + 2 * np.pi * np.floor(
                x / np.pi + 0.5
            )

        def energies(x):
            return np.sinh(eta) ** 2 / (np.cosh(eta) - np.cos(2 * x))

    def equations(x):
        return n_sites * theta(x, 1) - 2 * np.pi * quanta - theta(x[:, None] - x, 2).sum(axis=1)

    start = eta * np.arcsinh(np.tan(np.pi * quanta / (flipped + 0.5))) / np.pi
    solution = root(equations, start, tol=1e-13).x
    assert np.abs(equations(solution)).max() < 1e-11
    return n_sites * delta - 4 * energies(solution).sum()  # 4: Pauli matrices instead of spins


# ---- the physics ----


@pytest.mark.parametrize("n_sites", [3, 4, 5, 6, 7])
def test_hamiltonian_is_the_kronecker_one(n_sites):
    for delta in (-1.3, 0.0, 0.7, 2.0):
        np.testing.assert_allclose(
            xxz_hamiltonian(n_sites, delta).toarray(), dense(n_sites, delta), atol=1e-12
        )


@pytest.mark.parametrize("n_sites", [4, 6, 8])
def test_energies_and_gaps_are_those_of_the_whole_space(n_sites):
    spectrum = xxz_spectrum(n_sites)
    every = 1 if n_sites == 4 else 15 if n_sites == 6 else 50
    levels = np.array(
        [np.linalg.eigvalsh(dense(n_sites, delta))[:2] for delta in spectrum.delta[::every]]
    )
    np.testing.assert_allclose(spectrum.energy[::every], levels[:, 0], atol=1e-10)
    np.testing.assert_allclose(spectrum.gap[::every], levels[:, 1] - levels[:, 0], atol=1e-10)


def test_twelve_sites_against_the_bethe_ansatz_at_every_coupling():
    spectrum = xxz_spectrum()
    np.testing.assert_allclose(
        spectrum.energy, [bethe_energy(12, delta) for delta in spectrum.delta], atol=1e-10
    )


def test_twelve_sites_are_gapped_in_the_whole_space():
    spectrum = xxz_spectrum()
    assert spectrum.gap.shape == (166,)
    assert spectrum.gap.min() > 0.5  # far from MIN_GAP
    start = np.random.default_rng(1).normal(size=4096)
    for place in (0, 82, 83, 165):  # both ends, and both sides of the transition
        levels = np.sort(
            eigsh(xxz_hamiltonian(12, spectrum.delta[place]), k=4, which="SA", v0=start)[0]
        )
        assert levels[0] == pytest.approx(spectrum.energy[place], abs=1e-9)
        assert levels[1] - levels[0] == pytest.approx(spectrum.gap[place], abs=1e-9)


@pytest.mark.parametrize("n_sites", [10, 12, 14])
def test_lowest_energies_rise_with_the_magnetisation(n_sites):
    """The ground of the claim that sectors beyond the neighbouring ones cannot hold the next
    level."""
    sectors = [
        ring._ring_terms(n_sites, ring._sector(n_sites, ones))
        for ones in range(n_sites // 2, 0, -1)
    ]
    for delta in (0.12, 0.94, 1.05, 1.87):
        lowest = [ring._lowest(terms, delta, 1)[0][0] for terms in sectors] + [n_sites * delta]
        assert np.all(np.diff(lowest) > 0)


@pytest.mark.parametrize("n_sites", [4, 6, 8, 10, 12])
def test_free_fermions_at_zero_coupling(n_sites):
    energy, *_ = ring._ground_state(ring._sectors(n_sites), 0.0)
    assert energy == pytest.approx(-4 / np.sin(np.pi / n_sites), abs=1e-10)


def test_heisenberg_point_against_bethe_and_conformal_field_theory():
    """E/n → 1 - 4 ln 2, less πcv/6n² with c = 1 and v = 2π (π/2 for spins, times 4).

    Logarithms add 1.6 % to the correction at 12 sites; 3 % are allowed, and less must be left at
    14.
    """
    left = []
    for n_sites in (12, 14):
        energy, *_ = ring._ground_state(ring._sectors(n_sites), 1.0)
        correction = -(np.pi**2) / (3 * n_sites**2)
        left.append(abs((energy / n_sites - (1 - 4 * np.log(2))) / correction - 1))
    assert left[1] < left[0] < 0.03


@pytest.mark.parametrize("n_sites", [4, 6, 12])
def test_states_solve_the_full_eigenvalue_equation(n_sites):
    states, spectrum = ring.ground_states(n_sites), xxz_spectrum(n_sites)
    np.testing.assert_allclose(np.linalg.norm(states, axis=1), 1, atol=1e-12)
    for state, delta, energy in zip(states, spectrum.delta, spectrum.energy, strict=True):
        assert np.linalg.norm(xxz_hamiltonian(n_sites, delta) @ state - energy * state) < 1e-8


def test_states_between_those_of_the_data_set_solve_the_shifted_equation():
    usual, shifted = load_xxz(n_sites=4), load_xxz(n_sites=4, shift=0.005)
    for points, before, after in (
        (ring.XXZ_TRAIN, usual.train, shifted.train),
        (ring.XXZ_VAL, usual.val, shifted.val),
    ):
        np.testing.assert_array_equal(before.y, after.y)
        for delta, old, new in zip(ring.COUPLINGS[points], before.x, after.x, strict=True):
            _, vectors = np.linalg.eigh(dense(4, delta + 0.005))
            assert abs(vectors[:, 0] @ new) == pytest.approx(1, abs=1e-6)
            assert not np.array_equal(old, new)
    assert usual.provenance["sha256"] != shifted.provenance["sha256"]
    assert shifted.provenance["shift"] == 0.005 and "shift" not in usual.provenance


@pytest.mark.parametrize("shift", [-0.001, 0.01, np.nan])
def test_shifts_beyond_one_step_are_refused(shift):
    with pytest.raises(ValueError, match=f"^shift: got {shift}, allowed: 0, or less than .01"):
        load_xxz(n_sites=4, shift=shift)


@pytest.mark.parametrize(
    ("n_sites", "delta"),
    [
        (4, -1.0),  # all magnetisations meet: the first excited state is in the neighbouring sector
        (8, -1.0),
        (8, -1 + 1e-8),
        (6, -1.5),  # the ferromagnet: the ground state is in another sector
        (8, 300.0),  # the two Néel states: the first excited state is in the same sector
    ],
)
def test_degenerate_ground_states_are_refused(n_sites, delta):
    levels = np.linalg.eigvalsh(dense(n_sites, delta))
    assert levels[1] - levels[0] < ring.MIN_GAP
    with pytest.raises(ValueError, match=r"^delta: got .*gap .*allowed: .*$"):
        ring._ground_state(ring._sectors(n_sites), delta)


def test_odd_rings_are_degenerate_and_refused():
    levels = np.linalg.eigvalsh(xxz_hamiltonian(5, 0.5).toarray())
    assert levels[1] - levels[0] < 1e-10
    for n_sites in (2, 3, 5, 11, 18):
        for function in (lambda n: load_xxz(n_sites=n), xxz_spectrum):
            with pytest.raises(
                ValueError,
                match=rf"^n_sites: got {n_sites}, allowed: even numbers from 4 to 16 .*$",
            ):
                function(n_sites)


# ---- the data set ----


@pytest.mark.parametrize("n_sites", [4, 6, 8, 12])
def test_splits(n_sites):
    data = load_xxz(n_sites=n_sites)
    assert (data.name, data.n_features) == ("xxz", 2**n_sites)
    for split, half in ((data.train, 41), (data.val, 42)):
        assert (split.x.dtype, split.y.dtype) == (np.complex64, np.int32)
        assert split.x.shape == (2 * half, 2**n_sites)
        np.testing.assert_array_equal(split.y, np.repeat([0, 1], half))
        np.testing.assert_allclose(np.linalg.norm(split.x, axis=1), 1, atol=1e-6)
    assert data.provenance == {
        "source": "computed",
        "n_sites": n_sites,
        "gauge": "fixed",
        "n_train": 82,
        "n_val": 84,
        "sha256": npz.sha256(*data.train, *data.val),
    }


def test_couplings_are_the_published_ones():
    np.testing.assert_allclose(ring.COUPLINGS, -0.94 + 0.01 * np.arange(294), atol=1e-12)
    np.testing.assert_array_equal(ring.XXZ_TRAIN, [*range(107, 189, 2), *range(200, 282, 2)])
    np.testing.assert_array_equal(ring.XXZ_VAL, [*range(106, 190, 2), *range(199, 283, 2)])
    spectrum = xxz_spectrum(4)
    np.testing.assert_array_equal(spectrum.is_train, ~spectrum.is_val)
    np.testing.assert_array_equal(spectrum.delta[spectrum.is_train], ring.COUPLINGS[ring.XXZ_TRAIN])


def test_each_state_stands_in_the_row_of_its_coupling():
    """H(Δ)ψ = Eψ for the Δ its place promises; a neighbour in Δ would miss by 0.01 times the spread
    of ΣZZ."""
    data = load_xxz(n_sites=6)
    for split, points in ((data.train, ring.XXZ_TRAIN), (data.val, ring.XXZ_VAL)):
        for state, label, k in zip(split.x, split.y, points, strict=True):
            image = dense(6, -0.94 + 0.01 * k) @ state
            assert np.linalg.norm(image - np.vdot(state, image) * state) < 1e-5
            assert label == (k > 194)


@pytest.mark.parametrize("n_sites", [4, 6, 8])
def test_fixed_gauge_is_real_and_positive_at_the_neel_state(n_sites):
    data = load_xxz(n_sites=n_sites)
    neel = sum(1 << place for place in range(0, n_sites, 2))  # qubit 0, the most significant, is 0
    for x in (data.train.x, data.val.x):
        assert not x.imag.any()
        assert (x[:, neel].real > 0.1).all()
        # the trap of "make the largest amplitude positive": its twin is as large, of the other sign
        # for n/2 odd
        np.testing.assert_allclose(
            x[:, 2 * neel].real, (-1) ** (n_sites // 2) * x[:, neel].real, atol=1e-6
        )


@pytest.mark.parametrize("gauge", ["random_sign", "random_phase"])
def test_random_gauges_change_phases_only_and_follow_the_seed(gauge):
    fixed, data, again, other = (
        load_xxz(n_sites=6, gauge=g, seed=seed)
        for g, seed in (("fixed", 0), (gauge, 0), (gauge, 0), (gauge, 1))
    )
    assert data.provenance == again.provenance
    assert (data.provenance["gauge_seed"], other.provenance["gauge_seed"]) == (0, 1)
    assert len({d.provenance["sha256"] for d in (fixed, data, other)}) == 3
    drawn = []
    for part in ("train", "val"):
        reference, split, same = (getattr(d, part) for d in (fixed, data, again))
        np.testing.assert_array_equal(split.x, same.x)
        np.testing.assert_array_equal(split.y, reference.y)
        phases = np.einsum("nd,nd->n", reference.x.conj(), split.x)
        np.testing.assert_allclose(np.abs(phases), 1, atol=1e-6)
        np.testing.assert_allclose(split.x, phases[:, None] * reference.x, atol=1e-6)
        drawn.append(phases)
    assert not np.allclose(drawn[0][:80], drawn[1][:80])
    every = np.concatenate(drawn)
    assert abs(every.mean()) < 4 / np.sqrt(len(every))  # uniform: mean 0, standard error 1/√n
    if gauge == "random_sign":
        assert not data.train.x.imag.any()
        assert set(np.round(every.real)) == {-1, 1}
    else:
        assert abs((every**2).mean()) < 4 / np.sqrt(len(every))  # not merely signs


def test_recomputed_states_are_the_same_bits_and_leave_the_global_generator_alone(empty_cache):
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = load_xxz(n_sites=6)
    next(empty_cache.glob("xxz-6-*.npz")).unlink()
    assert load_xxz(n_sites=6).provenance == first.provenance
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("gauge", "as_published", "fixed, random_sign, random_phase"),
        ("seed", -1, "whole numbers, 0 or more"),
    ],
)
def test_bad_arguments(argument, value, allowed):
    with pytest.raises(ValueError, match=f"^{argument}: got {value}, allowed: {allowed}$"):
        load_xxz(n_sites=4, **{argument: value})


# ---- the cache ----


def test_second_call_reads_the_cache(empty_cache, monkeypatch):
    first = load_xxz(n_sites=4)
    assert [path.suffix for path in empty_cache.iterdir()] == [".npz"]  # and no temporary file
    forbid_diagonalisation(monkeypatch)
    assert load_xxz(n_sites=4).provenance == first.provenance
    assert xxz_spectrum(4).gap.min() > 1


def test_sizes_do_not_share_a_cache_file(empty_cache):
    load_xxz(n_sites=4)
    assert load_xxz(n_sites=6).n_features == 64
    assert len(list(empty_cache.iterdir())) == 2


def test_a_cache_file_under_another_ones_name_is_said_and_replaced(empty_cache, capsys):
    """Even where its arrays would fit, as those of another version of the computation do."""
    first = load_xxz(n_sites=4)
    (path,) = empty_cache.iterdir()
    whole = path.read_bytes()
    other = path.with_name("xxz-4-0123456789abcdef.npz")
    ring._write_cache(other, {name: 2 * array for name, array in ring._read_cache(path).items()})
    other.replace(path)
    assert load_xxz(n_sites=4).provenance == first.provenance
    assert "does not match its checksum" in capsys.readouterr().err
    assert path.read_bytes() == whole


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_cache_is_said_and_rebuilt(empty_cache, capsys, keep):
    first = load_xxz(n_sites=4)
    (path,) = empty_cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    assert load_xxz(n_sites=4).provenance == first.provenance
    message = capsys.readouterr().err.strip()
    assert (
        message.startswith("XXZ: computing the states anew")
        and path.name in message
        and "\n" not in message
    )
    assert path.read_bytes() == whole


def test_no_flipped_byte_of_the_cache_passes(empty_cache):
    load_xxz(n_sites=4)
    (path,) = empty_cache.iterdir()
    whole, arrays = path.read_bytes(), ring._read_cache(path)
    for place in np.random.default_rng(0).choice(
        len(whole), size=300, replace=False
    ).tolist() + list(range(100)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read = ring._read_cache(path)
        except ValueError as error:
            assert "\n" not in str(error)
        else:  # a date or an attribute of the archive
            for name, array in arrays.items():
                np.testing.assert_array_equal(read[name], array)


def test_consistent_but_altered_cache_is_rebuilt(empty_cache, capsys):
    first = load_xxz(n_sites=4)
    (path,) = empty_cache.iterdir()
    with np.load(path) as file:
        arrays = dict(file)
    arrays["amplitudes"][5, 0] += 1e-3
    np.savez(path, **arrays)
    assert load_xxz(n_sites=4).provenance == first.provenance
    assert "does not match its checksum" in capsys.readouterr().err


def test_unwritable_cache_is_said_and_survived(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_xxz(n_sites=4).train.x.shape == (82, 16)
    message = capsys.readouterr().err.strip()
    assert message.startswith("XXZ: the states cannot be kept") and "\n" not in message


def test_failed_write_leaves_nothing_behind(empty_cache, monkeypatch, capsys):
    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    load_xxz(n_sites=4)
    assert list(empty_cache.iterdir()) == []
    assert "disk full" in capsys.readouterr().err


# ---- the authors' file ----


def published_layout(n_sites: int = 4) -> dict[str, np.ndarray]:
    """294 states with arbitrary phases and their Δ; those that are not used are filled with the
    Néel state."""
    rng = np.random.default_rng(3)
    xs = np.zeros((294, 2**n_sites), complex)
    xs[:, ring.neel(n_sites)] = 1
    xs[ring.XXZ_USED] = ring.ground_states(n_sites)
    return {
        "xs": xs * np.exp(2j * np.pi * rng.random((294, 1))),
        "ys": -0.94 + 0.01 * np.arange(294),
    }


def saved(tmp_path, **arrays):
    path = tmp_path / "1D_xxz_dataset.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("gauge", ["fixed", "random_sign", "random_phase"])
@pytest.mark.parametrize("dtype", [np.complex128, np.complex64])
def test_file_gives_what_is_computed_in_every_gauge(tmp_path, monkeypatch, gauge, dtype):
    layout = published_layout()
    path = saved(tmp_path, xs=layout["xs"].astype(dtype), ys=layout["ys"])
    computed = load_xxz(n_sites=4, gauge=gauge, seed=5)
    monkeypatch.setattr(ring, "_cached_levels", None)  # neither computed nor from the cache
    data = load_xxz(n_sites=4, path=path, gauge=gauge, seed=5)
    for split, reference in ((data.train, computed.train), (data.val, computed.val)):
        np.testing.assert_allclose(split.x, reference.x, atol=1e-6)
        np.testing.assert_array_equal(split.y, reference.y)
        assert gauge == "random_phase" or not split.x.imag.any()
    assert data.provenance["source"] == "file 1D_xxz_dataset.npz"


def test_real_files_load_and_folders_do_not_matter(tmp_path):
    layout = published_layout()
    layout["xs"] = np.abs(layout["xs"])  # real
    provenances = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        provenances.append(load_xxz(n_sites=4, path=saved(tmp_path / name, **layout)).provenance)
    assert provenances[0] == provenances[1]


def test_states_that_no_phase_makes_real_stay_complex_and_are_counted(tmp_path, capsys):
    layout = published_layout()
    layout["xs"][[107, 106]] = np.exp(1j * np.arange(16)) / 4
    data = load_xxz(n_sites=4, path=saved(tmp_path, **layout))
    assert [
        np.abs(split.x.imag).max(axis=1).nonzero()[0].tolist() for split in (data.train, data.val)
    ] == [[0], [0]]
    assert data.train.x[0, ring.neel(4)] == pytest.approx(0.25)
    message = capsys.readouterr().err.strip()
    assert message.startswith("XXZ: 2 of 166 states in ") and "\n" not in message


def without_neel(xs):
    xs[200] = 0
    xs[200, 0] = 1


BAD_FILES = {
    "no ys": (lambda a: a.pop("ys"), "without ys"),
    "no xs": (lambda a: a.pop("xs"), "without xs"),
    "other size": (lambda a: a.update(xs=a["xs"][:, :8]), r"shape \(294, 8\)"),
    "fewer states": (lambda a: a.update(xs=a["xs"][:166], ys=a["ys"][:166]), r"shape \(166, 16\)"),
    "fewer couplings": (lambda a: a.update(ys=a["ys"][:293]), r"shape \(293,\)"),
    "not normalised": (lambda a: a["xs"].__setitem__(3, a["xs"][3] * 1.001), "norm 1.001"),
    "not a number": (lambda a: a["xs"].__setitem__((3, 3), np.nan), "xs: got NaN"),
    "infinite coupling": (lambda a: a["ys"].__setitem__(3, np.inf), "ys: got NaN or inf"),
    "descending": (lambda a: a.update(ys=a["ys"][::-1]), "off the grid"),
    "shifted": (lambda a: a.update(ys=a["ys"] + 1e-5), "1e-05 off the grid"),
    "text": (lambda a: a.update(ys=a["ys"].astype(str)), "<U"),
    "complex couplings": (lambda a: a.update(ys=a["ys"] + 0j), "complex128 in"),
    "pickled": (lambda a: a.update(xs=a["xs"].astype(object)), "xs: got Python objects"),
    "no Néel amplitude": (lambda a: without_neel(a["xs"]), "0101"),
}


@pytest.mark.parametrize("defect", BAD_FILES)
def test_bad_files_give_one_line(tmp_path, defect):
    spoil, expected = BAD_FILES[defect]
    arrays = published_layout()
    spoil(arrays)
    with pytest.raises(ValueError, match=expected) as caught:
        load_xxz(n_sites=4, path=saved(tmp_path, **arrays))
    assert str(caught.value).startswith("data") and "\n" not in str(caught.value)


def test_missing_and_unreadable_files_give_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^data: no file at .*nowhere\.npz$"):
        load_xxz(path=tmp_path / "nowhere.npz")
    path = saved(tmp_path, **published_layout())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"^data: .*not a readable .npz.*$"):
        load_xxz(n_sites=4, path=path)


def test_small_deviations_are_accepted(tmp_path):
    layout = published_layout()
    layout["xs"] *= 1 + 5e-5
    layout["ys"] = layout["ys"].astype(np.float32)
    assert load_xxz(n_sites=4, path=saved(tmp_path, **layout)).train.x.shape == (82, 16)

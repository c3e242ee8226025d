"""What the tests share: data, strategies and small checks."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

# One thread, as in the processes that compute: no test depends on the number of cores. And most of
# the suite's time goes into compiling: with these flags it takes a quarter of it, and what one
# process has compiled no other compiles again, nor does the next run. Set before JAX computes
# anything.
os.environ["PJRT_NPROC"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
QUICK_COMPILATION = (  # options of XLA
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
# else a process that such a one has started
if QUICK_COMPILATION not in os.environ.get("XLA_FLAGS", ""):
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = (
        f"{given} {QUICK_COMPILATION} --xla_cpu_experimental_ynn_fusion_type=".strip()
    )
ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import jax
import numpy as np
import pytest
import reports
from here import InThisProcess
from hypothesis import settings
from hypothesis import strategies as st

from datar import Dataset, Split, load_mnist
from foundation.base.places import own_files
from foundation.engine import jobs
from foundation.engine.own_code import MANIFEST
from foundation.engine.programs import use_checked_programs
from foundation.measures import forgetting

use_checked_programs()  # shared with the processes that compute
ONE_THREAD = ("PJRT_NPROC", "OPENBLAS_NUM_THREADS")  # what is set above and is in no user's shell

# Examples are drawn from the test's own source, so that a suite passes or fails the same way
# everywhere.
settings.register_profile("project", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("project")

keys = st.integers(0, 2**32 - 1).map(jax.random.key)
fractions = st.floats(0, 1, exclude_max=True, allow_subnormal=False)


MOST_BYTES = 2**30
TOGETHER = {  # files that share what one process reads or compiles
    **dict.fromkeys(("claims", "committed", "readme", "tables"), "committed"),
    **dict.fromkeys(("capacity", "controls", "discovery", "evaluation", "own_study"), "small"),
}
SLOWEST = (
    "scripts",
    "faults",
    "cluster",
    "xxz_study",
    "evaluation",
    "landscape",
    "determinism",
    "readme",
    "notebooks",
    "models",
)


def pytest_configure(config: pytest.Config) -> None:
    """Programs of many versions of the code are too many: the process that hands out tests removes
    them all."""
    is_first = not hasattr(config, "workerinput")
    if is_first and sum(path.stat().st_size for path in PROGRAMS.glob("*")) > MOST_BYTES:
        shutil.rmtree(PROGRAMS)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """The files that take longest are begun first: no process is left alone with one of them at the
    end."""
    place = {f"test_{name}": number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A process has whole files, and those of TOGETHER with each other. (Groups by a mark, as
    --dist loadgroup has them, are not seen under pytest 9.2.)"""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return TOGETHER.get(Path(file).stem.removeprefix("test_"), file)

    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def committed_tables() -> dict[str, str]:
    """All tables of the committed results in Markdown, by name."""
    return reports.findings_tables(ROOT / "results")


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    """The embedded images, amplitude-encoded: no network, the same everywhere."""
    return load_mnist(source="embedded")


def random_split(n: int, d: int, *, seed: int = 0, complex_states: bool = False) -> Split:
    """n normalised Gaussian samples of length d, both classes as equally large as they can be."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, d)) + 1j * complex_states * generator.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = generator.permutation(np.arange(n) % 2).astype(np.int32)
    return Split(x.astype(np.complex64) if complex_states else x.real.astype(np.float32), y)


def separable_split(n: int, d: int, *, seed: int = 0) -> Split:
    """A random split whose labels follow the sign of the first feature."""
    x, _ = random_split(n, d, seed=seed)
    return Split(x, (x[:, 0] > 0).astype(np.int32))


def changed(config, **values):
    """The configuration with other values: of a study's flags a dictionary of those that differ."""
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = replace(getattr(config, name), **value)
    return replace(config, **values)


@contextmanager
def refused(match: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """The block is refused with an error of exactly one line that contains the regular
    expression."""
    with pytest.raises(error, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)


def assert_trees_equal(actual, expected, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Two pytrees have one structure and the same leaves, bit for bit unless tolerances are
    given."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.shape(left) == np.shape(right)
        np.testing.assert_allclose(left, right, rtol=rtol, atol=atol)


def trees_differ(left, right) -> bool:
    """Whether any leaf of two pytrees of one structure differs."""
    return any(
        jax.tree.leaves(
            jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), left, right)
        )
    )


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """Jobs are computed in the process of the tests: a fifth of the time, for what is not about
    processes. Embeddings take 250 steps, and a PDF is an empty page: the processes that tests start
    make whole ones."""
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    save = Figure.savefig

    def without_pdf(figure, path, **options):
        if options.get("format") == "pdf":
            Path(path).write_bytes(b"%PDF")
        else:
            save(figure, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ProcessPoolExecutor", InThisProcess)
        patch.setitem(TSNE.__init__.__kwdefaults__, "max_iter", 250)
        patch.setattr(Figure, "savefig", without_pdf)
        yield


@pytest.fixture(scope="module")
def few_subsamples():
    """Bounds from 16 halves of the models: those of the studies take half of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "SUBSAMPLES", 16)
        yield


def call_script(name: str, *words) -> subprocess.CompletedProcess:
    """Call the main function of a script in this process, as the command line would."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", [name, *map(str, words)])
        patch.setenv("COLUMNS", "120")
        try:
            code = importlib.import_module(Path(name).stem).main()
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(sys.argv, code, stdout.getvalue(), stderr.getvalue())


def run_python(
    *arguments: str, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess:
    """Run this Python in a process of its own, at the project's root."""
    variables = {**users_environment(), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def copy_project(folder: Path) -> None:
    """The modules of the project, with their list of sources, as a user's copy has them; nothing
    else of it."""
    for path in (*own_files(), MANIFEST):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def users_environment(*without: str) -> dict[str, str]:
    """The environment variables of a user's shell: without what this file sets for one thread, and
    without these."""
    return {
        name: value for name, value in os.environ.items() if name not in (*ONE_THREAD, *without)
    }

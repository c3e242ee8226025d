"""How cost grows with qubits, sites, workers and jobs: what a user plans core-hours by.

    python bench/scale.py      # an hour on 2 quiet cores; keeps rows that are there
    python bench/scale.py --parts steps          # one of steps, ring, workers, jobs
    python bench/scale.py --smoke --out /tmp/s   # tiny sizes: does it run?

steps: one training step of the QNN (value and gradient over 256 samples, depth 6, complex64), 10 to
18 qubits. ring: the same at depth 4 over a batch of 32 ground states of 12, 14 and 16 sites, and
the diagonalisation of the data. workers: `run_unlearn_mnist.py --preset paper --stages noise_sweep`
with 1 and 2 processes, from an empty folder. jobs: what the asking process spends on each of 5,000
jobs that do nothing, by its own processes and by a Dask cluster.

Each size is measured in a process of one thread of its own, whose peak memory is given. Writes
OUT/scale.json and OUT/scale.png, and prints the table and the formula.
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pandas as pd

from foundation.base import storage
from foundation.engine.folders import writable_folder
from foundation.engine.jobs import one_thread
from foundation.engine.runner import one_line_errors

SIZES = {"steps": (10, 12, 14, 16, 18), "ring": (12, 14, 16), "workers": (1, 2), "jobs": (5000,)}
SMOKE = {"steps": (2, 3, 4), "ring": (4, 6), "workers": (1,), "jobs": (20,)}
DEPTH, SAMPLES, BATCH = 6, 256, 32
# for which a step is repeated, three times at least, from 10 qubits on; below that three times
SECONDS = 10.0


# ---- one measurement, in a process of its own ----


def measure(part: str, size: int) -> dict[str, Any]:
    """What the process of one thread found: seconds, and its peak memory in GiB."""
    found = {"steps": _step, "ring": _ring}[part](size)
    return found | {"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _step(n_qubits: int) -> dict[str, Any]:
    from datar import Split

    generator = np.random.default_rng(0)
    x = generator.standard_normal((SAMPLES, 2**n_qubits)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return _timed(n_qubits, DEPTH, Split(x, np.arange(SAMPLES) % 2))


def _ring(n_sites: int) -> dict[str, Any]:
    from datar import Split, load_xxz

    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        start = time.perf_counter()
        data = load_xxz(n_sites=n_sites).train
        seconds = time.perf_counter() - start
    rows = np.arange(len(data.y))[:: len(data.y) // BATCH][:BATCH]
    return _timed(n_sites, 4, Split(data.x[rows], data.y[rows])) | {"data_seconds": seconds}


def _timed(n_qubits: int, depth: int, split: Any) -> dict[str, Any]:
    import jax

    from foundation.measures.metrics import cross_entropy
    from models import QNN

    model = QNN(n_qubits, depth)
    x, y = model.prepare(split.x), split.y
    params = model.init(jax.random.key(0))
    start = time.perf_counter()
    step = jax.jit(jax.value_and_grad(lambda params, x: cross_entropy(model.logits(params, x), y)))
    step = step.lower(params, x).compile()
    compiled, times = time.perf_counter() - start, []
    while len(times) < 4 or (sum(times) < SECONDS and n_qubits >= 10):
        start = time.perf_counter()
        jax.block_until_ready(step(params, x))
        times.append(time.perf_counter() - start)
    times = times[1:]  # the first one warms up
    return {
        "seconds": min(times),
        "median": float(np.median(times)),
        "n": len(times),
        "compile": compiled,
    }


# ---- the parts ----


def of_sizes(part: str, size: int) -> dict[str, Any]:
    """A measurement in a process of its own."""
    command = (sys.executable, __file__, "--measure", part, str(size))
    done = subprocess.run(command, env=os.environ | one_thread(), capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]}
    return json.loads(done.stdout)


def of_workers(part: str, workers: int, *, preset: str = "paper") -> dict[str, Any]:
    """A study from an empty folder; programs are compiled before, and the data are there."""
    flags = (
        "--preset",
        preset,
        "--stages",
        "noise_sweep",
        "--workers",
        str(workers),
        "--source",
        "embedded",
    )
    script = Path(__file__).parents[1] / "run_unlearn_mnist.py"
    with tempfile.TemporaryDirectory() as out:
        warm = ("--alphas", "0", "--runs", "1", "--out", f"{out}/warm")
        subprocess.run((sys.executable, script, *flags, *warm), check=True, capture_output=True)
        start = time.perf_counter()
        subprocess.run(
            (sys.executable, script, *flags, "--out", f"{out}/timed"),
            check=True,
            capture_output=True,
        )
        return {"seconds": time.perf_counter() - start}


def of_jobs(part: str, count: int) -> dict[str, Any]:
    """Milliseconds of a job that does nothing, its file included."""
    found = {"seconds": _overhead(count, None)}
    try:
        from distributed import LocalCluster
    except ImportError:
        return found
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0
    ) as local:
        return found | {"cluster": _overhead(count, local.scheduler_address)}


def _overhead(count: int, cluster: str | None) -> float:
    from datar import Dataset, Split
    from foundation.engine.jobs import Store
    from foundation.engine.runner import compute

    split = Split(np.eye(2), np.arange(2))
    data = {"toy": Dataset(split, split, "toy", 2, {"sha256": "toy"})}
    with tempfile.TemporaryDirectory() as folder:
        # processes start up
        compute(_trivial(0, 4), data, Store(Path(folder)), workers=2, cluster=cluster)
        start = time.perf_counter()
        compute(_trivial(0, 4), data, Store(Path(folder)), workers=2, cluster=cluster)
        empty = time.perf_counter() - start
        start = time.perf_counter()
        compute(_trivial(4, 4 + count), data, Store(Path(folder)), workers=2, cluster=cluster)
        return (time.perf_counter() - start - empty) / count


def _trivial(first: int, last: int) -> list[Any]:
    from dataclasses import dataclass

    from foundation.engine.jobs import Job

    @dataclass(frozen=True, kw_only=True)
    class Nothing(Job):
        number: int = 0

        def perform(self, dataset: Any) -> dict[str, np.ndarray]:
            return {"number": np.array(self.number)}

    return [Nothing(data="toy", number=number) for number in range(first, last)]


PARTS: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "steps": of_sizes,
    "ring": of_sizes,
    "workers": of_workers,
    "jobs": of_jobs,
}


# ---- what is said of it ----


def growth(steps: pd.DataFrame) -> tuple[float, float]:
    """a and b of seconds = a 2^(b n), by least squares of the logarithms over the larger half of
    the sizes."""
    large = steps[steps["size"] >= steps["size"].median()]
    b, a = np.polyfit(large["size"], np.log2(large.seconds), 1)
    return float(2**a), float(b)


def formula(steps: pd.DataFrame) -> str:
    a, b = growth(steps)
    sizes = f"{steps['size'].median():.0f} to {steps['size'].max():.0f} qubits"
    return (
        f"a step of {SAMPLES} samples at depth {DEPTH}: {a:.2g} s x 2^({b:.2f} n), {sizes}; "
        "core-hours = trainings x epochs x batches of an epoch x that / 3600"
    )


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Seconds and memory against qubits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    labels = {
        "steps": f"MNIST-like: {SAMPLES} samples, depth {DEPTH}",
        "ring": f"XXZ: {BATCH} states, depth 4",
    }
    for marker, (part, label) in zip("os", labels.items(), strict=True):
        own = frame[(frame.part == part) & frame.seconds.notna()]
        left.plot(own["size"], own.seconds, marker, label=label)
        right.plot(own["size"], own.gib, marker)
    steps = frame[(frame.part == "steps") & frame.seconds.notna()]
    a, b = growth(steps)
    line = np.linspace(steps["size"].min(), steps["size"].max(), 50)
    left.plot(line, a * 2 ** (b * line), color="0.6", zorder=0, label=f"{a:.1g} s × 2^({b:.2f} n)")
    left.set(yscale="log", ylabel="seconds a step, one thread", xlabel="qubits")
    right.set(yscale="log", ylabel="peak memory in GiB", xlabel="qubits")
    left.legend(fontsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent,
        help="folder for scale.json and scale.png",
    )
    parser.add_argument("--measure", nargs=2, metavar=("PART", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]))))
        return 0
    with one_line_errors():
        path = writable_folder(options.out) / "scale.json"
        kept = json.loads(path.read_text()) if path.is_file() else []
        for part in options.parts:
            for size in (SMOKE if options.smoke else SIZES)[part]:
                if any(
                    (row["part"], row["size"]) == (part, size) and "failed" not in row
                    for row in kept
                ):
                    continue
                more = {"preset": "quick"} if options.smoke and part == "workers" else {}
                row = {"part": part, "size": size} | PARTS[part](part, size, **more)
                row |= {
                    "machine": storage.machine(),
                    "load": round(os.getloadavg()[0], 2),
                    "commit": storage.git_commit(),
                }
                kept = [each for each in kept if (each["part"], each["size"]) != (part, size)] + [
                    row
                ]
                print(json.dumps(row), flush=True)
                path.write_text(json.dumps(kept, indent=1) + "\n")
        frame = pd.DataFrame(kept)
        print(
            frame.drop(columns=["machine", "commit"]).to_string(
                index=False, float_format="{:.3g}".format
            )
        )
        if (frame.part == "steps").sum() > 1:
            print(formula(frame[(frame.part == "steps") & frame.seconds.notna()]))
            draw(frame, options.out / "scale.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

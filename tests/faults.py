"""Hurt a run in every way we know, and see that it ends with the numbers of an undisturbed one.

    python tests/faults.py                 # 100 kills, every kind of damage, signals, a full disk: minutes
    python tests/faults.py --kills 10
    python tests/faults.py --reference tests/reference.nc     # make the file anew that the suite compares with

The study is the real XXZ script on a ring of 4 sites, without its closing table and figures. Each function hurts it
in one way, checks all that has to hold, and returns what it did, to be counted. The test suite runs them with fewer
repetitions.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import storage  # noqa: E402

STUDY = (  # noqa: SIM905 - as one types them
    "--preset quick --n-sites 4 --depth 1 --runs 2 --alphas 0 10 20 30 40 --hidden 3 --label-hidden --unlearn-hidden 3 "
    "--poisons labels --unlearn-features 0 --methods retrain ga --stages noise_sweep unlearning "
    "--mlp.sweep.epochs 2 --mlp.teacher.epochs 2 --mlp.unlearn.epochs 2 "
    "--qnn.sweep.epochs 2 --qnn.teacher.epochs 2 --qnn.unlearn.epochs 2"
).split()
SCRIPT = "import run_unlearn_xxz as script; script.report = lambda *_: None; script.main()"


class Bench:
    """A folder in which the study is run, hurt and compared with an undisturbed run of it."""

    def __init__(self, folder: Path):
        self.environment = os.environ | {"HOME": str(folder / "home"), "COLUMNS": "120"}
        (folder / "tmp").mkdir()
        self.environment["TMPDIR"] = str(folder / "tmp")
        self.environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles in half the time
        self.environment.pop("XDG_CACHE_HOME", None)
        self.out = folder / "out"
        self.results = self.out / "xxz" / "quick"
        self.undisturbed = folder / "undisturbed" / "xxz" / "quick"
        done = self.run(out=folder / "undisturbed")  # compiles what the others find in the cache
        assert done.returncode == 0, done.stderr
        self.expected = contents(self.undisturbed)

    def start(self, *flags: str, out: Path | None = None, first: str = "") -> subprocess.Popen:
        """Start the study; `first` is what its process does before."""
        command = [sys.executable, "-c", f"{first}\n{SCRIPT}", *STUDY, *flags, "--out", out or self.out]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, **pipes)

    def run(self, *flags: str, **options) -> subprocess.CompletedProcess:
        process = self.start(*flags, **options)
        stdout, stderr = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def chunks(self) -> list[Path]:
        """Everything that a chunk has left: its file, or its parameters."""
        return sorted([*self.results.glob("chunks/*/*.nc"), *self.results.glob("parameters/*/*.safetensors")])

    def wait_for_chunks(self, process: subprocess.Popen, n: int) -> bool:
        """Whether the process lives to see n chunks."""
        while process.poll() is None and len(self.chunks()) < n:
            time.sleep(0.005)
        return process.poll() is None

    def half_way(self, n: int = 8) -> None:
        """A folder with n chunks or a few more, left by a killed run."""
        shutil.rmtree(self.out, ignore_errors=True)
        process = self.start()
        assert self.wait_for_chunks(process, n), process.communicate()[1]
        process.kill()
        process.communicate()

    def check(self) -> None:
        """The study ends, with the bits of the undisturbed run, and leaves nothing half-written."""
        done = self.run()
        assert done.returncode == 0, done.stderr
        self.compare()

    def compare(self) -> None:
        found = contents(self.results)
        assert found.keys() == self.expected.keys()
        for name, values in self.expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=str(name))
        assert not self.chunks_left() and not list(self.results.rglob(".*.tmp"))

    def chunks_left(self) -> list[Path]:
        return list(self.results.glob("chunks/*/*.nc"))


def contents(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """All numbers in a results folder, by file and name."""
    studies = {
        (path.stem, str(name)): array.values
        for path in sorted(folder.glob("*.nc"))
        for name, array in storage.read_dataset(path).variables.items()
    }
    tensors = {
        (f"{path.parent.name}/{path.stem}", name): array
        for path in sorted(folder.glob("parameters/*/*.safetensors"))
        for name, array in storage.read_tensors(path)[0].items()
    }
    return studies | tensors


# ---- kills ----


def kill(bench: Bench, n: int, *, seed: int = 0) -> dict[str, int]:
    """Send SIGKILL n times at random instants, start again each time, and compare every study that ends."""
    rng = random.Random(seed)
    shutil.rmtree(bench.out, ignore_errors=True)
    kills = ends = amid_work = 0
    while kills < n:
        process = bench.start()
        before = len(bench.chunks())
        if bench.wait_for_chunks(process, before + rng.randrange(3)):  # from the first import to well into the work
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            kills += 1
            amid_work += len(bench.chunks()) > before
        elif process.returncode == 0:
            bench.compare()
            ends += 1
            shutil.rmtree(bench.out)
        else:
            raise AssertionError(process.communicate()[1])
    bench.check()
    return {"kills": kills, "of them after new chunks": amid_work, "studies that ended with the same bits": ends + 1}


# ---- damage ----


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def flip_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    # Of safetensors, a bit of the data: one of its header may be of no consequence.
    content[rng.randrange(len(content) if path.suffix == ".nc" else 20) * -1 - 1] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def make_foreign(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + rng.randbytes(2000))


def swap(path: Path, rng: random.Random) -> None:
    """Put another chunk's whole and sealed file in its place."""
    others = [other for other in path.parent.glob(f"*{path.suffix}") if other != path]
    path.write_bytes(rng.choice(others).read_bytes() if others else b"none of ours")


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (swap, truncate, empty, flip_bit, make_foreign)


def damage(bench: Bench, *, seed: int = 0) -> dict[str, int]:
    """Damage chunks, parameters and finished studies; each is named, kept as it is, and what it held computed again."""
    rng = random.Random(seed)
    damaged = 0
    bench.half_way()
    for finished in (False, True):
        victims = rng.sample(bench.chunks(), len(DAMAGES))
        if finished:
            victims[: len(list(bench.results.glob("*.nc")))] = bench.results.glob("*.nc")
        before = {}
        for hurt, path in zip(DAMAGES, victims, strict=True):
            hurt(path, rng)
            before[path] = path.read_bytes()
        done = bench.run()
        assert done.returncode == 0, done.stderr
        bench.compare()
        kept = {path.read_bytes() for path in bench.results.with_name("quick-set-aside").rglob("*") if path.is_file()}
        for path, content in before.items():
            assert path.name in done.stderr and content in kept, (path, done.stderr)
            damaged += 1
    return {"files damaged, named, kept and computed again": damaged}


# ---- signals, two at once, a full disk ----


def stop(bench: Bench) -> dict[str, int]:
    """Ctrl-C and SIGTERM end the run at once, with a word on what is kept."""
    shutil.rmtree(bench.out, ignore_errors=True)
    before = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = bench.start()
        assert bench.wait_for_chunks(process, len(bench.chunks()) + 3), process.communicate()[1]
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number, stderr
        assert "Traceback" not in stderr and "goes on from there" in stderr, stderr
        after = len({(path.parent.name, path.stem) for path in bench.chunks()})
        assert int(stderr.split("stopped with ")[1].split()[0]) == after - before > 0, stderr
        before = after
    bench.check()
    return {"stopped by SIGINT and SIGTERM": 2}


def start_twice(bench: Bench) -> dict[str, int]:
    """A second process on a folder in which one is at work says so and stops; then the folder is free again."""
    shutil.rmtree(bench.out, ignore_errors=True)
    with storage.Store(bench.results, config={}, data={}).locked():
        second = bench.run()
    assert second.returncode == 2 and "another process is at work" in second.stderr, second.stderr
    assert second.stderr.count("\n") == 1
    bench.check()
    return {"second processes turned away": 1}


def fill_disk(bench: Bench) -> dict[str, int]:
    """Files that cannot grow beyond some size, as under a quota: one line, exit code 2, nothing lost or torn."""
    shutil.rmtree(bench.out, ignore_errors=True)
    limits = (1500, 12_000, 20_000)  # bytes: of the files here, more and more fit
    for limit in limits:
        small_files = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
        process = bench.run(first=small_files)
        assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
        assert "File too large" in process.stderr.splitlines()[-1], process.stderr
        assert not list(bench.results.rglob(".*.tmp"))
    bench.check()
    return {"writes that found no room": len(limits)}


def fill_small_disk(bench: Bench) -> dict[str, int]:
    """The same on a file system of 200 kB, where one may be mounted."""
    shutil.rmtree(bench.out, ignore_errors=True)
    bench.out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", bench.out], capture_output=True)
    if mounted.returncode:
        return {"small file systems filled (none could be mounted)": 0}
    try:
        process = bench.run()
        assert process.returncode == 2 and "No space left" in process.stderr.splitlines()[-1], process.stderr
        assert "Traceback" not in process.stderr and not list(bench.results.rglob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=20m", bench.out], check=True)
        bench.check()
    finally:
        subprocess.run(["umount", bench.out], check=True)
    return {"small file systems filled": 1}


# ---- another run, other conditions ----


def start_fresh(bench: Bench) -> dict[str, int]:
    """Results of another run are refused by name of what differs; --fresh keeps them aside, byte for byte."""
    shutil.rmtree(bench.out, ignore_errors=True)
    bench.check()
    others = {  # what is asked for: what the refusal names
        "--seed 1": "seed 0",
        "--mlp.sweep.epochs 3": "'epochs': 2",
        "--gauge random_sign": "data ",
        "--stages noise_sweep --alphas 50 --mlp.sweep.epochs 3": "'epochs': 2",  # none of these chunks is stored
        "--stages unlearning --methods cf --ce-weight 2": "weights [1.0",
    }
    before = {path.relative_to(bench.results): path.read_bytes() for path in bench.results.rglob("*.*")}
    for flags, differing in others.items():
        refused = bench.run(*flags.split())
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
        assert differing in refused.stderr and "--fresh" in refused.stderr, refused.stderr
    bench.compare()
    beside = bench.results.with_name("quick-set-aside")
    for seed in (1, 2):
        process = bench.start("--seed", str(seed), "--fresh")
        while process.poll() is None and not (len(list(beside.glob("*"))) == seed and bench.chunks()):
            time.sleep(0.005)
        process.kill()
        process.communicate()
        folders = sorted(beside.iterdir())
        assert len(folders) == seed
        assert {path.relative_to(folders[0]): path.read_bytes() for path in folders[0].rglob("*.*")} == before
    return {"runs of another kind refused": len(others), "folders set aside by --fresh": 2}


def vary_conditions(bench: Bench) -> dict[str, int]:
    """The same bits with one worker, and on one core: the cache is warm now, and was cold for the first run."""
    shutil.rmtree(bench.out, ignore_errors=True)
    one_core = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    for flags in (("--stages", "unlearning", "--workers", "1"), ("--stages", "noise_sweep", "--workers", "2")):
        done = bench.run(*flags, first=one_core)
        assert done.returncode == 0, done.stderr
    bench.compare()
    return {"studies with the same bits on one core, from a warm cache, with one worker and with two": 1}


def try_bad_input() -> dict[str, int]:
    """Every case of test_bad_input.py, and hypothesis' own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_bad_input.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    return {"tests of bad input (tests/test_bad_input.py), each refused in one line": int(passed[1])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how often to kill the run")
    parser.add_argument("--reference", type=Path, help="write the undisturbed study's unlearning curves there, and end")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and of the damage")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        if arguments.reference:
            shutil.copy(bench.undisturbed / "unlearning.nc", arguments.reference)
            return 0
        for fault in (stop, start_twice, fill_disk, fill_small_disk, start_fresh, vary_conditions):
            report(fault(bench))
        report(damage(bench, seed=arguments.seed))
        report(kill(bench, arguments.kills, seed=arguments.seed))
    report(try_bad_input())
    print("nothing lost, no wrong number")
    return 0


def report(figures: dict[str, int]) -> None:
    for name, value in figures.items():
        print(f"{name}: {value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Hurt a run in every way we know, and see that it ends with the numbers of an undisturbed one.

    python tests/faults.py                 # kills, damage, signals, a full disk, cores and workers
    python tests/faults.py --kills 100
    python tests/faults.py --reference tests/reference.nc     # what the suite compares with

What is hurt is the real XXZ script on a ring of 4 sites, without its closing table and figures,
with chains of three jobs: teacher, unlearned, trained on. Each function hurts it in one way, checks
all that has to hold, and returns what it did, to be counted. The test suite runs them with fewer
repetitions.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import xarray as xr

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from foundation.base import storage  # noqa: E402
from foundation.engine import keys  # noqa: E402

STUDY = (  # noqa: SIM905 - as one types them
    "--preset quick --workers 1 --n-sites 4 --runs 2 --alphas 0 10 20 30 40 --models mlp logistic "
    "--hidden 3 --label-hidden --unlearn-hidden 3 --poisons labels --unlearn-features 0 --methods "
    "retrain ga --stages noise_sweep unlearning --mlp.sweep.epochs 2 --mlp.teacher.epochs 2 "
    "--mlp.unlearn.epochs 2"
).split()
SCRIPT = """
import run_unlearn_xxz as script
import faults
script.report = lambda *_: None
script.STUDIES = faults.with_a_longer_chain(script.STUDIES)
script.sys.exit(script.main())
"""


def with_a_longer_chain(studies) -> list:
    """The studies, of which `unlearning` goes on."""
    of_chain = {"unlearning": {"plan": unlearning_and_on}}
    return [dataclasses.replace(study, **of_chain.get(study.name, {})) for study in studies]


def unlearning_and_on(config, dataset) -> Iterator:
    """The unlearning curves, and how each unlearned model is trained on: the third job of its
    chain."""
    from poison_unlearn import FineTune
    from studies import unlearning

    for row in unlearning.plan(config, dataset):
        yield row
        further = dataclasses.replace(
            row.job, start=row.job, method=FineTune(training=row.job.method.training)
        )
        yield dataclasses.replace(row, study="trained_on", job=further)


class Bench:
    """A folder in which the study is run, hurt and compared with an undisturbed run of it."""

    def __init__(self, folder: Path, programs: Path | None = None):
        """programs: a folder of compiled programs; None: the one in the empty home folder."""
        self.folder, self.out = folder, folder / "out"
        (folder / "tmp").mkdir()
        self.environment = script_environment(folder / "home", programs)
        self.environment["TMPDIR"] = str(folder / "tmp")
        # Compiles in a quarter of the time.
        self.environment["XLA_FLAGS"] = (
            "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
        )
        self.undisturbed = folder / "undisturbed"
        done = self.run(out=self.undisturbed)  # compiles what the others find in the cache
        assert done.returncode == 0, done.stderr
        self.expected = contents(self.undisturbed)
        (results,) = (self.undisturbed / "xxz").iterdir()
        self.results = self.out / "xxz" / results.name
        assert len(self.jobs(self.undisturbed)) == 22, len(self.jobs(self.undisturbed))

    def start(self, *flags: str, out: Path | None = None, first: str = "") -> subprocess.Popen:
        """Start the study, as a terminal would; `first` is what its process does before."""
        command = [sys.executable, "-c", first + SCRIPT, *STUDY, *flags, "--out", out or self.out]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, start_new_session=True, **pipes
        )

    def run(self, *flags: str, **options) -> subprocess.CompletedProcess:
        return finish(self.start(*flags, **options))

    def jobs(self, out: Path | None = None) -> list[Path]:
        return sorted((out or self.out).glob("jobs/*.safetensors"))

    def studies(self) -> list[Path]:
        return sorted(self.results.glob("*.nc"))

    def wait_for_jobs(self, process: subprocess.Popen, n: int) -> bool:
        """Whether the process lives to see n jobs done."""
        while process.poll() is None and len(self.jobs()) < n:
            time.sleep(0.005)
        return process.poll() is None

    def clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)

    def half_way(self, n: int = 8) -> None:
        """A folder with n jobs or a few more, left by a killed run."""
        self.clear()
        process = self.start()
        assert self.wait_for_jobs(process, n), process.communicate()[1]
        process.kill()
        process.communicate()

    def check(self) -> None:
        """The study ends, with the bits of the undisturbed run, and leaves nothing half-written."""
        done = self.run()
        assert done.returncode == 0, done.stderr
        self.compare()

    def compare(self, *, killed: bool = False) -> None:
        """killed: a writer was, whose half-written file goes when it is an hour old; another may be
        at work on it."""
        assert_same_bits(contents(self.out), self.expected)
        assert killed or not self.half_written()

    def half_written(self) -> list[Path]:
        return list(self.out.rglob(".*.tmp"))


def script_environment(home: Path, programs: Path | None = None) -> dict[str, str]:
    """The variables of a user's shell with this home folder: one with an empty cache, where it is
    not there yet. programs: the folder of compiled programs, if it is another."""
    unset = ("PJRT_NPROC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "XLA_FLAGS", "XDG_CACHE_HOME")
    cached = ("JAX_COMPILATION_CACHE_", "JAX_PERSISTENT_CACHE_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in unset and not name.startswith(cached)
    }
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(programs)} if programs else {}
    paths = f"{ROOT}:{ROOT / 'tests'}"
    return kept | compiled | {"HOME": str(home), "COLUMNS": "120", "PYTHONPATH": paths}


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    stdout, stderr = process.communicate(timeout=1200)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def contents(out: Path) -> dict[tuple[str, str], np.ndarray]:
    """All numbers of the studies and of the jobs below a folder, by file and name."""
    studies = {
        (path.relative_to(out).as_posix(), str(name)): array.values
        for path in sorted(out.rglob("*.nc"))
        for name, array in storage.read_dataset(path).variables.items()
    }
    tensors = {
        (path.relative_to(out).as_posix(), name): array
        for path in sorted(out.glob("jobs/*.safetensors"))
        for name, array in storage.read_tensors(path)[0].items()
    }
    return studies | tensors


def assert_same_bits(
    found: dict[tuple[str, str], np.ndarray], expected: dict[tuple[str, str], np.ndarray]
) -> None:
    differing = sorted({path for path, _ in found.keys() ^ expected.keys()})
    assert expected and not differing, differing
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=str(name))


# ---- kills ----


def kill(bench: Bench, n: int, *, seed: int = 0) -> dict[str, int]:
    """Send SIGKILL n times at random instants, start again each time, and compare every study that
    ends."""
    rng = random.Random(seed)
    bench.clear()
    kills = ends = amid_work = 0
    while kills < n:
        process = bench.start("--workers", "2")
        before = len(bench.jobs())
        # from the first import to well into the work
        if bench.wait_for_jobs(process, before + rng.randrange(3)):
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            kills += 1
            amid_work += len(bench.jobs()) > before
        elif process.returncode == 0:
            bench.compare(killed=True)
            ends += 1
            bench.clear()
        else:
            raise AssertionError(process.communicate()[1])
        process.communicate()
    for path in bench.half_written():
        os.utime(path, (0, 0))
    bench.check()
    return {
        "kills": kills,
        "of them after new jobs": amid_work,
        "studies that ended with the same bits": ends + 1,
    }


def kill_worker(bench: Bench, n: int = 2) -> dict[str, int]:
    """Processes that compute are killed under the study's feet: it starts others, and ends with the
    same bits."""
    bench.clear()
    process = bench.start("--workers", "2")
    for done in range(n):
        assert bench.wait_for_jobs(process, 2 * done + 1), process.communicate()[1]
        kill_one(process)
    assert process.wait(timeout=600) == 0, process.communicate()[1]
    process.communicate()
    bench.compare()
    return {"processes killed and replaced": n}


def kill_one(process: subprocess.Popen) -> None:
    """Kill a process that computes for this one, however fast they come and go."""
    while process.poll() is None:
        for worker in workers_of(process):
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(worker, signal.SIGKILL)
                return
    raise AssertionError(process.communicate()[1])


def workers_of(process: subprocess.Popen) -> list[int]:
    """The ids of the processes that compute for this one, by what Linux says."""
    children = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            command = status.with_name("cmdline").read_bytes()
            if parent == process.pid and b"popen_loky" in command:
                children.append(int(status.parent.name))
        except OSError:  # it has ended since
            continue
    return children


# ---- damage ----


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def flip_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    # Of safetensors, a bit of the data: one of its header may be of no consequence.
    content[rng.randrange(len(content) if path.suffix == ".nc" else 20) * -1 - 1] ^= (
        1 << rng.randrange(8)
    )
    path.write_bytes(content)


def make_foreign(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + rng.randbytes(2000))


def swap(path: Path, rng: random.Random) -> None:
    """Put another whole and sealed file in its place."""
    others = [other for other in sorted(path.parent.glob(f"*{path.suffix}")) if other != path]
    path.write_bytes(rng.choice(others).read_bytes())


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    swap,
    truncate,
    empty,
    flip_bit,
    make_foreign,
)


def damage(bench: Bench, *, seed: int = 0) -> dict[str, int]:
    """Damage job files, and then job files and finished studies: each is named, and what it held is
    computed again."""
    rng = random.Random(seed)
    damaged = 0
    bench.half_way()
    for finished in (False, True):
        victims = [*bench.studies(), *rng.sample(bench.jobs(), len(DAMAGES))]
        assert bool(bench.studies()) == finished
        before = {}
        for hurt, path in zip((*DAMAGES, *DAMAGES), victims, strict=False):
            hurt(path, rng)
            before[path] = path.read_bytes()
        done = bench.run()
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        for path, content in before.items():
            assert path.name in done.stderr, (path, done.stderr)
            if path.suffix == ".nc":
                kept = path.with_name(f"{path.name}.damaged")
                assert kept.name in done.stderr and kept.read_bytes() == content
                kept.unlink()
        bench.compare(killed=True)
        damaged += len(before)
    return {"files damaged, named and computed again": damaged}


# ---- signals, two at once, a full disk ----


def stop(bench: Bench) -> dict[str, int]:
    """Ctrl-C, which a terminal sends to all processes, and SIGTERM end the run at once, with a word
    on what is kept."""
    bench.clear()
    before = 0
    for number, send in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)):
        process = bench.start("--workers", "2")
        assert bench.wait_for_jobs(process, before + 3), process.communicate()[1]
        workers = workers_of(process)
        send(process.pid, number)
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number, stderr
        assert "Traceback" not in stderr and "the same command goes on from there" in stderr, stderr
        assert stderr.rstrip().endswith(f"stopped by {number.name}"), stderr
        after = len(bench.jobs())
        said = int(stderr.split("stopped with ")[1].split()[0])
        # the signal may come just after a file was written
        assert 0 < said <= after - before <= said + 1, stderr
        assert all_end(workers)
        before = after
    bench.check()
    return {"stopped by SIGINT and SIGTERM": 2}


def all_end(processes: list[int], seconds: float = 20) -> bool:
    """Whether all of these have ended before long."""
    until = time.monotonic() + seconds
    while any(Path(f"/proc/{each}").exists() for each in processes) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(Path(f"/proc/{each}").exists() for each in processes)


def start_two(bench: Bench) -> dict[str, int]:
    """Two scripts at once on one folder, whose jobs overlap: both end, and the files hold what both
    asked for."""
    bench.clear()
    alphas = (["0", "10", "30"], ["20", "30", "40"])
    processes = [bench.start("--alphas", *own) for own in alphas]
    for process in processes:
        done = finish(process)
        assert done.returncode == 0, done.stderr
    bench.compare()
    return {"scripts at once on one folder": len(processes)}


def fill_disk(bench: Bench) -> dict[str, int]:
    """Files that cannot grow beyond some size, as under a quota: one line, exit code 2, nothing
    lost or torn."""
    bench.clear()
    sizes = sorted(path.stat().st_size for path in bench.jobs(bench.undisturbed))
    # bytes: none fits, some do, all but the studies
    limits = (sizes[0] - 100, sizes[-1] - 100, sizes[-1] + 1000)
    for limit in limits:
        small_files = (
            f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
        )
        process = bench.run(first=small_files)
        assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
        assert "File too large" in process.stderr.splitlines()[-1], process.stderr
        assert not bench.half_written()
    bench.check()
    return {"writes that found no room": len(limits)}


def fill_small_disk(bench: Bench) -> dict[str, int]:
    """The same on a file system with room for half of the jobs, where one may be mounted."""
    bench.clear()
    bench.out.mkdir()
    half = sum(path.stat().st_size for path in bench.jobs(bench.undisturbed)) // 2
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={half}", "tmpfs", bench.out], capture_output=True
    )
    if mounted.returncode:
        return {"small file systems filled (none could be mounted)": 0}
    try:
        process = bench.run()
        assert process.returncode == 2 and "No space left" in process.stderr.splitlines()[-1], (
            process.stderr
        )
        assert "Traceback" not in process.stderr and not bench.half_written()
        subprocess.run(["mount", "-o", "remount,size=20m", bench.out], check=True)
        bench.check()
    finally:
        subprocess.run(["umount", bench.out], check=True)
    return {"small file systems filled": 1}


# ---- other data, other flags ----

OTHER_DATA = """
import datar
load = datar.load_xxz
datar.load_xxz = lambda **chosen: load(**(chosen | {"gauge": "random_sign"}))
"""


def ask_for_others(bench: Bench) -> dict[str, int]:
    """Results of other data are refused in one line; other flags have folders of their own. What is
    there stays."""
    bench.clear()
    bench.check()
    before = {path: path.read_bytes() for path in bench.out.rglob("*") if path.is_file()}
    refused = bench.run(first=OTHER_DATA)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "gauge fixed there and random_sign here" in refused.stderr, refused.stderr
    assert "choose another --out" in refused.stderr, refused.stderr
    others = {  # what is asked for, and the word for it in the folder's name
        "--seed 1 --stages noise_sweep --models mlp": "seed=1",
        "--gauge random_sign --stages noise_sweep --models mlp": "gauge=random_sign",
        "--hyper ga.forget=0.4 --methods ga --models mlp --stages "
        "unlearning": "hyper=ga.forget=0.4",
    }
    for flags, word in others.items():
        folders = set(bench.results.parent.iterdir())
        done = bench.run(*flags.split(), "--alphas", "0", "30")
        assert done.returncode == 0, done.stderr
        (new,) = set(bench.results.parent.iterdir()) - folders
        assert word in new.name or re.fullmatch(r"quick\+[0-9a-f]{12}", new.name), new.name
        shutil.rmtree(new)
    assert {path: path.read_bytes() for path in before} == before
    return {"other data refused": 1, "other flags with folders of their own": len(others)}


# ---- other conditions: MNIST at 10 qubits, compiled as the scripts compile ----

DIGITS = "--preset quick --stages noise_sweep unlearning --models mlp qnn quadratic".split()  # noqa: SIM905
FEW = (  # noqa: SIM905 - as one types them
    "--alphas 30 --poisons labels --methods retrain scrub --mlp.sweep.epochs 10 "
    "--mlp.teacher.epochs 10 --mlp.unlearn.epochs 5 --qnn.sweep.epochs 3 --qnn.teacher.epochs 3 "
    "--qnn.unlearn.epochs 2 --mlp.sweep.batch-size 256 --mlp.sweep.learning-rate 0.005 "
    "--qnn.sweep.batch-size 256 --qnn.teacher.batch-size 256 --qnn.unlearn.batch-size 256"
).split()


def run_digits(
    out: Path, home: Path, *, cores: int, workers: int, flags: list[str] = FEW, first: str = "",
    programs: Path | None = None,
) -> None:  # fmt: skip
    """The MNIST script on so many cores, with its cache in this home folder; `first` is what it
    does before; programs: see script_environment."""
    allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
    code = (
        f"{first}\nimport run_unlearn_mnist as script; script.report = lambda *_: None; "
        "script.main()"
    )
    command = [
        "taskset",
        "-c",
        allowed,
        sys.executable,
        "-c",
        code,
        *DIGITS,
        *flags,
        "--workers",
        workers,
        "--out",
        out,
    ]
    pipes = {"capture_output": True, "text": True, "timeout": 1800}
    environment = script_environment(home, programs)
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, **pipes)
    assert done.returncode == 0, done.stderr


# cores and workers; the first have a cold cache
CONDITIONS = [(1, 1), (2, 2), (2, 4), (1, 2), (1, 4), (2, 1)]


def vary_conditions(
    folder: Path, conditions: list[tuple[int, int]] = CONDITIONS, flags: list[str] = FEW
) -> dict:
    """The same bits in every file on one core and two, with 1, 2 and 4 workers, from a cold cache
    and a warm one."""
    conditions = [each for each in conditions if each[0] <= len(os.sched_getaffinity(0))]
    for place, (cores, workers) in enumerate(conditions):
        run_digits(
            folder / f"out{place}", folder / "home", cores=cores, workers=workers, flags=flags
        )
        assert_same_bits(contents(folder / f"out{place}"), contents(folder / "out0"))
    return {
        "studies of 10 qubits with the same bits, whatever the cores, workers and cache": len(
            conditions
        )
    }


def widen_pool(folder: Path) -> dict[str, int]:
    """In processes of two threads the numbers are others, so the study is large enough to see the
    pool."""
    if len(os.sched_getaffinity(0)) < 2:
        return {"numbers that a pool of two threads changes (one core only)": 0}
    two = 'from foundation.engine import jobs; jobs.BITS = jobs.BITS | {"PJRT_NPROC": "2"}'
    for name, first in (("one", ""), ("two", two)):
        run_digits(folder / name, folder / "home", cores=2, workers=1, first=first)
    one, other = contents(folder / "one"), contents(folder / "two")
    numbers = [(one[name], other[name]) for name in one if one[name].dtype.kind == "f"]
    changed = sum(int(np.sum((left != right) & ~np.isnan(left))) for left, right in numbers)
    assert one.keys() == other.keys() and changed > 100
    return {"numbers that a pool of two threads changes": changed}


def reference(out: Path) -> xr.Dataset:
    """What of the MNIST study is compared with tests/reference.nc: where its trainings ended, and
    some logits."""
    sweep, curves = (
        storage.read_dataset(next((out / "mnist").glob(f"*/{study}.nc")))
        for study in ("noise_sweep", "unlearning")
    )
    last = curves.epoch.where(curves.accuracy.notnull()).max("epoch").astype(int)
    ends = curves[["accuracy", "loss"]].sel(epoch=last).drop_vars("epoch")
    swept = (
        sweep[["accuracy", "loss"]]
        .sel(alpha_percent=30)
        .rename(accuracy="swept_accuracy", loss="swept_loss")
    )
    logits = curves.logit.isel(sample=slice(0, None, 100)).astype(np.float32).drop_vars("part")
    kept = xr.merge([ends, swept, logits], compat="override").reset_coords(drop=True).drop_attrs()
    attributes = {
        "numerics": keys.NUMERICS,
        "processor": processor(),
        "versions": storage.versions(),
    }
    return kept.assign_attrs(attributes)


def processor() -> str:
    """What of the machine may matter to bits: its processor's model and all that it can do."""
    text = (
        Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else storage.machine()
    )
    told = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in text.splitlines())
    }
    names = ("vendor_id", "cpu family", "model", "model name", "flags")
    digest = hashlib.sha256("".join(told.get(name, "") for name in names).encode()).hexdigest()
    return f"{storage.machine().partition(', ')[0]} {digest[:12]}"


def try_bad_input() -> dict[str, int]:
    """Every case of test_bad_input.py, and hypothesis' own."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_bad_input.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    return {
        "tests of bad input (tests/test_bad_input.py), each refused in one line": int(passed[1])
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how often to kill the run")
    parser.add_argument(
        "--reference",
        type=Path,
        help="write the numbers there that the suite compares with, and end",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the instants and of the damage")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.reference:
            run_digits(folder / "out", folder / "home", cores=1, workers=1)
            storage.write_dataset(arguments.reference, reference(folder / "out"))
            return 0
        (folder / "bench").mkdir()
        bench = Bench(folder / "bench")
        for fault in (stop, start_two, fill_disk, fill_small_disk, ask_for_others, kill_worker):
            report(fault(bench))
        report(damage(bench, seed=arguments.seed))
        report(kill(bench, arguments.kills, seed=arguments.seed))
        report(vary_conditions(folder / "conditions", flags=[]))
        report(widen_pool(folder / "conditions"))
    report(try_bad_input())
    print("nothing lost, no wrong number")
    return 0


def report(figures: dict[str, int]) -> None:
    for name, value in figures.items():
        print(f"{name}: {value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

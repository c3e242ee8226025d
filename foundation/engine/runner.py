"""What all main scripts share: flags, one-line errors, signals, and the run from a configuration to
its study files."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import cloudpickle
import jax
import tyro
from jax.errors import JaxRuntimeError
from tqdm import tqdm

from foundation.base import storage
from foundation.base.checks import BadInput, Checked, first_line, plain, refusing, require
from foundation.engine import keys
from foundation.engine.jobs import (
    Deadly,
    Executor,
    Finished,
    Job,
    Local,
    Store,
    one_thread,
    with_needs,
)
from foundation.engine.study import Flags, Study, by_name
from foundation.engine.study_files import StudyFile, describe_plan, is_listed, locked

if TYPE_CHECKING:
    from datar import Dataset


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what is wrong with input, results folder, disk or memory into one line on stderr and
    exit code 2."""
    try:
        yield
    except (BadInput, storage.Damaged, OSError, Deadly, MemoryError, JaxRuntimeError) as error:
        message = " ".join(str(error).split())
        for kind, words in (
            (MemoryError, "out of memory"),
            (JaxRuntimeError, "the computation failed"),
        ):
            message = f"{words} ({message[:300]})" if isinstance(error, kind) else message
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def stoppable() -> Iterator[None]:
    """End the process with exit code 128 + signal when Ctrl-C or SIGTERM stops the block."""

    def stop(number, frame):
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as stopped:
        print(f"stopped by {signal.Signals(stopped.args[0]).name}", file=sys.stderr)
        sys.exit(128 + stopped.args[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


Percent = Annotated[int, tyro.conf.arg(metavar="PERCENT")]


@dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """What to run: the flags that all main scripts have."""

    preset: Literal["paper", "corrected", "quick"] = "paper"
    """Which set of defaults the other flags start from: paper is what the published code did,
    corrected the same with its flaws mended, quick a small corrected one of a few minutes."""
    stages: tuple[str, ...]
    """Studies to run."""
    models: tuple[str, ...]
    """Families of models."""
    runs: int = 5
    """Repetitions, each with its own seed."""
    seed: int = 0
    """Root of all random numbers."""
    out: Path = Path("results")
    """Folder for results and figures: OUT/DATASET/PRESET/."""
    plan: bool = False
    """Say what is there, what is missing and how many core-minutes it will take, and compute
    nothing."""
    data: Path | None = None
    """The .npz to read the data from, instead of the default source."""
    workers: int = 0
    """Processes of one thread; a matter of speed and memory, the bits are the same. 0: one a core,
    or one a GPU."""
    cluster: str | None = None
    """Compute elsewhere: address of a Dask scheduler (tcp://host:8786), its scheduler file, or
    slurm, pbs or lsf, which is asked for --workers processes."""
    alphas: tuple[Percent, ...]
    """Poisoned shares, in percent."""
    block: int = 5
    """Runs that one job computes, side by side on an accelerator: wide blocks fill one. Part of the
    results' names."""
    study: tuple[Path, ...] = ()
    """Python files of your own, each with studies (see the guide), which join the stages, flags and
    figures."""
    optimization_level: tyro.conf.Suppress[int] = 3
    """XLA's: at 1, programs that compile for longer than they run are done sooner."""

    AXES: ClassVar[tuple[str, ...]] = (
        "preset",
        "stages",
        "models",
        "runs",
        "out",
        "plan",
        "data",
        "workers",
        "cluster",
        "alphas",
        "study",
    )
    """Fields that do not name the results folder: axes of the files, and what changes no number."""
    presets: ClassVar[dict[str, Settings]] = {}
    """The presets by name, to which a configuration is compared for the name of its folder."""
    known_stages: ClassVar[tuple[str, ...]] = ()
    """The names of the studies whose flags it has."""

    def blocks(self, runs: int | None = None) -> range:
        """The blocks that hold the first `runs` runs, all that are asked for by default."""
        return range(-(-(self.runs if runs is None else runs) // self.block))

    def shown(self, block: range, runs: int | None = None) -> range:
        """Those runs of a block that are shown."""
        return range(block.start, min(block.stop, self.runs if runs is None else runs))

    def __post_init__(self):
        """Values as they are stored: Python's own numbers, tuples and paths, whatever a notebook
        gives."""
        for each in fields(self):
            value = plain(getattr(self, each.name))
            is_path = isinstance(value, str) and each.name in ("out", "data")
            object.__setattr__(self, each.name, Path(value) if is_path else value)
        super().__post_init__()
        with refusing.get()():
            self.check_groups()

    def check(self):
        for name, least, most in (("workers", 0, 64), ("runs", 1, 10**6), ("seed", 0, 2**32 - 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(
                whole and least <= value <= most,
                flag_name(name),
                value,
                f"whole numbers, {least} to {most}",
            )
        longest = max((len(os.fsencode(part)) for part in self.out.parts), default=0)
        require(longest < 256, "--out", f"a name of {longest} bytes", "names of up to 255 bytes")
        self.check_lists("stages", "models", "alphas")
        self.check_percents("alphas")

    def check_groups(self):
        """Have each study's flags checked; what is wrong is said by the whole name of the flag."""
        for each in fields(self):
            if isinstance(group := getattr(self, each.name), Flags):
                try:
                    group.check(self)
                except BadInput as error:
                    name, _, rest = str(error).partition(": ")
                    raise BadInput(
                        f"{flag_name(each.name)}.{name.replace('_', '-')}: {rest}"
                    ) from None

    def check_lists(self, *names: str):
        for name in names:
            require_list(flag_name(name), getattr(self, name))

    def check_names(self, name: str, known: Iterable[str]):
        """Refuse all names of a flag but those that are known."""
        for word in getattr(self, name):
            require(word in known, flag_name(name), word, ", ".join(known))

    def check_percents(self, *names: str):
        for name in names:
            value = getattr(self, name)
            for alpha in value if isinstance(value, tuple) else (value,):
                whole = isinstance(alpha, int) and not isinstance(alpha, bool)
                require(
                    whole and 0 <= alpha < 100,
                    flag_name(name),
                    alpha,
                    "whole percents, 0 to 99 (not shares: 30, not 0.3)",
                )


def require_list(argument: str, values: Any) -> None:
    """Refuse all but tuples of one or more different values."""
    require(isinstance(values, tuple), argument, repr(values), "a tuple or list of values")
    require(len(values) > 0, argument, "nothing", "at least one value")
    require(
        len(set(values)) == len(values), argument, " ".join(map(str, values)), "each value once"
    )


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


C = TypeVar("C", bound=Settings)


def config_class(name: str, base: type[C], studies: Sequence[Study], *, module: str) -> type[C]:
    """A subclass of a configuration with the flags of studies, nested (--capacity.runs), and their
    names as stages.

    Raises TypeError where two studies have one name, or one group of different flags, or a group is
    a flag of `base`.
    """
    names = [study.name for study in studies]
    groups = {study.prefix: study.flags for study in studies if study.flags}
    shared = [
        study.prefix for study in studies if study.flags and study.flags != groups[study.prefix]
    ]
    held = {each.name: each.default for each in fields(base)}
    taken = {
        prefix
        for prefix, flags in groups.items()
        if prefix in held and type(held[prefix]) is not type(flags)
    }
    twice = {name for name in names if names.count(name) > 1}
    if taken or twice or shared:
        raise TypeError(
            f"studies: {', '.join(sorted({*taken, *twice, *shared}))}: names that are there already"
        )
    new = [
        (prefix, type(flags), field(default=flags))
        for prefix, flags in groups.items()
        if prefix not in held
    ]
    questions = "; ".join(f"{study.name}: {study.question}" for study in studies)
    help_text = f"Studies to run. {questions}."
    stages = (
        "stages",
        Annotated[tuple[Literal[tuple(names)], ...], tyro.conf.arg(help=help_text)],
        held["stages"],
    )
    return make_dataclass(name, [stages, *new], bases=(base,), frozen=True, kw_only=True,
                          namespace={"__module__": module, "__doc__": base.__doc__,
                                     "known_stages": tuple(names)})  # fmt: skip


def preset_values(
    config: Settings, studies: Iterable[Study], preset: Literal["corrected", "quick"]
) -> dict[str, Flags]:
    """The groups of flags of a configuration, with the values that studies have in the presets
    corrected or quick."""
    groups: dict[str, Flags] = {}
    for study in studies:
        values = getattr(study, preset)
        if study.flags and values:
            groups[study.prefix] = replace(
                groups.get(study.prefix, getattr(config, study.prefix)), **values
            )
    return groups


def with_studies(config: C, studies: Sequence[Study]) -> C:
    """The configuration, and its presets, with the flags of further studies at the values of their
    presets."""
    if {study.name for study in studies} <= set(config.known_stages):
        return config
    present = {each.name for each in fields(config)}
    wide = config_class(
        type(config).__name__, type(config), studies, module=type(config).__module__
    )

    def widened(narrow: Settings) -> Settings:
        values = wide(**{each.name: getattr(narrow, each.name) for each in fields(narrow)})
        new = [study for study in studies if study.flags and study.prefix not in present]
        for preset in {"corrected": ("corrected",), "quick": ("corrected", "quick")}.get(
            narrow.preset, ()
        ):
            values = replace(values, **preset_values(values, new, preset))
        return values

    wide.presets = {name: widened(preset) for name, preset in config.presets.items()}
    return widened(config)


def studies_of_file(path: Path) -> list[Study]:
    """The studies that a user's Python file defines, in its order.

    The file becomes a module that is pickled by value: the processes that compute need not find it.
    Raises BadInput where there is no such file, it cannot be run, it defines no study, or its name
    is that of another module.
    """
    allowed = "a Python file that defines a Study"
    require(path.suffix == ".py" and path.is_file(), "--study", path, allowed)
    name = path.stem
    known = sys.modules.get(name)
    if known is None or getattr(known, "__file__", None) != str(path.resolve()):
        require(
            known is None and not importlib.util.find_spec(name),
            "--study",
            path,
            "a name that no module has",
        )
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        known = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(known)
        except Exception as error:
            del sys.modules[name]
            raise BadInput(
                f"--study: {path} cannot be run ({type(error).__name__}: {first_line(error)})"
            ) from error
        cloudpickle.register_pickle_by_value(known)
    studies = [value for value in vars(known).values() if isinstance(value, Study)]
    require(bool(studies), "--study", path, allowed)
    return studies


def parse_command_line(
    presets: dict[str, C], studies: Sequence[Study], description: str
) -> tuple[C, tuple[Study, ...]]:
    """The configuration from the command line, and the studies: the script's own, and those of
    --study.

    The flags stand over the defaults of the preset that is named.
    """
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default="paper")
    chooser.add_argument("--study", nargs="*", type=Path, default=[])
    given, _ = chooser.parse_known_args()
    default = presets.get(given.preset, presets["paper"])  # tyro refuses unknown names
    with one_line_errors():
        studies = (*studies, *(study for path in given.study for study in studies_of_file(path)))
        names = [study.name for study in studies]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "--study", ", ".join(twice), "studies of names that no other has")
        try:
            default = with_studies(default, studies)
        except TypeError as error:
            raise BadInput(f"--study: {error}") from None
    before = refusing.set(_by_its_flag)
    try:
        with _one_line_refusals():
            return tyro.cli(type(default), default=default, description=description), studies
    finally:
        refusing.reset(before)


@contextmanager
def _by_its_flag() -> Iterator[None]:
    """A refusal of a nested value names the flag that was written, --mlp.sweep.learning-rate, and
    ends the process."""
    with one_line_errors():
        try:
            yield
        except BadInput as error:
            name, _, rest = str(error).partition(": ")
            written = [
                word.partition("=")[0]
                for word in sys.argv
                if word.partition("=")[0].endswith(f".{name}")
            ]
            raise BadInput(f"{written[0]}: {rest}" if len(written) == 1 else str(error)) from None


@contextmanager
def _one_line_refusals() -> Iterator[None]:
    """What tyro says of a command line that it cannot read, in one line in place of a box."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except SystemExit as end:
        words = " ".join(re.sub(r"[─-╿]", " ", said.getvalue()).split())
        words = re.sub(r" For full helptext.*", "; see --help", words)
        parsing = re.search(
            r"Error parsing (--\S+): (.*?) Argument helptext: \S+ (\[.*?\]\]|\{.*?\}|\S+)+ (.*)",
            words,
        )
        if parsing:
            got = " ".join(re.findall(r"'([^']*)'", parsing[2])) or parsing[2]
            words = f"{parsing[1]}: got {got}, allowed: {parsing[3]}: {parsing[4]}"
        words = re.sub(
            r"^(Unrecognized options|Invalid choice|Missing \S+|Parsing error) ", "", words
        )
        if end.code and words:
            print(words if words.startswith("error: ") else f"error: {words}", file=sys.stderr)
        raise
    print(said.getvalue(), end="", file=sys.stderr)


def run_studies(
    config: Settings,
    dataset: Dataset,
    studies: Iterable[Study],
    *,
    under: str | None = None,
    data_word: str = "",
) -> Path | None:
    """Run the configuration's stages on a data set; returns the folder with the results,
    OUT/DATASET/FOLDER.

    studies: those that the stages name, and maybe others; the configuration gets the flags that it
    lacks. under: what stands for DATASET. data_word: word on the data that joins FOLDER, "" for the
    preset's own. With --plan it prints what is missing and returns None. Raises BadInput where the
    folder holds results of other data.
    """
    folder = config.out / (under or dataset.name) / folder_name(config, data_word)
    store, studies = Store(config.out / "jobs"), tuple(studies)
    config, known = with_studies(config, studies), by_name(studies)
    asked = [known[stage] for stage in config.stages]
    others = [study.data(config, dataset).values() for study in asked if study.data]
    datasets = {each.provenance["sha256"]: each for each in (dataset, *chain(*others))}
    with _numerics(config.optimization_level):
        rows = [row for study in asked for row in study.plan(config, dataset)]
        words = "stages that have something to compute"
        require(len(rows) > 0, "--stages", " ".join(config.stages), words)
        rows = list({(row.study, row.address): row for row in rows}.values())
        names = dict.fromkeys(row.study for row in rows)
        files = {name: StudyFile(folder / f"{name}.nc", dataset.provenance) for name in names}
        listings = {name: file.listing() for name, file in files.items()}
        new = [row for row in rows if not is_listed(row, listings[row.study])]
        missing = with_needs([row.job for row in new], store.has)
        if config.plan:
            print("\n".join(describe_plan(rows, missing, store, listings.values())))
            return None
        _require_writable(folder, store)
        unstored = compute(missing, datasets, store, workers=config.workers, cluster=config.cluster)
        for name in dict.fromkeys(row.study for row in new):
            of_file = [row for row in new if row.study == name]
            # Read one after the other: they may fill gigabytes.
            arrays = ((row, *(unstored.get(row.job) or store.load(row.job))) for row in of_file)
            files[name].add(arrays, _words_of(config))
    return folder


def _require_writable(folder: Path, store: Store) -> None:
    """Find out before anything is computed whether results can be written, and by this process."""
    # Kept: the commit of the code that runs, not of what the tree holds when a job ends.
    storage.git_commit()
    for each in (writable_folder(folder), store.folder):
        storage.sweep(each)
    with locked(folder / "results.nc"):
        pass


def _words_of(config: Settings) -> dict[str, Any]:
    """The configuration as study files keep it: without paths of this machine."""
    words = asdict(config) | {"data": config.data.name if config.data else None}
    left_out = ("out", "workers", "cluster", "plan", "study")
    return {name: value for name, value in words.items() if name not in left_out}


@contextmanager
def _numerics(level: int) -> Iterator[None]:
    """What changes bits, where the keys of jobs and the processes that compute read it: XLA's
    flags, JAX's precision.

    An accelerator multiplies in full precision and adds up in one order, at whatever cost, unless
    the user says other.
    """
    flags, precise = (
        os.environ.get("XLA_FLAGS"),
        jax.config.jax_default_matmul_precision is not None,
    )
    own = {"--xla_backend_optimization_level": level} if level != 3 else {}
    if level == 0:
        own["--xla_cpu_use_fusion_emitters"] = (
            "false"  # what is compiled for a moment's work is so in half the time
        )
    if keys.backend() != "cpu":
        own["--xla_gpu_deterministic_ops"] = "true"
        if not precise:
            jax.config.update("jax_default_matmul_precision", "highest")
    added = [f"{name}={value}" for name, value in own.items() if name not in (flags or "")]
    if added:
        os.environ["XLA_FLAGS"] = " ".join(filter(None, [flags, *added]))
    try:
        yield
    finally:
        if not precise:
            jax.config.update("jax_default_matmul_precision", None)
        os.environ.pop("XLA_FLAGS", None)
        os.environ.update({} if flags is None else {"XLA_FLAGS": flags})


def compute_here(*, optimization_level: int = 3) -> None:
    """Let this process compute as those of a study do: one thread, their flags, compiled programs
    kept.

    To be called before JAX computes anything: its backend reads the flags as it starts.
    """
    with _numerics(optimization_level):
        environment = one_thread()
    os.environ.update(environment)
    jax.config.update("jax_platforms", environment["JAX_PLATFORMS"])
    jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
    for name in (
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ):
        jax.config.update(name, 0)


def folder_name(config: Settings, data_word: str = "") -> str:
    """The preset, and each flag that changes numbers, is no axis of the files and differs from it:
    paper+seed=1."""
    own, usual = (
        dict(_leaves(each)) for each in (config, config.presets.get(config.preset, config))
    )
    words = [f"{name}={value}" for name, value in own.items() if value != usual.get(name)]
    name = "+".join([config.preset, *words, *([f"data={data_word}"] if data_word else [])])
    return (
        name
        if len(name) <= 150
        else f"{config.preset}+{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    )


def _leaves(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a configuration's fields that are no axes."""
    axes = getattr(config, "AXES", ())
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{path}{each.name}.")
        elif each.name not in axes:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            yield f"{path}{each.name}", re.sub(r"[^\w.,=-]+", "-", text)


def compute(
    jobs: list[Job],
    datasets: dict[str, Dataset],
    store: Store,
    *,
    workers: int,
    cluster: str | None = None,
) -> dict[Job, tuple]:
    """Compute jobs side by side and store each as it ends; returns arrays and records of those that
    have no key.

    Stopped by a signal or an error, it says what is kept: all that is done. What is still being
    computed is given up.
    """
    if not jobs:
        return {}
    unstored: dict[Job, tuple] = {}
    kept: list[Job] = []

    def keep(done: Finished) -> None:
        if done.record["key"]:
            store.save(*done)
        else:
            unstored[done.job] = (done.arrays, done.record)
        kept.append(done.job)

    counts = any(job.trainings for job in jobs)
    unit, steps = ("training", lambda job: job.trainings) if counts else ("job", lambda job: 1)
    gap = 0.5 if sys.stderr.isatty() else 30  # seconds between updates: a log file is not a screen
    executor = _executor(cluster, workers)(jobs, datasets, store)
    try:
        with tqdm(total=sum(map(steps, jobs)), unit=unit, mininterval=gap, maxinterval=gap) as bar:
            for done in executor.compute():
                keep(done)
                bar.set_description(done.job.title, refresh=False)
                bar.update(steps(done.job))
    except BaseException as reason:
        with suppress(OSError):
            for done in executor.leftovers():
                keep(done)
        way_on = (
            "; the same command goes on from there"
            if isinstance(reason, (KeyboardInterrupt, OSError))
            else ""
        )
        print(
            f"stopped with {len(kept)} of {len(jobs)} jobs computed, all of them kept in "
            f"{store.folder}{way_on}",
            file=sys.stderr,
        )
        raise
    finally:
        executor.end()
    return unstored


def _executor(cluster: str | None, workers: int) -> Callable[..., Executor]:
    """Who computes: this machine's processes, or a cluster's."""
    if cluster is None:
        return partial(Local, workers=workers)
    try:
        from foundation.engine.cluster import Cluster
    except ImportError as error:
        way = "pip install -r requirements/cluster.txt -c constraints.txt"
        raise BadInput(
            f"--cluster: got {cluster}, allowed: nothing before {way} ({first_line(error)})"
        ) from None
    return partial(Cluster, where=cluster, workers=workers)


def writable_folder(folder: Path) -> Path:
    """Make the folder; BadInput in one line where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise BadInput(f"--out: cannot write to {folder} ({error.strerror})") from None

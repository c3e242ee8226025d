"""What all main scripts share: flags, one-line errors, signals, and the run from a configuration to
its study files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import jax
import tyro
from jax.errors import JaxRuntimeError
from tqdm import tqdm

from foundation.base import storage
from foundation.base.checks import BadInput, Checked, first_line, plain, refusing, require
from foundation.engine import keys
from foundation.engine.folders import folder_name, writable_folder
from foundation.engine.jobs import (
    Arrays,
    Deadly,
    Executor,
    Finished,
    Job,
    Local,
    Store,
    job_fields,
    one_thread,
    with_needs,
)
from foundation.engine.programs import use_checked_programs
from foundation.engine.sources import NoSource
from foundation.engine.study import Flags, Study, by_name
from foundation.engine.study_files import (
    Row,
    RowWithArrays,
    StudyFile,
    describe_plan,
    differences,
    is_listed,
    locked,
    of_run,
)

if TYPE_CHECKING:
    from datar import Dataset


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on stderr and exit code 2 for bad input, a damaged results
    folder, a full disk or a lack of memory."""
    try:
        yield
    except (BadInput, storage.Damaged, OSError, Deadly, MemoryError, JaxRuntimeError) as error:
        message = " ".join(str(error).split())
        if isinstance(error, MemoryError):
            message = f"out of memory ({message[:300]})"
        if isinstance(error, JaxRuntimeError):
            message = f"the computation failed ({message[:300]})"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def stoppable() -> Iterator[None]:
    """End the process with exit code 128 + signal when Ctrl-C or SIGTERM stops the block."""

    def stop(number, frame):
        raise KeyboardInterrupt(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except KeyboardInterrupt as stopped:
        received = signal.Signals(stopped.args[0])
        print(f"stopped by {received.name}", file=sys.stderr)
        sys.exit(128 + received)
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
    again: bool = False
    """Compute all that is asked anew, from a clean commit, and say which numbers differ from those
    that were there."""
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
        "again",
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
        runs_asked = self.runs if runs is None else runs
        count = -(-runs_asked // self.block)  # rounded up
        return range(count)

    def shown(self, block: range, runs: int | None = None) -> range:
        """Those runs of a block that are shown."""
        runs_asked = self.runs if runs is None else runs
        return range(block.start, min(block.stop, runs_asked))

    def __post_init__(self):
        """Convert NumPy numbers, lists and strings from a notebook to the types that are stored."""
        for item in fields(self):
            value = plain(getattr(self, item.name))
            is_path = isinstance(value, str) and item.name in ("out", "data")
            object.__setattr__(self, item.name, Path(value) if is_path else value)
        super().__post_init__()
        with refusing.get()():
            self.check_groups()

    def check(self):
        """Refuse flags out of their limits, and lists that are empty or repeat a value."""
        limits = {
            "workers": (0, 64),
            "runs": (1, 10**6),
            "seed": (0, 2**32 - 1),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            is_allowed = is_whole and least <= value <= most
            require(is_allowed, flag_name(name), value, f"whole numbers, {least} to {most}")
        lengths = [len(os.fsencode(part)) for part in self.out.parts]
        longest = max(lengths, default=0)
        require(longest < 256, "--out", f"a name of {longest} bytes", "names of up to 255 bytes")
        self.check_lists("stages", "models", "alphas")
        self.check_percents("alphas")

    def check_groups(self):
        """Check the flags of each study; BadInput names a flag in full, as --capacity.runs."""
        for item in fields(self):
            group = getattr(self, item.name)
            if not isinstance(group, Flags):
                continue
            try:
                group.check(self)
            except BadInput as error:
                name, _, rest = str(error).partition(": ")
                flag = f"{flag_name(item.name)}.{name.replace('_', '-')}"
                raise BadInput(f"{flag}: {rest}") from None

    def check_lists(self, *names: str):
        """Refuse lists that are empty or name a value twice."""
        for name in names:
            require_list(flag_name(name), getattr(self, name))

    def check_names(self, name: str, known: Iterable[str]):
        """Refuse values of a flag that are not among the known ones."""
        require_names(flag_name(name), getattr(self, name), known)

    def check_percents(self, *names: str):
        """Refuse flags that hold anything but whole percents."""
        for name in names:
            value = getattr(self, name)
            alphas = value if isinstance(value, tuple) else (value,)
            for alpha in alphas:
                require_percent(flag_name(name), alpha)


def require_list(argument: str, values: Any) -> None:
    """Refuse all but tuples of one or more different values."""
    require(isinstance(values, tuple), argument, repr(values), "a tuple or list of values")
    require(len(values) > 0, argument, "nothing", "at least one value")
    is_once = len(set(values)) == len(values)
    require(is_once, argument, " ".join(map(str, values)), "each value once")


def require_names(argument: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not among the known ones."""
    for name in names:
        require(name in known, argument, name, ", ".join(known))


def require_percent(argument: str, value: Any) -> None:
    """Refuse all but whole percents from 0 to 99."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    allowed = "whole percents, 0 to 99 (not shares: 30, not 0.3)"
    require(is_whole and 0 <= value < 100, argument, value, allowed)


def flag_name(name: str) -> str:
    """Return the flag of a field, as it is written on the command line."""
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
    defaults = {item.name: item.default for item in fields(base)}
    taken = {name for name in names if names.count(name) > 1}
    for study in studies:
        if study.flags and study.flags != groups[study.prefix]:
            taken.add(study.prefix)  # two studies share a group, but not its values
    new = []
    for prefix, flags in groups.items():
        if prefix not in defaults:
            new.append((prefix, type(flags), field(default=flags)))
        elif type(defaults[prefix]) is not type(flags):
            taken.add(prefix)
    if taken:
        raise TypeError(f"studies: {', '.join(sorted(taken))}: names that are there already")
    questions = [f"{study.name}: {study.question}" for study in studies]
    help_text = f"Studies to run. {'; '.join(questions)}."
    type_of_stage = Literal[tuple(names)]
    type_of_stages = Annotated[tuple[type_of_stage, ...], tyro.conf.arg(help=help_text)]
    stages = ("stages", type_of_stages, defaults["stages"])
    namespace = {"__doc__": base.__doc__, "known_stages": tuple(names)}
    made = make_dataclass(
        name, [stages, *new], bases=(base,), frozen=True, kw_only=True, namespace=namespace
    )
    made.__module__ = module  # afterwards: from Python 3.12 on make_dataclass sets its caller's
    return made


def preset_values(
    config: Settings, studies: Iterable[Study], preset: Literal["corrected", "quick"]
) -> dict[str, Flags]:
    """The flags of studies, by group, with the studies' values for a preset.

    A group of flags that no study changes for this preset is left out.
    """
    groups: dict[str, Flags] = {}
    for study in studies:
        values = getattr(study, preset)
        if study.flags and values:
            flags = groups.get(study.prefix, getattr(config, study.prefix))
            groups[study.prefix] = replace(flags, **values)
    return groups


def with_studies(config: C, studies: Sequence[Study]) -> C:
    """Add the flags of further studies to a configuration and its presets.

    A preset has the values that the studies give for it. A configuration that knows all of the
    studies is returned as it is.
    """
    if {study.name for study in studies} <= set(config.known_stages):
        return config
    present = {item.name for item in fields(config)}
    with_flags = [study for study in studies if study.flags]
    new = [study for study in with_flags if study.prefix not in present]
    narrow = type(config)
    wide = config_class(narrow.__name__, narrow, studies, module=narrow.__module__)

    def widened(old: Settings) -> Settings:
        values = {item.name: getattr(old, item.name) for item in fields(old)}
        added = wide(**values)
        for preset in VALUES_OF_PRESETS.get(old.preset, ()):
            added = replace(added, **preset_values(added, new, preset))
        return added

    wide.presets = {name: widened(preset) for name, preset in config.presets.items()}
    return widened(config)


VALUES_OF_PRESETS = {"corrected": ("corrected",), "quick": ("corrected", "quick")}


def run_studies(
    config: Settings,
    dataset: Dataset,
    studies: Iterable[Study],
    *,
    under: str | None = None,
    data_word: str = "",
) -> Path | None:
    """Run the stages of a configuration on a data set, into the folder OUT/DATASET/FOLDER.

    Returns the folder; with --plan it prints what is missing and returns None. studies: all that
    the stages name, and maybe others; flags that the configuration lacks are added. under: stands
    for DATASET. data_word: names the data in FOLDER, "" for the preset's own data. Raises BadInput
    where the folder holds results of other data.
    """
    if config.again:
        _require_clean_commit()
    dataset = dataset.identified()
    folder_of_data = config.out / (under or dataset.name)
    folder = folder_of_data / folder_name(config, data_word)
    store = Store(config.out / "jobs")
    studies = tuple(studies)
    config = with_studies(config, studies)
    known = by_name(studies)
    require_names("--stages", config.stages, known)
    asked = [known[stage] for stage in config.stages]
    datasets = _datasets_of(asked, config, dataset)
    with _numerics(config.optimization_level), keys.remembering():
        rows = _rows_of(asked, config, dataset)
        names = dict.fromkeys(row.study for row in rows)
        files = {name: StudyFile(folder / f"{name}.nc", dataset.provenance) for name in names}
        listings = {name: file.listing() for name, file in files.items()}
        new = rows
        if not config.again:
            new = [row for row in rows if not is_listed(row, listings[row.study])]
        rows_of_files = {}
        for name, file in files.items():
            rows_of_files[name] = [row for row in new if row.study == name]
            file.require_one_kind(listings[name], rows_of_files[name])
        has = _has_none if config.again else store.has
        missing = with_needs([row.job for row in new], has)
        _require_data(missing, datasets)
        if config.plan:
            print("\n".join(describe_plan(rows, missing, store, listings.values())))
            return None
        _require_writable(folder, store)
        _say_what_is_not_stored(missing)
        unstored = compute(missing, datasets, store, workers=config.workers, cluster=config.cluster)
        for name, rows_of_file in rows_of_files.items():
            if rows_of_file:
                rows_with_arrays = _with_arrays(rows_of_file, unstored, store)
                _add(files[name], rows_with_arrays, config)
    return folder


def arrays_of_run(
    config: Settings,
    dataset: Dataset,
    studies: Iterable[Study],
    stage: str,
    *,
    run: int,
    place: dict[str, Any],
) -> tuple[Job, Arrays]:
    """Return the job of one run of a stage, and the run's arrays.

    What OUT/jobs lacks is computed and kept there; study files stay as they are. place: labels that
    single out a row of the stage. Raises BadInput where no row or several have them.
    """
    studies = tuple(studies)
    known = by_name(studies)
    require_names("stage", [stage], known)
    config = with_studies(replace(config, stages=(stage,)), studies)
    dataset = dataset.identified()
    datasets = _datasets_of([known[stage]], config, dataset)
    store = Store(config.out / "jobs")
    with _numerics(config.optimization_level), keys.remembering():
        row = _row_at(_rows_of([known[stage]], config, dataset), run, place)
        missing = with_needs([row.job], store.has)
        _require_data(missing, datasets)
        _require_writable(store.folder, store)
        unstored = compute(missing, datasets, store, workers=config.workers, cluster=config.cluster)
        ((_, arrays, _),) = _with_arrays([row], unstored, store)
    return row.job, of_run(arrays, run - row.job.runs[0])


def _row_at(rows: list[Row], run: int, place: dict[str, Any]) -> Row:
    """Return the one row that has these labels and shows this run."""
    at_place = [row for row in rows if place.items() <= row.place.items()]
    found = [row for row in at_place if row.runs is not None and run in row.runs]
    if len(found) == 1:
        return found[0]
    labels = ", ".join(f"{axis}={label!r}" for axis, label in place.items())
    nearest = found or at_place or rows
    examples = ", or ".join(f"run {_runs_text(row)} of {row.place}" for row in nearest[:3])
    got = f"run {run} of {labels or 'no labels'} ({len(found)} rows)"
    require(False, "place", got, f"labels of one row, such as {examples}")


def _runs_text(row: Row) -> str:
    return "none" if row.runs is None else f"{row.runs[0]} to {row.runs[-1]}"


def _has_none(job: Job) -> bool:
    return False


def _add(file: StudyFile, rows: Iterator[RowWithArrays], config: Settings) -> None:
    """Add rows to a file; with --again, say on stdout which numbers differ from those there."""
    before = file.read() if config.again else None
    file.add(rows, _as_stored(config))
    if config.again:
        print(f"{file.path}: {differences(before, file.read())}")


def _require_clean_commit() -> None:
    """Refuse to compute anew with code that no commit holds."""
    commit = storage.git_commit()
    is_clean = commit != "unknown" and not commit.endswith("+dirty")
    require(is_clean, "--again", f"the commit {commit}", "a commit without changes")


def _require_data(jobs: list[Job], datasets: dict[str, Dataset]) -> None:
    """Refuse jobs of data that the study does not hold."""
    for job in jobs:
        allowed = f"{', '.join(datasets)}, those of the data set and of the study's further data"
        require(job.data in datasets, f"data of the job {job.title}", job.data, allowed)


def _say_what_is_not_stored(jobs: list[Job]) -> None:
    """Name on stderr what is in jobs that have no key, one line for each reason."""
    reasons: dict[str, str] = {}
    for job in jobs:
        try:
            keys.with_process(job_fields(job))
        except NoSource as error:
            reasons.setdefault(str(error), job.title)
    for reason, title in reasons.items():
        print(f"note: {title} is computed and not stored: {reason}", file=sys.stderr)


def _rows_of(studies: Sequence[Study], config: Settings, dataset: Dataset) -> list[Row]:
    """Plan the studies, each row once; BadInput where one place is given to two different jobs.

    So is a study of two classes on data of more.
    """
    of_two = [study.name for study in studies if study.two_classes]
    got = f"{', '.join(of_two)} on {dataset.n_classes} classes"
    allowed = "data of two classes, for these stages"
    require(dataset.n_classes == 2 or not of_two, "--stages", got, allowed)
    rows = [row for study in studies for row in study.plan(config, dataset)]
    allowed = "stages that have something to compute"
    require(len(rows) > 0, "--stages", " ".join(config.stages), allowed)
    by_address: dict[tuple[str, str], Row] = {}
    for row in rows:
        former = by_address.setdefault((row.study, row.address), row)
        if former.job != row.job:
            labels = ", ".join(f"{axis} {label}" for axis, label in row.place.items())
            allowed = "models, methods and data of different labels"
            require(False, f"stage {row.study}", f"two jobs for {labels}", allowed)
    return list(by_address.values())


def _datasets_of(
    studies: Sequence[Study], config: Settings, dataset: Dataset
) -> dict[str, Dataset]:
    """Return the data set and all that the studies read besides it, by their SHA-256.

    dataset: with the hash of its arrays in its provenance; that of the others is checked.
    """
    further = []
    for study in studies:
        if study.data:
            further += study.data(config, dataset).values()
    by_hash = {dataset.provenance["sha256"]: dataset}
    for item in further:
        given = item.provenance["sha256"]
        actual = item.identified().provenance["sha256"]
        allowed = f"{actual}, the hash of its arrays"
        require(given == actual, f"sha256 of the data set {item.name}", given, allowed)
        by_hash[given] = item
    return by_hash


def _with_arrays(
    rows: Sequence[Row], unstored: dict[Job, tuple], store: Store
) -> Iterator[RowWithArrays]:
    """Yield each row with the arrays and the record of its job.

    The files are read one after the other, because all arrays together may fill gigabytes.
    """
    for row in rows:
        result = unstored.get(row.job) or store.load(row.job)
        arrays, record = result
        yield row, arrays, record


def _require_writable(folder: Path, store: Store) -> None:
    """Refuse a folder that cannot be written, or that another process writes; remove leftovers."""
    # Read now and kept: when a job ends, the tree may hold other code than that which runs.
    storage.git_commit()
    for place in (writable_folder(folder), store.folder):
        storage.sweep(place)
    with locked(folder / "results.nc"):
        pass


def _as_stored(config: Settings) -> dict[str, Any]:
    """The configuration as study files keep it: without paths of this machine."""
    name_of_data = config.data.name if config.data else None
    values = asdict(config) | {"data": name_of_data}
    left_out = ("out", "workers", "cluster", "plan", "again", "study")
    return {name: value for name, value in values.items() if name not in left_out}


@contextmanager
def _numerics(level: int) -> Iterator[None]:
    """Set XLA's flags and JAX's precision, which change bits, where keys and workers read them.

    An accelerator multiplies in full precision and adds up in one order, at whatever cost, unless
    the user's settings say otherwise. All settings are as before when the block ends.
    """
    flags = os.environ.get("XLA_FLAGS")
    is_precision_set = jax.config.jax_default_matmul_precision is not None
    wanted = {"--xla_backend_optimization_level": level} if level != 3 else {}
    if level < 2:  # compiles in half the time
        wanted["--xla_cpu_use_fusion_emitters"] = "false"
        wanted["--xla_cpu_parallel_codegen_split_count"] = 1
    if keys.backend() != "cpu":
        wanted["--xla_gpu_deterministic_ops"] = "true"
        if not is_precision_set:
            jax.config.update("jax_default_matmul_precision", "highest")
    given = flags or ""
    missing = [name for name in wanted if name not in given]
    added = [f"{name}={wanted[name]}" for name in missing]
    if added:
        all_flags = filter(None, [given, *added])
        os.environ["XLA_FLAGS"] = " ".join(all_flags)
    try:
        yield
    finally:
        if not is_precision_set:
            jax.config.update("jax_default_matmul_precision", None)
        os.environ.pop("XLA_FLAGS", None)
        os.environ.update({} if flags is None else {"XLA_FLAGS": flags})


def compute_here(*, optimization_level: int = 3) -> None:
    """Let this process compute as the workers of a study do: one thread, their flags, their cache.

    Call it before JAX computes anything: its backend reads the flags as it starts.
    """
    with _numerics(optimization_level):
        environment = one_thread()
    os.environ.update(environment)
    jax.config.update("jax_platforms", environment["JAX_PLATFORMS"])
    use_checked_programs()
    jax.config.update("jax_compilation_cache_dir", environment.get("JAX_COMPILATION_CACHE_DIR"))
    for name in (
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ):
        jax.config.update(name, 0)


def compute(
    jobs: list[Job],
    datasets: dict[str, Dataset],
    store: Store,
    *,
    workers: int,
    cluster: str | None = None,
) -> dict[Job, tuple]:
    """Compute jobs side by side and store each as it ends.

    Returns arrays and records of the jobs that have no key. Stopped by a signal or an error, it
    says how many jobs are kept: all that are done. Jobs in progress are given up.
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

    unit, steps = _unit_and_steps(jobs)
    gap = 0.5 if sys.stderr.isatty() else 30  # seconds between updates: a log file is not a screen
    executor = _executor(cluster, workers)(jobs, datasets, store)
    try:
        total = sum(map(steps, jobs))
        with tqdm(total=total, unit=unit, mininterval=gap, maxinterval=gap) as bar:
            for done in executor.compute():
                keep(done)
                bar.set_description(done.job.title, refresh=False)
                bar.update(steps(done.job))
    except BaseException as reason:
        with suppress(OSError):
            for done in executor.leftovers():
                keep(done)
        message = f"stopped with {len(kept)} of {len(jobs)} jobs computed, "
        message += f"all of them kept in {store.folder}"
        if isinstance(reason, (KeyboardInterrupt, OSError)):
            message += "; the same command goes on from there"
        print(message, file=sys.stderr)
        raise
    finally:
        executor.end()
    return unstored


def _unit_and_steps(jobs: list[Job]) -> tuple[str, Callable[[Job], int]]:
    """Return the unit of the progress bar, and a function that counts a job in this unit."""
    if any(job.trainings for job in jobs):
        return "training", lambda job: job.trainings
    return "job", lambda job: 1


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

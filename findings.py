"""Tables, figures and claims of the results below a folder, from their files alone.

python findings.py tables results               # the tables of FINDINGS.md, in Markdown
python findings.py tables results --csv FOLDER  # numbers of all tables and runs, as CSV files
python findings.py claims results               # which claims hold, in Markdown
python findings.py figures results              # redraw every figure, beside its data
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import run_hessian
import run_unlearn_mnist
import run_unlearn_xxz
from foundation.base import storage
from foundation.base.checks import any_terminal, require
from foundation.base.later import pandas as pd
from foundation.engine.study import Study, StudyTable, by_name
from foundation.report.closing import save_each
from foundation.report.frames import SOURCES, ResultFiles, every_run
from foundation.report.layout import Table, laid_out_table, markdown, markdown_of
from studies import (
    aimed_flips,
    dynamics,
    gauge,
    hessian,
    matched_fit,
    noise_sweep,
    own_labels,
    transition,
    unlearning,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPTS = (run_unlearn_mnist, run_unlearn_xxz, run_hessian)
STUDIES: tuple[Study, ...] = tuple(
    by_name(study for script in SCRIPTS for study in script.STUDIES).values()
)
# arXiv:2508.02422: mean validation accuracy on MNIST with flipped labels, alpha = 0, 10, ... 90 %,
# n = 5
PUBLISHED = {
    "MLP[64,16]": (0.993, 0.922, 0.809, 0.731, 0.619, 0.511, 0.384, 0.258, 0.161, 0.080),
    "QNN[depth=6]": (0.980, 0.953, 0.922, 0.888, 0.795, 0.477, 0.198, 0.091, 0.072, 0.051),
}
# standard deviations, where the paper gives them
PUBLISHED_SD = {("QNN[depth=6]", 30): 0.037, ("QNN[depth=6]", 60): 0.065}

# ---- the tables of FINDINGS.md: which data sets, in which order ----


def beside_published(read: ResultFiles) -> Table:
    """Lay out the noise sweep of MNIST under flipped labels beside the paper's numbers."""
    means = pd.DataFrame(PUBLISHED, index=range(0, 100, 10)).unstack()
    means = means.rename_axis(["model", "alpha_percent"])
    deviations = list(map(PUBLISHED_SD.get, means.index))
    theirs = means.reset_index(name="value").assign(sd=deviations, data="mnist")
    theirs = theirs.assign(preset="published", poison="labels", measure="validation", n=5)
    ours = read.gather(noise_sweep.flipped, "mnist", presets=SOURCES).query("model in @PUBLISHED")
    both = pd.concat([theirs, ours], ignore_index=True)
    return Table(both, ("alpha_percent",), ("model", "preset"), "{model} {preset}, n = {n}")


# by name: the name of a table in a study's record, and its data sets; the records' other tables
# follow
TABLES = {
    "mnist": beside_published,
    "controls": ("flipped", "mnist"),
    "paired-mnist": ("paired-models", "mnist"),
    "features": ("features", "mnist", "xxz"),
    "paired-features": ("paired-features", "mnist", "xxz"),
    "unlearning-mnist": ("unlearning", "mnist"),
    "paired-unlearning": ("paired-unlearning", "mnist", "xxz"),
    "xxz": ("choices", "xxz"),
    "paired-xxz": ("paired-models", "xxz"),
    "gauge": ("gauge", "xxz"),
    "paired-gauge": ("paired-gauge", "xxz"),
    "sizes": ("sizes", "xxz"),
    "paired-depths": ("paired-depths", "xxz"),
    "unlearning-xxz": ("unlearning", "xxz"),
    "epochs": ("epochs", "mnist", "xxz"),
    "evaluation-mnist": ("evaluation", "mnist"),
    "evaluation-xxz": ("evaluation", "xxz"),
    "benchmark-mnist": ("benchmark", "mnist"),
    "benchmark-xxz": ("benchmark", "xxz"),
    "finalists-mnist": ("finalists", "mnist"),
    "finalists-xxz": ("finalists", "xxz"),
    "influence": ("influence", "mnist", "xxz"),
    "rankings": ("rankings", "mnist", "xxz"),
    "dynamics": ("dynamics", "mnist", "xxz"),
    "paired-dynamics": ("paired-dynamics", "mnist", "xxz"),
    "contests-mnist": ("contests", "mnist"),
    "contests-xxz": ("contests", "xxz"),
    "splits": ("splits", "xxz"),
    "capacity": ("capacity", "mnist", "xxz"),
    "pairs": ("pairs", "mnist"),
    "equal-steps-mnist": ("equal_steps", "mnist"),
    "equal-steps-xxz": ("equal_steps", "xxz"),
    "memorising": ("memorising", "mnist", "xxz"),
    "matched-fit-mnist": ("matched_fit", "mnist"),
    "paired-fit": ("paired-fit", "mnist"),
    "discovery-mnist": ("above-nothing", "mnist"),
    "discovery-xxz": ("above-nothing", "xxz"),
    "detection": ("detection", "mnist", "xxz"),
    "detected-mnist": ("detected", "mnist"),
    "detected-xxz": ("detected", "xxz"),
    "hardware": ("hardware", "mnist"),
    "hardware-unlearning": ("hardware-unlearning", "mnist"),
    "encodings": ("encodings", "mnist"),
    "fidelities": ("fidelities", "xxz"),
    "maps": ("maps", "mnist", "xxz"),
    "landscape": ("landscape", "hessian"),
    "transition": ("transition", "mnist"),
    "transition-exponents": ("transition-exponents", "mnist"),
    "own-labels": ("own_labels", "mnist"),
    "paired-own": ("paired-own", "mnist"),
    "own-labels-xxz": ("own_labels", "xxz"),
    "paired-own-xxz": ("paired-own", "xxz"),
    "equal-fit": ("equal_fit", "mnist", "xxz"),
    "aimed-flips": ("aimed_flips", "mnist", "xxz"),
}


def tables() -> dict[str, Callable[[ResultFiles], Table]]:
    """Return the tables of FINDINGS.md by name, each a function of the result files."""
    records = {}
    for study in STUDIES:
        for table in study.tables:
            if table.findings is not None:
                records[table.name or study.name] = (study, table)
    functions: dict[str, Callable[[ResultFiles], Table]] = {}
    placed = set()
    for name, entry in TABLES.items():
        if callable(entry):
            functions[name] = entry
            continue
        record, *data = entry
        study, table = records[record]
        functions[name] = partial(table_of_record, study, table, tuple(data))
        placed.add(record)
    for record in records:
        if record not in placed:
            functions[record] = partial(table_of_record, *records[record], ())
    return functions


def table_of_record(
    study: Study, table: StudyTable, data: tuple[str, ...], read: ResultFiles
) -> Table:
    """Lay out a table of a study's record for some data sets, one below the other.

    data: the data sets; (): all that have the study's file. ValueError where no data set has it.
    """
    file = table.file or study.name
    data_with_file = set()
    for name, preset, stem in read.paths:
        if preset in table.presets and stem == file:
            data_with_file.add(name)
    if not data and not data_with_file:
        path = "/".join((*table.presets[-1:], file))
        raise ValueError(f"{read.folder} has no {path}.nc, which the tables need")
    changes = {"title": ""} | table.findings
    names = data or sorted(data_with_file)
    return laid_out_table(table, read, names, table.presets, **changes)


def named(*names: str) -> list[Study]:
    """Return the studies of these names."""
    known = by_name(STUDIES)
    return [known[name] for name in names]


def figure(name: str, folder: str | Path) -> Figure | None:
    """Draw a figure, by name, from the study files in a folder; None where they hold nothing."""
    records = {}
    for study in STUDIES:
        for record in study.figures:
            records[record.name] = (study, record)
    require(name in records, "figure", name, ", ".join(records))
    study, record = records[name]
    stems = record.files or (study.name,)
    files = [Path(folder) / f"{stem}.nc" for stem in stems]
    return record.draw(*map(storage.read_dataset, files))


MNIST = {"data": "mnist", "place": "MNIST"}
RING = {"data": "xxz", "place": "the ring, fixed gauge"}
SHARES = (20, 30, 40)


def claims() -> list[Callable]:
    """Return every claim as a function of the result files.

    In this order: claims of the paper, our claims, claims in the studies' records.
    """
    functions = [*claims_of_the_paper(), *our_claims()]
    for study in STUDIES:
        functions += study.claims
    return functions


def claims_of_the_paper() -> list[Callable]:
    """Return the paper's claims, as functions of the result files; one of ours beside its twin."""
    of_paper = {"whose": "the paper's", "source": "Fig. 2c", "published": PUBLISHED}
    functions: list[Callable] = [
        partial(noise_sweep.resists, **MNIST, **of_paper, alpha=alpha) for alpha in SHARES
    ]
    functions += [partial(gauge.under_the_gauge, alpha=alpha) for alpha in (20, 40)]
    ring = RING | {"place": "the ring, random phase"}
    for place, whose in ((ring, "the paper's"), (MNIST, "ours")):
        functions.append(partial(noise_sweep.features_claim, **place, whose=whose, alpha=80))
    for method in ("scrub", "ga"):
        for measure in ("validation", "forget_poisoned"):
            of_method = {"method": method, "measure": measure}
            functions.append(partial(matched_fit.unlearns_better, **MNIST, **of_method))
    functions += [partial(hessian.roughens, data="hessian", alpha=alpha) for alpha in (20, 40)]
    for place in (MNIST, RING):
        functions.append(partial(unlearning.stable_over_weights, **place, method="scrub"))
    functions.append(partial(transition.steeper, **MNIST))
    return functions


def our_claims() -> list[Callable]:
    """Return our claims as functions of the result files, but those in the studies' records."""
    of_gauge = {"whose": "ours", "source": "the published phase is no physics"}
    functions: list[Callable] = [
        partial(noise_sweep.resists, **RING, **of_gauge, alpha=alpha) for alpha in SHARES
    ]
    for place in (MNIST, RING):
        for method in ("scrub", "ga"):
            of_method = partial(unlearning.forgets_by_its_term, **place, method=method)
            functions.append(partial(of_method, measure="validation"))
            functions.append(partial(of_method, measure="forget_poisoned"))
    for place in (MNIST, RING):
        functions.append(partial(dynamics.resists_flips_of_one_class, **place, alpha=20))
        for make in (
            dynamics.ahead_at_equal_fit,
            dynamics.beats_class_mean,
            dynamics.ahead_if_tuned,
            dynamics.early_mlp,
            own_labels.ahead_by_own_labels,
            own_labels.ahead_of_the_embedding,
        ):
            functions += [partial(make, **place, alpha=alpha) for alpha in SHARES]
        for kind in ("other_class", "boundary", "quid"):
            functions.append(partial(aimed_flips.resists, **place, kind=kind, alpha=20))
    small = {"Logistic": "logistic regression", "Quadratic": "a bounded quadratic form"}
    for family, words in small.items():
        functions.append(partial(dynamics.small_class, **MNIST, family=family, words=words))
    return functions


def decided(read: ResultFiles) -> pd.DataFrame:
    """Decide all claims: a table of claimant, statement, effect, decisive control and verdict."""
    from foundation.report.claims import decided as decide

    return decide(read, claims())


def write_csv(folder: str | Path, laid_out: dict[str, Table], out: Path) -> list[Path]:
    """Write CSV files: the numbers of each table, and of every run of each study below the folder.

    Returns the paths of the files.
    """
    frames = {name: [table.tidy] for name, table in laid_out.items()}
    for path in sorted(Path(folder).rglob("*.nc")):
        results = storage.read_dataset(path)
        has_runs = {"model", "run"} <= set(results.dims)
        if has_runs and "size" in results.coords:
            of_preset = path.parent
            labels = {"data": of_preset.parent.name, "preset": of_preset.name}
            runs = every_run(results).assign(**labels)
            frames.setdefault(f"runs-{path.stem}", []).append(runs)
    for name, parts in frames.items():
        frame = pd.concat(parts, ignore_index=True).set_index(["data", "preset"])
        with storage.replacing(out / f"{name}.csv") as temporary:
            frame.to_csv(temporary)
    return [out / f"{name}.csv" for name in frames]


def show_tables(folder: Path, csv: Path | None) -> int:
    """Print the tables, or write them as CSV files; 2 where a table fails, which is named."""
    read = ResultFiles(folder)
    laid_out = {}
    functions = tables()
    for name, make in functions.items():
        try:
            laid_out[name] = make(read)
        except (KeyError, AttributeError) as error:
            reason = f"a file of {read.folder} is old, or not whole ({error})"
            print(f"no table {name}: {reason}", file=sys.stderr)
        except (ValueError, OSError) as error:
            print(f"no table {name}: {error}", file=sys.stderr)
    try:
        if csv:
            paths = write_csv(folder, laid_out, csv)
            print(f"{len(paths)} files in {csv}")
        else:
            texts = [f"{name}\n\n{markdown(table)}\n" for name, table in laid_out.items()]
            print(*texts, sep="\n")
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if len(laid_out) == len(functions) else 2


def show_claims(folder: Path) -> int:
    """Print the table of claims."""
    print(markdown_of(decided(ResultFiles(folder))))
    return 0


def draw_figures(folder: Path) -> int:
    """Draw all figures below a folder, in parallel, and print their paths; 2 where one failed."""
    of_presets = storage.result_folders(folder)
    of_data_sets = sorted({path.parent for path in of_presets})
    drawn: list[Path | None] = []
    spawn = multiprocessing.get_context("spawn")  # JAX must not be forked
    try:
        with ProcessPoolExecutor(mp_context=spawn) as pool:
            for paths in pool.map(figures_of, [*of_presets, *of_data_sets]):
                print("".join(f"{path}\n" for path in paths if path), end="")
                drawn += paths
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 2 if None in drawn else 0


def figures_of(folder: Path) -> list[Path | None]:
    """Draw the figures of one folder and return their paths; None for a figure that failed."""
    return save_each(folder, STUDIES)


@any_terminal()
def main() -> int:
    """Print tables or claims, or draw the figures, of a folder of results; 2 where one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=["tables", "figures", "claims"], help="what is made of the results"
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder with results")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="OUT",
        help="tables: write CSV files into this folder, print none",
    )
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.exit(2, f"error: FOLDER: got {arguments.folder}, allowed: a folder with results\n")
    if arguments.csv and arguments.what != "tables":
        parser.exit(2, f"error: --csv: got {arguments.csv}, allowed: with tables\n")
    if arguments.what == "tables":
        return show_tables(arguments.folder, arguments.csv)
    if arguments.what == "claims":
        return show_claims(arguments.folder)
    return draw_figures(arguments.folder)


if __name__ == "__main__":
    sys.exit(main())

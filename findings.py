"""Tables, figures and claims of the results below a folder, from their files alone.

python findings.py tables results               # the tables of FINDINGS.md, in Markdown
python findings.py tables results --csv FOLDER  # their numbers, and those of every run, as CSV files
python findings.py claims results               # which claims hold, in Markdown
python findings.py figures results              # redraw every figure below the folder, beside its data
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd

import run_hessian
import run_unlearn_mnist
import run_unlearn_xxz
from foundation.base import storage
from foundation.base.checks import any_terminal
from foundation.engine.study import Study, StudyTable, by_name
from foundation.report.closing import save_each
from foundation.report.frames import ResultFiles, every_run
from foundation.report.layout import Table, laid_out_table, markdown, markdown_of
from studies.tables import FINDINGS_TABLES

SCRIPTS = (run_unlearn_mnist, run_unlearn_xxz, run_hessian)
STUDIES: tuple[Study, ...] = tuple(by_name(study for script in SCRIPTS for study in script.STUDIES).values())
# Data sets of the tables that stand in a study's record; of others, those that have the study's file.
DATA = {"capacity": ("mnist", "xxz"), "encodings": ("mnist",)}
ORDER = (  # of the tables; others come behind
    "mnist", "controls", "paired-mnist", "features", "paired-features", "unlearning-mnist", "paired-unlearning", "xxz",
    "paired-xxz", "gauge", "paired-gauge", "sizes", "paired-depths", "unlearning-xxz", "epochs", "evaluation-mnist",
    "evaluation-xxz", "benchmark-mnist", "benchmark-xxz", "finalists-mnist", "finalists-xxz", "influence", "rankings",
    "dynamics", "paired-dynamics", "contests-mnist", "contests-xxz", "splits", "capacity", "pairs", "equal-steps-mnist",
    "equal-steps-xxz", "memorising", "matched-fit-mnist", "paired-fit", "discovery-mnist", "discovery-xxz", "detection",
    "detected-mnist", "detected-xxz", "hardware", "hardware-unlearning", "encodings", "fidelities", "maps", "landscape",
)  # fmt: skip


def tables() -> dict[str, Callable[[ResultFiles], Table]]:
    """The tables of FINDINGS.md, by name, each a function of the result files."""
    made = dict(FINDINGS_TABLES)
    for study in STUDIES:
        for table in study.tables:
            if table.findings is not None:
                made[table.name or study.name] = partial(table_of_record, study, table)
    return {name: made[name] for name in (*ORDER, *made) if name in made}


def table_of_record(study: Study, table: StudyTable, read: ResultFiles) -> Table:
    """A table that stands in a study's record, of the preset corrected: all its data sets, one below the other."""
    file = table.file or study.name
    there = [data for data, preset, name in read.paths if (preset, name) == ("corrected", file)]
    data = DATA.get(table.name or study.name) or sorted(there)
    if not data:
        raise ValueError(f"{read.folder} has no corrected/{file}.nc, which the tables need")
    return laid_out_table(table, read, data, ["corrected"], **{"title": ""} | table.findings)


def named(*names: str) -> list[Study]:
    """The studies of these names."""
    known = by_name(STUDIES)
    return [known[name] for name in names]


def findings_tables(folder: str | Path) -> dict[str, str]:
    """The tables of FINDINGS.md in Markdown, by name, from the result files of the presets paper and corrected."""
    read = ResultFiles(folder)
    return {name: markdown(make(read)) for name, make in tables().items()}


def claims() -> list[Callable]:
    """Every claim, each a function of the result files."""
    from studies.claims import CLAIMS  # SciPy's statistics, which tables and figures do without

    return [*CLAIMS, *(claim for study in STUDIES for claim in study.claims)]


def decided(read: ResultFiles) -> pd.DataFrame:
    """The table of all claims: whose, the statement, its effect, the control that decides, the verdict."""
    from foundation.report.claims import decided as decide

    return decide(read, claims())


def write_csv(folder: str | Path, laid_out: dict[str, Table], out: Path) -> list[Path]:
    """Write the numbers of tables and, of each study below the folder, those of every run; returns the paths."""
    frames = {name: [table.tidy] for name, table in laid_out.items()}
    for path in sorted(Path(folder).rglob("*.nc")):
        results = storage.read_dataset(path)
        if {"model", "run"} <= set(results.dims) and "size" in results.coords:
            runs = every_run(results).assign(data=path.parent.parent.name, preset=path.parent.name)
            frames.setdefault(f"runs-{path.stem}", []).append(runs)
    for name, parts in frames.items():
        with storage.replacing(out / f"{name}.csv") as temporary:
            pd.concat(parts, ignore_index=True).set_index(["data", "preset"]).to_csv(temporary)
    return [out / f"{name}.csv" for name in frames]


def show_tables(folder: Path, csv: Path | None) -> int:
    """Print the tables, or write their numbers; 2 where one of them cannot be made, which is said."""
    read, laid_out = ResultFiles(folder), {}
    made = tables()
    for name, make in made.items():
        try:
            laid_out[name] = make(read)
        except (ValueError, OSError, KeyError, AttributeError) as error:
            old = f"a file of {read.folder} is old, or not whole ({error})"
            reason = old if isinstance(error, (KeyError, AttributeError)) else error
            print(f"no table {name}: {reason}", file=sys.stderr)
    try:
        if csv:
            print(f"{len(write_csv(folder, laid_out, csv))} files in {csv}")
        else:
            print(*(f"{name}\n\n{markdown(table)}\n" for name, table in laid_out.items()), sep="\n")
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if len(laid_out) == len(made) else 2


def show_claims(folder: Path) -> int:
    """Print the table of claims."""
    print(markdown_of(decided(ResultFiles(folder))))
    return 0


def draw_figures(folder: Path) -> int:
    """Draw all figures below the folder, side by side, and print their paths; 2 where one of them failed."""
    below = storage.result_folders(folder)
    drawn: list[Path | None] = []
    try:
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:  # JAX is not to be forked
            for paths in pool.map(figures_of, [*below, *sorted({path.parent for path in below})]):
                print("".join(f"{path}\n" for path in paths if path), end="")
                drawn += paths
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 2 if None in drawn else 0


def figures_of(folder: Path) -> list[Path | None]:
    """Draw the figures of one folder; None for each that failed."""
    return save_each(folder, STUDIES)


@any_terminal()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tables", "figures", "claims"], help="what is made of the results")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder with results")
    parser.add_argument("--csv", type=Path, metavar="OUT", help="tables: write CSV files into this folder, print none")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.exit(2, f"error: FOLDER: got {arguments.folder}, allowed: a folder with results\n")
    if arguments.csv and arguments.what != "tables":
        parser.exit(2, f"error: --csv: got {arguments.csv}, allowed: with tables\n")
    if arguments.what == "tables":
        return show_tables(arguments.folder, arguments.csv)
    return show_claims(arguments.folder) if arguments.what == "claims" else draw_figures(arguments.folder)


if __name__ == "__main__":
    sys.exit(main())

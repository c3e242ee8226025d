"""Tables, figures and claims of the results below a folder, from their files alone.

python findings.py tables results               # the tables of FINDINGS.md, in Markdown python
findings.py tables results --csv FOLDER  # their numbers, and those of every run, as CSV files
python findings.py claims results               # which claims hold, in Markdown python findings.py
figures results              # redraw every figure below the folder, beside its data
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

import pandas as pd

import run_hessian
import run_unlearn_mnist
import run_unlearn_xxz
from foundation.base import storage
from foundation.base.checks import any_terminal, require
from foundation.engine.study import Study, StudyTable, by_name
from foundation.report.closing import save_each
from foundation.report.frames import SOURCES, ResultFiles, every_run
from foundation.report.layout import Table, laid_out_table, markdown, markdown_of
from studies import dynamics, gauge, hessian, matched_fit, noise_sweep, unlearning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPTS = (run_unlearn_mnist, run_unlearn_xxz, run_hessian)
STUDIES: tuple[Study, ...] = tuple(
    by_name(study for script in SCRIPTS for study in script.STUDIES).values()
)
# arXiv:2508.02422: mean validation accuracy, MNIST, flipped labels, at alpha = 0, 10, ... 90 %, n =
# 5
PUBLISHED = {
    "MLP[64,16]": (0.993, 0.922, 0.809, 0.731, 0.619, 0.511, 0.384, 0.258, 0.161, 0.080),
    "QNN[depth=6]": (0.980, 0.953, 0.922, 0.888, 0.795, 0.477, 0.198, 0.091, 0.072, 0.051),
}
PUBLISHED_SD = {("QNN[depth=6]", 30): 0.037, ("QNN[depth=6]", 60): 0.065}  # where it is known

# ---- the tables of FINDINGS.md: which data sets, in which order ----


def beside_published(read: ResultFiles) -> Table:
    """The noise sweep of MNIST under flipped labels, beside the paper's."""
    means = (
        pd.DataFrame(PUBLISHED, index=range(0, 100, 10))
        .unstack()
        .rename_axis(["model", "alpha_percent"])
    )
    theirs = means.reset_index(name="value").assign(
        sd=list(map(PUBLISHED_SD.get, means.index)), data="mnist"
    )
    theirs = theirs.assign(preset="published", poison="labels", measure="validation", n=5)
    ours = read.gather(noise_sweep.flipped, "mnist", presets=SOURCES).query("model in @PUBLISHED")
    both = pd.concat([theirs, ours], ignore_index=True)
    return Table(both, ("alpha_percent",), ("model", "preset"), "{model} {preset}, n = {n}")


# by name: a table of some study's record, and the data sets; others of the records come behind
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
}


def tables() -> dict[str, Callable[[ResultFiles], Table]]:
    """The tables of FINDINGS.md, by name, each a function of the result files."""
    records = {}
    for study in STUDIES:
        for table in study.tables:
            if table.findings is not None:
                records[table.name or study.name] = (study, table)
    made: dict[str, Callable[[ResultFiles], Table]] = {}
    for name, words in TABLES.items():
        made[name] = (
            words if callable(words) else partial(table_of_record, *records[words[0]], words[1:])
        )
    shown = {words[0] for words in TABLES.values() if not callable(words)}
    return made | {
        name: partial(table_of_record, *records[name], ()) for name in records if name not in shown
    }


def table_of_record(
    study: Study, table: StudyTable, data: tuple[str, ...], read: ResultFiles
) -> Table:
    """A table of a study's record, of these data sets, one below the other; (): of all that have
    the study's file."""
    file = table.file or study.name
    there = sorted(
        {name for name, preset, stem in read.paths if preset in table.presets and stem == file}
    )
    if not data and not there:
        raise ValueError(
            f"{read.folder} has no {'/'.join((*table.presets[-1:], file))}.nc, which the tables "
            "need"
        )
    return laid_out_table(
        table, read, data or there, table.presets, **{"title": ""} | table.findings
    )


def named(*names: str) -> list[Study]:
    """The studies of these names."""
    known = by_name(STUDIES)
    return [known[name] for name in names]


def figure(name: str, folder: str | Path) -> Figure | None:
    """The figure of this name of the studies in a folder; None where they hold nothing to draw."""
    known = {each.name: (study, each) for study in STUDIES for each in study.figures}
    require(name in known, "figure", name, ", ".join(known))
    study, drawn = known[name]
    files = [Path(folder) / f"{file}.nc" for file in drawn.files or (study.name,)]
    return drawn.draw(*map(storage.read_dataset, files))


def findings_tables(folder: str | Path) -> dict[str, str]:
    """The tables of FINDINGS.md in Markdown, by name, from the result files of the presets paper
    and corrected."""
    read = ResultFiles(folder)
    return {name: markdown(make(read)) for name, make in tables().items()}


def claims() -> list[Callable]:
    """Every claim, each a function of the result files: the paper's, then ours, then those of the
    studies' records."""
    mnist, ring = {"data": "mnist", "place": "MNIST"}, {"data": "xxz", "place": "the ring"}
    fixed = {"data": "xxz", "place": "the ring, fixed gauge", "published": {}}
    return [
        *(
            partial(dynamics.resists, **mnist, published=PUBLISHED, kind="labels", alpha=alpha)
            for alpha in (20, 30, 40)
        ),
        partial(dynamics.resists, **mnist, published={}, kind="one_class", alpha=20),
        *(partial(gauge.under_the_gauge, alpha=alpha) for alpha in (20, 40)),
        *(partial(dynamics.resists, **fixed, kind="labels", alpha=alpha) for alpha in (20, 30, 40)),
        partial(dynamics.resists, **fixed, kind="one_class", alpha=20),
        partial(noise_sweep.features_claim, **mnist, alpha=80),
        partial(noise_sweep.features_claim, **ring, alpha=80),
        *(
            partial(unlearning.forgets_by_its_term, **place, method=method, measure=measure)
            for place in (mnist, ring)
            for method in ("scrub", "ga")
            for measure in ("validation", "forget_poisoned")
        ),
        *(
            partial(matched_fit.unlearns_better, **mnist, method=method)
            for method in ("scrub", "ga")
        ),
        *(partial(hessian.roughens, data="hessian", alpha=alpha) for alpha in (20, 40)),
        *(
            partial(unlearning.stable_over_weights, **place, method="scrub")
            for place in (mnist, ring)
        ),
        *(partial(dynamics.early_mlp, **mnist, alpha=alpha) for alpha in (20, 30, 40)),
        *(
            partial(dynamics.small_class, **mnist, model=model)
            for model in ("Logistic", "Quadratic")
        ),
        *(claim for study in STUDIES for claim in study.claims),
    ]


def decided(read: ResultFiles) -> pd.DataFrame:
    """The table of all claims: whose, the statement, its effect, the control that decides, the
    verdict."""
    from foundation.report.claims import decided as decide

    return decide(read, claims())


def write_csv(folder: str | Path, laid_out: dict[str, Table], out: Path) -> list[Path]:
    """Write the numbers of tables and, of each study below the folder, those of every run; returns
    the paths."""
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
    """Print the tables, or write their numbers; 2 where one of them cannot be made, which is
    said."""
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
    """Draw all figures below the folder, side by side, and print their paths; 2 where one of them
    failed."""
    below = storage.result_folders(folder)
    drawn: list[Path | None] = []
    try:
        # JAX is not to be forked
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
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
    return (
        show_claims(arguments.folder)
        if arguments.what == "claims"
        else draw_figures(arguments.folder)
    )


if __name__ == "__main__":
    sys.exit(main())

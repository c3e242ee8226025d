"""What a script ends with: a table for each of its studies, and the figures beside the results."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray as xr

from foundation.base import storage
from foundation.base.checks import any_terminal
from foundation.base.places import own_files
from foundation.engine.study import Study, by_name
from foundation.report.frames import ResultFiles, count_of_runs, poisoned_counts, truth_words
from foundation.report.layout import laid_out_table


@any_terminal()
def report(folder: Path, studies: Iterable[Study], stages: Iterable[str]) -> None:
    """Print a table for each of the stages, and draw the figures of all studies that the folder
    holds."""
    studies = tuple(studies)
    known = by_name(studies)
    print_summary(folder, [known[stage] for stage in stages])
    print(f"results and {len(save_all(folder, studies, only_old=True))} figures in {folder}")


@any_terminal()
def print_summary(folder: Path, studies: Iterable[Study]) -> None:
    """Print the tables of the studies, from the files in OUT/DATA/PRESET, with n and what the
    errors are."""
    folder = Path(folder).resolve()
    read, data, preset = ResultFiles(folder.parents[1]), *folder.parts[-2:]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
    every = [
        (table.file or study.name, table)
        for study in studies
        for table in study.tables
        if table.title
    ]
    # once, of two studies that fill one file
    tables = {(file, table.title): table for file, table in every}
    for (file, title), own in tables.items():
        if (data, preset, file) in read.paths:
            table, results = laid_out_table(own, read, [data], [preset]), read[data, preset, file]
            counts = {"n": count_of_runs(results), "poisoned": poisoned_counts(results)}
            words = title.format(**counts, draws=results.sizes.get("draw", 1))
            print(*textwrap.wrap(words, 100), "", sep="\n")
            print(
                table.cells().to_string(line_width=width, sparsify=False),
                "",
                *_notes(results),
                sep="\n",
            )


def _notes(results: xr.Dataset) -> list[str]:
    """What stands below a table: methods that cannot run on a model, what reads the truth, runs
    that diverged."""
    left_out = results.left_out.to_series() if "left_out" in results.coords else {}
    notes = [f"not on {model}: {words}" for model, words in dict(left_out).items() if words]
    notes += filter(None, [truth_words(results)])
    return [*notes, ""] * bool(notes) + _diverged(results)


def _diverged(results: xr.Dataset) -> list[str]:
    if "diverged" not in results:
        return []
    lost = results.diverged.sum("run").to_series()
    counts = [
        f"{' '.join(map(str, np.atleast_1d(place)))}: {int(n)}"
        for place, n in lost[lost > 0].items()
    ]
    total = f"{int(lost.sum())} of {int(results.diverged.count())} trainings"
    return (
        [f"diverged, and left out of all means: {total} ({'; '.join(counts)})", ""]
        if counts
        else []
    )


def save_all(folder: str | Path, studies: Iterable[Study], *, only_old: bool = False) -> list[Path]:
    """Draw every figure whose files are in the folder (of a preset, or of a data set) there; the
    paths of the PNGs.

    only_old: draw those figures alone that are older than their data or the project's code.
    Returned are all paths.
    """
    return [path for path in save_each(Path(folder), studies, only_old=only_old) if path]


def save_each(
    folder: Path, studies: Iterable[Study], *, only_old: bool = False
) -> list[Path | None]:
    """As `save_all`: None for a figure that failed, which is named on stderr. A full disk fails
    all, and is raised."""
    paths: list[Path | None] = []
    for study in studies:
        for figure in study.figures:
            files = [folder / f"{file}.nc" for file in figure.files or (study.name,)]
            picture = folder / f"{figure.name}.png"
            if not all(path.is_file() for path in files):
                continue
            if only_old and _is_new(picture, files):
                paths.append(picture)
                continue
            try:
                if _save(picture, figure.draw, files):
                    paths.append(picture)
            except OSError:
                raise
            except Exception as error:
                print(
                    f"no figure {folder / figure.name}: {type(error).__name__}: {error}",
                    file=sys.stderr,
                )
                paths.append(None)
    return paths


def _save(picture: Path, draw, files: list[Path]) -> bool:
    """Draw one figure, as PNG and PDF; whether there was anything to draw."""
    # matplotlib and seaborn, before which nothing else has to wait
    from foundation.report import drawing

    drawing.matplotlib.use("Agg")  # files need no screen
    try:
        figure = draw(*map(storage.read_dataset, files))
        if figure is None:
            return False
        with drawing.laid_out(figure, dpi=200):
            with storage.replacing(picture) as temporary:
                temporary.write_bytes(drawing.png(figure))
            with storage.replacing(picture.with_suffix(".pdf")) as temporary:
                figure.savefig(temporary, format="pdf")
        return True
    finally:
        drawing.plt.close("all")


def _is_new(picture: Path, files: list[Path]) -> bool:
    """Whether a figure, as PNG and PDF, is newer than its data and than the project's code."""
    both = [picture, picture.with_suffix(".pdf")]
    newest = max(path.stat().st_mtime_ns for path in (*files, *own_files()))
    return all(path.is_file() and path.stat().st_mtime_ns > newest for path in both)

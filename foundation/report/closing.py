"""The end of a script: print a table of each study, and draw figures beside the results."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.base import storage
from foundation.base.checks import any_terminal
from foundation.base.labels import is_unpoisoned
from foundation.base.later import xarray as xr
from foundation.base.places import own_files
from foundation.engine.runner import Settings, run_studies
from foundation.engine.study import Study, by_name
from foundation.measures.forgetting import STANDARD
from foundation.report.frames import ResultFiles, count_of_runs, poisoned_counts, truth_words
from foundation.report.layout import laid_out_table

if TYPE_CHECKING:
    from datar import Dataset


def run_and_report(
    config: Settings, dataset: Dataset, studies: Sequence[Study], **folder_words: str
) -> Path | None:
    """Compute the stages of a configuration, draw their figures and print their tables.

    folder_words: `under` and `data_word` of `run_studies`. Returns the folder of the results; None
    with --plan, where nothing is computed. A stopped run goes on where it was.
    """
    folder = run_studies(config, dataset, studies, **folder_words)
    if folder:
        report(folder, studies, config.stages)
    return folder


@any_terminal()
def report(folder: Path, studies: Iterable[Study], stages: Iterable[str]) -> None:
    """Print the tables of the stages, and draw the figures of all studies in the folder."""
    studies = tuple(studies)
    known = by_name(studies)
    print_summary(folder, [known[stage] for stage in stages])
    pictures = save_all(folder, studies, only_old=True)
    count = f"{len(pictures)} figure{'s' * (len(pictures) != 1)}"
    print(f"results and {count} in {folder}")


@any_terminal()
def print_summary(folder: Path, studies: Iterable[Study]) -> None:
    """Print the tables of the studies, from the files in OUT/DATA/PRESET, with titles and notes."""
    folder = Path(folder).resolve()
    read = ResultFiles(folder.parents[1])
    data, preset = folder.parts[-2:]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
    # by file and title, because two studies that fill one file share their table
    tables = {}
    for study in studies:
        for table in study.tables:
            if table.title:
                tables[table.file or study.name, table.title] = table
    for (file, title), table in tables.items():
        if (data, preset, file) not in read.paths:
            continue
        results = read[data, preset, file]
        changes = {}
        if table.measures and "measure_title" in results.coords:
            changes["measures"] = table.measures | _own_measures(results)
        laid_out = laid_out_table(table, read, [data], [preset], **changes)
        counts = {"n": count_of_runs(results), "poisoned": poisoned_counts(results)}
        heading = title.format(**counts, draws=results.sizes.get("draw", 1))
        print(*textwrap.wrap(heading, 100), "", sep="\n")
        text = laid_out.cells().to_string(line_width=width, sparsify=False)
        print(text, "", *_notes(results), sep="\n")


def _own_measures(results: xr.Dataset) -> dict[str, str]:
    """Return the measures of forgetting that a user added, with their titles."""
    standard = dict(STANDARD)
    titles = results.measure_title.to_series()
    return {name: title for name, title in titles.items() if name not in standard}


def _notes(results: xr.Dataset) -> list[str]:
    """Write the lines below a table: methods that cannot run on a model, marks, diverged runs.

    Poisons that change no sample are named, where measures of poisoned samples have no number.
    """
    reasons = results.left_out.to_series() if "left_out" in results.coords else {}
    notes = []
    for model, reason in dict(reasons).items():
        if reason:
            notes.append(f"not on {model}: {reason}")
    poisons = results.poison.values.ravel().tolist() if "poison" in results.coords else []
    unpoisoned = [name for name in poisons if is_unpoisoned(name)]
    if unpoisoned:
        notes.append(f"{', '.join(unpoisoned)}: nothing is poisoned, and so nothing to be repaired")
    notes += filter(None, [truth_words(results)])
    if notes:
        notes.append("")
    return notes + _diverged(results)


def _diverged(results: xr.Dataset) -> list[str]:
    """Count the trainings that diverged: a line and an empty one, or none where none diverged."""
    if "diverged" not in results:
        return []
    lost = results.diverged.sum("run").to_series()
    counts = []
    for place, count in lost[lost > 0].items():
        labels = place if isinstance(place, tuple) else (place,)
        words = " ".join(map(str, labels))
        counts.append(f"{words}: {int(count)}")
    if not counts:
        return []
    n_lost = int(lost.sum())
    n_trained = int(results.diverged.count())
    total = f"{n_lost} of {n_trained} trainings"
    return [f"diverged, and left out of all means: {total} ({'; '.join(counts)})", ""]


def save_all(folder: str | Path, studies: Iterable[Study], *, only_old: bool = False) -> list[Path]:
    """Draw every figure whose study files are in the folder, and return the paths of the PNGs.

    folder: of a preset, or of a data set. only_old: draw only figures that are older than their
    data or the project's code; the paths of all figures are returned.
    """
    return [path for path in save_each(Path(folder), studies, only_old=only_old) if path]


def save_each(
    folder: Path, studies: Iterable[Study], *, only_old: bool = False
) -> list[Path | None]:
    """Draw figures as `save_all` does; the path of a figure that failed is None.

    Failed figures are named on stderr. OSError, such as a full disk, is raised.
    """
    paths: list[Path | None] = []
    for study in studies:
        for figure in study.figures:
            names = figure.files or (study.name,)
            files = [folder / f"{name}.nc" for name in names]
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
                reason = f"{type(error).__name__}: {error}"
                print(f"no figure {folder / figure.name}: {reason}", file=sys.stderr)
                paths.append(None)
    return paths


def _save(picture: Path, draw, files: list[Path]) -> bool:
    """Draw one figure as PNG and PDF; False if there is nothing to draw."""
    # imported here, because matplotlib and seaborn load slowly
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
    """Whether the PNG and the PDF of a figure are newer than its data and the project's code."""
    pictures = [picture, picture.with_suffix(".pdf")]
    sources = (*files, *own_files())
    newest = max(path.stat().st_mtime_ns for path in sources)

    def is_newer(path: Path) -> bool:
        return path.is_file() and path.stat().st_mtime_ns > newest

    return all(map(is_newer, pictures))

"""Does it hold far from the training states, and on rings of other sizes?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import xarray as xr

from datar import Dataset, load_xxz
from foundation.base.checks import require
from foundation.engine.jobs import Arrays, Job
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.quantum.ring import COUPLINGS, MAX_SITES, RingSplit, xxz_points
from foundation.report.frames import (
    ResultFiles,
    accuracies,
    circuit_beside,
    count_of_runs,
    ordered,
    over_runs,
)
from studies.config import Config
from studies.tuning import ESTIMATORS, estimate_rows, published_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class SplitsFlags(Flags):
    """Of the stage splits."""

    sizes: tuple[int, ...] = (8, 10, 14)
    """Sites of further rings."""

    AXES = ("sizes",)

    def check(self, config: Config) -> None:
        for n_sites in self.sizes:
            require(
                n_sites in range(4, MAX_SITES + 1, 2),
                "sizes",
                n_sites,
                f"even numbers from 4 to {MAX_SITES}",
            )


# ---- what is computed ----


@dataclass(frozen=True, kw_only=True)
class Fidelity(Job):
    """How near each validation state is to the training states, and where its coupling stands."""

    split: RingSplit

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """fidelity, delta (v,): the largest |<validation|training>|^2 over training states of norm
        1, and the Δ."""
        # (v, n)
        overlaps = dataset.val.x.astype(complex) @ dataset.train.x.astype(complex).conj().T
        return {
            "fidelity": (np.abs(overlaps) ** 2).max(axis=1),
            "delta": COUPLINGS[xxz_points(self.split)[1]],
        }


def rings(config: Config, dataset: Dataset) -> dict[tuple[int, RingSplit], Dataset]:
    """The rings of the stage splits: every split at the size of the study, the published one at the
    others.

    config: of run_unlearn_xxz.py.
    """
    own = [(config.n_sites, split) for split in get_args(RingSplit)]
    others = [
        (n_sites, "interleaved") for n_sites in config.splits.sizes if n_sites != config.n_sites
    ]
    return {
        (n_sites, split): load_xxz(
            n_sites=n_sites, gauge=config.gauge, seed=config.seed, split=split
        )
        for n_sites, split in (*own, *others)
    }


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Every model on rings whose validation states are not among near-copies, and on other sizes;
    config: of run_unlearn_xxz.py."""
    poisons = [*config.poisons_of("noises").values()]
    for (n_sites, split), states in rings(config, dataset).items():
        place = {"sites": n_sites, "ring_split": split}
        yield Row(
            "splits", Fidelity(data=states.provenance["sha256"], split=split), place, fidelity_table
        )
        yield from published_rows(
            config, states, "splits", poisons, config.runs, redrawn=False, **place
        )
        for name in ESTIMATORS:
            yield from estimate_rows(
                config, states, name, "splits", poisons, config.runs, redrawn=False, **place
            )


def fidelity_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """fidelity, delta (sites, ring_split, state)."""
    coords = {axis: [label] for axis, label in row.place.items()} | {
        "state": np.arange(len(arrays["delta"]))
    }
    return xr.Dataset(
        {name: (list(coords), array[None, None].astype(float)) for name, array in arrays.items()},
        coords,
    )


# ---- what is shown ----


def ring_splits(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of every model on each ring, and the QNN minus it."""
    runs = accuracies(read[data, preset, "splits"], "validation")
    return pd.concat([over_runs(runs), circuit_beside(runs)], ignore_index=True)


def fidelities(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The largest fidelity of a validation state with a training state: least, median and largest
    over the states."""
    own = (
        read[data, preset, "splits"]
        .fidelity.stack(place=("sites", "ring_split"))
        .dropna("place", how="all")
    )
    rows = [
        (*place, name, float(own.sel(place=place).quantile(share)))
        for place in own.place.values
        for name, share in {"least": 0, "median": 0.5, "largest": 1}.items()
    ]
    tidy = pd.DataFrame(rows, columns=["sites", "ring_split", "measure", "value"])
    return tidy.assign(sd=np.nan, low=np.nan, high=np.nan, n=own.sizes["state"])


def figure(results: xr.Dataset) -> Figure | None:
    """Validation accuracy of every model on each ring: a panel for each poison and share."""
    from foundation.report.drawing import (
        draw_dot,
        finished,
        grid_for,
        model_styles,
        noises_of,
        poison_words,
    )

    of_rings = results.accuracy.stack(ring=("sites", "ring_split"))
    rings = of_rings.dropna("ring", how="all").ring.values
    names = [f"{sites}, {split.replace('_', ' ')}" for sites, split in rings]
    styles = model_styles(results, ordered(results, "model"))
    for axis, (poison, alpha) in grid_for(noises_of(results), ylabel="validation accuracy", most=3):
        at = {"poison": poison, "alpha_percent": alpha, "split": "validation"}
        for place, (model, (colour, _, marker)) in enumerate(styles.items()):
            aside = (place - (len(styles) - 1) / 2) * 0.7 / len(styles)
            for column, (sites, split) in enumerate(rings):
                accuracy = results.accuracy.sel(
                    at | {"model": model, "sites": sites, "ring_split": split}
                )
                runs = accuracy.dropna("run").values
                if len(runs):
                    style = (colour, marker)
                    draw_dot(axis, column + aside, runs, style, label=model, size=3, width=0.9)
        axis.set_xticks(range(len(names)), labels=names, rotation=60, ha="right")
        axis.set_title(poison_words(poison, alpha))
    text = (
        "sites, and where the validation states stand: among the training states (interleaved, "
        "published), nearer to the transition (far), farther from it (near), at larger Δ (one "
        f"sided). Mean of n = {count_of_runs(results)} runs and its 95 % bootstrap interval over "
        "runs, states held fixed"
    )
    return finished(text, results, legend=True)


TABLE = StudyTable(
    frame=ring_splits,
    rows=("sites", "ring_split", "poison", "alpha_percent", "model"),
    title="Validation accuracy on rings whose validation states stand elsewhere than the training "
    "states, and of other "
    "sizes; mean of n = {n} runs; QNN minus it: paired by run",
)
FIDELITIES = StudyTable(name="fidelities", frame=fidelities, rows=("sites", "ring_split"))

STUDY = Study(
    name="splits",
    question="does it hold far from the training states, and at other sizes",
    plan=plan,
    flags=SplitsFlags(),
    quick={"sizes": (8,)},
    tables=(TABLE, FIDELITIES),
    figures=(StudyFigure(name="splits", draw=figure),),
    data=rings,
)

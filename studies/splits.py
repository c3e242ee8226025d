"""Does it hold far from the training states, and on rings of other sizes?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, get_args

import numpy as np

from datar import Dataset, load_xxz
from foundation.base.checks import require
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
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
from studies.rows import AS_PUBLISHED, placed
from studies.tuning import ESTIMATORS, estimate_rows, published_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim


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
    """Largest fidelity of each validation state with a training state, and its coupling."""

    split: RingSplit

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """fidelity, delta (v,) of each validation state.

        fidelity: the largest |<validation|training>|^2 over training states, all of norm 1. delta:
        its coupling Δ.
        """
        training = dataset.train.x.astype(complex)
        validation = dataset.val.x.astype(complex)
        overlaps = validation @ training.conj().T  # (v, n)
        fidelities = np.abs(overlaps) ** 2
        _, validation_points = xxz_points(self.split)
        return {"fidelity": fidelities.max(axis=1), "delta": COUPLINGS[validation_points]}


def rings(config: Config, dataset: Dataset) -> dict[tuple[int, RingSplit], Dataset]:
    """Load the ring of config.n_sites under every split, and rings of other sizes as published.

    The published split is interleaved. config: of run_unlearn_xxz.py.
    """
    splits_of_size = [(config.n_sites, split) for split in get_args(RingSplit)]
    other_sizes = [size for size in config.splits.sizes if size != config.n_sites]
    published = [(size, "interleaved") for size in other_sizes]
    options = {"gauge": config.gauge, "seed": config.seed}
    return {
        (n_sites, split): load_xxz(n_sites=n_sites, split=split, **options)
        for n_sites, split in (*splits_of_size, *published)
    }


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan every model on each of `rings`; config: of run_unlearn_xxz.py.

    Under the published split validation states stand among near-copies, under the others they do
    not.
    """
    poisons = [*config.poisons_of("noises").values()]
    runs = config.runs
    for (n_sites, split), states in rings(config, dataset).items():
        place = {"sites": n_sites, "ring_split": split}
        job = Fidelity(data=states.provenance["sha256"], split=split)
        yield Row("splits", job, place, fidelity_table)
        options = {"redrawn": False, **place}
        yield from published_rows(config, states, "splits", poisons, runs, **options)
        for name in ESTIMATORS:
            yield from estimate_rows(config, states, name, "splits", poisons, runs, **options)


def fidelity_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """fidelity, delta (sites, ring_split, state)."""
    variables = {name: ("state", array.astype(float)) for name, array in arrays.items()}
    coords = {"state": np.arange(len(arrays["delta"]))}
    return placed(xr.Dataset(variables, coords), row)


# ---- what is shown ----


def ring_splits(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of every model on each ring, and the QNN minus that model."""
    runs = accuracies(read[data, preset, "splits"], "validation")
    return pd.concat([over_runs(runs), circuit_beside(runs)], ignore_index=True)


def fidelities(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Fidelity of validation states on each ring: the least, the median and the largest.

    The fidelity of a validation state is its largest with any training state.
    """
    results = read[data, preset, "splits"]
    fidelity = results.fidelity.stack(place=("sites", "ring_split"))
    fidelity = fidelity.dropna("place", how="all")
    quantiles = {"least": 0, "median": 0.5, "largest": 1}
    rows = []
    for place in fidelity.place.values:
        of_ring = fidelity.sel(place=place)
        for measure, share in quantiles.items():
            value = float(of_ring.quantile(share))
            rows.append((*place, measure, value))
    tidy = pd.DataFrame(rows, columns=["sites", "ring_split", "measure", "value"])
    return tidy.assign(sd=np.nan, low=np.nan, high=np.nan, n=fidelity.sizes["state"])


def figure(results: xr.Dataset) -> Figure | None:
    """Draw validation accuracy of every model on each ring, a panel for each poison and share."""
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
        panel = {"poison": poison, "alpha_percent": alpha, "split": "validation"}
        for place, (model, style) in enumerate(styles.items()):
            colour, _, marker = style
            from_middle = place - (len(styles) - 1) / 2
            aside = from_middle * 0.7 / len(styles)
            for column, (sites, split) in enumerate(rings):
                at = panel | {"model": model, "sites": sites, "ring_split": split}
                runs = results.accuracy.sel(at).dropna("run").values
                if len(runs):
                    form = {"label": model, "size": 3, "width": 0.9, "line_on_top": True}
                    draw_dot(axis, column + aside, runs, (colour, marker), **form)
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
    "states, and of other sizes; mean of n = {n} runs; QNN minus it: paired by run",
)
FIDELITIES = StudyTable(name="fidelities", frame=fidelities, rows=("sites", "ring_split"))


# ---- what is claimed ----


def ahead_elsewhere(read: ResultFiles, split: str) -> Claim:
    """Claim that the QNN is ahead of the MLP on states that have no near-copy in training.

    Control: the QNN minus the nearest class mean. split: of the ring, see `datar.load_xxz`.
    """
    from foundation.report.claims import Claim, first_of, of_model, paired

    runs = accuracies(read["xxz", "corrected", "splits"], "validation").query(
        "ring_split == @split and poison == 'labels' and alpha_percent == 30"
    )
    runs = runs[runs.sites == runs.sites.max()]
    circuit, mlp = (first_of(runs, family) for family in ("QNN", "MLP"))
    effect, control = (
        paired(f"QNN − {name}, published epochs", of_model(runs, circuit), of_model(runs, name))
        for name in (mlp, "nearest class mean")
    )
    words = {"far": "nearer to the transition", "one_sided": "at larger Δ"}[split]
    return Claim(
        whose="ours",
        source="the published split is interleaved",
        setting=AS_PUBLISHED,
        statement=f"The QNN is ahead on states {words} than those of the training set: the ring, "
        "30 % of the labels flipped",
        effect=effect,
        controls=(control,),
    )


STUDY = Study(
    name="splits",
    two_classes=True,
    question="does it hold far from the training states, and at other sizes",
    plan=plan,
    flags=SplitsFlags(),
    quick={"sizes": (8,)},
    tables=(TABLE, FIDELITIES),
    figures=(StudyFigure(name="splits", draw=figure),),
    claims=tuple(partial(ahead_elsewhere, split=split) for split in ("far", "one_sided")),
    data=rings,
)

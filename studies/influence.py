"""Does linear response, by influence functions, predict the oracles?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from datar import Dataset
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays, Job, Runs, keys_of_runs
from foundation.engine.study import Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.measures import forgetting
from foundation.measures.forgetting import Models
from foundation.report.frames import ResultFiles, ordered
from models import Model, Params, logits_of
from poison_unlearn import Task
from protocol import Block, Fit, block_inputs, narrowed, runs_of
from studies.config import Config
from studies.families import model_words
from studies.judging import benchmarked_cases
from studies.methods import Newton
from studies.oracles import Case, measured_places, parts_of, signed_logits, true_labels
from studies.rows import placed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class LinearResponse(Runs):
    """Predict by influence functions how teachers' logits change without the forget set.

    The change of each logit is taken to first order in a Newton step towards the minimum of
    CE(D_r), damped as in the method newton. At a minimum of the loss over all samples this is the
    influence of a group of Koh and Liang (arXiv:1703.04730); elsewhere the remaining gradient of
    that loss contributes as well.
    """

    start: Fit

    @property
    def needs(self) -> tuple[Job, ...]:
        """The teachers."""
        return (self.start,)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return predicted and stepped (runs, n + v), the changes of z.

        predicted: to first order in the step. stepped: by the whole step.
        """
        # A job that unlearns from `start` has the retained samples of the draw of `start`.
        fit = replace(self.start, start=self.start, method=Newton())
        (teacher,) = inputs
        _, block = block_inputs(fit, dataset)
        params = narrowed(fit.model, teacher, block)
        keys = keys_of_runs(self.seed, "linear response", runs=self.runs)
        changes = _linear_response(fit.model, block, params, keys, measured_places(teacher))
        signs = forgetting.signs(true_labels(teacher))
        return {name: np.asarray(change) * signs for name, change in changes.items()}


@partial(jax.jit, static_argnames="model")
def _linear_response(
    model: Model, block: Block, params: Params, keys: jax.Array, places: np.ndarray
) -> dict[str, jax.Array]:
    def one_run(arguments):
        data, start, key = arguments
        samples = jnp.concatenate([data.inputs, block.validation])
        x = samples[block.measured[places]]
        task = Task(model, start, data.retain, data.forget, data.forget_clean, start)
        after, _ = Newton()(task, key)
        step = jax.tree.map(jnp.subtract, after, start)
        before, predicted = jax.jvp(
            lambda params: logits_of(model, params, x, key), (start,), (step,)
        )
        return {"predicted": predicted, "stepped": logits_of(model, after, x, key) - before}

    by_run = block._replace(validation=None, measured=None, columns=None)
    return jax.lax.map(one_run, (by_run, params, keys))


@dataclass(frozen=True, kw_only=True)
class Response(Job):
    """Compare the changes of logits by linear response with true changes, teachers to oracles."""

    case: Case

    @property
    def needs(self) -> tuple[Job, ...]:
        """Teachers, oracles, and the linear response of the teachers."""
        teachers = self.case.teachers()
        linear = [LinearResponse(start=job, **runs_of(job)) for job in teachers]
        return (*teachers, *self.case.oracles("A"), *linear)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return mean changes of z over models, masks of PARTS, and three numbers on each part.

        predicted, stepped, true (n + v,): the changes. forget, retain, validation (n + v,): the
        masks. correlation, agreement (3, 3): Pearson's correlation of predicted with true, and of
        predicted with stepped. share (3, 3): the mean predicted change over the mean true change.
        The axes of (3, 3) are part, and value with its 95 % bounds by halves of the models.
        """
        arms = self._arms(inputs)
        parts = parts_of(inputs[0], self.case.poison)
        masks = {name: getattr(parts, name) for name in PARTS}

        def numbers(arms: dict[str, Models]) -> np.ndarray:
            return _comparison(_mean_changes(arms), list(masks.values()))

        values = numbers(arms)  # (numbers, parts)
        # linear response starts from the teachers, so both are halved alike
        pairs = {"predicted": "teachers", "stepped": "teachers"}
        low, high = forgetting.half_sample_interval(numbers, arms, values, pairs=pairs)
        low[:2] = np.maximum(low[:2], -1)  # correlations are within -1 and 1
        high[:2] = np.minimum(high[:2], 1)
        with_bounds = np.stack([values, low, high], axis=-1)  # (numbers, parts, 3)
        named = dict(zip(NUMBERS, with_bounds, strict=True))
        return _mean_changes(arms) | masks | named | {"size": inputs[0]["size"]}

    def _arms(self, inputs: tuple[Arrays, ...]) -> dict[str, Models]:
        """Gather teachers, oracles, and the changes by linear response, without diverged runs."""
        n = self.case.n
        blocks = self.case.blocks
        jobs = {"teachers": inputs[:blocks], "oracles": inputs[blocks : 2 * blocks]}
        linear = inputs[2 * blocks :]
        arms = {}
        for name, arrays_of_jobs in jobs.items():
            z = np.concatenate([signed_logits(arrays) for arrays in arrays_of_jobs])
            arms[name] = _of_logits(z[:n][_is_kept(arrays_of_jobs)[:n]])
        is_kept = _is_kept(jobs["teachers"])[:n]
        for name in ("predicted", "stepped"):
            changes = np.concatenate([arrays[name] for arrays in linear])
            arms[name] = _of_logits(changes[:n][is_kept])
        return arms


PARTS = ("forget", "retain", "validation")
NUMBERS = ("correlation", "agreement", "share")


def _is_kept(arrays_of_jobs: tuple[Arrays, ...]) -> np.ndarray:
    """Tell which runs of some jobs have not diverged: (runs,)."""
    diverged = np.concatenate([arrays["diverged"] for arrays in arrays_of_jobs])
    return ~diverged


def _mean_changes(arms: dict[str, Models]) -> dict[str, np.ndarray]:
    """Average the true, predicted and stepped changes of z over the models: (n + v,) each."""
    mean = {name: models.z.mean(axis=0) for name, models in arms.items()}
    return {
        "true": mean["oracles"] - mean["teachers"],
        "predicted": mean["predicted"],
        "stepped": mean["stepped"],
    }


def _comparison(changes: dict[str, np.ndarray], masks: list[np.ndarray]) -> np.ndarray:
    """Compare the predicted change with the others, on each part: (len(NUMBERS), parts)."""
    predicted = changes["predicted"]
    rows = []
    for other in ("true", "stepped"):
        pairs = [(predicted[mask], changes[other][mask]) for mask in masks]
        rows.append([np.corrcoef(*pair)[0, 1] for pair in pairs])
    means = np.array([predicted[mask].mean() for mask in masks])
    true_means = np.array([changes["true"][mask].mean() for mask in masks])
    return np.array([*rows, means / true_means])


def _of_logits(z: np.ndarray) -> Models:
    """Make models of their logits alone; all else is a placeholder."""
    steps = np.zeros(len(z))
    numbers = np.arange(len(z))
    return Models(z, z, steps, numbers)


# ---- what is computed ----


BOUNDS = ["value", "low", "high"]


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Compare linear response with oracles in each case of the benchmark, on the first draw."""
    for case, _ in benchmarked_cases(config, dataset, [0]):
        if getattr(case.model, "is_random", False):
            continue  # logits that are drawn at random have no derivative
        place = {"model": case.model.label, "poison": case.poison.name}
        job = Response(data=case.data, case=case)
        yield Row("influence", job, place, response_table, None, model_words(case.model))


def response_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate a Response: predicted, stepped, true (…, sample), member (poison, of, sample).

    correlation, agreement, share (…, of, bound).
    """
    masks = np.stack([arrays[name] for name in PARTS]).astype(np.int8)
    coords = {"of": list(PARTS), "bound": BOUNDS, "sample": np.arange(masks.shape[1])}
    table = xr.Dataset(coords=coords)
    for name in ("predicted", "stepped", "true"):
        table[name] = "sample", arrays[name].astype(np.float32)
    for name in NUMBERS:
        table[name] = ("of", "bound"), arrays[name]
    table = placed(table, row)
    table["member"] = ("poison", "of", "sample"), masks[None]
    return table.assign_coords(size=("model", [int(arrays["size"])]))


# ---- what is shown ----


def responses(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Return the correlation, share and agreement of each Response, on each part.

    Measures are named by the part: its correlation, its share (", predicted / true") and its
    agreement (", the step itself").
    """
    results = read[data, preset, "influence"]
    suffixes = {
        "correlation": "",
        "share": ", predicted / true",
        "agreement": ", the step itself",
    }
    models = ordered(results, "model")
    poisons = ordered(results, "poison")
    rows = []
    for model, poison in itertools.product(models, poisons):
        family = results.family.sel(model=model).item()
        response = results.sel(model=model, poison=poison)
        for name, suffix in suffixes.items():
            for part in results.of.values:
                numbers = response[name].sel(of=part, bound=BOUNDS)
                value, low, high = numbers.values
                measure = f"{part}{suffix}"
                rows.append((family, model, poison, measure, value, np.nan, low, high))
    columns = ["family", "model", "poison", "measure", "value", "sd", "low", "high"]
    return pd.DataFrame(rows, columns=columns).assign(n=0)


def figure(results: xr.Dataset) -> Figure | None:
    """Draw true changes of the logits over those that linear response predicts."""
    from foundation.report.drawing import PALETTE, finished, grid_for, poison_words

    pairs = list(itertools.product(ordered(results, "model"), ordered(results, "poison")))
    marks = {"validation": ("0.75", "."), "retain": ("0.35", "o"), "forget": (PALETTE[3], "^")}
    for axis, (model, poison) in grid_for(pairs, "predicted change of z", "true change of z"):
        response = results.sel(model=model, poison=poison)
        lines = []
        for part, (colour, marker) in marks.items():
            is_member = response.member.sel(of=part).values == 1
            predicted = response.predicted[is_member]
            true = response.true[is_member]
            axis.plot(predicted, true, marker, color=colour, markersize=2, label=part)
            correlation = response.correlation.sel(of=part, bound=BOUNDS)
            value, low, high = correlation.values
            lines.append(f"{part} {value:.2f} [{low:.2f}, {high:.2f}]")
        axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
        numbers = "\n".join(reversed(lines))
        background = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
        form = {"va": "top", "fontsize": 6.5, "bbox": background}
        axis.text(0.03, 0.97, numbers, transform=axis.transAxes, **form)
        axis.set_title(f"{model}, {poison_words(poison)}")
    text = (
        "z: logit signed by the true label, a dot for each sample; true: mean over oracles less "
        "mean over teachers; predicted: first order in a damped Newton step towards the minimum on "
        "the retained samples (influence functions). Numbers: Pearson's correlation, 95 % interval "
        "by halves of the models"
    )
    return finished(text, results, legend=True)


TABLE = StudyTable(
    frame=responses,
    rows=("poison", "model"),
    title="Pearson's correlation over samples of the change of the logits by linear response with "
    "the true one (oracles less teachers), the mean predicted change over the mean true one, and "
    "the correlation with the change by the whole Newton step; 95 % intervals by halves of the "
    "models",
)
STUDY = Study(
    name="influence",
    two_classes=True,
    question="what does linear response say of the oracles",
    plan=plan,
    tables=(TABLE,),
    figures=(StudyFigure(name="linear_response", draw=figure),),
)

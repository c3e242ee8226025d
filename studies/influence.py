"""What does linear response, by influence functions, say of the oracles?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from datar import Dataset
from foundation.engine.jobs import Arrays, Job, Runs, random_key
from foundation.engine.study import Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.measures import forgetting as evaluation
from foundation.measures.forgetting import Models
from foundation.report.frames import ResultFiles, ordered
from models import Model, Params, logits_of
from poison_unlearn import Task
from protocol import Block, Fit, block_inputs, narrowed, runs_of
from studies.config import Config
from studies.families import model_words
from studies.judging import benchmarked_cases
from studies.methods import Newton
from studies.oracles import Case, _parts, _seen, _signed_logits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class LinearResponse(Runs):
    """What teachers' logits would do if the forget set were taken out, by linear response:
    influence functions.

    A Newton step towards the minimum of CE(D_r), damped as in the method newton, and the change of
    each logit to first order in it. At a minimum of the loss over all samples it is that of Koh and
    Liang (arXiv:1703.04730) for a group; elsewhere what is left of that loss's gradient is in it as
    well.
    """

    start: Fit

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.start,)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """predicted, stepped (runs, n + v): the change of z to first order, and what the whole step
        does."""
        # the retained samples, and the same draw
        fit = replace(self.start, start=self.start, method=Newton())
        _, block = block_inputs(fit, dataset)
        params = narrowed(fit.model, inputs[0], block)
        keys = jnp.stack([random_key(self.seed, "linear response", run) for run in self.runs])
        changes = _linear_response(fit.model, block, params, keys, _seen(inputs[0]))
        true = inputs[0]["label"][0, _seen(inputs[0], clean=True)]
        return {name: np.asarray(each) * evaluation.signs(true) for name, each in changes.items()}


@partial(jax.jit, static_argnames="model")
def _linear_response(
    model: Model, block: Block, params: Params, keys: jax.Array, seen: np.ndarray
) -> dict[str, jax.Array]:
    def one_run(arguments):
        own, start, key = arguments
        x = jnp.concatenate([own.inputs, block.validation])[block.measured[seen]]
        task = Task(model, start, own.retain, own.forget, own.forget_clean, start)
        after, _ = Newton()(task, key)
        step = jax.tree.map(jnp.subtract, after, start)
        before, predicted = jax.jvp(
            lambda params: logits_of(model, params, x, key), (start,), (step,)
        )
        return {"predicted": predicted, "stepped": logits_of(model, after, x, key) - before}

    return jax.lax.map(
        one_run, (block._replace(validation=None, measured=None, columns=None), params, keys)
    )


@dataclass(frozen=True, kw_only=True)
class Response(Job):
    """The change of each logit by linear response beside the true one: that of oracles against
    teachers."""

    case: Case

    @property
    def needs(self) -> tuple[Job, ...]:
        teachers = self.case.teachers()
        linear = [LinearResponse(start=job, **runs_of(job)) for job in teachers]
        return (*teachers, *self.case.oracles("A"), *linear)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """predicted, stepped, true (n + v,): mean changes of z over models; forget, retain,
        validation (n + v,) masks.

        correlation, agreement (3, 3): Pearson's of predicted with true, and with stepped, on each
        of those parts, and its 95 % bounds by halves of the models. share (3, 3): the mean
        predicted change over the mean true one.
        """
        blocks = self.case.blocks
        teachers, oracles, linear = (
            inputs[:blocks],
            inputs[blocks : 2 * blocks],
            inputs[2 * blocks :],
        )
        arms = {"teachers": teachers, "oracles": oracles}
        z = {
            name: np.concatenate([_signed_logits(each) for each in own])[: self.case.n]
            for name, own in arms.items()
        }
        z |= {
            name: np.concatenate([each[name] for each in linear])[: self.case.n]
            for name in ("predicted", "stepped")
        }
        lost = {
            name: np.concatenate([each["diverged"] for each in own])[: self.case.n]
            for name, own in arms.items()
        }
        lost |= dict.fromkeys(("predicted", "stepped"), lost["teachers"])
        arms = {name: _bare(own[~lost[name]]) for name, own in z.items()}
        parts = _parts(inputs[0])
        chosen = (parts.forget, parts.retain, parts.validation)

        def changes(own: dict[str, Models]) -> dict[str, np.ndarray]:
            mean = {name: models.z.mean(axis=0) for name, models in own.items()}
            return {
                "true": mean["oracles"] - mean["teachers"],
                "predicted": mean["predicted"],
                "stepped": mean["stepped"],
            }

        def numbers(own: dict[str, Models]) -> np.ndarray:
            true, predicted, stepped = changes(own).values()
            alike = [
                [np.corrcoef(predicted[part], other[part])[0, 1] for part in chosen]
                for other in (true, stepped)
            ]
            return np.array(
                [*alike, [predicted[part].mean() / true[part].mean() for part in chosen]]
            )

        found = numbers(arms)
        pairs = dict.fromkeys(("predicted", "stepped"), "teachers")
        low, high = evaluation.half_sample_interval(numbers, arms, found, pairs=pairs)
        low[:2], high[:2] = np.maximum(low[:2], -1), np.minimum(high[:2], 1)
        bounded = np.stack([found, low, high], axis=-1)  # (numbers, parts, 3)
        masks = dict(zip(PARTS, chosen, strict=True))
        named = dict(zip(("correlation", "agreement", "share"), bounded, strict=True))
        return changes(arms) | masks | named | {"size": inputs[0]["size"]}


PARTS = ("forget", "retain", "validation")


def _bare(z: np.ndarray) -> Models:
    """Models of which only the logits matter."""
    return Models(z, z, np.zeros(len(z)), np.arange(len(z)))


# ---- what is computed ----


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """The change of each logit by linear response beside the true one, on the first draw of the
    poison."""
    for case, _ in benchmarked_cases(config, dataset, [0]):
        if getattr(case.model, "is_random", False):
            continue  # what is drawn has no derivative to go by
        place = {"model": case.model.label, "poison": case.poison.kind}
        job = Response(data=case.data, case=case)
        yield Row("influence", job, place, response_table, None, model_words(case.model))


def response_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """predicted, stepped, true (…, sample), member (poison, of, sample); three numbers (…, of,
    bound): see Response."""
    coords = {axis: [label] for axis, label in row.place.items()}
    table = xr.Dataset(coords=coords | {"of": list(PARTS), "bound": ["value", "low", "high"]})
    for name in ("predicted", "stepped", "true"):
        table[name] = (*row.place, "sample"), arrays[name][None, None].astype(np.float32)
    for name in ("correlation", "agreement", "share"):
        table[name] = (*row.place, "of", "bound"), arrays[name][None, None]
    table["member"] = (
        ("poison", "of", "sample"),
        np.stack([arrays[name] for name in PARTS])[None].astype(np.int8),
    )
    table = table.assign_coords(sample=np.arange(table.sizes["sample"]))
    return table.assign_coords(size=("model", [int(arrays["size"])]))


# ---- what is shown ----


BOUNDS = ["value", "low", "high"]


def responses(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The logits' change by linear response beside the true one, and beside that of the whole step:
    correlations.

    predicted / true: the mean predicted change over the mean true one.
    """
    results, rows = read[data, preset, "influence"], []
    for model, poison in itertools.product(ordered(results, "model"), ordered(results, "poison")):
        for name, words in {
            "correlation": "",
            "share": ", predicted / true",
            "agreement": ", the step itself",
        }.items():
            for part in results.of.values:
                value, low, high = (
                    results[name].sel(model=model, poison=poison, of=part, bound=BOUNDS).values
                )
                family = results.family.sel(model=model).item()
                rows.append((family, model, poison, f"{part}{words}", value, np.nan, low, high))
    return pd.DataFrame(
        rows, columns=["family", "model", "poison", "measure", "value", "sd", "low", "high"]
    ).assign(n=0)


def figure(results: xr.Dataset) -> Figure | None:
    """The change of each logit that linear response predicts against the true one, for each model
    and poison."""
    from foundation.report.drawing import PALETTE, finished, grid_for, poison_words

    pairs = list(itertools.product(ordered(results, "model"), ordered(results, "poison")))
    marks = {"validation": ("0.75", "."), "retain": ("0.35", "o"), "forget": (PALETTE[3], "^")}
    for axis, place in grid_for(pairs, "predicted change of z", "true change of z"):
        own, words = results.sel(model=place[0], poison=place[1]), []
        for part, (colour, marker) in marks.items():
            chosen = own.member.sel(of=part).values == 1
            axis.plot(
                own.predicted[chosen],
                own.true[chosen],
                marker,
                color=colour,
                markersize=2,
                label=part,
            )
            value, low, high = own.correlation.sel(of=part, bound=BOUNDS).values
            words.append(f"{part} {value:.2f} [{low:.2f}, {high:.2f}]")
        axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
        behind = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
        axis.text(
            0.03,
            0.97,
            "\n".join(reversed(words)),
            transform=axis.transAxes,
            va="top",
            fontsize=6.5,
            bbox=behind,
        )
        axis.set_title(f"{place[0]}, {poison_words(place[1])}")
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
    "the true one (oracles "
    "less teachers), the mean predicted change over the mean true one, and the correlation with "
    "the change by the whole "
    "Newton step; 95 % intervals by halves of the models",
)
STUDY = Study(
    name="influence",
    question="what does linear response say of the oracles",
    plan=plan,
    tables=(TABLE,),
    figures=(StudyFigure(name="linear_response", draw=figure),),
)

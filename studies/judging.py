"""How far unlearned models are from oracles: the scores, their rows, tables and figures. Several
studies judge so."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from datar import Dataset
from foundation.engine.jobs import Arrays, Job
from foundation.engine.study import StudyTable
from foundation.engine.study_files import Row
from foundation.measures import forgetting as evaluation
from foundation.measures.forgetting import (
    MEASURES,
    PRIMARY,
    SIGNIFICANT,
    Measure,
    Models,
    holm,
    smallest_p,
    verdict,
)
from foundation.report.frames import (
    VERDICTS,
    ResultFiles,
    count_of_runs,
    fewest_and_most_runs,
    method_titles,
    models_and_poisons,
)
from models import Model, Training
from poison_unlearn import Method
from protocol import Fit, runs_of
from studies.config import Config
from studies.families import model_words
from studies.oracles import (
    Case,
    Choice,
    Chosen,
    Relearn,
    _parts,
    _signed_logits,
    cases,
    choice_of,
    choice_table,
)
from studies.rows import scores_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


EXAMPLES = 4  # forget samples whose logits a study's file holds


# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class Score(Job):
    """All measures of one arm against half B of the oracles: of a method and its null, of teachers,
    of more oracles."""

    case: Case
    choice: Choice | None = None  # the method's; None: no method is judged
    arm: str = ""  # then what: teacher or oracle
    measures: tuple[tuple[str, Measure], ...] = tuple(MEASURES.items())

    def groups(self) -> dict[str, list[Fit]]:
        """The jobs of the arms that are compared."""
        case, choice = self.case, self.choice
        own = (
            case.chosen(choice)
            if choice
            else case.teachers()
            if self.arm == "teacher"
            else case.oracles(self.arm)
        )
        null = {"null": case.chosen(choice, null=True)} if choice else {}
        return {"models": own, "floor": case.oracles("A"), "oracles": case.oracles("B")} | null

    @property
    def needs(self) -> tuple[Job, ...]:
        jobs = [job for group in self.groups().values() for job in group]
        return (*jobs, *(Relearn(start=job, case=self.case, **runs_of(job)) for job in jobs))

    @property
    def title(self) -> str:
        return f"score {self.case.model.label} {self.case.poison.kind}"

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """What `evaluation.scores` gives of each measure, (measures,) each; p (), of the primary
        one.

        true_positive (101,): of U-LiRA's attack at RATES. lost (): runs of the arms that diverged,
        which are left out. angles (): those that move the logits, of a circuit.
        """
        half = len(inputs) // 2
        arrays = list(zip(inputs[:half], inputs[half:], strict=True))
        sizes = [len(group) for group in self.groups().values()]
        ends = np.cumsum(sizes)
        arms = {
            name: _models(self.case, arrays[end - size : end])
            for name, size, end in zip(self.groups(), sizes, ends, strict=True)
        }
        lost = sum(self.case.n - arm.count for arm in arms.values())
        found = {"lost": np.array(lost), "angles": np.array(_acting_angles(self.case.model))}
        parts = _parts(inputs[0])
        if "null" in arms and arms["null"].count < 4:  # which says nothing of the method
            del arms["null"]
        if min(arm.count for arm in arms.values()) < 4:  # nothing can be said of them
            return (
                found
                | {name: np.full(len(self.measures), np.nan) for name in evaluation.SCORES}
                | {"p": np.array(np.nan), "true_positive": np.full(len(RATES), np.nan)}
            )
        nothing = dict.fromkeys(evaluation.SCORES, np.nan)
        can = [_truth_is_known(dataset) or not measure.needs_truth for _, measure in self.measures]
        rows = [
            evaluation.scores(measure, parts=parts, **arms) if own else nothing
            for (_, measure), own in zip(self.measures, can, strict=True)
        ]
        found |= {name: np.array([row[name] for row in rows]) for name in evaluation.SCORES}
        own = [arms[name] for name in ("models", "floor", "oracles")]
        found["p"] = np.array(evaluation.permutation_p(dict(self.measures)[PRIMARY], *own, parts))
        attack = (arms[name].z[:, parts.forget] for name in ("models", "oracles"))
        found["true_positive"] = np.interp(
            RATES, *evaluation.roc(*evaluation.likelihood_ratios(*attack))
        )
        return found


def _truth_is_known(dataset: Dataset) -> bool:
    """Whether it is known what the samples were before the poison: data that came with it may not
    say."""
    train, given = dataset.train, dataset.given
    return given is None or not all(map(np.array_equal, train, given.clean))


RATES = np.linspace(0, 1, 101)  # false positive ones, of the ROC curves that are kept


def _models(case: Case, blocks: list[tuple[Arrays, Arrays]]) -> Models:
    """What the n models of an arm say, from their jobs and those of Relearn; without those that
    diverged."""
    kept = [~np.asarray(arrays["diverged"], bool) for arrays, _ in blocks]
    z, clean = (
        np.concatenate([_signed_logits(arrays, clean=before) for arrays, _ in blocks])
        for before in (0, 1)
    )
    steps = np.concatenate([again["steps"] for _, again in blocks]).astype(float)
    models = Models(z, clean, steps, np.arange(len(z)))
    return models.take(np.flatnonzero(np.concatenate(kept)[: case.n]))


def _acting_angles(model: Model) -> int:
    """How many angles of a circuit move its logits; 0 for other models."""
    if getattr(model, "family", "") != "QNN":
        return 0
    model, key = replace(model, shots=0), jax.random.key(0)
    params = jax.random.normal(key, jnp.shape(model.init(key)))
    state = jax.random.normal(key, (1, 2**model.n_qubits))
    state = state / jnp.linalg.norm(state)
    gradient = jax.jit(jax.grad(lambda params: model.logits(params, model.prepare(state))[0]))(
        params
    )
    return int(np.sum(np.abs(np.asarray(gradient)) > 1e-6))


# ---- rows ----


def judged_rows(
    config: Config,
    case: Case,
    methods: dict[str, Method],
    dataset: Dataset,
    study: str,
    selection: str,
) -> Iterator[Row]:
    """Rows of one case: of teachers and oracles, and of these methods where they can run on its
    model."""
    # by why they cannot
    place, able = ({"model": case.model.label, "poison": case.poison.kind}, {"": []})
    for name, method in methods.items():
        able.setdefault(method.why_not(case.model), []).append(name)
    left_out = "; ".join(
        f"{', '.join(names)}: {reason}" for reason, names in able.items() if reason
    )
    model = model_words(case.model) | {"left_out": ("model", left_out)}
    choices = {name: choice_of(config, case, methods[name], dataset) for name in able[""]}
    for name, choice in choices.items():
        if case.draw == 0 and choice.is_asked:
            yield Row(selection, choice, place | {"unlearner": name}, choice_table, None, model)
    for name in ("teacher", "oracle", *choices):
        score = Score(
            data=case.data,
            case=case,
            choice=choices.get(name),
            arm="" if name in choices else name,
            measures=tuple(MEASURES.items()),
        )
        at, method = place | {"unlearner": name, "draw": case.draw}, methods.get(name)
        words = model | {
            "title": ("unlearner", (method.title or name) if method else name),
            "reads_truth": ("unlearner", float(method.reads_truth if method else False)),
        }
        for job in score.groups()["models"]:
            yield Row(study, job, at, arm_table, case.shown(job), words)
        yield Row(study, score, at, score_table, None, words)


def benchmarked_cases(
    config: Config, dataset: Dataset, draws: Iterable[int]
) -> Iterator[tuple[Case, Training]]:
    """The cases of the benchmark: each of its MLPs, other models once; its poisons, or the one the
    data came with."""
    configs = [replace(config, evaluated_hidden=widths) for widths in config.benchmarked_hidden]
    every = dict(pair for own in configs for pair in cases(own, dataset, draws, config.teachers))
    yield from (
        pair
        for pair in every.items()
        if pair[0].poison.kind in (*config.benchmarked_poisons, "given")
    )


def arm_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy, loss, diverged as of other studies; gradients (…): of single samples, of one run; z
    of some samples."""
    job, known = row.job, arrays["known"][0].astype(bool)
    table = scores_table(row, arrays).drop_vars("loss")
    method = job.choice.candidates[int(arrays["chosen"])] if isinstance(job, Chosen) else job.method
    n_forget = int(known.sum()) if job.forgets else 0
    gradients = float(method.cost(job.model, len(known) - n_forget, n_forget))
    table["gradients"] = tuple(row.place), np.full((1,) * len(row.place), gradients)
    z = _signed_logits(arrays)[:, np.flatnonzero(known)[:EXAMPLES]]
    dims = (*row.place, "run", "example")
    table["z"] = dims, z[(None,) * len(row.place)].astype(np.float32)
    return table.assign_coords(example=np.arange(z.shape[1]))


def score_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """What `evaluation.scores` gives (…, measure); p, lost, angles (…); true_positive (…,
    false_positive)."""
    coords = {axis: [label] for axis, label in row.place.items()}
    names = [name for name, _ in row.job.measures]
    expand = (None,) * len(row.place)
    table = xr.Dataset(coords=coords | {"measure": names, "false_positive": RATES})
    for name, array in arrays.items():
        dims = {0: (), 1: ("false_positive",) if name == "true_positive" else ("measure",)}[
            array.ndim
        ]
        table[name] = (*row.place, *dims), np.asarray(array, float)[expand]
    return table.assign_coords(
        measure_title=("measure", [measure.title for _, measure in row.job.measures])
    )


# ---- tables ----


def judged(read: ResultFiles, data: str, preset: str, *, study: str) -> pd.DataFrame:
    """Every measure of every arm, the mean over the draws, with what decides on the primary one,
    and the cost.

    low and high: of the mean over these draws, from the half-sample bounds in each. verdict: a
    place in VERDICTS, that of all draws where they agree, else undecided.
    """
    return over_draws(read[data, preset, study])


def over_draws(results: xr.Dataset) -> pd.DataFrame:
    """What `judged` gives of a study."""
    labels = ["model", "poison", "unlearner", "draw"]
    names = [
        name for name, array in results.data_vars.items() if array.dims == (*labels, "measure")
    ]
    rows = results[names].to_dataframe().reset_index()
    rows = rows.dropna(subset=["value"])
    keys = [*labels[:-1], "measure"]
    groups = rows.groupby(keys, sort=False)
    means, n, parts = groups.mean(numeric_only=True), groups.size(), {}
    for name, words in {"value": "", "gain": " gain"}.items():
        low, high = f"{name}_low", f"{name}_high"
        squares = rows[[low, high]].sub(rows[name], axis=0) ** 2
        bounds = np.sqrt(squares.groupby([rows[key] for key in keys], sort=False).sum()).div(
            n, axis=0
        )
        ends = {"low": means[name] - bounds[low], "high": means[name] + bounds[high]}
        parts[words] = pd.DataFrame({"value": means[name], "sd": groups[name].std(), **ends})
    is_distance = groups.value.min() >= 0  # the bound of which is no less than 0
    parts[""]["low"] = parts[""].low.mask(is_distance, parts[""].low.clip(lower=0))
    parts |= {
        f" {name}": means[[name]].set_axis(["value"], axis=1)
        for name in ("floor", "null", "perfect", "unit")
    }
    tidy = pd.concat(
        [
            part.assign(n=n)
            .reset_index()
            .assign(measure=lambda frame, words=words: frame.measure + words)
            for words, part in parts.items()
        ]
    )
    tidy = pd.concat(
        [tidy, _verdicts(rows, results), _costs(results), _collapsed(results)], ignore_index=True
    )
    missing = _without_numbers(tidy, results)
    tidy = pd.concat([tidy, missing.assign(measure=PRIMARY)], ignore_index=True)
    families = results.family.to_series().to_dict()
    return tidy.assign(
        family=tidy.model.map(families), title=tidy.unlearner.map(method_titles(results))
    )


def _verdicts(rows: pd.DataFrame, results: xr.Dataset) -> pd.DataFrame:
    """verdict, and p after Holm (the largest over the draws), of each arm.

    No verdict where an arm is missing on one of the draws, or where so few models over so many rows
    could not give one.
    """
    rows = rows[rows.measure == PRIMARY].merge(results.p.to_dataframe().reset_index())
    teachers = rows[rows.unlearner == "teacher"][["model", "poison", "draw", "excess"]]
    rows = rows.merge(
        teachers.rename(columns={"excess": "teacher_excess"}), on=["model", "poison", "draw"]
    )
    rows["holm"] = rows.groupby("draw").p.transform(holm)
    rows["verdict"] = list(map(verdict, rows.holm, rows.excess_high, rows.teacher_excess))
    n, draws, found = fewest_and_most_runs(results)[0], results.sizes["draw"], []
    attainable = rows.groupby("draw").size().max() * smallest_p(int(n)) < SIGNIFICANT
    for place, own in rows.groupby(["model", "poison", "unlearner"], sort=False):
        agreed = (
            own.verdict.iloc[0] if own.verdict.nunique() == 1 and len(own) == draws else "undecided"
        )
        known = VERDICTS.index(agreed) if attainable else np.nan
        found += [(*place, "verdict", known, len(own)), (*place, "p", own.holm.max(), len(own))]
    return pd.DataFrame(found, columns=["model", "poison", "unlearner", "measure", "value", "n"])


def _costs(results: xr.Dataset) -> pd.DataFrame:
    """cost: gradients over those of an oracle; seconds of one training; executions, of circuits, by
    parameter shift."""
    means = results[["gradients", "angles"]].mean("draw").to_dataframe().dropna().reset_index()
    oracle = means[means.unlearner == "oracle"].set_index(["model", "poison"]).gradients
    spent: dict[tuple, list[float]] = {}
    for address, entry in json.loads(results.attrs["jobs"]).items():
        place = json.loads(address)[0]
        if entry["trainings"]:
            own = spent.setdefault((place["model"], place["poison"], place["unlearner"]), [])
            own.append(entry["seconds"] / entry["trainings"])
    found = []
    for row in means.itertuples():
        place = (row.model, row.poison, row.unlearner)
        found += [(*place, "cost", row.gradients / oracle[row.model, row.poison])]
        found += [(*place, "seconds", float(np.mean(spent[place])))] if place in spent else []
        found += [(*place, "executions", 2 * row.angles * row.gradients)] if row.angles else []
    return pd.DataFrame(found, columns=["model", "poison", "unlearner", "measure", "value"]).assign(
        n=results.sizes["draw"]
    )


def _without_numbers(tidy: pd.DataFrame, results: xr.Dataset) -> pd.DataFrame:
    """model, poison, unlearner of arms that cannot run on a model, or of which all runs
    diverged."""
    arms = itertools.product(models_and_poisons(results), results.unlearner.values)
    every = pd.DataFrame(
        [(*pair, arm) for pair, arm in arms], columns=["model", "poison", "unlearner"]
    )
    found = every.merge(tidy[list(every)].drop_duplicates(), how="left", indicator="there")
    return found[found.there == "left_only"].drop(columns="there")


def _collapsed(results: xr.Dataset) -> pd.DataFrame:
    """collapsed: how many runs of each arm end on validation no better than naming one class would,
    or worse."""
    accuracy = results.accuracy.sel(split="validation")
    count = (
        (accuracy < COLLAPSED).sum(("draw", "run")).where(accuracy.notnull().any(("draw", "run")))
    )
    return count.rename("value").to_series().dropna().reset_index().assign(measure="collapsed")


COLLAPSED = 0.55  # the larger class is .53 of the 2,144 images, .50 of the 84 states


FORGETTING = {  # measures of the stage evaluation, by what a table calls them
    "w1": "W1",
    "w1 floor": "floor",
    "w1 unit": "random halves",
    "w1 null": "null arm",
    "p": "p",
    "verdict": "verdict",
    "klom": "KLoM",
    "epsilon": "ε",
    "auc": "AUC",
    "relearn": "relearn",
    "gap": "gap",
    "cost": "cost",
}
COLLAPSE = {"collapsed": "collapsed"}


def table_of(study: str, title: str, *, collapsed: bool = False) -> StudyTable:
    """The table of a study that is judged; collapsed: with the runs that no longer say anything."""
    measures = FORGETTING | (COLLAPSE if collapsed else {})
    further = {"tow": "ToW", "tpr": "TPR", "corrective": "acc. poisoned", "seconds": "seconds"}
    every = FORGETTING | further | (COLLAPSE if study != "evaluation" else {})
    return StudyTable(
        frame=partial(judged, study=study),
        rows=("poison", "model", "unlearner"),
        measures=measures,
        spread=("w1",),
        title=title,
        findings={"rows": ("poison", "model", "title"), "measures": every},
    )


# ---- figures ----


def forgetting_scores(results: xr.Dataset) -> Figure | None:
    """Distance of every arm from the oracles by every measure, in units of the floor: a heat map
    for each model."""
    from foundation.report.drawing import (
        GRID,
        draws_words,
        finished,
        grid_for,
        matplotlib,
        plt,
        poison_words,
        sns,
    )

    rows, titles = models_and_poisons(results), method_titles(results)
    if not rows:
        return None
    measures = [name for name in MEASURES if name in results.measure.values]
    measures += [name for name in results.measure.values if name not in measures]
    ratio = results.distance / results.unit.where(results.unit > 0)
    ratio = ratio.mean("draw", skipna=False).sel(measure=measures, unlearner=list(titles))
    norm = matplotlib.colors.LogNorm(1, np.nanmax([10.0, float(ratio.max())]))
    columns = min(len(rows), GRID if len(titles) < 10 else 2)  # wide panels
    for index, (axis, (model, poison)) in enumerate(list(grid_for(rows, most=columns))):
        cells = ratio.sel(model=model, poison=poison).transpose("measure", "unlearner").values
        image = _draw_cells(axis, cells, norm)
        axis.set_title(f"{model}\n{poison_words(poison)}")
        axis.set_xticks(range(len(titles)), labels=titles.values(), rotation=60, ha="right")
        names = results.measure_title.sel(measure=measures).values
        shown = names if index % columns == 0 else [""] * len(names)
        axis.set_yticks(range(len(measures)), labels=shown)
        axis.tick_params(length=0)
        sns.despine(ax=axis, left=True, bottom=True)
    figure, down = plt.gcf(), -(-len(rows) // columns)
    figure.set_size_inches((0.35 * len(titles) + 0.2) * columns + 1.4, 3.3 * down + 0.6)
    label = "distance from the oracles over the floor"
    figure.colorbar(image, ax=figure.axes, label=label, shrink=0.7)
    some_left_out = "left_out" in results.coords and any(results.left_out)
    others = ", or a method that cannot run there" * bool(some_left_out)
    text = (
        "distance of each arm from perfect unlearning, over that of one half of the oracles from "
        f"the other (mean over random halves); {draws_words(results)}. 1: as far as oracles are "
        f"from each other; dash: no floor, all oracles give one value{others}"
    )
    return finished(text, results)


def _draw_cells(axis: Axes, cells: np.ndarray, norm: Any) -> Any:
    """A heat map with its numbers; returns the image, for the colour bar."""
    image = axis.imshow(cells, cmap="cividis", norm=norm, aspect="auto")
    for (row, column), cell in np.ndenumerate(cells):
        is_bright = not cell > 0 or norm(cell) > 0.6
        form = {"fontsize": 5.5, "color": "black" if is_bright else "white"}
        axis.text(column, row, _in_a_cell(cell), ha="center", va="center", **form)
    return image


def _in_a_cell(number: float) -> str:
    """0.86, 53, 541, 2e4; a dash for NaN."""
    if np.isnan(number):
        return "–"
    if number < 100:
        return f"{number:.2g}"
    return f"{number:.0f}" if number < 1e4 else f"{number:.0e}".replace("e+0", "e")


def forgetting_logits(results: xr.Dataset) -> Figure | None:
    """Logits, signed by the true label, of some forget samples in every arm, on the first draw of
    the poison."""
    from foundation.report.drawing import arm_styles, finished, panels_for, poison_words

    rows, titles, styles = models_and_poisons(results), method_titles(results), arm_styles(results)
    if not rows:
        return None
    examples = results.example.values[:3]
    generator = np.random.default_rng(0)  # scatters the dots sideways
    pairs = itertools.product(rows, examples)
    for axis, ((model, poison), example) in panels_for(pairs, "signed logit", rows=len(rows)):
        own = results.z.sel(model=model, poison=poison, example=example)[{"draw": 0}]
        for place, arm in enumerate(reversed(titles)):
            values = own.sel(unlearner=arm).dropna("run").values
            colour, _ = styles[arm]
            axis.plot(
                values,
                place + generator.uniform(-0.25, 0.25, len(values)),
                "o",
                color=colour,
                markersize=2,
                alpha=0.7,
            )
            if len(values):
                axis.vlines(
                    np.median(values), place - 0.38, place + 0.38, color="black", linewidth=1.2
                )
        axis.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        shown = list(reversed(titles.values())) if example == examples[0] else [""] * len(titles)
        axis.set_yticks(range(len(titles)), labels=shown)
        axis.set_title(
            f"{model}, {poison_words(poison)},\nforget sample {example + 1}",
            fontsize=7.5,
        )
    text = (
        f"logits of the first {len(examples)} samples of the forget set, positive where they are "
        f"for the true label; a dot for each of n = {count_of_runs(results)} models, bar: median; "
        "first draw"
    )
    return finished(text, results)


def forgetting_attack(results: xr.Dataset) -> Figure | None:
    """ROC of U-LiRA's attack, which tells unlearned models from oracles by their logits on the
    forget set."""
    from foundation.report.drawing import arm_styles, draws_words, finished, grid_for, poison_words

    rows, titles, styles = models_and_poisons(results), method_titles(results), arm_styles(results)
    if not rows:
        return None
    for axis, (model, poison) in grid_for(rows, "false positive rate", "true positive rate"):
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
        for arm, title in titles.items():
            curve = results.true_positive.sel(model=model, poison=poison, unlearner=arm).mean(
                "draw"
            )
            colour, line = styles[arm]
            axis.plot(curve.false_positive, curve, color=colour, linestyle=line, label=title)
        axis.axvline(0.05, color="0.8", linewidth=0.8, zorder=0)
        axis.set(title=f"{model}, {poison_words(poison)}", xlim=(0, 1), ylim=(0, 1))
    text = (
        f"likelihood-ratio attack on the forget set; {draws_words(results)}; oracle: further "
        "oracles in a method's place (the floor); vertical line: 5 % false positives"
    )
    return finished(text, results, legend=True)


def forgetting_cost(results: xr.Dataset) -> Figure | None:
    """Distance from the oracles of every arm, by its cost, which stands beside its name; the line
    is the floor."""
    from foundation.report.drawing import (
        arm_styles,
        draws_words,
        finished,
        grid_for,
        log_ticks,
        matplotlib,
        plt,
        poison_words,
    )

    rows, titles, styles = models_and_poisons(results), method_titles(results), arm_styles(results)
    if not rows:
        return None
    data = over_draws(results)
    for axis, place in grid_for(rows, "W1 on the forget set", most=2):
        at = (data.model == place[0]) & (data.poison == place[1])
        numbers = data[at].set_index(["unlearner", "measure"])
        floor = numbers.value.get(("oracle", f"{PRIMARY} unit"), np.nan)
        axis.axvline(floor, color="0.6", linestyle="--", linewidth=0.9)
        costs = _costs_of_arms(numbers, titles)
        for row, arm in enumerate(costs):
            point, colour = numbers.loc[(arm, PRIMARY)], styles[arm][0]
            axis.hlines(row, point.low, point.high, color=colour, linewidth=1)
            axis.plot(point.value, row, "o", color=colour, markersize=4)
        labels = [f"{titles[arm]}  {cost:.2f}" for arm, cost in costs.items()]
        axis.set_yticks(range(len(costs)), labels=labels, fontsize=7)
        axis.set(title=f"{place[0]}\n{poison_words(place[1])}", xscale="log")
        axis.xaxis.set_major_locator(log_ticks(*axis.get_xlim(), numticks=5))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    figure, down = plt.gcf(), -(-len(rows) // 2)
    height = max(0.16 * len(titles) + 0.85, 1.65) * down + 0.4
    figure.set_size_inches(figure.get_figwidth() * 1.1, height)
    text = (
        f"W1 distance of the logits from half of the oracles; {draws_words(results)}; bars: 95 % "
        "intervals (half-sampling, conditional on the draws). Behind each name: its gradients over "
        "those of an oracle's training (the teacher: none). Dashed: the floor, one half of the "
        "oracles from the other"
    )
    return finished(text, results)


def _costs_of_arms(numbers: pd.DataFrame, arms: Iterable[str]) -> dict[str, float]:
    """The cost of each arm that has a distance, the dearest first; the teacher's is nothing.

    numbers: indexed by unlearner and measure.
    """
    there = set(numbers.index)
    known = [arm for arm in arms if {(arm, PRIMARY), (arm, "cost")} <= there]
    costs = {arm: 0.0 if arm == "teacher" else numbers.value[arm, "cost"] for arm in known}
    return dict(sorted(costs.items(), key=lambda pair: pair[1], reverse=True))

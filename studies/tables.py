"""Tidy frames of the studies that are not on the record yet, and how they are laid out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from foundation.engine.study import StudyTable
from foundation.measures import metrics
from foundation.measures.forgetting import PRIMARY, SIGNIFICANT, holm, smallest_p, verdict
from foundation.report.frames import (
    SOURCES,
    VERDICTS,
    Make,
    ResultFiles,
    accuracies,
    difference,
    every_run,
    fewest_and_most_runs,
    method_titles,
    models_and_poisons,
    one_of_each_family,
    ordered,
    over_runs,
    tidy,
)
from foundation.report.layout import Table


def sweep(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of the noise sweep."""
    return over_runs(accuracies(read[data, preset, "noise_sweep"], "validation"))


def gauges(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy under each gauge."""
    return over_runs(under_gauges(read[data, preset, "gauge"]))


def under_gauges(results: xr.Dataset) -> pd.DataFrame:
    """Every run's validation accuracy; a model that was trained under one gauge only is said to be under any."""
    runs = accuracies(results, "validation")
    alone = (runs.groupby("model").gauge.transform("nunique") == 1) & (results.sizes["gauge"] > 1)
    return runs.assign(gauge=runs.gauge.str.replace("_", " ").mask(alone, "any gauge"))


def unlearning(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracies of teachers (start) and after each method; std over runs and largest drop (median) of validation."""
    runs = accuracies(read[data, preset, "unlearning"], "validation", "forget_poisoned", "forget_clean", "retain")
    validation = runs[runs.measure == "validation"].drop(columns="measure")
    return pd.concat([over_runs(ends_of_methods(runs)), tidy(validation, _stability)], ignore_index=True)


def ends_of_methods(runs: pd.DataFrame) -> pd.DataFrame:
    """The last epoch of each method; and the first of one that starts from the teacher, as `start`."""
    last = runs[runs.epoch == runs.groupby(["model", "poison", "unlearner"]).epoch.transform("max")]
    teachers = runs[(runs.epoch == 0) & (runs.fresh == 0)]
    one = teachers.unlearner == teachers.groupby(["model", "poison"]).unlearner.transform("first")
    return pd.concat([teachers[one].assign(unlearner="start", title="start"), last], ignore_index=True)


def _stability(own: pd.DataFrame) -> Iterator[tuple]:
    curves = own.pivot(index="run", columns="epoch", values="accuracy").values
    deviation, *interval = metrics.spread(curves[:, -1])
    yield "std", deviation, np.nan, *(interval if len(curves) > 2 else (np.nan, np.nan))
    yield "drop", np.median(metrics.largest_drop(curves)), np.nan, np.nan, np.nan


def weight_maps(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Lowest and highest cell (mean over runs) of each map, and the share of it near Retrain in the same runs."""
    results, same = read[data, preset, "weight_map"], ["model", "poison", "run"]
    retrain = pd.DataFrame(columns=[*same, "accuracy"])
    if (data, preset, "unlearning") in read.paths:
        retrain = ends_of_methods(accuracies(read[data, preset, "unlearning"], "validation")).query(
            "unlearner == 'retrain'"
        )

    def of_map(own: pd.DataFrame) -> Iterator[tuple]:
        here = own[["model", "poison", "unlearner"]].iloc[0].to_dict()
        cells, diverged = results.accuracy.sel(here).mean("run"), (results.diverged.sel(here) > 0).any("run")
        ends = retrain.merge(own[same].drop_duplicates()).accuracy
        near = metrics.share_near(cells, ends.mean(), diverged=diverged) if len(ends) else np.nan
        for measure, value in {"lowest": cells.min(), "highest": cells.max(), "near Retrain": near}.items():
            yield measure, float(value), np.nan, np.nan, np.nan

    return tidy(every_run(results), of_map, over=("first", "second"))


def landscape(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Hessian traces and their ratios to the clean ones: medians, and the published mean. No row without clean ones."""
    results = read[data, preset, "landscape"]
    runs, held_out = every_run(results), accuracies(results, "held_out").assign(measure="held out")
    clean = runs[runs.alpha_percent == results.alpha_percent.values[0]].set_index(["model", "run"])

    def traces(own: pd.DataFrame) -> Iterator[tuple]:
        own, usual = own.set_index("run").align(clean.loc[own.model.iloc[0]])
        for name, words in {"trace": "", "trace_complex": " over Re, Im"}.items():
            yield f"trace{words}", own[name].median(), np.nan, *metrics.bootstrap_interval(own[name], np.median)
            ratio, *interval = metrics.ratio_interval(own[name], usual[name])
            yield f"ratio{words}", ratio, np.nan, *interval
        scaled = own.trace / usual.trace.mean()
        yield "mean ratio", scaled.mean(), scaled.std(), np.nan, np.nan
        yield "dead", own.dead.sum(), np.nan, np.nan, np.nan
        yield "off", own.dead_relus.mean(), np.nan, np.nan, np.nan

    runs, held_out = (each[each.model.isin(clean.index.unique("model"))] for each in (runs, held_out))
    return pd.concat([tidy(runs, traces), over_runs(held_out)], ignore_index=True)


def oracle_epochs(results: xr.Dataset) -> pd.DataFrame:
    """The epoch count that the rule finds for each model and poison: model, poison, epochs (NaN: none of those tried).

    The first at which doubling it moves the oracles' mean accuracies on held-out, retained and forget samples by less
    than their standard deviation over seeds (within draws), each.
    """
    splits = ["validation", "retain", "forget_clean"]
    accuracy = results.accuracy.sel(split=splits)
    means, deviations = accuracy.mean(("draw", "run")), np.sqrt(accuracy.var("run", ddof=1).mean("draw"))
    doubled = means.reindex(epochs=2 * means["epochs"].values).assign_coords(epochs=means["epochs"].values)
    moved = abs(doubled - means)
    settled = ((moved < deviations) | (moved == 0)).all("split") & moved.notnull().all("split")
    rows = []
    for model, poison in itertools.product(ordered(results, "model"), ordered(results, "poison")):
        own = settled.sel(model=model, poison=poison)
        found = own.epochs.values[own.values]
        rows.append((results.family.sel(model=model).item(), model, poison, found[0] if len(found) else np.nan))
    return pd.DataFrame(rows, columns=["family", "model", "poison", "epochs"])


def epochs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracies of oracles after each number of epochs, and the number that the rule finds."""
    results = read[data, preset, "epochs"]
    runs = accuracies(results, "validation", "retain", "forget_clean")
    runs = runs.assign(run=runs.run + runs.draw * (runs.run.max() + 1)).drop(columns="draw")  # of either draw
    curves = over_runs(runs[runs.measure == "validation"].rename(columns={"epochs": "alpha_percent"}))
    found = oracle_epochs(results).rename(columns={"epochs": "value"}).assign(measure="rule")
    curves = curves.assign(measure=curves.alpha_percent.map("{} epochs".format)).drop(columns="alpha_percent")
    return pd.concat([curves, found], ignore_index=True).assign(n=curves.n.max())


def best_methods(results: xr.Dataset, count: int = 5) -> list[str]:
    """Those of the benchmark's methods that end nearest to the oracles: by the mean over models of the rank of W1.

    Those that read the truth aside; a method has no rank on a model on which it cannot run or diverged.
    """
    own = results.distance.sel(measure=PRIMARY).mean("draw").where(results.reads_truth == 0)
    own = own.drop_sel(unlearner=["teacher", "oracle"]).stack(place=("model", "poison"))
    ranks = own.to_series().unstack("unlearner").rank(axis="columns").mean()
    return list(ranks.sort_values(kind="stable").index[:count])


BOUNDS = ["value", "low", "high"]


def responses(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The logits' change by linear response beside the true one, and beside that of the whole step: correlations.

    predicted / true: the mean predicted change over the mean true one.
    """
    results, rows = read[data, preset, "influence"], []
    for model, poison in itertools.product(ordered(results, "model"), ordered(results, "poison")):
        for name, words in {"correlation": "", "share": ", predicted / true", "agreement": ", the step itself"}.items():
            for part in results.of.values:
                value, low, high = results[name].sel(model=model, poison=poison, of=part, bound=BOUNDS).values
                family = results.family.sel(model=model).item()
                rows.append((family, model, poison, f"{part}{words}", value, np.nan, low, high))
    return pd.DataFrame(rows, columns=["family", "model", "poison", "measure", "value", "sd", "low", "high"]).assign(
        n=0
    )


def evaluation(read: ResultFiles, data: str, preset: str, *, study: str = "evaluation") -> pd.DataFrame:
    """Every measure of every arm, the mean over the draws, with what decides on the primary one, and the cost.

    low and high: of the mean over these draws, from the half-sample bounds in each. verdict: a place in VERDICTS, that
    of all draws where they agree, else undecided.
    """
    return over_draws(read[data, preset, study])


benchmark, finalists = (partial(evaluation, study=name) for name in ("benchmark", "finalists"))


def over_draws(results: xr.Dataset) -> pd.DataFrame:
    """`evaluation` of the study that is given."""
    labels = ["model", "poison", "unlearner", "draw"]
    names = [name for name, array in results.data_vars.items() if array.dims == (*labels, "measure")]
    rows = results[names].to_dataframe().reset_index()
    rows = rows.dropna(subset=["value"])
    keys = [*labels[:-1], "measure"]
    groups = rows.groupby(keys, sort=False)
    means, n, parts = groups.mean(numeric_only=True), groups.size(), {}
    for name, words in {"value": "", "gain": " gain"}.items():
        low, high = f"{name}_low", f"{name}_high"
        squares = rows[[low, high]].sub(rows[name], axis=0) ** 2
        bounds = np.sqrt(squares.groupby([rows[key] for key in keys], sort=False).sum()).div(n, axis=0)
        ends = {"low": means[name] - bounds[low], "high": means[name] + bounds[high]}
        parts[words] = pd.DataFrame({"value": means[name], "sd": groups[name].std(), **ends})
    is_distance = groups.value.min() >= 0  # the bound of which is no less than 0
    parts[""]["low"] = parts[""].low.mask(is_distance, parts[""].low.clip(lower=0))
    parts |= {f" {name}": means[[name]].set_axis(["value"], axis=1) for name in ("floor", "null", "perfect", "unit")}
    tidy = pd.concat([
        part.assign(n=n).reset_index().assign(measure=lambda frame, words=words: frame.measure + words)
        for words, part in parts.items()
    ])  # fmt: skip
    tidy = pd.concat([tidy, _verdicts(rows, results), _costs(results), _collapsed(results)], ignore_index=True)
    missing = _without_numbers(tidy, results)
    tidy = pd.concat([tidy, missing.assign(measure=PRIMARY)], ignore_index=True)
    families = results.family.to_series().to_dict()
    return tidy.assign(family=tidy.model.map(families), title=tidy.unlearner.map(method_titles(results)))


def _verdicts(rows: pd.DataFrame, results: xr.Dataset) -> pd.DataFrame:
    """verdict, and p after Holm (the largest over the draws), of each arm.

    No verdict where an arm is missing on one of the draws, or where so few models over so many rows could not give one.
    """
    rows = rows[rows.measure == PRIMARY].merge(results.p.to_dataframe().reset_index())
    teachers = rows[rows.unlearner == "teacher"][["model", "poison", "draw", "excess"]]
    rows = rows.merge(teachers.rename(columns={"excess": "teacher_excess"}), on=["model", "poison", "draw"])
    rows["holm"] = rows.groupby("draw").p.transform(holm)
    rows["verdict"] = list(map(verdict, rows.holm, rows.excess_high, rows.teacher_excess))
    n, draws, found = fewest_and_most_runs(results)[0], results.sizes["draw"], []
    attainable = rows.groupby("draw").size().max() * smallest_p(int(n)) < SIGNIFICANT
    for place, own in rows.groupby(["model", "poison", "unlearner"], sort=False):
        agreed = own.verdict.iloc[0] if own.verdict.nunique() == 1 and len(own) == draws else "undecided"
        known = VERDICTS.index(agreed) if attainable else np.nan
        found += [(*place, "verdict", known, len(own)), (*place, "p", own.holm.max(), len(own))]
    return pd.DataFrame(found, columns=["model", "poison", "unlearner", "measure", "value", "n"])


def _costs(results: xr.Dataset) -> pd.DataFrame:
    """cost: gradients over those of an oracle; seconds of one training; executions, of circuits, by parameter shift."""
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
    """model, poison, unlearner of arms that cannot run on a model, or of which all runs diverged."""
    arms = itertools.product(models_and_poisons(results), results.unlearner.values)
    every = pd.DataFrame([(*pair, arm) for pair, arm in arms], columns=["model", "poison", "unlearner"])
    found = every.merge(tidy[list(every)].drop_duplicates(), how="left", indicator="there")
    return found[found.there == "left_only"].drop(columns="there")


def _collapsed(results: xr.Dataset) -> pd.DataFrame:
    """collapsed: how many runs of each arm end on validation no better than naming one class would, or worse."""
    accuracy = results.accuracy.sel(split="validation")
    count = (accuracy < COLLAPSED).sum(("draw", "run")).where(accuracy.notnull().any(("draw", "run")))
    return count.rename("value").to_series().dropna().reset_index().assign(measure="collapsed")


COLLAPSED = 0.55  # the larger class is .53 of the 2,144 images, .50 of the 84 states


def rankings(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Kendall's τ between the draws' rankings of the methods by their distance from the oracles: mean over pairs."""
    from scipy.stats import kendalltau  # half a second, in every process that imports this module

    results = read[data, preset, "evaluation"]
    methods = [name for name in ordered(results, "unlearner") if name not in ("teacher", "oracle")]
    distance = results.distance.sel(measure=PRIMARY, unlearner=methods)
    rows = []
    for model, poison in models_and_poisons(results):
        own = (
            distance.sel(model=model, poison=poison)
            .dropna("unlearner", how="all")
            .transpose("draw", "unlearner")
            .values
        )
        pairs = [kendalltau(*pair).statistic for pair in itertools.combinations(own, 2)] if own.shape[1] > 1 else []
        family = results.family.sel(model=model).item()
        rows += [(family, model, poison, "τ", float(np.mean(pairs)) if pairs else np.nan, len(own))]
    return pd.DataFrame(rows, columns=["family", "model", "poison", "measure", "value", "n"]).assign(
        sd=np.nan, low=np.nan, high=np.nan
    )


# ---- the controls ----


def selected_epochs(results: xr.Dataset) -> pd.Series:
    """The epoch with the least loss on held-out noisy samples, mean over trials: by model, poison, alpha_percent."""
    loss = results.held_out_loss
    mean = loss.mean("trial", skipna=False)  # a trial that diverged is no choice
    return mean.fillna(np.inf).idxmin("epoch").where(loss.notnull().any(("epoch", "trial"))).to_series().dropna()


def at_their_ends(results: xr.Dataset) -> pd.DataFrame:
    """Every run's accuracy at each endpoint of its long training, with the epoch that this is."""
    runs, chosen = accuracies(results, "validation", "train"), selected_epochs(results)
    published = results.published_epochs.to_series()
    places = runs[["model", "poison", "alpha_percent"]].apply(tuple, axis=1)
    ends = {"published": runs.model.map(published), "selected": places.map(chosen), "last": runs.epoch.max()}
    return pd.concat([runs[runs.epoch == epoch].assign(endpoint=name) for name, epoch in ends.items()])


def endpoints(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracy on clean validation samples and on the noisy training labels at each endpoint."""
    return over_runs(at_their_ends(read[data, preset, "dynamics"]))


def paired_endpoints(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The QNN minus every other model at the same kind of endpoint, and where both fit the noisy labels equally."""
    results = read[data, preset, "dynamics"]
    ends = at_their_ends(results).query("measure == 'validation'")
    runs = pd.concat([ends, at_equal_fit(results)], ignore_index=True).drop(columns="epoch")
    return _circuit_minus_others(runs)


def at_equal_fit(results: xr.Dataset) -> pd.DataFrame:
    """Validation accuracy of every run where its fit of the noisy labels first is that of the QNN after the last epoch.

    Between two epochs at which both were measured by a line; no row for a run that never fits so well.
    """
    runs = accuracies(results, "validation", "train")
    circuits = runs[runs.family == "QNN"].model
    last = runs[(runs.epoch == runs.epoch.max()) & (runs.measure == "train")]
    target = last[last.model == circuits.iloc[0]].set_index(["poison", "alpha_percent", "run"]).accuracy.to_dict()
    keys = ["family", "size", "model", "poison", "alpha_percent", "run"]
    curves = runs.pivot(index=[*keys, "epoch"], columns="measure", values="accuracy")
    rows = []
    for place, own in curves.groupby(level=keys, sort=False):
        fit, accuracy = own.train.values, own.validation.values
        aim = fit[-1] if place[2] == circuits.iloc[0] else target[place[3:]]
        at = len(fit) - 1 if place[2] == circuits.iloc[0] else int(np.argmax(fit >= aim))
        if fit[at] < aim:
            continue
        share = 1.0 if at == 0 or fit[at] == fit[at - 1] else (aim - fit[at - 1]) / (fit[at] - fit[at - 1])
        rows.append((*place, accuracy[at] if at == 0 else accuracy[at - 1] + share * (accuracy[at] - accuracy[at - 1])))
    found = pd.DataFrame(rows, columns=[*keys, "accuracy"])
    return found.assign(measure="validation", endpoint="equal fit", epoch=np.nan)


def _circuit_minus_others(runs: pd.DataFrame) -> pd.DataFrame:
    """The first QNN minus every other model, by run; nothing where there is none."""
    runs = runs.drop(columns="group", errors="ignore")
    is_circuit = runs.model.isin(runs[runs.family == "QNN"].model[:1])
    return difference(runs[is_circuit], runs[~is_circuit], "model")


def _circuit_beside(runs: pd.DataFrame) -> pd.DataFrame:
    """The same as a measure of every other model, beside its own accuracy."""
    minus = _circuit_minus_others(runs)
    return minus.assign(model=minus.minus, measure="QNN minus it").drop(columns="minus")


def contests(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of every contender as it was tuned, the QNN minus each, and the epochs that were chosen."""
    results = read[data, preset, "controls"]
    runs = accuracies(results, "validation")
    means, minus = over_runs(runs), _circuit_beside(runs)
    groups = results.group.to_series().to_dict()
    minus = minus.assign(group=minus.model.map(groups))
    chosen = results.chosen_epoch.rename("value").to_series().dropna().reset_index()
    chosen = chosen.assign(measure="epoch", group=chosen.model.map(groups), n=0)
    return pd.concat([means, minus, chosen], ignore_index=True)


def digit_pairs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The QNN minus every other model, of each pair of digits: mean over its runs, paired by run."""
    return _circuit_minus_others(accuracies(read[data, preset, "pairs"], "validation"))


def over_pairs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracy over the pairs of digits, intervals over pairs; the QNN minus each model; pairs that are decided."""
    runs = accuracies(read[data, preset, "pairs"], "validation")
    means = runs.groupby(["family", "size", "model", "poison", "alpha_percent", "pair"]).accuracy.mean().reset_index()
    of_pairs = means.rename(columns={"pair": "run"}).assign(measure="validation")
    each, rows = digit_pairs(read, data, preset), []
    for name, counted in {"QNN ahead": each.low > 0, "QNN behind": each.high < 0}.items():
        counts = counted.groupby([each.minus, each.poison, each.alpha_percent]).sum()
        rows += [(*place, name, float(count)) for place, count in counts.items()]
    counts = pd.DataFrame(rows, columns=["model", "poison", "alpha_percent", "measure", "value"])
    return pd.concat(
        [over_runs(of_pairs), _circuit_beside(of_pairs), counts.assign(n=runs.pair.nunique())], ignore_index=True
    )


def ring_splits(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of every model on each ring, and the QNN minus it."""
    runs = accuracies(read[data, preset, "splits"], "validation")
    return pd.concat([over_runs(runs), _circuit_beside(runs)], ignore_index=True)


def fidelities(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The largest fidelity of a validation state with a training state: least, median and largest over the states."""
    own = read[data, preset, "splits"].fidelity.stack(place=("sites", "ring_split")).dropna("place", how="all")
    rows = [
        (*place, name, float(own.sel(place=place).quantile(share)))
        for place in own.place.values
        for name, share in {"least": 0, "median": 0.5, "largest": 1}.items()
    ]
    tidy = pd.DataFrame(rows, columns=["sites", "ring_split", "measure", "value"])
    return tidy.assign(sd=np.nan, low=np.nan, high=np.nan, n=own.sizes["state"])


equal_steps, matched_fit = (partial(evaluation, study=name) for name in ("equal_steps", "matched_fit"))
MEMORISED = 0.9  # of the poisoned labels, or as many as the model has that ends with the fewest


def memorising(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracy of teachers on the poisoned labels of few samples; the epoch from which on they fit them equally."""
    runs = accuracies(read[data, preset, "memorising"], "forget_poisoned")
    runs = runs.assign(run=runs.run + runs.draw * (runs.run.max() + 1)).drop(columns="draw")
    some = np.unique(runs.epoch)[::-1]
    late = runs[runs.epoch.isin(some[:: max(len(some) // 8, 1)][:6])]
    shown = over_runs(late.assign(measure=late.epoch.map("{:.0f} epochs".format)))
    found = matched_epochs(read[data, preset, "memorising"])
    return pd.concat([shown, found.assign(measure="rule", n=shown.n.max())], ignore_index=True)


def matched_epochs(results: xr.Dataset) -> pd.DataFrame:
    """The epoch from which on teachers have as many of the poisoned labels as all of them can have.

    That is MEMORISED, or what the model has at its end that then has the fewest; means over draws and runs. No epoch
    where that is less than half: a model that guesses has as many.
    """
    mean = results.accuracy.sel(split="forget_poisoned").mean(("draw", "run")).dropna("epoch", how="all")
    least = np.minimum(mean.isel(epoch=-1).min("model"), MEMORISED)
    mean = mean.where(least >= 0.5)
    after = mean.epoch.where(mean < least).max("epoch").fillna(-1)  # the last one at which it has fewer
    first = (
        mean.epoch.where((mean.epoch > after) & mean.notnull()).min("epoch").rename("value").to_series().reset_index()
    )
    return first.assign(family=first.model.map(results.family.to_series()))


# ---- poison that is partly known, or has to be found ----

JUDGED = {"validation": "validation", "poisoned": "acc. poisoned", "attack": "attack"}  # by true labels, clean inputs
AGAINST_NOTHING = {f"difference in {name}": words for name, words in JUDGED.items()}


def known_shares(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracies of every method against the known share of the poison, and what they are above doing nothing."""
    runs = accuracies(read[data, preset, "discovery"], *JUDGED)
    return pd.concat([over_runs(runs), _above_nothing(runs, "known_percent")], ignore_index=True)


def detected(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The same where a detector found what is forgotten."""
    runs = accuracies(read[data, preset, "detected"], *JUDGED)
    return pd.concat([over_runs(runs), _above_nothing(runs, "detector")], ignore_index=True)


def _above_nothing(runs: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Every method minus the teacher as it is, by run; the teacher stands at one place of the axis alone."""
    is_teacher = runs.unlearner == "teacher"
    return difference(runs[~is_teacher], runs[is_teacher].drop(columns=axis), "title")


def detections(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """What each ranking and what was found by it are worth: average precision, share, precision, recall."""
    names = {
        "average_precision": "average precision",
        "found_share": "found",
        "found_precision": "precision",
        "found_recall": "recall",
        "poisoned_share": "poisoned",
    }
    results = read[data, preset, "detection"]
    frame = results[list(names)].to_dataframe().reset_index().dropna(subset=["average_precision"])
    keys = ["family", "size", "model", "poison", "alpha_percent", "detector", "run"]
    runs = frame.melt(keys, list(names), "measure", "accuracy").dropna(subset=["accuracy"])
    return over_runs(runs.assign(measure=runs.measure.map(names)))


# ---- a device ----

ON_A_DEVICE = (
    "exact: expectations without shots; on a device the amplitudes have to be prepared first: 2ⁿ − 2 CNOTs and 2ⁿ − 1 "
    "rotations for n qubits with real amplitudes (quant-ph/0407010): 1,022 and 1,023 for an image, beside 60 RZZ and "
    "180 rotations of the circuit"
)


def hardware(read: ResultFiles, data: str, preset: str, *, study: str = "hardware") -> pd.DataFrame:
    """Validation accuracy under noise, read with shots, and above that of the circuit without noise."""
    runs = every_run(read[data, preset, study][["accuracy"]]).assign(measure="validation")
    is_bare = (runs.noise == "none") & (runs.trained == "exact")
    above = difference(runs[~is_bare], runs[is_bare].drop(columns=["noise", "trained"]), "model")
    return pd.concat([over_runs(runs), above], ignore_index=True)


hardware_unlearning = partial(hardware, study="hardware_unlearning")


# ---- what a script ends with ----

FORGETTING = {  # measures of the stage evaluation, by what a table calls them
    "w1": "W1", "w1 floor": "floor", "w1 unit": "random halves", "w1 null": "null arm", "p": "p", "verdict": "verdict",
    "klom": "KLoM", "epsilon": "ε", "auc": "AUC", "relearn": "relearn", "gap": "gap", "cost": "cost",
}  # fmt: skip
COLLAPSE = {"collapsed": "collapsed"}
DEVICES = {"validation": "validation", "difference in validation": "above"}


def _summary(frame: Make, **layout: Any) -> StudyTable:
    """What a script ends with, which is not laid out so in findings.py."""
    return StudyTable(frame=frame, findings=None, **layout)


SUMMARIES: dict[str, StudyTable] = {  # by study file
    "noise_sweep": _summary(sweep, rows=("model", "poison"), columns=("alpha_percent",), head="{alpha_percent}",
        spread=(), title="Noise sweep: validation accuracy against α in percent, mean of n = {n} runs; "
        "poisoned samples: {poisoned}"),
    "unlearning": _summary(unlearning, rows=("model", "poison", "unlearner"), spread=("std",),
        measures={"validation": "valid", "forget_poisoned": "f.pois", "forget_clean": "f.clean", "retain": "retain",
                  "std": "std", "drop": "drop"},
        title="Unlearning: accuracy, mean of n = {n} runs. f.pois, f.clean: on the forget set, for labels against the "
        "poisoned (low is good) and the true ones, for features on poisoned and clean inputs; std: of valid across "
        "runs, with its 95 % bootstrap interval from 3 runs on; drop: largest fall of valid below its best within a "
        "run, median"),
    "weight_map": _summary(weight_maps, rows=("model", "poison", "unlearner"),
        title="Weight maps: final validation accuracy of the cells, mean of n = {n} runs; near Retrain: the share of "
        "cells within .05 of it"),
    "epochs": _summary(epochs, rows=("poison", "model"), title="Oracles: accuracy on held-out retained "
        "samples after so many epochs, mean of n = {n} runs on two draws; rule: the first count at which doubling it "
        "moves no accuracy by as much as its standard deviation over seeds"),
    "evaluation": _summary(evaluation, rows=("poison", "model", "unlearner"), measures=FORGETTING,
        spread=("w1",), title="Distance from the oracles on the forget set, n = {n} models of each kind, mean over the "
        "draws of the poison. W1: Wasserstein distance of the logits, with its 95 % interval; floor: that of half A of "
        "the oracles, and the mean over random halves; null arm: that of teachers trained on with the poison for as "
        "many steps; p: above the floor, after Holm, the largest of the draws; verdict: where the draws agree (a dash: "
        "so few models cannot give one); perfect: KLoM 0, ε 0, AUC .5, relearn 1, gap 0; cost: gradients over an "
        "oracle's"),
    "benchmark": _summary(benchmark, rows=("poison", "model", "unlearner"), spread=("w1",),
        measures=FORGETTING | COLLAPSE, title="All methods on an equal budget of gradients; columns as of the stage "
        "evaluation; collapsed: runs that end on validation no better than naming one class. n = {n} models of each "
        "kind"),
    "finalists": _summary(finalists, rows=("poison", "model", "unlearner"), spread=("w1",),
        measures=FORGETTING | COLLAPSE, title="The best of the methods on {draws} draws of the poison; columns as of "
        "the stages evaluation and benchmark. n = {n} models of each kind"),
    "influence": _summary(responses, rows=("poison", "model"), title="Pearson's correlation over samples of the "
        "change of the logits by linear response with the true one (oracles less teachers), the mean predicted change "
        "over the mean true one, and the correlation with the change by the whole Newton step; 95 % intervals by "
        "halves of the models"),
    "dynamics": _summary(endpoints, rows=("poison", "alpha_percent", "model"), columns=("endpoint", "measure"),
        head="{endpoint}: {measure}", title="One long training, n = {n} runs with training sets of their own: accuracy "
        "on clean validation samples and on the noisy training labels after the published epochs, at the epoch that "
        "held-out noisy samples select, and after the last"),
    "controls": _summary(contests, rows=("poison", "alpha_percent", "group", "model"), title="Validation "
        "accuracy of every contender, setting and epoch chosen on held-out noisy samples; n = {n} runs with "
        "training sets of their own; QNN minus it: the published circuit's accuracy less its own, paired by run"),
    "pairs": _summary(over_pairs, rows=("poison", "alpha_percent", "model"), title="Every pair of digits: "
        "validation accuracy, intervals over pairs; QNN minus it: paired; QNN ahead, behind: in how many pairs the "
        "paired interval over n = {n} runs excludes 0"),
    "splits": _summary(ring_splits, rows=("sites", "ring_split", "poison", "alpha_percent", "model"),
        title="Validation accuracy on rings whose validation states stand elsewhere than the training states, and of "
        "other sizes; mean of n = {n} runs; QNN minus it: paired by run"),
    "equal_steps": _summary(equal_steps, rows=("poison", "model", "unlearner"), measures=FORGETTING,
        spread=("w1",), title="As the stage evaluation, on one draw, with as many steps for retraining as teacher and "
        "method take together. n = {n} models of each kind"),
    "matched_fit": _summary(matched_fit, rows=("poison", "model", "unlearner"), measures=FORGETTING,
        spread=("w1",), title="As the stage evaluation, on one draw, of few samples whose poison all teachers fit "
        "equally. n = {n} models of each kind"),
    "memorising": _summary(memorising, rows=("poison", "model"), title="Accuracy of teachers on the poisoned "
        "labels of few samples after so many epochs, n = {n} runs on two draws; rule: the epoch from which on they "
        "have nine tenths of them, or as many as the model that ends with the fewest"),
    "discovery": _summary(known_shares, rows=("poison", "alpha_percent", "model", "unlearner"),
        columns=("measure", "known_percent"), head="{measure}, {known_percent} % known", measures=JUDGED, spread=(),
        title="Accuracy on validation samples and, by true labels, on all poisoned samples, against the share of the "
        "poison that is known; attack: success of a backdoor. n = {n} runs; teacher: nothing is done"),
    "detection": _summary(detections, rows=("poison", "alpha_percent", "model", "detector"), title="How well "
        "poisoned samples are found by rank, and as many of them as confident learning counts: found and poisoned are "
        "shares of the training set; mean of {n} runs"),
    "detected": _summary(detected, rows=("poison", "alpha_percent", "model", "unlearner"),
        columns=("measure", "detector"), head="{measure}, {detector}", measures=AGAINST_NOTHING, title="Detect, then "
        "forget: accuracy above that of doing nothing, paired by run, where the samples are forgotten that a detector "
        "found; n = {n} runs"),
    "hardware": _summary(hardware, rows=("alpha_percent", "noise", "trained"), columns=("measure", "shots"),
        head="{measure}, {shots} shots", measures=DEVICES, title="Validation accuracy of circuits with noise on gates "
        "and readout, n = {n} runs; above: less that of the circuit without noise, paired by run. 0 shots, "
        + ON_A_DEVICE),
    "hardware_unlearning": _summary(hardware_unlearning, rows=("noise", "unlearner"),
        columns=("measure", "shots"), head="{measure}, {shots} shots", measures=DEVICES, title="The same after "
        "unlearning, n = {n} runs"),
    "gauge": _summary(gauges, rows=("alpha_percent",), columns=("model", "gauge"), head="{model}, {gauge}",
        title="Gauge control: validation accuracy against α in percent, mean of n = {n} runs with its 95 % bootstrap "
        "interval; any gauge: sees none, and is trained once"),
    "landscape": _summary(landscape, rows=("model", "alpha_percent"), spread=("ratio", "mean ratio"),
        measures={"trace": "trace", "trace over Re, Im": "Re, Im", "ratio": "ratio", "mean ratio": "mean ± std",
                  "dead": "dead", "off": "off", "held out": "held out"},
        title="Trace of the loss's Hessian against α in percent, median of n = {n} runs. Re, Im: over the real and "
        "imaginary parts of a circuit's angles, as published; ratio: of the trace's median to that at the smallest α, "
        "with its 95 % bootstrap interval; mean ± std: of the trace over the mean of those, as published; dead: runs "
        "whose logit is the same for all images; off: ReLUs that are off for all images, mean; held out: accuracy on "
        "the images held out, with their true labels"),
}  # fmt: skip


# ---- the tables of FINDINGS.md ----

PUBLISHED = {  # arXiv:2508.02422: mean validation accuracy, MNIST, flipped labels, at alpha = 0, 10, ... 90 %, n = 5
    "MLP[64,16]": (0.993, 0.922, 0.809, 0.731, 0.619, 0.511, 0.384, 0.258, 0.161, 0.080),
    "QNN[depth=6]": (0.980, 0.953, 0.922, 0.888, 0.795, 0.477, 0.198, 0.091, 0.072, 0.051),
}
PUBLISHED_SD = {("QNN[depth=6]", 30): 0.037, ("QNN[depth=6]", 60): 0.065}  # where it is known
PUBLISHED_TRACES = {  # heissian.ipynb: means of 5 seeds, the clean one and the ratios
    ("MLP[8,2]", "trace"): "0.19", ("QNN[depth=5,xy,cnot]", "trace over Re, Im"): "6.2",
    ("MLP[8,2]", "ratio"): "tens", ("QNN[depth=5,xy,cnot]", "ratio over Re, Im"): "near 1",
}  # fmt: skip


def _flipped(read: ResultFiles, data: str, presets: Sequence[str] = SOURCES) -> pd.DataFrame:
    return read.gather(sweep, data, presets=presets).query("poison == 'labels'")


def _main_models(read: ResultFiles, poison: str, *data: str) -> pd.DataFrame:
    files = read.gather(sweep, *data).query("poison == @poison").groupby(["data", "preset"], sort=False)
    kept = [own[own.model.isin(one_of_each_family(read[*key, "noise_sweep"], own.model))] for key, own in files]
    return pd.concat(kept, ignore_index=True)


def _at_alphas(tidy: pd.DataFrame, alphas: Sequence[int], *rows: str) -> Table:
    """A column for each of these shares; `runs`, which may name a row, are the most behind any number of a model."""
    tidy = tidy.assign(runs=tidy.groupby(["data", "preset", "model"]).n.transform("max"))
    return Table(tidy[tidy.alpha_percent.isin(alphas)], rows, ("alpha_percent",), "α = {alpha_percent} %")


def _beside_published(read: ResultFiles) -> pd.DataFrame:
    means = pd.DataFrame(PUBLISHED, index=range(0, 100, 10)).unstack().rename_axis(["model", "alpha_percent"])
    theirs = means.reset_index(name="value").assign(sd=list(map(PUBLISHED_SD.get, means.index)), data="mnist")
    theirs = theirs.assign(preset="published", poison="labels", measure="validation", n=5)
    return pd.concat([theirs, _flipped(read, "mnist").query("model in @PUBLISHED")], ignore_index=True)


def _with_gauges(read: ResultFiles) -> pd.DataFrame:
    words = {"fixed": "fixed gauge", "random_phase": "random phase", "random_sign": "random sign"}
    gauge = {preset: json.loads(read["xxz", preset, "noise_sweep"].attrs["data"])["gauge"] for preset in SOURCES}
    tidy = _main_models(read, "labels", "xxz")
    return tidy.assign(choices=[f"{preset} ({words[gauge[preset]]})" for preset in tidy.preset])


def _traces_beside_published(read: ResultFiles) -> pd.DataFrame:
    tidy = read.gather(landscape, "hessian")
    published = [PUBLISHED_TRACES.get(place, "–") for place in zip(tidy.model, tidy.measure, strict=True)]
    tidy = tidy.assign(published=published, quantity=tidy.measure + ", α = " + tidy.alpha_percent.astype(str) + " %")
    tidy = tidy[(tidy.alpha_percent == tidy.alpha_percent.min()) == tidy.measure.str.startswith("trace")]
    return tidy[~tidy.measure.str.contains("Re, Im") | (tidy.published != "–")]


def _paired_models(read: ResultFiles, data: str, preset: str, poison: str = "labels") -> pd.DataFrame:
    """The smallest QNN minus each other model."""
    runs = accuracies(read[data, preset, "noise_sweep"], "validation").query("poison == @poison")
    circuits = runs[runs.family == "QNN"].model.unique()
    if not len(circuits):
        raise ValueError(f"{read.paths[data, preset, 'noise_sweep']} has no QNN to compare with")
    return difference(runs[runs.model == circuits[0]], runs[runs.model != circuits[0]], "model")


def _paired_fits(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The QNN minus each other model where all fit the poison equally, their oracles as well."""
    runs = accuracies(read[data, preset, "matched_fit"], "validation").drop(columns="draw")  # there is one
    return _circuit_minus_others(runs)


def _paired_features(read: ResultFiles, *data: str) -> Table:
    """The smallest QNN minus the largest MLP."""
    tidy = read.gather(partial(_paired_models, poison="features"), *data)
    tidy = tidy[tidy.minus == "MLP[64,16]"]  # the published one
    return _at_alphas(tidy, (0, 30, 60, 80, 90), "data", "model", "minus", "preset", "runs")


def _paired_methods(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    ends = ends_of_methods(accuracies(read[data, preset, "unlearning"], "validation", "forget_poisoned"))
    parts = [(~ends.unlearner.isin(("start", name)), ends.unlearner == name) for name in ("cf", "retrain")]
    return pd.concat([difference(ends[own], ends[other], "title") for own, other in parts], ignore_index=True)


def _paired_gauges(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Models that see no gauge minus those that do, in the fixed one; and fixed gauge minus random phase."""
    runs = under_gauges(read[data, preset, "gauge"])
    under = {name: own.drop(columns="gauge") for name, own in runs.groupby("gauge")}
    across = difference(under["any gauge"], under["fixed"], "model").assign(minus=lambda tidy: tidy.minus + ", fixed")
    within = difference(under["fixed"], under["random phase"]).assign(minus="random phase")
    within = within.assign(model=within.model + ", fixed")
    return pd.concat([across, within], ignore_index=True).assign(poison="labels")


def _forgetting(read: ResultFiles, data: str, make: Make = evaluation) -> Table:
    measures = FORGETTING | {"tow": "ToW", "tpr": "TPR", "corrective": "acc. poisoned", "seconds": "seconds"}
    measures |= COLLAPSE if make is not evaluation else {}
    tidy = read.gather(make, data, presets=["corrected"])
    return Table(tidy, ("poison", "model", "title"), measures=measures, spread=("w1",))


def _contests(read: ResultFiles, data: str) -> Table:
    return Table(read.gather(contests, data, presets=["corrected"]), ("poison", "alpha_percent", "group", "model"))


def _partly_known(read: ResultFiles, data: str) -> Table:
    """Above doing nothing, where none of the poison is known, half, and all of it."""
    tidy = read.gather(known_shares, data, presets=["corrected"]).query("known_percent in (0, 50, 100)")
    return Table(tidy, ("poison", "alpha_percent", "model", "title"), ("known_percent", "measure"),
                 "{measure}, {known_percent} % known", AGAINST_NOTHING)  # fmt: skip


def _detected(read: ResultFiles, data: str) -> Table:
    """Above doing nothing, where what cross-validation found is forgotten."""
    tidy = read.gather(detected, data, presets=["corrected"]).query("detector == 'cross_validation'")
    return Table(tidy, ("poison", "alpha_percent", "model", "title"), measures=AGAINST_NOTHING)


ALPHA = ("alpha_percent",)
MINUS = (ALPHA, ("model", "minus"), "{model} − {minus}, n = {n}")
METHODS = (("poison", "model", "title"), ("preset", "measure"), "{measure}, {preset}, n = {n}",
           {"validation": "validation", "forget_poisoned": "forgetting"})  # fmt: skip
FINDINGS_TABLES: dict[str, Callable[[ResultFiles], Table]] = {
    "mnist": lambda read: Table(_beside_published(read), ALPHA, ("model", "preset"), "{model} {preset}, n = {n}"),
    "controls": lambda read: Table(_flipped(read, "mnist", ["corrected"]), ALPHA, ("model",), "{model}, n = {n}"),
    "paired-mnist": lambda read: Table(read.gather(_paired_models, "mnist", presets=["corrected"]), *MINUS),
    "features": lambda read: _at_alphas(
        _main_models(read, "features", "mnist", "xxz"), (0, 30, 60, 80, 90), "data", "model", "preset", "runs"),
    "paired-features": lambda read: _paired_features(read, "mnist", "xxz"),
    "unlearning-mnist": lambda read: Table(read.gather(unlearning, "mnist"), *METHODS),
    "paired-unlearning": lambda read: Table(read.gather(_paired_methods, "mnist", "xxz", presets=["corrected"]),
        ("data", "poison", "model", "title"), ("minus", "measure"), "{measure} − {minus}, n = {n}",
        {"difference in validation": "validation", "difference in forget_poisoned": "forgetting"}),
    "xxz": lambda read: Table(_with_gauges(read), ALPHA, ("model", "choices"), "{model} {choices}, n = {n}"),
    "paired-xxz": lambda read: Table(read.gather(_paired_models, "xxz", presets=["corrected"]), *MINUS),
    "gauge": lambda read: Table(
        read.gather(gauges, "xxz", presets=["paper"]), ALPHA, ("model", "gauge"), "{model}, {gauge}, n = {n}"),
    "paired-gauge": lambda read: Table(read.gather(_paired_gauges, "xxz", presets=["paper"]), *MINUS),
    "sizes": lambda read: _at_alphas(_flipped(read, "xxz"), (0, 20, 30, 40), "data", "preset", "runs", "model"),
    "paired-depths": lambda read: Table(
        read.gather(_paired_models, "xxz", presets=["paper"]).query("minus.str.startswith('QNN')"), *MINUS),
    "unlearning-xxz": lambda read: Table(read.gather(unlearning, "xxz"), *METHODS),
    "epochs": lambda read: Table(
        read.gather(epochs, "mnist", "xxz", presets=["corrected"]), ("data", "poison", "model")),
    "evaluation-mnist": lambda read: _forgetting(read, "mnist"),
    "evaluation-xxz": lambda read: _forgetting(read, "xxz"),
    "benchmark-mnist": lambda read: _forgetting(read, "mnist", benchmark),
    "benchmark-xxz": lambda read: _forgetting(read, "xxz", benchmark),
    "finalists-mnist": lambda read: _forgetting(read, "mnist", finalists),
    "finalists-xxz": lambda read: _forgetting(read, "xxz", finalists),
    "influence": lambda read: Table(read.gather(responses, "mnist", "xxz", presets=["corrected"]),
        ("data", "poison", "model")),
    "rankings": lambda read: Table(read.gather(rankings, "mnist", "xxz", presets=["corrected"]),
        ("data", "poison", "model")),
    "dynamics": lambda read: Table(read.gather(endpoints, "mnist", "xxz", presets=["corrected"]),
        ("data", "poison", "alpha_percent", "model"), ("endpoint", "measure"), "{endpoint}: {measure}"),
    "paired-dynamics": lambda read: Table(read.gather(paired_endpoints, "mnist", "xxz", presets=["corrected"]),
        ("data", "poison", "alpha_percent", "minus"), ("model", "endpoint"), "{model} − it, {endpoint}, n = {n}"),
    "contests-mnist": lambda read: _contests(read, "mnist"),
    "contests-xxz": lambda read: _contests(read, "xxz"),
    "splits": lambda read: Table(read.gather(ring_splits, "xxz", presets=["corrected"]),
        ("sites", "ring_split", "poison", "alpha_percent", "model")),
    "pairs": lambda read: Table(
        read.gather(over_pairs, "mnist", presets=["corrected"]), ("poison", "alpha_percent", "model")),
    "equal-steps-mnist": lambda read: _forgetting(read, "mnist", equal_steps),
    "equal-steps-xxz": lambda read: _forgetting(read, "xxz", equal_steps),
    "memorising": lambda read: Table(
        read.gather(memorising, "mnist", "xxz", presets=["corrected"]), ("data", "poison", "model")),
    "matched-fit-mnist": lambda read: _forgetting(read, "mnist", matched_fit),
    "paired-fit": lambda read: Table(read.gather(_paired_fits, "mnist", presets=["corrected"]), ("title",), ("minus",),
        "QNN − {minus}, n = {n}"),
    "discovery-mnist": lambda read: _partly_known(read, "mnist"),
    "discovery-xxz": lambda read: _partly_known(read, "xxz"),
    "detection": lambda read: Table(read.gather(detections, "mnist", "xxz", presets=["corrected"]),
        ("data", "poison", "alpha_percent", "model", "detector")),
    "detected-mnist": lambda read: _detected(read, "mnist"),
    "detected-xxz": lambda read: _detected(read, "xxz"),
    "hardware": lambda read: Table(read.gather(hardware, "mnist", presets=["corrected"]),
        ("alpha_percent", "noise", "trained"), ("measure", "shots"), "{measure}, {shots} shots", DEVICES),
    "hardware-unlearning": lambda read: Table(read.gather(hardware_unlearning, "mnist", presets=["corrected"]),
        ("noise", "title"), ("measure", "shots"), "{measure}, {shots} shots", DEVICES),
    "fidelities": lambda read: Table(read.gather(fidelities, "xxz", presets=["corrected"]), ("sites", "ring_split")),
    "maps": lambda read: Table(read.gather(weight_maps, "mnist", "xxz"), ("data", "poison", "model", "title"),
        ("preset", "measure"), "{measure}, {preset}"),
    "landscape": lambda read: Table(_traces_beside_published(read), ("model", "quantity", "published"), ("preset",),
        "{preset}, n = {n}", {name: name for name in ("trace", "ratio", "trace over Re, Im", "ratio over Re, Im")}),
}  # fmt: skip

"""What does a long training do? Models resist poison until they have learned it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from datar import Dataset
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays
from foundation.engine.study import Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import (
    ResultFiles,
    accuracies,
    circuit_minus_others,
    count_of_runs,
    ordered,
    over_runs,
)
from poison_unlearn import Retrain
from studies.config import Config
from studies.contests import against_circuit, tuned_contenders
from studies.families import model_words
from studies.rows import place_of, scores_table
from studies.tuning import control_fit, epochs_measured, models_of_controls, tuning_fits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim

# ---- what is computed ----


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Measure every model along one long training, and its held-out loss, to choose an epoch."""
    for protocol, model in models_of_controls(config, dataset):
        training = protocol.sweep
        method = Retrain(training=replace(training, epochs=config.long_epochs))
        published_epochs = min(training.epochs, config.long_epochs)
        coords = model_words(model) | {"published_epochs": ("model", published_epochs)}
        for poison in config.poisons_of("noises").values():
            place = place_of(model.label, poison)
            fit = control_fit(config, dataset, protocol, model, method, poison)
            fit = replace(fit, measured=epochs_measured(config.long_epochs, training.epochs))
            for job in tuning_fits(fit, config.tuning_runs):
                yield Row("dynamics", job, place, held_out_table, None, coords)
            for block in config.blocks():
                job = replace(fit, block=block)
                yield Row("dynamics", job, place, dynamics_table, config.shown(job.runs), coords)


def dynamics_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate accuracy (…, run, epoch, split) and diverged (…, run).

    split: validation, the clean validation samples; train, the noisy training labels.
    """
    return scores_table(row, arrays).drop_vars("loss").sel(split=["validation", "train"])


def held_out_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate held_out_loss (…, epoch, trial), the loss on held-out samples with noisy labels.

    trial: a tuning run, which is never judged.
    """
    loss = scores_table(row, arrays).loss
    held_out = loss.sel(split="validation", drop=True).rename(run="trial")
    return held_out.rename("held_out_loss").to_dataset()


# ---- what is shown ----


def selected_epochs(results: xr.Dataset) -> pd.Series:
    """Return the epoch with the least mean loss on held-out noisy samples.

    By model, poison, alpha_percent.
    """
    loss = results.held_out_loss
    mean = loss.mean("trial", skipna=False)  # no epoch is chosen at which a trial has diverged
    epochs = mean.fillna(np.inf).idxmin("epoch")
    is_measured = loss.notnull().any(("epoch", "trial"))
    return epochs.where(is_measured).to_series().dropna()


def at_their_ends(results: xr.Dataset) -> pd.DataFrame:
    """Return the accuracy and the epoch of each run at each endpoint of its long training."""
    runs = accuracies(results, "validation", "train")
    places = runs[["model", "poison", "alpha_percent"]].apply(tuple, axis=1)
    epochs_of_endpoints = {
        "published": runs.model.map(results.published_epochs.to_series()),
        "selected": places.map(selected_epochs(results)),
        "last": runs.epoch.max(),
    }
    frames = []
    for endpoint, epochs in epochs_of_endpoints.items():
        runs_at_end = runs[runs.epoch == epochs]
        frames.append(runs_at_end.assign(endpoint=endpoint))
    return pd.concat(frames)


def endpoints(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Average accuracies on clean validation samples and noisy training labels at each endpoint."""
    return over_runs(at_their_ends(read[data, preset, "dynamics"]))


def paired_endpoints(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Subtract every other model's accuracy from the QNN's, at each endpoint and at equal fit."""
    results = read[data, preset, "dynamics"]
    ends = at_their_ends(results).query("measure == 'validation'")
    runs = pd.concat([ends, at_equal_fit(results)], ignore_index=True)
    return circuit_minus_others(runs.drop(columns="epoch"))


def at_equal_fit(results: xr.Dataset) -> pd.DataFrame:
    """Return each run's validation accuracy once it fits the noisy labels as well as the QNN.

    The fit to reach is that of the QNN after the last epoch. Accuracies between two measured epochs
    are interpolated by a line. A run that never fits so well has no row, nor has a run whose QNN
    diverged. Raises ValueError where there is no QNN.
    """
    runs = accuracies(results, "validation", "train")
    circuits = runs[runs.family == "QNN"].model
    if circuits.empty:
        raise ValueError("the stage dynamics holds no QNN to compare with")
    circuit = circuits.iloc[0]
    of_circuit = runs[(runs.model == circuit) & (runs.measure == "train")]
    last_of_circuit = of_circuit[of_circuit.epoch == runs.epoch.max()]
    fits = last_of_circuit.set_index(["poison", "alpha_percent", "run"]).accuracy.to_dict()
    keys = ["family", "size", "model", "poison", "alpha_percent", "run"]
    curves = runs.pivot(index=[*keys, "epoch"], columns="measure", values="accuracy")
    rows = []
    for labels, curve in curves.groupby(level=keys, sort=False):
        _, _, model, *place = labels
        fit = curve.train.values
        accuracy = curve.validation.values
        if model == circuit:
            target = fit[-1]
            at = len(fit) - 1
        else:
            target = fits.get(tuple(place), np.inf)
            at = int(np.argmax(fit >= target))  # 0 if the run never fits so well
        if fit[at] < target:
            continue
        interpolated = _accuracy_at_fit(fit, accuracy, target, at)
        rows.append((*labels, interpolated))
    frame = pd.DataFrame(rows, columns=[*keys, "accuracy"])
    return frame.assign(measure="validation", endpoint="equal fit", epoch=np.nan)


def _accuracy_at_fit(fit: np.ndarray, accuracy: np.ndarray, target: float, at: int) -> float:
    """Interpolate the accuracy where the fit reaches its target, between epochs at - 1 and at.

    fit, accuracy: (epochs,). at: the place of the first epoch whose fit is at least the target.
    """
    if at == 0:
        return accuracy[0]
    before = fit[at - 1]
    after = fit[at]
    share = 1.0
    if after != before:
        share = (target - before) / (after - before)
    change = accuracy[at] - accuracy[at - 1]
    return accuracy[at - 1] + share * change


def figure(results: xr.Dataset) -> Figure | None:
    """Draw validation accuracy over the fit of the noisy labels, along one long training."""
    from foundation.report.drawing import finished, grid_for, model_styles, noises_of, poison_words

    chosen = selected_epochs(results)
    last = results.epoch.values[-1]
    styles = model_styles(results, ordered(results, "model"))
    titles = ("accuracy on the noisy training labels", "validation accuracy")
    panels = grid_for(noises_of(results), *titles, most=3)
    for axis, (poison, alpha) in panels:
        axis.axvline(1 - alpha / 100, color="0.8", linewidth=0.8, zorder=0)
        for model, (colour, line, marker) in styles.items():
            accuracy = results.accuracy.sel(model=model, poison=poison, alpha_percent=alpha)
            means = accuracy.mean("run").dropna("epoch", how="all")
            x = means.sel(split="train")
            y = means.sel(split="validation")
            form = {"color": colour, "linestyle": line, "linewidth": 1}
            axis.plot(x[1:], y[1:], label=model, **form)
            epoch_of_fill = {
                "none": int(results.published_epochs.sel(model=model)),
                "full": int(chosen[model, poison, alpha]),
                "left": int(last),
            }
            for fill, epoch in epoch_of_fill.items():
                form = {"color": colour, "fillstyle": fill, "ms": 4}
                at = {"epoch": epoch}
                axis.plot(x.sel(at), y.sel(at), marker, **form)
        axis.set_title(poison_words(poison, alpha))
    text = (
        f"means of n = {count_of_runs(results)} runs, each with a training set of its own, after "
        f"epoch 1 to {last}; grey: a perfect model's fit of the noisy labels. Hollow: after the "
        "published epochs; full: at the epoch that held-out noisy samples select; half: after the "
        "last"
    )
    return finished(text, results, legend=True)


TABLE = StudyTable(
    frame=endpoints,
    rows=("poison", "alpha_percent", "model"),
    columns=("endpoint", "measure"),
    head="{endpoint}: {measure}",
    title="One long training, n = {n} runs with training sets of their own: accuracy on clean "
    "validation samples and on the noisy training labels after the published epochs, at the epoch "
    "that held-out noisy samples select, and after the last",
)
PAIRED = StudyTable(
    name="paired-dynamics",
    frame=paired_endpoints,
    rows=("poison", "alpha_percent", "minus"),
    columns=("model", "endpoint"),
    head="{model} − it, {endpoint}, n = {n}",
)


# ---- what is claimed ----


def resists(
    read: ResultFiles,
    data: str,
    kind: str,
    alpha: int,
    place: str,
    published: dict[str, tuple[float, ...]],
) -> Claim:
    """Claim that the QNN is ahead of the published MLP after the published epochs.

    Controls: both at equal fit of the noisy labels, and the tuned QNN against every contender that
    is not a circuit. place: the name of the data set. published: the paper's accuracies at 0, 10,
    ... 90 %, by model; {}: unknown.
    """
    from foundation.report.claims import Claim, first_of, of_model, paired

    runs = at_their_ends(read[data, "corrected", "dynamics"]).query(
        "measure == 'validation' and endpoint == 'published' and poison == @kind and alpha_percent "
        "== @alpha"
    )
    circuit = first_of(runs, "QNN")
    mlp = first_of(runs, "MLP")
    label = f"QNN − {mlp}, published epochs"
    effect = paired(label, of_model(runs, circuit), of_model(runs, mlp))
    published_effect = None
    if circuit in published:
        tenth = alpha // 10
        published_effect = published[circuit][tenth] - published[mlp][tenth]
    fitted = at_equal_fit(read[data, "corrected", "dynamics"]).query(
        "poison == @kind and alpha_percent == @alpha"
    )
    fit = paired(
        f"QNN after the last epoch − {mlp} at equal fit",
        of_model(fitted, circuit),
        of_model(fitted, mlp),
    )
    poison = f"{alpha} % of the labels flipped" + ", all of one class" * (kind == "one_class")
    statement = f"The QNN resists poison that the MLP learns: {place}, {poison}"
    controls = (fit, *against_circuit(read, data, kind, alpha))
    return Claim("the paper's", statement, effect, controls, published_effect)


def early_mlp(read: ResultFiles, data: str, alpha: int, place: str) -> Claim:
    """Claim that the published MLP is ahead of the QNN if both stop where noisy samples say.

    Controls: the stopped MLP against the QNN after the last epoch, and the tuned MLP against every
    tuned circuit.
    """
    from foundation.report.claims import Claim, first_of, of_model, paired

    runs = at_their_ends(read[data, "corrected", "dynamics"]).query(
        "measure == 'validation' and poison == 'labels' and alpha_percent == @alpha"
    )
    mlp = first_of(runs, "MLP")
    circuit = first_of(runs, "QNN")
    selected = runs[runs.endpoint == "selected"]
    late = runs[runs.endpoint == "last"]
    effect = paired(
        f"{mlp} − QNN at the selected epochs", of_model(selected, mlp), of_model(selected, circuit)
    )
    last = paired(
        "the same − QNN after the last epoch", of_model(selected, mlp), of_model(late, circuit)
    )
    tuned = tuned_contenders(read, data, "labels", alpha)
    published = tuned[tuned.group == "published"]
    tuned_mlp = of_model(tuned, first_of(published, "MLP"))
    circuits = tuned[tuned.family == "QNN"].model.unique()
    others = []
    for name in circuits:
        tuned_circuit = of_model(tuned, name)
        others.append(paired(f"tuned MLP − {name}", tuned_mlp, tuned_circuit))
    statement = (
        "It takes no circuit: an MLP that stops where noisy samples say is ahead of the QNN, "
        f"{place}, {alpha} %"
    )
    return Claim("ours", statement, effect, (last, *others))


def small_class(read: ResultFiles, data: str, model: str, place: str) -> Claim:
    """Claim that a small function class is ahead of the MLP after the published epochs.

    Control: the small class against the QNN, both after the last epoch.
    """
    from foundation.report.claims import Claim, first_of, of_model, paired

    runs = at_their_ends(read[data, "corrected", "dynamics"]).query(
        "measure == 'validation' and poison == 'labels' and alpha_percent == 30"
    )
    family = {"Logistic": "logistic regression", "Quadratic": "a bounded quadratic form"}[model]
    mlp = first_of(runs, "MLP")
    circuit = first_of(runs, "QNN")
    small = first_of(runs, model)
    published = runs[runs.endpoint == "published"]
    last = runs[runs.endpoint == "last"]
    effect = paired(
        f"{small} − {mlp}, published epochs", of_model(published, small), of_model(published, mlp)
    )
    label = f"{small} − QNN, last epoch"
    control = paired(label, of_model(last, small), of_model(last, circuit))
    statement = f"A small function class resists as the QNN does: {family}, {place}, 30 %"
    return Claim("ours, before", statement, effect, (control,))


STUDY = Study(
    name="dynamics",
    question="what does a long training do",
    plan=plan,
    tables=(TABLE, PAIRED),
    figures=(StudyFigure(name="dynamics", draw=figure),),
    reads=("controls",),
)

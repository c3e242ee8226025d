"""What does a long training do? Models resist poison as long as they have not learned it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from datar import Dataset
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
    """Every model along one long training, and the held-out loss by which an epoch of it is
    chosen."""
    for protocol, model in models_of_controls(config, dataset):
        training = protocol.sweep
        method = Retrain(training=replace(training, epochs=config.long_epochs))
        words = model_words(model) | {
            "published_epochs": ("model", min(training.epochs, config.long_epochs))
        }
        for poison in config.poisons_of("noises").values():
            place = place_of(model.label, poison)
            fit = control_fit(config, dataset, protocol, model, method, poison)
            fit = replace(fit, measured=epochs_measured(config.long_epochs, training.epochs))
            for job in tuning_fits(fit, config.tuning_runs):
                yield Row("dynamics", job, place, held_out_table, None, words)
            for block in config.blocks():
                job = replace(fit, block=block)
                yield Row("dynamics", job, place, dynamics_table, config.shown(job.runs), words)


def dynamics_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy (…, run, epoch, split): on clean validation samples and the noisy training labels;
    diverged (…, run)."""
    return scores_table(row, arrays).drop_vars("loss").sel(split=["validation", "train"])


def held_out_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """held_out_loss (…, epoch, trial): on held-out samples with their noisy labels, of runs that
    are never judged."""
    loss = scores_table(row, arrays).loss.sel(split="validation", drop=True).rename(run="trial")
    return loss.rename("held_out_loss").to_dataset()


# ---- what is shown ----


def selected_epochs(results: xr.Dataset) -> pd.Series:
    """The epoch with the least loss on held-out noisy samples, mean over trials: by model, poison,
    alpha_percent."""
    loss = results.held_out_loss
    mean = loss.mean("trial", skipna=False)  # a trial that diverged is no choice
    return (
        mean.fillna(np.inf)
        .idxmin("epoch")
        .where(loss.notnull().any(("epoch", "trial")))
        .to_series()
        .dropna()
    )


def at_their_ends(results: xr.Dataset) -> pd.DataFrame:
    """Every run's accuracy at each endpoint of its long training, with the epoch that this is."""
    runs, chosen = accuracies(results, "validation", "train"), selected_epochs(results)
    published = results.published_epochs.to_series()
    places = runs[["model", "poison", "alpha_percent"]].apply(tuple, axis=1)
    ends = {
        "published": runs.model.map(published),
        "selected": places.map(chosen),
        "last": runs.epoch.max(),
    }
    return pd.concat(
        [runs[runs.epoch == epoch].assign(endpoint=name) for name, epoch in ends.items()]
    )


def endpoints(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracy on clean validation samples and on the noisy training labels at each endpoint."""
    return over_runs(at_their_ends(read[data, preset, "dynamics"]))


def paired_endpoints(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The QNN minus every other model at the same kind of endpoint, and where both fit the noisy
    labels equally."""
    results = read[data, preset, "dynamics"]
    ends = at_their_ends(results).query("measure == 'validation'")
    runs = pd.concat([ends, at_equal_fit(results)], ignore_index=True).drop(columns="epoch")
    return circuit_minus_others(runs)


def at_equal_fit(results: xr.Dataset) -> pd.DataFrame:
    """Validation accuracy of every run where its fit of the noisy labels first is that of the QNN
    after the last epoch.

    Between two epochs at which both were measured by a line; no row for a run that never fits so
    well.
    """
    runs = accuracies(results, "validation", "train")
    circuits = runs[runs.family == "QNN"].model
    last = runs[(runs.epoch == runs.epoch.max()) & (runs.measure == "train")]
    target = (
        last[last.model == circuits.iloc[0]]
        .set_index(["poison", "alpha_percent", "run"])
        .accuracy.to_dict()
    )
    keys = ["family", "size", "model", "poison", "alpha_percent", "run"]
    curves = runs.pivot(index=[*keys, "epoch"], columns="measure", values="accuracy")
    rows = []
    for place, own in curves.groupby(level=keys, sort=False):
        fit, accuracy = own.train.values, own.validation.values
        aim = fit[-1] if place[2] == circuits.iloc[0] else target[place[3:]]
        at = len(fit) - 1 if place[2] == circuits.iloc[0] else int(np.argmax(fit >= aim))
        if fit[at] < aim:
            continue
        share = (
            1.0
            if at == 0 or fit[at] == fit[at - 1]
            else (aim - fit[at - 1]) / (fit[at] - fit[at - 1])
        )
        rows.append(
            (
                *place,
                accuracy[at]
                if at == 0
                else accuracy[at - 1] + share * (accuracy[at] - accuracy[at - 1]),
            )
        )
    found = pd.DataFrame(rows, columns=[*keys, "accuracy"])
    return found.assign(measure="validation", endpoint="equal fit", epoch=np.nan)


def figure(results: xr.Dataset) -> Figure | None:
    """Clean against noisy: validation accuracy over the fit of the noisy labels, along one long
    training."""
    from foundation.report.drawing import finished, grid_for, model_styles, noises_of, poison_words

    places = noises_of(results)
    chosen, models = selected_epochs(results), ordered(results, "model")
    styles, last = model_styles(results, models), results.epoch.values[-1]
    for axis, (poison, alpha) in grid_for(
        places, "accuracy on the noisy training labels", "validation accuracy", most=3
    ):
        axis.axvline(1 - alpha / 100, color="0.8", linewidth=0.8, zorder=0)
        for model, (colour, line, marker) in styles.items():
            own = results.accuracy.sel(model=model, poison=poison, alpha_percent=alpha).mean("run")
            own = own.dropna("epoch", how="all")
            x, y = (own.sel(split=split) for split in ("train", "validation"))
            axis.plot(x[1:], y[1:], color=colour, linestyle=line, linewidth=1, label=model)
            ends = {"published_epochs": int(results.published_epochs.sel(model=model))}
            ends |= {"selected": int(chosen[model, poison, alpha]), "last": int(last)}
            for fill, epoch in zip(("none", "full", "left"), ends.values(), strict=True):
                axis.plot(
                    x.sel(epoch=epoch),
                    y.sel(epoch=epoch),
                    marker,
                    color=colour,
                    fillstyle=fill,
                    ms=4,
                )
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
    "validation samples and "
    "on the noisy training labels after the published epochs, at the epoch that held-out noisy "
    "samples select, and "
    "after the last",
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
    """The QNN against the published MLP after the published epochs; controls: what was tuned on
    noisy labels.

    place: what the data set is called. published: the paper's accuracies at 0, 10, ... 90 %, by
    model; {}: unknown.
    """
    from foundation.report.claims import Claim, first_of, of_model, paired

    runs = at_their_ends(read[data, "corrected", "dynamics"]).query(
        "measure == 'validation' and endpoint == 'published' and poison == @kind and alpha_percent "
        "== @alpha"
    )
    circuit, mlp = first_of(runs, "QNN"), first_of(runs, "MLP")
    effect = paired(f"QNN − {mlp}, published epochs", of_model(runs, circuit), of_model(runs, mlp))
    theirs = (
        published[circuit][alpha // 10] - published[mlp][alpha // 10]
        if circuit in published
        else None
    )
    fitted = at_equal_fit(read[data, "corrected", "dynamics"]).query(
        "poison == @kind and alpha_percent == @alpha"
    )
    fit = paired(
        f"QNN after the last epoch − {mlp} at equal fit",
        of_model(fitted, circuit),
        of_model(fitted, mlp),
    )
    what = f"{alpha} % of the labels flipped" + ", all of one class" * (kind == "one_class")
    statement = f"The QNN resists poison that the MLP learns: {place}, {what}"
    return Claim(
        "the paper's", statement, effect, (fit, *against_circuit(read, data, kind, alpha)), theirs
    )


def early_mlp(read: ResultFiles, data: str, alpha: int, place: str) -> Claim:
    """The published MLP ahead of the QNN when both stop where noisy samples say; controls: every
    tuned circuit."""
    from foundation.report.claims import Claim, first_of, of_model, paired

    runs = at_their_ends(read[data, "corrected", "dynamics"]).query(
        "measure == 'validation' and poison == 'labels' and alpha_percent == @alpha"
    )
    mlp, circuit = first_of(runs, "MLP"), first_of(runs, "QNN")
    selected, late = (runs[runs.endpoint == name] for name in ("selected", "last"))
    effect = paired(
        f"{mlp} − QNN at the selected epochs", of_model(selected, mlp), of_model(selected, circuit)
    )
    last = paired(
        "the same − QNN after the last epoch", of_model(selected, mlp), of_model(late, circuit)
    )
    tuned = tuned_contenders(read, data, "labels", alpha)
    own = of_model(tuned, first_of(tuned[tuned.group == "published"], "MLP"))
    circuits = tuned[tuned.family == "QNN"].model.unique()
    others = [paired(f"tuned MLP − {name}", own, of_model(tuned, name)) for name in circuits]
    statement = (
        "It takes no circuit: an MLP that stops where noisy samples say is ahead of the QNN, "
        f"{place}, {alpha} %"
    )
    return Claim("ours", statement, effect, (last, *others))


def small_class(read: ResultFiles, data: str, model: str, place: str) -> Claim:
    """A small function class ahead of the MLP after the published epochs; control: of the QNN after
    a long training."""
    from foundation.report.claims import Claim, first_of, of_model, paired

    runs = at_their_ends(read[data, "corrected", "dynamics"]).query(
        "measure == 'validation' and poison == 'labels' and alpha_percent == 30"
    )
    family = {"Logistic": "logistic regression", "Quadratic": "a bounded quadratic form"}[model]
    mlp, circuit, own = (first_of(runs, each) for each in ("MLP", "QNN", model))
    at = {name: runs[runs.endpoint == name] for name in ("published", "last")}
    effect = paired(
        f"{own} − {mlp}, published epochs",
        of_model(at["published"], own),
        of_model(at["published"], mlp),
    )
    control = paired(
        f"{own} − QNN, last epoch", of_model(at["last"], own), of_model(at["last"], circuit)
    )
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

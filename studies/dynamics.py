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
from studies.contests import tuned_contenders
from studies.families import model_words
from studies.rows import AS_PUBLISHED, POOLED, flipped_words, place_of, rows_of_blocks, scores_table
from studies.tuning import (
    circuit_minus_mlps,
    control_fit,
    epochs_measured,
    models_of_controls,
    tuning_fits,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim, Evidence

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
            yield from rows_of_blocks(config, "dynamics", fit, place, coords, table=dynamics_table)


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


def resists_flips_of_one_class(read: ResultFiles, data: str, alpha: int, place: str) -> Claim:
    """Claim that the QNN is ahead of the MLP where all flipped labels are of one class.

    Both after the published epochs. Control: both at equal fit of the noisy labels.
    """
    from foundation.report.claims import Claim, paired

    circuit, mlp = (
        _at_end(read, data, "one_class", alpha, "published", family) for family in ("QNN", "MLP")
    )
    return Claim(
        whose="ours",
        source="balanced flips are the easy case",
        setting=AS_PUBLISHED,
        statement="The QNN resists poison that the MLP learns: "
        + flipped_words(place, alpha, "one_class"),
        effect=paired(f"QNN − {_name(mlp)}, published epochs", circuit, mlp),
        controls=(_equal_fit(read, data, "one_class", alpha),),
    )


def ahead_at_equal_fit(read: ResultFiles, data: str, alpha: int, place: str) -> Claim:
    """Claim that the QNN is ahead of the MLP where both fit the noisy labels equally.

    Control: the MLP at the epoch that noisy samples choose.
    """
    from foundation.report.claims import Claim, paired

    last = _at_end(read, data, "labels", alpha, "last", "QNN")
    stopped = _at_end(read, data, "labels", alpha, "selected", "MLP")
    return Claim(
        whose="ours",
        source="a fit of the noise explains it",
        setting="equal fit",
        statement="The QNN is ahead of an MLP that fits the noisy labels as well: "
        + flipped_words(place, alpha),
        effect=_equal_fit(read, data, "labels", alpha),
        controls=(paired("QNN after the last epoch − the MLP that stops early", last, stopped),),
    )


def beats_class_mean(read: ResultFiles, data: str, alpha: int, place: str) -> Claim:
    """Claim that the QNN is ahead of the nearest class mean after the published epochs.

    Control: the QNN after the last epoch minus the class mean.
    """
    from foundation.report.claims import Claim, of_model, paired

    runs = tuned_contenders(read, data, "labels", alpha)
    mean = of_model(runs, "nearest class mean")
    published, last = (
        paired(
            f"QNN − nearest class mean, {epochs} epochs",
            _at_end(read, data, "labels", alpha, endpoint, "QNN"),
            mean,
        )
        for endpoint, epochs in (("published", "published"), ("last", "the last"))
    )
    return Claim(
        whose="ours",
        source="what a trivial estimator does needs no circuit",
        setting=AS_PUBLISHED,
        statement="The QNN resists poison that the mean of each class does not: "
        + flipped_words(place, alpha),
        effect=published,
        controls=(last,),
    )


def ahead_if_tuned(read: ResultFiles, data: str, alpha: int, place: str) -> Claim:
    """Claim that the tuned QNN is ahead of the tuned MLP.

    Control: the MLP with weight decay, which is tuned as well.
    """
    from foundation.report.claims import Claim

    runs = tuned_contenders(read, data, "labels", alpha)
    effect, decayed = circuit_minus_mlps(runs, ", both tuned")
    return Claim(
        whose="ours",
        source="a careful MLP is compared with",
        setting=POOLED,
        statement="The tuned QNN is ahead of the tuned MLP: " + flipped_words(place, alpha),
        effect=effect,
        controls=(decayed,),
    )


def early_mlp(read: ResultFiles, data: str, alpha: int, place: str) -> Claim:
    """Claim that the published MLP is ahead of the QNN if both stop where noisy samples say.

    Control: the stopped MLP against the QNN after the last epoch.
    """
    from foundation.report.claims import Claim, paired

    mlp = _at_end(read, data, "labels", alpha, "selected", "MLP")
    selected, last = (
        _at_end(read, data, "labels", alpha, endpoint, "QNN") for endpoint in ("selected", "last")
    )
    return Claim(
        whose="ours",
        source="early stopping is enough",
        setting=POOLED,
        statement="It takes no circuit: an MLP that stops where noisy samples say is ahead of the "
        "QNN: " + flipped_words(place, alpha),
        effect=paired(f"{_name(mlp)} − QNN at the selected epochs", mlp, selected),
        controls=(paired("the same − QNN after the last epoch", mlp, last),),
    )


def small_class(read: ResultFiles, data: str, family: str, words: str, place: str) -> Claim:
    """Claim that a small function class is ahead of the MLP after the published epochs.

    Control: the small class is at most the margin behind the QNN, both after the last epoch.
    """
    from foundation.report.claims import Claim, paired

    small, small_last = (
        _at_end(read, data, "labels", 30, endpoint, family) for endpoint in ("published", "last")
    )
    mlp = _at_end(read, data, "labels", 30, "published", "MLP")
    circuit = _at_end(read, data, "labels", 30, "last", "QNN")
    return Claim(
        whose="ours, before",
        source="a small function class is enough",
        setting=AS_PUBLISHED,
        statement=f"A small function class resists as the QNN does: {words}, {place}, 30 %",
        effect=paired(f"{_name(small)} − {_name(mlp)}, published epochs", small, mlp),
        controls=(paired(f"{_name(small)} − QNN, last epoch", small_last, circuit),),
        is_parity=True,
    )


def _at_end(
    read: ResultFiles, data: str, kind: str, alpha: int, endpoint: str, family: str
) -> pd.DataFrame:
    """Return the validation accuracy of each run of a family's first model at an endpoint."""
    from foundation.report.claims import of_family

    runs = read.gather(_runs_at_their_ends, data, presets=("corrected",)).query(
        "measure == 'validation' and endpoint == @endpoint and poison == @kind and "
        "alpha_percent == @alpha"
    )
    return of_family(runs, family)


def _runs_at_their_ends(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    return at_their_ends(read[data, preset, "dynamics"])


def _runs_at_equal_fit(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    return at_equal_fit(read[data, preset, "dynamics"])


def _equal_fit(read: ResultFiles, data: str, kind: str, alpha: int) -> Evidence:
    """Compare the QNN after the last epoch with the MLP at equal fit of the noisy labels."""
    from foundation.report.claims import of_family, paired

    fitted = read.gather(_runs_at_equal_fit, data, presets=("corrected",)).query(
        "poison == @kind and alpha_percent == @alpha"
    )
    circuit, mlp = (of_family(fitted, family) for family in ("QNN", "MLP"))
    return paired(f"QNN after the last epoch − {_name(mlp)} at equal fit", circuit, mlp)


def _name(runs: pd.DataFrame) -> str:
    return runs.model.iloc[0]


STUDY = Study(
    name="dynamics",
    two_classes=True,
    question="what does a long training do",
    plan=plan,
    tables=(TABLE, PAIRED),
    figures=(StudyFigure(name="dynamics", draw=figure),),
    reads=("controls",),
)

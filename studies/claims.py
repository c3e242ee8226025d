"""The claims on the studies that are not on the record yet: each of the paper's and of ours, and its control."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from foundation.measures import metrics
from foundation.report.claims import Claim, Evidence, first_of, of_model, paired
from foundation.report.frames import (
    ResultFiles,
    accuracies,
)
from foundation.report.layout import digits
from studies import tables
from studies.tables import at_equal_fit, at_their_ends, ends_of_methods, under_gauges

PLACES = {"mnist": "MNIST", "xxz": "the ring"}


# ---- resisting ----


def resists(read: ResultFiles, data: str, kind: str, alpha: int) -> Claim:
    """The QNN against the published MLP after the published epochs; controls: what was tuned on noisy labels."""
    runs = at_their_ends(read[data, "corrected", "dynamics"]).query(
        "measure == 'validation' and endpoint == 'published' and poison == @kind and alpha_percent == @alpha"
    )
    circuit, mlp = first_of(runs, "QNN"), first_of(runs, "MLP")
    effect = paired(f"QNN − {mlp}, published epochs", of_model(runs, circuit), of_model(runs, mlp))
    published = tables.PUBLISHED if data == "mnist" and kind == "labels" else {}
    theirs = published[circuit][alpha // 10] - published[mlp][alpha // 10] if circuit in published else None
    fitted = at_equal_fit(read[data, "corrected", "dynamics"]).query("poison == @kind and alpha_percent == @alpha")
    fit = paired(f"QNN after the last epoch − {mlp} at equal fit", of_model(fitted, circuit), of_model(fitted, mlp))
    name = PLACES[data] + ", fixed gauge" * (data == "xxz")
    what = f"{alpha} % of the labels flipped" + ", all of one class" * (kind == "one_class")
    statement = f"The QNN resists poison that the MLP learns: {name}, {what}"
    return Claim("the paper's", statement, effect, (fit, *_against_circuit(read, data, kind, alpha)), theirs)


def _contests(read: ResultFiles, data: str, kind: str, alpha: int) -> pd.DataFrame:
    runs = accuracies(read[data, "corrected", "controls"], "validation")
    return runs.query("poison == @kind and alpha_percent == @alpha")


def _against_circuit(read: ResultFiles, data: str, kind: str, alpha: int) -> Iterator[Evidence]:
    """The tuned QNN minus everything that was tuned and is no circuit."""
    runs = _contests(read, data, kind, alpha)
    circuit = of_model(runs, first_of(runs[runs.group == "published"], "QNN"))
    for other in runs[runs.family != "QNN"].model.unique():
        yield paired(f"QNN − {other}, both tuned on noisy labels", circuit, of_model(runs, other))


def under_the_gauge(read: ResultFiles, alpha: int) -> Claim:
    """The ring with the published random phase; control: the same states, flips and batches in a fixed gauge."""
    runs = under_gauges(read["xxz", "paper", "gauge"]).query("alpha_percent == @alpha")
    circuit = of_model(runs, first_of(runs, "QNN"))
    mlp = of_model(runs, first_of(runs, "MLP"))
    by_gauge = {name: mlp[mlp.gauge == name] for name in ("random phase", "fixed")}
    effect, control = (paired(f"QNN − MLP, {name}", circuit, own) for name, own in by_gauge.items())
    statement = f"The QNN resists poison that the MLP learns: the ring as published, {alpha} % of the labels flipped"
    return Claim("the paper's", statement, effect, (control, *_against_circuit(read, "xxz", "labels", alpha)))


def features(read: ResultFiles, data: str, alpha: int) -> Claim:
    """Randomised features; control: the corrected choices, of 20 runs."""
    found = []
    for preset in ("paper", "corrected"):
        runs = accuracies(read[data, preset, "noise_sweep"], "validation")
        runs = runs.query("poison == 'features' and alpha_percent == @alpha")
        names = [first_of(runs, family) for family in ("QNN", "MLP")]
        found.append(paired(f"QNN − {names[1]}, {preset}", *(of_model(runs, name) for name in names)))
    statement = f"The QNN resists randomised features better than the MLP: {PLACES[data]}, {alpha} %"
    return Claim("the paper's", statement, found[0], (found[1],))


# ---- unlearning ----


def forgets_by_its_term(read: ResultFiles, data: str, method: str, measure: str) -> Claim:
    """What a method with a forget term does to the QNN's teacher; control: fine-tuning, which has none."""
    results = read[data, "corrected", "unlearning"]
    runs = ends_of_methods(accuracies(results, measure)).query("poison == 'labels'")
    runs = runs[runs.model == first_of(runs, "QNN")].set_index("unlearner")
    sign = 1 if measure == "validation" else -1
    sides = {name: runs.loc[name].assign(accuracy=lambda own: sign * own.accuracy) for name in (method, "start", "cf")}
    title = runs.loc[method].title.iloc[0]
    effect, control = (paired(f"{title} − {word}", sides[method], sides[name]) for name, word in
                       (("start", "teacher"), ("cf", "Fine-tune")))  # fmt: skip
    what = "restore its accuracy" if measure == "validation" else "make it forget the poisoned labels"
    statement = f"It takes the forget term of {title} to {what}: the QNN, {PLACES[data]}, 30 %"
    return Claim("the paper's", statement, effect, (control,))


def unlearns_better(read: ResultFiles, method: str) -> Claim:
    """Validation accuracy of the QNN less the MLP's after a method.

    Controls: teachers that fit the poison equally, and the QNN less a quadratic form without a circuit among these.
    """
    found = []
    parts = {
        "evaluation": ("teachers as they are", ["MLP"]),
        "matched_fit": ("teachers stopped at as much poison", ["MLP", "Quadratic"]),
    }
    for study, (words, families) in parts.items():
        runs = accuracies(read["mnist", "corrected", study], "validation").query("poison == 'labels' and draw == 0")
        runs = runs[runs.unlearner == method]
        circuit = of_model(runs, first_of(runs, "QNN"))
        for other in (first_of(runs, family) for family in families):
            found.append(paired(f"QNN − {other}, {words}", circuit, of_model(runs, other)))
    statement = f"After {runs.title.iloc[0]} the QNN is more accurate than the MLP: MNIST, 30 %"
    return Claim("the paper's", statement, found[0], tuple(found[1:]))


def stable_over_weights(read: ResultFiles, data: str, method: str) -> Claim:
    """The share of a weight map near Retrain, the QNN's less the MLP's; control: nearer than .02 in place of .05."""
    maps, ends = read[data, "corrected", "weight_map"], read[data, "corrected", "unlearning"]
    retrain = ends.accuracy.sel(unlearner="retrain", poison="labels", split="validation").isel(epoch=-1)
    cells = maps.accuracy.sel(unlearner=method, poison="labels")

    family = maps.family.to_series()
    names = [next(name for name in family.index if family[name] == each) for each in ("QNN", "MLP")]
    runs = [run for run in cells.run.values if run in retrain.run.values]
    both = [(cells.sel(model=name, run=runs).transpose("run", ...).values, retrain.sel(model=name, run=runs).values)
            for name in names]  # fmt: skip

    def shares(chosen: np.ndarray, tolerance: float) -> float:
        """QNN minus MLP, of means over these of the runs."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a cell that was not tried has no mean
            own = [metrics.share_near(np.nanmean(cell[chosen], axis=0), np.nanmean(reference[chosen]),
                                      tolerance=tolerance) for cell, reference in both]  # fmt: skip
        return own[0] - own[1]

    generator, found = np.random.default_rng(0), []
    for tolerance in (0.05, 0.02):
        drawn = [shares(generator.integers(len(runs), size=len(runs)), tolerance) for _ in range(400)]
        low, high = np.percentile(drawn, (2.5, 97.5))
        words = f"share within {digits(tolerance)} of Retrain, QNN − {names[1]}"
        found.append(Evidence(words, shares(np.arange(len(runs)), tolerance), low, high, len(runs), np.nan))
    statement = f"The QNN is more stable over the weights of {tables.method_titles(maps)[method]}: {PLACES[data]}"
    return Claim("the paper's", statement, found[0], (found[1],))


def roughens(read: ResultFiles, alpha: int) -> Claim:
    """log10 of the trace's ratio to the clean one, the MLP's less the QNN's; control: logistic regression's.

    Its loss is convex and has nothing to roughen: what its ratio rises by is confidence alone.
    """
    traces = read["hessian", "corrected", "landscape"].trace
    ratio = np.log10(traces.sel(alpha_percent=alpha) / traces.sel(alpha_percent=0))
    runs = tables.every_run(ratio.rename("accuracy").to_dataset().assign_coords(
        {name: read["hessian", "corrected", "landscape"][name] for name in ("family", "size")}))  # fmt: skip
    mlp, circuit, convex = (of_model(runs, first_of(runs, family)) for family in ("MLP", "QNN", "Logistic"))
    effect, control = (paired(f"log10 of the ratio, MLP − {name}", mlp, other) for name, other in
                       (("QNN", circuit), ("logistic regression", convex)))  # fmt: skip
    statement = f"Poison roughens the loss of the MLP and not that of the QNN: trace of the Hessian, {alpha} %"
    return Claim("the paper's", statement, effect, (control,), margin=0.0)


# ---- ours ----


def early_mlp(read: ResultFiles, alpha: int) -> Claim:
    """The published MLP ahead of the QNN when both stop where noisy samples say; controls: every tuned circuit."""
    runs = at_their_ends(read["mnist", "corrected", "dynamics"]).query(
        "measure == 'validation' and poison == 'labels' and alpha_percent == @alpha"
    )
    mlp, circuit = first_of(runs, "MLP"), first_of(runs, "QNN")
    selected, late = (runs[runs.endpoint == name] for name in ("selected", "last"))
    effect = paired(f"{mlp} − QNN at the selected epochs", of_model(selected, mlp), of_model(selected, circuit))
    last = paired("the same − QNN after the last epoch", of_model(selected, mlp), of_model(late, circuit))
    tuned = _contests(read, "mnist", "labels", alpha)
    own = of_model(tuned, first_of(tuned[tuned.group == "published"], "MLP"))
    circuits = tuned[tuned.family == "QNN"].model.unique()
    others = [paired(f"tuned MLP − {name}", own, of_model(tuned, name)) for name in circuits]
    statement = f"It takes no circuit: an MLP that stops where noisy samples say is ahead of the QNN, MNIST, {alpha} %"
    return Claim("ours", statement, effect, (last, *others))


def small_class(read: ResultFiles, model: str) -> Claim:
    """A small function class ahead of the MLP after the published epochs; control: of the QNN after a long training."""
    runs = at_their_ends(read["mnist", "corrected", "dynamics"]).query(
        "measure == 'validation' and poison == 'labels' and alpha_percent == 30"
    )
    family = {"Logistic": "logistic regression", "Quadratic": "a bounded quadratic form"}[model]
    mlp, circuit, own = (first_of(runs, each) for each in ("MLP", "QNN", model))
    at = {name: runs[runs.endpoint == name] for name in ("published", "last")}
    effect = paired(f"{own} − {mlp}, published epochs", of_model(at["published"], own), of_model(at["published"], mlp))
    control = paired(f"{own} − QNN, last epoch", of_model(at["last"], own), of_model(at["last"], circuit))
    statement = f"A small function class resists as the QNN does: {family}, MNIST, 30 %"
    return Claim("ours, before", statement, effect, (control,))


CLAIMS: tuple[Callable[[ResultFiles], Claim], ...] = (
    *(lambda read, alpha=alpha: resists(read, "mnist", "labels", alpha) for alpha in (20, 30, 40)),
    lambda read: resists(read, "mnist", "one_class", 20),
    *(lambda read, alpha=alpha: under_the_gauge(read, alpha) for alpha in (20, 40)),
    *(lambda read, alpha=alpha: resists(read, "xxz", "labels", alpha) for alpha in (20, 30, 40)),
    lambda read: resists(read, "xxz", "one_class", 20),
    lambda read: features(read, "mnist", 80),
    lambda read: features(read, "xxz", 80),
    *(
        lambda read, data=data, method=method, measure=measure: forgets_by_its_term(read, data, method, measure)
        for data in ("mnist", "xxz")
        for method in ("scrub", "ga")
        for measure in ("validation", "forget_poisoned")
    ),
    *(lambda read, method=method: unlearns_better(read, method) for method in ("scrub", "ga")),
    *(lambda read, alpha=alpha: roughens(read, alpha) for alpha in (20, 40)),
    *(lambda read, data=data: stable_over_weights(read, data, "scrub") for data in ("mnist", "xxz")),
    *(lambda read, alpha=alpha: early_mlp(read, alpha) for alpha in (20, 30, 40)),
    *(lambda read, model=model: small_class(read, model) for model in ("Logistic", "Quadratic")),
)  # fmt: skip

"""Is it the encoding of the images that makes gradient ascent hurt the QNN, or the scale of its
logits?

Columns of norm 1 give an image a squared norm of 4 to 19, and so a logit that many times as large
as that of an image of norm 1. Each encoding is tried at the published scale, and at the scale at
which its logits are about as large as those of the other encoding: ten times, or a tenth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from datar import Dataset
from foundation.engine.study import Study, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import ResultFiles, accuracies, over_runs
from foundation.report.layout import digits
from poison_unlearn import Poison
from studies.config import Config
from studies.contenders import ScaledQNN
from studies.families import build_qnn, model_words
from studies.rows import scores_table, training_job

if TYPE_CHECKING:
    from foundation.report.claims import Claim

SCALES = {"amplitude": (5.0, 50.0), "columnwise": (5.0, 0.5)}  # logit per <Z>


# ---- what is computed ----


def under_each_encoding(config: Config, dataset: Dataset) -> dict[str, Dataset]:
    """The images of a configuration under each encoding."""
    return {name: replace(config, encoding=name).load() for name in SCALES}


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Gradient ascent on the QNN under each encoding and scale of the logits; config: of
    run_unlearn_mnist.py."""
    if not config.unlearn_labels:
        return
    method = config.method("ga", training=config.qnn.unlearn)
    poison = Poison("labels", config.unlearn_labels)
    for name, images in under_each_encoding(config, dataset).items():
        usual = build_qnn(images, config.depth)
        for scale, block in itertools.product(SCALES[name], config.blocks()):
            model = (
                usual
                if scale == usual.scale
                else ScaledQNN(usual.n_qubits, usual.depth, logit_scale=scale)
            )
            teacher = training_job(
                config, images, config.qnn.teacher, config.qnn, model, poison, block
            )
            job = replace(teacher, method=method, start=teacher, record="curves")
            place = {"model": model.label, "encoding": name, "alpha_percent": poison.alpha_percent}
            yield Row(
                "encodings", job, place, scores_table, config.shown(job.runs), model_words(model)
            )


# ---- what is shown ----


def before_and_after(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Gradient ascent under each encoding: before, at the end, and the fall of validation accuracy
    within a run."""
    runs = accuracies(read[data, preset, "encodings"], "validation", "forget_poisoned")
    ends = {"before": runs[runs.epoch == 0], "after": runs[runs.epoch == runs.epoch.max()]}
    ends = {
        name: end.assign(measure=end.measure + f", {name}").drop(columns="epoch")
        for name, end in ends.items()
    }
    of_validation = {
        name: end[end.measure == f"validation, {name}"].drop(columns="measure")
        for name, end in ends.items()
    }
    labels = [name for name in of_validation["after"] if name != "accuracy"]
    change = of_validation["after"].merge(
        of_validation["before"], on=labels, suffixes=("", "_before")
    )
    change = change.assign(accuracy=change.accuracy - change.accuracy_before, measure=CHANGE)
    change.attrs.update(runs.attrs)
    both_ends = pd.concat(list(ends.values()))
    return pd.concat(
        [over_runs(both_ends), over_runs(change.drop(columns="accuracy_before"))], ignore_index=True
    )


CHANGE = "difference after − before"
TABLE = StudyTable(
    frame=before_and_after,
    rows=("encoding", "model"),
    title="Gradient ascent on the QNN under either encoding and scale of the logits, n = {n} runs: "
    "accuracy before and "
    "after, and its change",
    formats={CHANGE: partial(digits, sign="+")},
)


# ---- what is claimed ----


def it_is_the_encoding(read: ResultFiles) -> Claim:
    """Gradient ascent hurts the QNN under the columnwise encoding; control: the scale of its logits
    alone."""
    # SciPy's statistics, which a script does not need
    from foundation.report.claims import Claim, paired

    runs = accuracies(read["mnist", "corrected", "encodings"], "validation")
    last, first = (
        runs[runs.epoch == epoch].set_index(["encoding", "model", "run"]).accuracy
        for epoch in (runs.epoch.max(), 0)
    )
    change = (last - first).reset_index()
    models = {name: part.model.unique() for name, part in change.groupby("encoding")}
    (usual,) = set(models["amplitude"]) & set(models["columnwise"])
    under = {
        (name, model == usual): part
        for (name, model), part in change.groupby(["encoding", "model"])
    }
    effect = paired(
        "change under amplitude − columnwise", under["amplitude", True], under["columnwise", True]
    )
    scaled = {
        "amplitude × 10 − columnwise": (("amplitude", False), ("columnwise", True)),
        "amplitude − columnwise × .1": (("amplitude", True), ("columnwise", False)),
    }
    controls = tuple(
        paired(f"change under {words}", under[one], under[other])
        for words, (one, other) in scaled.items()
    )
    statement = (
        "It is the encoding that makes gradient ascent hurt the QNN, and not the scale of its "
        "logits"
    )
    return Claim("ours", statement, effect, controls)


STUDY = Study(
    name="encodings",
    question="is it the encoding that makes gradient ascent hurt the QNN, or the scale of its "
    "logits",
    plan=plan,
    tables=(TABLE,),
    claims=(it_is_the_encoding,),
    data=under_each_encoding,
)

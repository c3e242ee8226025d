"""Does the encoding of the images make gradient ascent hurt the QNN, or the scale of its logits?

Columns of norm 1 give an image a squared norm of 4 to 19, and so a logit that many times as large
as that of an image of norm 1. Each encoding is tried at two scales of the logits: the published
one, and ten times or a tenth of it, where logits are about as large as under the other encoding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from datar import Dataset
from foundation.base.later import pandas as pd
from foundation.engine.study import Study, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import ResultFiles, accuracies, over_runs
from foundation.report.layout import digits
from poison_unlearn import Poison
from studies.config import Config
from studies.contenders import ScaledQNN
from studies.families import build_qnn, model_words
from studies.rows import AS_PUBLISHED, scores_table, training_job

if TYPE_CHECKING:
    from foundation.report.claims import Claim

SCALES = {"amplitude": (5.0, 50.0), "columnwise": (5.0, 0.5)}  # logit per <Z>


# ---- what is computed ----


def under_each_encoding(config: Config, dataset: Dataset) -> dict[str, Dataset]:
    """Load the images under each encoding."""
    return {name: replace(config, encoding=name).load() for name in SCALES}


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan gradient ascent on the QNN under each encoding and scale of the logits.

    config: of run_unlearn_mnist.py.
    """
    if not config.unlearn_labels:
        return
    method = config.method("ga", training=config.qnn.unlearn)
    poison = Poison("labels", config.unlearn_labels)
    for name, images in under_each_encoding(config, dataset).items():
        published = build_qnn(images, config.depth)
        for scale, block in itertools.product(SCALES[name], config.blocks()):
            if scale == published.scale:
                model = published
            else:
                model = ScaledQNN(published.n_qubits, published.depth, logit_scale=scale)
            training = config.qnn.teacher
            teacher = training_job(config, images, training, config.qnn, model, poison, block)
            job = replace(teacher, method=method, start=teacher, record="curves")
            place = {"model": model.label, "encoding": name, "alpha_percent": poison.alpha_percent}
            shown = config.shown(job.runs)
            yield Row("encodings", job, place, scores_table, shown, model_words(model))


# ---- what is shown ----


def before_and_after(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracy before and after gradient ascent, and the change of validation accuracy by run."""
    runs = accuracies(read[data, preset, "encodings"], "validation", "forget_poisoned")
    epochs = {"before": 0, "after": runs.epoch.max()}
    ends = []
    of_validation = {}
    for name, epoch in epochs.items():
        end = runs[runs.epoch == epoch].drop(columns="epoch")
        ends.append(end.assign(measure=end.measure + f", {name}"))
        of_validation[name] = end[end.measure == "validation"].drop(columns="measure")
    before = of_validation["before"]
    after = of_validation["after"]
    labels = [name for name in after if name != "accuracy"]
    change = after.merge(before, on=labels, suffixes=("", "_before"))
    change = change.assign(accuracy=change.accuracy - change.accuracy_before, measure=CHANGE)
    change.attrs.update(runs.attrs)
    change = change.drop(columns="accuracy_before")
    of_ends = over_runs(pd.concat(ends))
    of_change = over_runs(change)
    return pd.concat([of_ends, of_change], ignore_index=True)


CHANGE = "difference after − before"
TABLE = StudyTable(
    frame=before_and_after,
    rows=("encoding", "model"),
    title="Gradient ascent on the QNN under either encoding and scale of the logits, n = {n} runs: "
    "accuracy before and after, and its change",
    formats={CHANGE: partial(digits, sign="+")},
)


# ---- what is claimed ----


def it_is_the_encoding(read: ResultFiles) -> Claim:
    """Gradient ascent hurts the QNN under the columnwise encoding; control: the scale of logits."""
    # imports SciPy's statistics, which scripts do not need
    from foundation.report.claims import Claim, paired

    runs = accuracies(read["mnist", "corrected", "encodings"], "validation")
    last, first = (
        runs[runs.epoch == epoch].set_index(["encoding", "model", "run"]).accuracy
        for epoch in (runs.epoch.max(), 0)
    )
    change = (last - first).reset_index()
    by_encoding = change.groupby("encoding")
    models = {name: part.model.unique() for name, part in by_encoding}
    (published,) = set(models["amplitude"]) & set(models["columnwise"])
    under = {  # by encoding, and whether its logits have the published scale
        (name, model == published): part
        for (name, model), part in change.groupby(["encoding", "model"])
    }
    amplitude = under["amplitude", True]
    amplitude_scaled = under["amplitude", False]
    columnwise = under["columnwise", True]
    columnwise_scaled = under["columnwise", False]
    compared = {
        "amplitude − columnwise": (amplitude, columnwise),
        "amplitude × 10 − columnwise": (amplitude_scaled, columnwise),
        "amplitude − columnwise × .1": (amplitude, columnwise_scaled),
    }
    effect, *controls = (
        paired(f"change under {name}", *sides, ceiling=math.inf) for name, sides in compared.items()
    )
    return Claim(
        whose="ours",
        source="gradient ascent as published",
        setting=AS_PUBLISHED,
        statement="It is the encoding that makes gradient ascent hurt the QNN, and not the scale "
        "of its logits",
        effect=effect,
        controls=tuple(controls),
    )


STUDY = Study(
    name="encodings",
    two_classes=True,
    question="is it the encoding that makes gradient ascent hurt the QNN, or the scale of its "
    "logits",
    plan=plan,
    tables=(TABLE,),
    claims=(it_is_the_encoding,),
    data=under_each_encoding,
)

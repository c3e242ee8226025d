"""Helpers of several studies: jobs of one training, and tables of the scores of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from datar import Dataset
from foundation.base.checks import BadInput, require
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays
from foundation.engine.keys import backend
from foundation.engine.study_files import Row
from models import Model, Training
from poison_unlearn import Method, Poison, Retrain
from protocol import Drawn, Fit, splits_of
from studies.config import Config
from studies.families import Protocol
from studies.methods import Repair, ScrubAlternating

# ---- what is poisoned ----


def given_percent(dataset: Dataset) -> int:
    """Return the poisoned share of data that came with a poison, in whole percent, 1 to 99."""
    percent = round(100 * dataset.given.mask.mean())
    return int(np.clip(percent, 1, 99))


def poisons_to_unlearn(config: Config, dataset: Dataset) -> list[Poison]:
    """Return the poisons that the unlearning studies unlearn.

    They are the configuration's poisons, or the one poison that the data came with. The share of a
    class is that of its samples.
    """
    if dataset.given is not None:
        return [Poison("given", given_percent(dataset))]
    poisons, of_classes = [], []
    for poison in config.unlearn_poisons():
        try:
            known = poison.draw(dataset, key=0).known
        except BadInput as error:
            raise BadInput(f"{flag_of(poison)}: {error}") from None
        if poison.kind == "class":
            is_new = not any(np.array_equal(known, other) for other in of_classes)
            allowed = "each class once"
            require(is_new, "--unlearn-others", f"{poison.name}, a class named before", allowed)
            of_classes.append(known)
            percent = int(np.clip(round(100 * known.mean()), 1, 99))
            poison = replace(poison, alpha_percent=percent)
        poisons.append(poison)
    return poisons


def flag_of(poison: Poison) -> str:
    """Return the flag that says what is to be unlearned, for messages."""
    if poison.kind in ("labels", "features") and poison.label is None:
        return f"--unlearn-{poison.kind}"
    return f"--unlearn-others {poison.name}"


def for_poison(method: Method, poison: Poison) -> Method:
    """Return a method as it is meant for a poison: nothing is flipped in a subset to be forgotten.

    SCRUB+R then rewinds to the error on retained samples that were held out, as they are.
    """
    if poison.kind == "subset" and isinstance(method, ScrubAlternating):
        return replace(method, rewind="plain" if method.rewind == "flipped" else method.rewind)
    return method


def lacks_truth(method: Method, dataset: Dataset) -> bool:
    """Tell whether a method reads samples as before their poison, which the data lack."""
    return method.reads_truth and not dataset.truth_is_known


def has_nothing_to_repair(method: Method, poison: Poison) -> bool:
    """Tell whether a method reads samples as before their poison, where nothing is poisoned."""
    return isinstance(method, Repair) and not poison.changes


def require_truth(method: Method, dataset: Dataset, name: str) -> None:
    """Refuse a method that reads samples as before their poison, where the data lack them."""
    allowed = "methods that do not (--hyper scrub.reads=poisoned), or data with y_clean"
    require(
        not lacks_truth(method, dataset),
        "--methods",
        f"{name}, which reads samples before their poison",
        allowed,
    )


def require_divergence(method: Method, dataset: Dataset) -> None:
    """Refuse the published divergence on more than two classes, before anything is trained."""
    is_defined = dataset.n_classes == 2 or getattr(method, "divergence", "") != "published"
    got = f"scrub.divergence=published on {dataset.n_classes} classes"
    require(is_defined, "--hyper", got, "scrub.divergence=full, as of --preset corrected")


def why_not(method: Method, model: Model, dataset: Dataset, poison: Poison) -> str:
    """Say in a few words why a method cannot run on a model and its data; "" where it can."""
    require_divergence(method, dataset)
    if has_nothing_to_repair(method, poison):
        return "nothing was poisoned, so that nothing can be repaired"
    if lacks_truth(method, dataset):
        return "the data lack the samples before their poison"
    return method.why_not(model)


def place_of(model: str, poison: Poison) -> dict[str, Any]:
    """Return the labels of a model on poisoned data in a study's file; model: the model's label."""
    return {"model": model, "poison": poison.name, "alpha_percent": poison.alpha_percent}


# ---- trainings ----


def training_job(
    config: Config,
    dataset: Dataset,
    training: Training,
    protocol: Protocol,
    model: Model,
    poison: Poison,
    block: int,
) -> Fit:
    """Return the job that trains one model on the poisoned data for each run of a block."""
    return Fit(
        data=dataset.provenance["sha256"],
        model=model,
        poison=poison,
        method=Retrain(training=training),
        seed=config.seed,
        block=block,
        size=config.block,
        side_by_side=are_side_by_side(protocol),
        one_program=config.one_program,
    )


def are_side_by_side(protocol: Protocol) -> bool:
    """Tell whether runs are one batch: always on an accelerator, else as the protocol says."""
    return protocol.side_by_side or backend() != "cpu"


def unlearning_job(config: Config, teacher: Fit, method: Method, block: int, *, record: str) -> Fit:
    """Return the job in which a block of runs of one method starts from teachers.

    Each run has a teacher of its own, or all runs start from the teacher of run 0 (published).
    """
    if config.independent_teachers:
        teacher = replace(teacher, block=block)
        shared_teacher = {}
    else:
        teacher = replace(teacher, block=0)
        shared_teacher = {"draw": 0, "teacher_run": 0}
    return replace(
        teacher, method=method, start=teacher, block=block, record=record, **shared_teacher
    )


# ---- tables of scores ----


def scores_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate accuracy and loss over (…, run, [epoch,] split), and which runs diverged.

    There is an axis epoch if the job recorded curves. Accuracies of runs that diverged are NaN;
    their losses are kept, because they show when a run diverged.
    """
    _, *epoch_counts, _ = arrays["accuracy"].shape  # (runs, [epochs,] splits)
    coords = {"run": list(row.job.runs)}
    if epoch_counts:
        measured = getattr(row.job, "measured", ())
        coords["epoch"] = list(measured or np.arange(*epoch_counts))
    coords["split"] = list(splits_of(row.job.poison))
    scores = {
        "accuracy": np.round(arrays["accuracy"].astype(float), 6),
        "loss": arrays["loss"].astype(float),
    }
    dims = list(coords)
    variables = {name: (dims, values) for name, values in scores.items()}
    table = xr.Dataset(variables, coords)
    table["diverged"] = "run", arrays["diverged"].astype(float)
    table["accuracy"] = table.accuracy.where(table.diverged == 0)
    size = int(arrays["size"])
    return placed(table, row).assign_coords(size=("model", [size]))


FEW_STATES = 200  # of a validation set: chance picks them, too


def states_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate scores; of at most FEW_STATES validation samples also right (…, run, state).

    All runs are to have the same validation samples. right: 1 where the sample is classified
    rightly, else 0; NaN: the run diverged.
    """
    table = scores_table(row, arrays)
    first = 2 * arrays["mask"].shape[1]
    logits, labels = (arrays[name][:, first:] for name in ("logit", "label"))
    if logits.shape[1] > FEW_STATES:
        return table
    is_right = (logits > 0) == (labels > 0) if logits.ndim == 2 else logits.argmax(-1) == labels
    right = is_right.astype(np.float16)
    right[arrays["diverged"].astype(bool)] = np.nan
    coords = {"run": table.run.values, "state": np.arange(right.shape[1])}
    own = xr.Dataset({"right": (("run", "state"), right)}, coords)
    return table.assign(placed(own, row))


def placed(table: xr.Dataset, row: Row) -> xr.Dataset:
    """Give a table one axis of length one for each label of the row's place."""
    return table.expand_dims([*row.place]).assign_coords(
        {axis: [label] for axis, label in row.place.items()}
    )


def rows_of_blocks(
    config: Config,
    study: str,
    job: Drawn,
    place: dict[str, Any],
    coords: dict[str, tuple[str, Any]],
    runs: int | None = None,
    table: Callable[[Row, Arrays], xr.Dataset] = scores_table,
) -> Iterator[Row]:
    """Yield a row for each block of a job's runs; runs: how many; None: all that are asked for."""
    for block in config.blocks(runs):
        of_block = replace(job, block=block)
        yield Row(study, of_block, place, table, config.shown(of_block.runs, runs), coords)


# ---- words ----

NULL_ARM = "null arm"  # teachers that are trained on with the poison, among methods

AS_PUBLISHED = "published epochs, corrected choices"  # of rows from the preset corrected
POOLED = "pooled labels"  # settings or epochs chosen on noisy labels of further training sets


def flipped_words(place: str, alpha: int, kind: str = "labels") -> str:
    """Name a data set and its flipped labels, such as MNIST, 30 % of the labels flipped."""
    return f"{place}, {alpha} % of the labels flipped{FLIPPED_OF_KIND.get(kind, '')}"


FLIPPED_OF_KIND = {
    "one_class": ", all of class 1",
    "other_class": ", all of class 0",
    "next_class": ", to the next class",
    "boundary": ", those at the boundary",
    "quid": ", those most like the other class",
}

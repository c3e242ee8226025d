"""To forget what is no poison, of three classes: subsets and classes, from flags to tables."""

from dataclasses import replace

import numpy as np
import pytest
import reports
import xarray as xr
from conftest import changed, refused

import run_unlearn_mnist
from datar import load_mnist
from foundation.base import storage
from foundation.engine.runner import run_studies
from foundation.measures.forgetting import MEASURES
from foundation.measures.metrics import margins
from models import Training
from poison_unlearn import Poison
from protocol import OF_CLASS, SPLITS, Fit, splits_of
from studies.config import parse_poisons
from studies.judging import draws_of
from studies.judging_figures import _distances_over_floor
from studies.methods import METHODS
from studies.oracles import cases, parts_of
from studies.rows import has_nothing_to_repair, poisons_to_unlearn

STUDIES = run_unlearn_mnist.STUDIES
DIGITS = (3, 0, 1)
TINY = changed(
    run_unlearn_mnist.QUICK,
    stages=("unlearning", "evaluation"),
    digits=DIGITS,
    per_class=40,
    models=("mlp",),
    evaluated=("mlp",),
    methods=("cf", "ga", "repair"),
    unlearn_hidden="4",
    evaluated_hidden="4",
    unlearn_others=("subset=10", "class-0"),
    workers=1,
    optimization_level=0,
    mlp=replace(
        run_unlearn_mnist.QUICK.mlp, teacher=Training(60, 0, 0.03), unlearn=Training(3, 0, 0.01)
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, in_this_process):
    """The folder of the study, on 120 images of three digits."""
    data = load_mnist(digits=DIGITS, per_class=40, source="embedded")
    return run_studies(replace(TINY, out=tmp_path_factory.mktemp("out")), data, STUDIES)


@pytest.fixture(scope="module")
def evaluated(finished):
    return storage.read_dataset(finished / "evaluation.nc")


# ---- what is to be forgotten ----


def fit_of(poison, **fields):
    from models import MLP
    from poison_unlearn import Retrain

    method = Retrain(training=Training(1, 0, 0.01))
    return Fit(data="", model=MLP(1024, (), 3), poison=poison, method=method, size=2, **fields)


def three_digits():
    return load_mnist(digits=DIGITS, per_class=10, source="embedded")


def test_validation_is_split_where_a_class_is_forgotten():
    """Held to the margins of the same run, averaged by hand."""
    data = three_digits()
    job = fit_of(Poison("class", 33, label=1), retains=True)
    arrays = {name: np.asarray(array) for name, array in job.perform(data).items()}
    assert splits_of(job.poison) == (*SPLITS, OF_CLASS)
    n = len(data.train.y)
    right = arrays["logit"][0, 2 * n :].argmax(axis=1) == data.val.y
    found = dict(zip(splits_of(job.poison), arrays["accuracy"][0], strict=True))
    is_of_class = data.val.y == 1
    assert found["validation"] == pytest.approx(right[~is_of_class].mean(), abs=1e-6)
    assert found[OF_CLASS] == pytest.approx(right[is_of_class].mean(), abs=1e-6)
    assert found["forget_clean"] == found["forget_poisoned"]
    np.testing.assert_array_equal(arrays["known"][0], data.train.y == 1)
    parts = parts_of(arrays, job.poison)
    np.testing.assert_array_equal(parts.of_class[n:], is_of_class)
    np.testing.assert_array_equal(parts.validation[n:], ~is_of_class)
    assert not parts.poisoned.any() and not parts.of_class[:n].any()
    logits = np.log(np.exp(arrays["logit"][0, :n]).sum(axis=1))
    of_label = np.take_along_axis(arrays["logit"][0, :n], data.train.y[:, None], axis=1)[:, 0]
    loss = (logits - of_label).mean()
    assert float(arrays["loss"][0, SPLITS.index("train")]) == pytest.approx(loss, rel=1e-4)


def test_a_held_out_validation_set_knows_the_class_too():
    """All that is held out of the retained samples is of other classes."""
    job = fit_of(Poison("class", 33, label=1), held_out_percent=20)
    (sets, _) = job.sets(three_digits())
    assert len(sets.val.y) == 4 and not sets.draw.of_class.any()
    everything = replace(job, held_out_percent=50, held_out_of="all").sets(three_digits())[0]
    np.testing.assert_array_equal(everything.draw.of_class, everything.val.y == 1)


def test_another_number_of_classes_than_the_models_is_refused():
    data = load_mnist(digits=(0, 1, 2, 3), per_class=5, source="embedded")
    with refused("labels: got labels such as 3, allowed: 0 to 2, the n_classes of Logistic"):
        fit_of(Poison("labels", 30)).perform(data)


# ---- flags ----


def test_flags_name_what_is_forgotten():
    found = parse_poisons("-", ("class-1", "subset=10", "one_class-0=20"), forgets=True)
    names = [(poison.name, poison.alpha_percent) for poison in found.values()]
    assert names == [("class-1", 0), ("subset", 10), ("one_class-0", 20)]
    assert [poison.name for poison in TINY.unlearn_poisons()] == ["labels", "subset", "class-0"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unlearn_others": ("class=20",)}, "--unlearn-others: got class=20, allowed: POISON"),
        ({"unlearn_others": ("class-x",)}, "--unlearn-others: got class-x, allowed: POISON"),
        ({"unlearn_others": ("labels-1=20",)}, "--unlearn-others labels-1=20: label: got 1"),
        ({"unlearn_others": ("subset",)}, "--unlearn-others: got subset, allowed: POISON"),
        ({"unlearn_others": ("class-1", "class-1")}, "--unlearn-others: got class-1 class-1"),
        ({"noises": ("subset=20",)}, "--noises: got subset=20, allowed: POISON=PERCENT"),
        ({"poisons": ("class",)}, "--poisons: got class, allowed:"),
        ({"unlearn_others": ("class-",)}, "--unlearn-others: got class-, allowed: POISON"),
        ({"unlearn_others": ("one_class-=20",)}, "--unlearn-others: got one_class-=20, allowed"),
    ],
)
def test_flags_that_name_nothing_are_one_line(changes, said):
    with refused(said):
        changed(run_unlearn_mnist.QUICK, **changes)


def test_a_class_that_is_not_there_is_refused_before_anything_is_trained():
    with refused("--unlearn-others class-3: label: got 3, allowed: 0 to 2, the numbers of the"):
        run_studies(changed(TINY, unlearn_others=("class-3",)), three_digits(), STUDIES)


def test_a_class_named_twice_is_refused():
    with refused("--unlearn-others: got class-2, a class named before, allowed: each class once"):
        poisons_to_unlearn(changed(TINY, unlearn_others=("class", "class-2")), three_digits())


def test_the_published_divergence_is_refused_before_anything_is_trained():
    config = changed(TINY, choices=("scrub.divergence=published",), methods=("scrub",))
    with refused("--hyper: got scrub.divergence=published on 3 classes, allowed: scrub.diverg"):
        run_studies(config, three_digits(), STUDIES)


def test_scrub_that_reads_clean_samples_forgets_what_is_no_poison():
    method = METHODS["scrub"]
    clean = replace(method, reads="clean")
    assert not has_nothing_to_repair(clean, Poison("subset", 10))
    assert has_nothing_to_repair(METHODS["repair"], Poison("subset", 10))


@pytest.mark.parametrize("stage", ["discovery", "controls", "transition", "hardware"])
def test_a_stage_of_two_classes_says_so(stage):
    with refused(f"--stages: got {stage} on 3 classes, allowed: data of two classes"):
        run_studies(changed(TINY, stages=(stage,)), three_digits(), STUDIES)


# ---- studies ----


def test_an_oracle_knows_nothing_of_a_forgotten_class(evaluated):
    """Its accuracy there is 0, and the teacher's near 1; so is the distance of both."""
    accuracy = evaluated.accuracy.sel(poison="class-0", draw=0)
    by_arm = accuracy.mean("run")
    for split in (OF_CLASS, "forget_poisoned"):
        assert float(by_arm.sel(unlearner="oracle", split=split).max()) == 0
        assert float(by_arm.sel(unlearner="teacher", split=split).min()) > 0.8
    assert float(by_arm.sel(unlearner="oracle", split="validation").min()) > 0.8
    scores = evaluated.sel(poison="class-0", draw=0, measure="w1")
    floor = float(scores.floor.sel(unlearner="oracle").squeeze())
    assert float(scores.value.sel(unlearner="oracle").squeeze()) < 3 * floor
    assert float(scores.value.sel(unlearner="teacher").squeeze()) > 3 * floor


def test_each_poison_has_the_measures_that_are_defined_for_it(evaluated):
    values = evaluated.value.sel(unlearner="cf", draw=0).squeeze("model")
    there = {
        name: set(values.sel(poison=name).dropna("measure").measure.values.tolist())
        for name in values.poison.values.tolist()
    }
    assert there["labels"] == {*MEASURES, "tv"}
    assert there["subset"] == {*MEASURES, "tv"} - {"corrective"}
    assert there["class-0"] == {*MEASURES, "tv", "w1_of_class"} - {"corrective"}


def test_nothing_is_repaired_where_nothing_is_poisoned(evaluated):
    count = evaluated.accuracy.sel(unlearner="repair", split="validation").count("run")
    of_poisons = count.squeeze("model").max("draw").to_series().to_dict()
    assert of_poisons == {"labels": 4, "subset": 0, "class-0": 0}
    assert "nothing was poisoned" in str(evaluated.left_out.values)


def test_a_study_file_holds_the_logits_of_all_classes(finished):
    curves = storage.read_dataset(finished / "unlearning.nc")
    assert curves.logit.dims[-3:] == ("run", "sample", "class") and curves.sizes["class"] == 3
    place = {"poison": "labels", "unlearner": "cf", "run": 0}
    of_run = curves.sel(place).squeeze("model")
    is_train = (of_run.part == "train").values
    logits = of_run.logit.values[is_train].astype(float)
    labels = of_run.label.values[is_train].astype(int)
    right = float(of_run.accuracy.sel(split="train").dropna("epoch")[-1])
    assert (logits.argmax(axis=1) == labels).mean() == pytest.approx(right, abs=0.02)
    assert (margins(logits, labels) > 0).mean() <= right + 0.02


def test_tables_have_dashes_and_say_why(finished, capsys):
    reports.print_summary(finished, ("unlearning", "evaluation"))
    printed = capsys.readouterr().out
    assert "class-0, subset: nothing is poisoned, and so nothing to be repaired" in printed
    assert "v.class" in printed and "TV" in printed and "W1 valid, class" in printed
    (row,) = [line for line in printed.splitlines() if "subset" in line and " start " in line]
    assert row.split()[-7:][1] == "–"  # no class of its own
    assert "not on MLP[4]: repair: nothing was poisoned" in printed


def test_figures_are_drawn(finished):
    pictures = reports.save_all(finished)
    assert {path.stem for path in pictures} >= {"unlearning", "forgetting_scores"}


def test_the_draws_of_a_class_are_one():
    data, config = three_digits(), replace(TINY, draws=3)
    draws = {}
    for case, _ in cases(config, data, range(config.draws), 4):
        draws.setdefault(case.poison.name, []).append(case.draw)
    assert draws == {"labels": [0, 1, 2], "subset": [0, 1, 2], "class-0": [0]}


def test_a_class_among_poisons_of_several_draws_keeps_its_numbers(evaluated):
    """Its ratio to the floor is that of its one draw; that of the others is over all draws."""
    second = evaluated.copy(deep=True).assign_coords(draw=[1])
    second["distance"] = 3 * second.distance
    for name in ("distance", "unit"):
        second[name] = second[name].where(second.poison != "class-0")
    both = xr.concat([evaluated, second], "draw", data_vars="minimal", join="exact")
    both.attrs = evaluated.attrs
    found = _distances_over_floor(both, ["cf"]).sel(measure="w1").squeeze()
    one = _distances_over_floor(evaluated, ["cf"]).sel(measure="w1").squeeze()
    factors = (found / one).to_series().to_dict()
    assert factors == pytest.approx({"labels": 2, "subset": 2, "class-0": 1})
    assert [draws_of(both, name) for name in ("labels", "class-0")] == [2, 1]

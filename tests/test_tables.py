"""Tables from synthetic studies: what they hold, beside the same numbers computed by hand."""

import io
import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import reports
import xarray as xr
from conftest import ROOT, refused

import findings
from foundation.base import storage
from foundation.base.checks import any_terminal
from foundation.measures import metrics
from foundation.report import frames, layout
from studies import gauge as gauge_study
from studies import hessian, noise_sweep, unlearning

SIZES = {
    "MLP[4]": 10,
    "MLP[8,2]": 20,
    "MLP[16,4]": 70,
    "MLP[64,16]": 500,
    "QNN[depth=4]": 16,
    "QNN[depth=6]": 24,
    "QNN[depth=5,xy,cnot]": 20,
    "Logistic": 5,
    "Quadratic[rank=16]": 64,
    "Mine": 7,
    "Mine[large]": 70,
}
TITLES = {"retrain": "Retrain", "cf": "Fine-tune", "scrub": "Scrub", "ga": "Gradient ascent"}
ALPHAS = (0, 30, 60)
TRAINING = {"unlearn": {"batch_size": 0}}
CONFIG = {"independent_teachers": True, "mlp": TRAINING, "qnn": TRAINING}


# ---- synthetic studies: labels sorted, as files have them, and random numbers ----


def study(axes, *names, without=(), data=None, **config):
    """A study of these variables over all axes, {name: labels}; `diverged` has none of the axes in
    `without`."""
    axes = {dim: sorted(labels) for dim, labels in axes.items()}
    words = {}
    if "model" in axes:
        words["family"] = "model", [model.split("[")[0] for model in axes["model"]]
        words["size"] = "model", [float(SIZES[model]) for model in axes["model"]]
    if "unlearner" in axes:
        words["title"] = "unlearner", [TITLES.get(name, name.title()) for name in axes["unlearner"]]
        words["fresh"] = "unlearner", [float(name == "retrain") for name in axes["unlearner"]]
    generator = np.random.default_rng(sum(map(len, axes.values())))
    shape = [len(labels) for labels in axes.values()]
    arrays = {name: (list(axes), generator.uniform(0.1, 0.9, shape)) for name in names}
    attributes = {"config": json.dumps(CONFIG | config), "data": json.dumps(data or {})}
    results = xr.Dataset(arrays, axes | words, attributes)
    return results.assign(
        diverged=xr.zeros_like(results[names[0]].isel(dict.fromkeys(without, 0), drop=True))
    )


def sweep(models, poisons=("labels",), *, alphas=ALPHAS, runs=3, gauge="fixed"):
    axes = {
        "model": models,
        "poison": poisons,
        "alpha_percent": alphas,
        "run": range(runs),
        "split": ("forget_clean", "forget_poisoned", "retain", "train", "validation"),
    }
    return study(axes, "accuracy", "loss", without=["split"], data={"gauge": gauge})


def curves(methods=tuple(TITLES), models=("MLP[4]",), poisons=("labels",), *, runs=3, **config):
    axes = {
        "model": models,
        "poison": poisons,
        "unlearner": methods,
        "run": range(runs),
        "epoch": range(4),
        "split": ("forget_clean", "forget_poisoned", "retain", "train", "validation"),
    }
    results = study(axes, "accuracy", "loss", without=["split", "epoch"], **config)
    return results.assign_coords(alpha_percent=("poison", [30.0] * len(poisons)))


def weight_map(
    methods=("ga", "scrub"),
    models=("MLP[4]",),
    poisons=("labels",),
    *,
    grid=(0.0, 0.2, 0.4),
    names=None,
):
    """names: of each method's two weights; the second is "" where it has one, and the map one
    row."""
    names = {"ga": ("forget", ""), "scrub": ("forget", "kl")} | (names or {})
    axes = {
        "model": models,
        "poison": poisons,
        "unlearner": methods,
        "first": grid,
        "second": grid,
        "run": range(3),
    }
    results = study(axes, "accuracy")
    second = xr.DataArray(
        [names[str(name)][1] for name in results.unlearner.values], dims="unlearner"
    )
    results["accuracy"] = results.accuracy.where((results.second == 0) | (second != ""))
    words = {f"{place}_name": [names[str(name)][at] for name in results.unlearner.values]
             for at, place in enumerate(("first", "second"))}  # fmt: skip
    words |= {"first_default": [0.2] * len(methods), "second_default": [0.0] * len(methods)}
    return results.assign_coords({name: ("unlearner", values) for name, values in words.items()})


def gauge(models=("MLP[64,16]", "QNN[depth=4]"), *, free=("QNN[depth=4]",)):
    axes = {
        "model": models,
        "gauge": ("fixed", "random_phase", "random_sign"),
        "alpha_percent": ALPHAS,
        "run": range(3),
        "split": ("train", "validation"),
    }
    results = study(axes, "accuracy", "loss", without=["split"])
    return results.where(~results.model.isin(free) | (results.gauge == "fixed"))


def landscape(models=("MLP[8,2]", "QNN[depth=5,xy,cnot]", "Logistic"), *, runs=3):
    axes = {"model": models, "alpha_percent": (0, 40), "run": range(runs)}
    results = study(axes, "trace", "trace_complex", "dead", "dead_relus")
    results["trace_complex"] = results.trace_complex.where(results.family == "QNN")
    held_out = xr.full_like(results.trace, 0.75).expand_dims(split=["held_out", "train"], axis=-1)
    return results.assign(accuracy=held_out, dead=xr.zeros_like(results.dead))


REAL = (
    "epochs",
    "evaluation",
    "benchmark",
    "finalists",
    "influence",
    "dynamics",
    "controls",
    "splits",
    "encodings",
    "capacity",
    "pairs",
    "equal_steps",
    "memorising",
    "matched_fit",
    "discovery",
    "detection",
    "detected",
    "hardware",
    "hardware_unlearning",
    "transition",
    "own_labels",
    "aimed_flips",
    "equal_fit",
)
ALL = ("MLP[16,4]", "MLP[64,16]", "QNN[depth=4]", "QNN[depth=6]", "Logistic")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results from which all tables of FINDINGS.md can be made."""
    folder = tmp_path_factory.mktemp("results")
    for preset in ("paper", "corrected"):
        for data in ("mnist", "xxz"):
            models = [model for model in ALL if model != {"mnist": "QNN[depth=4]"}.get(data)]
            write(folder, data, preset, "noise_sweep", sweep(models, ("labels", "features")))
            write(
                folder,
                data,
                preset,
                "unlearning",
                curves(models=models[1:3], poisons=("labels", "features")),
            )
            write(
                folder,
                data,
                preset,
                "weight_map",
                weight_map(models=models[1:3], poisons=("labels", "features")),
            )
        write(folder, "hessian", preset, "landscape", landscape())
    write(folder, "xxz", "paper", "gauge", gauge())
    # of the stages that are too much to be made up
    for path in ROOT.glob("results/*/corrected/*.nc"):
        if path.stem in REAL:
            shutil.copy(path, folder / path.relative_to(ROOT / "results"))
    return folder


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Files of one name, size and time are read once; those that these tests write anew are not
    such."""
    read = storage.read_dataset
    kept = {}

    def read_dataset(path):
        own = path.stat()
        key = (path.parts[-3:], own.st_size, own.st_mtime_ns)
        kept[key] = kept[key] if key in kept else read(path)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "read_dataset", read_dataset)
        yield


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Bounds from 99 resamples, here and where they are checked; tests/test_readme.py compares
    those of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "RESAMPLES", 99)
        metrics._draws.cache_clear()
        yield
    metrics._draws.cache_clear()


@pytest.fixture
def folder(results, tmp_path):
    """A copy of them, to be changed."""
    return shutil.copytree(results, tmp_path / "results")


@pytest.fixture(scope="module")
def laid_out(results):
    """All tables of them, by name: made once, for it takes ten seconds."""
    read = frames.ResultFiles(results)
    return {name: make(read) for name, make in findings.tables().items()}


@pytest.fixture
def made_once(laid_out, monkeypatch):
    """The command finds them made."""

    def tables():
        return {name: lambda _, table=table: table for name, table in laid_out.items()}

    monkeypatch.setattr(findings, "tables", tables)


@pytest.fixture(scope="module")
def readme(laid_out):
    return {name: layout.markdown(table) for name, table in laid_out.items()}


def interval_of_mean(differences):
    """A mean and its bootstrap interval, as a cell shows them."""
    numbers = (differences.mean(), *metrics.bootstrap_interval(differences))
    return "{} [{}, {}]".format(*(layout.digits(number, sign="+") for number in numbers))


def write(folder, data, preset, name, results):
    storage.write_dataset(folder / data / preset / f"{name}.nc", results)


def rows_of(markdown):
    """The rows of a table in Markdown: {first columns, as many as have words: the other cells} by
    head."""
    heads, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()
    ]
    return [dict(zip(heads, line, strict=True)) for line in lines]


def row(markdown, **labels):
    (found,) = [
        row
        for row in rows_of(markdown)
        if all(row[name] == label for name, label in labels.items())
    ]
    return found


# ---- tidy frames ----


def test_the_mean_over_runs_is_that_of_the_array(tmp_path):
    results = sweep(["MLP[4]", "MLP[64,16]"], runs=5)
    results["accuracy"][0, 0, 1, 3] = np.nan
    write(tmp_path, "mnist", "mine", "noise_sweep", results)
    tidy = noise_sweep.sweep(frames.ResultFiles(tmp_path), "mnist", "mine").set_index(
        ["model", "alpha_percent"]
    )
    values = results.accuracy.sel(split="validation", poison="labels")
    for (model, alpha), number in tidy.iterrows():
        runs = values.sel(model=model, alpha_percent=alpha).dropna("run").values
        assert number.n == len(runs) == 5 - ((model, alpha) == ("MLP[4]", 30))
        assert number.value == pytest.approx(runs.mean()) and number.sd == pytest.approx(
            runs.std(ddof=1)
        )
        assert (number.low, number.high) == metrics.bootstrap_interval(runs)


def test_every_run_has_a_row_with_all_that_the_file_says_of_it():
    results = curves(["cf", "retrain"])
    results["accuracy"][:, :, 0, 1] = np.nan
    runs = frames.every_run(results)
    assert len(runs) == int(results.accuracy.notnull().sum())
    one = runs[
        (runs.unlearner == "retrain")
        & (runs.run == 2)
        & (runs.epoch == 3)
        & (runs.split == "retain")
    ].iloc[0]
    chosen = results.sel({"unlearner": "retrain", "run": 2, "epoch": 3, "split": "retain"})
    assert one.accuracy == chosen.accuracy and one.loss == chosen.loss
    assert (one.title, one.fresh, one.family, one["size"], one.alpha_percent) == (
        "Retrain",
        1,
        "MLP",
        10,
        30,
    )


def test_a_difference_is_taken_run_by_run():
    """What a poison draw does to both cancels: a constant lead has no width, whatever the draws
    are."""
    draws = np.random.default_rng(0).uniform(0.3, 0.6, 20)
    left = pd.DataFrame(
        {
            "model": "a",
            "measure": "validation",
            "alpha_percent": 30,
            "run": range(20),
            "accuracy": draws + 0.1,
        }
    )
    right = (
        left.drop(columns="model").assign(minus="b", accuracy=draws).sample(frac=1, random_state=0)
    )
    (number,) = frames.difference(left, right).itertuples()
    assert (number.model, number.minus, number.measure, number.n) == (
        "a",
        "b",
        "difference in validation",
        20,
    )
    assert number.value == pytest.approx(0.1) and number.high - number.low < 1e-12
    noisy = right.assign(accuracy=right.accuracy + np.random.default_rng(1).normal(0, 0.01, 20))
    (number,) = frames.difference(left, noisy).itertuples()
    assert 0.001 < number.high - number.low < 0.02
    (number,) = frames.difference(left, right[right.run < 7]).itertuples()
    assert number.n == 7
    elsewhere = right.assign(alpha_percent=60)
    assert not len(frames.difference(left, elsewhere))


def test_teachers_are_the_start_of_a_method_that_begins_there(tmp_path):
    results = curves()
    write(tmp_path, "mnist", "mine", "unlearning", results)
    tidy = (
        unlearning.ends_and_stability(frames.ResultFiles(tmp_path), "mnist", "mine")
        .set_index(["unlearner", "measure"])
        .value
    )
    first, last = (results.accuracy.isel(epoch=place).mean("run").squeeze() for place in (0, -1))
    assert tidy["start", "validation"] == pytest.approx(
        first.sel(unlearner="cf", split="validation")
    )
    for name in TITLES:
        assert tidy[name, "retain"] == pytest.approx(last.sel(unlearner=name, split="retain"))
        own = (
            results.accuracy.sel({"unlearner": name, "split": "validation"})
            .squeeze()
            .transpose("run", "epoch")
        )
        assert tidy[name, "drop"] == pytest.approx(np.median(metrics.largest_drop(own.values)))
        assert tidy[name, "std"] == pytest.approx(own.isel(epoch=-1).std(ddof=1))


def test_a_method_ends_at_its_own_last_epoch(tmp_path):
    results = curves(["cf", "retrain"])
    shorter = (results.unlearner == "cf") & (results.epoch > 2)
    write(
        tmp_path,
        "mnist",
        "mine",
        "unlearning",
        results.assign(accuracy=results.accuracy.where(~shorter)),
    )
    tidy = (
        unlearning.ends_and_stability(frames.ResultFiles(tmp_path), "mnist", "mine")
        .set_index(["unlearner", "measure"])
        .value
    )
    ends = results.accuracy.sel(split="retain").mean("run").squeeze()
    assert tidy["cf", "retain"] == pytest.approx(ends.sel(unlearner="cf", epoch=2))
    assert tidy["retrain", "retain"] == pytest.approx(ends.sel(unlearner="retrain", epoch=3))


def test_cells_near_retraining_are_counted_in_the_runs_of_the_map(tmp_path):
    results, ends = weight_map(["scrub"]), curves(runs=5)
    results["accuracy"][...] = np.linspace(0.5, 0.9, 9).reshape(3, 3, 1)
    results["diverged"][0, 0, 0, 2, 2, 1] = 1
    retrain = {"unlearner": "retrain", "epoch": 3, "split": "validation"}
    ends.accuracy.loc[retrain] = np.array([0.88, 0.9, 0.92, 0.1, 0.1])
    write(tmp_path, "mnist", "mine", "weight_map", results)
    write(tmp_path, "mnist", "mine", "unlearning", ends)
    tidy = unlearning.weight_maps(frames.ResultFiles(tmp_path), "mnist", "mine").set_index(
        "measure"
    )
    assert tidy.value.to_dict() == pytest.approx(
        {"lowest": 0.5, "highest": 0.9, "near Retrain": 1 / 9}
    )
    assert set(tidy.n) == {3}
    (tmp_path / "mnist" / "mine" / "unlearning.nc").unlink()
    tidy = unlearning.weight_maps(frames.ResultFiles(tmp_path), "mnist", "mine").set_index(
        "measure"
    )
    assert np.isnan(tidy.value["near Retrain"])


def test_a_model_of_one_gauge_only_is_under_any(tmp_path):
    write(tmp_path, "xxz", "mine", "gauge", gauge())
    under = (
        gauge_study.gauges(frames.ResultFiles(tmp_path), "xxz", "mine")
        .groupby("model")
        .gauge.unique()
    )
    assert list(under["QNN[depth=4]"]) == ["any gauge"]
    assert set(under["MLP[64,16]"]) == {"fixed", "random phase", "random sign"}
    write(tmp_path, "xxz", "one", "gauge", gauge().sel(gauge=["fixed"]))
    assert set(gauge_study.gauges(frames.ResultFiles(tmp_path), "xxz", "one").gauge) == {"fixed"}


def test_ratios_of_traces_are_those_of_the_same_runs(tmp_path):
    results = landscape(runs=6)
    results["trace"].loc[{"model": "Logistic", "alpha_percent": 0}] = np.nan
    write(tmp_path, "hessian", "mine", "landscape", results)
    tidy = hessian.traces_and_ratios(frames.ResultFiles(tmp_path), "hessian", "mine")
    assert set(tidy.model) == {"MLP[8,2]", "QNN[depth=5,xy,cnot]"}  # no ratio without a clean trace
    number = tidy[(tidy.model == "MLP[8,2]") & (tidy.alpha_percent == 40)].set_index("measure")
    noisy, clean = (
        results.trace.sel(model="MLP[8,2]", alpha_percent=alpha).values for alpha in (40, 0)
    )
    assert tuple(number.loc["ratio", ["value", "low", "high"]]) == metrics.ratio_interval(
        noisy, clean
    )
    assert number.value["trace"] == np.median(noisy) and number.value["held out"] == 0.75
    assert number.value["mean ratio"] == pytest.approx(noisy.mean() / clean.mean())


def test_models_and_methods_come_in_reading_order():
    names = ["Logistic", "MLP[16,4]", "MLP[64,16]", "MLP[8,2]", "Mine", "QNN[depth=6]"]
    assert frames.ordered(sweep(names), "model") == [
        "MLP[8,2]", "MLP[16,4]", "MLP[64,16]", "QNN[depth=6]", "Logistic", "Mine"
    ]  # fmt: skip
    assert frames.ordered(curves(["aa", "zz", *TITLES]), "unlearner") == [*TITLES, "aa", "zz"]
    assert frames.one_of_each_family(sweep(names), names) == [
        "MLP[64,16]",
        "QNN[depth=6]",
        "Logistic",
        "Mine",
    ]


def test_methods_of_one_title_are_told_apart():
    results = curves(["cf", "mine"])
    results["title"] = "unlearner", ["Fine-tune", "Fine-tune"]
    assert frames.method_titles(results) == {"cf": "Fine-tune (cf)", "mine": "Fine-tune (mine)"}
    assert set(frames.every_run(results).title) == {"Fine-tune (cf)", "Fine-tune (mine)"}


@pytest.mark.parametrize(("short", "said"), [(0, "5"), (1, "2 to 5")])
def test_runs_are_counted_for_each_model(short, said):
    results = sweep(["MLP[4]", "MLP[64,16]"], runs=5)
    results["accuracy"] = results.accuracy.where(
        (results.model != "MLP[4]") | (results.run < 2) | (short == 0)
    )
    assert frames.count_of_runs(results) == said


# ---- layout ----


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.9121, "", ".912"),
        (1, "", "1.000"),
        (0.99996, "", "1.000"),
        (-0.0301, "+", "-.030"),
        (0.0301, "+", "+.030"),
        (np.nan, "", "–"),
        (10.5, "", "10.500"),
    ],
)
def test_digits(value, sign, text):
    assert layout.digits(value, sign=sign) == text


NUMBER = {
    "model": "a",
    "alpha_percent": 0,
    "measure": "validation",
    "value": 0.5,
    "sd": 0.1,
    "low": 0.4,
    "high": 0.6,
    "n": 5,
}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ".500 [.400, .600]"),
        ({"low": 0.5, "high": 0.5}, ".500"),
        ({"low": np.nan, "high": np.nan}, ".500 ± .100"),
        ({"low": np.nan, "sd": np.nan, "n": 1}, ".500 (n = 1)"),
        ({"low": np.nan, "sd": np.nan}, ".500"),
        ({"value": np.nan}, "–"),
        ({"measure": "trace", "value": 1234.5, "low": 330.1, "high": 4000}, "1230 [330, 4000]"),
        ({"measure": "difference in validation", "low": -0.1}, "+.500 [-.100, +.600]"),
    ],
)
def test_a_cell_says_what_is_known_of_the_spread(changes, text):
    table = layout.Table(
        pd.DataFrame([NUMBER | changes]), ("alpha_percent",), ("model",), "{model}"
    )
    assert table.cells().values.tolist() == [[text]]


def test_combinations_that_no_file_holds_are_dashes_and_all_come_in_order():
    tidy = pd.DataFrame(
        [
            NUMBER | {"model": model, "alpha_percent": alpha, "preset": preset, "n": n}
            for model, alpha, preset, n in [
                ("b", 10, "corrected", 9),
                ("b", 10, "paper", 5),
                ("a", 20, "paper", 4),
                ("b", 5, "paper", 6),
            ]
        ]
    )
    cells = layout.Table(
        tidy, ("alpha_percent",), ("model", "preset"), "{model} {preset}, n = {n}"
    ).cells()
    assert list(cells) == ["b paper, n = 6", "b corrected, n = 9", "a paper, n = 4"]
    assert list(cells.index) == [5, 10, 20]
    assert (cells.values == "–").tolist() == [
        [False, True, True],
        [False, False, True],
        [True, True, False],
    ]


def test_a_number_that_stands_twice_is_refused():
    tidy = pd.DataFrame([NUMBER, NUMBER | {"value": 0.6}])
    with pytest.raises(ValueError, match="duplicate"):
        layout.Table(tidy, ("alpha_percent",), ("model",), "{model}").cells()


def test_twenty_shares_stay_readable_in_a_log(tmp_path, capsys):
    results = sweep(["MLP[64,16]", "QNN[depth=5,xy,cnot]"], alphas=range(0, 100, 5))
    write(tmp_path, "mnist", "mine", "noise_sweep", results)
    reports.print_summary(tmp_path / "mnist" / "mine", ("noise_sweep",))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    of_model = [line for line in lines if line.startswith("MLP[64,16]")]
    assert len(of_model) == 2  # two parts, each with the names
    shown = re.findall(r"\.\d{3}", " ".join(of_model))
    means = (
        results.accuracy.sel(model="MLP[64,16]", split="validation", poison="labels")
        .mean("run")
        .values
    )
    assert shown == [layout.digits(mean) for mean in means]
    heads = [int(word) for line in lines[1:] for word in re.findall(r"(?<!\S)\d+(?!\S)", line)]
    assert heads == list(range(0, 100, 5))


# ---- what a script ends with ----


def test_a_script_ends_with_the_tables_of_its_stages(results, capsys):
    reports.print_summary(
        results / "xxz" / "paper", ("gauge", "noise_sweep", "depths", "unlearning", "data")
    )
    said = capsys.readouterr().out
    titles = ["Gauge control", "Noise sweep", "Unlearning"]
    assert [said.count(title) for title in titles] == [1, 1, 1]  # depths join the noise sweep
    assert sorted(titles, key=said.index) == titles and "Weight maps" not in said
    assert said.count("mean of n = 3 runs") == 3
    assert all(name in said for name in ("start", *TITLES, "any gauge"))


def test_measures_stand_in_the_order_of_their_table(results, readme, capsys):
    reports.print_summary(results / "mnist" / "paper", ("unlearning",))
    heads = [line.split() for line in capsys.readouterr().out.splitlines() if "retain " in line]
    assert heads == [["valid", "f.pois", "f.clean", "retain", "std", "drop"]]
    (heads, *_) = readme["unlearning-mnist"].splitlines()
    assert [word.strip().split(",")[0] for word in heads.split("|")[4:-1]] == [
        "validation",
        "forgetting",
    ] * 2
    of_model = [
        each["unlearner"]
        for each in rows_of(readme["paired-unlearning"])
        if each["model"] == "MLP[64,16]"
    ]
    assert of_model == [*TITLES.values()] * 4


@pytest.mark.parametrize(("runs", "interval"), [(2, False), (3, True)])
def test_a_spread_has_an_interval_from_three_runs_on(runs, interval, tmp_path):
    write(tmp_path, "mnist", "mine", "unlearning", curves(runs=runs))
    tidy = unlearning.ends_and_stability(frames.ResultFiles(tmp_path), "mnist", "mine")
    assert (tidy[tidy.measure == "std"].low.notnull() == interval).all()


def test_what_diverged_is_counted_and_all_of_it_leaves_an_empty_table(tmp_path, capsys):
    for count in (1, 3):
        results = sweep(["MLP[4]"], alphas=(0,))
        lost = results.run < count
        results = results.assign(
            accuracy=results.accuracy.where(~lost), diverged=results.diverged.where(~lost, 1.0)
        )
        write(tmp_path, "mnist", f"lost{count}", "noise_sweep", results)
        reports.print_summary(tmp_path / "mnist" / f"lost{count}", ("noise_sweep",))
        said = capsys.readouterr().out
        line = (
            f"diverged, and left out of all means: {count} of 3 trainings (MLP[4] labels 0: "
            f"{count})"
        )
        assert line in said and len(re.findall(r" \.\d{3}", said)) == (count == 1)


def test_no_table_dies_of_an_encoding(results, made_once, monkeypatch):
    """Of a terminal that knows ASCII alone."""

    def printed(make):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr("sys.stdout", stream)
        make()
        stream.flush()
        return stream.buffer.getvalue().decode("ascii")

    def closing():
        reports.print_summary(results / "hessian" / "paper", ("landscape",))
        reports.print_summary(results / "mnist" / "paper", ("noise_sweep", "unlearning"))

    monkeypatch.setattr("sys.argv", ["findings.py", "tables", str(results)])
    for make in (closing, findings.main):
        assert "alpha in percent" in printed(make)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("ascii", "alpha 30 % +- .1 - <Z> ?"),
        ("cp1252", "alpha 30 % ± .1 – <Z> ?"),
        ("utf-8", "α 30 % ± .1 – ⟨Z⟩ ☃"),
    ],
)
def test_what_an_encoding_lacks_is_spelled_out(encoding, said, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with any_terminal():
        print("α 30 % ± .1 – ⟨Z⟩ ☃")
    assert stream.buffer.getvalue().decode(encoding) == said + "\n"


# ---- the tables of FINDINGS.md ----

NAMES = [
    "mnist",
    "controls",
    "paired-mnist",
    "features",
    "paired-features",
    "unlearning-mnist",
    "paired-unlearning",
    "xxz",
    "paired-xxz",
    "gauge",
    "paired-gauge",
    "sizes",
    "paired-depths",
    "unlearning-xxz",
    "epochs",
    "evaluation-mnist",
    "evaluation-xxz",
    "benchmark-mnist",
    "benchmark-xxz",
    "finalists-mnist",
    "finalists-xxz",
    "influence",
    "rankings",
    "dynamics",
    "paired-dynamics",
    "contests-mnist",
    "contests-xxz",
    "splits",
    "capacity",
    "pairs",
    "equal-steps-mnist",
    "equal-steps-xxz",
    "memorising",
    "matched-fit-mnist",
    "paired-fit",
    "discovery-mnist",
    "discovery-xxz",
    "detection",
    "detected-mnist",
    "detected-xxz",
    "hardware",
    "hardware-unlearning",
    "encodings",
    "fidelities",
    "maps",
    "landscape",
    "transition",
    "transition-exponents",
    "own-labels",
    "paired-own",
    "own-labels-xxz",
    "paired-own-xxz",
    "equal-fit",
    "aimed-flips",
]
# of studies that were taken out
OF_RECORDS = {"capacity", "encodings"} - {study.name for study in findings.STUDIES}
NAMES = [name for name in NAMES if name not in OF_RECORDS]


def test_findings_have_these_tables(readme):
    assert list(readme) == NAMES
    for markdown in readme.values():
        lines = markdown.splitlines()
        assert len(lines) > 2 and len({line.count("|") for line in lines}) == 1


def test_published_means_stand_beside_ours(results, readme):
    markdown = readme["mnist"]
    at = row(markdown, **{"α in percent": "60"})
    assert list(at) == [
        "α in percent",
        *(
            f"{model} {preset}, n = {n}"
            for model in ("MLP[64,16]", "QNN[depth=6]")
            for preset, n in (("published", 5), ("paper", 3), ("corrected", 3))
        ),
    ]
    assert (
        at["QNN[depth=6] published, n = 5"] == ".198 ± .065"
        and at["MLP[64,16] published, n = 5"] == ".384"
    )
    assert row(markdown, **{"α in percent": "30"})["QNN[depth=6] published, n = 5"] == ".888 ± .037"
    read = storage.read_dataset(results / "mnist" / "corrected" / "noise_sweep.nc").accuracy
    values = read.sel(
        model="QNN[depth=6]", poison="labels", alpha_percent=60, split="validation"
    ).values
    ends = [layout.digits(end) for end in metrics.bootstrap_interval(values)]
    assert (
        at["QNN[depth=6] corrected, n = 3"]
        == f"{layout.digits(values.mean())} [{ends[0]}, {ends[1]}]"
    )
    assert row(markdown, **{"α in percent": "90"})["QNN[depth=6] corrected, n = 3"] == "–"


def test_models_and_methods_that_a_user_adds_reach_the_tables(folder):
    """From their files alone: an unknown family, an unknown method with two weights of its own."""
    for data in ("mnist", "xxz"):
        write(
            folder, data, "corrected", "noise_sweep", sweep([*ALL, "Mine"], ("labels", "features"))
        )
        write(
            folder, data, "corrected", "unlearning", curves([*TITLES, "newton"], ["MLP[4]", "Mine"])
        )
        own = weight_map(
            ["scrub", "newton"], ["MLP[4]", "Mine"], names={"newton": ("damping", "ridge")}
        )
        write(folder, data, "corrected", "weight_map", own)
    names = ("controls", "sizes", "xxz", "features", "paired-unlearning", "maps")
    of_data = [f"{name}-{data}" for name in ("paired", "unlearning") for data in ("mnist", "xxz")]
    made = reports.findings_tables(folder, *names, *of_data)
    assert "Mine, n = 3" in made["controls"] and "| xxz | corrected | 3 | Mine |" in made["sizes"]
    assert "Mine corrected (fixed gauge), n = 3" in made["xxz"]
    assert row(made["features"], data="xxz", model="Mine")["preset"] == "corrected"
    for data in ("mnist", "xxz"):
        assert f"QNN[depth={4}] − Mine, n = 3" in made[f"paired-{data}"]
        added = row(made[f"unlearning-{data}"], model="Mine", unlearner="Newton")
        assert added["validation, paper, n = 3"] == "–" and added[
            "validation, corrected, n = 3"
        ].startswith(".")
        assert (
            "–"
            not in row(
                made["paired-unlearning"], data=data, model="Mine", unlearner="Newton"
            ).values()
        )
        added = row(made["maps"], data=data, model="Mine", unlearner="Newton")
        assert added["lowest, corrected"].startswith(".")
    order = [
        each["unlearner"] for each in rows_of(made["unlearning-mnist"]) if each["model"] == "Mine"
    ]
    assert order == ["start", *TITLES.values(), "Newton"]


def test_paired_tables_are_differences_of_runs_that_go_together(results, readme):
    read = storage.read_dataset(results / "xxz" / "corrected" / "noise_sweep.nc").accuracy
    at = {"poison": "labels", "alpha_percent": 30, "split": "validation"}
    left, right = (read.sel(at | {"model": model}).values for model in ("QNN[depth=4]", "Logistic"))
    expected = interval_of_mean(left - right)
    cells = row(readme["paired-xxz"], **{"α in percent": "30"})
    assert cells["QNN[depth=4] − Logistic, n = 3"] == expected
    assert len(cells) == 1 + len(ALL) - 1

    read = storage.read_dataset(results / "mnist" / "corrected" / "unlearning.nc").accuracy
    end = read.sel(
        {"poison": "features", "model": "MLP[64,16]", "split": "forget_poisoned", "epoch": 3}
    )
    left, right = (end.sel(unlearner=name).values for name in ("ga", "retrain"))
    expected = interval_of_mean(left - right)
    place = {"data": "mnist", "poison": "features", "model": "MLP[64,16]"}
    cells = {
        name: row(readme["paired-unlearning"], unlearner=name, **place)
        for name in ("Gradient ascent", "Retrain")
    }
    assert cells["Gradient ascent"]["forgetting − Retrain, n = 3"] == expected
    assert cells["Retrain"]["forgetting − Retrain, n = 3"] == "–"

    read = storage.read_dataset(results / "xxz" / "paper" / "gauge.nc").accuracy.sel(
        split="validation", alpha_percent=60
    )
    mlp, qnn = read.sel(model="MLP[64,16]"), read.sel(model="QNN[depth=4]", gauge="fixed")
    cells = row(readme["paired-gauge"], **{"α in percent": "60"})
    for head, difference in {
        "QNN[depth=4] − MLP[64,16], fixed, n = 3": qnn - mlp.sel(gauge="fixed"),
        "MLP[64,16], fixed − random phase, n = 3": mlp.sel(gauge="fixed")
        - mlp.sel(gauge="random_phase"),
    }.items():
        assert cells[head].split()[0] == layout.digits(float(difference.mean()), sign="+")


def test_the_published_trace_stands_where_it_was_published(readme):
    made = rows_of(readme["landscape"])
    published = {(each["model"], each["median"]): each["published (mean)"] for each in made}
    assert (
        published["MLP[8,2]", "trace, α = 0 %"] == "0.19"
        and published["Logistic", "trace, α = 0 %"] == "–"
    )
    assert published["QNN[depth=5,xy,cnot]", "ratio over Re, Im, α = 40 %"] == "near 1"
    # trace and ratio of each model, both over Re, Im of the circuit
    assert len(published) == 3 * 2 + 2


# ---- the script ----


@pytest.fixture
def script(monkeypatch, capsys):
    """Call it with these arguments: exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["findings.py", "tables", *map(str, arguments)])
        return findings.main(), *capsys.readouterr()

    return call


def test_files_that_are_missing_or_of_an_older_version_are_named(folder, script, monkeypatch):
    """Among the tables of stages that are made up: the others take ten seconds."""
    made_up = [*NAMES[: NAMES.index("epochs")], "maps", "landscape"]
    functions = findings.tables()
    monkeypatch.setattr(findings, "tables", lambda: {name: functions[name] for name in made_up})
    (folder / "xxz" / "paper" / "gauge.nc").unlink()
    write(folder, "mnist", "corrected", "unlearning", curves().drop_vars("fresh"))
    code, stdout, stderr = script(folder)
    assert code == 2 and "paired-xxz" in stdout and "\ngauge\n" not in stdout
    named = {
        word: [line.split(":")[0] for line in stderr.splitlines() if word in line]
        for word in ("has no xxz/paper/gauge.nc", "fresh", "")
    }
    missing, old, every = (
        [line.removeprefix("no table ") for line in lines] for lines in named.values()
    )
    assert missing == ["gauge", "paired-gauge"] and old == [
        "unlearning-mnist",
        "paired-unlearning",
        "maps",
    ]
    assert set(every) == {*missing, *old}


def test_the_tables_of_findings_name_the_file_that_is_missing(folder):
    (folder / "mnist" / "paper" / "noise_sweep.nc").unlink()
    with refused("has no mnist/paper/noise_sweep.nc"):
        reports.findings_tables(folder, "mnist")


def test_csv_files_hold_the_tables_and_every_run(results, made_once, script, tmp_path):
    out = tmp_path / "csv"
    assert script(results, "--csv", out) == (0, f"{len(NAMES) + 27} files in {out}\n", "")
    frames = {path.stem: pd.read_csv(path) for path in out.glob("*.csv")}
    studies = {"noise_sweep", "unlearning", "weight_map", "gauge", "landscape", *REAL} - {
        "influence"
    }
    assert frames.keys() == {*NAMES, *(f"runs-{name}" for name in studies)}
    for name in set(NAMES) - {"fidelities"}:  # which are of states alone
        assert {"data", "preset", "model", "measure", "value", "low", "high", "n"} <= set(
            frames[name]
        )
    gained = frames["paired-mnist"]
    assert set(gained.minus) == set(ALL) - {"QNN[depth=4]", "QNN[depth=6]"}
    runs = frames["runs-noise_sweep"]
    assert len(runs) == sum(int(storage.read_dataset(path).accuracy.notnull().sum())
                            for path in results.glob("*/*/noise_sweep.nc"))  # fmt: skip
    at = runs[
        (runs.data == "xxz")
        & (runs.preset == "paper")
        & (runs.model == "Logistic")
        & (runs.run == 2)
        & (runs.poison == "features")
        & (runs.alpha_percent == 60)
        & (runs.split == "train")
    ]
    stored = storage.read_dataset(results / "xxz" / "paper" / "noise_sweep.nc").accuracy
    place = {
        "model": "Logistic",
        "run": 2,
        "poison": "features",
        "alpha_percent": 60,
        "split": "train",
    }
    assert at.accuracy.item() == stored.sel(place).item()  # to the last bit

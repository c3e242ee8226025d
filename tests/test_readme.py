"""What the README shows works as it stands there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reports

import findings
from foundation.base import storage

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "GUIDE.md", "FINDINGS.md")}
README, GUIDE, FINDINGS = PAGES.values()
BLOCKS = re.findall(r"```python\n(.*?)```", README + GUIDE, re.DOTALL)
(RUN,) = [block for block in BLOCKS if "report(run_studies(" in block]
TINY = """
import run_unlearn_mnist
from dataclasses import replace
from models import Training
from pathlib import Path
quick = run_unlearn_mnist.QUICK
short = {name: Training(3, 64, 0.03) for name in ("sweep", "teacher", "unlearn")}
run_unlearn_mnist.QUICK = replace(
    quick, runs=1, block=1, alphas=(0,), poisons=("labels",), hidden=("4",), unlearn_hidden="4",
    depth=1,
    evaluated_hidden="4",
    weight_map=replace(quick.weight_map, weights=(0.0, 0.5)), optimization_level=0, workers=1,
    out=Path("mine"), mlp=replace(quick.mlp, **short),
    qnn=replace(quick.qnn, **short),
)
"""


# Jobs in the process of the script: where nothing of one's own has to reach others.
HERE = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
import here
from foundation.engine import jobs
jobs.ProcessPoolExecutor = here.InThisProcess
"""


def run_example(word, folder, *, before="", after="", **flags):
    """A script of one's own with the example that holds a word, run in a folder; with flags, the
    README's study."""
    (block,) = [block for block in BLOCKS if word in block]
    arguments = "".join(f", {name}={value!r}" for name, value in flags.items())
    study = (
        re.sub(r"replace\(QUICK, .*\)", lambda _: f"replace(QUICK{arguments})", RUN)
        if flags
        else ""
    )
    (folder / "example.py").write_text("\n".join((TINY, before, block, study, after)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "example.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


def results_of(folder, study):
    (path,) = folder.glob(f"mine/*/*/{study}.nc")
    return storage.read_dataset(path)


@pytest.mark.long
def test_the_method_that_the_readme_adds_has_curves_a_weight_map_a_table_and_figures(tmp_path):
    """With its two hyper-parameters, by its title, and stored: its source is that of the script."""
    assert 'stages = ("unlearning", "weight_map")' in RUN
    assert 'models=("mlp",), methods=("cf", "undecided")' in RUN
    asked = {
        "stages": ("unlearning", "weight_map"),
        "models": ("mlp",),
        "methods": ("cf", "undecided"),
    }
    done = run_example("class Undecided", tmp_path, **asked)
    curves, cells = (results_of(tmp_path, study) for study in ("unlearning", "weight_map"))
    assert set(curves.unlearner.values) == {"cf", "undecided"} and curves.accuracy.notnull().any()
    own = cells.sel(unlearner="undecided")
    assert (own.first_name, own.second_name) == (
        "forget",
        "target",
    ) and own.accuracy.notnull().all()
    assert own.accuracy.sizes["first"] == own.accuracy.sizes["second"] == 2
    assert (own.first_default, own.second_default) == (0.5, 0.5) and own.title == "Undecided"
    assert "undecided" in done.stdout
    for study in ("unlearning", "weight_map"):
        (figure,) = tmp_path.glob(f"mine/*/*/{study}.png")
        assert figure.stat().st_size > 10_000
    jobs = json.loads(cells.attrs["jobs"])
    assert len(jobs) == 4 and all(entry["fields"]["method"]["source"] for entry in jobs.values())


@pytest.mark.long
def test_the_measure_that_the_readme_adds_is_scored_with_floor_and_bounds(tmp_path):
    done = run_example("def worst_sample", tmp_path, stages=("evaluation",), evaluated=("mlp",))
    own = results_of(tmp_path, "evaluation").sel(measure="worst")
    assert own.measure_title == "worst sample" and "verdict" in done.stdout
    assert (
        own[["value", "value_low", "value_high", "floor", "unit", "excess"]]
        .notnull()
        .to_array()
        .all()
        and (own.value > 0).all()
    )
    (figure,) = tmp_path.glob("mine/*/*/forgetting_scores.png")
    assert figure.stat().st_size > 10_000


@pytest.mark.long
def test_the_model_that_the_readme_adds_goes_through_a_study(tmp_path):
    """It learns the digits, under its own name and family."""
    longer = """
QUICK = run_unlearn_mnist.QUICK
run_unlearn_mnist.QUICK = replace(QUICK, qnn=replace(QUICK.qnn, sweep=Training(30, 64, 0.5)))
"""
    run_example(
        "class Probabilities",
        tmp_path,
        before=longer,
        stages=("noise_sweep",),
        models=("probabilities",),
    )
    sweep = results_of(tmp_path, "noise_sweep")
    assert sweep.model.values.tolist() == ["Probabilities"] == sweep.family.values.tolist()
    assert float(sweep.accuracy.sel(split="validation").min()) > 0.9


@pytest.mark.long
def test_the_circuit_that_the_readme_adds_goes_through_a_study(tmp_path):
    run_example(
        "def ladder", tmp_path, stages=("unlearning",), models=("mlp", "ladder"), methods=("cf",)
    )
    curves = results_of(tmp_path, "unlearning")
    assert (
        "QNN[ladder]" in curves.model.values
        and curves.accuracy.sel(model="QNN[ladder]").notnull().any()
    )


@pytest.mark.long
def test_the_poison_that_the_readme_adds_is_swept_and_unlearned(tmp_path):
    asked = {
        "stages": ("noise_sweep", "unlearning"),
        "poisons": ("labels", "brightest"),
        "alphas": (0, 30),
    }
    run_example(
        "def poison_brightest",
        tmp_path,
        **asked,
        models=("mlp",),
        methods=("cf",),
        unlearn_others=("brightest=20",),
    )
    sweep, curves = (results_of(tmp_path, study) for study in ("noise_sweep", "unlearning"))
    assert sweep.poisoned_count.sel(poison="brightest", alpha_percent=30).max() == 150
    assert "brightest" in curves.poison.values


@pytest.mark.long
def test_data_and_mask_that_the_readme_makes_are_swept_and_unlearned(tmp_path):
    """Of classes 0 and 1; the mask is a fifth of the labels, flipped."""
    run_example("load_breast_cancer(return_X_y=True)\nx = (x", tmp_path)
    load = (
        "from datar import load_npz\nrun_unlearn_mnist.load = lambda config: load_npz('{}', "
        "classes=('0', '1'))"
    )
    asked = {"stages": ("noise_sweep",), "models": ("mlp",), "alphas": (0, 30)}
    run_example("poison_mask=mask", tmp_path, before=HERE + load.format("mine.npz"), **asked)
    assert (
        float(
            results_of(tmp_path, "noise_sweep")
            .accuracy.sel(alpha_percent=0, split="validation")
            .mean()
        )
        > 0.8
    )
    shutil.rmtree(tmp_path / "mine")
    asked = {
        "stages": ("unlearning",),
        "models": ("mlp",),
        "methods": ("cf",),
        "poisons": ("given",),
    }
    run_example("poison_mask=mask", tmp_path, before=HERE + load.format("marked.npz"), **asked)
    curves = results_of(tmp_path, "unlearning")
    marked = curves.poisoned.isel(run=0).sel(sample=curves.part == "train").sum()
    assert curves.poison.values.tolist() == ["given"] and 40 < int(marked) < 120


@pytest.mark.long
def test_the_data_set_of_the_guide_goes_through_a_study(tmp_path):
    run_example("def load_cancer", tmp_path)
    assert [path.name for path in (tmp_path / "mine").iterdir() if path.name != "jobs"] == [
        "cancer"
    ]
    sweep = results_of(tmp_path, "noise_sweep")
    assert sweep.alpha_percent.values.tolist() == [0, 30] and set(sweep.family.values) == {
        "MLP",
        "QNN",
    }
    assert (
        float(sweep.accuracy.sel(model="MLP[4]", alpha_percent=0, split="validation").mean()) > 0.8
    )


@pytest.mark.long
def test_the_text_of_a_circuit_in_the_guide_comes_and_goes(tmp_path):
    pytest.importorskip("qiskit")
    after = (
        "assert model.ansatz.angles.tolist()[:2] == [0.3, 0.1] or len(model.ansatz.angles) == "
        "3\nprint(text)"
    )
    assert run_example("from_openqasm", tmp_path, after=after).stdout.startswith("OPENQASM 2.0;")


@pytest.mark.long
def test_what_the_guide_takes_out_of_a_study_is_what_it_holds(tmp_path):
    study = """
from foundation.engine import runner
config = replace(
    run_unlearn_mnist.QUICK, stages=("unlearning",), models=("mlp",), unlearn_hidden="16,4"
)
runner.run_studies(config, run_unlearn_mnist.load(config), run_unlearn_mnist.STUDIES)
"""
    (block,) = [block for block in BLOCKS if "job_arrays" in block]
    (tmp_path / "study.py").write_text(TINY + HERE + study)
    after = """
print(confusion_matrix(labels, predicted).sum(), next(layer.shape for layer in params[0]))
stored = storage.read_dataset(path).accuracy.sel(**run, run=0, split="validation").isel(epoch=-1)
assert abs(float(stored) - (predicted == labels).mean()) < 1e-6
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for script in ("study.py", "example.py"):
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        # a folder with the tiny study's flags in its name
        (path,) = tmp_path.glob("mine/mnist/*/unlearning.nc")
        (tmp_path / "example.py").write_text(
            block.replace("mine/mnist/quick/unlearning.nc", str(path)) + after
        )
    assert done.stdout.split()[0] == "500" and (tmp_path / "curves.csv").stat().st_size > 500


def test_the_readme_is_short():
    assert README.count("\n") <= 250


@pytest.fixture(scope="module")
def tables_of_the_results():
    return reports.findings_tables(ROOT / "results")


@pytest.mark.parametrize("name", findings.tables())
def test_every_number_in_the_tables_is_that_of_the_committed_results(name, tables_of_the_results):
    """The tables of README and FINDINGS are what `python findings.py tables results` prints."""
    assert f"<!-- {name} -->\n\n{tables_of_the_results[name]}\n" in FINDINGS
    assert "python findings.py tables results" in README


def test_links_lead_to_a_heading():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(((?:\w+\.md)?(?:#[\w-]+)?)\)", text):
            page, _, anchor = target.partition("#")
            headings = re.findall(r"^#+ (.+)$", PAGES[page or name], re.MULTILINE)
            anchors = {
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
            }
            assert not anchor or anchor in anchors, (name, target)


NUMBER = r"(?<![\w.:/-])[-−+]?\d*\.\d+(?![\w]|\.\d)"
INTERVAL = re.compile(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]")


def numbers(words):
    """Their sizes, and the halves of their last digits: signs are words in a sentence (ahead,
    behind)."""
    plain = [word.replace("−", "-") for word in words]
    return [abs(float(word)) for word in plain], [
        0.51 * 10.0 ** -len(word.split(".")[1]) for word in plain
    ]


MADE = re.compile(r"^<!-- [\w-]+ -->\n\n((?:\|.*\n)+)", re.MULTILINE)


def prose_and_rows(text):
    """Sentences, with the tables that are written by hand; and the tables that are made from the
    results."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return MADE.sub("", text), "".join(MADE.findall(text))


@pytest.mark.parametrize("name", ["README.md", "FINDINGS.md"])
def test_every_interval_in_a_sentence_is_one_of_a_table(name):
    _, rows = prose_and_rows(FINDINGS)
    shown = np.array([sorted(numbers(found)[0]) for found in INTERVAL.findall(rows)])
    prose, _ = prose_and_rows(PAGES[name])
    said = list(INTERVAL.finditer(prose))
    assert said
    for found in said:
        sizes, halves = numbers(found.groups())
        assert (np.abs(shown - sorted(sizes)) < max(halves)).all(axis=1).any(), found[0]


def test_every_number_in_a_sentence_of_findings_is_in_a_table_of_its_section():
    """Or of any, in sections without one of their own."""
    for section in re.split(r"^## ", FINDINGS, flags=re.MULTILINE)[1:]:
        prose, rows = prose_and_rows(section)
        shown = np.array(numbers(re.findall(NUMBER, rows or "".join(MADE.findall(FINDINGS))))[0])
        for word in re.findall(NUMBER, prose):
            (size,), (half,) = numbers([word])
            assert (np.abs(shown - size) < half).any(), (section.split("\n")[0], word)


def test_the_readme_shows_no_table_that_is_not_made():
    shown = re.findall(r"^<!-- ([\w-]+) -->$", FINDINGS, re.MULTILINE)
    known = {*findings.TABLES, "claims"}  # the last by findings.decided, see test_claims.py
    assert len(set(shown)) == len(shown) and {*findings.tables(), "claims"} <= set(shown) <= known


def test_pictures_and_files_that_the_readme_names_are_there():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README + GUIDE + FINDINGS)
    assert pictures
    files = re.findall(r"`((?:run_\w+|\w+)\.(?:py|ipynb|txt|cff))`", README + GUIDE + FINDINGS)
    missing = [name for name in {*pictures, *files} if not (ROOT / name).is_file()]
    assert not missing


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^make (\w+) +#", README, re.MULTILINE))))
def test_make_targets_that_the_readme_names_exist(line):
    assert re.search(rf"^{line}:", (ROOT / "Makefile").read_text(), re.MULTILINE)

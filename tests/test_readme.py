"""What the README shows works as it stands there."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from here import run_here

import datar
import findings
import run_unlearn_mnist
from foundation.base import storage
from foundation.engine import runner
from models import Training

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "GUIDE.md", "FINDINGS.md")}
README, GUIDE, FINDINGS = PAGES.values()
BLOCKS = re.findall(r"```python\n(.*?)```", README + GUIDE, re.DOTALL)
(RUN,) = [block for block in BLOCKS if "report(run_studies(" in block]
SHORT = {name: Training(3, 64, 0.03) for name in ("sweep", "teacher", "unlearn")}
TINY = replace(
    run_unlearn_mnist.QUICK,
    runs=1,
    block=1,
    alphas=(0,),
    poisons=("labels",),
    hidden=("4",),
    unlearn_hidden="4",
    depth=1,
    evaluated_hidden="4",
    weight_map=replace(run_unlearn_mnist.QUICK.weight_map, weights=(0.0, 0.5)),
    optimization_level=0,
    workers=1,
    out=Path("mine"),
    mlp=replace(run_unlearn_mnist.QUICK.mlp, **SHORT),
    qnn=replace(run_unlearn_mnist.QUICK.qnn, **SHORT),
)


@pytest.fixture
def quick(monkeypatch):
    """The preset that the examples start from, so small that each takes seconds."""

    def make(**changes):
        monkeypatch.setattr(run_unlearn_mnist, "QUICK", replace(TINY, **changes))

    make()
    return make


def run_example(word, folder, *, after="", **flags):
    """The example that holds a word, as a file of its own that is run in a folder; with flags, the
    README's study behind it. Returns what it prints."""
    (block,) = [block for block in BLOCKS if word in block]
    arguments = "".join(f", {name}={value!r}" for name, value in flags.items())
    study = ""
    if flags:
        study = re.sub(r"replace\(QUICK, .*\)", lambda _: f"replace(QUICK{arguments})", RUN)
    path = folder / "example.py"
    path.write_text("\n".join((block, study, after)))
    return run_here(path)


def results_of(folder, study):
    (path,) = folder.glob(f"mine/*/*/{study}.nc")
    return storage.read_dataset(path)


@pytest.mark.usefixtures("in_this_process", "quick")
class TestExamples:
    """Each block of README and guide, in this process; tests/test_scripts.py has one of each kind
    of start."""

    def test_a_method_has_curves_a_weight_map_a_table_and_figures(self, tmp_path):
        """With its two hyper-parameters, by its title, and stored: its source is the script's."""
        assert 'stages = ("unlearning", "weight_map")' in RUN
        assert 'models=("mlp",), methods=("cf", "undecided")' in RUN
        asked = {
            "stages": ("unlearning", "weight_map"),
            "models": ("mlp",),
            "methods": ("cf", "undecided"),
        }
        said = run_example("class Undecided", tmp_path, **asked)
        curves, cells = (results_of(tmp_path, study) for study in asked["stages"])
        assert set(curves.unlearner.values) == {"cf", "undecided"}
        assert curves.accuracy.notnull().any()
        own = cells.sel(unlearner="undecided")
        assert (own.first_name, own.second_name) == ("forget", "target")
        assert own.accuracy.notnull().all()
        assert own.accuracy.sizes["first"] == own.accuracy.sizes["second"] == 2
        assert (own.first_default, own.second_default) == (0.5, 0.5) and own.title == "Undecided"
        assert "undecided" in said
        for study in asked["stages"]:
            (figure,) = tmp_path.glob(f"mine/*/*/{study}.png")
            assert figure.stat().st_size > 10_000
        jobs = json.loads(cells.attrs["jobs"])
        assert len(jobs) == 4
        assert all(entry["fields"]["method"]["source"] for entry in jobs.values())

    def test_a_measure_is_scored_with_floor_and_bounds(self, tmp_path, few_subsamples):
        asked = {"stages": ("evaluation",), "evaluated": ("mlp",), "methods": ("cf",)}
        said = run_example("def worst_sample", tmp_path, **asked)
        own = results_of(tmp_path, "evaluation").sel(measure="worst")
        assert own.measure_title == "worst sample" and "verdict" in said
        bounds = own[["value", "value_low", "value_high", "floor", "unit", "excess"]]
        assert bounds.notnull().to_array().all() and (own.value > 0).all()
        (figure,) = tmp_path.glob("mine/*/*/forgetting_scores.png")
        assert figure.stat().st_size > 10_000

    def test_a_model_goes_through_a_study(self, tmp_path, quick):
        """It learns the digits, under its own name and family."""
        quick(qnn=replace(TINY.qnn, sweep=Training(30, 64, 0.5)))
        asked = {"stages": ("noise_sweep",), "models": ("probabilities",)}
        run_example("class Probabilities", tmp_path, **asked)
        sweep = results_of(tmp_path, "noise_sweep")
        assert sweep.model.values.tolist() == ["Probabilities"] == sweep.family.values.tolist()
        assert float(sweep.accuracy.sel(split="validation").min()) > 0.9

    def test_a_circuit_goes_through_a_study(self, tmp_path):
        asked = {"stages": ("unlearning",), "models": ("mlp", "ladder"), "methods": ("cf",)}
        run_example("def ladder", tmp_path, **asked)
        curves = results_of(tmp_path, "unlearning")
        assert curves.accuracy.sel(model="QNN[ladder]").notnull().any()

    def test_a_poison_is_swept_and_unlearned(self, tmp_path):
        asked = {
            "stages": ("noise_sweep", "unlearning"),
            "poisons": ("labels", "brightest"),
            "alphas": (0, 30),
            "models": ("mlp",),
            "methods": ("cf",),
            "unlearn_others": ("brightest=20",),
        }
        run_example("def poison_brightest", tmp_path, **asked)
        sweep, curves = (results_of(tmp_path, study) for study in ("noise_sweep", "unlearning"))
        assert sweep.poisoned_count.sel(poison="brightest", alpha_percent=30).max() == 150
        assert "brightest" in curves.poison.values

    def test_data_and_mask_are_swept_and_unlearned(self, tmp_path, monkeypatch):
        """Of classes 0 and 1; the mask is a fifth of the labels, flipped."""
        run_example("load_breast_cancer(return_X_y=True)\nx = (x", tmp_path)
        files = {"mine.npz": "noise_sweep", "marked.npz": "unlearning"}
        asked = {"models": ("mlp",), "alphas": (0, 30), "methods": ("cf",)}
        found = {}
        for name, stage in files.items():

            def load(config, path=tmp_path / name):
                return datar.load_npz(path, classes=("0", "1"))

            monkeypatch.setattr(run_unlearn_mnist, "load", load)
            run_example("poison_mask=mask", tmp_path, stages=(stage,), **asked)
            found[stage] = results_of(tmp_path, stage)
        clean = found["noise_sweep"].accuracy.sel(alpha_percent=0, split="validation")
        assert float(clean.mean()) > 0.8
        curves = found["unlearning"]
        marked = curves.poisoned.isel(run=0).sel(sample=curves.part == "train").sum()
        assert curves.poison.values.tolist() == ["given"] and 40 < int(marked) < 120

    def test_a_data_set_goes_through_a_study(self, tmp_path):
        run_example("def load_cancer", tmp_path)
        folders = {path.name for path in (tmp_path / "mine").iterdir()}
        assert folders == {"cancer", "jobs"}
        sweep = results_of(tmp_path, "noise_sweep")
        assert sweep.alpha_percent.values.tolist() == [0, 30]
        assert set(sweep.family.values) == {"MLP", "QNN"}
        clean = sweep.accuracy.sel(model="MLP[4]", alpha_percent=0, split="validation")
        assert float(clean.mean()) > 0.8

    def test_the_text_of_a_circuit_comes_and_goes(self, tmp_path):
        pytest.importorskip("qiskit")
        after = (
            "angles = model.ansatz.angles\n"
            "assert angles.tolist()[:2] == [0.3, 0.1] or len(angles) == 3\nprint(text)"
        )
        assert run_example("from_openqasm", tmp_path, after=after).startswith("OPENQASM 2.0;")

    def test_what_is_taken_out_of_a_study_is_what_it_holds(self, tmp_path):
        asked = {"stages": ("unlearning",), "models": ("mlp",), "unlearn_hidden": "16,4"}
        config = replace(TINY, **asked, out=tmp_path / "mine")
        data = run_unlearn_mnist.load(config)
        folder = runner.run_studies(config, data, run_unlearn_mnist.STUDIES)
        (block,) = [block for block in BLOCKS if "job_arrays" in block]
        after = """
print(confusion_matrix(labels, predicted).sum(), next(layer.shape for layer in params[0]))
accuracy = storage.read_dataset(path).accuracy
stored = accuracy.sel(**run, run=0, split="validation").isel(epoch=-1)
assert abs(float(stored) - (predicted == labels).mean()) < 1e-6
"""
        # a folder with the tiny study's flags in its name
        path = folder.relative_to(tmp_path) / "unlearning.nc"
        script = tmp_path / "example.py"
        script.write_text(block.replace("mine/mnist/quick/unlearning.nc", str(path)) + after)
        assert run_here(script).split()[0] == "500"
        assert (tmp_path / "curves.csv").stat().st_size > 500


def test_the_readme_is_short():
    assert README.count("\n") <= 250


@pytest.mark.parametrize("name", findings.tables())
def test_every_number_in_the_tables_is_that_of_the_committed_results(name, committed_tables):
    """The tables of README and FINDINGS are what `python findings.py tables results` prints."""
    assert f"<!-- {name} -->\n\n{committed_tables[name]}\n" in FINDINGS
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

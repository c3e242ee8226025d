"""What the README shows works as it stands there."""

import importlib
import itertools
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import call_script
from here import run_here

import datar
import findings
import run_unlearn_mnist
from foundation.base import storage
from foundation.engine.command_line import parse_command_line
from models import Training

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "GUIDE.md", "FINDINGS.md", "docs/recipes.md")
PAGES = {name: (ROOT / name).read_text() for name in NAMES}
README, GUIDE, FINDINGS, RECIPES = PAGES.values()
BLOCKS = re.findall(r"```python\n(.*?)```", README + GUIDE + RECIPES, re.DOTALL)
(STUDY,) = [block for block in BLOCKS if "class LearningFlags" in block]
SHORT = {name: Training(3, 64, 0.03) for name in ("sweep", "teacher", "unlearn")}
TINY = replace(
    run_unlearn_mnist.QUICK,
    runs=1,
    block=1,
    alphas=(0, 30),
    poisons=("labels",),
    hidden=("4",),
    unlearn_hidden="4",
    depth=1,
    evaluated_hidden="4",
    weight_map=replace(run_unlearn_mnist.QUICK.weight_map, weights=(0.0, 0.5)),
    optimization_level=0,
    workers=1,
    mlp=replace(run_unlearn_mnist.QUICK.mlp, **SHORT),
    qnn=replace(run_unlearn_mnist.QUICK.qnn, **SHORT),
)


@pytest.fixture
def quick(monkeypatch):
    """The preset that the blocks start from, so small that each takes seconds."""
    monkeypatch.setattr(run_unlearn_mnist, "QUICK", TINY)
    monkeypatch.setitem(run_unlearn_mnist.PRESETS, "quick", TINY)


def run_block(word, folder):
    """Run the one block that holds a word, as a file of its own in a folder; returns its text and
    what it prints."""
    (block,) = [block for block in BLOCKS if word in block]
    (folder / "mine.py").write_text(block)
    return block, run_here(folder / "mine.py")


def results_of(folder, out, study):
    (path,) = folder.glob(f"{out}/*/*/{study}.nc")
    return storage.read_dataset(path)


TESTED = {}  # by a word of the block, what is looked at after it ran


def looks_at(word):
    def keep(function):
        TESTED[word] = function
        return function

    return keep


@looks_at("from poison_unlearn import METHODS, Poison, unlearn")
def twelve_lines(block, said, folder):
    assert sum(bool(line) for line in block.splitlines()) <= 12
    teacher, student = map(float, re.match(r"teacher ([\d.]+) student ([\d.]+)", said).groups())
    assert 0.6 < teacher < 1 and 0.6 < student < 1


@looks_at('pipeline[-1].unlearn(forget, "retrain")')
def classifier(block, said, folder):
    """It forgets: true labels are met better than by what learned the flipped ones."""
    poisoned, unlearned = map(float, re.findall(r"[\d.]+", said))
    assert poisoned < unlearned and unlearned > 0.9


@looks_at("class Undecided")
def method(block, said, folder):
    """Two hyper-parameters, its title, and stored: its source is the script's."""
    curves, cells = (results_of(folder, "my-method", name) for name in ("unlearning", "weight_map"))
    assert set(curves.unlearner.values) == {"cf", "null arm", "undecided"} and "undecided" in said
    assert curves.accuracy.notnull().any()
    own = cells.sel(unlearner="undecided")
    assert (own.first_name, own.second_name) == ("forget", "target")
    assert own.accuracy.notnull().all()
    assert own.accuracy.sizes["first"] == own.accuracy.sizes["second"] == 2
    assert (own.first_default, own.second_default) == (0.5, 0.5) and own.title == "Undecided"
    for study in ("unlearning", "weight_map"):
        (figure,) = folder.glob(f"my-method/*/*/{study}.png")
        assert figure.stat().st_size > 10_000
    jobs = json.loads(cells.attrs["jobs"])
    assert len(jobs) == 4
    assert all(entry["fields"]["method"]["source"] for entry in jobs.values())


@looks_at('out=Path("my-data")')
def data(block, said, folder):
    """And the command line behind the block finds all done."""
    sweep = results_of(folder, "my-data", "noise_sweep")
    assert sweep.alpha_percent.values.tolist() == [0, 15, 30]
    clean = sweep.accuracy.sel(model="MLP[4]", alpha_percent=0, split="validation")
    assert float(clean.mean()) > 0.8


@looks_at("def ladder")
def circuit(block, said, folder):
    curves = results_of(folder, "my-circuit", "unlearning")
    assert curves.accuracy.sel(model="QNN[ladder]").notnull().any()


@looks_at("poison_mask=mask")
def mask(block, said, folder):
    curves = results_of(folder, "my-mask", "unlearning")
    marked = curves.poisoned.isel(run=0).sel(sample=curves.part == "train").sum()
    assert curves.poison.values.tolist() == ["given"] and 40 < int(marked) < 120


@looks_at("def load_cancer")
def data_set(block, said, folder):
    assert {path.name for path in (folder / "my-data-set").iterdir()} == {"cancer", "jobs"}
    sweep = results_of(folder, "my-data-set", "noise_sweep")
    assert sweep.alpha_percent.values.tolist() == [0, 30]
    assert set(sweep.family.values) == {"MLP", "QNN"}


@looks_at("class Probabilities")
def model(block, said, folder):
    sweep = results_of(folder, "my-model", "noise_sweep")
    assert sweep.model.values.tolist() == ["MLP[4]", "Probabilities"] and "Probabilities" in said
    accuracy = sweep.accuracy.sel(model="Probabilities", poison="labels", split="validation")
    assert float(accuracy.min()) > 0.7  # after 3 epochs


@looks_at("from_openqasm(")
def openqasm(block, said, folder):
    assert "QNN.from_openqasm" in block


@looks_at("def worst_sample")
def measure(block, said, folder):
    own = results_of(folder, "my-measure", "evaluation").sel(measure="worst")
    assert own.measure_title == "worst sample" and "worst sample" in said
    bounds = own[["value", "value_low", "value_high", "floor", "unit", "excess"]]
    assert bounds.notnull().to_array().all() and (own.value > 0).all()
    (figure,) = folder.glob("my-measure/*/*/forgetting_scores.png")
    assert figure.stat().st_size > 10_000


@looks_at("def poison_brightest")
def poison(block, said, folder):
    """Its rows are in table and file, and no others beside those asked for."""
    sweep, curves = (
        results_of(folder, "my-poison", study) for study in ("noise_sweep", "unlearning")
    )
    assert set(sweep.poison.values) == {"labels", "brightest"} and "brightest" in said
    assert sweep.poisoned_count.sel(poison="brightest", alpha_percent=30).max() == 150
    assert "brightest" in curves.poison.values


@looks_at("print(model.label, digits[rows]")
def reload(block, said, folder):
    probabilities = np.array(re.findall(r"0?\.\d+|1\.", said), float)
    assert said.startswith("MLP[4] [1 1 9 9]") and len(probabilities) == 8


@looks_at("confusion_matrix(data.val.y")
def confusion(block, said, folder):
    assert sum(map(int, re.findall(r"\d+", said))) == 500


@looks_at('table.to_csv("curves.csv")')
def curves_as_a_table(block, said, folder):
    assert len((folder / "curves.csv").read_text().splitlines()) > 1000 and "QNN[depth=6]" in said


@looks_at('out=Path("rate")')
def rate(block, said, folder):
    config = json.loads(results_of(folder, "rate", "unlearning").attrs["config"])
    assert config["mlp"]["teacher"]["learning_rate"] == 0.003


@looks_at("def clipped_momentum")
def optimizer(block, said, folder):
    found = results_of(folder, "momentum", "unlearning")
    written = json.loads(found.attrs["config"])["mlp"]["teacher"]["optimizer"]
    assert re.fullmatch(r"clipped_momentum-[0-9a-f]{8}", written)
    jobs = json.loads(found.attrs["jobs"])
    (start, *_) = [entry["fields"]["start"] for entry in jobs.values()]
    assert start["method"]["training"]["optimizer"]["source"]


@looks_at("GridSearchCV(")
def components(block, said, folder):
    assert "unlearningclassifier__depth" in said and float(said.split()[-1]) > 0.7


@looks_at('out=Path("csv")')
def ten_classes_and_two(block, said, folder):
    files = map(storage.read_dataset, folder.glob("csv/mine/*/noise_sweep.nc"))
    by_count = {len(json.loads(file.attrs["data"])["classes"]): file for file in files}
    assert set(by_count) == {10, 2}
    assert float(by_count[10].accuracy.min()) < 0.4  # chance is .1


@looks_at("config, plan=True")
def resume(block, said, folder):
    assert "1 there, 1 missing" in said
    sweep = results_of(folder, "resume", "noise_sweep")
    assert sweep.alpha_percent.values.tolist() == [0, 30]


@looks_at('figure.savefig("sweep.png")')
def notebook(block, said, folder):
    assert (folder / "sweep.png").stat().st_size > 10_000


@looks_at('print(compare(curves, "scrub", "cf"))')
def comparison(block, said, folder):
    assert said.count("difference") == 2 and "QNN[depth=6]" in said


@looks_at('figure.savefig("methods.pdf")')
def one_figure(block, said, folder):
    assert (folder / "methods.pdf").stat().st_size > 5_000


@looks_at('np.savez("wine.npz", x_train=x[:120]')
def table_as_file(block, said, folder):
    assert datar.load_npz(folder / "wine.npz", classes=("1", "2")).n_features == 13


@looks_at('sweep.accuracy.sel(model="QNN[depth=6]"')
def stored(block, said, folder):
    assert len(said.splitlines()) > 10


@looks_at("class LearningFlags")
def study(block, said, folder):
    """What it computes: tests/test_own_study.py."""
    assert not said


@pytest.mark.usefixtures("in_this_process", "few_subsamples", "quick")
@pytest.mark.parametrize("word", TESTED)
def test_a_block_runs_as_it_stands(word, tmp_path, capfd):
    """As a file in an empty folder, in this process, with a preset of seconds;
    tests/test_scripts.py has one of each kind of start."""
    if word == "from_openqasm(":
        pytest.importorskip("qiskit")
    TESTED[word](*run_block(word, tmp_path), tmp_path)
    assert "Warning" not in capfd.readouterr().err


def test_every_block_is_run_and_has_a_folder_of_its_own():
    for block in BLOCKS:
        assert sum(word in block for word in TESTED) == 1, block
    outs = [out for block in BLOCKS for out in re.findall(r'out=Path\("([^"]+)"\)', block)]
    assert len(outs) == len(set(outs)) > 10
    wanting = [block for block in BLOCKS if "QUICK" in block and "out=Path(" not in block]
    assert not wanting


COMMAND = re.compile(
    r"(?:^|`)((?:python|make|pip|sbatch) [^`\n#]+?)(?: +#.*)?(?:`|$)", re.MULTILINE
)


def commands():
    """Every line for a shell in README, guide and recipes; … stands for the line before."""
    text = README + GUIDE + RECIPES
    text = re.sub(r"```python.*?```", "", text, flags=re.DOTALL)
    found = {line.strip() for line in COMMAND.findall(text)}
    return sorted(line for line in found if "…" not in line)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("line", commands())
def test_a_line_for_a_shell_can_be_read(line, tmp_path, monkeypatch):
    """Flags, stages, presets, targets and files of each; what a script then does: test_scripts."""
    plain = line.removeprefix("sbatch cluster.sbatch ")
    program, *words = shlex.split(plain.replace("-m run_unlearn_mnist", "run_unlearn_mnist.py"))
    if line.startswith("sbatch"):
        program, words = "python", [program, *words]
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        assert words[0] == "install"
        for flag, name in itertools.pairwise(words):
            assert flag not in ("-r", "-c") or (ROOT / name).is_file()
    elif words[0].startswith("run_unlearn") or words[0] == "run_hessian.py":
        script = importlib.import_module(words[0].removesuffix(".py"))
        given = words[1:]
        if "--study" in given:
            (tmp_path / "mine.py").write_text(STUDY)
            monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", words)
        config, studies = parse_command_line(script.PRESETS, script.STUDIES, "")
        assert {*config.stages} <= {study.name for study in studies}
        sys.modules.pop("mine", None)
    else:
        assert words[0] in ("-m", "mine.py") or (ROOT / words[0]).is_file()


def test_the_command_line_behind_the_data_block_finds_all_done(
    in_this_process, quick, tmp_path, monkeypatch
):
    run_block('out=Path("my-data")', tmp_path)
    (line,) = [line for line in commands() if "--data mine.npz --classes 0 1" in line]
    monkeypatch.chdir(tmp_path)
    words = [*shlex.split(line)[3:], "--stages", "noise_sweep", "--models", "mlp"]
    words += ["--out", "my-data"]
    done = call_script("run_unlearn_mnist.py", *words)
    assert done.returncode == 0 and "training" not in done.stderr, done.stderr
    assert "Noise sweep" in done.stdout


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

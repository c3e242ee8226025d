"""A study of a user's own: the guide's example from the command line and from Python, and files
that are none."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, call_script, refused
from test_evaluation import SMALL, small_data

import run_unlearn_mnist
from foundation.base import storage
from foundation.engine import command_line, folders, runner
from foundation.engine.study import by_name
from foundation.report.closing import report

(EXAMPLE,) = re.findall(
    r'```python\n("""mine\.py.*?)```', (ROOT / "GUIDE.md").read_text(), re.DOTALL
)
SMALLEST = "--models mlp --unlearn-hidden 4 --mlp.sweep.epochs 2 --workers 1"


@pytest.fixture
def mine(tmp_path):
    """The guide's example as a file; its module is forgotten at the end."""
    path = tmp_path / "mine.py"
    path.write_text(EXAMPLE)
    yield path
    sys.modules.pop("mine", None)


def test_the_example_is_short():
    """40 lines, but for the empty ones that the formatter asks for."""
    assert sum(bool(line) for line in EXAMPLE.splitlines()) <= 40


def test_the_example_runs_from_the_command_line(mine, monkeypatch):
    words = f"--preset quick --study mine.py --stages learning --learning.counts 20 40 {SMALLEST}"
    command = [sys.executable, str(ROOT / "run_unlearn_mnist.py"), *words.split(), "--out", "out"]
    done = subprocess.run(command, cwd=mine.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "n = 2" in done.stdout and "20" in done.stdout
    folder = mine.parent / "out" / "mnist"
    (found,) = folder.glob("quick*")
    assert (found / "learning.png").is_file()
    accuracy = storage.read_dataset(found / "learning.nc").accuracy
    assert accuracy.samples.values.tolist() == [20, 40] and accuracy.notnull().any()
    monkeypatch.chdir(mine.parent)
    again = call_script("run_unlearn_mnist.py", *words.split(), "--out", "out", "--plan")
    assert "0 jobs" in again.stdout


@pytest.mark.usefixtures("in_this_process")
def test_the_example_runs_from_python(mine, capsys):
    (study,) = command_line.studies_of_file(mine)
    studies = [*run_unlearn_mnist.STUDIES, study]
    config = replace(SMALL, stages=("learning",), models=("mlp",), out=mine.parent / "out")
    folder = runner.run_studies(config, small_data(), studies)
    assert folder.name == folders.folder_name(config)  # flags at their presets' values name nothing
    found = storage.read_dataset(folder / "learning.nc").accuracy
    assert found.samples.values.tolist() == [20, 60]  # of the preset quick
    report(folder, studies, config.stages)
    assert "20" in capsys.readouterr().out and (folder / "learning.png").is_file()


def test_a_configuration_with_a_further_study_has_its_flags_in_every_preset(mine):
    (study,) = command_line.studies_of_file(mine)
    wide = runner.with_studies(SMALL, [*run_unlearn_mnist.STUDIES, study])
    assert wide.learning.counts == (20, 60) and wide.presets["paper"].learning.counts == (
        40,
        80,
        160,
    )
    assert wide.capacity == SMALL.capacity
    assert runner.with_studies(SMALL, run_unlearn_mnist.STUDIES) is SMALL
    assert "learning" not in by_name(run_unlearn_mnist.STUDIES)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mine.txt", EXAMPLE, "mine.txt, allowed: a Python file"),
        ("mine.py", None, "mine.py, allowed: a Python file"),
        ("mine.py", "x = 1", "mine.py, allowed: a Python file that defines a Study"),
        ("mine.py", "x =", r"mine\.py cannot be run \(SyntaxError"),
        ("mine.py", "import nothing_of_this_name", r"mine\.py cannot be run \(ModuleNotFoundError"),
        ("models.py", EXAMPLE, "models.py, allowed: a name that no module has"),
    ],
)
def test_a_file_that_is_no_study_is_refused_in_one_line(tmp_path, name, text, said):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with refused(said):
        command_line.studies_of_file(path)
    sys.modules.pop("mine", None)


def test_a_study_of_a_name_that_is_there_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "twice.py"
    path.write_text(EXAMPLE.replace('name="learning"', 'name="capacity"'))
    words = ["run_unlearn_mnist.py", "--preset", "quick", "--study", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        command_line.parse_command_line(
            run_unlearn_mnist.PRESETS, run_unlearn_mnist.STUDIES, run_unlearn_mnist.__doc__
        )
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: --study: ") and said.count("\n") == 1
    sys.modules.pop("twice", None)

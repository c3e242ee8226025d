"""The notebooks from top to bottom, from the committed results alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, copy_project

from foundation.report import drawing

NOTEBOOKS = sorted(path.name for path in ROOT.glob("*.ipynb"))


def read(name):
    # three seconds, which every process of the suite would pay as it collects tests
    import nbformat

    return nbformat.read(ROOT / name, as_version=4)


def images(cell):
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def test_the_notebooks_are_there():
    assert NOTEBOOKS == ["heissian.ipynb", "test_mnist.ipynb", "test_xxz.ipynb"]


def test_a_notebook_runs_without_network_and_home(tmp_path, monkeypatch):
    """In a kernel, in a copy of modules and results, with an empty home folder."""
    name = "heissian.ipynb"
    copy_project(tmp_path)
    shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "results",
        tmp_path / "results",
        ignore=shutil.ignore_patterns("*.png", "*.pdf", "chunks", "parameters"),
    )
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("HOME", "XDG_CACHE_HOME", "IPYTHONDIR", "MPLCONFIGDIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(home))
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setitem(os.environ, "PYTHONPATH", "")
    from nbclient import NotebookClient

    notebook = read(name)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, resources=place).execute()
    check_images(name, [len(images(cell)) for cell in notebook.cells])
    said = [str(cell.get("outputs")) for cell in notebook.cells]
    assert any(re.search("mean of n = |n = \\d+ runs", each) for each in said)


def check_images(name, counts):
    """One for each figure cell, as stored; counts: of the images of each cell."""
    for cell, count in zip(read(name).cells, counts, strict=True):
        is_figure = cell.cell_type == "code" and cell.source.startswith("show(")
        assert count == int(is_figure) == len(images(cell)), cell.source


@pytest.mark.parametrize("name", ["test_mnist.ipynb", "test_xxz.ipynb"])
def test_the_cells_of_a_notebook_give_what_is_stored(name, monkeypatch, capsys):
    """In this process, with the interpreter that a kernel has; figures are laid out, and not
    turned into pixels."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import Image

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(drawing, "png", lambda figure: b"\x89PNG")
    shell = InteractiveShell.instance()
    counts = []
    for cell in read(name).cells:
        value = None
        if cell.cell_type == "code":
            done = shell.run_cell(cell.source)
            done.raise_error()
            value = done.result
        counts.append(int(isinstance(value, Image)))
    InteractiveShell.clear_instance()
    check_images(name, counts)
    assert re.search("mean of n = |n = \\d+ runs", capsys.readouterr().out)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_names_no_place_of_a_machine(name):
    text = (ROOT / name).read_text()
    assert str(ROOT) not in text and str(Path.home()) + "/" not in text


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.parametrize("way", ["jupyter", "vscode", "subfolder", "parent"])
def test_a_notebook_finds_the_project_from_wherever_it_was_opened(name, way, tmp_path):
    """By what Jupyter and VS Code say of its path, or from a folder near the project that the
    kernel started in."""
    first = next(cell.source for cell in read(name).cells if cell.cell_type == "code")
    project = tmp_path / "für mich" / "das Projekt"
    copy_project(project)
    shutil.copy(ROOT / name, project)
    folder = {"subfolder": project / "tests", "parent": project.parent}.get(way, tmp_path / "other")
    folder.mkdir(exist_ok=True)
    said = f"__vsc_ipynb_file__ = {str(project / name)!r}\n" if way == "vscode" else ""
    told = {"JPY_SESSION_NAME": str(project / name)} if way == "jupyter" else {}
    code = f"{said}{first.partition('import findings')[0]}\nimport importlib.util\n"
    code += "print(importlib.util.find_spec('models').origin)"
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | told
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=own, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()) == project / "models.py", done.stderr

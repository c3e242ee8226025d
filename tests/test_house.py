"""The house: three floors, imports that run down only, no circle, and few modules in the root."""

import ast
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import run_hessian
import run_unlearn_mnist
import run_unlearn_xxz
from foundation.base.places import ROOT, own_files
from foundation.engine.study import Study

MIDDLE = ("datar", "models", "poison_unlearn", "protocol", "landscape", "library")
SCRIPTS = (
    "run_unlearn_mnist",
    "run_unlearn_xxz",
    "run_hessian",
    "run_example",
    "findings",
)
# parts of the foundation, from the ground up
BENEATH = ("base", "quantum", "measures", "engine", "report")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path): path for path in own_files()}


def imported(path: Path, *, types: bool = False) -> set[str]:
    """The project's modules that a module imports, functions' own imports included; types: those
    for annotations."""
    tree, found = ast.parse(path.read_text()), set()
    typed = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    left_out = set() if types else {id(node) for block in typed for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name in NAMES and NAMES[name].name != "__init__.py"}


def floor(name: str) -> int:
    """0 beneath, 1 in the middle, 2 above, 3 for what runs it all."""
    part = name.partition(".")[0]
    return {"foundation": 0, "studies": 2}.get(part, 1 if part in MIDDLE else 3)


def test_the_root_holds_the_paper_and_the_scripts():
    root = {path.stem for path in ROOT.glob("*.py")}
    assert root == {*MIDDLE, *SCRIPTS} and len(root) <= 12


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_down_only(name):
    for other in imported(NAMES[name]):
        assert floor(other) <= floor(name), (name, other)
        if floor(name) == floor(other) == 0:
            part, theirs = (BENEATH.index(each.split(".")[1]) for each in (name, other))
            assert theirs <= part, (name, other)


def test_of_what_stands_above_the_foundation_knows_the_type_of_a_data_set_alone():
    known = {(name, other) for name, path in NAMES.items() for other in imported(path, types=True)}
    assert {other for name, other in known if floor(name) == 0 < floor(other)} == {"datar"}


def test_no_import_leads_back():
    """For annotations neither, but for the type of a data set; a cluster asks for itself on its
    workers."""
    every = {name: imported(path, types=True) - {name} for name, path in NAMES.items()}
    graph = {
        name: needs - {"datar"} if floor(name) == 0 else needs for name, needs in every.items()
    }
    order, left = [], dict(graph)
    while left:
        free = [name for name, needs in left.items() if needs <= set(order)]
        assert free, f"a circle among {sorted(left)}"
        order += free
        left = {name: needs for name, needs in left.items() if name not in free}


def records(name: str) -> list[Study]:
    """The studies that a module of studies/ defines."""
    return [value for value in vars(import_module(name)).values() if isinstance(value, Study)]


STUDY_FILES = [name for name in NAMES if name.startswith("studies.") and records(name)]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("studies.")])
def test_a_study_imports_other_studies_only_if_it_reads_their_files(name):
    reads = {word for study in records(name) for word in study.reads}
    for other in imported(NAMES[name]) & set(STUDY_FILES) - {name}:
        assert reads & {study.name for study in records(other)}, (name, other)


def test_every_study_of_a_script_stands_in_a_file_of_its_own_kind():
    known = {id(study) for name in STUDY_FILES for study in records(name)}
    for script in (run_unlearn_mnist, run_unlearn_xxz, run_hessian):
        assert all(id(study) in known for study in script.STUDIES)
        names = {study.name for study in script.STUDIES}
        assert all(set(study.reads) <= names for study in script.STUDIES)


# and contenders that make sense on one alone
OF_ONE_DATA_SET = {"encodings", "pairs", "gauge", "splits"}


def test_data_sets_are_named_by_scripts_and_by_studies_of_one_data_set_alone():
    for name, path in NAMES.items():
        part = name.rpartition(".")[2]
        if name in (*SCRIPTS, "datar", "studies.tuning") or part in OF_ONE_DATA_SET:
            continue
        constants = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant)
        }
        assert not constants & {"mnist", "xxz"}, name


def test_no_file_has_over_700_lines_no_body_over_40_and_no_class_over_25_fields(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    density = import_module("density")
    assert density.measure(ROOT).too_long == []
    long_body = "def f():\n" + "    x = 1\n" * 41
    assert density.long_parts(ast.parse(long_body), long_body) == ["f: a body of 41 lines"]
    many = "class A:\n" + "".join(f"    x{number}: int\n" for number in range(26))
    assert density.long_parts(ast.parse(many), many) == ["A: 26 fields"]


def test_frames_and_layout_do_without_matplotlib():
    for name in ("frames", "layout", "claims"):
        text = NAMES[f"foundation.report.{name}"].read_text()
        assert "drawing" not in text and "matplotlib" not in text and "seaborn" not in text


def test_the_project_installs_all_of_its_modules():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed = {*project["py-modules"], *project["packages"]}
    packages = {name.rpartition(".")[0] for name in NAMES} - {""}
    assert installed == {name for name in NAMES if "." not in name} | packages
    data = project["package-data"]
    for folder in ("foundation", "studies"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert path.name in data[".".join(path.relative_to(ROOT).parts[:-1])]

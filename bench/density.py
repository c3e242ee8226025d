"""How dense is the code? Syntax nodes a line, now and at a commit, both formatted in the same way.

    python bench/density.py                      # this checkout beside commit 31ba00d
    python bench/density.py --commit HEAD~20     # beside another commit

Counted are all Python files of the product (root, foundation, studies; not tests, not bench): the
nodes of `ast.walk` over the lines that are neither blank nor a comment, once ruff has formatted
them with this checkout's settings. Named are bodies of functions of more than 40 lines, files of
more than 700, and classes that declare more than 25 fields.
"""

from __future__ import annotations

import argparse
import ast
import io
import platform
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LONGEST_BODY, LONGEST_FILE, MOST_FIELDS = 40, 700, 25


class Density(NamedTuple):
    """Of a folder of code: its files, syntax nodes and lines, and what is too long."""

    files: int
    nodes: int
    lines: int
    docstrings: int  # of these lines
    too_long: list[str]

    @property
    def nodes_a_line(self) -> float:
        return self.nodes / self.lines


def measure(folder: Path) -> Density:
    """The density of the product's files below a folder."""
    paths = [
        *folder.glob("*.py"),
        *folder.glob("foundation/**/*.py"),
        *folder.glob("studies/**/*.py"),
    ]
    nodes, lines, docstrings, too_long = 0, 0, 0, []
    for path in sorted(paths):
        text = path.read_text()
        tree = ast.parse(text)
        nodes += sum(1 for _ in ast.walk(tree))
        lines += len(code_lines(text))
        docstrings += docstring_lines(tree, text)
        too_long += [f"{path.relative_to(folder)}: {words}" for words in long_parts(tree, text)]
    return Density(len(paths), nodes, lines, docstrings, too_long)


def code_lines(text: str) -> list[str]:
    """The lines that are neither blank nor a comment."""
    stripped = [line.strip() for line in text.splitlines()]
    return [line for line in stripped if line and not line.startswith("#")]


def docstring_lines(tree: ast.Module, text: str) -> int:
    """How many lines that are not blank belong to docstrings: ruff does not wrap these."""
    lines, count = text.splitlines(), 0
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            own = lines[node.lineno - 1 : node.end_lineno]
            count += sum(bool(line.strip()) for line in own)
    return count


def long_parts(tree: ast.Module, text: str) -> list[str]:
    """What of a file is too long: the file, bodies of functions, classes by the fields that they
    declare."""
    parts = []
    count = len(text.splitlines())
    if count > LONGEST_FILE:
        parts.append(f"{count} lines")
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.end_lineno - first_statement(node).lineno + 1
            if body > LONGEST_BODY:
                parts.append(f"{node.name}: a body of {body} lines")
        if isinstance(node, ast.ClassDef):
            declared = sum(isinstance(statement, ast.AnnAssign) for statement in node.body)
            if declared > MOST_FIELDS:
                parts.append(f"{node.name}: {declared} fields")
    return parts


def first_statement(function: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.stmt:
    """Where a function's body begins, behind its docstring."""
    has_docstring = ast.get_docstring(function) is not None and len(function.body) > 1
    return function.body[1] if has_docstring else function.body[0]


def of_commit(commit: str) -> Density:
    """The density of a commit's code, formatted with the settings of this checkout."""
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        settings = ["--config", str(ROOT / "pyproject.toml")]
        command = [sys.executable, "-m", "ruff", "format", "--quiet", *settings, str(folder)]
        subprocess.run(command, check=True)
        return measure(folder)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--commit", default="31ba00d", help="the commit that the code is compared with (31ba00d)"
    )
    arguments = parser.parse_args()
    print(f"python {' '.join(sys.argv)}; Python {platform.python_version()}, {platform.machine()}")
    there, here = of_commit(arguments.commit), measure(ROOT)
    for name, density in {arguments.commit: there, "this checkout": here}.items():
        size = f"{density.files} files, {density.nodes:,} nodes, {density.lines:,} lines"
        print(
            f"{name}: {density.nodes_a_line:.2f} nodes a line ({size}), {len(density.too_long)} "
            "parts too long"
        )
    print(f"ratio: {here.nodes_a_line / there.nodes_a_line:.3f}")
    without = [density.nodes / (density.lines - density.docstrings) for density in (there, here)]
    there_alone, here_alone = without
    words = f"{there_alone:.2f} and {here_alone:.2f} nodes a line, {here_alone / there_alone:.3f}"
    print(f"without docstrings: {words}")
    print("".join(f"too long here: {words}\n" for words in here.too_long), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Find the syntax tree of a function or class, as its file or notebook cell holds it now.

Trees are compared without docstrings, comments and positions, alike under all versions of Python.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import linecache
import types
from collections import defaultdict
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any, NamedTuple


class NoSource(Exception):
    """What has no content to hash; results that depend on it are computed and not stored."""


Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


Imports = dict[str, list[tuple[str, str]]]  # (module, attribute) by the name that they are given


class Text(NamedTuple):
    """A parsed file or cell."""

    by_line: dict[int, list[Function]]  # functions by the number of their first line
    compiled: frozenset[tuple]  # `_content` of the code of all functions and classes in it
    imports: Imports


def node_of(code: types.CodeType) -> Function:
    """Return the syntax tree of a function from its code.

    Raises NoSource where there is no text, or where it has changed since the code was made.
    """
    name = code.co_name
    text = _text_of(code.co_filename)
    if text is None:
        raise NoSource(f"{name} has no source, as code typed into a Python prompt")
    parsed = _parsed(text)
    nodes = parsed.by_line.get(code.co_firstlineno, [])
    nodes = [node for node in nodes if getattr(node, "name", "<lambda>") == name]
    if len(nodes) > 1:  # lambdas on one line
        nodes = [node for node in nodes if _is_of(node, code)]
    is_unchanged = _content(code) in parsed.compiled
    if not nodes or not is_unchanged:
        raise NoSource(f"{name} has changed in its file since it was imported")
    return min(nodes, key=_size)


def _size(node: ast.AST) -> tuple[int, int]:
    """Order nodes that hold each other, the innermost first."""
    lines = node.end_lineno - node.lineno
    columns = node.end_col_offset - node.col_offset
    return lines, columns


def _is_of(node: Function, code: types.CodeType) -> bool:
    """Tell whether all instructions of some code lie within a function's body."""
    if not isinstance(node, ast.Lambda):
        return True
    body = node.body
    start = (body.lineno, body.col_offset)
    end = (body.end_lineno, body.end_col_offset)
    for position in code.co_positions():
        line, end_line, column, end_column = position
        if None in (column, end_column) and line is not None:
            raise NoSource("lambdas on one line, without the columns of code")
        has_width = None not in position and (column, end_column) != (0, 0)
        if not has_width:
            continue
        begins_before = (line, column) < start
        ends_behind = (end_line, end_column) > end
        if begins_before or ends_behind:
            return False
    return True


def _text_of(filename: str) -> str | None:
    """Return the text of a file or cell as it is now."""
    linecache.checkcache(filename)
    lines = linecache.getlines(filename)
    return "".join(lines) if lines else None


@lru_cache(maxsize=256)
def _parsed(text: str) -> Text:
    try:
        tree = ast.parse(text)
        compiled = [compile(text, "<text>", "exec", dont_inherit=True)]
        # a notebook compiles each statement alone, which makes other instructions of some calls
        for statement in tree.body:
            alone = ast.Module([statement], [])
            compiled.append(compile(alone, "<text>", "exec", dont_inherit=True))
    except (SyntaxError, ValueError) as error:
        raise NoSource(f"a source that is no Python ({error})") from None
    by_line = defaultdict(list)
    imported = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, Function):
            line = _first_line(node)
            by_line[line].append(node)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                name = alias.asname or alias.name
                imported[name].append((node.module, alias.name))
    contents = [_content(code) for unit in compiled for code in _all_code(unit)]
    return Text(by_line, frozenset(contents), imported)


def _first_line(node: ast.AST) -> int:
    """Return the number of a definition's first line, which may be a decorator's."""
    decorators = getattr(node, "decorator_list", ())
    return min(part.lineno for part in (node, *decorators))


def _all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield some code and all code that it holds, such as that of inner functions."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_code(constant)


def _content(code: types.CodeType) -> tuple:
    """Return what code does and where it stands, as a value; not the flags of its compilation."""
    constants: list[tuple] = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            constants.append(_content(constant))
        else:
            constants.append((type(constant), _constant(constant)))
    place = (code.co_name, code.co_firstlineno, code.co_linetable)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return (code.co_code, *place, *names, *constants)


def _constant(constant: Any) -> str:
    """Write a constant of some code as text; a set in an order of its own."""
    if isinstance(constant, frozenset):
        return repr(sorted(map(_constant, constant)))
    if isinstance(constant, tuple):
        return repr([(type(item), _constant(item)) for item in constant])
    return hex(constant) if type(constant) is int else repr(constant)


def imports(filename: str | None) -> Imports:
    """Return (module, attribute) of what a file imports by `from`, by the name it gets."""
    text = _text_of(filename) if filename else None
    return _parsed(text).imports if text else {}


# ---- names ----


@lru_cache(maxsize=4096)
def global_names(code: types.CodeType) -> tuple[str, ...]:
    """List the global names that some code reads, and that functions written in it read."""
    names = set()
    for part in _all_code(code):
        for instruction in dis.get_instructions(part):
            if "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME":
                names.add(instruction.argval)
    return tuple(sorted(names))


def chains(node: ast.AST, names: Collection[str]) -> Iterator[list[str]]:
    """Yield each of the names with the attributes that are read from it: np.linalg.eigh."""
    inner = set()
    for part in ast.walk(node):
        attributes: list[str] = []
        base = part
        while isinstance(base, ast.Attribute):
            attributes.insert(0, base.attr)
            inner.add(id(base.value))
            base = base.value
        is_whole = id(part) not in inner
        if is_whole and isinstance(base, ast.Name) and base.id in names:
            yield [base.id, *attributes]


# ---- hashes ----


def digest(node: ast.AST) -> str:
    """Hash a syntax tree, without docstrings, to 16 hex digits."""
    text = _dump(node)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _dump(node: Any) -> str:
    """Write a syntax tree as text, without docstrings, equal in all versions of Python."""
    if isinstance(node, list):
        return f"[{','.join(map(_dump, node))}]"
    if not isinstance(node, ast.AST):
        is_large = type(node) is int and abs(node) >= 2**63
        return hex(node) if is_large else repr(node)
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    has_docstring = isinstance(node, definitions) and ast.get_docstring(node) is not None
    parts = []
    for name, value in ast.iter_fields(node):
        if name == "body" and has_docstring:
            value = value[1:]
        if value not in (None, []) and name not in ("ctx", "kind", "type_comment"):
            parts.append(f"{name}={_dump(value)}")
    return f"{type(node).__name__}({','.join(parts)})"

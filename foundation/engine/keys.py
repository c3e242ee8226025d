"""Name results by a hash over all that they depend on, including the code that computes them.

Code of methods, models and poisons whose syntax tree is not in the committed list (it was edited
here, or is a user's own) adds the tree's hash to every key that it is part of. So an edited loss
never finds old numbers, and a reformatted one recomputes nothing.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import inspect
import json
import linecache
import os
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from foundation.base.checks import require

# raised whenever the reference numbers of the tests change, so that no older result is found
NUMERICS = 1

SETTINGS = {  # flags of JAX that change bits, with their defaults
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_default_matmul_precision": None,
    "jax_disable_most_optimizations": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_random_seed_offset": 0,
    "jax_exec_time_optimization_effort": 0.0,
}

# Digests of the project's own jobs, models, methods, poisons and measures, one a line, each before
# the name of its code. tests/same_bits.py --renew renews the list; it computes every study first,
# because the list vouches for code that gives the same bits.
SOURCES = Path(__file__).with_name("sources.txt")
_SOURCE_LINES = SOURCES.read_text().splitlines()
OWN_SOURCES = frozenset(line.split()[0] for line in _SOURCE_LINES)


class NoSource(Exception):
    """A value has no source to hash; results that depend on it are computed and not stored."""


def key_of(fields: dict[str, Any]) -> str:
    """Hash the fields, together with the process's settings, to 64 hex digits."""
    text = json.dumps(with_process(fields), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def with_process(fields: dict[str, Any]) -> dict[str, Any]:
    """Add NUMERICS and the process's settings, which change numbers, to the fields."""
    of_process = dict(zip(OF_PROCESS, (NUMERICS, settings()), strict=True))
    return {**fields, **of_process}


OF_PROCESS = ("numerics", "settings")  # reserved: no field of a job may have such a name


def fields_of(job: Any) -> dict[str, Any]:
    """Describe a dataclass as JSON; BadInput where a field has a name of OF_PROCESS."""
    fields = describe(job)
    taken = ", ".join(name for name in OF_PROCESS if name in fields)
    given = f"a field named {taken} of {type(job).__name__}"
    require(not taken, "job", given, "other names")
    return fields


def settings() -> dict[str, Any]:
    """Return the process's settings that change bits and differ from their defaults.

    These are flags of JAX (SETTINGS), XLA_FLAGS and the backend.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    flags = " ".join(sorted(set(given)))
    current = jax_settings() | {"XLA_FLAGS": flags, "backend": backend()}
    defaults = SETTINGS | {"XLA_FLAGS": "", "backend": "cpu"}
    return {name: value for name, value in current.items() if value != defaults[name]}


def backend() -> str:
    """Name the backend that jobs run on, without starting it.

    JAX_PLATFORMS decides; without it, the backend is cuda where a CUDA plugin is installed, else
    cpu.
    """
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    plugins = [name for name in names if importlib.util.find_spec(name)]
    return jax.config.jax_platforms or ("cuda" if plugins else "cpu")


def jax_settings() -> dict[str, Any]:
    """Return the values of SETTINGS in this process."""
    values = {}
    for name in SETTINGS:
        without_attribute = jax.config.values.get(name)
        values[name] = getattr(jax.config, name, without_attribute)
    return values


def describe(value: Any) -> Any:
    """Describe a value as JSON, equal in every process; NoSource for code without a source."""
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): describe(item) for name, item in value.items()}
    if isinstance(value, (np.ndarray, jax.Array)):
        array = np.asarray(value)
        header = f"{array.dtype.str}{array.shape}".encode()
        return {"array": hashlib.sha256(header + array.tobytes()).hexdigest()}
    if isinstance(value, partial):
        parts = (value.func, value.args, value.keywords)
        return {"partial": [describe(part) for part in parts]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        description = _named(type(value))
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if not _is_default(field, item):
                description[field.name] = describe(item)
        return description
    if callable(value) and hasattr(value, "__name__"):
        return _named(value)
    raise NoSource(repr(value))


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    """Whether a field has its default value.

    Such fields are left out of a description, so that a new field changes no old key.
    """
    if field.default_factory is dataclasses.MISSING:
        default = field.default
    else:
        default = field.default_factory()
    if type(value) is not type(default):
        return False
    return value is default or value == default


def _named(code: type | Callable) -> dict[str, Any]:
    """Return the code's name, and the hashes of its sources that are not in the committed list."""
    foreign = [digest for digest in source_hashes(code) if digest not in OWN_SOURCES]
    source = {"source": foreign} if foreign else {}
    return {"is": code.__name__} | source


# without builtins, because classes that were made without a module belong to it
_LIBRARY = sys.stdlib_module_names - {"builtins"}
_NAMES = ("init", "repr", "eq", "hash", "setattr", "delattr", "lt", "le", "gt", "ge", "replace")
_GENERATED = {f"__{name}__" for name in _NAMES}  # methods that the dataclass decorator writes


def source_hashes(code: type | Callable) -> tuple[str, ...]:
    """Hash the syntax trees of a class and its bases, or of a function and its closure.

    A compiled function of a library gives its name. Raises NoSource where the source is missing.
    """
    if isinstance(code, type):
        classes = [cls for cls in code.__mro__ if not _is_of_python(cls)]
        return tuple(digest for cls in classes for digest in _class_hashes(cls))
    function = inspect.unwrap(code)
    if not hasattr(function, "__code__"):  # compiled, of a library
        return (f"{getattr(function, '__module__', None)}.{function.__name__}",)
    cells = [describe(cell.cell_contents) for cell in function.__closure__ or ()]
    closure = [_hash_of_text(json.dumps(cells))] if cells else []
    kinds = (ast.FunctionDef, ast.Lambda)
    written = _function_hash(function, kinds, function.__code__.co_name)
    return (written, *closure)


def _is_of_python(cls: type) -> bool:
    """Whether a class is of the standard library, or object."""
    package = cls.__module__.partition(".")[0]
    return package in _LIBRARY or cls is object


def _class_hashes(cls: type) -> list[str]:
    """Hash the class as it is written, and each function that was put into it later."""
    functions = [value for value in vars(cls).values() if inspect.isfunction(value)]
    unwrapped = [inspect.unwrap(function) for function in functions]
    methods = [method for method in unwrapped if not _is_generated(method)]
    written = [
        method
        for method in methods
        if method.__qualname__ == f"{cls.__qualname__}.{method.__name__}"
    ]
    body = _body_hash(cls, written)
    added = [method for method in methods if method not in written]
    hashes_of_added = [digest for method in added for digest in source_hashes(method)]
    return [body, *hashes_of_added]


def _body_hash(cls: type, methods: list[Callable]) -> str:
    """Hash a class as it is written; methods: the functions that are written in it."""
    if methods:
        return _function_hash(methods[0], ast.ClassDef, cls.__name__)
    return _class_hash(cls)


def _is_generated(method: Callable) -> bool:
    """Whether the dataclass decorator wrote a method, which then has no source file."""
    return method.__code__.co_filename == "<string>" and method.__name__ in _GENERATED


@lru_cache(maxsize=1024)
def _function_hash(function: Callable, kinds: type | tuple[type, ...], name: str) -> str:
    """Hash the innermost node of these kinds and this name that holds the function's first line.

    Decorators count as lines of the node that they decorate.
    """
    line = function.__code__.co_firstlineno
    text = "".join(linecache.getlines(function.__code__.co_filename))
    holding = [
        node
        for node in ast.walk(_parsed(text))
        if isinstance(node, kinds)
        and getattr(node, "name", "<lambda>") == name
        and _first_line(node) <= line <= node.end_lineno
    ]
    if not holding:
        raise NoSource(name)
    innermost = max(holding, key=lambda node: node.lineno)
    return _digest(innermost)


def _first_line(node: ast.AST) -> int:
    """Return the number of a definition's first line, which may be a decorator's."""
    decorators = getattr(node, "decorator_list", ())
    return min(part.lineno for part in (node, *decorators))


@lru_cache(maxsize=1024)
def _class_hash(cls: type) -> str:
    """Hash a class without functions."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError) as error:
        raise NoSource(cls.__name__) from error
    tree = _parsed(inspect.cleandoc("\n" + source))
    return _digest(tree.body[0])


@lru_cache(maxsize=64)
def _parsed(text: str) -> ast.AST:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise NoSource("no Python") from error


def _digest(node: ast.AST) -> str:
    return _hash_of_text(_dump(node))


def _hash_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _dump(node: Any) -> str:
    """Write a syntax tree as text, without docstrings, equal in all versions of Python."""
    if isinstance(node, list):
        return f"[{','.join(map(_dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
    has_docstring = is_definition and ast.get_docstring(node) is not None
    parts = []
    for name, value in ast.iter_fields(node):
        if name == "body" and has_docstring:
            value = value[1:]
        if value not in (None, []) and name not in ("ctx", "kind", "type_comment"):
            parts.append(f"{name}={_dump(value)}")
    return f"{type(node).__name__}({','.join(parts)})"

"""The names of results: a hash over all that they depend on, the code of methods, models and
poisons included.

Code whose syntax tree is not in the committed list, edited here or a user's own, adds the tree's
hash to every key it is part of: whoever changes a loss never gets old numbers, and whoever
reformats one recomputes nothing.
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

NUMERICS = (
    1  # raised whenever the reference numbers of the tests move: no older result is found then
)

SETTINGS = {  # of JAX, with their defaults: what changes bits
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_default_matmul_precision": None,
    "jax_disable_most_optimizations": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_random_seed_offset": 0,
    "jax_exec_time_optimization_effort": 0.0,
}

# Digests of the project's own jobs, models, methods, poisons and measures, each behind what it is
# of. Renewed by tests/same_bits.py --renew, which computes every study first: the list vouches for
# code that gives the same bits.
SOURCES = Path(__file__).with_name("sources.txt")
OWN_SOURCES = frozenset(line.split()[0] for line in SOURCES.read_text().splitlines())


class NoSource(Exception):
    """Something has no source that could be hashed: what depends on it is computed, and not
    stored."""


def key_of(fields: dict[str, Any]) -> str:
    """64 hex digits that name what has these fields, under the process's settings."""
    return hashlib.sha256(json.dumps(with_process(fields), sort_keys=True).encode()).hexdigest()


def with_process(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, and what of the process changes numbers."""
    return {**fields, **dict(zip(OF_PROCESS, (NUMERICS, settings()), strict=True))}


OF_PROCESS = ("numerics", "settings")  # names that no field of a job may have


def fields_of(job: Any) -> dict[str, Any]:
    """A dataclass as JSON; BadInput where a field has a name under which what of the process
    changes numbers stands."""
    fields = describe(job)
    taken = ", ".join(name for name in OF_PROCESS if name in fields)
    require(not taken, "job", f"a field named {taken} of {type(job).__name__}", "other names")
    return fields


def settings() -> dict[str, Any]:
    """What of the process's settings changes bits and is not at its default: JAX's flags, XLA's,
    the backend."""
    flags = " ".join(sorted(set(os.environ.get("XLA_FLAGS", "").split())))
    own = jax_settings() | {"XLA_FLAGS": flags, "backend": backend()}
    defaults = SETTINGS | {"XLA_FLAGS": "", "backend": "cpu"}
    return {name: value for name, value in own.items() if value != defaults[name]}


def backend() -> str:
    """What jobs run on, without starting it: cpu, or cuda where JAX_PLATFORMS or what is installed
    says so."""
    plugins = [
        name
        for name in ("jax_cuda12_plugin", "jax_cuda13_plugin")
        if importlib.util.find_spec(name)
    ]
    return jax.config.jax_platforms or ("cuda" if plugins else "cpu")


def jax_settings() -> dict[str, Any]:
    """The values of SETTINGS in this process."""
    return {name: getattr(jax.config, name, jax.config.values.get(name)) for name in SETTINGS}


def describe(value: Any) -> Any:
    """A value as JSON that is the same in every process; NoSource where it holds code without
    one."""
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [describe(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): describe(each) for name, each in value.items()}
    if isinstance(value, (np.ndarray, jax.Array)):
        array = np.asarray(value)
        return {
            "array": hashlib.sha256(
                f"{array.dtype.str}{array.shape}".encode() + array.tobytes()
            ).hexdigest()
        }
    if isinstance(value, partial):
        return {"partial": [describe(value.func), describe(value.args), describe(value.keywords)]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = [(each, getattr(value, each.name)) for each in dataclasses.fields(value)]
        return _named(type(value)) | {
            each.name: describe(held) for each, held in own if not _is_default(each, held)
        }
    if callable(value) and hasattr(value, "__name__"):
        return _named(value)
    raise NoSource(repr(value))


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    """Such fields are left out, so that a new one changes no old key."""
    default = (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )
    return type(value) is type(default) and (value is default or value == default)


def _named(code: type | Callable) -> dict[str, Any]:
    """Its name, and the hashes of what of its source is not the project's own as committed."""
    foreign = [digest for digest in source_hashes(code) if digest not in OWN_SOURCES]
    return {"is": code.__name__} | ({"source": foreign} if foreign else {})


# where classes stand that were made without a module
_LIBRARY = sys.stdlib_module_names - {"builtins"}
_WORDS = ("init", "repr", "eq", "hash", "setattr", "delattr", "lt", "le", "gt", "ge", "replace")
_WRITTEN = {f"__{word}__" for word in _WORDS}  # by the dataclass decorator


def source_hashes(code: type | Callable) -> tuple[str, ...]:
    """Digests of the syntax trees of a class and its bases, or of a function and what it closes
    over; else NoSource."""
    if isinstance(code, type):
        classes = [cls for cls in code.__mro__ if cls.__module__.partition(".")[0] not in _LIBRARY]
        return tuple(
            digest for cls in classes if cls is not object for digest in _class_hashes(cls)
        )
    function = inspect.unwrap(code)
    if not hasattr(function, "__code__"):
        # compiled, of some library
        return (f"{getattr(function, '__module__', None)}.{function.__name__}",)
    cells = [describe(cell.cell_contents) for cell in function.__closure__ or ()]
    closed = [hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]] if cells else []
    return (
        _function_hash(function, (ast.FunctionDef, ast.Lambda), function.__code__.co_name),
        *closed,
    )


def _class_hashes(cls: type) -> list[str]:
    """Of the class as it is written, and of functions that were put into it later."""
    own = [inspect.unwrap(value) for value in vars(cls).values() if inspect.isfunction(value)]
    own = [
        each
        for each in own
        if each.__code__.co_filename != "<string>" or each.__name__ not in _WRITTEN
    ]
    written = [each for each in own if each.__qualname__ == f"{cls.__qualname__}.{each.__name__}"]
    body = _function_hash(written[0], ast.ClassDef, cls.__name__) if written else _class_hash(cls)
    return [
        body,
        *(digest for each in own if each not in written for digest in source_hashes(each)),
    ]


@lru_cache(maxsize=1024)
def _function_hash(function: Callable, kinds: type | tuple[type, ...], name: str) -> str:
    """Of the innermost node of these kinds and this name that holds the function's first line, or
    its decorator's."""
    line = function.__code__.co_firstlineno
    holding = [
        node
        for node in ast.walk(_parsed("".join(linecache.getlines(function.__code__.co_filename))))
        if isinstance(node, kinds)
        and getattr(node, "name", "<lambda>") == name
        and min(each.lineno for each in (node, *getattr(node, "decorator_list", ())))
        <= line
        <= node.end_lineno
    ]
    if not holding:
        raise NoSource(name)
    return _digest(max(holding, key=lambda node: node.lineno))


@lru_cache(maxsize=1024)
def _class_hash(cls: type) -> str:
    """Of a class without functions."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError) as error:
        raise NoSource(cls.__name__) from error
    return _digest(_parsed(inspect.cleandoc("\n" + source)).body[0])


@lru_cache(maxsize=64)
def _parsed(text: str) -> ast.AST:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise NoSource("no Python") from error


def _digest(node: ast.AST) -> str:
    return hashlib.sha256(_dump(node).encode()).hexdigest()[:16]


def _dump(node: Any) -> str:
    """A syntax tree as text that does not depend on Python's version, without docstrings."""
    if isinstance(node, list):
        return f"[{','.join(map(_dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name, value in ast.iter_fields(node):
        if (
            name == "body"
            and isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
        ):
            value = value[1:]
        if value not in (None, []) and name not in ("ctx", "kind", "type_comment"):
            parts.append(f"{name}={_dump(value)}")
    return f"{type(node).__name__}({','.join(parts)})"

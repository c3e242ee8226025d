"""Name results by a hash over all that they depend on, including the code that computes them.

The project's code counts by its name, as long as it is the code whose numbers are known (own_code);
a user's code counts by its content and by that of all that it reaches (code).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import numpy as np

from foundation.base import storage
from foundation.base.checks import require
from foundation.engine import own_code
from foundation.engine.code import LARGE, array_digest, digest, without_cached
from foundation.engine.sources import NoSource

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
    "jax_high_dynamic_range_gumbel": False,
    "jax_disable_jit": False,
    "jax_softmax_custom_jvp": False,
    "jax_use_direct_linearize": True,
    "jax_enable_custom_prng": False,
    "jax_memory_fitting_effort": 0.0,
    "jax_memory_fitting_level": "O2",
    "jax_optimization_level": "UNKNOWN",
    "jax_compiler_enable_remat_pass": True,
    "jax_allow_f16_reductions": True,
    "jax_enable_pgle": False,
}


def key_of(fields: dict[str, Any]) -> str:
    """Hash the fields, together with what belongs to the process, to 64 hex digits."""
    text = json.dumps(with_process(fields), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def with_process(fields: dict[str, Any]) -> dict[str, Any]:
    """Add NUMERICS, the process's settings and what differs of the project's code to the fields."""
    return {**fields, **of_process()}


OF_PROCESS = ("numerics", "settings", "project")  # reserved: no field of a job may have such a name


def of_process() -> dict[str, Any]:
    """Return what numbers depend on beside a job: NUMERICS, settings, changes of the project."""
    values: dict[str, Any] = {"numerics": NUMERICS, "settings": settings()}
    changes = _remembered("changes", project_changes)
    return values | ({"project": changes} if changes else {})


def project_changes() -> dict[str, str]:
    """Hash what differs of the project's code, by name; {} where NUMERICS has risen with it."""
    is_newer = own_code.KNOWN.numerics < NUMERICS
    return {} if is_newer else own_code.changes()


def fields_of(job: Any) -> dict[str, Any]:
    """Describe a dataclass as JSON; BadInput where a field has a name of OF_PROCESS."""
    fields = describe(job)
    taken = ", ".join(name for name in OF_PROCESS if name in fields)
    given = f"a field named {taken} of {type(job).__name__}"
    require(not taken, "job", given, "other names")
    return fields


# ---- memory ----

_memory: ContextVar[dict[Any, Any] | None] = ContextVar("memory", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Describe each function and class once while the block runs; else they are looked at anew."""
    before = _memory.set({})
    try:
        yield
    finally:
        _memory.reset(before)


def _remembered(name: Any, make: Callable[[], Any]) -> Any:
    memory = _memory.get()
    if memory is None:
        return make()
    if name not in memory:
        memory[name] = make()
    return memory[name]


# ---- settings ----


def settings() -> dict[str, Any]:
    """Return the process's settings that change bits and differ from their defaults.

    These are flags of JAX (SETTINGS), XLA_FLAGS, the backend, and the kernel that OpenBLAS is told
    to take.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    flags = " ".join(sorted(set(given)))
    kernel = os.environ.get("OPENBLAS_CORETYPE", "")
    if kernel == storage.usual_kernel():
        kernel = ""
    of_process = {"XLA_FLAGS": flags, "backend": backend(), "OPENBLAS_CORETYPE": kernel}
    current = jax_settings() | of_process
    defaults = SETTINGS | {"XLA_FLAGS": "", "backend": "cpu", "OPENBLAS_CORETYPE": ""}
    return {name: value for name, value in current.items() if value != defaults[name]}


def backend() -> str:
    """Name the backend that jobs run on, without starting it.

    JAX_PLATFORMS decides; without it, the backend is cuda where a CUDA plugin is installed, else
    cpu.
    """
    has_plugin = _remembered("plugin", _has_cuda_plugin)
    return jax.config.jax_platforms or ("cuda" if has_plugin else "cpu")


def _has_cuda_plugin() -> bool:
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return any(importlib.util.find_spec(name) for name in names)


def jax_settings() -> dict[str, Any]:
    """Return the values of SETTINGS in this process; a version of JAX may lack some of them."""
    values = {}
    all_values = jax.config.values  # made anew each time it is read
    for name in SETTINGS:
        without_attribute = all_values.get(name, MISSING)
        value = getattr(jax.config, name, without_attribute)
        if value is not MISSING:
            values[name] = value
    return values


MISSING = object()


# ---- descriptions ----


def describe(value: Any) -> Any:
    """Describe a value as JSON, equal in every process; NoSource for what has no content."""
    if isinstance(value, (np.integer, np.floating)):
        return describe(value.item())
    if value is None or type(value) in (bool, float, str):
        return value
    if type(value) is int:
        return value if abs(value) < LARGE else {"int": hex(value)}
    if type(value) in (tuple, list):
        return [describe(item) for item in value]
    if type(value) is dict and all(type(name) is str for name in value):
        return {name: describe(item) for name, item in value.items()}
    if type(value) is np.ndarray or isinstance(value, jax.Array):
        return {"array": array_digest(value)}
    if type(value) is partial and not vars(value):
        parts = (value.func, value.args, value.keywords)
        return {"partial": [describe(part) for part in parts]}
    try:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _dataclass(value)
        return _named(value)
    except NoSource:
        raise
    except Exception as error:  # an object that answers in its own way, or is nested too deeply
        reason = f"{type(error).__name__}: {error}"
        raise NoSource(f"{type(value).__name__} ({reason})") from None


def word_of(value: Any) -> str:
    """Return a word for a value in names of folders: of code its name, and a hash of its content.

    Code that has no content has its name alone.
    """
    if not callable(value):
        return str(value)
    name = getattr(value, "__name__", type(value).__name__)
    with suppress(NoSource):
        return f"{name}-{digest(describe(value))[:8]}"
    return name


RESERVED = ("is", "source", "state")  # names in a description that are no fields


def _dataclass(value: Any) -> dict[str, Any]:
    """Describe a dataclass by its class, its fields, and what else was put into it.

    Fields at their default are left out, so that a new field changes no old key.
    """
    description = _named(type(value))
    names = [field.name for field in dataclasses.fields(value)]
    for field in dataclasses.fields(value):
        item = getattr(value, field.name, dataclasses.MISSING)
        if not _is_default(field, item):
            name = f"field {field.name}" if field.name in RESERVED else field.name
            is_unset = item is dataclasses.MISSING
            description[name] = {"unset": True} if is_unset else describe(item)
    state = getattr(value, "__dict__", {})
    further = {name: item for name, item in state.items() if name not in names}
    further = without_cached(type(value), further)
    if further:
        description["state"] = own_code.content_hash(further)
    return description


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    """Tell whether a field has its default value, of an equal type down to the items of tuples."""
    default = field.default
    if value is default:
        return value is not dataclasses.MISSING
    try:
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if type(value) is not type(default):
            return False
        if type(value) in (bool, int, str):
            return value == default
        return json.dumps(describe(value)) == json.dumps(describe(default))
    except Exception:  # a default that cannot be made or described: the value is described
        return False


def _named(value: Any) -> dict[str, Any]:
    """Describe code, or any other object, by its name, and a user's by a hash of its content."""

    def make() -> tuple[Any, dict[str, Any]]:
        name = getattr(value, "__name__", None)
        if not isinstance(name, str):
            name = type(value).__name__
        own_name = own_code.name_of_own(value)
        module, _ = own_code.place_of(value)
        if own_name == f"{module}.{name}":
            return value, {"is": name}
        return value, {"is": name, "source": [own_code.content_hash(value)]}

    # the value is kept with its description, so that its id is not given to another one
    _, description = _remembered(id(value), make)
    return dict(description)

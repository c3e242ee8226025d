"""Where is code from: Python or an installed package, or a user's own files?"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import site
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

from foundation.engine.sources import NoSource


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    resolved = {Path(folder).resolve() for folder in folders}
    return tuple(f"{folder}{os.sep}" for folder in resolved)


@functools.cache
def is_installed_file(name: str) -> bool:
    """Tell whether a file is of Python itself or of an installed package."""
    if name.startswith("<"):
        return name.startswith("<frozen")
    path = str(Path(name).resolve())
    return path.startswith(_installed_folders())


def is_installed_module(module: types.ModuleType | None) -> bool:
    """Tell whether a module is of Python itself or of an installed package."""
    if module is None:
        return False
    attributes = vars(module)
    file = attributes.get("__file__")
    if isinstance(file, str):
        return is_installed_file(file)
    folders = list(attributes.get("__path__", ()))
    if folders:  # a package without a file of its own
        return all(is_installed_file(f"{folder}{os.sep}") for folder in folders)
    return attributes.get("__name__") in sys.builtin_module_names


def is_installed(code: Any) -> bool:
    """Tell whether a function or class is of Python itself or of an installed package."""
    if isinstance(code, types.FunctionType):
        return is_installed_file(code.__code__.co_filename)
    name = getattr(code, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    return is_installed_module(module)


def name_of(code: Any) -> str:
    """Return the module and the qualified name of some code."""
    name = getattr(code, "__qualname__", None) or type(code).__qualname__
    return f"{getattr(code, '__module__', None)}.{name}"


def is_of_library(value: Any) -> bool:
    """Tell whether an object is what an installed module holds under the object's name."""
    try:
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        module_name = getattr(value, "__module__", None)
    except Exception:  # an object that answers every name in its own way
        return False
    if not isinstance(name, str) or not isinstance(module_name, str):
        return False
    module = sys.modules.get(module_name)
    held: Any = module
    for part in name.split("."):
        held = getattr(held, part, None)
    return held is value and is_installed_module(module)


def users_module(name: str, package: str | None = None) -> types.ModuleType | None:
    """Import a module that a user wrote; None for an installed package, and for what is missing."""
    try:
        full_name = importlib.util.resolve_name(name, package)
        top, _, _ = full_name.partition(".")
        if top in sys.modules:
            is_users = not is_installed_module(sys.modules[top])
        else:
            is_users = _is_found_among_users_files(top)
        return importlib.import_module(full_name) if is_users else None
    except ModuleNotFoundError:
        return None
    except (Exception, SystemExit) as error:
        raise NoSource(f"import {name} ({type(error).__name__}: {error})") from None


def _is_found_among_users_files(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin in ("built-in", "frozen"):
        return False
    folders = spec.submodule_search_locations or ()
    places = [spec.origin] if spec.origin else [f"{folder}{os.sep}" for folder in folders]
    return not all(map(is_installed_file, places))

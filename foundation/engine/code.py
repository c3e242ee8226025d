"""Describe code and values by their content, and by the content of everything that they reach.

A function is its syntax tree, its defaults and attributes, what its closure holds, and the globals
that it names, each described in turn; a class is its attributes and its bases; any other object is
its class and its state. A function or class of an installed package is its name. So two
descriptions are equal where two pieces of code do the same for the same reasons, in every process.

Not seen is what code looks up by a text that it makes, or reads from files, as it runs.
"""

from __future__ import annotations

import ast
import builtins
import copyreg
import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from foundation.engine import sources
from foundation.engine.origins import (
    is_installed,
    is_installed_module,
    is_of_library,
    name_of,
    users_module,
)
from foundation.engine.sources import NoSource

Seen = Callable[[Any], str | None]  # the name of code that needs no description, None for other
LARGE = 2**63  # JSON's digits of larger integers are refused
CACHING = type(functools.lru_cache(lambda: None))
COMPILED = type(jax.jit(lambda: None))


def digest(description: Any) -> str:
    """Hash a description to 16 hex digits."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def array_digest(array: Any) -> str:
    """Hash kind, type, shape, order and bytes of an array."""
    kind = "numpy"
    try:
        if isinstance(array, jax.Array):
            is_key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
            kind = f"key {jax.random.key_impl(array)}" if is_key else f"jax {array.weak_type}"
            array = jax.random.key_data(array) if is_key else array
        values = np.asarray(array)
        content = values.tolist() if values.dtype.kind == "T" else values.tobytes().hex()
    except Exception as error:  # for example a deleted array, or one that is being traced
        raise NoSource(f"an array ({error})") from None
    if values.dtype.hasobject and values.dtype.kind != "T":
        raise NoSource(f"an array of Python objects, shape {values.shape}")
    kind_of_numbers = repr(values.dtype.descr) if values.dtype.names else values.dtype.name
    order = "C" if values.flags.c_contiguous else "other"
    header = [kind, kind_of_numbers, values.dtype.byteorder, values.shape, order]
    return hashlib.sha256(json.dumps([header, content]).encode()).hexdigest()


# attributes of a class that Python or a decorator writes, and that follow from the others
_GENERATED_NAMES = {
    "__module__", "__dict__", "__weakref__", "__doc__", "__qualname__", "__match_args__",
    "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl", "__slots__",
    "__firstlineno__", "__static_attributes__", "__annotations__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__dataclass_fields__", "__dataclass_params__",
    "__slotnames__", "__protocol_attrs__", "__non_callable_proto_members__", "__classcell__",
}  # fmt: skip
_OF_ENUM = ("_value2member_map_", "_member_map_", "_member_names_", "_unhashable_values_")
_OF_MEMBER = ("_value_", "_name_", "__objclass__", "_sort_order_")
_OF_MODULE = {
    "__name__", "__doc__", "__file__", "__cached__", "__loader__", "__spec__", "__package__",
    "__path__", "__builtins__", "__annotations__", "__warningregistry__",
}  # fmt: skip
_OF_NAMED_TUPLE = ("__new__", "_make", "_replace", "_asdict", "__repr__", "__getnewargs__")
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_LIBRARY_METHODS = (
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)


class Walk:
    """Describe values; each function, class and object is described once, where it is met first.

    name_of_own: the name of code that counts by its name alone, such as the project's.
    """

    def __init__(self, name_of_own: Seen = lambda code: None):
        self.name_of_own = name_of_own
        self.met: dict[int, int] = {}  # the number of each object, by its id
        self.held: list[Any] = []  # what was met, so that no id is given twice
        self.kinds = self._kinds()

    def describe(self, value: Any) -> Any:
        """Describe a value as JSON. Raises NoSource, with a reason, where that is impossible."""
        if value is None or type(value) in (bool, float, str):
            return value
        if type(value) is int:
            return value if abs(value) < LARGE else {"int": hex(value)}
        try:
            simple = _simple(value)
            return self._described(value) if simple is None else simple
        except RecursionError:
            raise NoSource(f"{type(value).__name__}, nested too deeply") from None
        except NoSource:
            raise
        except Exception as error:  # an object that answers in its own way
            reason = f"{type(error).__name__}: {error}"
            raise NoSource(f"{type(value).__name__} ({reason})") from None

    def _described(self, value: Any) -> Any:
        """Describe a value, or say which of the values that were met before it is."""
        if type(value) is tuple:
            return {"tuple": self._items(value)}
        if id(value) in self.met:
            return {"again": self.met[id(value)]}
        self.met[id(value)] = len(self.met)
        self.held.append(value)
        return self._describe_new(value)

    def _items(self, values: Any) -> list[Any]:
        """Describe values one after the other."""
        return [self.describe(item) for item in values]

    def _describe_new(self, value: Any) -> Any:
        """Describe what is met for the first time: code, a container, or an object."""
        if own := self.name_of_own(value):
            return {"is": own}
        if type(value) in self.kinds:
            return self.kinds[type(value)](value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, (set, frozenset)):
            return {"set": _sorted_items(value), "class": self.describe(type(value))}
        if is_of_library(value):
            return {"is": name_of(value)}
        return self._object(value)

    def _kinds(self) -> dict[type, Callable[[Any], Any]]:
        """Return how each kind of value is described, by its exact type."""
        kinds: dict[type, Callable[[Any], Any]] = {
            list: lambda value: {"list": self._items(value)},
            dict: self._dict,
            set: lambda value: {"set": _sorted_items(value)},
            frozenset: lambda value: {"frozenset": _sorted_items(value)},
            types.FunctionType: self._function,
            types.MethodType: lambda value: self._parts(value, "__func__", "__self__"),
            types.BuiltinFunctionType: self._builtin,
            functools.partial: lambda value: self._parts(value, "func", "args", "keywords"),
            staticmethod: lambda value: self._parts(value, "__func__"),
            classmethod: lambda value: self._parts(value, "__func__"),
            property: lambda value: self._parts(value, "fget", "fset", "fdel"),
            functools.cached_property: lambda value: self._parts(value, "func"),
            CACHING: lambda value: self._parts(value, "__wrapped__"),
            COMPILED: lambda value: self._parts(value, "__wrapped__"),
            jax.custom_jvp: lambda value: self._parts(value, "fun", "jvp"),
            jax.custom_vjp: lambda value: self._parts(value, "fun", "fwd", "bwd"),
            types.MappingProxyType: lambda value: {"proxy": self._dict(value)},
            types.MethodWrapperType: self._method_wrapper,
            weakref.WeakKeyDictionary: lambda value: {"weak": None},  # a cache
        }
        return kinds | dict.fromkeys(_LIBRARY_METHODS, _library_method)

    def _method_wrapper(self, value: types.MethodWrapperType) -> Any:
        return _library_method(value) | {"of": self.describe(value.__self__)}

    def _parts(self, value: Any, *names: str) -> Any:
        """Describe what stands at some names of a value, such as the function of a property."""
        parts = [self.describe(getattr(value, name)) for name in names]
        further = {}
        if isinstance(value, functools.partial) and vars(value):
            further = {"state": self.describe(vars(value))}
        return {type(value).__name__: parts} | further

    def _dict(self, value: Mapping) -> Any:
        return {"dict": [[self.describe(key), self.describe(value[key])] for key in value]}

    def _builtin(self, value: types.BuiltinFunctionType) -> Any:
        """Describe a compiled function by its name, and by the object that it is a method of."""
        of = value.__self__
        module = sys.modules.get(value.__module__ or "builtins")
        if not is_installed_module(module):
            raise NoSource(f"{name_of(value)}, which is compiled")
        if of is None or isinstance(of, types.ModuleType):
            return {"is": name_of(value)}
        return {"is": name_of(value), "of": self.describe(of)}

    # ---- functions ----

    def _function(self, function: types.FunctionType) -> Any:
        """Describe a function by its code, and by all that it reads."""
        if is_installed(function):
            return {"is": name_of(function)} | self._of_library(function)
        node = sources.node_of(function.__code__)
        description = {"code": sources.digest(node)} | self._closure(function)
        optional = {
            "defaults": function.__defaults__,
            "keywords": function.__kwdefaults__,
            "attributes": vars(function) or None,
        }
        for name, value in optional.items():
            if value:
                description[name] = self.describe(value)
        reached = {}
        for name, value in sorted(self._reached(function, node).items()):
            reached[name] = self._named(name, value)
        return description | ({"names": reached} if reached else {})

    def _of_library(self, function: types.FunctionType) -> dict[str, Any]:
        """Describe what a library's function was made with: an optimiser's numbers, for example."""
        registry = getattr(function, "registry", None)
        if isinstance(registry, types.MappingProxyType):  # of functools.singledispatch
            return {"registry": self.describe(dict(registry))}
        return self._closure(function)

    def _closure(self, function: types.FunctionType) -> dict[str, Any]:
        """Describe what a function keeps of the function that made it."""
        if not function.__closure__:
            return {}
        cells = {}
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__, strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not filled yet
                cells[name] = {"empty": True}
            else:
                cells[name] = self._named(name, value)
        return {"closure": cells}

    def _named(self, name: str, value: Any) -> Any:
        """Describe a value; its name stands in the reason where that is impossible."""
        try:
            return self.describe(value)
        except NoSource as error:
            raise NoSource(f"{name}: {error}" if str(error) else name) from None

    def _reached(self, function: types.FunctionType, node: ast.AST) -> dict[str, Any]:
        """Return the values of the global names that a function reads, as far as they are a user's.

        A name with dots is an attribute of a module.
        """
        names = sources.global_names(function.__code__)
        scope = function.__globals__
        reached = {}
        modules = {}
        for name in names:
            value = scope.get(name, vars(builtins).get(name))
            if name not in scope and _is_usual_builtin(value):
                continue
            if isinstance(value, types.ModuleType):
                modules[name] = value
            elif not _is_imported(function, name, value):
                reached[name] = value
        imported, modules_here = _imports_of(node, scope)
        reached |= imported
        modules |= modules_here
        return reached | _attributes_of_modules(node, modules)

    # ---- modules, classes, objects ----

    def _module(self, module: types.ModuleType) -> Any:
        """Describe a module as a value: of a user's, all that it holds."""
        if is_installed_module(module):
            return {"is": module.__name__}
        described = {}
        for name, value in sorted(vars(module).items()):
            is_code = isinstance(value, (types.FunctionType, type, types.ModuleType))
            is_imported = not is_code and is_of_library(value)
            if name not in _OF_MODULE and not is_imported:
                described[name] = self._named(name, value)
        return {"module": module.__name__, "names": described}

    def _class(self, cls: type) -> Any:
        """Describe a class by its bases, and by all that is written in it or was put into it."""
        if is_of_library(cls):
            return {"is": name_of(cls)}
        bases = [base for base in cls.__bases__ if base is not object]
        description: dict[str, Any] = {"class": cls.__name__, "bases": self._items(bases)}
        if type(cls) is not type:
            description["metaclass"] = self.describe(type(cls))
        attributes = {}
        for name, value in sorted(written_attributes(cls).items()):
            attributes[name] = self._named(name, value)
        description["attributes"] = attributes
        description["annotations"] = self._annotations(cls)
        if "__dataclass_fields__" in vars(cls):
            description["fields"] = [self._field(item) for item in dataclasses.fields(cls)]
            params = cls.__dataclass_params__
            description["dataclass"] = [params.eq, params.order, params.frozen, params.unsafe_hash]
        return description

    def _annotations(self, cls: type) -> list[Any]:
        described = []
        for name, annotation in inspect.get_annotations(cls).items():
            text = annotation
            if not isinstance(annotation, str):
                text = inspect.formatannotation(annotation)
            has_address = " at 0x" in text
            described.append([name, self._named(name, annotation) if has_address else text])
        return described

    def _field(self, item: dataclasses.Field) -> Any:
        flags = [item.init, item.compare, item.kw_only, item.repr]
        values = {"name": item.name, "flags": flags}
        if item.metadata:
            values["metadata"] = self._named(item.name, dict(item.metadata))
        for name in ("default", "default_factory"):
            value = getattr(item, name)
            if value is not dataclasses.MISSING:
                values[name] = self._named(item.name, value)
        return values

    def _object(self, value: Any) -> Any:
        """Describe an object by its class and its state, as pickle would write it."""
        if isinstance(value, enum.Enum):
            state = {name: item for name, item in vars(value).items() if name not in _OF_MEMBER}
            parts = [self.describe(type(value)), self.describe(value.value), self.describe(state)]
            return {"member": parts}
        reduce = copyreg.dispatch_table.get(type(value))
        reduced = reduce(value) if reduce else value.__reduce_ex__(2)
        if isinstance(reduced, str):
            state = getattr(value, "__dict__", None)
            if state is None and not _is_in_a_module(value, reduced):
                raise NoSource(f"{type(value).__name__}, made as the program runs")
            return {"named": reduced, "of": [self.describe(type(value)), self.describe(state)]}
        make, arguments, *rest = reduced
        state, items, pairs, *_ = [*rest, None, None, None]
        parts = [self.describe(type(value)), self.describe(make), self.describe(tuple(arguments))]
        parts.append(self.describe(without_cached(type(value), state) or None))
        for further in (items, pairs):
            parts.append(None if further is None else self._items(further))
        if isinstance(value, np.ndarray):  # of a class of its own
            parts.append(self.describe(getattr(value, "__dict__", None)))
        return {"object": parts}


def _simple(value: Any) -> Any:
    """Describe numbers, bytes and arrays; None for other values."""
    if type(value) is np.ndarray or isinstance(value, jax.Array):
        return {"array": array_digest(value)}
    if isinstance(value, np.generic):
        return {"scalar": array_digest(value)}
    if type(value) is complex:
        return {"complex": [value.real, value.imag]}
    if type(value) in (bytes, bytearray):
        return {type(value).__name__: value.hex()}
    return None


def _is_in_a_module(value: Any, name: str) -> bool:
    """Tell whether an object stands under its name in the module of its class, as sin in numpy."""
    for module_name in (getattr(value, "__module__", None), type(value).__module__):
        if getattr(sys.modules.get(module_name), name, None) is value:
            return True
    return False


def _sorted_items(values: Any) -> list[str]:
    """Describe the items of a set, which must be plain values, in an order of their own."""
    return sorted(json.dumps(_plain_item(item)) for item in values)


def _plain_item(item: Any) -> Any:
    """Describe a number, a text, or a tuple of such."""
    if item is None or type(item) in (bool, float, str):
        return item
    if type(item) is int:
        return hex(item)
    if type(item) in (tuple, frozenset):
        items = [json.dumps(_plain_item(inner)) for inner in item]
        return [type(item).__name__, items if type(item) is tuple else sorted(items)]
    if type(item) is bytes:
        return {"bytes": item.hex()}
    raise NoSource(f"a set that holds {type(item).__name__}, in no order")


def _library_method(value: Any) -> Any:
    """Describe a method that is written in C, such as float.__add__, by its name."""
    of = getattr(value, "__objclass__", None) or type(value.__self__)
    return {"is": f"{of.__module__}.{of.__qualname__}.{value.__name__}"}


def without_cached(cls: type, state: Any) -> Any:
    """Leave out of an object's state what its cached properties keep."""
    if not isinstance(state, dict):
        return state
    kinds = {name: inspect.getattr_static(cls, name, None) for name in state}
    cached = [name for name, kind in kinds.items() if isinstance(kind, functools.cached_property)]
    return {name: value for name, value in state.items() if name not in cached}


def written_attributes(cls: type) -> dict[str, Any]:
    """Return what is written in a class, or was put into it; not what Python generates."""
    attributes = {}
    for name, value in vars(cls).items():
        is_of_enum = isinstance(cls, enum.EnumMeta) and name in _OF_ENUM
        is_special = name in _GENERATED_NAMES or is_of_enum
        if not is_special and not _is_generated(cls, name, value):
            attributes[name] = value
    return attributes


def _is_generated(cls: type, name: str, value: Any) -> bool:
    """Tell whether Python or the decorator dataclass wrote an attribute of a class."""
    if isinstance(value, _SLOTS):
        return True
    if "_fields" in vars(cls) and name in (*_OF_NAMED_TUPLE, "_fields", "_field_defaults"):
        return True
    if type(value).__name__ == "_tuplegetter":
        return True
    if name == "__replace__" and is_installed(value):  # since Python 3.13
        return True
    if "__dataclass_fields__" not in vars(cls):
        return False
    if name == "__hash__" and value is None:
        return True
    function = getattr(value, "__wrapped__", value)  # __repr__ is wrapped
    code = getattr(function, "__code__", None)
    return code is not None and code.co_qualname.startswith("__create_fn__")


# ---- names ----


def _is_usual_builtin(value: Any) -> bool:
    """Tell whether a name that no module defines is one of Python's own."""
    is_constant = value is None or value is NotImplemented or value is ... or value is __debug__
    is_code = isinstance(value, (type, types.BuiltinFunctionType)) and is_installed(value)
    return is_constant or is_code or type(value).__module__ in ("_sitebuiltins", "IPython")


def _is_imported(function: types.FunctionType, name: str, value: Any) -> bool:
    """Tell whether a global object was imported, under some name, from an installed package."""
    if isinstance(value, (types.FunctionType, type)):
        return False  # says itself where it is from
    imports = sources.imports(function.__code__.co_filename)
    for module_name, attribute in imports.get(name, ()):
        module = sys.modules.get(module_name)
        is_there = getattr(module, attribute, None) is value
        if is_there and is_installed_module(module):
            return True
    return False


def _imports_of(
    node: ast.AST, scope: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, types.ModuleType]]:
    """Return what a function imports as it runs: values of a user's modules, and modules."""
    values: dict[str, Any] = {}
    modules: dict[str, types.ModuleType] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            for alias in part.names:
                modules |= _module_by_name(alias)
        elif isinstance(part, ast.ImportFrom):
            dots = "." * part.level
            name = f"{dots}{part.module or ''}"
            module = users_module(name, scope.get("__package__"))
            for alias in part.names if module else ():
                values[f"{name}:{alias.name}"] = _attribute(module, alias.name)
    return values, modules


def _attribute(module: types.ModuleType, name: str) -> Any:
    """Return what `from module import name` gives; the module itself for a star."""
    if name == "*":
        return module
    if hasattr(module, name):
        return getattr(module, name)
    return users_module(f"{module.__name__}.{name}")


def _module_by_name(alias: ast.alias) -> dict[str, types.ModuleType]:
    """Return a user's module by the name under which `import` binds it; {} for a library's."""
    module = users_module(alias.name)
    if module is None:
        return {}
    if alias.asname:
        return {alias.asname: module}
    top, _, _ = alias.name.partition(".")
    return {top: sys.modules[top]}


def _attributes_of_modules(node: ast.AST, modules: dict[str, types.ModuleType]) -> dict[str, Any]:
    """Return what a function reads of modules: attributes, and modules that are used as values."""
    reached: dict[str, Any] = {}
    for first, *attributes in sources.chains(node, modules.keys()):
        owner: Any = None
        value: Any = modules[first]
        path = first
        for name in attributes:
            if not isinstance(value, types.ModuleType):
                break
            owner = value
            value = getattr(owner, name, None)
            path = f"{path}.{name}"
        if _is_users(value, owner):
            reached[path] = value
    return reached


def _is_users(value: Any, owner: types.ModuleType | None) -> bool:
    """Tell whether an attribute of a module, or a module, is a user's; owner: None for a module."""
    if isinstance(value, types.ModuleType):
        return not is_installed_module(value)
    if owner is None or not is_installed_module(owner):
        return value is not None
    # put into a library: a user's code, or a number
    if type(value) in (bool, int, float, complex, str):
        return True
    behind = value
    while type(behind) in (functools.partial, CACHING, COMPILED):
        behind = behind.func if type(behind) is functools.partial else behind.__wrapped__
    is_code = isinstance(behind, (types.FunctionType, type))
    return is_code and not is_installed(behind)

"""Is the project's code that computes still the code whose numbers are known?

sources.txt lists every function, class and constant of the project that jobs reach, each with a
hash. What was edited on disk, or replaced in this process, joins every key, until NUMERICS rises or
`tests/same_bits.py --renew` has computed everything with it and found the same bits.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from foundation.base.places import PACKAGES, ROOT
from foundation.engine import sources
from foundation.engine.code import Walk, digest, written_attributes
from foundation.engine.sources import NoSource

MANIFEST = Path(__file__).with_name("sources.txt")
CHECKS = "foundation.base."  # modules that check and store, and compute no number
# tables to which users add what jobs then hold as fields of their own
REGISTRIES = ("METHODS", "POISONS", "MEASURES", "FAMILIES", "CONTENDERS", "ESTIMATORS")


class Manifest(NamedTuple):
    """What sources.txt says."""

    numerics: int  # NUMERICS when it was written
    files: dict[str, str]  # hash of the text, by path below ROOT
    code: dict[str, str]  # hash of the syntax tree, by module and name
    values: dict[str, str]  # hash of a constant's value, by module and name
    # what a name stands for that a module imports from another one of ours: module and name
    imports: dict[str, str]


def read_manifest() -> Manifest:
    """Read sources.txt: lines of a kind, a hash and a name."""
    kinds = ("numerics", "file", "code", "value", "import")
    parts: dict[str, dict[str, str]] = {}
    for kind in kinds:
        parts[kind] = {}
    for line in MANIFEST.read_text().splitlines():
        kind, hash_, name = line.split(" ", 2)
        parts[kind][name] = hash_
    numerics, *others = parts.values()
    return Manifest(int(numerics["NUMERICS"]), *others)


KNOWN = read_manifest()


# ---- names ----


def module_of(path: Path) -> str:
    """Return the name under which a file of the project is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@functools.lru_cache(maxsize=4096)
def _module_of_file(filename: str) -> str:
    """Return the project's module that a file holds, "" for other files."""
    path = Path(filename).resolve()
    if not path.is_relative_to(ROOT) or path.suffix != ".py":
        return ""
    top, *below = path.relative_to(ROOT).parts  # the folder may hold tests and packages, too
    is_own = top in PACKAGES if below else True
    return module_of(path) if is_own else ""


def place_of(code: Any) -> tuple[str, str]:
    """Return the project's module, and the qualified name there, of a function or class.

    Both are "" for other code.
    """
    if isinstance(code, types.FunctionType):
        return _module_of_file(code.__code__.co_filename), code.__code__.co_qualname
    if isinstance(code, type):
        module = sys.modules.get(code.__module__)
        return _module_of_file(getattr(module, "__file__", None) or ""), code.__qualname__
    return "", ""


def name_of_own(code: Any, names: Collection[str] = KNOWN.code) -> str | None:
    """Return the name of the project's code that the manifest vouches for; None for other values.

    names: those of the manifest.
    """
    module, qualified = place_of(code)
    if not module or "<locals>" in qualified:
        return None
    top, _, _ = qualified.partition(".")
    is_known = module.startswith(CHECKS) or f"{module}.{top}" in names
    return f"{module}.{qualified}" if is_known else None


def content_hash(value: Any, names: Collection[str] = KNOWN.code) -> str:
    """Hash the description of a value, in which the project's code counts by its name.

    names: of the code that the manifest vouches for. Raises NoSource where there is no description.
    """
    name_of = functools.partial(name_of_own, names=names)
    return digest(Walk(name_of).describe(value))


# ---- what differs ----


def changes(known: Manifest = KNOWN) -> dict[str, str]:
    """Hash each function, class and constant that is not as the manifest says, by name.

    Raises NoSource where one that was replaced has no content to hash.
    """
    different = edited(known)
    for name, value in replaced(known):
        try:
            different[name] = content_hash(value)
        except NoSource as error:
            raise NoSource(f"{name}, which was replaced: {error}") from None
    return different


def edited(known: Manifest) -> dict[str, str]:
    """Hash what was edited on disk, as it is now, by name; "" for what is gone.

    Where code of a module was edited, it may call what is new in its file: all that the manifest
    does not list there is hashed with it, by the module's name.
    """
    different = {}
    for file, hash_ in known.files.items():
        path = ROOT / file
        if hash_of_file(path) == hash_:
            continue
        module = module_of(path)
        now = definitions(path)
        listed = {}
        for name, hash_of_code in known.code.items():
            owner, _, top = name.rpartition(".")
            if owner == module:
                listed[top] = hash_of_code
        of_module = {}
        for top, hash_of_code in listed.items():
            hash_now = now.get(top, "")
            if hash_now != hash_of_code:
                of_module[f"{module}.{top}"] = hash_now
        if of_module:
            unlisted = now.keys() - listed.keys()
            different[module] = digest({top: now[top] for top in unlisted})
        different |= of_module
    return different


def hash_of_file(path: Path) -> str:
    """Hash a file's bytes; "" where it is missing."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    return hashlib.sha256(content).hexdigest()[:16]


def definitions(path: Path) -> dict[str, str]:
    """Hash what each name of a module is bound to: definitions, assignments and imports.

    STATEMENTS: all statements that bind no name. {} for a broken file.
    """
    try:
        return _definitions_of(path.read_text())
    except (OSError, SyntaxError):
        return {}


STATEMENTS = "<statements>"


@functools.lru_cache(maxsize=256)
def _definitions_of(text: str) -> dict[str, str]:
    hashes: dict[str, list[str]] = {STATEMENTS: []}
    for statement in _statements(ast.parse(text).body):
        for name, part in _bindings(statement):
            hashes.setdefault(name, []).append(sources.digest(part))
    return {name: digest(of_name) for name, of_name in hashes.items()}


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a module's statements, those within if and try in place of these."""
    for statement in body:
        if isinstance(statement, (ast.If, ast.Try)):
            inner = [*statement.body, *statement.orelse, *getattr(statement, "finalbody", ())]
            yield from _statements(inner)
        else:
            yield statement


def _bindings(statement: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    """Yield each name that a statement binds, or STATEMENTS, with what is hashed for it."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name, statement
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        for alias in statement.names:
            module = getattr(statement, "module", None)
            yield alias.asname or alias.name, ast.alias(f"{module}:{alias.name}")
    elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = getattr(statement, "targets", None) or [statement.target]
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name):
                    yield part.id, statement
    elif not _is_docstring(statement):
        yield STATEMENTS, statement


def _is_docstring(statement: ast.stmt) -> bool:
    """Tell whether a statement is a text that stands alone."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


# ---- what was replaced in this process ----


def replaced(known: Manifest = KNOWN) -> Iterator[tuple[str, Any]]:
    """Yield what is another object in this process than in the project's files: name and object."""
    for name in known.code:
        owner, _, top = name.rpartition(".")
        module = sys.modules.get(owner)
        is_there = module is not None and top in vars(module)
        if not is_there or top in REGISTRIES or name in known.imports:
            continue  # not imported here, or being imported
        for path, value in parts_of(name, vars(module)[top]):
            expected = known.values.get(path, "")
            if expected != UNKNOWN and hash_of(value) != expected:
                yield path, value
    yield from _replaced_imports(known)


def parts_of(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values that say whether code is as it was written, by name.

    Of a function where it was written, its defaults; of a class, the names of its attributes and
    the parts of each; all else itself. name: of the module and in it.
    """
    is_in_place = ".".join(place_of(value)) == name
    if isinstance(value, types.FunctionType) and is_in_place:
        for attribute in ("__defaults__", "__kwdefaults__"):
            if getattr(value, attribute):
                yield f"{name}.{attribute}", getattr(value, attribute)
    elif isinstance(value, type) and is_in_place:
        attributes = written_attributes(value)
        yield f"{name}.*", sorted(attributes)
        made = vars(value).get("__init__")  # by dataclass, with the fields' defaults
        if "__init__" not in attributes and getattr(made, "__defaults__", None):
            yield f"{name}.__init__.__defaults__", made.__defaults__
        for attribute, item in attributes.items():
            yield from parts_of(f"{name}.{attribute}", item)
    else:
        yield name, value


def hash_of(value: Any, names: Collection[str] = KNOWN.code) -> str:
    """Hash a value's content; UNKNOWN for what has none to hash. names: as in content_hash."""
    try:
        return content_hash(value, names)
    except NoSource:
        return UNKNOWN


UNKNOWN = "-"  # stands for the hash of a cache, and of a constant without content to hash


def _replaced_imports(known: Manifest) -> Iterator[tuple[str, Any]]:
    """Yield names that stand for other objects than those that the module imports."""
    for name, origin in known.imports.items():
        owner, _, alias = name.rpartition(".")
        module = sys.modules.get(owner)
        if module is None or alias not in vars(module):
            continue
        value = vars(module)[alias]
        of_origin, _, attribute = origin.rpartition(".")
        source = sys.modules.get(of_origin)
        expected = sys.modules.get(origin) or getattr(source, attribute, value)
        if value is not expected:
            yield name, value


def replace(name: str, value: Any) -> None:
    """Put an object in place of the project's own; name: as `replaced` yields it."""
    owner, _, attribute = name.rpartition(".")
    parent = _at(owner)
    if attribute == "*":  # the names of a class's attributes
        for gone in written_attributes(parent).keys() - set(value):
            delattr(parent, gone)
    else:
        setattr(parent, attribute, value)


def _at(name: str) -> Any:
    """Return a module of the project, or what stands at a name within one."""
    try:
        return import_module(name)
    except ImportError:
        owner, _, attribute = name.rpartition(".")
        return getattr(_at(owner), attribute)


# ---- what jobs reach ----


class Reach(Walk):
    """Describe the project's code like anyone's, and note what of it is reached."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()  # of functions, classes and constants, with their module
        self.imports: dict[str, str] = {}  # names of a module, and what they stand for

    def _describe_new(self, value: Any) -> Any:
        module, qualified = place_of(value)
        if module.startswith(CHECKS):
            return None
        top, _, _ = qualified.partition(".")
        if module and not top.startswith("<"):  # a lambda counts with the constant that holds it
            self.names.add(f"{module}.{top}")
        return super()._describe_new(value)

    def _named(self, name: str, value: Any) -> Any:
        try:
            return super()._named(name, value)
        except NoSource:  # counts by where it stands alone
            return None

    def _reached(self, function: types.FunctionType, node: ast.AST) -> dict[str, Any]:
        reached = super()._reached(function, node)
        scope = function.__globals__
        here = _module_of_file(scope.get("__file__") or "")
        for name in reached:
            alias, _, attribute = name.replace(":", ".").rpartition(".")
            owner = here
            if alias:
                module = scope.get(alias) or sys.modules.get(alias)
                owner = _module_of_file(getattr(module, "__file__", None) or "")
            place = _defined_at(owner, attribute)
            if place and not place.startswith(CHECKS):
                self.names.add(place)
        if here and not here.startswith(CHECKS):
            self._note_imports(here, function)
        return reached

    def _note_imports(self, here: str, function: types.FunctionType) -> None:
        """Note the names that a function reads and its module imports, with what they stand for."""
        scope = function.__globals__
        imports = sources.imports(function.__code__.co_filename)
        for name in sources.global_names(function.__code__):
            value = scope.get(name)
            if isinstance(value, types.ModuleType):
                self.imports[f"{here}.{name}"] = value.__name__
            for module, attribute in imports.get(name, ()):
                self.imports[f"{here}.{name}"] = f"{module}.{attribute}"


def _defined_at(module: str, name: str) -> str:
    """Return "module.name" of the definition of a name that a module uses; "" for none of ours."""
    if not module:
        return ""
    path = Path(sys.modules[module].__file__)
    if name in definitions(path):
        return f"{module}.{name}"
    for other, attribute in sources.imports(str(path)).get(name, ()):
        file = getattr(sys.modules.get(other), "__file__", None) or ""
        return _defined_at(_module_of_file(file), attribute)
    return ""


def manifest_lines(roots: Iterable[Any], numerics: int) -> list[str]:
    """Return the lines of sources.txt for the code as it is now; roots: what jobs start from."""
    reach = Reach()
    for root in roots:
        reach.describe(root)
    names = {*reach.names, *reach.imports}
    modules = {name.rpartition(".")[0] for name in names}
    names |= {f"{module}.{STATEMENTS}" for module in modules}
    lines = []
    defined = {}  # hashes by module
    for module in modules:
        path = Path(sys.modules[module].__file__)
        defined[module] = definitions(path)
        lines.append(f"file {hash_of_file(path)} {path.relative_to(ROOT).as_posix()}")
    for name in names:
        module, _, top = name.rpartition(".")
        lines.append(f"code {defined[module][top]} {name}")
    for name in reach.names:
        lines += _value_lines(name, names)
    for name, origin in reach.imports.items():
        lines.append(f"import {origin} {name}")
    return [f"numerics {numerics} NUMERICS", *sorted(lines)]


def _value_lines(name: str, names: Collection[str]) -> list[str]:
    """Return the lines of the parts of a function, class or constant; names: of the manifest."""
    module, _, top = name.rpartition(".")
    if top in REGISTRIES:
        return []
    lines = []
    for path, value in parts_of(name, vars(sys.modules[module])[top]):
        _, _, attribute = path.rpartition(".")
        is_private = attribute.startswith("_") and not attribute.startswith("__")
        is_cache = is_private and isinstance(value, MUTABLE)
        hash_ = UNKNOWN if is_cache else hash_of(value, names)
        lines.append(f"value {hash_} {path}")
    return lines


MUTABLE = (dict, list, set, deque)

"""Read the command line of a script, and refuse what is wrong in it in one line."""

from __future__ import annotations

import argparse
import importlib.util
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import ModuleType

import cloudpickle
import tyro

from foundation.base.checks import BadInput, first_line, refusing, require
from foundation.engine.runner import C, one_line_errors, with_studies
from foundation.engine.study import Study


def studies_of_file(path: Path) -> list[Study]:
    """Run a user's Python file and return the studies that it defines, in its order.

    The file becomes a module that is pickled by value: the processes that compute need not find it.
    Raises BadInput where there is no such file, it cannot be run, it defines no study, or its name
    is that of another module.
    """
    allowed = "a Python file that defines a Study"
    require(path.suffix == ".py" and path.is_file(), "--study", path, allowed)
    module = sys.modules.get(path.stem)
    if getattr(module, "__file__", None) != str(path.resolve()):
        is_free = module is None and not importlib.util.find_spec(path.stem)
        require(is_free, "--study", path, "a name that no module has")
        module = _run_as_module(path)
    studies = [value for value in vars(module).values() if isinstance(value, Study)]
    require(bool(studies), "--study", path, allowed)
    return studies


def _run_as_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise BadInput(f"--study: {path} cannot be run ({reason})") from error
    cloudpickle.register_pickle_by_value(module)
    return module


def parse_command_line(
    presets: dict[str, C], studies: Sequence[Study], description: str
) -> tuple[C, tuple[Study, ...]]:
    """Read the configuration from the command line; return it with the studies it knows.

    Flags that are not given have the values of the preset. The studies are those of the script and
    of the files named by --study. What is wrong ends the process with one line.
    """
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default="paper")
    chooser.add_argument("--study", nargs="*", type=Path, default=[])
    given, _ = chooser.parse_known_args()
    default = presets.get(given.preset, presets["paper"])  # tyro refuses unknown names
    with one_line_errors():
        further = [study for path in given.study for study in studies_of_file(path)]
        studies = (*studies, *further)
        names = [study.name for study in studies]
        twice = {name for name in names if names.count(name) > 1}
        given_twice = ", ".join(sorted(twice))
        require(not twice, "--study", given_twice, "studies of names that no other has")
        try:
            default = with_studies(default, studies)
        except TypeError as error:
            raise BadInput(f"--study: {error}") from None
    before = refusing.set(_refusals_by_flag)
    try:
        with _one_line_refusals():
            config = tyro.cli(
                type(default),
                default=default,
                description=description,
                config=(tyro.conf.SuppressFixed, tyro.conf.HelptextFromCommentsOff),
            )
            return config, studies
    finally:
        refusing.reset(before)


@contextmanager
def _refusals_by_flag() -> Iterator[None]:
    """Where a value is refused, end the process with one line that names its flag in full.

    A refusal names a field, such as learning_rate; the line names the flag that the user typed,
    such as --mlp.sweep.learning-rate, if just one flag ends with that field.
    """
    with one_line_errors():
        try:
            yield
        except BadInput as error:
            name, _, rest = str(error).partition(": ")
            flags = [word.partition("=")[0] for word in sys.argv]
            written = [flag for flag in flags if flag.endswith(f".{name}")]
            message = str(error)
            if len(written) == 1:
                message = f"{written[0]}: {rest}"
            raise BadInput(message) from None


@contextmanager
def _one_line_refusals() -> Iterator[None]:
    """Print what tyro says of a command line that it cannot read in one line, not as a box."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except SystemExit as end:
        message = _out_of_its_box(said.getvalue())
        if end.code and message:
            is_marked = message.startswith("error: ")
            print(message if is_marked else f"error: {message}", file=sys.stderr)
        raise
    print(said.getvalue(), end="", file=sys.stderr)


BAD_VALUE = re.compile(
    r"Error parsing (--\S+): (.*?) Argument helptext: \S+ (\[.*?\]\]|\{.*?\}|\S+)+ (.*)"
)


def _out_of_its_box(text: str) -> str:
    """The text of tyro's box in one line: which flag, what was given, what is allowed."""
    message = " ".join(re.sub(r"[─-╿]", " ", text).split())
    message = re.sub(r" For full helptext.*", "; see --help", message)
    parsing = BAD_VALUE.search(message)
    if parsing:
        flag, reason, allowed, help_text = parsing.groups()
        quoted = re.findall(r"'([^']*)'", reason)
        got = " ".join(quoted) or reason
        message = f"{flag}: got {got}, allowed: {allowed}: {help_text}"
    kinds = r"^(Unrecognized options|Invalid choice|Missing \S+|Parsing error) "
    return re.sub(kinds, "", message)

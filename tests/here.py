"""Jobs and scripts that are run where they are asked for, in the process of the tests."""

from __future__ import annotations

import io
import os
import runpy
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from foundation.engine import jobs
from foundation.measures import forgetting
from poison_unlearn import METHODS, POISONS
from studies.families import FAMILIES

TABLES = (METHODS, POISONS, forgetting.MEASURES, FAMILIES)  # to which a script adds its own


class InThisProcess:
    """What stands for a pool of one process: it computes at once, here, where JAX is and what it
    has compiled."""

    def __init__(self, *_, initargs, **__):
        jobs._datasets.update(initargs[0].datasets)

    def submit(self, function, *arguments) -> Future:
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_) -> None:
        pass


@contextmanager
def tables_as_before() -> Iterator[None]:
    """What the block adds to the tables of methods, poisons, measures and models is taken out."""
    before = [dict(table) for table in TABLES]
    try:
        yield
    finally:
        for table, content in zip(TABLES, before, strict=True):
            table.clear()
            table.update(content)


def run_here(path: Path) -> str:
    """Run a script in this process as `python path` would in its folder; returns what it prints."""
    said = io.StringIO()
    folder, argv, search = Path.cwd(), sys.argv, list(sys.path)
    os.chdir(path.parent)
    sys.argv = [str(path)]
    try:
        with tables_as_before(), redirect_stdout(said):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        os.chdir(folder)
        sys.argv, sys.path[:] = argv, search
    return said.getvalue()

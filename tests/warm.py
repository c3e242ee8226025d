"""Processes of Python without their start: forked from one that has imported the libraries.

The tests start some three hundred processes, each of which would import JAX, pandas and matplotlib
for two to four seconds. After `install`, this process asks a warm one, of a single thread, for a
fork of it in place of a start; each fork has a warm one of its own, for what it starts itself.
Nothing of the project is in them: a fork imports that anew. The processes that run tests side by
side are such forks themselves.

What a library reads while it is imported is seen to: JAX's variables are given to it again, and
where the environment differs in those of another library, or of Python, a process is started as
ever. So it is with another program (taskset), with options of Python, and on a system that is no
Linux.
"""

from __future__ import annotations

import _posixsubprocess
import atexit
import ctypes
import fcntl
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = (  # noqa: SIM905 - one would not read them in a column
    "jax optax numpy xarray pandas h5netcdf safetensors.numpy loky tqdm dask.array distributed "
    "scipy.stats scipy.optimize sklearn.linear_model matplotlib.pyplot "
    "matplotlib.backends.backend_agg seaborn"
).split()
# with -m
MODULES = ("loky.backend.popen_loky_posix", "joblib.externals.loky.backend.popen_loky_posix")
MODULES += ("distributed.cli.dask_worker", "distributed.cli.dask_scheduler", "pytest")
# in the environment of a process that is to be started as ever: another one of Python's
COLD = {"PYTHONCOLD": "1"}
READ_ON_IMPORT = ("PYTHON", "LC_", "LANG", "MPL", "DASK_", "LD_")
# all forks have one seed, which is what Dask asks for with it
GIVEN_LATER = ("PYTHONPATH", "PYTHONHASHSEED")
# of Linux's prctl; of a subreaper, orphans that descend from it are children
SET_NAME, SET_CHILD_SUBREAPER = (15, 36)
HIGH = 1000  # above all file descriptors that a process of the tests has

system = ctypes.CDLL(None)
# how Python starts a process, in subprocess, multiprocessing and loky
cold_start = _posixsubprocess.fork_exec


class Start(NamedTuple):
    """The arguments of `_posixsubprocess.fork_exec`, in Python 3.11 to 3.13."""

    arguments: Sequence[str | bytes]
    executables: Sequence[str | bytes]
    close_fds: bool
    kept: tuple[int, ...]
    folder: str | None
    environment: list[bytes] | None
    stdin: int
    stdin_ours: int
    stdout_ours: int
    stdout: int
    stderr_ours: int
    stderr: int
    error_ours: int
    error: int
    restore_signals: bool
    new_session: bool
    group: int
    gid: Any
    groups: Any
    uid: Any
    umask: int
    before: Any
    vfork: bool

    def words(self) -> list[str]:
        """The command, without those options of Python that this process has as well, and without
        -u: xdist flushes."""
        words = [os.fsdecode(word) for word in self.arguments]
        for options in (subprocess._args_from_interpreter_flags(), ["-u"]):
            if options and words[1 : 1 + len(options)] == options:
                del words[1 : 1 + len(options)]
        return words

    def variables(self) -> dict[str, str]:
        if self.environment is None:
            return dict(os.environ)
        return dict(os.fsdecode(each).split("=", 1) for each in self.environment)

    def descriptors(self) -> dict[int, int]:
        """This process's file descriptors, by their number in the other."""
        streams = {0: self.stdin, 1: self.stdout, 2: self.stderr}
        kept = {fd: fd for fd in self.kept if fd not in (*streams, self.error)}
        return {number: number if fd == -1 else fd for number, fd in streams.items()} | kept

    def is_plain(self) -> bool:
        """Whether a fork can stand for it."""
        usual = (self.group, self.gid, self.groups, self.uid, self.umask, self.before)
        words = self.words()
        plain = self.close_fds and usual == (-1, None, None, None, -1, None)
        return (
            plain
            and words[0] == sys.executable
            and len(words) > 1
            and _is_plain_command(*words[1:])
        )


def _is_plain_command(first: str, second: str = "", *_: str) -> bool:
    if first == "-c":
        return "resource_tracker" not in second  # it imports nothing
    return second in MODULES if first == "-m" else first.endswith(".py")


# ---- the one that asks ----


def install() -> None:
    """Have this process ask for forks from here on, where the system knows them; and bury what its
    processes leave."""
    # else this process is a fork, and asks already
    if not isinstance(cold_start, types.FunctionType):
        here = sys.platform.startswith("linux") and sys.version_info < (3, 14)
        if not here or system.prctl(SET_CHILD_SUBREAPER, 1):  # 0: it can be done
            return
        _warm_one()
    threading.Thread(
        target=_bury_orphans, args=(_posixsubprocess.fork_exec.started,), daemon=True
    ).start()


def _warm_one() -> None:
    """Start the process that forks, and ask it from here on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    bare = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("JAX_", "XLA_", "PYTHONPATH"))
    }
    pipes = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "pass_fds": [theirs.fileno()],
    }
    command = [sys.executable, __file__, str(theirs.fileno())]
    warm = subprocess.Popen(command, env=bare | {"OPENBLAS_NUM_THREADS": "1"}, **pipes)
    theirs.close()
    _ask(ours, _on_import(bare)).add(warm.pid)


def _on_import(environment: dict[str, str]) -> dict[str, str]:
    """What libraries and Python read as they start."""
    return {
        name: text
        for name, text in environment.items()
        if name.startswith(READ_ON_IMPORT) and name not in GIVEN_LATER
    }


def _ask(channel: socket.socket, on_import: dict[str, str]) -> set[int]:
    """Ask the process at the other end for forks; the set of those that this one starts from here
    on."""
    started, asked = set(), threading.Lock()

    def fork_exec(*arguments) -> int:
        start = Start(*arguments)
        variables = start.variables()
        home = os.access(variables.get("HOME", ""), os.W_OK)  # else matplotlib says so
        if start.is_plain() and home and _on_import(variables) == on_import:
            descriptors = start.descriptors()
            request = [
                start.words(),
                str(Path(start.folder or ".").absolute()),
                variables,
                start.new_session,
                list(descriptors),
            ]
            with asked:
                socket.send_fds(channel, [json.dumps(request).encode()], list(descriptors.values()))
                pid = int(channel.recv(32))
        else:
            pid = cold_start(*arguments)
        started.add(pid)
        return pid

    fork_exec.started = started
    _posixsubprocess.fork_exec = subprocess._fork_exec = fork_exec
    subprocess._USE_POSIX_SPAWN = False  # else Python 3.13 starts most processes in another way
    return started


def _bury_orphans(started: set[int]) -> None:
    """What a killed process leaves comes to this one, in place of the system's first, and ends
    here."""
    while True:
        time.sleep(1)
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError, IndexError):
                pid, (state, parent) = (
                    int(status.parent.name),
                    status.read_text().rpartition(")")[2].split()[:2],
                )
                if (state, int(parent)) == ("Z", os.getpid()) and pid not in started:
                    os.waitpid(pid, os.WNOHANG)


# ---- the warm one, and its forks ----


def _serve(channel: socket.socket) -> tuple[list, list[int]]:
    """Fork on demand; returns in a fork, with the request and the file descriptors that came with
    it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a group
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 18, 250)
        if not message:
            os._exit(0)
        ours, theirs = os.pipe()
        between = os.fork()
        if not between:
            between = os.getpid()
            child = os.fork()
            if child:
                os.write(theirs, str(child).encode())
                os._exit(0)
            # an orphan from then on: the one that asked becomes its parent
            while os.getppid() == between:
                time.sleep(0.001)
            for fd in (ours, theirs):
                os.close(fd)
            channel.close()
            return json.loads(message), descriptors
        os.waitpid(between, 0)
        channel.send(os.read(ours, 32))
        for fd in (ours, theirs, *descriptors):
            os.close(fd)


def _become(request: list, descriptors: list[int], on_import: dict[str, str]) -> list[str]:
    """Be the process that was asked for, up to its first statement; its command."""
    words, folder, variables, new_session, numbers = request
    if new_session:
        os.setsid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        ours.close()
        for fd in descriptors:
            os.close(fd)
        return _become(*_serve(theirs), on_import)
    theirs.close()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH) for fd in (ours.detach(), *descriptors)]
    os.closerange(3, HIGH)
    for fd, number in zip(high[1:], numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    system.prctl(SET_NAME, words[2].rpartition(".")[2].encode() if words[1] == "-m" else b"python")
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    _tell_jax()
    system.prctl(SET_CHILD_SUBREAPER, 1)
    _ask(socket.socket(fileno=high[0]), on_import)
    return words[1:]


def _tell_jax() -> None:
    """Give JAX the variables that it has read in the warm process, where they were not set."""
    import jax

    for variable, text in os.environ.items():
        name = variable.lower()
        if variable.startswith("JAX_") and name in jax.config.values:
            number = isinstance(jax.config.values[name], bool | int | float)
            jax.config.update(
                name, type(jax.config.values[name])(json.loads(text.lower())) if number else text
            )


def _run(words: list[str]) -> None:
    """What Python does with its command line."""
    first = {"-c": "", "-m": str(Path.cwd())}.get(words[0], str(Path(words[0]).resolve().parent))
    sys.path[:0] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["-c", *words[2:]] if words[0] == "-c" else words[words[0] == "-m" :]
    if words[0] == "-m":
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    source, name = (
        (words[1], "<string>") if words[0] == "-c" else (Path(words[0]).read_text(), words[0])
    )
    if words[0] != "-c":
        main.__file__ = words[0]
    exec(compile(source, name, "exec"), main.__dict__)


def _leave(code: int | str | None) -> None:
    """End as Python does, but without taking down, one by one, all objects of the libraries."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    on_import = _on_import(dict(os.environ))
    sys.path.pop(0)  # this folder
    for library in LIBRARIES:
        with suppress(ImportError):
            import_module(library)
    gc.collect()
    gc.freeze()
    code = 0
    try:
        _run(_become(*_serve(socket.socket(fileno=int(sys.argv[1]))), on_import))
    except SystemExit as end:
        code = end.code
    _leave(code)

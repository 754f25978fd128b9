"""The tier of each test: `fast` (no server, no process), `server`, or `system` (everything in tests/system).

A test is fast unless its own code, or the code that it uses from tests/ and scripts/, names something that starts a
process. `only_fast` finds the rest: a fast test that starts a process fails.
"""

from __future__ import annotations

import _posixsubprocess
import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import cache
from inspect import unwrap
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NoReturn

import pytest

SYSTEM = Path(__file__).parents[1] / "system"
TIERS = ("system", "server", "fast")
"""In the order in which they run: slow tests first, so that no test process is left alone with one at the end."""

_READ = (SYSTEM.parent, SYSTEM.parents[1] / "scripts")
"""Folders whose code is analysed."""

_OF_MODULES = {
    "subprocess": {"Popen", "run", "call", "check_call", "check_output"},
    "multiprocessing": {"Process", "get_context"},
    "os": {"fork", "forkpty", "posix_spawn", "system"},
    "pty": {"fork", "spawn"},
    "psutil": {"Popen"},
    "multiprocess.resource_tracker": {"ensure_running"},
}
"""Names that start a process, by foreign module."""

_OF_OURS = {"open_embedded", "EmbeddedServer", "LocalAgents", "ForkServer", "Processes"}
"""Functions and classes of ours that start processes."""

_AUDITED = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "pty.spawn"}


def tier_of(item: pytest.Function) -> str:
    """The name of the item's tier, which is also its marker."""
    if SYSTEM in item.path.parents:
        return "system"
    found = item._fixtureinfo.name2fixturedefs.values()
    used = [item.function, *(definition.func for definitions in found for definition in definitions)]
    if hasattr(item, "callspec"):
        used += [value for value in item.callspec.params.values() if callable(value)]
    return "server" if any(map(_starts_processes, used)) else "fast"


_known: dict[object, bool] = {}


def _starts_processes(thing: Any) -> bool:
    if isinstance(thing, MethodType):
        thing = thing.__func__
    if hasattr(thing, "__wrapped__"):
        thing = unwrap(thing)
    if getattr(thing, "__name__", "") in _OF_OURS:
        return True
    if not isinstance(thing, FunctionType | type) or not _is_read(thing.__module__):
        return False
    if thing not in _known:
        _known[thing] = False  # for recursive functions
        _known[thing] = any(map(_code_starts, _functions_of(thing)))
    return _known[thing]


@cache
def _is_read(module: str) -> bool:
    path = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return any(path.is_relative_to(folder) for folder in _READ)


def _functions_of(thing: FunctionType | type) -> Iterator[FunctionType]:
    if isinstance(thing, FunctionType):
        yield thing
        return
    for base in thing.__mro__:
        for value in vars(base).values() if _is_read(base.__module__) else ():
            inner = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
            if isinstance(inner := unwrap(inner) if callable(inner) else inner, FunctionType):
                yield inner


def _code_starts(function: FunctionType) -> bool:
    names = set(_names_in(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, ModuleType):
            if names & _OF_MODULES.get(value.__name__, set()):
                return True
        elif _starts_processes(value if callable(value) else type(value)):
            return True
    return False


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


_is_guarded = False


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _is_guarded and event in _AUDITED:
        _refuse(event, arguments)


def _refuse(*what: object) -> NoReturn:
    raise AssertionError(f"a test of the fast tier starts a process ({what}): see tests/support/tiers.py")


sys.addaudithook(_audit)


@contextlib.contextmanager
def only_fast() -> Iterator[None]:
    """Within it, starting a process is an error."""
    global _is_guarded
    fork_exec: Callable[..., int] = _posixsubprocess.fork_exec  # by multiprocessing, without an audit event
    _is_guarded, _posixsubprocess.fork_exec = True, _refuse
    try:
        yield
    finally:
        _is_guarded, _posixsubprocess.fork_exec = False, fork_exec

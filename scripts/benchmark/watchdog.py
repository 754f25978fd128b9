"""Kills paused processes if the benchmark itself is killed: a paused process cannot notice that its parent is gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

# Reads process ids. Ends quietly at the line "done"; kills the processes if the pipe ends without this line.
_WATCHDOG = """
import os, signal, sys
pids = []
for line in sys.stdin:
    if line == "done\\n":
        break
    pids += [int(pid) for pid in line.split()]
else:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
"""

Watch = Callable[[Iterable[int]], None]
"""Takes the ids of processes that will be paused."""


@contextmanager
def watchdog() -> Iterator[Watch]:
    """Start a process that kills the watched processes if this process dies within the block."""
    # Own session: a signal to our process group must not end the watchdog. It needs no site-packages and no variables.
    command = [sys.executable, "-I", "-S", "-c", _WATCHDOG]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as process:
        stdin = process.stdin
        assert stdin is not None

        def watch(pids: Iterable[int]) -> None:
            print(*pids, file=stdin, flush=True)

        try:
            yield watch
        finally:
            print("done", file=stdin, flush=True)

"""Sees to it that no stopped process stays for ever when we are killed: it could not notice by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

# Reads process ids until we say that all is well, or until the pipe ends because we do.
_GUARD = """
import os, signal, sys
pids = []
for line in sys.stdin:
    if line == "all is well\\n":
        break
    pids += [int(pid) for pid in line.split()]
else:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
"""

Guard = Callable[[Iterable[int]], None]
"""Takes the ids of processes that are about to be stopped."""


@contextmanager
def guarding() -> Iterator[Guard]:
    """Processes that are named to it within, and may be stopped, are killed if we are."""
    # A session of its own: what ends ours must not end it first. It needs neither site-packages nor our environment.
    command = [sys.executable, "-I", "-S", "-c", _GUARD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as guard:
        orders = guard.stdin
        assert orders is not None

        def watch(pids: Iterable[int]) -> None:
            print(*pids, file=orders, flush=True)

        try:
            yield watch
        finally:
            print("all is well", file=orders, flush=True)

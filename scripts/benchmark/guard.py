"""Sees to it that no stopped process stays for ever when we are killed: it could not notice by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Reads process ids until we say that all is well, or until the pipe ends because we do.
_GUARD = """
import os, signal, sys
pids = [int(pid) for pid in sys.stdin.readline().split()]
if not sys.stdin.readline():
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
"""


@contextmanager
def guarded(pids: Iterable[int]) -> Iterator[None]:
    """These processes, which may be stopped within, are killed if we are."""
    # A session of its own: what ends ours must not end it first. It needs neither site-packages nor our environment.
    command = [sys.executable, "-I", "-S", "-c", _GUARD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as guard:
        assert guard.stdin is not None
        print(*pids, file=guard.stdin, flush=True)
        try:
            yield
        finally:
            print("all is well", file=guard.stdin, flush=True)

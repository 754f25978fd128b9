"""The first lines of both commands, and the guard around imports.

Imports take up to half a second. A Ctrl-C in this time ends the program at once and without a traceback, because
nothing is open yet.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import EXIT_INTERRUPTED


def run_main(module: str) -> int:
    """Import this module and call its `main`. Returns an exit code, also after a Ctrl-C that nobody else has caught."""
    try:
        with interruptible_imports():
            main = importlib.import_module(module).main
        return int(main())
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


@contextmanager
def interruptible_imports() -> Iterator[None]:
    """A Ctrl-C inside ends the process at once: KeyboardInterrupt in the middle of an import may come out as another
    error, or be printed and dropped."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a shell ignores SIGINT for a job in the background: leave it ignored
        signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exit(*_: object) -> None:
    os._exit(EXIT_INTERRUPTED)

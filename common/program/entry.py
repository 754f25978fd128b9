"""The entry point of both programs, and the guard around imports.

Imports take up to half a second. A Ctrl-C during imports ends the program at once, without a traceback. This is safe,
because nothing is open yet.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import EXIT_INTERRUPTED


def run_main(module: str) -> int:
    """Import this module and call its `main`. Returns the exit code, also after an uncaught Ctrl-C."""
    try:
        with interruptible_imports():
            main = importlib.import_module(module).main
        return int(main())
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


@contextmanager
def interruptible_imports() -> Iterator[None]:
    """A Ctrl-C in the block ends the process at once. A KeyboardInterrupt would not do: within an import it may turn
    into another error, or be printed and ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a shell ignores SIGINT for a job in the background: leave it ignored
        signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exit(*_: object) -> None:
    os._exit(EXIT_INTERRUPTED)

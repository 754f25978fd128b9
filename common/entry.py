"""The first lines of both commands. Imports take up to half a second: a Ctrl-C in this time ends a program without a
traceback, as nothing is open yet."""

from __future__ import annotations

import importlib
import os
import signal

from common.errors import EXIT_INTERRUPTED


def run_main(module: str) -> int:
    """Import this module and call its `main`. Returns an exit code, also after a Ctrl-C that nobody else has caught."""
    before = signal.getsignal(signal.SIGINT)
    try:
        if before is signal.default_int_handler:  # else a shell has SIGINT ignored, as for a job in the background
            signal.signal(signal.SIGINT, _leave)
        main = importlib.import_module(module).main
        signal.signal(signal.SIGINT, before)
        return int(main())
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _leave(*_: object) -> None:
    """At once: an exception in the middle of an import may come out as another one, or be printed and dropped."""
    os._exit(EXIT_INTERRUPTED)

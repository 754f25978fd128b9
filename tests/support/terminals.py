"""A pseudo-terminal for a command, with a screen, a keyboard and Ctrl-C."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from common.clock import monotonic_ns
from common.units import NS_PER_S
from tests.support.commands import PATIENCE_S, CommandLine

CTRL_C, CTRL_S, CTRL_Q = b"\x03", b"\x13", b"\x11"
_POLL_S = 0.05
_ROWS_COLUMNS = (40, 120)
# The terminal becomes the controlling terminal of a new session, so the kernel turns Ctrl-C into a SIGINT for all
# foreground processes.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Runs one command; use it in a `with`. Reads the screen only during a wait."""

    def __init__(self, commands: CommandLine, program: str, *args: str) -> None:
        self._screen = b""
        self._is_open = True
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *_ROWS_COLUMNS, 0, 0))
        self._theirs = theirs
        self.settings_before = self.settings
        self.process = subprocess.Popen(
            (sys.executable, "-c", _TAKE_TERMINAL, str(Path(sys.executable).parent / program), *args),
            cwd=commands.directory,
            env=commands.environment | {"TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )

    @property
    def screen(self) -> str:
        """All output so far."""
        return self._screen.decode(errors="replace")

    @property
    def settings(self) -> list[Any]:
        """The settings of the terminal, such as echo and line mode."""
        return termios.tcgetattr(self._theirs)

    def type(self, keys: bytes) -> None:
        """Press these keys."""
        os.write(self._ours, keys)

    def hang_up(self) -> None:
        """Close the terminal window."""
        os.close(self._ours)
        os.close(self._theirs)
        self._is_open = False

    def wait_for_text(self, text: str, timeout: float = PATIENCE_S) -> None:
        """Wait for a text on the screen. Raises AssertionError with the screen after the timeout."""
        give_up_ns = monotonic_ns() + int(timeout * NS_PER_S)
        while text not in self.screen:
            ended = self.process.poll() is not None
            self._read()
            late = ended and text not in self.screen
            assert not late, f"ended before it showed {text!r}: {self.screen}"
            assert monotonic_ns() < give_up_ns, f"did not show {text!r} in {timeout:g}s: {self.screen}"

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Wait for the exit code. Raises AssertionError with the screen after the timeout."""
        give_up_ns = monotonic_ns() + int(timeout * NS_PER_S)
        while self.process.poll() is None:
            assert monotonic_ns() < give_up_ns, f"not done after {timeout:g}s: {self.screen}"
            self._read()
        self._read()
        return self.process.returncode

    def _read(self) -> None:
        while select.select([self._ours], [], [], _POLL_S)[0]:
            try:
                self._screen += os.read(self._ours, 65536)
            except OSError as error:
                if error.errno == errno.EIO:  # the other side is closed
                    return
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._is_open:
            self.hang_up()

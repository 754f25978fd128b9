"""Null responders as processes of ours, and their word on what they served."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from common.plan.schema import Target
from scripts.benchmark.contenders import BenchError, pinned


@dataclass(frozen=True, slots=True)
class NullReferee:
    """One null responder, which counts for itself."""

    port: int
    pid: int
    orders: IO[str]
    replies: IO[str]

    @property
    def target(self) -> Target:
        """It, as a plan names it."""
        return Target(url=f"redis://127.0.0.1:{self.port}")

    def served(self) -> int:
        return self._ask()[0]

    def connected(self) -> int:
        return self._ask()[1]

    def pids(self) -> Sequence[int]:
        return (self.pid,)

    def _ask(self) -> tuple[int, int]:
        self.orders.write("\n")
        self.orders.flush()
        served, _, connected = self.replies.readline().partition(" ")
        if not connected:
            raise BenchError("bench: the null responder ended before its time")
        return int(served), int(connected)


@dataclass(frozen=True, slots=True)
class TogetherReferee:
    """Several, as one."""

    referees: Sequence[NullReferee]

    def served(self) -> int:
        return sum(referee.served() for referee in self.referees)

    def connected(self) -> int:
        return sum(referee.connected() for referee in self.referees)

    def pids(self) -> Sequence[int]:
        return [pid for referee in self.referees for pid in referee.pids()]


@contextmanager
def null_responder(core: int | None) -> Iterator[NullReferee]:
    """A null responder, up, on this core; None leaves it where it likes. Raises BenchError."""
    command = [sys.executable, "-m", "scripts.benchmark.null"]
    with pinned(core):
        # A session of its own, because its end is the end of its stdin.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline()
            if not port:
                raise BenchError("bench: the null responder did not start")
            yield NullReferee(int(port), process.pid, process.stdin, process.stdout)
        finally:
            process.kill()

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from common.program.signals import caught_signals
from tests.support.runs import wait_until


@pytest.fixture
def hang_ups() -> Iterator[None]:
    """The disposition of SIGHUP may be changed."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_ups")
def test_a_terminal_that_closes_is_a_signal_except_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with caught_signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: signals.take() == 1, "SIGHUP is caught")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with caught_signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: signals.take() == 1, "SIGTERM alone is caught")
        assert signals.take() == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

"""Fixtures of the tests of a worker: what it does to its own process, and threads that race."""

from __future__ import annotations

import gc
import resource
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.support.workers import WorkerThread


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """The interpreter switches threads so often that a race shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def worker(_leak_check_first: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerThread]:
    """A worker on a thread of the test. What it changes in its process is undone, because the process is the test's."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # only the main thread may set a handler
    limits, interval_s = resource.getrlimit(resource.RLIMIT_NOFILE), sys.getswitchinterval()
    with WorkerThread() as running:
        yield running
    sys.setswitchinterval(interval_s)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    gc.unfreeze()

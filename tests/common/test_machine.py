from __future__ import annotations

import os

import pytest

from common.machine import this_host, usable_cores


def test_this_host_has_a_name() -> None:
    assert this_host()


def test_usable_cores_are_those_that_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == (os.cpu_count() or 1)

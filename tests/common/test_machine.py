from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.machine import boot_id, this_host, usable_cores


def test_this_host_has_a_name() -> None:
    assert this_host()


def test_usable_cores_are_those_that_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == (os.cpu_count() or 1)


def test_a_boot_has_a_name_that_stays_and_one_where_the_system_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    told = boot_id()
    assert told == boot_id() != ""
    monkeypatch.setattr("common.machine._BOOT_ID", Path("/nowhere/boot_id"))
    assert boot_id() == boot_id() != told
    assert this_host() in boot_id()

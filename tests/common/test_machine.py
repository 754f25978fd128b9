from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.cgroup import CpuGroups
from common.machine import boot_id, this_host, usable_cores


def test_this_host_has_a_name() -> None:
    assert this_host()


@pytest.fixture
def no_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuGroups, "quota_cores", None)


@pytest.mark.usefixtures("no_quota")
def test_usable_cores_are_those_that_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == (os.cpu_count() or 1)


@pytest.mark.parametrize(("quota_cores", "cores"), [(0.1, 1), (1.0, 1), (1.5, 2), (2.0, 2), (7.3, 3)])
def test_usable_cores_are_no_more_than_a_quota_allows(
    monkeypatch: pytest.MonkeyPatch, quota_cores: float, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    monkeypatch.setattr(CpuGroups, "quota_cores", quota_cores)
    assert usable_cores() == cores


def test_a_boot_has_a_name_that_stays_and_one_where_the_system_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    told = boot_id()
    assert told == boot_id() != ""
    monkeypatch.setattr("common.machine._BOOT_ID", Path("/nowhere/boot_id"))
    assert boot_id() == boot_id() != told
    assert this_host() in boot_id()

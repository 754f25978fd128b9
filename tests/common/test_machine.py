from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from common.cgroup import CpuGroups
from common.machine import (
    boot_id,
    open_files,
    open_files_limit,
    raise_open_files_limit,
    this_host,
    usable_cores,
)


def test_the_machine_has_a_host_name() -> None:
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


def test_a_boot_has_a_stable_id_even_if_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = boot_id()
    assert found == boot_id() != ""
    monkeypatch.setattr("common.machine._BOOT_ID", Path("/nowhere/boot_id"))
    assert boot_id() == boot_id() != found
    assert this_host() in boot_id()


class Limits:
    """Those of open files, of a system that refuses some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, most: int | None = None) -> None:
        self.soft, self.hard, self._most = soft, hard, most
        monkeypatch.setattr(resource, "getrlimit", lambda _: (self.soft, self.hard))
        monkeypatch.setattr(resource, "setrlimit", self._set)

    def _set(self, _: int, limits: tuple[int, int]) -> None:
        soft, hard = limits
        if hard != self.hard:
            raise OSError("only root may change the hard limit")
        if self._most is not None and (soft == resource.RLIM_INFINITY or soft > self._most):
            raise ValueError("current limit exceeds maximum limit")
        self.soft = soft


def test_as_many_files_may_be_opened_as_the_hard_limit_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(monkeypatch, 1024, 20_000)
    raise_open_files_limit()
    assert (limits.soft, open_files_limit()) == (20_000, 20_000)
    raise_open_files_limit()
    assert limits.soft == 20_000


def test_a_low_hard_limit_is_not_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(monkeypatch, 100, 100)
    raise_open_files_limit()
    assert limits.soft == 100


@pytest.mark.parametrize(("soft", "most", "raised"), [(256, 61_440, 24_576), (256, 10_240, 10_240), (256, 300, 256)])
def test_a_system_that_refuses_its_own_unlimited_hard_limit_is_asked_for_less(
    monkeypatch: pytest.MonkeyPatch, soft: int, most: int, raised: int
) -> None:
    limits = Limits(monkeypatch, soft, resource.RLIM_INFINITY, most)
    raise_open_files_limit()
    assert limits.soft == raised


def test_an_unlimited_number_of_files_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(monkeypatch, resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    raise_open_files_limit()
    assert limits.soft == resource.RLIM_INFINITY
    assert open_files_limit() is None


def test_open_files_are_counted(tmp_path: Path) -> None:
    before = open_files()
    with (tmp_path / "one").open("w"), (tmp_path / "two").open("w"):
        assert open_files() == before + 2
    assert open_files() == before

from __future__ import annotations

import os

import pytest

from scripts.benchmark import real_agents
from scripts.benchmark.contenders import BenchError
from scripts.benchmark.real_agents import Launch, launched
from tests.support.servers import Server

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(autouse=True)
def _as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # To compile all modules for one agent takes longer than everything else here.
    monkeypatch.setattr(real_agents, "_compiled", lambda _: dict(os.environ))


def phases(launch: Launch) -> list[float]:
    return [launch.imported_s, launch.joined_s, launch.ordered_s, launch.decided_s, launch.started_s]


def test_real_agents_come_to_their_start_in_phases(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_agents, "_LOAD_S", 1)
    launch = launched(valkey.url, 1)
    assert phases(launch)[0] > 0
    assert phases(launch) == sorted(phases(launch))
    assert launch.waited_s == launch.started_s - launch.joined_s
    assert launch.cpu_s > 0


def test_agents_that_do_not_join_are_named_with_what_they_said(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_agents, "_JOIN", ("join", "--insecure"))
    with pytest.raises(BenchError) as failed:
        launched(valkey.url, 1)
    assert "of 1 agents: 1 imported, 0 joined, 0 ordered, 0 running" in str(failed.value)
    assert "real-0: it ended with 5, and said last: agent: " in str(failed.value)

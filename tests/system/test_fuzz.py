"""Peers that have the token send what they like, for some seconds; `scripts/fuzz` does so at length."""

from __future__ import annotations

from tests.support.fuzz import attack_agent, attack_coordinator
from tests.support.runs import Fleet
from tests.support.servers import Server


def test_a_run_under_attack_by_its_participants_keeps_its_totals_and_its_memory(fleet: Fleet, valkey: Server) -> None:
    numbers, ended = attack_coordinator(fleet, valkey, messages=3_000, seed=1)
    assert ended.code == 130
    assert numbers.sent >= 3_000


def test_an_agent_under_attack_by_its_coordinator_serves_the_next_one(fleet: Fleet, valkey: Server) -> None:
    assert attack_agent(fleet, valkey, messages=3_000, seed=1).sent >= 3_000

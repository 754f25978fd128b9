"""Peers with the token send hostile messages for some seconds. `scripts/fuzz` sends many more."""

from __future__ import annotations

from tests.support.fuzz import attack_agent, attack_coordinator
from tests.support.runs import Fleet
from tests.support.servers import Server


def test_hostile_participants_change_neither_the_totals_nor_the_memory_of_a_run(fleet: Fleet, valkey: Server) -> None:
    numbers, ended = attack_coordinator(fleet, valkey, messages=3_000, seed=1)
    assert ended.code == 130
    assert numbers.sent >= 3_000


def test_an_agent_serves_the_next_coordinator_after_a_hostile_one(fleet: Fleet, valkey: Server) -> None:
    assert attack_agent(fleet, valkey, messages=3_000, seed=1).sent >= 3_000

"""Every command of the table through the wire driver: our byte counts equal those of the server."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from agent.worker.run import WorkerRun
from common.clock import monotonic_ns
from common.commands import COMMANDS, KeyType, Placeholder
from common.metrics.intervals import Merge, merge_commands, merge_intervals
from common.plan.schema import Plan
from common.serde import from_builtins
from tests.agent.worker.metrics.test_wire_sizes_on_servers import KEYS, LUA, OTHER_FORMS, SHORT_TIMEOUTS, fill
from tests.support.runs import wait_until
from tests.support.servers import Server, wire_bytes_of_others
from tests.support.workers import whole_of

OPERATIONS = 10


def plan_of(valkey: Server, command: str, name: str, protocol: int, batch: dict[str, int]) -> Plan:
    entry: dict[str, Any] = {"command": command}
    if COMMANDS[name].template.count(Placeholder.IDS):
        entry = {"command": "XRANGE", "then": [entry]}
    maximum = KEYS
    if COMMANDS[name].key_type is KeyType.NUMBER and name != "INCRBYFLOAT":
        maximum = 2
    raw: dict[str, Any] = {
        "target": {"url": valkey.url, "protocol": protocol},
        "pools": [{"driver": "wire", "max_connections": 1, "connections": "prewarm"}],
        "workload": {
            "commands": [entry],
            # Sequential, so that two keys of one command differ.
            "keys": {"maximum": maximum, "distribution": "sequential"},
            "scripts": [{"name": "main", "lua": LUA}],
            **batch,
        },
        "load": {"requests": OPERATIONS},
    }
    return from_builtins(raw, Plan)


def difference(asking: redis.Redis, plan: Plan) -> str:
    """Run the plan. Returns how its byte counts differ from the server's, "" if they do not."""
    run = WorkerRun(whole_of(plan))
    try:
        run.open(lambda *_: None)
        before = wire_bytes_of_others(asking)
        _, collector = run.start(monotonic_ns())
        wait_until(lambda: not run.is_alive, "the loop ends")
        after = wire_bytes_of_others(asking)
    finally:
        run.close()
    assert run.crash == ""
    total = merge_intervals(collector.collect_rest(0)[1], Merge.CONSECUTIVE)
    commands = merge_commands(total.pools["main"].commands.values())
    counted = (after[0] - before[0], after[1] - before[1])
    said = (commands.bytes_out, commands.bytes_in)
    if commands.ok != OPERATIONS:
        return f"{commands.ok} of {OPERATIONS} done: {commands.errors} {commands.failures}"
    return "" if said == counted else f"said {said}, counted {counted}"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("batch", [{}, {"pipeline": 10}], ids=str)
def test_every_command_has_the_computed_size_and_no_error(
    valkey: Server, protocol: int, batch: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # There are many short runs: check often for their end.
    monkeypatch.setattr("agent.worker.drivers.wire.event_loop._CHECK_EVERY_NS", 1_000_000)
    asking, found = valkey.client(), []
    rows = [
        (name, SHORT_TIMEOUTS.get(name, name), row.key_type) for name, row in COMMANDS.items() if not row.subscribes
    ]
    rows += [(command.split()[0], command, holds) for holds, command in OTHER_FORMS]
    for name, command, holds in rows:
        fill(asking, holds)
        if name == "ZSCAN":  # see agent/worker/metrics/wire_sizes.py on its fractions
            for number in range(1, KEYS + 1):
                asking.zunionstore(f"stampede:{number}", {f"stampede:{number}": 0})
        if wrong := difference(asking, plan_of(valkey, command, name, protocol, batch)):
            found.append(f"{command}: {wrong}")
    assert found == []

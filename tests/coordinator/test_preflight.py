from __future__ import annotations

import pytest

from common.errors import PlanError
from common.plan.schema import Command, Keys, Plan, Target, Workload
from common.units import Count
from coordinator.preflight import refuse_several_slots
from tests.support.groups import ClusterGroup
from tests.support.servers import Server


def plan(url: str, *commands: str, per_hash_tag: int | None = None, transaction: int = 0) -> Plan:
    return Plan(
        target=Target(url=url),
        workload=Workload(
            commands=tuple(Command(command=command) for command in commands),
            keys=Keys(maximum=Count(1000), per_hash_tag=per_hash_tag),
            transaction=transaction,
        ),
    )


@pytest.mark.parametrize(
    ("commands", "options"),
    [
        (["SET", "GET", "PING", "MSET {a}x 1 {a}y 2"], {}),
        (["MGET __keys(10)__", "DEL __key__ __key__"], {}),
        (["SET", "GET"], {"transaction": 5}),
        (["SET __key__ a-__key__"], {"per_hash_tag": 0}),
        (["NOSUCH a b"], {}),
    ],
)
def test_commands_that_keep_to_one_slot_each_pass(
    shared_cluster: ClusterGroup, commands: list[str], options: dict[str, int]
) -> None:
    refuse_several_slots(plan(shared_cluster.url, *commands, **options))


@pytest.mark.parametrize(
    ("commands", "options", "finding"),
    [
        (["GET", "MGET a b c"], {}, r"MGET with the keys a, b, c needs 3 slots of the cluster, and one is allowed"),
        (["EVAL 'return 1' 2 a b"], {}, r"EVAL with the keys a, b needs 2 slots"),
        (["MGET a:__key__ b"], {}, r"MGET with the keys .*, b needs 2 slots"),
        (["SET", "INCR counter"], {"transaction": 2}, r"the transaction of INCR, SET with the keys .* needs 2 slots"),
    ],
)
def test_what_needs_several_slots_is_refused_in_one_line_with_a_remedy(
    shared_cluster: ClusterGroup, commands: list[str], options: dict[str, int], finding: str
) -> None:
    with pytest.raises(PlanError, match=rf"^workload[^\n]*{finding}[^\n]*--keys-per-hash-tag$"):
        refuse_several_slots(plan(shared_cluster.url, *commands, **options))


def test_nothing_is_asked_of_any_other_target(valkey: Server) -> None:
    refuse_several_slots(plan(valkey.url, "MGET a b"))
    assert "cmdstat_command|getkeys" not in valkey.client(decode_responses=True).info("commandstats")

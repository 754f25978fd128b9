from __future__ import annotations

import pytest
from msgspec.structs import replace

from common.errors import PlanError
from common.plan.schema import Command, Keys, Plan, Preload, Target, Workload
from common.units import Count
from coordinator.servers.preflight import check_commands, check_known
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
    ],
)
def test_commands_with_one_slot_each_pass(
    shared_cluster: ClusterGroup, commands: list[str], options: dict[str, int]
) -> None:
    check_commands(plan(shared_cluster.url, *commands, **options))


@pytest.mark.parametrize(
    ("commands", "options", "finding"),
    [
        (
            ["GET", "MGET a b c"],
            {},
            r"MGET with the keys a, b, c uses 3 slots of the cluster, but a",
        ),
        (["EVAL 'return 1' 2 a b"], {}, r"EVAL with the keys a, b uses 2 slots"),
        (["MGET a:__key__ b"], {}, r"MGET with the keys .*, b uses 2 slots"),
        (["SET", "INCR counter"], {"transaction": 2}, r"the transaction of INCR, SET with the keys .* uses 2 slots"),
    ],
)
def test_a_command_with_several_slots_is_refused_with_a_remedy(
    shared_cluster: ClusterGroup, commands: list[str], options: dict[str, int], finding: str
) -> None:
    with pytest.raises(PlanError, match=rf"^workload[^\n]*{finding}[^\n]*--keys-per-hash-tag$"):
        check_commands(plan(shared_cluster.url, *commands, **options))


def test_slots_are_checked_only_in_a_cluster(valkey: Server) -> None:
    check_commands(plan(valkey.url, "MGET a b"))
    assert "cmdstat_command|getkeys" not in valkey.client(decode_responses=True).info("commandstats")


@pytest.mark.parametrize(
    ("command", "finding"),
    [
        ("NOSUCH __key__", r'the target does not know the command "NOSUCH"; check its spelling'),
        ("=NOSUCH", r'the command "NOSUCH"'),
        ("HGTE __key__ f", r'the command "HGTE".*; did you mean HGET'),
        ("XGROUP CREAT __key__ g 0", r'the subcommand "CREAT" of XGROUP; did you mean CREATE'),
        ("memory zzz __key__", r'the subcommand "ZZZ" of MEMORY; it knows DOCTOR, HELP, .*, USAGE$'),
    ],
)
def test_an_unknown_command_is_refused(valkey: Server, command: str, finding: str) -> None:
    with pytest.raises(PlanError, match=rf"^workload: [^\n]*{finding}"):
        check_commands(plan(valkey.url, "SET", command))


@pytest.mark.parametrize(
    ("command", "finding"),
    [
        ("GET __key__ __key__", "GET takes 1 argument, got 2"),
        ("HSET __key__ field", "HSET takes at least 3 arguments, got 2"),
        ("XGROUP CREATE __key__ g", "XGROUP CREATE takes at least 3 arguments, got 2"),
        ("OBJECT ENCODING __key__ x", "OBJECT ENCODING takes 1 argument, got 2"),
        ("=XGROUP", "XGROUP takes at least 1 argument, got 0"),
    ],
)
def test_a_wrong_number_of_arguments_is_refused(valkey: Server, command: str, finding: str) -> None:
    with pytest.raises(PlanError, match=f"^workload: {finding}$"):
        check_commands(plan(valkey.url, "SET", command))


@pytest.mark.parametrize("command", ["CLIENT INFO", "client id", "memory usage __key__"])
def test_a_known_subcommand_passes(valkey: Server, command: str) -> None:
    check_commands(plan(valkey.url, command))


def test_commands_of_setup_and_preload_are_checked_too(valkey: Server) -> None:
    bare = plan(valkey.url, "GET")
    for workload in (
        replace(bare.workload, setup=("XGROUP CREAT __key__ g 0",)),
        replace(bare.workload, preload=(Preload(command="XGROUP CREAT __key__ g 0"),)),
    ):
        with pytest.raises(PlanError, match=r"did you mean CREATE\?$"):
            check_commands(replace(bare, workload=workload))


class _Old:
    """A server older than Redis 7, which does not list subcommands."""

    def execute_command(self, *args: str) -> list[list[object]]:
        return [[args[1].encode(), -2, [b"write"], 2, 2, 1]]


def test_subcommands_pass_if_the_server_does_not_list_them() -> None:
    check_known(plan("redis://h", "XGROUP CREAT __key__ g 0"), _Old())


def test_the_right_number_of_arguments_passes(valkey: Server) -> None:
    check_commands(plan(valkey.url, "SET", "PING", "MGET a", "=DBSIZE", "XGROUP CREATE k g 0 MKSTREAM"))


def test_commands_pass_if_the_server_does_not_list_them(valkey: Server) -> None:
    client = valkey.client()
    client.acl_setuser("bob", enabled=True, nopass=True, commands=["+get", "+ping", "+hello", "+client"], keys=["*"])
    try:
        check_commands(plan(valkey.url.replace("://", "://bob@"), "NOSUCH a"))
    finally:
        client.acl_deluser("bob")

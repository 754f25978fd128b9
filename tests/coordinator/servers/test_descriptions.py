"""Descriptions of servers: of a real one, and of one that only says what a test makes it say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError

from common.plan.schema import Target
from common.redis_client import PRIMARY, Node, nodes_of, open_node_client
from coordinator.journal.records import NodeDescribed, Reading
from coordinator.servers import descriptions
from coordinator.servers.descriptions import Description
from coordinator.servers.node_queries import NodeQueries
from tests.support.groups import ClusterGroup
from tests.support.servers import Server

NODE = Node("127.0.0.1", 6379, PRIMARY, "127.0.0.1:6379")


class ScriptedClient:
    """Answers by the first words of a command; everything else is an unknown command."""

    def __init__(self, replies: Mapping[str, Any]) -> None:
        self.replies = dict(replies)
        self.response_callbacks: dict[str, Any] = {}
        self.connection_pool = self
        self.asked: list[str] = []

    def execute_command(self, *command: str) -> Any:
        self.asked.append(" ".join(command))
        reply = self.replies.get(" ".join(command), self.replies.get(command[0]))
        if isinstance(reply, Exception):
            raise reply
        if reply is None:
            raise redis.ResponseError(f"unknown command '{command[0]}'")
        return reply

    def get_connection(self) -> None: ...

    def release(self, _: None) -> None: ...


def described(replies: Mapping[str, Any], later: Mapping[str, Any] | None = None) -> NodeDescribed:
    """The description after a load, of a server that answers with `replies` before it, and then with `later` too."""
    client = ScriptedClient(replies)
    description = Description(NODE)
    description.read(NodeQueries(client), Reading.BEFORE)
    client.replies |= later or {}
    return description.read(NodeQueries(client), Reading.AFTER)


def refused(found: NodeDescribed) -> dict[str, str]:
    return {unread.what: unread.reason for unread in found.unread}


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_server_is_described_before_and_after(valkey: Server, protocol: int) -> None:
    target = Target(url=valkey.url, protocol=protocol)
    [node] = nodes_of(target)
    client = valkey.client()
    client.config_set("slowlog-log-slower-than", 0)
    client.set("a", 1)
    with open_node_client(target, node) as control:
        description = Description(node)
        before = description.read(NodeQueries(control), Reading.BEFORE)
        for _ in range(20):
            client.get("a")
        client.config_set("maxclients", 500)
        after = description.read(NodeQueries(control), Reading.AFTER)
    assert (before.unread, after.unread) == ((), ())
    assert before.version.startswith("valkey ")
    assert (before.run_id, before.keys, before.config["maxmemory-policy"]) == (after.run_id, 1, "noeviction")
    assert (before.config["maxclients"] != "500", after.config["maxclients"]) == (True, "500")
    assert after.commands["get"].calls - before.commands.get("get", after.commands["set"]).calls >= 19
    assert after.commands["get"].within[-1][1] == after.commands["get"].calls
    entries = [entry for entry in after.logged if entry.id > before.last_logged["slow"]]
    assert [entry.command for entry in entries].count("GET a") == 20
    assert after.sample is not None
    assert after.sample.clients == 2


def test_calls_of_a_description_are_counted_as_the_server_counts_them(valkey: Server) -> None:
    target = Target(url=valkey.url)
    [node] = nodes_of(target)
    before = valkey.client().info("commandstats")
    with open_node_client(target, node) as control:
        found = Description(node).read(NodeQueries(control), Reading.BEFORE)
    after = valkey.client().info("commandstats")
    gained = {
        name.removeprefix("cmdstat_"): row["calls"] - before.get(name, {"calls": 0})["calls"]
        for name, row in after.items()
    }
    gained["info"] -= 1  # the first one of this test
    assert {name: gained.get(name) for name in found.own} == found.own


def test_the_busiest_slots_of_a_server_are_described(shared_cluster: ClusterGroup) -> None:
    port = shared_cluster.primaries[0]
    target = Target(url=shared_cluster.url)
    node = next(node for node in nodes_of(target) if node.port == port)
    shared_cluster.at(port).config_set("cluster-slot-stats-enabled", "yes")
    try:
        with open_node_client(target, node) as control:
            description = Description(node)
            description.read(NodeQueries(control), Reading.BEFORE)
            key = next(f"k{number}" for number in range(1000) if _owner(shared_cluster, f"k{number}") == port)
            for _ in range(50):
                shared_cluster.at(port).set(key, "x" * 100)
            after = description.read(NodeQueries(control), Reading.AFTER)
    finally:
        shared_cluster.at(port).config_set("cluster-slot-stats-enabled", "no")
    busiest = after.slots[0]
    assert (busiest.slot, busiest.keys) == (shared_cluster.at(port).execute_command("CLUSTER KEYSLOT", key), 1)
    assert busiest.cpu_us
    assert (busiest.bytes_in or 0) > 50 * 100


def _owner(cluster: ClusterGroup, key: str) -> int:
    return cluster.owner(int(cluster.at(cluster.ports[0]).execute_command("CLUSTER KEYSLOT", key)))


def test_what_an_acl_forbids_is_named_and_the_rest_is_read(valkey: Server) -> None:
    valkey.client().acl_setuser(
        "narrow", enabled=True, passwords=["+word"], commands=["+@all", "-config", "-latency|histogram"], keys=["*"]
    )
    target = Target(url=valkey.url, username="narrow", password="word")
    [node] = nodes_of(target)
    with open_node_client(target, node) as control:
        found = Description(node).read(NodeQueries(control), Reading.AFTER)
    assert set(refused(found)) == {"CONFIG GET", "LATENCY HISTOGRAM"}
    assert refused(found)["CONFIG GET"].startswith("NOPERM User narrow has no permissions to run the 'config|get'")
    assert (found.config, found.own["config|get"]) == ({}, 1)
    assert found.sample is not None
    assert found.commands["info"].calls


def test_a_server_that_forbids_everything_is_described_by_what_it_forbids() -> None:
    found = described({"INFO": NoPermissionError("no permissions")})
    assert {"INFO", "INFO commandstats", "CONFIG GET", "SLOWLOG GET", "LATENCY LATEST"} <= set(refused(found))
    assert (found.sample, found.commands, found.version) == (None, {}, "")


def test_before_redis_7_settings_are_asked_one_by_one() -> None:
    one_by_one = {f"CONFIG GET {name}": [name.encode(), b"7"] for name in descriptions.SETTINGS}
    found = described({"INFO": b"role:master\r\n", **one_by_one})
    assert found.config == dict.fromkeys(descriptions.SETTINGS, "7")
    assert "CONFIG GET" not in refused(found)


NEW = "COMMAND INFO commandlog hotkeys cluster|slot-stats"


def test_hot_keys_are_shown_if_somebody_tracks_them() -> None:
    session = [b"tracking-active", 1, b"by-cpu-time-us", [b"hot", 104, b"warm", 9], b"by-net-bytes", [b"big", 5]]
    found = described({NEW: [None, [b"hotkeys"], None], "HOTKEYS GET": [session]})
    assert [(key.key, key.by, key.value) for key in found.hot_keys] == [
        ("hot", "cpu_us", 104),
        ("warm", "cpu_us", 9),
        ("big", "net_bytes", 5),
    ]


def tracked(replies: Mapping[str, Any]) -> tuple[NodeDescribed, list[str]]:
    """The description after a load during which hot keys were to be tracked, and what was asked about them."""
    client = ScriptedClient(replies)
    description, queries = Description(NODE), NodeQueries(client)
    description.read(queries, Reading.BEFORE)
    description.track_hot_keys(queries, 90)
    found = description.read(queries, Reading.AFTER)
    return found, [command for command in client.asked if command.startswith("HOTKEYS")]


def test_a_server_tracks_its_hot_keys_for_the_time_of_the_load() -> None:
    session = [[b"by-cpu-time-us", [b"hot", 104]]]
    has = {NEW: [None, [b"hotkeys"], None], "HOTKEYS GET": session, "HOTKEYS START": b"OK", "HOTKEYS STOP": b"OK"}
    found, asked = tracked(has)
    assert asked == ["HOTKEYS START METRICS 2 CPU NET COUNT 20 DURATION 90", "HOTKEYS GET", "HOTKEYS STOP"]
    assert [key.key for key in found.hot_keys] == ["hot"]
    assert {"hotkeys|start", "hotkeys|get", "hotkeys|stop"} <= found.own.keys()


def test_the_tracking_of_hot_keys_of_another_program_is_read_and_left_alone() -> None:
    busy = redis.ResponseError("hotkeys tracking session is already in progress")
    session = [[b"by-cpu-time-us", [b"hot", 104]]]
    found, asked = tracked({NEW: [None, [b"hotkeys"], None], "HOTKEYS GET": session, "HOTKEYS START": busy})
    assert [command.split()[1] for command in asked] == ["START", "GET"]
    assert [key.key for key in found.hot_keys] == ["hot"]
    assert "already in progress" in refused(found)["HOTKEYS START"]


def test_a_server_without_hot_keys_is_named() -> None:
    found, asked = tracked({NEW: [None, None, None]})
    assert (asked, refused(found)["HOTKEYS"]) == ([], "the server does not have it: Redis 8.6 and later have")


def test_large_requests_and_replies_are_read_from_a_commandlog() -> None:
    replies = {
        f"COMMANDLOG GET 100 {log}": [
            [number, 1_700_000_000, 9_000, [b"GET", b"k" * 90, *[b"x"] * 9], b"1.2.3.4:5", b"app"]
        ]
        for number, log in enumerate(("slow", "large-request", "large-reply"))
    }
    found = described({NEW: [[b"commandlog"], None, None], **replies})
    assert [(entry.log, entry.id, entry.value) for entry in found.logged] == [
        ("slow", 0, 9_000),
        ("large-request", 1, 9_000),
        ("large-reply", 2, 9_000),
    ]
    entry = found.logged[0]
    assert entry.command == "GET " + "k" * descriptions.LONGEST_ARGUMENT + " x x x x ... (5 more)"
    assert (entry.client, entry.client_name) == ("1.2.3.4:5", "app")


def test_the_slowlog_of_redis_enterprise_has_the_complexity_before_the_command() -> None:
    entry = [3, 1_700_000_000, 12, b"N:9", [b"LRANGE", b"l"], b"1.2.3.4:5", b"app"]
    [found] = described({"SLOWLOG GET": [entry]}).logged
    assert (found.id, found.command, found.client) == (3, "LRANGE l", "1.2.3.4:5")


@pytest.mark.parametrize(
    "reply",
    [b"?", 7, [], [[]], [None], [[1, 2]], [[1, 2, 3, b"x", 5]], {b"a": b"b"}, [b"a"], [[b"a", {}]], b"cmdstat_x:y", -1],
    ids=str,
)
def test_an_answer_without_sense_is_named_and_costs_nothing_else(reply: Any) -> None:
    commands = (
        "INFO",
        "CONFIG GET",
        "SLOWLOG GET",
        "LATENCY LATEST",
        "LATENCY HISTOGRAM",
        "HOTKEYS GET",
        "COMMAND INFO",
    )
    for command in commands:
        found = described({"INFO": b"role:master\r\ncluster_enabled:1\r\n", NEW: [None, [1], [1]], command: reply})
        assert found.node == NODE.name
    everything = dict.fromkeys((*commands, "CLUSTER SLOT-STATS"), reply)
    assert described(everything | {NEW: [[1], [1], [1]]}).node == NODE.name


def test_what_a_server_may_send_more_of_is_bounded() -> None:
    long = b"\x1b[2J" + b"n" * 5_000
    many = 5_000
    stats = "".join(f"cmdstat_c{number}:calls={number},usec=1\r\n" for number in range(many)).encode()
    entry = [1, 2, 3, [long] * many, long, long]
    found = described(
        {
            "INFO": b"role:master\r\nrun_id:" + long + b"\r\n" + stats,
            "CONFIG GET": [part for name in descriptions.SETTINGS for part in (name.encode(), long)],
            "SLOWLOG GET": [entry] * many,
            "LATENCY LATEST": [[long, 1, 2, 3]] * many,
            "LATENCY HISTOGRAM": [
                long,
                [b"calls", 1, b"histogram_usec", [n for each in range(many) for n in (each, 1)]],
            ],
            NEW: [None, [1], None],
            "HOTKEYS GET": [[b"by-cpu-time-us", [part for n in range(many) for part in (long, n)]]],
        }
    )
    assert [len(each) for each in (found.commands, found.logged, found.events, found.hot_keys)] == [
        descriptions.MOST_COMMANDS,
        descriptions.MOST_LOGGED,
        descriptions.MOST_EVENTS,
        descriptions.MOST_HOT_KEYS,
    ]
    texts = [found.run_id, *found.config.values(), found.logged[0].command, found.events[0].name, found.hot_keys[0].key]
    assert all(len(text) <= 200 and text.isprintable() for text in texts)


def test_sessions_of_hot_keys_and_slots_are_bounded_too() -> None:
    many = 5_000
    session = [b"by-cpu-time-us", [b"hot", 1], b"by-net-bytes", [b"big", 2]]
    found = described(
        {
            "INFO": b"role:master\r\ncluster_enabled:1\r\n",
            NEW: [None, [1], [1]],
            "HOTKEYS GET": [session] * many,
            "CLUSTER SLOT-STATS": [[slot, [b"key-count", 7]] for slot in range(many)],
        }
    )
    assert len(found.hot_keys) == 2 * descriptions.MOST_HOT_KEYS
    assert [slot.slot for slot in found.slots] == list(range(descriptions.MOST_SLOTS))

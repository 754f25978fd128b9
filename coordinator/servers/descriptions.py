"""Describe one server before and after the load: version, role, configuration that matters, its times of commands, its
logs of slow commands and of latency, and its hot keys and slots where it has them.

A server may refuse each question; `unread` then names it. All that a server sends is bounded here: the journal and the
report have at most `MOST_...` of each kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from common.clock import monotonic_ns
from common.redis_client import Node
from common.units import clipped
from coordinator.journal.records import (
    BusySlot,
    CommandTime,
    HotKey,
    LatencyEvent,
    LoggedCommand,
    NodeDescribed,
    Reading,
)
from coordinator.servers.facts import server_name
from coordinator.servers.node_queries import LONGEST_TEXT, NodeQueries, RefusedError
from coordinator.servers.queries import whole_number
from coordinator.servers.samples import Fields, fields_of, keys_of, parts_of, sample_of, server_time_s

MOST_COMMANDS, MOST_LOGGED, MOST_EVENTS, MOST_SLOTS, MOST_HOT_KEYS = 300, 100, 50, 10, 20
MOST_BUCKETS = 40
LONGEST_NAME, LONGEST_ARGUMENT, MOST_ARGUMENTS = 64, 40, 6

SETTINGS = (
    "maxmemory",
    "maxmemory-policy",
    "maxmemory-clients",
    "maxclients",
    "io-threads",
    "save",
    "appendonly",
    "appendfsync",
    "client-output-buffer-limit",
    "client-query-buffer-limit",
    "timeout",
    "tcp-backlog",
    "hz",
    "activedefrag",
    "latency-tracking",
    "latency-monitor-threshold",
    "slowlog-log-slower-than",
    "slowlog-max-len",
    "repl-backlog-size",
    "min-replicas-to-write",
    "cluster-slot-stats-enabled",
)
"""Settings that change what a server can do, or what it reports. None of them is a secret."""

LOGS = ("slow", "large-request", "large-reply")

_NEW = ("commandlog", "hotkeys", "cluster|slot-stats")
"""Commands that most servers lack: they are asked only where COMMAND INFO knows them."""

SlotCounts = Mapping[int, Mapping[str, int]]
Steps = tuple[tuple[int, int], ...]


class Description:
    """Describes one server, before the load and after it. Remembers what the second reading compares with."""

    def __init__(self, node: Node, target: str = "") -> None:
        """target: name of the target in the plan."""
        self._node, self._target = node, target
        self._known: frozenset[str] | None = None
        self._slots: SlotCounts | None = None
        self._tracks = False

    def track_hot_keys(self, queries: NodeQueries, longest_s: int) -> None:
        """Let the server count its hottest keys, until `read` after the load. longest_s: it stops by itself then, in
        case this program is killed. Raises TARGET_ERRORS if the server gives no reply."""
        if self._known is not None and "hotkeys" not in self._known:
            queries.note("HOTKEYS", "the server does not have it: Redis 8.6 and later have")
            return
        asked = ("METRICS", "2", "CPU", "NET", "COUNT", str(MOST_HOT_KEYS), "DURATION", str(longest_s))
        self._tracks = queries.read("HOTKEYS START", lambda: bool(queries.ask("HOTKEYS START", *asked)), False)

    def read(self, queries: NodeQueries, when: Reading) -> NodeDescribed:
        """Ask everything. Raises TARGET_ERRORS if the server gives no reply."""
        queries.connect()
        at_ns = monotonic_ns()
        is_after = when is Reading.AFTER
        commands = _commands(queries, is_after=True) if is_after else {}
        asked = queries.read("INFO", lambda: queries.timed("INFO"), None)
        info = fields_of(asked[0]) if asked else {}
        if self._known is None:
            self._known = _new_commands(queries)
        has_slots = "cluster|slot-stats" in self._known and info.get("cluster_enabled") == "1"
        config: dict[str, str] = queries.read("CONFIG GET", lambda: _config(queries), {})
        has_commandlog, most = "commandlog" in self._known, MOST_LOGGED if is_after else 1
        logs = LOGS if has_commandlog else LOGS[:1]
        entries = [entry for log in logs for entry in _logged(queries, log, most, has_commandlog=has_commandlog)]
        slots = self._busy_slots(queries, config, is_after=is_after) if has_slots else ()
        hot_keys = _hot_keys(queries) if is_after and "hotkeys" in self._known else ()
        if is_after and self._tracks:
            queries.read("HOTKEYS STOP", lambda: queries.ask("HOTKEYS STOP"), None)
        return NodeDescribed(
            when=when,
            target=self._target,
            node=self._node.name,
            role=self._node.role,
            at_ns=at_ns,
            version=clipped(server_name(dict(info)), LONGEST_NAME) if info else "",
            run_id=clipped(info.get("run_id", ""), LONGEST_NAME),
            server_time_s=server_time_s(info),
            keys=keys_of(info),
            sample=sample_of(info, asked[1]) if asked and info else None,
            config=config,
            commands=commands if is_after else _commands(queries, is_after=False),
            last_logged=_last_logged(entries),
            logged=tuple(entries) if is_after else (),
            events=_events(queries) if is_after else (),
            hot_keys=hot_keys,
            slots=slots,
            # Last, after all questions.
            unread=queries.unread,
            own=queries.take_own(),
        )

    def _busy_slots(self, queries: NodeQueries, config: Mapping[str, str], *, is_after: bool) -> tuple[BusySlot, ...]:
        """Return the slots that used most CPU time during the load. If the server does not count that, the slots with
        most keys."""
        what = "CLUSTER SLOT-STATS"
        if config.get("cluster-slot-stats-enabled") == "yes":
            # All slots of the node, because a counter is a sum since the start of the server.
            found: SlotCounts = queries.read(what, lambda: _slots(queries.ask(what, "SLOTSRANGE", "0", "16383")), {})
            before, self._slots = self._slots, found
            if not is_after:
                return ()
            if before is None:
                queries.note(what, "was not read before the load")
                return ()
            return _gained_most(before, found)
        if not is_after:
            return ()
        asked = ("ORDERBY", "KEY-COUNT", "LIMIT", str(MOST_SLOTS), "DESC")
        found = queries.read(what, lambda: _slots(queries.ask(what, *asked)), {})
        most = list(found.items())[:MOST_SLOTS]  # a server may send more than it was asked for
        return tuple(BusySlot(slot=slot, keys=counts.get("key-count", 0)) for slot, counts in most)


def _new_commands(queries: NodeQueries) -> frozenset[str]:
    """Return which of `_NEW` the server has."""
    try:
        reply = _items(queries.ask("COMMAND INFO", *_NEW))
        return frozenset(name for name, entry in zip(_NEW, reply, strict=True) if entry)
    except (RefusedError, ValueError, TypeError):
        return frozenset()


def _config(queries: NodeQueries) -> dict[str, str]:
    try:
        found = dict(_pairs_of(queries.ask("CONFIG GET", *SETTINGS)))
    except RefusedError as error:
        if error.code == "NOPERM":
            raise
        # Before Redis 7, CONFIG GET takes one name.
        each = (_pairs_of(queries.ask("CONFIG GET", name)) for name in SETTINGS)
        found = {name: value for pairs in each for name, value in pairs}
    return {name: clipped(_text(found[name]), LONGEST_TEXT) for name in SETTINGS if name in found}


def _commands(queries: NodeQueries, *, is_after: bool) -> dict[str, CommandTime]:
    """Return the times of commands. The two readings of the counters enclose as few of our own calls as they can."""

    def histograms() -> dict[str, Steps]:
        return queries.read("LATENCY HISTOGRAM", lambda: _histograms(queries.ask("LATENCY HISTOGRAM")), {})

    within: dict[str, Steps] = {} if is_after else histograms()
    counts: dict[str, tuple[int, int]] = queries.read(
        "INFO commandstats", lambda: _counts(fields_of(queries.ask("INFO", "commandstats"))), {}
    )
    if is_after:
        within = histograms()
    most = sorted(counts, key=lambda name: -counts[name][0])[:MOST_COMMANDS]
    return {name: CommandTime(*counts[name], within.get(name, ())) for name in most}


def _logged(queries: NodeQueries, log: str, most: int, *, has_commandlog: bool) -> list[LoggedCommand]:
    asked = ("COMMANDLOG GET", str(most), log) if has_commandlog else ("SLOWLOG GET", str(most))
    return queries.read(asked[0], lambda: list(_entries(log, queries.ask(*asked))), [])


def _events(queries: NodeQueries) -> tuple[LatencyEvent, ...]:
    def read() -> tuple[LatencyEvent, ...]:
        found = map(_items, _items(queries.ask("LATENCY LATEST"))[:MOST_EVENTS])
        return tuple(
            LatencyEvent(name=_name(name), at_s=_count(at_s), latest_ms=_count(latest_ms), max_ms=_count(max_ms))
            for name, at_s, latest_ms, max_ms, *_ in found
        )

    return queries.read("LATENCY LATEST", read, ())


def _hot_keys(queries: NodeQueries) -> tuple[HotKey, ...]:
    def read() -> tuple[HotKey, ...]:
        # A server has one session with two lists. It may send more sessions, so all of them together are bounded.
        return tuple(islice(_sessions(queries.ask("HOTKEYS GET")), 2 * MOST_HOT_KEYS))

    return queries.read("HOTKEYS GET", read, ())


def _last_logged(entries: Iterable[LoggedCommand]) -> dict[str, int]:
    last: dict[str, int] = {}
    for entry in entries:
        last[entry.log] = max(entry.id, last.get(entry.log, 0))
    return last


# Replies. Errors in them (ValueError, TypeError, LookupError) mean an answer without sense, see `NodeQueries.read`.


def _counts(stats: Fields) -> dict[str, tuple[int, int]]:
    """Return (calls, microseconds) by lower-case name of the command."""
    rows = {name[8:].lower(): parts_of(value) for name, value in stats.items() if name.startswith("cmdstat_")}
    return {clipped(name, LONGEST_NAME): (_count(row["calls"]), _count(row["usec"])) for name, row in rows.items()}


def _histograms(reply: object) -> dict[str, Steps]:
    found = {}
    for name, row in _pairs_of(reply):
        buckets = dict(_pairs_of(row)).get("histogram_usec")
        steps = [(_count(up_to_us), _count(calls)) for up_to_us, calls in _pairs_of(buckets or [])]
        found[clipped(name.lower(), LONGEST_NAME)] = tuple(sorted(steps)[:MOST_BUCKETS])
    return found


def _entries(log: str, reply: object) -> Iterator[LoggedCommand]:
    for entry in map(_items, _items(reply)[:MOST_LOGGED]):
        number, at_s, value, *rest = entry
        # Redis Enterprise has the complexity of the command here.
        arguments, *client = rest if isinstance(rest[0], list) else rest[1:]
        address, name = (*client, "", "")[:2]
        yield LoggedCommand(
            log=log,
            id=_count(number),
            at_s=_count(at_s),
            value=_count(value),
            command=_command(_items(arguments)),
            client=_name(address),
            client_name=_name(name),
        )


def _command(arguments: list[object]) -> str:
    shown = [clipped(_text(argument), LONGEST_ARGUMENT) for argument in arguments[:MOST_ARGUMENTS]]
    more = len(arguments) - len(shown)
    return clipped(" ".join(shown) + (f" ... ({more} more)" if more else ""), LONGEST_TEXT)


def _sessions(reply: object) -> Iterator[HotKey]:
    for session in _items(reply):
        found = dict(_pairs_of(session))
        for field, by in (("by-cpu-time-us", "cpu_us"), ("by-net-bytes", "net_bytes")):
            for key, value in list(_pairs_of(found.get(field, [])))[:MOST_HOT_KEYS]:
                yield HotKey(key=clipped(key, LONGEST_NAME), by=by, value=_count(value))


def _slots(reply: object) -> dict[int, dict[str, int]]:
    found = {}
    for slot, counts in map(_items, _items(reply)):
        found[_count(slot)] = {name: _count(value) for name, value in _pairs_of(counts)}
    return found


def _gained_most(before: SlotCounts, after: SlotCounts) -> tuple[BusySlot, ...]:
    def gain(slot: int, name: str) -> int | None:
        now = after[slot].get(name)
        return None if now is None else max(0, now - before.get(slot, {}).get(name, 0))

    most = sorted(after, key=lambda slot: -(gain(slot, "cpu-usec") or 0))[:MOST_SLOTS]
    return tuple(
        BusySlot(
            slot=slot,
            keys=after[slot].get("key-count", 0),
            cpu_us=gain(slot, "cpu-usec"),
            bytes_in=gain(slot, "network-bytes-in"),
            bytes_out=gain(slot, "network-bytes-out"),
        )
        for slot in most
        if gain(slot, "cpu-usec")
    )


def _items(reply: object) -> list[object]:
    if not isinstance(reply, list | tuple):
        raise TypeError(f"expected a list, got {type(reply).__name__}")
    return list(reply)


def _pairs_of(reply: object) -> Iterator[tuple[str, object]]:
    """Yield the pairs of a map: RESP3 has maps, RESP2 has lists."""
    if isinstance(reply, dict):
        pairs = list(reply.items())
    else:
        flat = _items(reply)
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
    for name, value in pairs:
        yield _text(name), value


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _name(value: object) -> str:
    return clipped(_text(value), LONGEST_NAME)


def _count(value: object) -> int:
    count = whole_number(value)
    if count is None:
        raise ValueError("expected a count")
    return count

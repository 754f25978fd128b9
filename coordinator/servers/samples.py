"""A server's INFO as a sample of its load. No I/O.

INFO is parsed here and not by redis-py, which converts some 250 fields, of which a sample needs twenty: with a hundred
servers, that would take the coordinator's time. A field that a server does not report is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from coordinator.journal.records import NodeSample
from coordinator.servers.queries import whole_number

Fields = Mapping[str, str]
_LONGEST_S = 1e11
"""More CPU time than any process has used, and less than 64 bits of microseconds."""


def fields_of(reply: object) -> dict[str, str]:
    """Return the fields of INFO, as text; empty if the reply is no text."""
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else reply if isinstance(reply, str) else ""
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value for name, colon, value in lines if colon and not name.startswith("#")}


def parts_of(value: str) -> dict[str, str]:
    """Return the parts of a field's value: "calls=1,usec=2" -> {"calls": "1", "usec": "2"}."""
    return {name: part for name, equals, part in (each.partition("=") for each in value.split(",")) if equals}


def sample_of(info: Fields, reply_us: int) -> NodeSample:
    """Return the sample for a reply to INFO that took `reply_us` microseconds."""
    lag_s, lag_bytes = _lag(info)
    return NodeSample(
        reply_us=reply_us,
        replica=is_replica(info),
        cpu_us=_cpu_us(info, "used_cpu_user", "used_cpu_sys"),
        cpu_main_us=_cpu_us(info, "used_cpu_user_main_thread", "used_cpu_sys_main_thread"),
        memory=whole_number(info.get("used_memory")),
        rss=whole_number(info.get("used_memory_rss")),
        evicted=whole_number(info.get("evicted_keys")),
        expired=whole_number(info.get("expired_keys")),
        hits=whole_number(info.get("keyspace_hits")),
        misses=whole_number(info.get("keyspace_misses")),
        clients=whole_number(info.get("connected_clients")),
        blocked=whole_number(info.get("blocked_clients")),
        commands=whole_number(info.get("total_commands_processed")),
        bytes_in=whole_number(info.get("total_net_input_bytes")),
        bytes_out=whole_number(info.get("total_net_output_bytes")),
        lag_s=lag_s,
        lag_bytes=lag_bytes,
    )


def is_replica(info: Fields) -> bool | None:
    """Return whether the server is a replica; None if it does not say."""
    return {"master": False, "primary": False, "slave": True, "replica": True}.get(info.get("role", ""))


def keys_of(info: Fields) -> int | None:
    """Return how many keys all databases of the server have; None if it does not say."""
    counts = [parts_of(value).get("keys") for name, value in info.items() if name[:2] == "db" and name[2:].isdigit()]
    if not counts and "role" not in info:
        return None  # not the usual sections: a server without keys has no field either
    return sum(whole_number(count) or 0 for count in counts)


def server_time_s(info: Fields) -> int | None:
    """Return the server's wall clock in Unix seconds; None if it does not say."""
    now_us = whole_number(info.get("server_time_usec"))
    return None if now_us is None else now_us // 1_000_000


def _cpu_us(info: Fields, *names: str) -> int | None:
    try:
        total_s = sum(float(info[name]) for name in names)
    except (KeyError, ValueError):
        return None
    return round(total_s * 1e6) if 0 <= total_s < _LONGEST_S else None


def _lag(info: Fields) -> tuple[int | None, int | None]:
    """Return (seconds, bytes), as `NodeSample` has them."""
    if is_replica(info):
        down_s = whole_number(info.get("master_link_down_since_seconds"))
        return (down_s if down_s is not None else whole_number(info.get("master_last_io_seconds_ago"))), None
    offset = whole_number(info.get("master_repl_offset"))
    replicas = list(_replicas(info))
    behind = [offset - own for _, own in replicas if own is not None and offset is not None]
    waits = [lag_s for lag_s, _ in replicas if lag_s is not None]
    return max(waits, default=None), max(0, *behind) if behind else None


def _replicas(info: Fields) -> Iterator[tuple[int | None, int | None]]:
    """Yield (seconds since its last acknowledgement, acknowledged offset) of each replica that is online."""
    for name, value in info.items():
        if name.startswith("slave") and name[5:].isdigit():
            parts = parts_of(value)
            if parts.get("state") == "online":
                yield whole_number(parts.get("lag")), whole_number(parts.get("offset"))

"""Queries to one server of the target, and connections to the servers that have the keys.

A server may refuse a query: an ACL forbids it, or the server is not an original Redis and does not know the command.
The functions here then return None or something empty. A server that cannot be reached, or that is no Redis, raises
TargetError. The target's timeouts limit every wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from common.clock import monotonic_ns
from common.plan.schema import Target
from common.redis_client import (
    PRIMARY,
    TARGET_ERRORS,
    Node,
    checked_replies,
    failure_of,
    nodes_of,
    open_control_client,
    open_node_client,
    translated,
)

_PINGS = 5
_MAX_DIGITS = 18


class CommandClient(Protocol):
    """The part of a `redis.Redis` that queries use; redis-py's own signatures are not fully typed."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and return its parsed reply."""


class CommandPipeline(Protocol):
    """The part of a redis-py pipeline that setup and clean-up use."""

    def execute_command(self, *args: Any) -> Any:
        """Add a command."""

    def execute(self, raise_on_error: bool) -> list[Any]:
        """Send all commands in one round trip. Returns their replies; an error takes the place of its reply."""


class PipelineClient(CommandClient, Protocol):
    """A client that also has pipelines."""

    def pipeline(self, transaction: bool) -> CommandPipeline:
        """Return an empty pipeline."""


@dataclass(frozen=True, slots=True)
class Primaries:
    """client: finds the server for a command by itself. each: every server that keys can be written to."""

    client: PipelineClient
    each: Sequence[PipelineClient]


@contextmanager
def open_primaries(target: Target) -> Iterator[Primaries]:
    """Open one connection to each primary, without retries. Errors of the target in the block become TargetError."""
    with translated(target), ExitStack() as stack:
        client = stack.enter_context(open_control_client(target))
        nodes = [node for node in nodes_of(target) if node.role == PRIMARY]
        servers = [stack.enter_context(open_node_client(target, node)) for node in nodes]
        yield Primaries(client, servers)


@contextmanager
def open_node(target: Target, node: Node) -> Iterator[Any]:
    """Open a `redis.Redis` of exactly this node. Its errors become a TargetError that names the node."""
    with translated(target, node.name), open_node_client(target, node) as client, checked_replies(node.name, client):
        yield client


def query(client: CommandClient, *command: str | bytes) -> Any:
    """Return the reply; None if the server refuses the command or does not know it."""
    try:
        return client.execute_command(*command)
    except TARGET_ERRORS as error:
        if failure_of(error).replied:
            return None
        raise


def info(client: CommandClient, section: str) -> dict[str, Any]:
    """Return one section of INFO; empty if the server refuses it."""
    return dictionary(query(client, "INFO", section))


def ping_us(client: CommandClient) -> float:
    """Return the median round trip of five PINGs in microseconds, on a connection that is already open."""
    trips_ns = []
    for _ in range(_PINGS):
        sent_ns = monotonic_ns()
        client.execute_command("PING")
        trips_ns.append(monotonic_ns() - sent_ns)
    return median(trips_ns) / 1000


def key_count(client: CommandClient) -> int | None:
    """Return how many keys the node has in the plan's database; None if the server does not say."""
    return whole_number(query(client, "DBSIZE"))


def max_clients(client: CommandClient) -> int | None:
    """Return the server's `maxclients`; None if the server does not say."""
    # INFO first: more ACLs permit INFO, and a refused CONFIG would appear in the server's ACL log.
    limit = whole_number(info(client, "clients").get("maxclients"))
    if limit is None:
        limit = whole_number(dictionary(query(client, "CONFIG GET", "maxclients")).get("maxclients"))
    return limit


def write_commands(client: CommandClient) -> frozenset[str] | None:
    """Return the lower-case names of all commands that may change data; None if the server does not list them.

    A subcommand adds two names: its own, "xgroup|create", and its command's, "xgroup".
    """
    listed = query(client, "COMMAND LIST", "FILTERBY", "ACLCAT", "write")
    if listed is None:
        return None
    names = {(name.decode() if isinstance(name, bytes) else str(name)).lower() for name in listed}
    return frozenset(names | {name.partition("|")[0] for name in names})


def dictionary(reply: Any) -> dict[str, Any]:
    """Return a reply that is a map; an empty dictionary for any other reply."""
    return reply if isinstance(reply, dict) else {}


def whole_number(value: object) -> int | None:
    """Return a whole number from a reply; None for anything else."""
    text = str(value) if isinstance(value, int | str | bytes) else ""
    # A number with more digits does not fit the journal's integers, and no count is that large.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None

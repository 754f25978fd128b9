"""Where a target's keys are: its one server, the primary that its Sentinels know, or each primary of a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from common.plan.schema import Target
from common.redis_client import PRIMARY, nodes_of, open_control_client, open_node_client, translated


class Pipeline(Protocol):
    """Commands that go out in one round trip."""

    def execute_command(self, *args: Any) -> Any:
        """One more of them."""

    def execute(self, raise_on_error: bool) -> list[Any]:
        """Their replies, or the errors in the place of these."""


class Server(Protocol):
    """A client as it is used here: redis-py's own signatures are not fully typed."""

    def execute_command(self, *args: Any) -> Any:
        """One command and its parsed reply."""

    def pipeline(self, transaction: bool) -> Pipeline:
        """An empty one."""


@dataclass(frozen=True, slots=True)
class Primaries:
    """client: finds the server for a command by itself. each: every server that keys can be written to."""

    client: Server
    each: Sequence[Server]


@contextmanager
def open_primaries(target: Target) -> Iterator[Primaries]:
    """One connection to each; nothing is tried twice. What the target does wrong within comes out as TargetError."""
    with translated(target), ExitStack() as stack:
        client = stack.enter_context(open_control_client(target))
        nodes = [node for node in nodes_of(target) if node.role == PRIMARY]
        servers = [stack.enter_context(open_node_client(target, node)) for node in nodes]
        yield Primaries(client, servers)

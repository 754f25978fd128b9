"""What a worker of the wire driver works with, beside what every driver's does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.worker.drivers.wire.batch_results import Replies
from agent.worker.drivers.wire.channel import Channel
from common.redis_client import ConnectionEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a worker needs beside what is told of every driver's.

    reopen: has a connection made anew, and calls `opened` or `refused` when that has come to something. reopen_later:
    the same after a pause. reopen_soon: after a short one, for when there is nothing else to do. refresh: has the
    topology read again. reread: the same, at most a few times a second, for slots that no node serves. parked: called
    for a connection that is not reopened, because its node is gone; `reopen` opens it when the node is back. is_plain:
    no reply leads to anything. is_fixed: the bytes of a batch of several tell those of each command. is_watched: the
    primary is the one that Sentinels name. is_shared: one quota is of several nodes. timeout_ns: how long a reply may
    take. refresh_after: this many MOVED, 0 for never.
    """

    replies: Replies
    events: ConnectionEvents
    reopen: Callable[[Channel], None]
    reopen_later: Callable[[Channel], None]
    reopen_soon: Callable[[Channel], None]
    refresh: Callable[[], None]
    parked: Callable[[Channel], None]
    reread: Callable[[], None]
    is_plain: bool
    is_fixed: bool
    is_watched: bool
    is_shared: bool
    timeout_ns: int
    refresh_after: int = 0

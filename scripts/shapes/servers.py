"""The servers of each shape of the matrix: on loopback, and gone with the block."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from common.errors import UsageError
from common.plan.schema import Embedded
from coordinator.embedded import open_embedded
from scripts.shapes.targets import Group, make_papers, start_tls, start_tls_cluster, start_tls_sentinel, start_unix

Flags = tuple[str, ...]
Servers = Callable[[Path], AbstractContextManager[tuple[str, Flags]]]
"""Given a directory for what they need: their URL, and the flags that a plan needs beside it."""


def _embedded(kind: Embedded) -> Servers:
    @contextmanager
    def servers(_: Path) -> Iterator[tuple[str, Flags]]:
        with open_embedded(kind) as server:
            yield server.url, ()

    return servers


@contextmanager
def _unix(_: Path) -> Iterator[tuple[str, Flags]]:
    with start_unix() as (group, _path):
        yield group.url, ()


def _tls(start: Callable[..., AbstractContextManager[Group]], *more: str) -> Servers:
    @contextmanager
    def servers(directory: Path) -> Iterator[tuple[str, Flags]]:
        if shutil.which("redis-server") is None:
            raise UsageError("expected redis-server for TLS, found none: apt-get install redis-server")
        papers = make_papers(directory)
        with start(papers, *more) as group:
            client = ("--tls-cert-file", papers["client"], "--tls-key-file", papers["client_key"]) if more else ()
            yield group.url, ("--tls-ca-file", papers["ca"], *client)

    return servers


SHAPES: dict[str, Servers] = {
    "standalone": _embedded(Embedded.STANDALONE),
    "unix": _unix,
    "tls": _tls(start_tls),
    # The server wants a certificate of ours, too.
    "mutual-tls": _tls(start_tls, "server", "yes"),
    "sentinel": _embedded(Embedded.SENTINEL),
    "tls-sentinel": _tls(start_tls_sentinel),
    "cluster": _embedded(Embedded.CLUSTER),
    "tls-cluster": _tls(start_tls_cluster),
}

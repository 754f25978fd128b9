from __future__ import annotations

import socket
from typing import Any

import pytest

from common.errors import UsageError
from common.protocol import endpoint as endpoint_module
from common.protocol.endpoint import Endpoint, UnresolvedError, outward_host, parse_endpoint, resolve, to_bind

WRITTEN = {
    "10.0.0.5": ("10.0.0.5", 5555),
    "10.0.0.5:6000": ("10.0.0.5", 6000),
    "tcp://10.0.0.5:6000": ("10.0.0.5", 6000),
    "tcp://host": ("host", 5555),
    "load-7.example.com:1": ("load-7.example.com", 1),
    "[::1]": ("::1", 5555),
    "[::1]:6000": ("::1", 6000),
    "tcp://[fe80::1%eth0]:6000": ("fe80::1%eth0", 6000),
    "::1": ("::1", 5555),
    "fe80::1%eth0": ("fe80::1%eth0", 5555),
    "*": ("*", 5555),
    "*:0": ("*", None),
    "127.0.0.1:*": ("127.0.0.1", None),
    "müller:1": ("müller", 1),
}
NONSENSE = (
    "", ":", ":5555", "a b", "host:", "host:x", "host:70000", "host:-1", "host:5555/", "http://host:1", "tcp://",
    "[::1", "[::1]x", "[host]:1", "[]:1", "1:2:x", "user@host", "host:٣",
)  # fmt: skip


@pytest.mark.parametrize(("text", "parts"), WRITTEN.items(), ids=list(WRITTEN))
def test_an_address_is_read_with_or_without_scheme_port_and_brackets(text: str, parts: tuple[str, int | None]) -> None:
    address = parse_endpoint(text)
    assert (address.host, address.port) == parts
    assert parse_endpoint(address.tcp) == parse_endpoint(str(address)) == address


@pytest.mark.parametrize("text", NONSENSE)
def test_a_malformed_address_is_shown_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"10\.0\.0\.5:5555, got "):
        parse_endpoint(text)


def test_addresses_that_no_other_machine_reaches_are_loopback() -> None:
    assert [parse_endpoint(text).is_loopback for text in ("127.0.0.1", "127.9.9.9:1", "::1", "0.0.0.0", "host")] == [
        True, True, True, False, False
    ]  # fmt: skip
    assert [parse_endpoint(text).is_any for text in ("0.0.0.0", "*", "[::]:1", "::1", "host")] == [
        True, True, True, False, False
    ]  # fmt: skip


def answering(monkeypatch: pytest.MonkeyPatch, *places: tuple[Any, ...]) -> None:
    """Have every name resolve to these."""

    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        del host
        return [(None, None, None, "", (place[0], port, *place[1:])) for place in places]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_name_has_all_its_addresses_each_once_and_zones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ("2001:db8::7", 0, 0), ("10.0.0.7",), ("10.0.0.7",), ("fe80::1", 0, 3))
    assert [str(one) for one in resolve(Endpoint("load-7", 5555))] == [
        "[2001:db8::7]:5555",
        "10.0.0.7:5555",
        "[fe80::1%3]:5555",
    ]


def test_a_name_with_both_kinds_of_address_is_bound_on_ipv4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, ("::1", 0, 0), ("127.0.0.1",))
    assert to_bind(Endpoint("localhost", None)) == Endpoint("127.0.0.1", None)
    answering(monkeypatch, ("::1", 0, 0))
    assert to_bind(Endpoint("localhost", 1)) == Endpoint("::1", 1)


def test_interfaces_and_any_host_are_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch)
    assert to_bind(Endpoint("lo", 1)) == Endpoint("lo", 1)
    assert to_bind(Endpoint("*", 1)) == Endpoint("*", 1)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64, "a..b"])
def test_a_name_that_does_not_resolve_is_one_line(host: str) -> None:
    with pytest.raises(UnresolvedError, match=f"cannot resolve {host}: "):
        resolve(Endpoint(host, 1))


def test_the_outward_address_is_that_of_a_route_and_never_loopback() -> None:
    found = outward_host("127.0.0.1", ipv4_only=True)
    assert not Endpoint(found, 1).is_loopback
    assert outward_host("no-such-host.invalid", ipv4_only=True) == found


def test_without_a_route_the_outward_address_is_one_of_the_hosts_name_or_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint_module, "_own_host_toward", lambda *_: None)
    monkeypatch.setattr(socket, "gethostname", lambda: "load-0")
    answering(monkeypatch, ("127.0.1.1",), ("2001:db8::7", 0, 0), ("10.0.0.7",))
    assert outward_host("", ipv4_only=True) == "10.0.0.7"
    assert outward_host("", ipv4_only=False) == "2001:db8::7"
    answering(monkeypatch, ("127.0.1.1",))
    assert outward_host("", ipv4_only=False) == "load-0"

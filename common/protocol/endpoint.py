"""Addresses at which a coordinator listens and agents connect: parsing and name resolution."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from common.errors import UsageError
from common.units import show

DEFAULT_PORT = 5555
ANY_HOST = "*"
_EXAMPLE = f"10.0.0.5:{DEFAULT_PORT}"
_HOST = re.compile(r"[\w.-]+")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(%[\w.-]+)?")
_BRACKETED = re.compile(r"\[([^]]*:[^]]*)\](?::(.*))?")
_LARGEST_PORT = 65535
_NOWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Documentation addresses. The system routes them like any address of the internet. Nothing is sent to them."""


class UnresolvedError(UsageError):
    """A name has no address, or the resolver failed. The text is the resolver's."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port. host: a name, an IPv4 address, an IPv6 address without brackets, or ANY_HOST. port: None for a
    free port."""

    host: str
    port: int | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{'*' if self.port is None else self.port}"

    @property
    def tcp(self) -> str:
        """The address for ZeroMQ."""
        return f"tcp://{self}"

    @property
    def is_any(self) -> bool:
        """Whether it means all interfaces of a host."""
        found = _ip(self.host)
        return self.host == ANY_HOST or (found is not None and found.is_unspecified)

    @property
    def is_loopback(self) -> bool:
        """Whether it is reachable from this machine only."""
        found = _ip(self.host)
        return found is not None and found.is_loopback


def parse_endpoint(text: str) -> Endpoint:
    """`host`, `host:port`, `[::1]:port` or `::1`, with or without `tcp://`. The host `*` means all interfaces; the port
    `*` or 0 means a free one. Raises UsageError for anything else."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "tcp", text
    host, port = _split(rest)
    fits = _IPV6 if ":" in host else _HOST
    if scheme != "tcp" or not (host == ANY_HOST or fits.fullmatch(host)):
        raise UsageError(f"expected an address such as {_EXAMPLE}, got {show(text)}")
    if port is None:
        return Endpoint(host, DEFAULT_PORT)
    if port in ("*", "0"):
        return Endpoint(host, None)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= _LARGEST_PORT):
        raise UsageError(f"expected a port from 1 to {_LARGEST_PORT}, as in {_EXAMPLE}, got {show(text)}")
    return Endpoint(host, int(port))


def resolve(address: Endpoint) -> list[Endpoint]:
    """The numeric addresses of a host, in the order to try them. Raises UnresolvedError."""
    try:
        found = socket.getaddrinfo(address.host, address.port or 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = "it is not a host name" if isinstance(error, UnicodeError) else error.strerror or str(error)
        raise UnresolvedError(f"cannot resolve {address.host}: {why}") from error
    hosts = [_numeric(place) for *_, place in found]
    return [Endpoint(host, address.port) for host in dict.fromkeys(hosts)]


def to_bind(address: Endpoint) -> Endpoint:
    """The address to listen at; IPv4 if a name has both kinds. Raises UnresolvedError."""
    if address.host == ANY_HOST or _is_interface(address.host):
        return address
    found = resolve(address)
    return next((one for one in found if ":" not in one.host), found[0])


def outward_host(toward: str, *, ipv4_only: bool) -> str:
    """The address at which other machines most likely reach this host: its address on the route to `toward`, or to the
    internet. Without such a route: an address of the host's name, or the name itself."""
    for family, there in ((socket.AF_UNSPEC, toward), *_NOWHERE):
        if there and not (ipv4_only and family == socket.AF_INET6):
            host = _own_host_toward(there, socket.AF_INET if ipv4_only else family)
            if host is not None:
                return host
    name = socket.gethostname()
    try:
        found = resolve(Endpoint(name, None))
    except UnresolvedError:
        return name
    fitting = (one.host for one in found if not (ipv4_only and ":" in one.host))
    return next((host for host in fitting if _is_outward(host)), name)


def _own_host_toward(there: str, family: int) -> str | None:
    try:
        found = socket.getaddrinfo(there, 9, family=family, type=socket.SOCK_DGRAM)
        with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[0][4])  # UDP: chooses a route, sends nothing
            host = str(probe.getsockname()[0])
    except (OSError, UnicodeError):
        return None
    return host if _is_outward(host) else None


def _is_outward(host: str) -> bool:
    """Whether other machines may reach this host at a numeric address."""
    ip = _ip(host)
    return ip is not None and not (ip.is_loopback or ip.is_unspecified or ip.is_link_local)


def _split(rest: str) -> tuple[str, str | None]:
    """(host, port; None without one)."""
    if bracketed := _BRACKETED.fullmatch(rest):
        return bracketed[1], bracketed[2]
    if rest.count(":") > 1:
        return rest, None
    host, colon, port = rest.partition(":")
    return host, port if colon else None


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _numeric(place: tuple[object, ...]) -> str:
    """The address in a result of getaddrinfo, which stores the IPv6 zone separately."""
    host, zone = str(place[0]), place[3] if len(place) > 3 else 0
    return f"{host}%{zone}" if zone and "%" not in host else host


def _is_interface(host: str) -> bool:
    """Whether `host` is the name of a network interface, which ZeroMQ accepts too."""
    try:
        socket.if_nametoindex(host)
    except (OSError, ValueError):
        return False
    return True

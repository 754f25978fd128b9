"""Parses the target's URL, and hides passwords in it. The forms:

    redis://[user[:password]@]host[:port][/db]                        one server; rediss:// with TLS
    unix://[user[:password]@]/path/to.sock[?db=N]                     one server behind a socket of this machine
    redis+sentinel://[user[:password]@]host[:port],.../service[/db]   the primary that Sentinels know; rediss+sentinel://
    redis+cluster://[user[:password]@]host[:port],...[/db]            a cluster; rediss+cluster://

User, password and the path of the socket are percent-decoded. An IPv6 address is in brackets and may have a zone after
`%25`, as in `redis://[fe80::1%25eth0]:6379`, or after a plain `%`. Without a scheme, `redis://` is assumed:
`localhost:6379`. Error texts never have a password.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from urllib.parse import quote, unquote

import msgspec

from common.errors import PlanError
from common.redaction import REDACTED
from common.units import show

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379


class TargetKind(enum.Enum):
    """The kind of target in a URL: one server, the primary that Sentinels know, or the nodes of a cluster."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


_SCHEMES: dict[str, tuple[TargetKind, bool]] = {
    "redis": (TargetKind.STANDALONE, False),
    "rediss": (TargetKind.STANDALONE, True),
    "unix": (TargetKind.STANDALONE, False),
    "redis+sentinel": (TargetKind.SENTINEL, False),
    "rediss+sentinel": (TargetKind.SENTINEL, True),
    "redis+cluster": (TargetKind.CLUSTER, False),
    "rediss+cluster": (TargetKind.CLUSTER, True),
}
_FORMS = {
    "unix": "unix://[username[:password]@]/path/to.sock[?db=N]",
    TargetKind.STANDALONE: "{scheme}://[username[:password]@]host[:port][/db]",
    TargetKind.SENTINEL: "{scheme}://[username[:password]@]host[:port],.../service[/db]",
    TargetKind.CLUSTER: "{scheme}://[username[:password]@]host[:port],...[/db]",
}


class Host(msgspec.Struct, frozen=True):
    """A host name or IP address, and a port. name: an IPv6 address without brackets; a zone follows a `%`."""

    name: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        """`host:port`."""
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"

    @property
    def in_url(self) -> str:
        """The host as a URL writes it."""
        return str(self).replace("%", "%25") if ":" in self.name else str(self)


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """The address of the target, with user and password.

    hosts: the server, the Sentinels, or some nodes of the cluster; empty for a unix socket, which is at `path`.
    service: the name that Sentinels have for their primary.
    """

    kind: TargetKind = TargetKind.STANDALONE
    tls: bool = False
    hosts: tuple[Host, ...] = ()
    path: str | None = None
    service: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        """Never shows the password."""
        return f"Address({self.url!r}, username={self.username!r})"

    def __str__(self) -> str:
        """The address as error messages name it: `host:port`, the path, or the Sentinels or nodes."""
        if self.path is not None:
            return self.path
        hosts = ",".join(map(str, self.hosts))
        named = {TargetKind.SENTINEL: f"{self.service} of Sentinels {hosts}", TargetKind.CLUSTER: f"cluster {hosts}"}
        return named.get(self.kind, hosts)

    @property
    def scheme(self) -> str:
        """The scheme of the URL."""
        if self.path is not None:
            return "unix"
        return next(scheme for scheme, what in _SCHEMES.items() if what == (self.kind, self.tls))

    @property
    def url(self) -> str:
        """The URL, without user name and password."""
        if self.path is not None:
            return f"unix://{quote(self.path)}?db={self.db}"
        parts = [",".join(host.in_url for host in self.hosts)]
        if self.service is not None:
            parts.append(quote(self.service, safe=""))
        if self.kind is not TargetKind.CLUSTER or self.db:
            parts.append(str(self.db))
        return f"{self.scheme}://{'/'.join(parts)}"


def parse_redis_url(url: str) -> Address:
    """The address in a URL. Raises PlanError, which quotes the URL without its password."""
    text = url.strip()
    scheme, rest = _scheme_and_rest(text)
    if scheme is None:
        if why := _not_a_host(text):
            raise _refusal(url, why)
        return _hosts(url, "redis", text)
    if scheme not in _SCHEMES:
        raise _refusal(url, f"the scheme is {show(scheme)}")
    return _socket(url, rest) if scheme == "unix" else _hosts(url, scheme, rest)


def redact_url(url: str) -> str:
    """The URL with `***` for everything that may be secret: the user part, options, and in a malformed URL everything
    that is not a host, port, database, service or path."""
    scheme, rest = _scheme_and_rest(url)
    userinfo, at, place = rest.rpartition("@")
    shown = f"{scheme}://" if scheme is not None else ""
    shown += f"{REDACTED}@" if userinfo else at
    if scheme == "unix":
        path, question, options = place.partition("?")
        options = options if _DATABASE_OPTION.fullmatch(options) else REDACTED
        return shown + (path if path.startswith("/") else REDACTED) + question + options
    authority, path = _split(place)
    path, option_mark, _ = re.fullmatch(r"([^?#]*)([?#]?)(.*)", path, re.DOTALL).groups()  # type: ignore[union-attr]
    is_path = _SERVICE_AND_DATABASE if scheme is not None and scheme.endswith("+sentinel") else _DATABASE
    shown += authority if all(map(_is_host_and_port, authority.split(","))) else REDACTED
    shown += f"/{path if is_path.fullmatch(path) else REDACTED}" if path else ""
    return shown + (f"{option_mark}{REDACTED}" if option_mark else "")


_DATABASE = re.compile(r"\d{0,9}")
_NAME_AND_PORT = re.compile(r"[\w.-]*:\d{0,5}")
_DATABASE_OPTION = re.compile(r"(db=\d+)?")
_SERVICE_AND_DATABASE = re.compile(r"[\w.%-]+(/\d*)?")


def _is_host_and_port(text: str) -> bool:
    found = _HOST.fullmatch(text)
    return found is not None and _NAME_AND_PORT.fullmatch(f"{found['name'] or ''}:{found['port'] or ''}") is not None


_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def _scheme_and_rest(url: str) -> tuple[str | None, str]:
    """(scheme, text after `://`); (None, all of the text) without a scheme, also if `://` is part of a password."""
    found = _SCHEME.fullmatch(url)
    return (found[1], found[2]) if found else (None, url)


def _not_a_host(text: str) -> str:
    """Why a text without a scheme is not the address of one server, with a remedy; "" if it may be an address."""
    authority, _ = _split(text)
    place = text.rpartition("@")[2]
    if re.match(r"(rediss?|unix|rediss?\+(sentinel|cluster)):?//?[^/0-9]", text):
        return "a scheme ends in ://"
    if place.startswith("/"):
        return "it is a path; a unix socket is unix:///path/to.sock"
    if "," in place:
        return "it names several hosts; use redis+cluster:// or redis+sentinel://"
    if place.endswith((".yaml", ".yml", ".json")):
        return "it is the name of a file; a plan file is an argument without a flag"
    if place.count(":") > 1 and not place.startswith("[") and _is_ipv6(place.partition("/")[0]):
        return "an IPv6 address needs brackets, such as [::1]:6379"
    if authority.endswith(":"):
        return "a port is missing after the colon"
    return "" if re.fullmatch(r"[\w.\-:%\[\]]*", authority.rpartition("@")[2]) else "it has no scheme"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _socket(url: str, rest: str) -> Address:
    authority, slash, path = rest.partition("/")
    path, _, query = path.partition("?")
    credentials, _, host = authority.rpartition("@")
    if not slash or not path or host:
        raise _refusal(url, "it has no absolute path, which begins with a third slash")
    key, _, db = query.partition("=")
    if "#" in path or "#" in query or (query and key != "db"):
        raise _refusal(url, "options after ? or #, except for ?db=N, belong in the plan's target")
    username, password = _credentials(credentials)
    return Address(path="/" + unquote(path), db=_database(url, db), username=username, password=password)


def _hosts(url: str, scheme: str, rest: str) -> Address:
    kind, tls = _SCHEMES[scheme]
    authority, path = _split(rest)
    credentials, _, listed = authority.rpartition("@")
    default_port = DEFAULT_SENTINEL_PORT if kind is TargetKind.SENTINEL else DEFAULT_PORT
    texts = listed.split(",") if kind is not TargetKind.STANDALONE else [listed]
    hosts = tuple(_host(url, text, default_port) for text in texts)
    if re.search(r"[?#]", path):
        raise _refusal(url, "options after ? or # belong in the plan's target")
    service = None
    if kind is TargetKind.SENTINEL:
        encoded, _, path = path.partition("/")
        service = unquote(encoded)
        if not service:
            raise _refusal(url, "it names no service, the name that the Sentinels have for their primary")
    username, password = _credentials(credentials)
    return Address(
        kind=kind,
        tls=tls,
        hosts=hosts,
        service=service,
        db=_database(url, path),
        username=username,
        password=password,
    )


def _split(rest: str) -> tuple[str, str]:
    """(authority, the rest without its first slash)."""
    end = re.search(r"[/?#]", rest)
    if end is None:
        return rest, ""
    return rest[: end.start()], rest[end.start() :].removeprefix("/")


_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9a-fA-F:.]+)(?:%(?:25)?(?P<zone>[\w.~-]+))?\]|(?P<name>[^\[\]:]*))(?::(?P<port>.*))?", re.DOTALL
)


def _host(url: str, text: str, default_port: int) -> Host:
    try:
        name, port = parse_host_port(text)
    except ValueError as error:
        raise _refusal(url, str(error)) from error
    return Host(name, port or default_port)


def parse_host_port(text: str) -> tuple[str, int | None]:
    """(host, port) of `host:port`, or (host, None) of `host`. Raises ValueError, which does not quote the text."""
    found = _HOST.fullmatch(text)
    port = found["port"] if found else None
    if found is None or (port and not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) <= 65535)):
        # Not quoted: the text can be a piece of a password that has a slash.
        raise ValueError("the port is not a number up to 65535, or a / ? # in a password is not percent-encoded")
    name = (found["v6"] or found["name"]).lower()
    if not name:
        raise ValueError("it names no host")
    if port and int(port) == 0:
        raise ValueError("the port is 0")
    # Interface names are case-sensitive, host names are not.
    return f"{name}%{found['zone']}" if found["zone"] else name, int(port) if port else None


def _credentials(text: str) -> tuple[str | None, str | None]:
    username, _, password = text.partition(":")
    return unquote(username) or None, unquote(password) or None


def _database(url: str, text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise _refusal(url, "the database is not a whole number")
    return int(text)


def _refusal(url: str, why: str) -> PlanError:
    scheme, _ = _scheme_and_rest(url)
    if scheme not in _SCHEMES:
        scheme = "redis"
    form = _FORMS["unix" if scheme == "unix" else _SCHEMES[scheme][0]].format(scheme=scheme)
    others = "" if scheme != "redis" else ", or rediss://, unix://, redis+sentinel:// or redis+cluster://"
    return PlanError(f"expected {form}{others}, got {show(redact_url(url))}: {why}")

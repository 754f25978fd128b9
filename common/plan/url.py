"""The target's URL and what it says: `redis://[username[:password]@]host[:port][/db]`. Pure text work.

User name and password are percent-decoded. A password never appears in an error's text.
"""

from __future__ import annotations

from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from common.errors import PlanError
from common.plan.schema import REDACTED
from common.units import show

DEFAULT_PORT = 6379
_FORM = "redis://[username[:password]@]host[:port][/db]"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a Redis is and who we are to it. `host` of an IPv6 address is without brackets."""

    host: str
    port: int = DEFAULT_PORT
    db: int = 0
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        """Never shows the password."""
        return f"Address({str(self)!r}, username={self.username!r})"

    def __str__(self) -> str:
        """`host:port`, as error messages name it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_redis_url(url: str) -> Address:
    """What a URL says. Raises PlanError, whose one line quotes the URL without its password."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        # Its text can quote a piece of a password that holds a slash, so it is not passed on.
        raise _refused(
            url, "the port is no number up to 65535, or a / ? # in a password is not percent-encoded"
        ) from None
    if parts.scheme != "redis":
        raise _refused(url, f"the scheme is {show(parts.scheme)}" if parts.scheme else "it has no scheme")
    if not parts.hostname:
        raise _refused(url, "it names no host")
    if port == 0:
        raise _refused(url, "the port is 0")
    if parts.query or parts.fragment:
        raise _refused(url, "options after ? or # belong into the plan's target")
    return Address(
        host=parts.hostname,
        port=DEFAULT_PORT if port is None else port,
        db=_database(url, parts),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def redact_url(url: str) -> str:
    """The URL with `***` in place of its password; also of a URL that is not well formed."""
    head, scheme, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    if not at:
        return url
    username, colon, _ = credentials.partition(":")
    return f"{head}{scheme}{username}{colon}{REDACTED if colon else ''}@{place}"


def _database(url: str, parts: SplitResult) -> int:
    text = parts.path.removeprefix("/")
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise _refused(url, "the database is not a whole number")
    return int(text)


def _refused(url: str, why: str) -> PlanError:
    return PlanError(f"expected {_FORM}, got {show(redact_url(url))}: {why}")

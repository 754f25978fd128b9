"""`target.address_remap`: the addresses at which clients reach the servers that clusters and Sentinels announce.

A rule maps FROM to TO; both are `host:port` or `host`. A rule for `host:port` has precedence over a rule for `host`. If
TO has no port, the announced port stays.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from common.plan.schema.target_url import parse_host_port, redact_url
from common.units import show

_Address = tuple[str, int | None]


class AddressMap:
    """The rules of one target. Raises ValueError for a malformed rule."""

    def __init__(self, rules: Mapping[str, str]) -> None:
        self._rules = {_place(announced): _place(reached) for announced, reached in rules.items()}

    def resolve(self, host: str, port: int) -> tuple[str, int]:
        """The address at which clients reach the server that is announced at this address."""
        name = host.lower()
        to_host, to_port = self._rules.get((name, port)) or self._rules.get((name, None)) or (host, port)
        return to_host, to_port or port

    def maps_to(self, host: str, port: int) -> bool:
        """Whether a rule maps to this address."""
        return any(place in ((host, port), (host, None)) for place in self._rules.values())


def parse_address_map(text: str) -> dict[str, str]:
    """`"10.0.0.1:6379=127.0.0.1:7000"` -> {"10.0.0.1:6379": "127.0.0.1:7000"}; separated by commas. Raises
    ValueError."""
    rules = {}
    for part in text.split(","):
        announced, equals, reached = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f'expected FROM=TO such as "10.0.0.1:6379=127.0.0.1:7000", got {show(redact_url(text))}')
        rules[announced] = reached
    AddressMap(rules)
    return rules


def _place(text: str) -> _Address:
    try:
        return str(ipaddress.IPv6Address(text)), None
    except ValueError:
        pass
    try:
        return parse_host_port(text)
    except ValueError as error:
        raise ValueError(f'expected HOST:PORT or HOST such as "10.0.0.1:6379", got {show(redact_url(text))}') from error

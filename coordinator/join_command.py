"""The command that joins agents on other machines, with an address at which they reach this coordinator."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from common.plan.schema.target_url import parse_redis_url
from common.protocol.endpoint import Endpoint, outward_host
from common.protocol.token import Credentials
from common.protocol.token_sources import TOKEN

_CONTAINER_FILES = (Path("/.dockerenv"), Path("/run/.containerenv"))
_KUBERNETES = "KUBERNETES_SERVICE_HOST"


def reachable_at(bound: Endpoint, target_url: str) -> Endpoint:
    """Return the address at which other machines most likely reach a coordinator that listens at `bound`. If it listens
    on all interfaces: its address on the route to the target, or to the internet."""
    if not bound.is_any:
        return bound
    hosts = parse_redis_url(target_url).hosts
    host = outward_host(hosts[0].name if hosts else "", ipv4_only=bound.host == "0.0.0.0")
    return Endpoint(host, bound.port)


def join_command(where: Endpoint, credentials: Credentials | None) -> str:
    """Return the command for a load machine. credentials: None with --insecure."""
    command = f"agent join {where}"
    if credentials is None:
        return f"{command} --insecure"
    if credentials.file is None:
        return f"{TOKEN}=... {command}"
    if not where.is_loopback:
        return f"{command} --token-file TOKEN"
    return command if credentials.is_usual else f"{command} --token-file {shlex.quote(str(credentials.file))}"


def invitation(bound: Endpoint, where: Endpoint, credentials: Credentials | None, *, contained: bool) -> str:
    """Return one line for the user who starts the agents. where: see `reachable_at`. contained: the coordinator runs in
    a container."""
    hints = [f"agents join with: {join_command(where, credentials)}"]
    if credentials is not None and credentials.file is not None and not where.is_loopback:
        hints.append(f"TOKEN is a copy of {credentials.file}")
    if contained and bound.is_any:
        hints.append("outside this container, use its published address")
    return "; ".join(hints)


def loopback_note(bound: Endpoint) -> str:
    """Return a line for the user if agents on other machines cannot reach `bound`; "" if they can."""
    if not bound.is_loopback:
        return ""
    anywhere = Endpoint("::" if ":" in bound.host else "0.0.0.0", bound.port)
    return (
        f"only agents on this machine can join at {bound}; for other machines, use --bind {shlex.quote(str(anywhere))}"
    )


def in_container(environment: Mapping[str, str]) -> bool:
    """Whether this process most likely runs in a container, whose addresses are not valid outside."""
    return _KUBERNETES in environment or any(path.exists() for path in _CONTAINER_FILES)

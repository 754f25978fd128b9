"""Converts `plan.target` into arguments of redis-py, for threads and for asyncio."""

from __future__ import annotations

import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from redis.cluster import LoadBalancingStrategy
from redis.driver_info import DriverInfo
from redis.maint_notifications import EndpointType, MaintNotificationsConfig

from common.errors import PlanError
from common.plan import schema
from common.plan.schema.target_url import DEFAULT_PORT, Address, Host, parse_host_port, parse_redis_url
from common.units import printable, show

_LARGEST_PEM_BYTES = 16 << 20
"""Ample: all the certificates that a system trusts take about 0.3 MB."""


def address_of(target: schema.Target) -> Address:
    """The address of the target. The plan's user name and password have precedence over the URL's. Raises PlanError."""
    address = parse_redis_url(target.url)
    return msgspec.structs.replace(
        address, username=target.username or address.username, password=target.password or address.password
    )


def connection_arguments(target: schema.Target) -> dict[str, Any]:
    """Arguments that all connections to servers with data have in common: user, database, protocol, name, timeouts,
    keepalive, health check, maintenance notifications, and TLS except for `server_name`. Raises PlanError."""
    address = address_of(target)
    return _common(target, address) | {
        "db": address.db,
        "username": address.username,
        "password": address.password,
        **_name_arguments(target),
        "health_check_interval": float(target.health_check_interval_s),
        "maint_notifications_config": _maintenance(target),
    }


def sentinel_arguments(target: schema.Target) -> dict[str, Any]:
    """The same for connections to Sentinels, which have their own users, and no databases. Raises PlanError."""
    return _common(target, address_of(target)) | {
        "username": target.sentinel.username,
        "password": target.sentinel.password,
        **_name_arguments(target),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def place_arguments(address: Address) -> dict[str, Any]:
    """Arguments with the address of a standalone server."""
    if address.path is not None:
        return {"path": address.path}
    return {"host": address.hosts[0].name, "port": address.hosts[0].port}


def replicas_of(target: schema.Target) -> tuple[Host, ...]:
    """The replicas that the plan lists. Raises PlanError for a malformed address."""
    found = []
    for text in target.replicas:
        try:
            name, port = parse_host_port(text)
        except ValueError as error:
            raise PlanError(f"target.replicas: expected HOST:PORT, got {show(text)}: {error}") from error
        found.append(Host(name, DEFAULT_PORT if port is None else port))
    return tuple(found)


def server_name(target: schema.Target) -> str | None:
    """The name to request (SNI) and to expect in certificates; None for the connection's host."""
    return target.tls.server_name


def cluster_arguments(target: schema.Target) -> dict[str, Any]:
    """Arguments of cluster clients only."""
    cluster = target.cluster
    return {
        "load_balancing_strategy": _STRATEGIES[cluster.read_from],
        "reinitialize_steps": cluster.reinitialize_steps,
        "require_full_coverage": cluster.require_full_coverage,
        "dynamic_startup_nodes": cluster.dynamic_startup_nodes,
    }


# "auto" costs a round trip for every connect to a server without notifications.
_MAINTENANCE: dict[schema.Maintenance, Any] = {
    schema.Maintenance.OFF: False,
    schema.Maintenance.ON: True,
    schema.Maintenance.AUTO: "auto",
}


_UNCHANGED_TIMEOUT = -1
"""For redis-py: do not relax the timeouts."""


def _maintenance(target: schema.Target) -> MaintNotificationsConfig:
    if target.protocol < 3:
        # Notifications are push messages, which protocol 2 does not have. redis-py refuses "auto" with protocol 2.
        return MaintNotificationsConfig(enabled=False)
    is_auto = target.endpoint_type is schema.EndpointType.AUTO
    return MaintNotificationsConfig(
        enabled=_MAINTENANCE[target.maintenance],
        relaxed_timeout=float(target.relaxed_timeout_s) or _UNCHANGED_TIMEOUT,
        endpoint_type=None if is_auto else EndpointType(target.endpoint_type.value),
    )


_STRATEGIES: dict[schema.ReadFrom, LoadBalancingStrategy | None] = {
    schema.ReadFrom.PRIMARY: None,
    schema.ReadFrom.ANY: LoadBalancingStrategy.ROUND_ROBIN,
    schema.ReadFrom.REPLICAS: LoadBalancingStrategy.ROUND_ROBIN_REPLICAS,
    schema.ReadFrom.RANDOM: LoadBalancingStrategy.RANDOM,
    schema.ReadFrom.RANDOM_REPLICA: LoadBalancingStrategy.RANDOM_REPLICA,
}


_DRIVER_INFO = DriverInfo()
"""The name and version that redis-py sends. Made once, because otherwise each connection reads the version from a file.
At the limit of open files, that fails, and redis-py's TCP pool loses a connection slot."""


def _name_arguments(target: schema.Target) -> dict[str, Any]:
    """Arguments for CLIENT SETNAME and CLIENT SETINFO. Without a name, no CLIENT command is sent at all."""
    if target.client_name:
        return {"client_name": target.client_name, "driver_info": _DRIVER_INFO}
    return {"client_name": None, "driver_info": None}


def _common(target: schema.Target, address: Address) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "protocol": target.protocol,
        "socket_connect_timeout": float(target.connect_timeout_s) or None,
        "socket_timeout": float(target.socket_timeout_s) or None,
    }
    if address.path is None:
        arguments |= _keepalive(target.keepalive)
    if address.tls:
        arguments |= _tls(target.tls)
    return arguments


def _keepalive(keepalive: schema.Keepalive) -> dict[str, Any]:
    if not keepalive.enabled:
        return {"socket_keepalive": False, "socket_keepalive_options": {}}
    values = {
        # macOS has TCP_KEEPALIVE instead.
        "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE": int(keepalive.idle_s),
        "TCP_KEEPINTVL": int(keepalive.interval_s),
        "TCP_KEEPCNT": keepalive.count,
    }
    options = {getattr(socket, name): value for name, value in values.items() if hasattr(socket, name)}
    return {"socket_keepalive": True, "socket_keepalive_options": options}


def _tls(tls: schema.Tls) -> dict[str, Any]:
    for name in ("ca_file", "cert_file", "key_file"):
        _check_kind(f"target.tls.{name}", getattr(tls, name))
    return {
        "ssl_ca_certs": tls.ca_file,
        "ssl_certfile": tls.cert_file,
        # Without it, OpenSSL looks for the key in the certificate's file.
        "ssl_keyfile": tls.key_file,
        # Without it, OpenSSL asks the terminal for the password of an encrypted key.
        "ssl_password": "",
        "ssl_cert_reqs": "none" if tls.verify is schema.Verify.NONE else "required",
        "ssl_check_hostname": tls.verify is schema.Verify.FULL,
    }


def _check_kind(where: str, name: str | None) -> None:
    """Raises PlanError for a pipe, device, socket or huge file, because OpenSSL reads the file for each connection, and
    waits for a pipe without a limit. `tls_finding` reports other errors when the file is used."""
    with suppress(OSError, ValueError):
        status = Path(name or ".").stat()
        if stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_size <= _LARGEST_PEM_BYTES):
            return
        found = f"{status.st_size:,} bytes" if stat.S_ISREG(status.st_mode) else "a pipe, device or socket"
        raise PlanError(f'{where}: expected a file in PEM, got "{printable(str(name))}", {found}')

"""The effective settings of clients: the plan's and redis-py's defaults, read from an unconnected client of
redis-py."""

from __future__ import annotations

import socket
from typing import Any

import redis
import redis.asyncio

from common.cancellation import Cancellation
from common.plan import schema
from common.plan.schema.target_url import TargetKind
from common.redis_client.address import address_of, cluster_arguments
from common.redis_client.async_clients import build_async_client
from common.redis_client.async_cluster import AsyncClusterClient
from common.redis_client.client_assembly import connects_when_built
from common.redis_client.clients import build_client, node_pool
from common.redis_client.cluster import ClusterClient
from common.redis_client.connections.connection_tracking import Unobserved
from common.redis_client.connections.retry_policy import cluster_errors_of, observed_retry
from common.redis_client.wire_connections import SINGLE_NODE, InstancePools


def effective_client_settings(target: schema.Target, pools: schema.Pools) -> list[tuple[str, str]]:
    """(name, value) of every setting that affects the behaviour of clients, as redis-py has it. For a cluster, the
    settings of its nodes' pools. Connects to nothing. Raises PlanError."""
    facts = _OF_DRIVER[pools.driver](target, pools)
    return [(name, _shown(value)) for name, value in facts.items()]


def _of_threads(target: schema.Target, pools: schema.Pools) -> dict[str, Any]:
    cancellation, events = Cancellation(), Unobserved()
    pool: Any
    if connects_when_built(target):
        name, pool = redis.RedisCluster.__name__, node_pool(target, pools, events=events, cancellation=cancellation)
    else:
        client = build_client(target, pools, events=events, cancellation=cancellation)
        assert not isinstance(client, ClusterClient)
        name, pool = redis.Redis.__name__, client.connection_pool
    connection = pool.make_connection()
    facts = {"client": name, **_pool(pool), **_connection(connection)}
    if address_of(target).kind is TargetKind.CLUSTER:
        facts |= _retry(observed_retry(target.retry, events, cancellation)) | _cluster(target)
    else:
        facts |= _retry(connection.retry)
    return facts


def _of_asyncio(target: schema.Target, pools: schema.Pools) -> dict[str, Any]:
    client = build_async_client(target, pools, events=Unobserved(), cancellation=Cancellation())
    if not isinstance(client, AsyncClusterClient):
        pool: Any = client.connection_pool
        connection = pool.make_connection()
        head = {"client": _ASYNCIO + redis.asyncio.Redis.__name__, **_pool(pool)}
        return {**head, **_connection(connection), **_retry(connection.retry)}
    node = next(iter(client.nodes_manager.startup_nodes.values()))
    facts = {
        "client": _ASYNCIO + redis.asyncio.RedisCluster.__name__,
        "pool": "none: each node has a list of connections",
        "max_connections": node.max_connections,
        **_connection(node.acquire_connection()),
    }
    return facts | _retry(client.retry) | _cluster(target)


def _of_wire(target: schema.Target, pools: schema.Pools) -> dict[str, Any]:
    instance = InstancePools(target, pools, events=Unobserved(), cancellation=Cancellation())
    is_cluster = address_of(target).kind is TargetKind.CLUSTER
    pool: Any = instance.pool_for(str(address_of(target).hosts[0]) if is_cluster else SINGLE_NODE)
    connection = pool.make_connection()
    facts = {
        "client": "none: the driver uses connections directly",
        **_pool(pool),
        **_connection(connection),
        **_retry(connection.retry),
        "retries of commands": "none: each is issued once",
    }
    return facts | (_balancing(target) if is_cluster else {})


_OF_DRIVER = {
    schema.Driver.CLIENT: _of_threads,
    schema.Driver.ASYNCIO: _of_asyncio,
    schema.Driver.WIRE: _of_wire,
}

_ASYNCIO = "asyncio."


def _pool(pool: Any) -> dict[str, Any]:
    facts = {"pool": _class_of(pool), "max_connections": pool.max_connections}
    # Only a blocking pool waits.
    return facts | ({"pool wait": f"{pool.timeout:g}s"} if hasattr(pool, "timeout") else {})


def _connection(connection: Any) -> dict[str, Any]:
    config = connection.maint_notifications_config
    facts = {
        "connection": _class_of(connection),
        "parser": type(connection._parser).__name__.lstrip("_"),
        "protocol": connection.protocol,
        "encoding": connection.encoder.encoding,
        "decode_responses": connection.encoder.decode_responses,
        "socket_connect_timeout": f"{connection.socket_connect_timeout:g}s",
        "socket_timeout": f"{connection.socket_timeout:g}s",
        "socket_read_size": connection._socket_read_size,
        "health_check_interval": f"{connection.health_check_interval:g}s",
        "maintenance notifications": config.enabled if config else False,
        **(_maintenance(config) if config and config.enabled else {}),
    }
    if hasattr(connection, "socket_keepalive"):
        options = {_KEEPALIVE.get(key, str(key)): value for key, value in connection.socket_keepalive_options.items()}
        facts |= {"socket_keepalive": connection.socket_keepalive, "socket_keepalive_options": options}
    if hasattr(connection, "cert_reqs"):
        # redis.asyncio has another name for it.
        name = "ssl_min_version" if hasattr(connection, "ssl_min_version") else "min_version"
        facts |= {
            "ssl_cert_reqs": connection.cert_reqs.name,
            "ssl_check_hostname": connection.check_hostname,
            "ssl_ca_certs": connection.ca_certs or "the machine's own",
            "ssl_min_version": getattr(connection, name) or "the default of Python's ssl",
        }
    return facts


def _maintenance(config: Any) -> dict[str, Any]:
    is_relaxed = config.is_relaxed_timeouts_enabled()
    return {
        "relaxed_timeout": f"{config.relaxed_timeout:g}s" if is_relaxed else "none: socket_timeout stays",
        "endpoint_type": str(config.endpoint_type) if config.endpoint_type else "auto: as the URL names the server",
        "proactive_reconnect": config.proactive_reconnect,
    }


_KEEPALIVE = {
    getattr(socket, name): name
    for name in ("TCP_KEEPCNT", "TCP_KEEPINTVL", "TCP_KEEPALIVE", "TCP_KEEPIDLE")
    if hasattr(socket, name)
}


def _retry(retry: Any) -> dict[str, Any]:
    backoff: Any = retry._backoff
    inner = getattr(backoff, "inner", backoff)
    facts: dict[str, Any] = {"retries": retry.get_retries(), "retry backoff": type(inner).__name__}
    # A constant backoff stores its base under another name.
    for name, attribute in (("base", "_base"), ("base", "_backoff"), ("cap", "_cap")):
        value = getattr(inner, attribute, None)
        if isinstance(value, int | float):
            facts[f"retry {name}"] = f"{value:g}s"
    return facts | {"retry errors": [kind.__name__ for kind in retry._supported_errors]}


def _cluster(target: schema.Target) -> dict[str, Any]:
    return {
        "retry errors": [kind.__name__ for kind in cluster_errors_of(target.retry)],
        # redis-py's cluster client repeats a command at once; only transactions use the policy's backoff.
        "retry backoff of commands": "none: at once, after the topology was read again",
        **_balancing(target),
    }


def _balancing(target: schema.Target) -> dict[str, Any]:
    arguments = cluster_arguments(target)
    strategy = arguments.pop("load_balancing_strategy")
    return {"load_balancing_strategy": strategy.value if strategy else "none: the primary of the slot", **arguments}


def _class_of(value: object) -> str:
    """The name of the redis-py class from which our object's class is derived."""
    return next(kind.__name__ for kind in type(value).__mro__ if kind.__module__.startswith("redis."))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(dict.fromkeys(map(str, value)))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)

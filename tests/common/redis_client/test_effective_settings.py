from __future__ import annotations

from typing import Any

import pytest
import redis
from redis.utils import HIREDIS_AVAILABLE

from common.plan.schema import (
    BackoffKind,
    Cluster,
    Driver,
    EndpointType,
    Keepalive,
    Maintenance,
    Pools,
    ReadFrom,
    Retry,
    RetryError,
    Target,
    TcpPool,
    Tls,
    Verify,
)
from common.redis_client import effective_client_settings
from common.units import Seconds

SHAPES = {
    "redis://h": ("Redis", "ConnectionPool", "Connection"),
    "rediss://h": ("Redis", "ConnectionPool", "SSLConnection"),
    "unix:///s": ("Redis", "ConnectionPool", "UnixDomainSocketConnection"),
    "redis+sentinel://h/x": ("Redis", "SentinelConnectionPool", "SentinelManagedConnection"),
    "rediss+sentinel://h/x": ("Redis", "SentinelConnectionPool", "SentinelManagedSSLConnection"),
    "redis+cluster://h": ("RedisCluster", "ConnectionPool", "Connection"),
    "rediss+cluster://h": ("RedisCluster", "ConnectionPool", "SSLConnection"),
}


def settings(url: str = "redis://h", pools: Pools | None = None, **target: Any) -> dict[str, str]:
    return dict(effective_client_settings(Target(url=url, **target), pools or Pools()))


@pytest.mark.parametrize("url", SHAPES)
def test_the_classes_of_every_kind_of_target_are_redis_pys_own(url: str) -> None:
    found = settings(url)
    assert (found["client"], found["pool"], found["connection"]) == SHAPES[url]
    assert found["parser"] == ("HiredisParser" if HIREDIS_AVAILABLE else "RESP3Parser")


def test_the_plans_values_are_effective() -> None:
    found = settings(
        protocol=2,
        connect_timeout_s=Seconds(0.25),
        socket_timeout_s=Seconds(1.5),
        health_check_interval_s=Seconds(9.0),
        retry=Retry(
            retries=7,
            backoff=BackoffKind.EXPONENTIAL,
            base_s=Seconds(0.1),
            cap_s=Seconds(2.0),
            errors=(RetryError.READ_ONLY, RetryError.BUSY_LOADING),
        ),
        keepalive=Keepalive(idle_s=Seconds(60), interval_s=Seconds(7), count=2),
        pools=Pools(max_connections=3, tcp_pool=TcpPool.BLOCKING, tcp_pool_wait_s=Seconds(0.5)),
    )
    wanted = {
        "pool": "BlockingConnectionPool",
        "pool wait": "0.5s",
        "max_connections": "3",
        "protocol": "2",
        "socket_connect_timeout": "0.25s",
        "socket_timeout": "1.5s",
        "health_check_interval": "9s",
        "retries": "7",
        "retry backoff": "ExponentialBackoff",
        "retry base": "0.1s",
        "retry cap": "2s",
        "retry errors": "ReadOnlyError, BusyLoadingError",
        "socket_keepalive": "on",
        "maintenance notifications": "off",
    }
    assert {name: found[name] for name in wanted} == wanted
    assert {"TCP_KEEPINTVL 7", "TCP_KEEPCNT 2"} <= set(found["socket_keepalive_options"].split(", "))


def test_defaults_of_redis_py_are_shown_too() -> None:
    found, connection = settings(), redis.Connection()
    assert found["socket_read_size"] == str(connection._socket_read_size)
    assert found["encoding"] == connection.encoder.encoding
    assert found["decode_responses"] == "off"


def test_keepalive_can_be_off_and_a_unix_socket_has_none() -> None:
    found = settings(keepalive=Keepalive(enabled=False))
    assert (found["socket_keepalive"], found["socket_keepalive_options"]) == ("off", "none")
    assert "socket_keepalive" not in settings("unix:///s")


def test_tls_shows_what_is_verified() -> None:
    found = settings("rediss://h", tls=Tls(ca_file="/ca.pem", verify=Verify.CA))
    assert (found["ssl_cert_reqs"], found["ssl_check_hostname"]) == ("CERT_REQUIRED", "off")
    assert found["ssl_ca_certs"] == "/ca.pem"
    assert settings("rediss://h", tls=Tls(verify=Verify.NONE))["ssl_cert_reqs"] == "CERT_NONE"


@pytest.mark.parametrize(("maintenance", "shown"), [("off", "off"), ("on", "on"), ("auto", "auto")])
def test_maintenance_notifications_are_as_the_plan_says(maintenance: str, shown: str) -> None:
    assert settings(maintenance=Maintenance(maintenance))["maintenance notifications"] == shown


def test_relaxed_timeout_and_endpoint_type_are_those_of_the_plan() -> None:
    shown = ("relaxed_timeout", "endpoint_type", "proactive_reconnect")
    found = settings(maintenance=Maintenance.AUTO)
    assert [found[name] for name in shown] == ["10s", "auto: as the URL names the server", "on"]
    found = settings(
        maintenance=Maintenance.ON, relaxed_timeout_s=Seconds(2.5), endpoint_type=EndpointType.EXTERNAL_FQDN
    )
    assert [found[name] for name in shown] == ["2.5s", "external-fqdn", "on"]
    found = settings(maintenance=Maintenance.ON, relaxed_timeout_s=Seconds(0))
    assert found["relaxed_timeout"] == "none: socket_timeout stays"
    assert not set(shown) & settings().keys()


def test_notifications_that_protocol_2_cannot_carry_are_off() -> None:
    assert settings(maintenance=Maintenance.AUTO, protocol=2)["maintenance notifications"] == "off"


def test_a_cluster_shows_its_own_settings_and_the_errors_that_it_retries() -> None:
    cluster = Cluster(read_from=ReadFrom.REPLICAS, reinitialize_steps=9, require_full_coverage=True)
    found = settings("redis+cluster://h", cluster=cluster, retry=Retry(errors=(RetryError.TIMEOUT,)))
    assert found["load_balancing_strategy"] == "round_robin_replicas"
    assert (found["reinitialize_steps"], found["require_full_coverage"]) == ("9", "on")
    assert found["retry errors"] == "TimeoutError, ClusterDownError, SlotNotCoveredError"
    assert found["retries"] == "3"


@pytest.mark.parametrize("url", SHAPES)
def test_the_asyncio_driver_shows_its_own_clients_with_the_same_settings(url: str) -> None:
    threads, tasks = settings(url), settings(url, Pools(driver=Driver.ASYNCIO))
    client, pool, connection = SHAPES[url]
    if client == "RedisCluster":
        pool = "none: each node has a list of connections"
    assert (tasks["client"], tasks["pool"], tasks["connection"]) == (f"asyncio.{client}", pool, connection)
    assert tasks["parser"] == ("AsyncHiredisParser" if HIREDIS_AVAILABLE else "AsyncRESP3Parser")
    named = {"client", "pool", "parser", "retry errors"}
    assert {name: tasks[name] for name in tasks.keys() - named} == {
        name: threads[name] for name in threads.keys() - named
    }
    assert set(tasks["retry errors"].split(", ")) == set(threads["retry errors"].split(", "))


def test_the_asyncio_driver_shows_the_plans_values() -> None:
    pools = Pools(driver=Driver.ASYNCIO, max_connections=3, tcp_pool=TcpPool.BLOCKING, tcp_pool_wait_s=Seconds(0.5))
    found = settings(pools=pools, protocol=2, retry=Retry(retries=7, backoff=BackoffKind.CONSTANT, base_s=Seconds(0.1)))
    wanted = {"pool": "BlockingConnectionPool", "pool wait": "0.5s", "max_connections": "3", "protocol": "2"}
    wanted |= {"retries": "7", "retry backoff": "ConstantBackoff", "retry base": "0.1s"}
    assert {name: found[name] for name in wanted} == wanted
    assert settings("redis+cluster://h", Pools(driver=Driver.ASYNCIO, max_connections=3))["max_connections"] == "3"


@pytest.mark.parametrize("url", SHAPES)
def test_the_wire_driver_shows_the_connections_of_threads_and_no_retries(url: str) -> None:
    threads, wire = settings(url), settings(url, Pools(driver=Driver.WIRE))
    assert wire["client"] == "none: the driver uses connections directly"
    assert wire["retries of commands"] == "none: each is issued once"
    assert wire["retry errors"] == "ConnectionError, TimeoutError"
    named = {"client", "retry errors", "retry backoff of commands"}
    assert {name: wire[name] for name in threads.keys() - named} == {
        name: threads[name] for name in threads.keys() - named
    }


def test_no_password_is_shown() -> None:
    assert not [value for value in settings(password="s3cret").values() if "s3cret" in value]

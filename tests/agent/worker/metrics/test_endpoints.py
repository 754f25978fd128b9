from __future__ import annotations

from agent.worker.metrics.endpoints import Endpoints
from common.metrics.intervals import MAX_ENDPOINT_LENGTH, MAX_ENDPOINTS, OTHER


def test_a_server_keeps_its_number_and_its_name_has_brackets_for_ipv6() -> None:
    endpoints = Endpoints()
    assert [endpoints.number("10.0.0.1", 6379), endpoints.number("::1", 7000)] == [0, 1]
    assert endpoints.number("10.0.0.1", 6379) == 0
    assert endpoints.names == ["10.0.0.1:6379", "[::1]:7000"]


def test_a_server_is_a_primary_until_the_target_says_that_it_is_a_replica() -> None:
    endpoints = Endpoints()
    number = endpoints.number("h", 1)
    assert not endpoints.is_replica(number)
    endpoints.has_role("h", 1, "replica")
    assert endpoints.is_replica(number)
    endpoints.has_role("h", 1, "primary")
    assert not endpoints.is_replica(number)


def test_servers_beyond_the_limit_share_one_number() -> None:
    endpoints = Endpoints()
    numbers = [endpoints.number("h", port) for port in range(MAX_ENDPOINTS + 20)]
    assert numbers[:MAX_ENDPOINTS] == list(range(MAX_ENDPOINTS))
    assert set(numbers[MAX_ENDPOINTS:]) == {MAX_ENDPOINTS - 1}
    assert (len(endpoints.names), endpoints.names[-1]) == (MAX_ENDPOINTS, OTHER)


def test_a_long_host_name_is_cut() -> None:
    endpoints = Endpoints()
    endpoints.number("h" * 5000, 1)
    assert len(endpoints.names[0]) == MAX_ENDPOINT_LENGTH


def test_servers_that_clients_never_use_take_no_number() -> None:
    endpoints = Endpoints()
    for port in range(1, 5000):
        endpoints.has_role("h", port, "replica")
    assert (endpoints.number("h", 4999), endpoints.names) == (0, ["h:4999"])
    assert endpoints.is_replica(0)

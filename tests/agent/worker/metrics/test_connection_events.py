from __future__ import annotations

from agent.worker.metrics.connection_events import ConnectionTally, EventKind, EventLog
from common.metrics.intervals import ConnectionMetrics
from common.redis_client.connections.connection_tracking import ConnectTimes

A, B, C = 101, 102, 103
"""Numbers of connections."""


def second_of(fold: ConnectionTally, log: EventLog) -> tuple[int, int]:
    """(wanted, open) connections in a second with these events."""
    metrics = fold.add_up(log.take(), is_late=False)
    return metrics.wanted, metrics.open_peak


def test_events_of_a_log_are_taken_once() -> None:
    log = EventLog()
    log.opened(1, None, A)
    log.dropped(2, "timeout", A)
    log.retried(3)
    assert log.take() == [
        (1, EventKind.OPENED, None, A),
        (2, EventKind.DROPPED, "timeout", A),
        (3, EventKind.RETRIED, None, None),
    ]
    assert log.take() == []


def test_connection_events_add_up() -> None:
    log = EventLog()
    log.opened(10, None, A)
    log.opened(11, None, B)
    log.dropped(20, "timeout", A)
    log.attempt_failed(21, "refused", A)
    log.retried(22)
    log.opened(50, 20, A)
    log.dropped(60, "closed by server", A)
    log.closed(70, B)
    metrics = ConnectionTally().add_up(log.take(), is_late=False)
    assert metrics.opened == 3
    assert metrics.failed_attempts == 1
    assert metrics.failed_by_cause == {"refused": 1}
    assert metrics.drops == {"timeout": 1, "closed by server": 1}
    assert (metrics.reconnects, metrics.reconnect.count, metrics.reconnect.minimum) == (1, 1, 30)
    assert metrics.retries == 1
    assert metrics.open_peak == 2


def test_connections_that_stay_open_are_in_the_peak_of_every_second() -> None:
    fold, log = ConnectionTally(), EventLog()
    for at_ns in range(3):
        log.opened(at_ns, None, at_ns)
    assert fold.add_up(log.take(), is_late=False).open_peak == 3
    assert fold.add_up([], is_late=False).open_peak == 3
    log.closed(9, 0)
    log.closed(10, 1)
    assert fold.add_up(log.take(), is_late=False).open_peak == 3
    assert fold.add_up([], is_late=False).open_peak == 1


def test_a_late_event_changes_the_count_and_not_the_peak() -> None:
    fold, log = ConnectionTally(), EventLog()
    log.opened(1, None, A)
    assert fold.add_up(log.take(), is_late=True) == ConnectionMetrics(opened=1)
    assert fold.add_up([], is_late=False).open_peak == 1


def test_redirections_add_up_by_kind_and_topology_changes_separately() -> None:
    log = EventLog()
    for at_ns, kind in enumerate(("MOVED", "ASK", "MOVED", "CLUSTERDOWN")):
        log.redirected(at_ns, kind)
    log.topology_refreshed(9)
    metrics = ConnectionTally().add_up(log.take(), is_late=False)
    assert metrics == ConnectionMetrics(redirects={"MOVED": 2, "ASK": 1, "CLUSTERDOWN": 1}, topology_refreshes=1)


def test_wanted_connections_are_the_open_ones_the_opening_ones_and_those_that_failed_in_the_second() -> None:
    fold, log = ConnectionTally(), EventLog()
    log.tried(1, A)
    log.opened(2, None, A)
    log.tried(3, B)
    log.attempt_failed(4, "maxclients", B)
    log.tried(5, C)
    assert second_of(fold, log) == (3, 1)
    # B is given up; C is still connecting.
    assert second_of(fold, log) == (2, 1)
    log.attempt_failed(6, "timeout", C)
    log.tried(7, C)
    assert second_of(fold, log) == (2, 1)
    log.opened(8, None, C)
    log.closed(9, A)
    assert second_of(fold, log) == (2, 2)
    assert second_of(fold, log) == (1, 1)


def test_a_connection_that_is_dropped_and_comes_back_is_one_connection() -> None:
    fold, log = ConnectionTally(), EventLog()
    log.opened(1, None, A)
    log.dropped(2, "closed by server", A)
    log.tried(3, A)
    log.attempt_failed(4, "refused", A)
    log.tried(5, A)
    assert second_of(fold, log) == (1, 1)
    log.opened(6, 2, A)
    assert second_of(fold, log) == (1, 1)
    assert fold.never_opened() == {}


def test_a_connection_that_never_opened_is_reported_by_its_last_cause() -> None:
    fold, log = ConnectionTally(), EventLog()
    for which in (A, B, C):
        log.attempt_failed(1, "refused", which)
        log.attempt_failed(2, "maxclients", which)
    log.opened(3, None, C)
    log.attempt_failed(4, "maxclients", C)
    fold.add_up(log.take(), is_late=False)
    assert fold.never_opened() == {"maxclients": 2}


def test_a_wire_connection_is_wanted_from_the_start_until_its_node_is_gone() -> None:
    fold, log = ConnectionTally(), EventLog(of_links=True)
    assert log.number() is None
    for which in (A, B, C):
        log.link_wanted(1, which)
    log.attempt_failed(2, "maxclients", log.number())
    log.opened(3, None, log.number())
    log.link_opened(3, A)
    log.link_failed(4, "maxclients", B)
    assert second_of(fold, log) == (3, 1)
    assert second_of(fold, log) == (3, 1)
    # C is still connecting: it gets the cause of the others.
    assert fold.never_opened() == {"maxclients": 2}
    log.link_unwanted(5, B)
    log.link_unwanted(6, C)
    assert second_of(fold, log) == (3, 1)
    assert second_of(fold, log) == (1, 1)
    assert fold.never_opened() == {}
    log.link_wanted(7, C)
    assert second_of(fold, log) == (2, 1)
    assert fold.never_opened() == {"maxclients": 1}


def test_a_wire_connection_without_a_finished_attempt_is_pending() -> None:
    fold, log = ConnectionTally(), EventLog(of_links=True)
    log.link_wanted(1, A)
    fold.add_up(log.take(), is_late=False)
    assert fold.never_opened() == {"pending": 1}


def test_a_late_event_does_not_change_the_number_of_wanted_connections() -> None:
    fold, log = ConnectionTally(), EventLog()
    log.tried(1, A)
    assert fold.add_up(log.take(), is_late=True).wanted == 0
    assert second_of(fold, log) == (1, 0)


def test_connects_are_measured_by_part_and_a_part_that_is_not_known_has_no_value() -> None:
    log = EventLog()
    log.tls_opened(3)
    log.connected(5, ConnectTimes(total_ns=900, tcp_ns=100, tls_ns=500, handshake_ns=300))
    log.connected(9, ConnectTimes(total_ns=700, tcp_ns=None, tls_ns=None, handshake_ns=200))
    metrics = ConnectionTally().add_up(log.take(), is_late=False)
    histograms = (metrics.connect, metrics.connect_tcp, metrics.connect_tls, metrics.connect_handshake)
    assert [(each.count, each.minimum) for each in histograms] == [(2, 700), (1, 100), (1, 500), (2, 200)]
    assert (metrics.tls_handshakes, metrics.opened) == (1, 0)


def test_notifications_add_up_by_kind() -> None:
    log = EventLog()
    for at_ns, kind in enumerate(("MOVING", "MIGRATING", "MOVING")):
        log.notified(at_ns, kind)
    metrics = ConnectionTally().add_up(log.take(), is_late=False)
    assert metrics == ConnectionMetrics(maintenance={"MOVING": 2, "MIGRATING": 1})

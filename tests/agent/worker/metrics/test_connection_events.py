from __future__ import annotations

from agent.worker.metrics.connection_events import ConnectionTally, EventKind, EventLog
from common.metrics.intervals import ConnectionMetrics

A, B, C = 101, 102, 103
"""Numbers of connections."""


def second_of(fold: ConnectionTally, log: EventLog) -> tuple[int, int]:
    """(wanted, open) in a second in which this happened."""
    metrics = fold.add_up(log.take(), is_late=False)
    return metrics.wanted, metrics.open_peak


def test_a_log_is_taken_once() -> None:
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


def test_what_happened_adds_up() -> None:
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


def test_what_comes_late_moves_the_count_and_leaves_the_peak_alone() -> None:
    fold, log = ConnectionTally(), EventLog()
    log.opened(1, None, A)
    assert fold.add_up(log.take(), is_late=True) == ConnectionMetrics(opened=1)
    assert fold.add_up([], is_late=False).open_peak == 1


def test_redirections_add_up_by_kind_and_changes_of_the_topology_beside_them() -> None:
    log = EventLog()
    for at_ns, kind in enumerate(("MOVED", "ASK", "MOVED", "CLUSTERDOWN")):
        log.redirected(at_ns, kind)
    log.topology_refreshed(9)
    metrics = ConnectionTally().add_up(log.take(), is_late=False)
    assert metrics == ConnectionMetrics(redirects={"MOVED": 2, "ASK": 1, "CLUSTERDOWN": 1}, topology_refreshes=1)


def test_a_client_wants_what_is_open_what_is_being_opened_and_what_failed_within_the_second() -> None:
    fold, log = ConnectionTally(), EventLog()
    log.tried(1, A)
    log.opened(2, None, A)
    log.tried(3, B)
    log.attempt_failed(4, "maxclients", B)
    log.tried(5, C)
    assert second_of(fold, log) == (3, 1)
    # B is not tried any more; the attempt at C is still under way.
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


def test_what_never_opened_is_reported_by_the_last_cause() -> None:
    fold, log = ConnectionTally(), EventLog()
    for which in (A, B, C):
        log.attempt_failed(1, "refused", which)
        log.attempt_failed(2, "maxclients", which)
    log.opened(3, None, C)
    log.attempt_failed(4, "maxclients", C)
    fold.add_up(log.take(), is_late=False)
    assert fold.never_opened() == {"maxclients": 2}


def test_a_link_is_wanted_from_the_begin_until_its_node_is_gone() -> None:
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
    # C was still being tried: with the cause that others had.
    assert fold.never_opened() == {"maxclients": 2}
    log.link_unwanted(5, B)
    log.link_unwanted(6, C)
    assert second_of(fold, log) == (3, 1)
    assert second_of(fold, log) == (1, 1)
    assert fold.never_opened() == {}
    log.link_wanted(7, C)
    assert second_of(fold, log) == (2, 1)
    assert fold.never_opened() == {"maxclients": 1}


def test_a_link_that_no_attempt_came_to_an_end_for_is_pending() -> None:
    fold, log = ConnectionTally(), EventLog(of_links=True)
    log.link_wanted(1, A)
    fold.add_up(log.take(), is_late=False)
    assert fold.never_opened() == {"pending": 1}


def test_what_comes_late_leaves_the_gauge_of_what_is_wanted_alone() -> None:
    fold, log = ConnectionTally(), EventLog()
    log.tried(1, A)
    assert fold.add_up(log.take(), is_late=True).wanted == 0
    assert second_of(fold, log) == (1, 0)

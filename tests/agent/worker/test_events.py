from __future__ import annotations

from agent.worker.events import ConnectionFold, EventKind, EventLog
from common.metrics import ConnectionMetrics


def test_a_log_is_taken_once() -> None:
    log = EventLog()
    log.opened(1, None)
    log.dropped(2, "timeout")
    log.retried(3)
    assert log.take() == [
        (1, EventKind.OPENED, None),
        (2, EventKind.DROPPED, "timeout"),
        (3, EventKind.RETRIED, None),
    ]
    assert log.take() == []


def test_what_happened_adds_up() -> None:
    log = EventLog()
    log.opened(10, None)
    log.opened(11, None)
    log.dropped(20, "timeout")
    log.attempt_failed(21)
    log.retried(22)
    log.opened(50, 20)
    log.dropped(60, "closed by server")
    log.closed(70)
    metrics = ConnectionFold().add_up(log.take(), is_late=False)
    assert metrics.opened == 3
    assert metrics.failed_attempts == 1
    assert metrics.drops == {"timeout": 1, "closed by server": 1}
    assert (metrics.reconnects, metrics.reconnect.count, metrics.reconnect.minimum) == (1, 1, 30)
    assert metrics.retries == 1
    assert metrics.open_peak == 2


def test_connections_that_stay_open_are_in_the_peak_of_every_second() -> None:
    fold, log = ConnectionFold(), EventLog()
    for at_ns in range(3):
        log.opened(at_ns, None)
    assert fold.add_up(log.take(), is_late=False).open_peak == 3
    assert fold.add_up([], is_late=False).open_peak == 3
    log.closed(9)
    log.closed(10)
    assert fold.add_up(log.take(), is_late=False).open_peak == 3
    assert fold.add_up([], is_late=False).open_peak == 1


def test_what_comes_late_moves_the_count_and_leaves_the_peak_alone() -> None:
    fold, log = ConnectionFold(), EventLog()
    log.opened(1, None)
    assert fold.add_up(log.take(), is_late=True) == ConnectionMetrics(opened=1)
    assert fold.add_up([], is_late=False).open_peak == 1


def test_redirections_add_up_by_kind_and_changes_of_the_topology_beside_them() -> None:
    log = EventLog()
    for at_ns, kind in enumerate(("MOVED", "ASK", "MOVED", "CLUSTERDOWN")):
        log.redirected(at_ns, kind)
    log.topology_refreshed(9)
    metrics = ConnectionFold().add_up(log.take(), is_late=False)
    assert metrics == ConnectionMetrics(redirects={"MOVED": 2, "ASK": 1, "CLUSTERDOWN": 1}, topology_refreshes=1)

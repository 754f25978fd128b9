from __future__ import annotations

from itertools import repeat
from typing import Any

import pytest
import redis

from agent.worker.drivers.wire.routing import AHEAD
from agent.worker.metrics.hits import HIT
from agent.worker.metrics.wire_sizes import MULTI_EXEC_REQUEST_BYTES, QUEUED_BYTES, transaction_reply_bytes
from agent.worker.pacing.pacer import NEVER_NS
from common.redis_client.connections.cluster_topology import slot_of
from tests.support.rows import Row
from tests.support.wire import GET, MS, SET, T0_NS, WireStage, keys_of, operation, slots_of

OK, QUEUED, A = b"+OK\r\n", b"+QUEUED\r\n", b"$1\r\na\r\n"
WRONG, ABORT = b"-WRONGTYPE no\r\n", b"-EXECABORT Transaction discarded\r\n"
ASKING = [b"ASKING"]
PLAIN = pytest.mark.parametrize("is_plain", [True, False], ids=("drawn ahead", "one by one"))


def moved(key: str, name: str, how: str = "MOVED") -> bytes:
    return f"-{how} {slot_of(key.encode())} {name}\r\n".encode()


# Closed loop


@PLAIN
@pytest.mark.parametrize("batch", [1, 3])
def test_a_quota_is_issued_exactly_and_then_the_connection_is_idle(is_plain: bool, batch: int) -> None:
    stage = WireStage(quota=10, batch=batch, is_plain=is_plain)
    stage.begin()
    while not stage.worker.is_done:
        stage.receive(A)
    assert stage.record.issued == len(stage.sock().commands()) == stage.metrics().commands["GET"].ok == 10
    assert stage.node().idle == [stage.connection()]
    assert stage.record.unsent == 0


@PLAIN
def test_no_operation_begins_after_the_end_and_the_last_one_finishes(is_plain: bool) -> None:
    stage = WireStage(end_ns=T0_NS + 25 * MS, is_plain=is_plain)
    stage.begin()
    for _ in range(3):
        stage.receive(A, after_ns=10 * MS)
    stage.check()
    assert stage.worker.is_done
    assert [row.ended_ns for row in stage.rows()] == [10 * MS, 20 * MS, 30 * MS]
    assert (stage.record.issued, stage.record.unsent) == (3, 0)


@PLAIN
def test_the_end_is_noticed_while_a_reply_is_pending(is_plain: bool) -> None:
    stage = WireStage(end_ns=T0_NS + 25 * MS, is_plain=is_plain)
    stage.begin()
    stage.check(after_ns=30 * MS)
    assert not stage.worker.is_done
    stage.receive(A)
    assert stage.worker.is_done
    assert stage.record.issued == 1


def test_an_earlier_end_is_obeyed() -> None:
    stage = WireStage()
    stage.begin()
    stage.span.end_at(T0_NS + 5 * MS)
    stage.receive(A, after_ns=10 * MS)
    stage.check()
    assert stage.worker.is_done
    assert stage.record.issued == 1


def test_a_connection_that_opens_after_the_start_works_at_once() -> None:
    stage = WireStage(connections=2)
    first, second = stage.node().connections
    stage.to_open.remove(second)
    stage.begin()
    assert stage.record.issued == 1
    stage.open(second)
    assert stage.record.issued == 2
    stage.receive(A, on=first)
    stage.receive(A, on=second)
    assert stage.metrics().commands["GET"].ok == 2


# Open loop


def test_an_operation_is_sent_when_it_is_due_and_its_lag_counts_from_then() -> None:
    due = [T0_NS + at * MS for at in (0, 50, 55, 60)]
    stage = WireStage(end_ns=T0_NS + 1000 * MS, due=due)
    stage.begin()
    assert stage.record.issued == 1
    stage.receive(A, after_ns=10 * MS)
    assert (stage.record.issued, stage.worker.due_ns) == (1, T0_NS + 50 * MS)
    stage.pump(after_ns=39 * MS)
    assert stage.record.issued == 1
    stage.pump(after_ns=MS)
    assert stage.record.issued == 2
    for _ in range(3):
        stage.receive(A, after_ns=10 * MS)
    assert [(row.ended_ns // MS, row.service_ns // MS, row.lag_ns // MS) for row in stage.rows()] == [
        (10, 10, 0),
        (60, 10, 0),
        (70, 10, 5),
        (80, 10, 10),
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_operations_that_are_due_before_the_end_and_not_sent_are_unsent(batch: int) -> None:
    due = [T0_NS + at * 10 * MS for at in range(10)]
    stage = WireStage(end_ns=T0_NS + 100 * MS, due=due, batch=batch)
    stage.begin()
    stage.pump(after_ns=20 * MS)
    assert stage.record.issued == batch
    stage.check(after_ns=90 * MS)
    stage.receive(A * batch)
    assert stage.worker.is_done
    assert stage.record.issued + stage.record.unsent == 10


def test_a_batch_is_due_with_its_last_operation_and_each_lag_counts_from_its_own_due_time() -> None:
    due = [T0_NS + at * MS for at in (0, 10, 20)]
    stage = WireStage(end_ns=T0_NS + 1000 * MS, due=due, batch=3)
    stage.begin()
    assert stage.worker.due_ns == due[-1]
    stage.pump(after_ns=20 * MS)
    stage.receive(A * 3, after_ns=5 * MS)
    assert [(row.ended_ns // MS, row.lag_ns // MS) for row in stage.rows()] == [(25, 20), (25, 10), (25, 0)]


def test_idle_connections_share_the_operations_that_are_due() -> None:
    due = [T0_NS + 10 * MS] * 3
    stage = WireStage(end_ns=T0_NS + 1000 * MS, due=due, connections=4)
    stage.begin()
    assert stage.record.issued == 0
    stage.pump(after_ns=10 * MS)
    assert sorted(len(stage.sock(connection).commands()) for connection in stage.node().connections) == [0, 1, 1, 1]


def test_no_operation_is_due_while_all_connections_are_busy() -> None:
    stage = WireStage(due=[T0_NS, T0_NS], end_ns=T0_NS + 1000 * MS)
    stage.begin()
    assert stage.worker.due_ns == NEVER_NS


def test_a_connection_that_sends_a_due_operation_leaves_the_next_ones_to_idle_connections() -> None:
    due = [T0_NS, *[T0_NS + 10 * MS] * 3]
    stage = WireStage(end_ns=T0_NS + 1000 * MS, due=due, connections=3)
    stage.begin()
    assert (stage.record.issued, stage.worker.due_ns) == (1, T0_NS + 10 * MS)
    # Its reply arrives when an operation is due, and it takes that. Two connections are idle, two operations overdue.
    [busy] = [connection for connection in stage.node().connections if connection.batch is not None]
    stage.receive(A, on=busy, after_ns=20 * MS)
    assert (stage.record.issued, stage.worker.due_ns <= stage.now_ns) == (2, True)
    stage.pump()
    assert (stage.record.issued, stage.worker.due_ns) == (4, NEVER_NS)


# Errors


def test_a_reply_that_redis_py_cannot_parse_fails_its_own_operation_only() -> None:
    def choke(_: Any) -> Any:
        raise ValueError("odd")

    stage = WireStage(iter([GET, SET, GET]), quota=3, batch=3, is_plain=False, callbacks={"SET": choke})
    stage.begin()
    stage.receive(A + OK + A)
    assert [row.kind for row in stage.rows()] == [0, stage.kind(1, False, "ValueError"), 0]
    assert stage.reopening == []


@PLAIN
@pytest.mark.parametrize("batch", [1, 2])
def test_a_late_reply_ends_the_connection(is_plain: bool, batch: int) -> None:
    stage = WireStage(batch=batch, timeout_ns=100 * MS, is_plain=is_plain)
    stage.begin()
    stage.check(after_ns=100 * MS)
    assert stage.reopening == []
    stage.check(after_ns=MS)
    assert stage.reopening == [stage.connection()]
    assert [type(error) for error in stage.lost()] == [redis.TimeoutError]
    timeout = stage.kind(0, False, "TimeoutError")
    assert [row.kind for row in stage.rows()] == [timeout] * batch
    stage.reopen()
    stage.receive(A * batch)
    assert stage.metrics().commands["GET"].ok == batch


def test_a_reply_that_keeps_arriving_in_parts_does_not_time_out() -> None:
    stage = WireStage(batch=2, quota=2, timeout_ns=100 * MS)
    stage.begin()
    for piece in (A[:3], A[3:], A[:3], A[3:]):
        stage.check(after_ns=90 * MS)
        stage.receive(piece)
    assert stage.metrics().commands["GET"].ok == 2


def test_a_redirection_from_a_standalone_server_is_an_ordinary_error() -> None:
    stage = WireStage(quota=1)
    stage.begin()
    stage.receive(moved("key", "127.0.0.1:7001"))
    assert [row.kind for row in stage.rows()] == [stage.kind(0, True, "MOVED")]


def test_a_primary_that_became_a_replica_is_reconnected_through_sentinel() -> None:
    stage = WireStage(is_sentinel=True)
    stage.begin()
    stage.receive(b"-READONLY You can't write against a read only replica.\r\n")
    assert [row.kind for row in stage.rows()] == [stage.kind(0, True, "READONLY")]
    assert stage.reopening == [stage.connection()]
    assert stage.record.issued == 1


# Transactions


def test_a_transaction_counts_the_bytes_of_multi_and_exec_once() -> None:
    stage = WireStage(iter([GET, SET, GET]), quota=3, batch=2, transaction=True)
    stage.begin()
    assert stage.sock().commands() == [[b"MULTI"], list_of(GET), list_of(SET), [b"EXEC"]]
    stage.receive(OK + QUEUED * 2 + b"*2\r\n" + A + OK)
    stage.receive(OK + QUEUED + b"*1\r\n" + A)
    rows = stage.rows()
    assert [row.kind for row in rows] == [0, 1, 0]
    assert [row.bytes_out for row in rows] == [
        GET[2] + MULTI_EXEC_REQUEST_BYTES,
        SET[2],
        GET[2] + MULTI_EXEC_REQUEST_BYTES,
    ]
    assert [row.bytes_in for row in rows] == [
        len(A) + QUEUED_BYTES + transaction_reply_bytes(2),
        len(OK) + QUEUED_BYTES,
        len(A) + QUEUED_BYTES + transaction_reply_bytes(1),
    ]
    assert (stage.record.issued, stage.record.transactions) == (3, 2)


@pytest.mark.parametrize(
    ("replies", "code"),
    [
        (OK + b"-ERR wrong number of arguments\r\n" + QUEUED + ABORT, "ERR"),
        (b"-ERR no\r\n" + A + A + ABORT, "ERR"),
        (OK + QUEUED + QUEUED + ABORT, "EXECABORT"),
    ],
    ids=("refused when queued", "refused multi", "aborted"),
)
def test_a_refused_transaction_is_an_error_of_each_operation(replies: bytes, code: str) -> None:
    stage = WireStage(quota=2, batch=2, transaction=True)
    stage.begin()
    stage.receive(replies)
    assert stage.metrics().commands["GET"].errors == {code: 2}


def test_a_nil_exec_is_a_failure_without_a_reply() -> None:
    stage = WireStage(quota=1, batch=1, transaction=True)
    stage.begin()
    stage.receive(OK + QUEUED + b"_\r\n")
    assert [row.kind for row in stage.rows()] == [stage.kind(0, False, "ConnectionError")]


def list_of(each: Any) -> list[bytes]:
    name, *arguments = each[1]
    return [name.encode(), *arguments]


# Lost connections


@PLAIN
@pytest.mark.parametrize("batch", [1, 2])
def test_other_connections_continue_when_one_is_lost(is_plain: bool, batch: int) -> None:
    stage = WireStage(connections=3, batch=batch, is_plain=is_plain)
    stage.begin()
    first, second, third = stage.node().connections
    stage.receive(b"", on=second)
    for connection in (first, third):
        stage.receive(A * batch, on=connection)
    assert stage.record.issued == 5 * batch
    metrics = stage.metrics().commands["GET"]
    assert (metrics.ok, metrics.failures) == (2 * batch, {"ConnectionError": batch})
    stage.reopen()
    assert stage.record.issued == 6 * batch


def refuse(stage: WireStage) -> None:
    """Let the reconnect of the only waiting connection fail."""
    [connection] = [*stage.reopening, *stage.reopening_soon, *stage.reopening_later]
    for waiting in (stage.reopening, stage.reopening_soon, stage.reopening_later):
        waiting.clear()
    with stage.clock():
        stage.worker.refused(connection, redis.ConnectionError("refused"), stage.now_ns)


@PLAIN
@pytest.mark.parametrize("batch", [1, 3])
def test_each_failed_connect_fails_one_batch_until_the_quota_ends(is_plain: bool, batch: int) -> None:
    stage = WireStage(quota=10, batch=batch, is_plain=is_plain)
    stage.begin()
    stage.receive(b"")
    refuse(stage)
    rounds = 0
    while not stage.worker.is_done:
        refuse(stage)
        rounds += 1
        assert rounds < 20
        # It reconnects soon, because no other connection works.
        assert stage.reopening_later == []
    stage.check()
    commands = stage.metrics().commands["GET"]
    assert commands.failures == {"ConnectionError": 10}
    assert stage.record.issued == 10


def test_a_failed_connect_fails_no_operation_while_other_connections_work() -> None:
    stage = WireStage(connections=2, quota=4)
    stage.begin()
    first, second = stage.node().connections
    stage.receive(b"", on=first)
    refuse(stage)
    assert stage.reopening_later == [first]
    assert stage.record.issued == 2
    for _ in range(3):
        stage.receive(A, on=second)
    commands = stage.metrics().commands["GET"]
    assert (commands.ok, commands.failures) == (3, {"ConnectionError": 1})


def test_in_an_open_loop_no_operation_fails_before_it_is_due() -> None:
    stage = WireStage(due=[T0_NS + 50 * MS], end_ns=T0_NS + 100 * MS)
    with stage.clock():
        stage.worker.begin()
        stage.worker.refused(stage.connection(), redis.ConnectionError("refused"), stage.now_ns)
    assert stage.record.issued == 0
    stage.now_ns += 60 * MS
    refuse(stage)
    kind = stage.kind(0, False, "ConnectionError")
    assert stage.rows() == [Row(60 * MS, kind, lag_ns=10 * MS, bytes_out=GET[2], bytes_in=0, wait_ns=-1)]


def test_after_cancellation_operations_in_flight_are_cut_short_and_no_connection_opens() -> None:
    stage = WireStage(batch=2)
    stage.begin()
    stage.span.end_at(stage.now_ns)
    stage.cancellation.cancel()
    stage.check(after_ns=MS)
    stage.receive(b"")
    assert stage.worker.is_done
    assert [row.kind for row in stage.rows()] == [stage.kind(0, False, "CutShort")] * 2


# A cluster

HERE, THERE = "127.0.0.1:7000", "127.0.0.1:7001"
SLOTS = slots_of(HERE, THERE)
MINE, OTHERS = keys_of(SLOTS, HERE, 4), keys_of(SLOTS, THERE, 4)


def gets(*keys: str) -> Any:
    return (operation("GET", key) for key in keys)


def cluster(*keys: str, **settings: Any) -> WireStage:
    return WireStage(gets(*keys), slots=SLOTS, quota=len(keys), block=max(1, len(keys)), **settings)


@PLAIN
@pytest.mark.parametrize("how", ["MOVED", "ASK"])
def test_a_redirection_is_followed_and_counts_into_the_service_time(is_plain: bool, how: str) -> None:
    stage = cluster(MINE[0], is_plain=is_plain)
    stage.begin()
    stage.receive(moved(MINE[0], THERE, how), on=stage.connection(HERE), after_ns=10 * MS)
    asked = stage.sock(stage.connection(THERE)).commands()
    assert asked == [*([ASKING] if how == "ASK" else []), [b"GET", MINE[0].encode()]]
    stage.receive((OK if how == "ASK" else b"") + A, on=stage.connection(THERE), after_ns=10 * MS)
    assert stage.worker.is_done
    size = operation("GET", MINE[0])[2]
    assert stage.rows() == [Row(20 * MS, 0, 20 * MS, bytes_out=size, bytes_in=len(A), wait_ns=-1, found=HIT)]
    assert stage.redirects() == [how]
    slot = slot_of(MINE[0].encode())
    assert stage.router._numbers is not None
    assert stage.router._numbers[slot] == stage.node(THERE if how == "MOVED" else HERE).number


def test_only_the_redirected_operations_of_a_batch_go_to_the_other_node() -> None:
    stage = cluster(*MINE, batch=4)
    stage.begin()
    stage.receive(A + moved(MINE[1], THERE) + WRONG + moved(MINE[3], THERE, "ASK"), on=stage.connection(HERE))
    there = stage.connection(THERE)
    stage.receive(A, on=there)
    stage.receive(OK + A, on=there)
    assert stage.sock(there).commands() == [[b"GET", MINE[1].encode()], ASKING, [b"GET", MINE[3].encode()]]
    assert stage.worker.is_done
    commands = stage.metrics().commands["GET"]
    assert (commands.ok, commands.errors) == (3, {"WRONGTYPE": 1})


def test_a_transaction_is_redirected_as_a_whole() -> None:
    keys = [MINE[0]] * 2
    stage = cluster(*keys, batch=2, transaction=True)
    stage.begin()
    wrong = moved(keys[0], THERE, "ASK")
    stage.receive(OK + wrong * 2 + b"-EXECABORT Transaction discarded\r\n", on=stage.connection(HERE))
    there = stage.connection(THERE)
    assert stage.sock(there).commands() == [ASKING, [b"MULTI"], *([[b"GET", MINE[0].encode()]] * 2), [b"EXEC"]]
    stage.receive(OK + OK + QUEUED * 2 + b"*2\r\n" + A + A, on=there)
    assert stage.worker.is_done
    assert stage.metrics().commands["GET"].ok == 2
    assert (stage.record.issued, stage.record.transactions) == (2, 2)
    assert stage.redirects() == ["ASK"]


def test_endless_redirections_become_an_error() -> None:
    stage = cluster(MINE[0])
    stage.begin()
    for _ in range(8):
        for here, there in ((HERE, THERE), (THERE, HERE)):
            stage.receive(moved(MINE[0], there), on=stage.connection(here))
    assert not stage.worker.is_done
    stage.receive(moved(MINE[0], THERE), on=stage.connection(HERE))
    assert stage.worker.is_done
    assert stage.metrics().commands["GET"].errors == {"MOVED": 1}


@pytest.mark.parametrize("kind", ["TRYAGAIN", "CLUSTERDOWN"])
def test_tryagain_and_clusterdown_are_errors_and_count_as_redirections(kind: str) -> None:
    stage = cluster(MINE[0])
    stage.begin()
    stage.receive(f"-{kind} not now\r\n".encode(), on=stage.connection(HERE))
    assert stage.metrics().commands["GET"].errors == {kind: 1}
    assert stage.redirects() == [kind]


def test_the_topology_is_read_again_after_the_planned_number_of_moves() -> None:
    stage = cluster(*MINE, batch=4, refresh_after=2)
    stage.begin()
    stage.receive(b"".join(moved(key, THERE) for key in MINE), on=stage.connection(HERE))
    assert stage.refreshes == 2


def test_a_redirection_to_an_unknown_node_waits_for_its_connections() -> None:
    new = "127.0.0.1:7009"
    stage = cluster(MINE[0], timeout_ns=100 * MS)
    stage.begin()
    stage.receive(moved(MINE[0], new), on=stage.connection(HERE))
    assert [connection.node.name for connection in stage.to_open] == [new]
    assert not stage.worker.is_done
    # Connecting took longer than the timeout, which counts only from the request on.
    stage.now_ns += 1000 * MS
    stage.open()
    stage.check()
    stage.receive(A, on=stage.connection(new))
    assert stage.worker.is_done
    assert stage.rows()[0][:3] == (1000 * MS, 0, 1000 * MS)


def test_a_redirection_to_an_unreachable_node_fails_its_operation() -> None:
    new = "127.0.0.1:7009"
    stage = cluster(MINE[0])
    stage.begin()
    stage.receive(moved(MINE[0], new), on=stage.connection(HERE))
    with stage.clock():
        stage.worker.refused(stage.connection(new), redis.ConnectionError("refused"), stage.now_ns)
    assert stage.worker.is_done
    assert stage.metrics().commands["GET"].failures == {"ConnectionError": 1}


def test_a_redirected_operation_that_was_not_sent_is_cut_short_at_cancellation() -> None:
    stage = cluster(MINE[0])
    stage.begin()
    stage.receive(moved(MINE[0], "127.0.0.1:7009"), on=stage.connection(HERE))
    stage.span.end_at(stage.now_ns)
    stage.cancellation.cancel()
    stage.check(after_ns=MS)
    assert stage.worker.is_done
    assert stage.metrics().commands["GET"].failures == {"CutShort": 1}


def found(stage: WireStage, *names: str) -> None:
    with stage.clock():
        stage.worker.update_topology(slots_of(*names))


def test_connections_of_a_removed_node_are_closed_when_they_are_idle() -> None:
    stage = WireStage(gets(*MINE, *OTHERS), slots=SLOTS, connections=2, block=8)
    stage.begin()
    leaving = list(stage.node(THERE).connections)
    found(stage, HERE)
    assert stage.record.issued == 4
    for connection in leaving:
        stage.receive(A, on=connection)
    stage.check()
    assert [connection.is_open for connection in leaving] == [False, False]
    assert [connection.link.closed for connection in leaving] == [1, 1]  # type: ignore[attr-defined]
    assert stage.reopening == []
    assert sorted(map(id, stage.parked)) == sorted(map(id, leaving))


@pytest.mark.parametrize("when", ["free", "under way"])
def test_a_node_that_returns_gets_all_its_connections(when: str) -> None:
    stage = WireStage(gets(*MINE, *OTHERS, *MINE, *OTHERS), slots=SLOTS, connections=2, block=8)
    stage.begin()
    connections = list(stage.node(THERE).connections)
    found(stage, HERE)
    if when == "free":
        for connection in connections:
            stage.receive(A, on=connection)
    found(stage, HERE, THERE)
    if when == "under way":
        for connection in connections:
            stage.receive(A, on=connection)
    stage.check()
    assert len(stage.reopening) + len(stage.to_open) + sum(connection.is_open for connection in connections) == 2
    stage.open()
    stage.reopen()
    assert [connection.is_open for connection in stage.node(THERE).connections] == [True, True]


def test_a_redirection_to_a_removed_node_goes_to_another_node() -> None:
    new = "127.0.0.1:7009"
    stage = cluster(MINE[0])
    stage.begin()
    stage.receive(moved(MINE[0], new), on=stage.connection(HERE))
    found(stage, HERE, THERE)
    heard = next(connection for name in (HERE, THERE) if (connection := stage.connection(name)).batch is not None)
    stage.receive(A, on=heard)
    assert stage.worker.is_done
    assert stage.metrics().commands["GET"].ok == 1


@PLAIN
def test_nodes_that_wait_for_a_hanging_node_continue_when_it_is_known_to_be_down(is_plain: bool) -> None:
    each = (operation("GET", key) for _ in repeat(None) for key in (MINE[0], OTHERS[0]))
    stage = WireStage(each, slots=SLOTS, is_plain=is_plain, timeout_ns=100 * MS, block=1024)
    stage.begin()
    here, there = stage.connection(HERE), stage.connection(THERE)
    # The other node hangs: its requests pile up.
    while here.batch is not None:
        stage.receive(A, on=here)
        assert stage.record.issued < 3 * AHEAD
    assert stage.worker.due_ns > stage.now_ns, "it would spin"
    stage.check(after_ns=101 * MS)
    stage.check(after_ns=50 * MS)
    assert stage.reopening == [there]
    assert here.batch is not None

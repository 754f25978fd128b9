from __future__ import annotations

from itertools import pairwise

import hiredis
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.drivers.wire.poller import READ, WRITE
from agent.worker.workload.reply_effects import Operation
from common.metrics.intervals import CommandMetrics, PoolMetrics
from tests.support.rows import Row
from tests.support.wire import GET, MS, SET, FakeSocket, WireStage, operation

OK = b"+OK\r\n"
A = b"$1\r\na\r\n"
WRONG = b"-WRONGTYPE no\r\n"
NIL = b"_\r\n"
REPLIES = (A, b"$0\r\n\r\n", NIL, b"$12\r\nabcdefghijkl\r\n", WRONG)


@given(
    asked=st.lists(st.tuples(st.sampled_from((GET, SET)), st.sampled_from(REPLIES)), min_size=6, max_size=6),
    cuts=st.sets(st.integers(1, 200)),
    batch=st.sampled_from((1, 2, 3, 6)),
    block=st.sampled_from((4, 6)),
    is_plain=st.booleans(),
    transaction=st.booleans(),
)
def test_replies_count_the_same_at_any_fragmentation(
    asked: list[tuple[Operation, bytes]], cuts: set[int], batch: int, block: int, is_plain: bool, transaction: bool
) -> None:
    replies = [reply if each is GET or reply == WRONG else OK for each, reply in asked]

    def counted(cut: set[int]) -> PoolMetrics:
        stage = WireStage(
            (each for each, _ in asked),
            batch=batch,
            quota=6,
            is_plain=is_plain,
            transaction=transaction,
            block=block,
        )
        stage.begin()
        for first in range(0, 6, batch):
            whole = b"".join(replies[first : first + batch])
            if transaction:
                whole = OK + b"+QUEUED\r\n" * batch + b"*%d\r\n" % batch + whole
            ends = [0, *sorted(at for at in cut if at < len(whole)), len(whole)]
            stage.receive(*(whole[begin:end] for begin, end in pairwise(ends)))
        stage.check()
        assert stage.worker.is_done
        return stage.metrics()

    found = counted(cuts)
    assert found == counted(set())
    for wanted, name in ((GET, "GET"), (SET, "SET")):
        mine = [reply for (each, _), reply in zip(asked, replies, strict=True) if each is wanted]
        metrics = found.commands.get(name, CommandMetrics())
        assert (metrics.ok, metrics.error_count) == (len(mine) - mine.count(WRONG), mine.count(WRONG))
        looked_up = [reply for reply in mine if wanted is GET and reply != WRONG]
        misses = looked_up.count(NIL)
        assert (metrics.hits, metrics.misses) == (len(looked_up) - misses, misses)
        if not transaction:
            assert (metrics.bytes_out, metrics.bytes_in) == (wanted[2] * len(mine), len(b"".join(mine)))


@given(
    rooms=st.lists(st.integers(0, 40), max_size=30),
    piece=st.sampled_from((7, 10**9)),  # TLS takes one record a call
    batch=st.sampled_from((1, 3)),
)
def test_requests_are_sent_in_order_through_a_socket_that_takes_parts(rooms: list[int], piece: int, batch: int) -> None:
    stage = WireStage((operation("GET", f"key {number}") for number in range(9)), batch=batch, quota=9)
    sock = FakeSocket()
    sock.piece = piece
    stage.connection().link.open = lambda: sock  # type: ignore[method-assign]
    stage.connection().link.sock = sock  # type: ignore[attr-defined]
    wanted = b"".join(b"*2\r\n$3\r\nGET\r\n$5\r\nkey %d\r\n" % number for number in range(9))
    left = iter(rooms)
    sock.room = next(left, 10**9)
    stage.begin()
    for _ in range(9 // batch):
        while stage.poller.files[sock.fd]:
            assert sock.room == 0, "the poller reports only a socket that was full"
            sock.room = next(left, 10**9)
            stage.writable()
        sock.room = next(left, 10**9)
        stage.receive(A * batch)
    assert bytes(sock.sent) == wanted
    assert stage.metrics().commands["GET"].ok == 9


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    cuts=st.sets(st.integers(1, 300)),
)
def test_each_reply_of_a_batch_has_the_time_of_its_last_byte(sizes: list[int], cuts: set[int]) -> None:
    stage = WireStage(batch=len(sizes), quota=len(sizes), has_known_sizes=True)
    answers = [b"$%d\r\n%s\r\n" % (size, b"x" * size) for size in sizes]
    whole = b"".join(answers)
    ends = [0, *sorted(at for at in cuts if at < len(whole)), len(whole)]
    stage.begin()
    stage.receive(*(whole[begin:end] for begin, end in pairwise(ends)), after_ns=MS)
    reached, expected = 0, []
    for answer in answers:
        reached += len(answer)
        expected.append(next(number for number, end in enumerate(ends) if end >= reached) * MS)
    assert [row.ended_ns for row in stage.rows() for _ in range(row.count)] == expected


def test_a_connection_is_read_and_written_in_one_turn() -> None:
    stage = WireStage(batch=2, quota=2)
    stage.open()
    sock = stage.sock()
    sock.room = 30
    stage.begin()
    sock.room = 10**9
    sock.incoming.append(A)
    with stage.clock():
        stage.connection().on_ready(READ | WRITE)
    stage.receive(A)
    assert (stage.metrics().commands["GET"].ok, sock.commands()) == (2, [[b"GET", b"key"]] * 2)


@pytest.mark.parametrize("moment", ["send", "write on", "read", "end"])
def test_a_broken_connection_is_lost_once_and_its_operations_fail(moment: str) -> None:
    stage = WireStage(batch=2)
    stage.open()
    sock, broken = stage.sock(), ConnectionResetError(104, "reset by peer")
    if moment == "send":
        sock.fails = broken
    if moment == "write on":
        sock.room = 3
    stage.begin(after_ns=MS)
    if moment == "write on":
        sock.fails = broken
        stage.writable()
    if moment in ("read", "end"):
        stage.receive(broken if moment == "read" else b"")
    failed = Row(MS, stage.kind(0, False, "ConnectionError"), bytes_out=GET[2], bytes_in=0, wait_ns=-1)
    assert stage.rows() == [failed] * 2
    assert stage.reopening == [stage.connection()]
    assert [type(error) for error in stage.connection().link.lost] == [redis.ConnectionError]  # type: ignore[attr-defined]
    assert stage.poller.files == {}


def test_a_lost_connection_ignores_further_events_of_the_same_turn() -> None:
    # The poller reported both connections; the reply of the first made the other send, which failed.
    stage = WireStage()
    stage.begin()
    connection = stage.connection()
    stage.receive(b"")
    for events in (READ, READ | 16, WRITE, READ | WRITE):
        with stage.clock():
            connection.on_ready(events)
    assert stage.reopening == [connection]
    assert len(stage.lost()) == 1


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("before", [[], [A], [A[:3], A[3:]]], ids=("nothing", "a reply", "a reply in two parts"))
def test_a_disconnect_is_noticed_after_the_replies_before_it(is_plain: bool, before: list[bytes]) -> None:
    stage = WireStage(is_plain=is_plain)
    stage.begin()
    stage.sock().incoming.extend([*before, b""])
    with stage.clock():
        stage.connection().on_ready(READ | 16)
    assert stage.reopening == [stage.connection()]
    assert stage.record.issued == 1 + bool(before)
    assert stage.metrics().commands["GET"].ok == bool(before)


def test_data_that_is_not_resp_ends_the_connection() -> None:
    stage = WireStage()
    stage.begin()
    stage.receive(b"HTTP/1.1 400 Bad Request\r\n")
    assert stage.rows()[0].kind == stage.kind(0, False, "InvalidResponse")
    assert stage.reopening == [stage.connection()]


@pytest.mark.parametrize("has_pushes", [False, True])
def test_a_reply_without_a_request_ends_the_connection(has_pushes: bool) -> None:
    stage = WireStage(quota=1, has_pushes=has_pushes)
    stage.begin()
    stage.receive(A)
    stage.receive(b"-ERR timeout\r\n")
    assert stage.reopening == [stage.connection()]
    assert "without a request" in str(stage.lost()[0])
    assert stage.metrics().commands["GET"].operations == 1


def test_push_messages_between_replies_go_to_redis_py() -> None:
    stage = WireStage(quota=4, batch=2, has_pushes=True)
    push = b">2\r\n$6\r\nMOVING\r\n:1\r\n"
    stage.begin()
    stage.receive(push, push + A, push + A + push)
    stage.receive(push, A + A)
    pushed = stage.connection().link.pushed_messages  # type: ignore[attr-defined]
    assert [list(message) for message in pushed] == [[b"MOVING", 1]] * 5
    assert stage.metrics().commands["GET"].ok == 4


def test_a_connection_that_a_push_message_ends_is_closed_after_its_batch() -> None:
    stage = WireStage(has_pushes=True)
    stage.begin()
    connection = stage.connection()
    connection.link.must_reconnect = True  # type: ignore[attr-defined]
    stage.receive(b">2\r\n$6\r\nMOVING\r\n:1\r\n")
    assert (connection.is_closing, connection.is_open) == (True, True)
    stage.receive(A)
    assert (connection.is_open, connection.link.closed, connection.link.lost) == (False, 1, [])  # type: ignore[attr-defined]
    assert stage.reopening == [connection]
    stage.reopen()
    assert stage.sock().commands() == [[b"GET", b"key"]]
    assert not connection.is_closing


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_socket_is_read_until_the_reply_is_complete(is_plain: bool) -> None:
    stage = WireStage(quota=1, is_plain=is_plain)
    pieces = [b"$10\r\n01", b"234", b"56789\r\n"]

    stage.begin()
    stage.sock().incoming.extend(pieces)
    with stage.clock():
        stage.connection().on_ready(READ)
    assert stage.metrics().commands["GET"].ok == 1


def test_a_batch_may_have_replies_as_deep_as_the_parser_allows() -> None:
    deep = b"*1\r\n" * 8 + b":1\r\n"
    alone = hiredis.Reader()
    alone.feed(deep)
    assert alone.gets() is not False
    stage = WireStage(quota=2, batch=2, is_plain=False)
    stage.begin()
    stage.receive(deep * 2)
    assert stage.metrics().commands["GET"].ok == 2


def test_a_reopened_connection_keeps_nothing_of_its_last_batch() -> None:
    stage = WireStage(batch=2)
    stage.open()
    stage.sock().room = 3
    stage.begin()
    stage.receive(A[:4], b"")
    stage.reopen()
    assert stage.sock().commands() == [[b"GET", b"key"]] * 2
    stage.receive(A * 2)
    assert stage.metrics().commands["GET"].ok == 2


def test_a_notification_on_one_connection_reopens_the_others_of_its_pool_after_their_batches() -> None:
    stage = WireStage(connections=2, has_pushes=True)
    stage.begin()
    busy = stage.connection(number=1)
    busy.link.must_reconnect = True  # type: ignore[attr-defined]
    stage.check()
    assert (busy.is_closing, busy.is_open) == (True, True)
    stage.receive(A, on=busy)
    assert (busy.is_open, busy.link.lost) == (False, [])  # type: ignore[attr-defined]
    assert stage.reopening == [busy]


def test_a_relaxed_timeout_counts_until_the_maintenance_is_over() -> None:
    stage = WireStage(has_pushes=True, timeout_ns=100 * MS)
    stage.begin()
    connection = stage.connection()
    connection.link.relaxed_ns = 1000 * MS  # type: ignore[attr-defined]
    stage.check(after_ns=500 * MS)
    assert connection.is_open
    stage.receive(A)
    connection.link.relaxed_ns = 100 * MS  # type: ignore[attr-defined]
    stage.check(after_ns=101 * MS)
    assert [str(error) for error in stage.lost()] == ["Timeout reading from socket"]

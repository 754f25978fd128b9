from __future__ import annotations

from itertools import pairwise

import hiredis
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.drivers.wire.poller import READ, WRITE
from tests.support.rows import Row
from tests.support.wire import GET, MS, SET, FakeSocket, WireStage, operation

OK = b"+OK\r\n"
A = b"$1\r\na\r\n"
REPLIES = (A, b"$0\r\n\r\n", b"_\r\n", b"$12\r\nabcdefghijkl\r\n", b"-WRONGTYPE no\r\n")


def test_a_batch_goes_out_as_one_piece_and_its_replies_are_one_row() -> None:
    stage = WireStage(batch=3, quota=3)
    stage.begin()
    assert stage.sock().commands() == [[b"GET", b"key"]] * 3
    stage.hear(A * 3, after_ns=10 * MS)
    assert stage.rows() == [Row(10 * MS, 0, 10 * MS, bytes_out=3 * GET[2], bytes_in=3 * len(A), wait_ns=-1, count=3)]


@given(
    picks=st.lists(st.booleans(), min_size=6, max_size=6),
    replies=st.lists(st.sampled_from(REPLIES), min_size=6, max_size=6),
    cuts=st.sets(st.integers(1, 200)),
    batch=st.sampled_from((1, 2, 3, 6)),
    is_plain=st.booleans(),
    transaction=st.booleans(),
)
def test_however_replies_are_cut_the_same_is_counted(
    picks: list[bool], replies: list[bytes], cuts: set[int], batch: int, is_plain: bool, transaction: bool
) -> None:
    def counted(cut: set[int]) -> object:
        each = [SET if pick else GET for pick in picks]
        stage = WireStage(iter(each), batch=batch, quota=6, is_plain=is_plain, transaction=transaction, block=6)
        stage.begin()
        for first in range(0, 6, batch):
            answers = [
                OK if pick and reply != REPLIES[-1] else reply
                for pick, reply in zip(picks[first : first + batch], replies[first : first + batch], strict=True)
            ]
            whole = b"".join(answers)
            if transaction:
                whole = OK + b"+QUEUED\r\n" * batch + b"*%d\r\n" % batch + whole
            ends = [0, *sorted(at for at in cut if at < len(whole)), len(whole)]
            stage.hear(*(whole[begin:end] for begin, end in pairwise(ends)))
        stage.check()
        assert stage.worker.is_done
        return stage.metrics()

    assert counted(cuts) == counted(set())


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    cuts=st.sets(st.integers(1, 300)),
)
def test_each_reply_of_a_batch_has_the_time_at_which_its_last_byte_was_read(sizes: list[int], cuts: set[int]) -> None:
    stage = WireStage(batch=len(sizes), quota=len(sizes), has_known_sizes=True)
    answers = [b"$%d\r\n%s\r\n" % (size, b"x" * size) for size in sizes]
    whole = b"".join(answers)
    ends = [0, *sorted(at for at in cuts if at < len(whole)), len(whole)]
    stage.begin()
    stage.hear(*(whole[begin:end] for begin, end in pairwise(ends)), after_ns=MS)
    reached, expected = 0, []
    for answer in answers:
        reached += len(answer)
        expected.append(next(number for number, end in enumerate(ends) if end >= reached) * MS)
    assert [row.ended_ns for row in stage.rows() for _ in range(row.count)] == expected


@given(rooms=st.lists(st.integers(0, 40), max_size=30), batch=st.sampled_from((1, 3)))
def test_what_a_socket_does_not_take_at_once_is_sent_in_order_as_it_takes_more(rooms: list[int], batch: int) -> None:
    stage = WireStage((operation("GET", f"key {number}") for number in range(9)), batch=batch, quota=9)
    sock = FakeSocket()
    stage.connection().link.open = lambda: sock  # type: ignore[method-assign]
    stage.connection().link.sock = sock  # type: ignore[attr-defined]
    wanted = b"".join(b"*2\r\n$3\r\nGET\r\n$5\r\nkey %d\r\n" % number for number in range(9))
    left = iter(rooms)
    sock.room = next(left, 10**9)
    stage.begin()
    for _ in range(9 // batch):
        while stage.poller.files[sock.fd]:
            sock.room = next(left, 10**9)
            stage.writable()
        sock.room = next(left, 10**9)
        stage.hear(A * batch)
    assert bytes(sock.sent) == wanted
    assert stage.metrics().commands["GET"].ok == 9


def test_a_socket_that_takes_a_part_is_watched_until_it_has_taken_all() -> None:
    stage = WireStage(quota=1)
    stage.open()
    sock = stage.sock()
    sock.room = 5
    stage.begin()
    assert stage.poller.files == {sock.fd: True}
    sock.room = 0
    stage.writable()
    assert stage.poller.files == {sock.fd: True}
    sock.room = 10**9
    stage.writable()
    assert stage.poller.files == {sock.fd: False}
    assert sock.commands() == [[b"GET", b"key"]]


def test_a_socket_that_takes_a_piece_a_call_is_given_pieces_until_it_is_full() -> None:
    # As TLS does, a record a call; the poller tells only of a socket that was full before.
    stage = WireStage(batch=3, quota=3)
    stage.open()
    sock = stage.sock()
    sock.piece, sock.room = 7, 40
    stage.begin()
    assert len(sock.sent) == 40
    sock.room = 10**9
    stage.writable()
    assert sock.commands() == [[b"GET", b"key"]] * 3
    assert stage.poller.files == {sock.fd: False}


def test_a_connection_may_be_read_and_written_in_the_same_turn() -> None:
    stage = WireStage(batch=2, quota=2)
    stage.open()
    sock = stage.sock()
    sock.room = 30
    stage.begin()
    sock.room = 10**9
    sock.incoming.append(A)
    with stage.clock():
        stage.connection().on_ready(READ | WRITE)
    stage.hear(A)
    assert (stage.metrics().commands["GET"].ok, sock.commands()) == (2, [[b"GET", b"key"]] * 2)


@pytest.mark.parametrize("moment", ["send", "write on", "read", "end"])
def test_a_connection_that_breaks_is_lost_once_and_what_was_in_flight_failed(moment: str) -> None:
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
        stage.hear(broken if moment == "read" else b"")
    failed = Row(MS, stage.kind(0, False, "ConnectionError"), bytes_out=GET[2], bytes_in=0, wait_ns=-1)
    assert stage.rows() == [failed] * 2
    assert stage.reopening == [stage.connection()]
    assert [type(error) for error in stage.connection().link.lost] == [redis.ConnectionError]  # type: ignore[attr-defined]
    assert stage.poller.files == {}


def test_a_connection_that_was_lost_earlier_in_the_same_turn_is_not_lost_again() -> None:
    # The poller told of both at once; the first one's reply made the other send, which failed.
    stage = WireStage()
    stage.begin()
    connection = stage.connection()
    stage.hear(b"")
    for events in (READ, READ | 16, WRITE, READ | WRITE):
        with stage.clock():
            connection.on_ready(events)
    assert stage.reopening == [connection]
    assert len(stage.lost()) == 1


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("before", [[], [A], [A[:3], A[3:]]], ids=("nothing", "a reply", "a reply in two parts"))
def test_a_hang_up_is_found_behind_whatever_came_before(is_plain: bool, before: list[bytes]) -> None:
    stage = WireStage(is_plain=is_plain)
    stage.begin()
    stage.sock().incoming.extend([*before, b""])
    with stage.clock():
        stage.connection().on_ready(READ | 16)
    assert stage.reopening == [stage.connection()]
    assert stage.record.issued == 1 + bool(before)
    assert stage.metrics().commands["GET"].ok == bool(before)


def test_what_is_no_reply_ends_the_connection() -> None:
    stage = WireStage()
    stage.begin()
    stage.hear(b"HTTP/1.1 400 Bad Request\r\n")
    assert stage.rows()[0].kind == stage.kind(0, False, "InvalidResponse")
    assert stage.reopening == [stage.connection()]


@pytest.mark.parametrize("has_pushes", [False, True])
def test_a_reply_to_no_request_ends_the_connection(has_pushes: bool) -> None:
    stage = WireStage(quota=1, has_pushes=has_pushes)
    stage.begin()
    stage.hear(A)
    stage.hear(b"-ERR timeout\r\n")
    assert stage.reopening == [stage.connection()]
    assert "without a request" in str(stage.lost()[0])
    assert stage.metrics().commands["GET"].operations == 1


def test_messages_between_replies_are_redis_pys() -> None:
    stage = WireStage(quota=4, batch=2, has_pushes=True)
    push = b">2\r\n$6\r\nMOVING\r\n:1\r\n"
    stage.begin()
    stage.hear(push, push + A, push + A + push)
    stage.hear(push, A + A)
    told = stage.connection().link.told  # type: ignore[attr-defined]
    assert [list(message) for message in told] == [[b"MOVING", 1]] * 5
    assert stage.metrics().commands["GET"].ok == 4


def test_a_connection_that_a_message_wants_to_reconnect_is_closed_after_its_batch() -> None:
    stage = WireStage(has_pushes=True)
    stage.begin()
    connection = stage.connection()
    connection.link.is_unwanted = True  # type: ignore[attr-defined]
    stage.hear(b">2\r\n$6\r\nMOVING\r\n:1\r\n")
    assert (connection.is_closing, connection.is_open) == (True, True)
    stage.hear(A)
    assert (connection.is_open, connection.link.closed, connection.link.lost) == (False, 1, [])  # type: ignore[attr-defined]
    assert stage.reopening == [connection]
    stage.reopen()
    assert stage.sock().commands() == [[b"GET", b"key"]]
    assert not connection.is_closing


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_socket_is_read_until_the_reply_is_complete_because_the_poller_tells_once(is_plain: bool) -> None:
    stage = WireStage(quota=1, is_plain=is_plain)
    pieces = [b"$10\r\n01", b"234", b"56789\r\n"]

    stage.begin()
    stage.sock().incoming.extend(pieces)
    with stage.clock():
        stage.connection().on_ready(READ)
    assert stage.metrics().commands["GET"].ok == 1


def test_a_block_is_begun_where_the_batch_lies_in_it() -> None:
    stage = WireStage(iter([GET, SET, GET, SET, GET, SET]), batch=2, quota=6, block=4)
    stage.begin()
    for _ in range(3):
        stage.hear(A + OK, after_ns=MS)
    commands = stage.metrics().commands
    assert {name: (row.ok, row.bytes_out, row.bytes_in) for name, row in commands.items()} == {
        "GET": (3, 3 * GET[2], 3 * len(A)),
        "SET": (3, 3 * SET[2], 3 * len(OK)),
    }


def test_replies_nested_as_deep_as_the_parser_can_are_read_in_a_batch_too() -> None:
    deep = b"*1\r\n" * 8 + b":1\r\n"
    alone = hiredis.Reader()
    alone.feed(deep)
    assert alone.gets() is not False
    stage = WireStage(quota=2, batch=2, is_plain=False)
    stage.begin()
    stage.hear(deep * 2)
    assert stage.metrics().commands["GET"].ok == 2


def test_a_closed_connection_keeps_nothing_of_its_batch() -> None:
    stage = WireStage(batch=2)
    stage.open()
    stage.sock().room = 3
    stage.begin()
    stage.hear(A[:4], b"")
    stage.reopen()
    assert stage.sock().commands() == [[b"GET", b"key"]] * 2
    stage.hear(A * 2)
    assert stage.metrics().commands["GET"].ok == 2

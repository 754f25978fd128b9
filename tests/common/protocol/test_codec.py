from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.protocol import codec
from common.protocol.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_MAX,
    AgentState,
    Assignment,
    Bye,
    Dismiss,
    Envelope,
    Failed,
    FailureKind,
    FinalAck,
    FrameAck,
    HeartbeatReply,
    MetricsFrame,
    PoolShare,
    Preloaded,
    PreparationStep,
    Prepare,
    Prepared,
    Preparing,
    Refused,
    Start,
    Stop,
    WorkerLost,
    WorkerPrepare,
    WorkerRenew,
    WorkerStart,
    WorkerStop,
)
from common.serde import to_builtins
from tests.support.protocol import (
    final,
    fleet_plan,
    heartbeat,
    hello,
    interval,
    welcome,
    worker_final,
    worker_metrics,
)

SHARE = Assignment(
    plan=fleet_plan(),
    pools=(PoolShare(group=0, number=1, first_thread=4), PoolShare(group=0, number=2, first_thread=5)),
    threads_total=9,
)
PRELOADED = Preloaded(keys=1, commands=2, bytes_out=3, took_ns=4)
OF_AGENTS = [
    hello(),
    hello(state=AgentState.DONE, run_id="run-1", next_seq=3, frames_held=2),
    Preparing(step=PreparationStep.CONNECTIONS, done=3, total=10),
    Preparing(step=PreparationStep.PRELOAD, done=3, total=10),
    Prepared(processes=2, connections_open=10),
    Prepared(processes=2, connections_open=10, preloaded=PRELOADED),
    Failed(kind=FailureKind.TARGET, reason="connection refused"),
    heartbeat(AgentState.RUNNING),
    heartbeat(AgentState.IDLE, offset_ns=None),
    heartbeat(AgentState.IDLE, offset_ns=-(2**62)),
    WorkerLost(process=1, exit_code=-9, reason="killed"),
    WorkerLost(process=0, exit_code=None),
    final(3, reason="stopped"),
    Bye(reason="served"),
    MetricsFrame(seq=0, through=-1, intervals=()),
    MetricsFrame(seq=7, through=3, intervals=(interval(3, 5, failed=2), interval(1, 1))),
]
OF_COORDINATORS = [
    welcome(),
    Refused(reason="no"),
    Prepare(assignments=(SHARE,), plan_hash="hash"),
    Start(t0_ns=2**62),
    HeartbeatReply(sent_ns=1, received_ns=2, replied_ns=3),
    Stop(drain=True, reason="interrupted"),
    FrameAck(next_seq=7),
    FinalAck(),
    Dismiss(exit_code=5),
]
OF_WORKERS = [
    Preparing(step=PreparationStep.CONNECTIONS, done=1, total=2),
    Prepared(processes=1, connections_open=1),
    Failed(kind=FailureKind.TARGET, reason="connection refused"),
    worker_metrics(3, 1, 2),
    worker_final(3),
]
ORDERS = [
    WorkerPrepare(run_id="run", assignment=SHARE, process=1),
    WorkerStart(t0_ns=5),
    WorkerStop(drain=False),
    WorkerRenew(until_ns=2**62),
]


def name(value: object) -> str:
    return type(value).__name__


def enveloped(message: Any) -> Envelope:
    return Envelope(run_id="run-1", incarnation="incarnation-1", message=message)


# -- there and back


@pytest.mark.parametrize("message", OF_AGENTS, ids=name)
def test_every_agent_message_survives_the_wire(message: Any) -> None:
    assert codec.decode_from_agent(codec.encode(enveloped(message))) == enveloped(message)


@pytest.mark.parametrize("message", OF_COORDINATORS, ids=name)
def test_every_coordinator_message_survives_the_wire(message: Any) -> None:
    assert codec.decode_from_coordinator(codec.encode(enveloped(message))) == enveloped(message)


@pytest.mark.parametrize("message", OF_WORKERS, ids=name)
def test_every_worker_message_survives_the_pipe(message: Any) -> None:
    assert codec.decode_from_worker(codec.pack(message)) == message


@pytest.mark.parametrize("message", ORDERS, ids=name)
def test_every_order_to_a_worker_survives_the_pipe(message: Any) -> None:
    assert codec.decode_worker_order(codec.pack(message)) == message


# -- who may say what


@pytest.mark.parametrize("message", OF_COORDINATORS, ids=name)
def test_a_message_of_a_coordinator_is_refused_from_an_agent(message: Any) -> None:
    with pytest.raises(ProtocolError):
        codec.decode_from_agent(codec.encode(enveloped(message)))


@pytest.mark.parametrize("message", OF_AGENTS, ids=name)
def test_a_message_of_an_agent_is_refused_from_a_coordinator(message: Any) -> None:
    with pytest.raises(ProtocolError):
        codec.decode_from_coordinator(codec.encode(enveloped(message)))


@pytest.mark.parametrize("version", [0, PROTOCOL_MAX + 1, 2**60])
def test_another_protocol_version_is_refused_except_during_negotiation(version: int) -> None:
    assert codec.decode_from_agent(codec.encode(enveloped(hello()), version)).message == hello()
    refused = Refused(reason="no")
    assert codec.decode_from_coordinator(codec.encode(enveloped(refused), version)).message == refused
    with pytest.raises(ProtocolError, match="expected protocol"):
        codec.decode_from_agent(codec.encode(enveloped(Bye(reason="")), version))
    with pytest.raises(ProtocolError, match="expected protocol"):
        codec.decode_from_coordinator(codec.encode(enveloped(FinalAck()), version))


# -- invalid messages: a message with some of its fields replaced, as plain data


def forged(message: Any, **fields: Any) -> bytes:
    plain = msgpack.unpackb(codec.pack(message))
    assert fields.keys() <= {"type", "extra"} | plain.keys()
    return msgpack.packb([PROTOCOL_MAX, "run-1", "incarnation-1", plain | fields])  # type: ignore[no-any-return]


FRAME = MetricsFrame(seq=0, through=0, intervals=(interval(0, 1),))
INTERVAL = to_builtins(interval(0, 1))
GET = INTERVAL["pools"]["main"]["commands"]["GET"]


def frame_with_command(**fields: Any) -> dict[str, Any]:
    return {"intervals": [INTERVAL | {"pools": {"main": {"commands": {"GET": GET | fields}}}}]}


FORGERIES: list[tuple[Any, dict[str, Any]]] = [
    (hello(), {"processes": 0}),
    (hello(), {"processes": -1}),
    (hello(), {"processes": 1.5}),
    (hello(), {"processes": True}),
    (hello(), {"state": "asleep"}),
    (hello(), {"state": None}),
    (hello(), {"name": 7}),
    (hello(), {"name": b"bytes"}),
    (hello(), {"next_seq": -1}),
    (hello(), {"frames_held": -1}),
    (hello(), {"extra": 1}),
    (hello(), {"type": "Goodbye"}),
    (hello(), {"type": 7}),
    (Preparing(step=PreparationStep.CONNECTIONS, done=1, total=2), {"done": -1}),
    (Preparing(step=PreparationStep.CONNECTIONS, done=1, total=2), {"total": -1}),
    (Preparing(step=PreparationStep.CONNECTIONS, done=1, total=2), {"step": "resting"}),
    (Prepared(processes=1, connections_open=1), {"connections_open": -1}),
    (Prepared(processes=1, connections_open=1), {"preloaded": {"keys": -1}}),
    (Failed(kind=FailureKind.AGENT, reason=""), {"kind": "nobody"}),
    (heartbeat(AgentState.IDLE), {"cpu_percent": math.nan}),
    (heartbeat(AgentState.IDLE), {"cpu_percent": math.inf}),
    (heartbeat(AgentState.IDLE), {"cpu_percent": -1.0}),
    (heartbeat(AgentState.IDLE), {"cpu_percent_busiest": math.nan}),
    (heartbeat(AgentState.IDLE), {"host_cpu_percent": math.nan}),
    (heartbeat(AgentState.IDLE), {"lag_ms": math.nan}),
    (heartbeat(AgentState.IDLE), {"lag_ms": math.inf}),
    (heartbeat(AgentState.IDLE), {"rtt_ns": -1}),
    (heartbeat(AgentState.IDLE), {"frames_held": -1}),
    (heartbeat(AgentState.IDLE), {"processes_alive": -1}),
    (WorkerLost(process=0, exit_code=1), {"process": -1}),
    (final(), {"next_seq": -1}),
    (final(), {"issued": -1}),
    (final(), {"counted": -1}),
    (final(), {"transactions": -1}),
    (final(), {"ran_ns": -1}),
    (final(), {"processes_lost": -1}),
    (final(), {"drained": 1}),
    (FRAME, {"seq": -1}),
    (FRAME, {"seq": 1.0}),
    (FRAME, {"through": -2}),
    (FRAME, {"intervals": None}),
    (FRAME, {"intervals": [INTERVAL | {"first": -1}]}),
    (FRAME, {"intervals": [INTERVAL | {"last": -1}]}),
    (FRAME, {"intervals": [INTERVAL | {"issued": -1}]}),
    (FRAME, {"intervals": [INTERVAL | {"transactions": -1}]}),
    (FRAME, {"intervals": [INTERVAL | {"unsent": -1}]}),
    (FRAME, frame_with_command(ok=-1)),
    (FRAME, frame_with_command(errors={"ERR": -1})),
    (FRAME, frame_with_command(failures={"TimeoutError": -1})),
    (FRAME, frame_with_command(bytes_in=-1)),
    (FRAME, frame_with_command(bytes_out=-1)),
    (FRAME, frame_with_command(service={"count": 5})),
    (FRAME, {"intervals": [INTERVAL | {"pools": {"main": {"connections": {"opened": -1}}}}]}),
    (FRAME, {"intervals": [INTERVAL | {"pools": {"main": {"connections": {"open_peak": -1}}}}]}),
    (FRAME, {"intervals": [INTERVAL | {"pools": {"main": {"connections": {"drops": {"reset": -1}}}}}]}),
]


@pytest.mark.parametrize(("message", "fields"), FORGERIES, ids=lambda value: f"{value}"[:60])
def test_an_invalid_agent_message_is_refused(message: Any, fields: dict[str, Any]) -> None:
    codec.decode_from_agent(forged(message))
    with pytest.raises(ProtocolError):
        codec.decode_from_agent(forged(message, **fields))


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (welcome(), {"protocol": "4"}),
        (FrameAck(next_seq=1), {"next_seq": -1}),
        (Stop(drain=True, reason=""), {"drain": 1}),
        (Start(t0_ns=1), {"t0_ns": 1.5}),
        (
            Prepare(assignments=(SHARE,), plan_hash=""),
            {"assignments": [{"plan": {}, "pools": [], "threads_total": -1}]},
        ),
    ],
    ids=lambda value: f"{value}"[:60],
)
def test_an_invalid_coordinator_message_is_refused(message: Any, fields: dict[str, Any]) -> None:
    codec.decode_from_coordinator(forged(message))
    with pytest.raises(ProtocolError):
        codec.decode_from_coordinator(forged(message, **fields))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb(msgpack.Timestamp(1, 1)),
        b"\xd6\xff\xff\xff\xff\xff",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        msgpack.packb([]),
        msgpack.packb([1, "", "", {}, 5]),
        msgpack.packb([True, "", "", {"type": "Bye", "reason": ""}]),
        msgpack.packb([1.0, "", "", {"type": "Bye", "reason": ""}]),
        msgpack.packb([1, "", "", {"reason": ""}]),
        msgpack.packb([1, None, "", {"type": "Bye", "reason": ""}]),
        msgpack.packb([1, "", "", {"type": "Bye", "reason": ""}]) + b"\x00",
        msgpack.packb([1, "", "", {"type": "Bye", "reason": b"\xff\xfe"}]),
        b"\x94\x01\xa0\xa0\x82\xa4type\xa3Bye\xa6reason\xa2\xff\xfe",
        b"\x94\x01\xa0\xa0\x82\xa4type\xa3Bye\x01\xa0",
    ],
    ids=range(21),
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    for decode in (
        codec.decode_from_agent,
        codec.decode_from_coordinator,
        codec.decode_from_worker,
        codec.decode_worker_order,
    ):
        with pytest.raises(ProtocolError):
            decode(data)


def test_a_number_beyond_64_bits_cannot_be_sent() -> None:
    with pytest.raises(OverflowError):
        codec.encode(enveloped(MetricsFrame(seq=2**70, through=0, intervals=())))


def refusal_of(decode: Callable[[bytes], object], data: bytes) -> None:
    """Decode, and check that every error is one line."""
    text = ""
    try:
        decode(data)
    except ProtocolError as error:
        text = str(error)
    assert text.isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused_in_one_line(data: bytes) -> None:
    for decode in (
        codec.decode_from_agent,
        codec.decode_from_coordinator,
        codec.decode_from_worker,
        codec.decode_worker_order,
    ):
        refusal_of(decode, data)


@given(
    st.sampled_from(OF_AGENTS + OF_COORDINATORS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 10**6),
)
def test_any_damaged_message_is_decoded_or_refused_in_one_line(
    message: Any, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(codec.encode(enveloped(message)))
    for position, byte in changes:
        data[position % len(data)] = byte
    for damaged in (bytes(data), bytes(data[: cut % len(data)])):
        for decode in (codec.decode_from_agent, codec.decode_from_coordinator):
            refusal_of(decode, damaged)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data(), st.sampled_from(OF_AGENTS), plain)
def test_any_replaced_field_is_decoded_or_refused_in_one_line(data: st.DataObject, message: Any, value: Any) -> None:
    fields = [*to_builtins(message)]
    field = data.draw(st.sampled_from(fields))
    refusal_of(codec.decode_from_agent, forged(message, **{field: value}))


def test_every_refusal_is_one_short_line() -> None:
    data = msgpack.packb([1, "", "", {"type": "\x1b[2J\n" * 10_000}])
    with pytest.raises(ProtocolError) as raised:
        codec.decode_from_agent(data)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


# -- bombs: small on the wire, large in memory

_ENVELOPE = b"\x94\x03\xa0\xa0"
_PREPARE = (
    _ENVELOPE + b"\x83\xa4type\xa7Prepare\xa9plan_hash\xa0\xaaassignment\x83\xadthreads_total\x01\xa5pools\x90\xa4plan"
)
_IN_A_QUANTITY = _PREPARE + b"\x82\xa6target\x81\xa3url\xa8redis://\xa4load\x81\xa8duration"
_FRAME_AND = _ENVELOPE + b"\x84\xa4type\xacMetricsFrame\xa3seq\x00\xa7through\x00\xa9intervals"


def filled(head: bytes, unit: bytes) -> bytes:
    """A message of a mebibyte that repeats the unit."""
    return head + unit * ((MAX_MESSAGE_BYTES - len(head)) // len(unit))


def whole(head: bytes, unit: bytes) -> bytes:
    """A well-formed message of a mebibyte whose last value is a list that repeats the unit."""
    count = (MAX_MESSAGE_BYTES - len(head) - 5) // len(unit)
    return head + b"\xdd" + count.to_bytes(4, "big") + unit * count


@pytest.mark.parametrize(
    "data",
    [
        whole(_IN_A_QUANTITY, b"\x90"),
        whole(_IN_A_QUANTITY, b"\x80"),
        whole(_IN_A_QUANTITY, b"\x91\x90"),
        whole(_FRAME_AND, b"\x90"),
        whole(_ENVELOPE, b"\x90"),
        filled(b"", b"\x90"),
        filled(b"", b"\x91"),
        filled(b"\xdd\x00\x0f\xff\xff", b"\x90"),
        filled(_ENVELOPE + b"\xdd\x00\x0f\xff\xf0", b"\x90"),
        filled(_FRAME_AND + b"\xdd\x00\x0f\xff\x00", b"\x90"),
        filled(_FRAME_AND + b"\xdd\x00\x0f\xff\x00", b"\x80"),
        filled(_FRAME_AND + b"\xdd\x7f\xff\xff\xff", b"\x82\xa5first\x00\xa4last\x00"),
        filled(_FRAME_AND + b"\x91\x83\xa5first\x00\xa4last\x00\xa5other\xdd\x00\x0f\xff\x00", b"\x90"),
        filled(_FRAME_AND + b"\x91\x83\xa5first\x00\xa4last\x00\xa5other", b"\x91"),
        filled(_IN_A_QUANTITY + b"\xdd\x00\x0f\xff\x00", b"\x90"),
        filled(_IN_A_QUANTITY + b"\xdd\x00\x0f\xff\x00", b"\x80"),
        filled(_IN_A_QUANTITY, b"\x91"),
        filled(_IN_A_QUANTITY, b"\x81\xa1a"),
    ],
    ids=range(18),
)
def test_a_message_that_expands_in_memory_is_refused_first(data: bytes) -> None:
    for decode in (codec.decode_from_agent, codec.decode_from_coordinator):
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError):
                decode(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 16 * MAX_MESSAGE_BYTES


def test_a_message_over_the_size_limit_is_refused() -> None:
    message = Bye(reason="x" * MAX_MESSAGE_BYTES)
    with pytest.raises(ProtocolError, match="expected at most 1,048,576 bytes, got 1,048,6"):
        codec.decode_from_agent(codec.encode(enveloped(message)))


def test_a_record_of_a_journal_may_be_larger_than_a_message() -> None:
    data = codec.pack(Bye(reason="x" * 2 * MAX_MESSAGE_BYTES))
    assert len(codec.unpack(data, Bye).reason) == 2 * MAX_MESSAGE_BYTES

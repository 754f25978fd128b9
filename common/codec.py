"""Messages and journal records to msgpack bytes and back. The only place that imports msgpack.

An envelope is the array [protocol version, run id, incarnation, message]. What a peer may send is checked here, once,
against the types in `messages`; a message that changes is a new protocol version.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import msgpack

from common.errors import ProtocolError
from common.messages import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    AgentMessage,
    CoordinatorMessage,
    Envelope,
    WorkerMessage,
    WorkerOrder,
)
from common.plain import from_plain, to_plain
from common.units import printable

T = TypeVar("T")


def pack(value: Any) -> bytes:
    """Any of our types as msgpack."""
    return msgpack.packb(to_plain(value), use_bin_type=True)  # type: ignore[no-any-return]


def unpack(data: bytes, kind: type[T]) -> T:
    """Inverse of `pack`. Raises ProtocolError for bytes that are not msgpack or not of this type."""
    try:
        plain = msgpack.unpackb(data, raw=False, strict_map_key=True)
        return from_plain(plain, kind)
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        # ValidationError and UnicodeDecodeError are ValueErrors. The text can quote the data: a line of it is enough.
        what = printable(str(error)[:200])
        raise ProtocolError(
            f"expected msgpack of {getattr(kind, '__name__', 'a message')}, got {len(data)} bytes: {what}"
        ) from error


def encode(envelope: Envelope, protocol: int = PROTOCOL_MAX) -> bytes:
    """An envelope as one message part."""
    message = to_plain(envelope.message)
    return msgpack.packb(  # type: ignore[no-any-return]
        [protocol, envelope.run_id, envelope.incarnation, message], use_bin_type=True
    )


def decode_from_agent(data: bytes) -> Envelope:
    """What an agent sent. Raises ProtocolError for anything that an agent may not say."""
    return _decode(data, AgentMessage)


def decode_from_coordinator(data: bytes) -> Envelope:
    """What a coordinator sent. Raises ProtocolError for anything that a coordinator may not say."""
    return _decode(data, CoordinatorMessage)


def decode_from_worker(data: bytes) -> WorkerMessage:
    """What a worker process sent. Raises ProtocolError."""
    message: WorkerMessage = unpack(data, cast(Any, WorkerMessage))
    return message


def decode_worker_order(data: bytes) -> WorkerOrder:
    """What a worker process was told. Raises ProtocolError."""
    order: WorkerOrder = unpack(data, cast(Any, WorkerOrder))
    return order


def _decode(data: bytes, messages: Any) -> Envelope:
    # Hello and Refused keep their form in every protocol version, so that two sides which share none can still say so.
    version, run_id, incarnation, message = unpack(data, tuple[int, str, str, messages])
    if not PROTOCOL_MIN <= version <= PROTOCOL_MAX and type(message).__name__ not in ("Hello", "Refused"):
        raise ProtocolError(f"expected protocol {PROTOCOL_MIN}..{PROTOCOL_MAX}, got version {version}")
    return Envelope(run_id=run_id, incarnation=incarnation, message=message)

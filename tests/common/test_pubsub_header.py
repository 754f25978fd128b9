from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.pubsub_header import HEADER_BYTES, HeaderReader, HeaderWriter, MessageHeader, is_after

names = st.text(max_size=40)


@given(
    run=names,
    boot=names,
    sender=st.integers(0, 2**32 - 1),
    blanks=st.lists(st.binary(min_size=HEADER_BYTES, max_size=100), min_size=1, max_size=5),
    sent_ns=st.integers(0, 2**63 - 1),
)
def test_a_receiver_reads_the_header_that_the_sender_wrote_and_the_size_is_the_planned_one(
    run: str, boot: str, sender: int, blanks: list[bytes], sent_ns: int
) -> None:
    writer, reader = HeaderWriter(run, boot, sender), HeaderReader(run, boot)
    for number, blank in enumerate(blanks, start=1):
        message = writer.write(blank, sent_ns)
        assert len(message) == len(blank)
        assert message[HEADER_BYTES:] == blank[HEADER_BYTES:]
        assert reader.read(message) == MessageHeader(sender, number, sent_ns)


@given(ours=names, theirs=names)
def test_a_message_of_another_run_is_foreign(ours: str, theirs: str) -> None:
    message = HeaderWriter(theirs, "host", 0).write(bytes(HEADER_BYTES), 1)
    assert (HeaderReader(ours, "host").read(message) is None) == (ours != theirs)


@given(ours=names, theirs=names)
def test_a_message_of_another_host_has_no_time(ours: str, theirs: str) -> None:
    read = HeaderReader("run", ours).read(HeaderWriter("run", theirs, 3).write(bytes(HEADER_BYTES), 7))
    assert read == MessageHeader(3, 1, 7 if ours == theirs else None)


@given(st.binary(max_size=100))
def test_a_message_without_our_header_is_foreign(message: bytes) -> None:
    assert HeaderReader("run", "host").read(message) is None


def test_a_message_that_is_too_short_grows_to_the_size_of_the_header() -> None:
    assert len(HeaderWriter("run", "host", 0).write(b"", 1)) == HEADER_BYTES


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**31 - 1))
def test_a_later_number_is_after_an_earlier_one_even_when_numbers_wrap_around(last: int, ahead: int) -> None:
    later = (last + ahead) % 2**32
    assert is_after(later, last)
    assert not is_after(last, later)
    assert not is_after(last, last)

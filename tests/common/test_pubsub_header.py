from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.pubsub_header import STAMP_BYTES, Stamp, Stamper, StampReader, is_after

names = st.text(max_size=40)


@given(
    run=names,
    boot=names,
    sender=st.integers(0, 2**32 - 1),
    blanks=st.lists(st.binary(min_size=STAMP_BYTES, max_size=100), min_size=1, max_size=5),
    sent_ns=st.integers(0, 2**63 - 1),
)
def test_whoever_receives_a_message_reads_what_its_sender_wrote_and_its_size_stays_as_planned(
    run: str, boot: str, sender: int, blanks: list[bytes], sent_ns: int
) -> None:
    stamper, reader = Stamper(run, boot, sender), StampReader(run, boot)
    for number, blank in enumerate(blanks, start=1):
        message = stamper.stamp(blank, sent_ns)
        assert len(message) == len(blank)
        assert message[STAMP_BYTES:] == blank[STAMP_BYTES:]
        assert reader.read(message) == Stamp(sender, number, sent_ns)


@given(ours=names, theirs=names)
def test_a_message_of_another_run_is_foreign(ours: str, theirs: str) -> None:
    message = Stamper(theirs, "host", 0).stamp(bytes(STAMP_BYTES), 1)
    assert (StampReader(ours, "host").read(message) is None) == (ours != theirs)


@given(ours=names, theirs=names)
def test_a_message_of_another_host_says_no_time(ours: str, theirs: str) -> None:
    read = StampReader("run", ours).read(Stamper("run", theirs, 3).stamp(bytes(STAMP_BYTES), 7))
    assert read == Stamp(3, 1, 7 if ours == theirs else None)


@given(st.binary(max_size=100))
def test_what_anybody_else_publishes_is_foreign(message: bytes) -> None:
    assert StampReader("run", "host").read(message) is None


def test_a_blank_that_is_too_short_grows_to_the_stamp() -> None:
    assert len(Stamper("run", "host", 0).stamp(b"", 1)) == STAMP_BYTES


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**31 - 1))
def test_a_later_number_is_after_an_earlier_one_also_when_numbers_have_begun_anew(last: int, ahead: int) -> None:
    later = (last + ahead) % 2**32
    assert is_after(later, last)
    assert not is_after(last, later)
    assert not is_after(last, last)

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.errors import UsageError
from common.protocol.codec import pack
from coordinator import journal
from coordinator.journal import MAGIC, Journal, read_journal
from coordinator.journal_lock import is_locked
from coordinator.records import AnyRecord, FrameAccepted, RunStarted
from tests.support.examples import tried
from tests.support.records import clean_run

RUN = tuple(clean_run(seconds=2, per_second=20))


def write(path: Path, records: Sequence[AnyRecord]) -> bytes:
    with Journal.create(path) as journal:
        for record in records:
            journal.append(record)
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("journal") / "journal", RUN)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "journal"


def test_a_journal_gives_back_its_records_in_order(tmp_path: Path) -> None:
    write(tmp_path / "journal", RUN)
    assert tuple(read_journal(tmp_path / "journal")) == RUN


def test_a_record_can_be_read_as_soon_as_it_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.create(path) as journal:
        for count, record in enumerate(RUN, start=1):
            journal.append(record)
            assert tuple(read_journal(path)) == RUN[:count]


def test_a_frame_is_written_as_its_agent_packed_it(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "journal") as journal:
        for record in RUN:
            packed = pack(record.frame) if isinstance(record, FrameAccepted) else None
            journal.append(record, packed)
    assert tuple(read_journal(tmp_path / "journal")) == RUN
    assert (tmp_path / "journal").read_bytes() == write(tmp_path / "again", RUN)


@given(data=st.data())
def test_any_prefix_of_a_journal_holds_a_prefix_of_its_records(
    whole: bytes, scratch: Path, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, len(whole)))
    scratch.write_bytes(whole[:length])
    found = tuple(read_journal(scratch))
    assert found == RUN[: len(found)]
    assert len(found) == len(RUN) or length < len(whole)


@given(data=st.data())
def test_reopening_cuts_off_what_is_torn_and_goes_on(whole: bytes, scratch: Path, data: st.DataObject) -> None:
    scratch.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    kept = tuple(read_journal(scratch))
    with Journal.reopen(scratch) as journal:
        journal.append(RunStarted(t0_ns=42))
    assert tuple(read_journal(scratch)) == (*kept, RunStarted(t0_ns=42))


@given(data=st.data())
def test_a_changed_byte_is_never_taken_for_a_record(whole: bytes, scratch: Path, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position] ^= data.draw(st.integers(1, 255))
    scratch.write_bytes(flipped)
    found = []
    with pytest.raises(UsageError, match=r"damaged at byte|not a journal|another version"):
        found.extend(read_journal(scratch))
    assert tuple(found) == RUN[: len(found)]


@pytest.fixture(scope="module")
def borders(whole: bytes, scratch: Path) -> list[int]:
    """Where the records of the whole journal end."""
    scratch.write_bytes(whole)
    with open(scratch, "rb") as file:
        return [end for end, _ in journal._frames(scratch, file)]


@given(data=st.data())
def test_zeros_that_a_power_cut_left_cost_the_records_in_their_place_and_no_others(
    whole: bytes, borders: list[int], scratch: Path, data: st.DataObject
) -> None:
    at = data.draw(st.one_of(st.sampled_from(borders), st.integers(0, len(whole))))
    scratch.write_bytes(whole[:at] + bytes(data.draw(st.integers(0 if at in borders else 64, 10_000))))
    kept = RUN[: sum(not whole[at:border].strip(b"\0") for border in borders)]  # the last bytes may be zeros anyway
    assert tuple(read_journal(scratch)) == kept
    with Journal.reopen(scratch) as reopened:
        reopened.append(RunStarted(t0_ns=42))
    assert tuple(read_journal(scratch)) == (*kept, RunStarted(t0_ns=42))


@pytest.mark.parametrize("size", [1, 10, len(MAGIC), 4096, 200_000])
def test_a_journal_of_nothing_but_zeros_has_no_record(tmp_path: Path, size: int) -> None:
    path = tmp_path / "journal"
    path.write_bytes(bytes(size))
    assert list(read_journal(path)) == []
    with Journal.reopen(path) as reopened:
        reopened.append(RUN[0])
    assert list(read_journal(path)) == [RUN[0]]


def test_zeros_amid_a_journal_are_damage(whole: bytes, borders: list[int], tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(whole[: borders[2]] + bytes(100) + whole[borders[2] :])
    with pytest.raises(UsageError, match=f"damaged at byte {borders[2]}"):
        list(read_journal(path))


def test_two_journals_in_one_file_are_damage(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(whole + whole)
    with pytest.raises(UsageError, match=f"damaged at byte {len(whole)}"):
        list(read_journal(path))


def test_a_damaged_journal_is_not_gone_on_with(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    damaged = bytearray(whole)
    damaged[len(MAGIC) + 20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UsageError, match=f"damaged at byte {len(MAGIC)}"):
        Journal.reopen(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PNG, or whatever", "not a journal"),
        (b"stampede journal 2\nmore", "another version"),
    ],
)
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        list(read_journal(path))
    with pytest.raises(UsageError, match=message):
        Journal.reopen(path)
    assert path.read_bytes() == content


def test_a_record_of_a_kind_that_is_not_known_is_named_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.create(path) as journal:
        journal.append({"type": "Unheard"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="none that this version knows"):
        list(read_journal(path))


def test_a_journal_that_exists_is_not_written_over(tmp_path: Path) -> None:
    content = write(tmp_path / "journal", RUN[:2])
    with pytest.raises(UsageError, match="exists already"):
        Journal.create(tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == content


@pytest.mark.parametrize("open_it", [Journal.create, Journal.reopen, lambda path: list(read_journal(path))])
def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path: Path, open_it: object) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        open_it(tmp_path / "nowhere" / "journal")  # type: ignore[operator]


def test_two_coordinators_cannot_write_the_same_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.create(path) as journal:
        journal.append(RUN[0])
        with pytest.raises(UsageError, match="another coordinator"):
            Journal.reopen(path)
        assert is_locked(path)
    assert not is_locked(path)
    assert not is_locked(tmp_path / "nowhere")
    Journal.reopen(path).close()
    assert tuple(read_journal(path)) == RUN[:1]


def test_closing_twice_does_nothing(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal")
    journal.close()
    journal.close()


def test_a_full_disk_costs_the_record_and_not_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    write_some = os.pwrite

    def full_disk(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) <= 10:
            raise OSError(28, "No space left on device")
        return write_some(descriptor, data[:-10], offset)

    with Journal.create(path) as journal:
        journal.append(RUN[0])
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", full_disk)
            with pytest.raises(UsageError, match="No space left on device"):
                journal.append(RUN[1])
        assert tuple(read_journal(path)) == RUN[:1]
        journal.append(RUN[2])
    assert tuple(read_journal(path)) == (RUN[0], RUN[2])


class JournalAndCrashes(RuleBasedStateMachine):
    """A coordinator that appends, is killed at any byte of a record, and goes on with what is in its journal.

    `kept`: records whose append returned, and those that were whole on the disk when it was killed; `whole`: bytes of
    the file that hold them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "journal"
        self.journal = Journal.create(self.path)
        self.whole = self.path.stat().st_size
        self.kept: list[AnyRecord] = []

    @rule(records=st.lists(st.sampled_from(RUN), min_size=1, max_size=4))
    def append(self, records: list[AnyRecord]) -> None:
        for record in records:
            self.journal.append(record)
        self.whole = self.path.stat().st_size
        self.kept += records

    @rule(record=st.sampled_from(RUN), data=st.data(), again=st.booleans())
    def killed_in_the_middle_of_an_append(self, record: AnyRecord, data: st.DataObject, again: bool) -> None:
        self.journal.append(record)
        after = self.path.stat().st_size
        self.journal.close()
        reached = data.draw(st.integers(self.whole, after))
        os.truncate(self.path, reached)
        if reached == after:
            self.whole = after
            self.kept.append(record)
        self.nothing_is_lost_and_nothing_made_up()
        self.journal = Journal.reopen(self.path)
        if again and reached < after:  # its agent sends it once more
            self.append([record])

    @invariant()
    def nothing_is_lost_and_nothing_made_up(self) -> None:
        assert list(read_journal(self.path)) == self.kept

    def teardown(self) -> None:
        self.journal.close()
        self.directory.cleanup()


TestJournalAndCrashes = JournalAndCrashes.TestCase
TestJournalAndCrashes.settings = tried(25, steps=15)


def test_a_record_that_was_half_written_and_could_not_be_cut_off_is_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    write_some = os.pwrite

    def broken_disk(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) <= 10:
            raise OSError(5, "Input/output error")
        return write_some(descriptor, data[:-10], offset)

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with Journal.create(path) as journal:
        journal.append(RUN[0])
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", broken_disk)
            patched.setattr(os, "fstat", broken)
            with pytest.raises(UsageError, match="cannot write the journal: Input/output error"):
                journal.append(RUN[3])
        with monkeypatch.context() as patched:
            patched.setattr(os, "fstat", broken)
            with pytest.raises(UsageError, match="cannot write the journal: Input/output error"):
                journal.append(RunStarted(t0_ns=1))
        assert tuple(read_journal(path)) == RUN[:1]
        journal.append(RunStarted(t0_ns=1))
    assert tuple(read_journal(path)) == (RUN[0], RunStarted(t0_ns=1))

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
from common.metrics.histogram import Histogram
from common.metrics.intervals import GeneratorDelays, GeneratorMetrics, IntervalMetrics
from common.protocol.codec import pack
from common.protocol.messages import TakeOver
from common.serde import to_builtins
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal import journal_file as journal
from coordinator.journal.frame_checks import MOST_VALUES
from coordinator.journal.journal_file import MAGIC, Journal, read_journal
from coordinator.journal.journal_lock import is_locked
from coordinator.journal.records import AnyRecord, FrameAccepted, RunStarted, WorkerDied
from tests.support.examples import tried
from tests.support.records import accepted, clean_run, command, interval, opened, staged_plan
from tests.support.stages import stage

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


def test_a_record_can_be_read_right_after_its_append(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.create(path) as journal:
        for count, record in enumerate(RUN, start=1):
            journal.append(record)
            assert tuple(read_journal(path)) == RUN[:count]


def histogram_of(count: int, claimed: int) -> Histogram:
    """A histogram with one bucket; claimed: the number of values that it says it has."""
    return Histogram(
        indices=(1).to_bytes(2, "little"), counts=count.to_bytes(8, "little"), count=claimed, minimum=1, maximum=1,
        value_sum=claimed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("part", "through", "problem"),
    [
        (interval(3, {}, last=2), 1, "expected seconds within 0..8640000, got 3..2"),
        (interval(0, {}, last=10**15), 1, "expected seconds within 0..8640000, got 0..1000000000000000"),
        (interval(0, {}), 10**15, "expected seconds within 0..8640000, got 0..1000000000000000"),
        (interval(0, {}, stage=3), 0, "expected stages within 0..2, got 3"),
        (interval(0, {"GET": command(histogram_of(1 << 37, 1 << 37))}), 0, f"expected at most {MOST_VALUES} values"),
        (interval(0, {"GET": command(histogram_of(1, 2))}), 0, "histogram"),
    ],
)
def test_a_frame_that_no_agent_can_have_sent_is_refused_with_its_place(
    tmp_path: Path, part: IntervalMetrics, through: int, problem: str
) -> None:
    path = tmp_path / "journal"
    plan = staged_plan(stage(2, 10), stage(2), warmup_s=2)
    end = len(write(path, [opened(plan), accepted("a1", 0, interval(0, {})), accepted("a1", 1, part, through=through)]))
    with pytest.raises(UsageError) as refused:
        fold(read_journal(path))
    assert str(refused.value).startswith(f"{path}: the record that ends at byte {end}: frame 1: {problem}")


def test_a_packed_frame_is_written_unchanged(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "journal") as journal:
        for record in RUN:
            packed = pack(record.frame) if isinstance(record, FrameAccepted) else None
            journal.append(record, packed)
    assert tuple(read_journal(tmp_path / "journal")) == RUN
    assert (tmp_path / "journal").read_bytes() == write(tmp_path / "again", RUN)


@given(data=st.data())
def test_a_changed_byte_is_damage(whole: bytes, scratch: Path, data: st.DataObject) -> None:
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
    """The offsets at which the records of the journal end."""
    scratch.write_bytes(whole)
    with open(scratch, "rb") as file:
        return [end for end, _ in journal._blocks(scratch, file)]


@given(data=st.data())
def test_zeros_after_a_power_failure_cost_only_the_records_in_their_place(
    whole: bytes, borders: list[int], scratch: Path, data: st.DataObject
) -> None:
    at = data.draw(st.one_of(st.sampled_from(borders), st.integers(0, len(whole))))
    scratch.write_bytes(whole[:at] + bytes(data.draw(st.integers(0 if at in borders else 64, 10_000))))
    kept = RUN[
        : sum(not whole[at:border].strip(b"\0") for border in borders)
    ]  # the last bytes of a record may be zeros
    assert tuple(read_journal(scratch)) == kept
    with Journal.reopen(scratch) as reopened:
        reopened.append(RunStarted(t0_ns=42))
    assert tuple(read_journal(scratch)) == (*kept, RunStarted(t0_ns=42))


@pytest.mark.parametrize("size", [1, 10, len(MAGIC), 4096, 200_000])
def test_a_journal_of_zeros_has_no_record(tmp_path: Path, size: int) -> None:
    path = tmp_path / "journal"
    path.write_bytes(bytes(size))
    assert list(read_journal(path)) == []
    with Journal.reopen(path) as reopened:
        reopened.append(RUN[0])
    assert list(read_journal(path)) == [RUN[0]]


def test_zeros_within_a_journal_are_damage(whole: bytes, borders: list[int], tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(whole[: borders[2]] + bytes(100) + whole[borders[2] :])
    with pytest.raises(UsageError, match=f"damaged at byte {borders[2]}"):
        list(read_journal(path))


def test_two_journals_in_one_file_are_damage(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(whole + whole)
    with pytest.raises(UsageError, match=f"damaged at byte {len(whole)}"):
        list(read_journal(path))


def test_a_damaged_journal_is_not_reopened(whole: bytes, tmp_path: Path) -> None:
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
def test_another_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        list(read_journal(path))
    with pytest.raises(UsageError, match=message):
        Journal.reopen(path)
    assert path.read_bytes() == content


def test_a_record_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.create(path) as journal:
        journal.append({"type": "Unheard"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="this version does not know the record that ends at byte"):
        list(read_journal(path))


def test_an_existing_journal_is_not_overwritten(tmp_path: Path) -> None:
    content = write(tmp_path / "journal", RUN[:2])
    with pytest.raises(UsageError, match="exists already"):
        Journal.create(tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == content


@pytest.mark.parametrize("open_it", [Journal.create, Journal.reopen, lambda path: list(read_journal(path))])
def test_a_missing_folder_is_a_usage_error(tmp_path: Path, open_it: object) -> None:
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


def test_a_full_disk_costs_only_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """A coordinator that appends, is killed at any byte of a record, and continues its journal.

    kept: records that were appended or complete on the disk. whole: the size of these records in bytes.
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
        self.the_journal_has_exactly_the_kept_records()
        self.journal = Journal.reopen(self.path)
        if again and reached < after:  # its agent sends it again
            self.append([record])

    @invariant()
    def the_journal_has_exactly_the_kept_records(self) -> None:
        assert list(read_journal(self.path)) == self.kept

    def teardown(self) -> None:
        self.journal.close()
        self.directory.cleanup()


TestJournalAndCrashes = JournalAndCrashes.TestCase
TestJournalAndCrashes.settings = tried(25, steps=15)


def test_a_partial_record_that_cannot_be_cut_off_blocks_further_appends(
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


def test_renamed_types_and_fields_keep_their_names_in_journals() -> None:
    names = {record["type"]: record.keys() for record in map(to_builtins, clean_run())}
    assert {"AgentNoted", "ServerCounted"} <= names.keys()
    assert "left" in names["AgentNoted"]
    assert "keys" in names["RunOpened"]
    assert to_builtins(WorkerDied(agent_id="a", process=0, exit_code=1))["type"] == "WorkerNoted"
    assert "hold_ups" in to_builtins(GeneratorMetrics(delays=GeneratorDelays()))
    assert "left" in to_builtins(TakeOver(from_ns=0, remaining=()))

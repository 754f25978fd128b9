from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from common.errors import EXIT_OK, InvalidResultError, UsageError
from common.plan.schema import CleanUp
from common.program.signals import Signals
from common.protocol.token import coordinator_credentials
from common.protocol.token_sources import TokenVariables
from coordinator import start
from coordinator.core.actions import End
from coordinator.journal.journal_file import Journal
from coordinator.journal.records import AgentEnded, AnyRecord, CleanedUp, CountersRead, Outcome, Reading, RunOpened
from coordinator.live.view import QuietView
from coordinator.report.run_files import ERROR_FILE, JOURNAL_FILE, SUMMARY_FILE, TIMESERIES_FILE
from coordinator.run_folder import RunFolder, new_run_folder
from coordinator.servers.cleanup import DeletionProgress
from coordinator.start import RunResult, run_plan
from coordinator.start_options import StartOptions
from tests.support.records import clean_run, closed, opened, plan, reading

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def conducted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, records: list[AnyRecord], taken: int = 0, left: int = 0
) -> RunResult:
    """A run with these records. taken: signals that it handled. left: signals after its end."""

    def serve(_plan: object, _options: object, folder: RunFolder, *rest: object) -> End:
        signals = rest[-1]
        assert isinstance(signals, Signals)
        for _ in range(taken):
            signal.raise_signal(signal.SIGINT)
        assert signals.take() == taken
        for record in records:
            folder.aggregate.apply(record)
        folder.path.mkdir()
        for number in range(left):
            signal.raise_signal(HANDLED[number % len(HANDLED)])
        return End(EXIT_OK, "", Outcome.COMPLETED)

    for name in ("probe", "check_commands"):
        monkeypatch.setattr(start, name, lambda _: None)
    monkeypatch.setattr(start, "_serve", serve)
    before = [signal.getsignal(number) for number in HANDLED]
    ended = run_plan(plan(), StartOptions(), new_run_folder(tmp_path, "r-1"), Console(stderr=True))
    assert [signal.getsignal(number) for number in HANDLED] == before
    return ended


@pytest.mark.parametrize(("taken", "left"), [(0, 0), (1, 0), (0, 1), (1, 3)])
def test_a_signal_during_the_shutdown_of_a_run_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taken: int, left: int
) -> None:
    ended = conducted(monkeypatch, tmp_path, records=list(clean_run()), taken=taken, left=left)
    assert (ended.exit_code, ended.interrupted_at_end) == (EXIT_OK, left > 0)
    assert ended.summary is not None
    assert (tmp_path / "r-1" / SUMMARY_FILE).read_text() == ended.summary.to_json()


def test_an_invalid_result_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = conducted(monkeypatch, tmp_path, records=[opened(), closed()])
    assert ended.exit_code == InvalidResultError.exit_code


def _ended_well(record: AnyRecord) -> AnyRecord:
    if not isinstance(record, AgentEnded) or record.final is None:
        return record
    return msgspec.structs.replace(record, final=msgspec.structs.replace(record.final, reason=""))


class Broken:
    """A run to be resumed, whose agents have all ended. It reads the counters, deletes the keys and reports. Each of
    these steps can be made to fail."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        clean_up: CleanUp = CleanUp.NONE,
        keys: str | None = None,
    ) -> None:
        self.patch, self.out, self.folder = monkeypatch, tmp_path, tmp_path / "r-1"
        self.plan = plan()
        workload = msgspec.structs.replace(self.plan.workload, clean_up=clean_up)
        self.plan = msgspec.structs.replace(self.plan, workload=workload)
        with new_run_folder(tmp_path, "r-1").open_journal(self.plan) as journal:
            for record in list(clean_run(self.plan))[:-2]:  # all but the second reading and the end
                if isinstance(record, RunOpened):
                    record = msgspec.structs.replace(record, key_fingerprint=keys)
                journal.append(_ended_well(record))
        monkeypatch.setattr("coordinator.loop.DISMISS_NS", 0)
        monkeypatch.setattr("coordinator.core.run.DISMISS_NS", 0)
        monkeypatch.setattr("coordinator.core.member.COME_BACK_NS", 0)
        self.fails("read_server_counts", reading(Reading.AFTER, {"set": 2407, "get": 3005, "del": 600, "info": 2}))
        self.fails("delete_plan_keys", None)

    def fails(self, name: str, how: object) -> None:
        """Make the function of coordinator.start with this name raise an error, or return another value."""

        def fail(*_: object, **__: object) -> object:
            if isinstance(how, Exception):
                raise how
            return how

        self.patch.setattr(start, name, fail)

    def start(self, **options: object) -> int:
        """Resume the run. Returns the exit code."""
        given = {"insecure": True} | options
        return start.start(
            self.plan,
            StartOptions(bind="tcp://127.0.0.1:*", out=self.out, resume="r-1", quiet=True, **given),  # type: ignore[arg-type]
        )

    @property
    def summary(self) -> Any:
        """summary.json."""
        return json.loads((self.folder / SUMMARY_FILE).read_text())


ODD = [TypeError("unhashable"), RecursionError()]


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_an_unexpected_error_of_the_second_reading_costs_only_the_ledger(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Broken(monkeypatch, tmp_path)
    run.fails("read_server_counts", error)
    assert run.start() == EXIT_OK
    said = capsys.readouterr()
    assert "Totals" in said.out
    assert "Traceback" not in said.out + said.err
    summary = run.summary
    assert (summary["run"]["outcome"], summary["totals"]["operations"]) == ("completed", 6000)
    assert (summary["ledger"]["server_calls"], summary["verdict"]["level"]) == (None, "suspect")
    assert type(error).__name__ in summary["ledger"]["note"]
    assert str(run.folder / ERROR_FILE) in summary["ledger"]["note"]
    assert "Traceback" in (run.folder / ERROR_FILE).read_text()
    assert len((run.folder / TIMESERIES_FILE).read_text().splitlines()) == 4


def test_an_unexpected_error_of_the_clean_up_costs_only_the_clean_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Broken(monkeypatch, tmp_path, CleanUp.KEYS)
    run.fails("delete_plan_keys", IndexError("tuple index out of range"))
    assert run.start() == EXIT_OK
    assert run.summary["run"]["outcome"] == "completed"
    assert run.summary["clean_up"]["left"] is None
    assert "IndexError: tuple index out of range" in run.summary["clean_up"]["error"]


def test_a_bug_in_the_loop_is_exit_code_1_with_a_report_and_can_be_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Broken(monkeypatch, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("coordinator.core.run.duration_s", lambda *_: {}["nothing"])
        assert run.start() == 1
    said = capsys.readouterr()
    assert "Totals" in said.out
    last = said.err.splitlines()[-1]
    failed = "the coordinator failed after the load, before the server's counters were read again: "
    assert last.startswith(f"coordinator: {failed}a bug in redis-stampede: KeyError")
    assert str(run.folder / ERROR_FILE) in last
    assert "coordinator start --resume" in last
    assert (run.summary["run"]["outcome"], run.summary["totals"]["operations"]) == ("aborted", 6000)
    assert run.summary["run"]["reason"] == last.removeprefix("coordinator: ")
    assert run.start() == EXIT_OK
    assert run.summary["run"]["outcome"] == "completed"


def test_a_full_disk_during_a_run_leaves_the_report_on_stdout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Broken(monkeypatch, tmp_path)
    monkeypatch.setattr(Journal, "append", lambda *_: (_ for _ in ()).throw(UsageError("cannot write the journal")))
    assert run.start() == UsageError.exit_code
    said = capsys.readouterr()
    assert "Totals" in said.out
    assert "coordinator: the coordinator failed after the load, " in said.err
    assert "cannot write the journal" in said.err


def test_a_folder_deleted_during_the_run_is_named_and_the_summary_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Broken(monkeypatch, tmp_path)

    def read(*_: object) -> CountersRead:
        shutil.rmtree(run.folder)
        return reading(Reading.AFTER, {"set": 2407, "get": 3005, "del": 600, "info": 2})

    monkeypatch.setattr(start, "read_server_counts", read)
    assert run.start() == UsageError.exit_code
    said = capsys.readouterr()
    assert "Totals" in said.out
    assert said.err.splitlines()[-1] == (
        f"coordinator: {run.folder}: the run's folder was deleted or moved during the run: summary.json, "
        "timeseries.csv, servers.csv are not written"
    )
    assert not run.folder.exists()


def test_a_failed_live_view_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Broken(monkeypatch, tmp_path)
    monkeypatch.setattr("coordinator.loop.build_snapshot", lambda *_: {}["nothing"])
    assert run.start() == EXIT_OK
    assert run.summary["run"]["outcome"] == "completed"
    assert capsys.readouterr().err.count("the live view ends, the run goes on: a bug in redis-stampede: KeyError") == 1


def test_a_failed_report_names_the_journal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Broken(monkeypatch, tmp_path)
    run.fails("build_summary", ZeroDivisionError("division by zero"))
    assert run.start() == 1
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert "cannot report on the run: a bug in redis-stampede: ZeroDivisionError: division by zero" in line
    assert line.endswith(f"its records are in {run.folder / JOURNAL_FILE}")


def test_a_failed_file_does_not_prevent_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Broken(monkeypatch, tmp_path)
    monkeypatch.setattr("coordinator.report.run_files.timeseries_csv", lambda _: {}["x"])
    assert run.start() == UsageError.exit_code
    assert run.summary["run"]["outcome"] == "completed"
    assert not (run.folder / TIMESERIES_FILE).exists()
    assert "coordinator: a bug in redis-stampede: KeyError" in capsys.readouterr().err


def test_a_journal_deleted_during_the_run_is_reported_once_and_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Broken(monkeypatch, tmp_path)
    monkeypatch.setattr("coordinator.loop.CHECK_JOURNAL_EVERY_NS", 0)
    said: list[str] = []
    is_said = threading.Event()

    def note(_: QuietView, text: str, trouble: bool = False) -> None:
        if trouble:
            said.append(text)
            is_said.set()

    def read(*_: object) -> CountersRead:
        (run.folder / JOURNAL_FILE).unlink()
        assert is_said.wait(10)
        return reading(Reading.AFTER, {"set": 2407, "get": 3005, "del": 600, "info": 2})

    monkeypatch.setattr(QuietView, "note", note)
    monkeypatch.setattr(start, "read_server_counts", read)
    assert run.start() == UsageError.exit_code
    assert [line.partition(": ")[0] for line in said] == [f"{run.folder / JOURNAL_FILE} was deleted or moved"]
    assert run.summary["ledger"]["server_calls"] == 6000
    assert "journal: the journal was deleted or moved during the run" in capsys.readouterr().err


def test_a_run_is_resumed_with_the_security_of_its_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    keys = coordinator_credentials(token, TokenVariables(), {}).fingerprint
    assert Broken(monkeypatch, tmp_path / "secure", keys=keys).start(insecure=False, token_file=token) == EXIT_OK
    assert Broken(monkeypatch, tmp_path / "insecure", keys="").start() == EXIT_OK
    assert Broken(monkeypatch, tmp_path / "earlier release").start(insecure=False, token_file=token) == EXIT_OK


@pytest.mark.parametrize(
    ("used", "given", "error"),
    [
        ("f00", {}, "the run uses CURVE with a token, got --insecure; resume it without --insecure"),
        ("", {"insecure": False}, "the run was started with --insecure, got no --insecure; add it"),
        ("f00", {"insecure": False}, "the run uses the keys f00, got the keys {keys} ({token} and its key); name the"),
    ],
)
def test_a_run_that_is_resumed_with_another_security_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, used: str, given: dict[str, object], error: str
) -> None:
    token = tmp_path / "token"
    keys = coordinator_credentials(token, TokenVariables(), {}).fingerprint
    run = Broken(monkeypatch, tmp_path, keys=used)
    before = (run.folder / JOURNAL_FILE).read_bytes()
    with pytest.raises(UsageError) as raised:
        run.start(token_file=token, **given)
    expected = "--resume run-1: its agents would be refused: " + error.format(keys=keys, token=token)
    assert str(raised.value).startswith(expected)
    assert (run.folder / JOURNAL_FILE).read_bytes() == before


@pytest.mark.parametrize("left", [None, 12])
def test_a_resume_deletes_the_keys_that_an_ended_run_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: int | None
) -> None:
    run = Broken(monkeypatch, tmp_path, CleanUp.KEYS)
    with Journal.reopen(run.folder / JOURNAL_FILE) as journal:
        journal.append(reading(Reading.AFTER, {"set": 2407, "get": 3005, "del": 600, "info": 2}))
        journal.append(CleanedUp(deleted=30, left=left, took_ns=1, error="interrupted"))
        journal.append(closed())

    def delete(_plan: object, tally: DeletionProgress, keys_before: int | None) -> None:
        assert keys_before is None  # the journal has the number of keys deleted before
        tally.deleted += 12

    monkeypatch.setattr(start, "delete_plan_keys", delete)
    assert run.start() == EXIT_OK
    clean_up = run.summary["clean_up"]
    assert (clean_up["deleted"], clean_up["deleted_earlier"], clean_up["left"], clean_up["error"]) == (42, 30, 0, "")
    assert run.summary["run"]["outcome"] == "completed"
    with pytest.raises(UsageError, match="that run has ended"):
        run.start()

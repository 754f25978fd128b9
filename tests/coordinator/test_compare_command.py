from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from common.errors import EXIT_INTERRUPTED, EXIT_OK, InvalidResultError, PlanError, TargetError, UsageError
from common.plan.schema import Command, Driver, Load, Plan, Pools, Target, Workload
from common.units import Count, Seconds
from coordinator import compare_command as command
from coordinator.analysis.verdict import Level, Verdict
from coordinator.compare_command import compare, planned_runs
from coordinator.report.run_files import COMPARISON_FILE
from coordinator.run_folder import RunFolder
from coordinator.start import RunResult
from coordinator.start_options import StartOptions
from tests.support.comparisons import summary

PLAN = Plan(
    target=Target(url="redis://127.0.0.1:6379"),
    workload=Workload(commands=(Command(command="GET"),)),
    pools=(Pools(threads_per_pool=4, client_instances_per_pool=3),),
    load=Load(requests=Count(5)),
)
WELL = RunResult(EXIT_OK, "", summary())


@given(st.integers(1, 50))
def test_each_round_has_both_drivers_and_they_take_turns_as_the_first(rounds: int) -> None:
    order = planned_runs(rounds)
    for number in range(1, rounds + 1):
        drivers = [turn.driver for turn in order if turn.round == number]
        assert drivers == ([Driver.CLIENT, Driver.WIRE] if number % 2 else [Driver.WIRE, Driver.CLIENT])
    assert [turn.name for turn in order] == [f"{run}-{turn.driver.value}" for run, turn in enumerate(order, 1)]
    if rounds % 2 == 0:
        places = {driver: sum(at for at, turn in enumerate(order) if turn.driver is driver) for driver in Driver}
        assert places[Driver.CLIENT] == places[Driver.WIRE]


@dataclass
class Stand:
    """Replaces `run_plan`. ends: how the runs end, the last one repeated. asked: the runs that were asked for."""

    ends: list[RunResult | BaseException] = field(default_factory=lambda: [WELL])
    asked: list[tuple[Driver, str]] = field(default_factory=list)

    def run_plan(self, plan: Plan, options: StartOptions, folder: RunFolder, people: Console) -> RunResult:
        assert people.stderr
        assert folder.path == options.out / folder.run_id
        self.asked.append((plan.pools[0].driver, folder.path.name))
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        if isinstance(end, BaseException):
            raise end
        if end.summary is None:
            return end
        folder.path.mkdir(parents=True)
        run = msgspec.structs.replace(end.summary.run, id=folder.run_id)
        return RunResult(end.exit_code, end.text, msgspec.structs.replace(end.summary, run=run), end.interrupted_at_end)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    stand = Stand()
    monkeypatch.setattr(command, "run_plan", stand.run_plan)
    return stand


def read_comparison(out: Path) -> dict[str, object]:
    [folder] = out.iterdir()
    comparison: dict[str, object] = json.loads((folder / COMPARISON_FILE).read_text())
    assert comparison["id"] == folder.name
    return comparison


def test_every_run_has_its_own_folder_in_the_folder_of_the_comparison(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(PLAN, StartOptions(out=tmp_path), 2) == EXIT_OK
    names = ["1-client", "2-wire", "3-wire", "4-client"]
    assert stand.asked == [(Driver(name[2:]), name) for name in names]
    [folder] = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {*names, COMPARISON_FILE}
    comparison = read_comparison(tmp_path)
    assert (comparison["outcome"], comparison["rounds"], comparison["reason"]) == ("completed", 2, "")
    assert comparison["runs"][0]["id"] == f"{folder.name}/1-client"  # type: ignore[index]
    said = capsys.readouterr()
    assert "What redis-py costs" in said.out
    assert [line.partition(":")[0] for line in said.err.splitlines()] == [
        f"round 1 of 2, {folder.name}/1-client", f"round 1 of 2, {folder.name}/2-wire",
        f"round 2 of 2, {folder.name}/3-wire", f"round 2 of 2, {folder.name}/4-client", "comparison folder",
    ]  # fmt: skip


def test_with_json_stdout_has_the_comparison_and_stderr_the_text(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(PLAN, StartOptions(out=tmp_path, json=True), 2) == EXIT_OK
    said = capsys.readouterr()
    assert json.loads(said.out) == read_comparison(tmp_path)
    assert "What redis-py costs" in said.err
    assert len(stand.asked) == 4


def test_a_failed_run_ends_the_comparison_which_keeps_the_earlier_runs(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand.ends = [WELL, WELL, RunResult(5, "expected 1 agents within 60s, got 0 (none)")]
    assert compare(PLAN, StartOptions(out=tmp_path), 3) == 5
    comparison = read_comparison(tmp_path)
    assert (comparison["outcome"], comparison["rounds"]) == ("aborted", 1)
    assert comparison["reason"] == "3-wire failed: expected 1 agents within 60s, got 0 (none)"
    assert len(stand.asked) == 3
    assert capsys.readouterr().err.splitlines()[-1] == f"coordinator: {comparison['reason']}"


def test_a_run_with_an_invalid_result_has_failed(stand: Stand, tmp_path: Path) -> None:
    invalid = summary(verdict=Verdict(level=Level.INVALID, reasons=("No operation ended.",)))
    stand.ends = [RunResult(InvalidResultError.exit_code, "", invalid)]
    assert compare(PLAN, StartOptions(out=tmp_path), 2) == InvalidResultError.exit_code
    assert read_comparison(tmp_path)["reason"] == "1-client failed: No operation ended."
    assert stand.asked == [(Driver.CLIENT, "1-client")]


def test_a_target_that_dies_between_runs_ends_the_comparison_with_its_report(stand: Stand, tmp_path: Path) -> None:
    stand.ends = [WELL, TargetError("nothing listens there")]
    assert compare(PLAN, StartOptions(out=tmp_path), 2) == TargetError.exit_code
    comparison = read_comparison(tmp_path)
    assert (comparison["outcome"], comparison["reason"]) == ("aborted", "2-wire failed: nothing listens there")


@pytest.mark.parametrize("error", [TargetError, UsageError, KeyboardInterrupt])
def test_an_error_before_the_first_run_is_raised_and_leaves_no_file(
    stand: Stand, tmp_path: Path, error: type[BaseException]
) -> None:
    stand.ends = [error()]
    with pytest.raises(error):
        compare(PLAN, StartOptions(out=tmp_path), 2)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_before_the_first_run_leaves_no_file(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand.ends = [RunResult(EXIT_INTERRUPTED, "interrupted before the start")]
    assert compare(PLAN, StartOptions(out=tmp_path), 2) == EXIT_INTERRUPTED
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("end", "reason", "runs"),
    [
        (RunResult(EXIT_INTERRUPTED, "", summary()), "3-wire was interrupted", 3),
        (RunResult(EXIT_INTERRUPTED, "interrupted before the start"), "3-wire was interrupted", 2),
        (RunResult(EXIT_OK, "", summary(), interrupted_at_end=True), "interrupted before 4-client began", 3),
        (KeyboardInterrupt(), "interrupted before 3-wire began", 2),
    ],
    ids=("in a run", "while agents are awaited", "while a run is taken apart", "between runs"),
)
def test_after_an_interrupt_no_run_starts_and_the_report_is_written(
    stand: Stand, tmp_path: Path, end: RunResult | BaseException, reason: str, runs: int
) -> None:
    stand.ends = [WELL, WELL, end]
    assert compare(PLAN, StartOptions(out=tmp_path), 2) == EXIT_INTERRUPTED
    comparison = read_comparison(tmp_path)
    assert (comparison["outcome"], comparison["reason"], comparison["rounds"]) == ("interrupted", reason, 1)
    assert len(comparison["runs"]) == runs  # type: ignore[arg-type]
    assert len(stand.asked) == 3


def test_an_interrupt_after_the_last_run_changes_nothing(stand: Stand, tmp_path: Path) -> None:
    stand.ends = [WELL, WELL, WELL, RunResult(EXIT_OK, "", summary(), interrupted_at_end=True)]
    assert compare(PLAN, StartOptions(out=tmp_path), 2) == EXIT_OK
    assert read_comparison(tmp_path)["outcome"] == "completed"


def test_the_file_of_a_killed_comparison_says_that_it_has_not_ended(stand: Stand, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    stand.ends = [WELL, WELL, Killed()]
    with pytest.raises(Killed):
        compare(PLAN, StartOptions(out=tmp_path), 2)
    comparison = read_comparison(tmp_path)
    assert (comparison["outcome"], comparison["rounds"]) == ("aborted", 1)
    assert "killed" in str(comparison["reason"])


def test_a_plan_that_cannot_be_compared_starts_nothing(stand: Stand, tmp_path: Path) -> None:
    asyncio = msgspec.structs.replace(PLAN, pools=(Pools(driver=Driver.ASYNCIO),))
    checked = msgspec.structs.replace(PLAN.target, health_check_interval_s=Seconds(5))
    for plan, error in ((asyncio, UsageError), (msgspec.structs.replace(PLAN, target=checked), PlanError)):
        with pytest.raises(error, match="--compare-drivers"):
            compare(plan, StartOptions(out=tmp_path), 2)
    assert stand.asked == []

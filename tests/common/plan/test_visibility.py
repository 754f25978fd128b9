"""The scenarios that `visibility` adds to a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import PlanError
from common.plan.loading.sources import load_plan
from common.plan.plan_text import plan_yaml
from common.plan.schema import Driver, Plan, StampRole
from common.plan.settings import SETTINGS

BY_FLAG = {setting.flag: setting for setting in SETTINGS}
TARGETS = "targets: {eu: {url: 'redis://h:1', socket_timeout: 2s}, us: {url: 'redis://h:2'}}\n"
BOTH = TARGETS + "visibility: {write: eu, read: us}\n"


def load(tmp_path: Path, text: str, **flags: str) -> Plan:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    given: dict[Any, Any] = {}
    for name, value in flags.items():
        setting = BY_FLAG[f"--{name.replace('_', '-')}"]
        given[setting] = setting.parse(value)
    return load_plan(file, given, {})


def test_a_plan_with_only_visibility_has_a_writer_and_a_reader(tmp_path: Path) -> None:
    plan = load(tmp_path, BOTH)
    writer, reader = plan.scenarios
    assert (writer.name, reader.name) == ("visibility-write", "visibility-read")
    assert (writer.target, reader.target) == ("eu", "us")
    assert [each.workload.commands[0].command for each in plan.scenarios] == ["SET", "GET"]
    assert [each.workload.stamps and each.workload.stamps.role for each in plan.scenarios] == list(StampRole)
    assert (writer.load.rate_per_s, reader.load.rate_per_s) == (20, 1000)
    assert (writer.load.duration_s, reader.load.duration_s) == (9, 10)
    assert plan.targets["eu"].socket_timeout_s == 2
    assert plan.visibility is None


def test_visibility_is_measured_beside_the_load_of_the_plan(tmp_path: Path) -> None:
    plan = load(tmp_path, BOTH + "target: {url: 'redis://h:3'}\nload: {duration: 4s, warmup: 1s}")
    assert [each.name for each in plan.scenarios] == ["main", "visibility-write", "visibility-read"]
    assert [each.load.warmup_s for each in plan.scenarios] == [1, 1, 1]
    assert [each.load.duration_s for each in plan.scenarios] == [4, 3.6, 4]


def test_visibility_is_measured_beside_scenarios_and_a_probe(tmp_path: Path) -> None:
    text = BOTH + "load: {duration: 4s}\nprobe: 5/s\nscenarios: [{name: a, target: eu}]"
    names = [each.name for each in load(tmp_path, text).scenarios]
    assert names == ["a", "visibility-write", "visibility-read", "probe"]


def test_the_plan_s_own_target_may_be_the_one_that_is_written(tmp_path: Path) -> None:
    text = "target: {url: 'redis://h:1'}\ntargets: {replica: {url: 'redis://h:2'}}\nvisibility: {read: replica}"
    plan = load(tmp_path, text)
    assert [each.target for each in plan.scenarios] == ["", "", "replica"]
    assert plan.target.url == "redis://h:1"


def test_flags_of_pools_and_workload_do_not_change_visibility(tmp_path: Path) -> None:
    plan = load(tmp_path, BOTH, driver="wire", pipeline="10", rate="5k/s", duration="0", client_pools="3")
    assert all(each.pools[0].driver is Driver.CLIENT for each in plan.scenarios)
    assert all(each.workload.pipeline == 1 and each.pools[0].client_pools == 1 for each in plan.scenarios)
    assert [each.load.rate_per_s for each in plan.scenarios] == [20, 1000]
    assert all(each.load.runs_until_stopped for each in plan.scenarios)


def test_a_printed_plan_with_visibility_is_the_same_plan(tmp_path: Path) -> None:
    plan = load(tmp_path, BOTH)
    assert load(tmp_path, plan_yaml(plan)) == plan


SIXTEEN = ", ".join(f"{{name: s{number}, target: us}}" for number in range(16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TARGETS + "visibility: {write: eu, read: asia}", '.read: expected one of eu, us, got "asia"'),
        (TARGETS + "visibility: {write: asia, read: us}", '.write: expected one of eu, us, got "asia"'),
        ("visibility: {read: us}", '.read: expected a target under $.targets, which has none, got "us"'),
        (TARGETS + "visibility: {write: eu}", ': expected a key "read", got none'),
        (TARGETS + "visibility: {write: eu, read: us, poll: 0}", ".poll: expected a time above zero, got 0s"),
        (
            TARGETS + "visibility: {write: eu, read: us, rate: 10k/s}",
            ".rate: expected at most 10,000 values within the timeout, got 50,000",
        ),
        (
            TARGETS + "visibility: {write: eu, read: us, poll: 1us}",
            ".poll: expected at least 100us, because one connection reads, got 1us",
        ),
        (
            TARGETS + "visibility: {write: eu, read: us, poll: 2s, timeout: 1s}",
            ".timeout: expected more than poll, 2s, got 1s",
        ),
        (
            TARGETS + "visibility: {write: eu, read: us}\nscenarios: [{name: visibility-read, target: us}]\n",
            ": expected no scenario named visibility-read, because this adds one",
        ),
        (
            f"{TARGETS}visibility: {{write: eu, read: us}}\nscenarios: [{SIXTEEN}]\n",
            ": expected at most 16 scenarios together with those that this adds, got 18",
        ),
        (BOTH + "fleet: {per_agent: true}", ".read: expected no --per-agent, because one agent writes and reads"),
        (BOTH + "load: {requests: 5}", ": expected a load with a duration or stages, got 5 requests"),
    ],
)
def test_a_fault_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PlanError) as found:
        load(tmp_path, text)
    assert str(found.value).replace(f"{tmp_path}/", "") == f"plan.yaml: $.visibility{message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": "GET"}, "expected only the command SET beside stamps"),
        ({"driver": "asyncio"}, "expected the client driver, the only one with stamps"),
        ({"pipeline": "3"}, "expected one command per round trip"),
    ],
)
def test_stamps_need_single_commands_of_the_client_driver(tmp_path: Path, change: dict[str, str], message: str) -> None:
    text = f"""
target: {{url: 'redis://h:1'}}
pools: [{{driver: {change.get("driver", "client")}}}]
workload:
  commands: [{{command: {change.get("command", "SET")}}}]
  pipeline: {change.get("pipeline", "1")}
  stamps: {{role: write, rate: 20/s, timeout: 5s}}
"""
    with pytest.raises(PlanError, match=message):
        load(tmp_path, text)

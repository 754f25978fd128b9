"""Plans with several scenarios, loaded from files, flags and profiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from common.errors import PlanError
from common.plan.loading.sources import load_plan
from common.plan.plan_text import plan_hash, plan_yaml
from common.plan.scenarios import scenario_plans
from common.plan.schema import Driver, Plan
from common.plan.settings import SETTINGS
from common.units import PerSecond, Seconds

BY_FLAG = {setting.flag: setting for setting in SETTINGS}

TENANTS = """
target: {url: "redis://h:1", socket_timeout: 2s}
pools: [{client_pools: 2}]
load: {duration: 10s}
scenarios:
  - name: shop
    load: {rate: 1000/s}
  - name: reports
    start: 2s
    pools: [{driver: wire, client_pools: 1}]
    load: {requests: 500}
  - name: night
    after: shop
    workload: {commands: [{command: [GET, "a __key__"]}]}
"""


def load(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None, **flags: Any) -> Plan:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    given = {BY_FLAG[f"--{name.replace('_', '-')}"]: value for name, value in flags.items()}
    return load_plan(file, given, environ or {})


def refusal(tmp_path: Path, text: str, **flags: Any) -> str:
    with pytest.raises(PlanError) as found:
        load(tmp_path, text, **flags)
    return str(found.value).replace(f"{tmp_path}/", "")


def test_a_scenario_has_the_defaults_of_the_top_of_the_plan(tmp_path: Path) -> None:
    shop, reports, night = load(tmp_path, TENANTS).scenarios
    assert shop.load.duration_s == Seconds(10)
    assert (shop.load.rate_per_s, shop.pools[0].client_pools) == (PerSecond(1000), 2)
    assert [command.command for command in night.workload.commands] == ["GET 'a __key__'"]
    assert (reports.pools[0].driver, len(reports.pools)) == (Driver.WIRE, 1)


def test_a_scenario_replaces_the_alternatives_of_a_key_at_the_top(tmp_path: Path) -> None:
    reports = load(tmp_path, TENANTS).scenarios[1]
    assert (reports.load.requests, reports.load.duration_s) == (500, None)


def test_the_stages_of_a_scenario_replace_the_length_and_the_rate_at_the_top(tmp_path: Path) -> None:
    text = """
target: {url: "redis://h:1"}
load: {duration: 9s, rate: 7/s}
scenarios: [{name: a, load: {stages: [{duration: 1s}]}}, {name: b}]
"""
    staged, plain = load(tmp_path, text).scenarios
    assert (len(staged.load.stages), staged.load.duration_s, staged.load.rate_per_s) == (1, None, None)
    assert (plain.load.duration_s, plain.load.rate_per_s) == (9, 7)


def test_scenarios_start_after_the_start_or_after_the_planned_end_of_another_one(tmp_path: Path) -> None:
    starts_s = {each.name: each.start_ns / 1e9 for each in scenario_plans(load(tmp_path, TENANTS))}
    assert starts_s == {"shop": 0.0, "reports": 2.0, "night": 10.0}


def test_a_flag_applies_to_every_scenario(tmp_path: Path) -> None:
    scenarios = load(tmp_path, TENANTS, duration=Seconds(3), client_pools=5).scenarios
    assert [each.load.duration_s for each in scenarios] == [3, 3, 3]
    assert [each.pools[0].client_pools for each in scenarios] == [5, 5, 5]


def test_a_variable_gives_a_default_for_every_scenario(tmp_path: Path) -> None:
    scenarios = load(tmp_path, TENANTS, {"STAMPEDE_RATE": "7/s"}).scenarios
    assert [each.load.rate_per_s for each in scenarios] == [1000, 7, 7]


def test_targets_have_the_defaults_of_the_target_at_the_top(tmp_path: Path) -> None:
    plan = load(
        tmp_path,
        """
target: {socket_timeout: 2s, username: app}
load: {duration: 1s}
targets:
  eu: {url: "redis://h:1", password_env: PW}
  us: {url: "redis://h:2", socket_timeout: 3s}
scenarios: [{name: a, target: eu}, {name: b, target: us}, {name: c, target: eu}]
""",
        {"PW": "s3cret"},
    )
    assert {name: (each.url, each.socket_timeout_s) for name, each in plan.targets.items()} == {
        "eu": ("redis://h:1", 2),
        "us": ("redis://h:2", 3),
    }
    assert [each.plan.target.password for each in scenario_plans(plan)] == ["s3cret", None, "s3cret"]
    assert "s3cret" not in plan_yaml(plan)


@pytest.mark.parametrize("text", [TENANTS, TENANTS.replace("- name: night", "- name: second")])
def test_the_text_of_a_loaded_plan_loads_as_the_same_plan(tmp_path: Path, text: str) -> None:
    plan = load(tmp_path, text)
    again = load(tmp_path, plan_yaml(plan))
    assert again == plan
    assert plan_hash(again) == plan_hash(plan)


def test_the_first_scenario_draws_what_the_plan_alone_draws_and_the_others_draw_their_own(tmp_path: Path) -> None:
    plan = load(tmp_path, TENANTS)
    seeds = [each.plan.seed for each in scenario_plans(plan)]
    assert seeds[0] == plan.seed
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenarios: [{load: {}}]", 'plan.yaml: $.scenarios[0]: expected a key "name", got none'),
        (
            "scenarios: [{name: a, load: {rate: fast}}]",
            'plan.yaml: $.scenarios[0].load.rate: expected a rate above zero such as "50k/s" or 2000, got "fast"',
        ),
        (
            "scenarios: [{name: a, targe: eu}]",
            'plan.yaml: $.scenarios[0].targe: unknown key; did you mean "target"?',
        ),
        (
            "load: {duration: 1s}\nscenarios: [{name: a}, {name: a}]",
            'plan.yaml: $.scenarios[1].name: expected a unique name, got "a" a second time',
        ),
        (
            "load: {duration: 1s}\nscenarios: [{name: a, target: eu}]",
            'plan.yaml: $.scenarios[0].target: expected a target under $.targets, which has none, got "eu"',
        ),
        (
            'targets: {eu: {url: "redis://h:1"}, us: {url: "redis://h:2"}}\nload: {duration: 1s}\n'
            "scenarios: [{name: a, target: eu}]",
            "plan.yaml: $.targets.us: expected a scenario that names this target, got none",
        ),
        (
            "target: {url: 'redis://h:1'}\nscenarios: [{name: a, load: {duration: 0}}, {name: b, after: a}]",
            'plan.yaml: $.scenarios[1].after: expected a scenario with a duration or stages, got "a", which runs until '
            "it is stopped",
        ),
        (
            "target: {url: 'redis://h:1'}\nload: {duration: 1s}\nscenarios: [{name: a, after: b}, {name: b}]",
            'plan.yaml: $.scenarios[0].after: expected none for the first scenario, got "b"',
        ),
        (
            "target: {url: 'redis://h:1'}\nload: {requests: 9}\nscenarios: [{name: a}, {name: b, after: a}]",
            'plan.yaml: $.scenarios[1].after: expected a scenario with a duration or stages, got "a", which ends with '
            "its requests",
        ),
        (
            "target: {url: 'redis://h:1'}\nload: {duration: 1s}\n"
            "scenarios: [{name: a}, {name: b, load: {warmup: 1s, stages: [{name: warmup, duration: 1s}]}}]",
            'plan.yaml: $.scenarios[1].load.stages[0].name: expected a unique name, got "warmup" a second time',
        ),
        (
            "targets: {eu: {sentinel: {username: bob}, url: 'redis://h:1'}}\nload: {duration: 1s}\n"
            "scenarios: [{name: a, target: eu}]",
            "plan.yaml: $.targets.eu.sentinel.username: expected only with a target of redis+sentinel://, got redis://",
        ),
    ],
)
def test_a_fault_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


def test_a_plan_has_at_most_sixteen_scenarios(tmp_path: Path) -> None:
    names = ", ".join(f"{{name: s{number}}}" for number in range(17))
    found = refusal(tmp_path, f"scenarios: [{names}]")
    assert found == "plan.yaml: $.scenarios: expected at most 16 scenarios, got 17"


def test_a_url_on_the_command_line_contradicts_named_targets(tmp_path: Path) -> None:
    text = 'targets: {eu: {url: "redis://h:1"}}\nload: {duration: 1s}\nscenarios: [{name: a, target: eu}]'
    assert refusal(tmp_path, text, url="redis://h:2") == (
        "--url: expected no target, because the scenario a has its own, eu"
    )


# -- profiles with scenarios

PROFILE = """
description: two applications
keys: {maximum: 50}
scenarios:
  - name: reads
    load: {rate: 100/s, duration: 5s}
    workload: {commands: [{command: GET}]}
  - name: writes
    load: {rate: 10/s, duration: 5s}
    workload: {commands: [{command: SET}], keys: {maximum: 7}}
"""


def test_a_profile_may_have_scenarios(tmp_path: Path) -> None:
    (tmp_path / "tenants.yaml").write_text(PROFILE)
    plan = load(tmp_path, "{target: {url: 'redis://h:1'}, workload: {profile: tenants.yaml}, load: {duration: 2s}}")
    reads, writes = plan.scenarios
    assert (reads.workload.keys.maximum, writes.workload.keys.maximum) == (50, 7)
    assert [each.load.duration_s for each in plan.scenarios] == [2, 2]
    assert [each.load.rate_per_s for each in plan.scenarios] == [100, 10]


def test_a_scenario_cannot_have_a_profile_with_scenarios(tmp_path: Path) -> None:
    (tmp_path / "tenants.yaml").write_text(PROFILE)
    text = """
target: {url: "redis://h:1"}
load: {duration: 1s}
scenarios: [{name: a, workload: {profile: tenants.yaml}}]
"""
    found = refusal(tmp_path, text)
    assert "expected a profile of one workload" in found
    assert found.startswith("plan.yaml: $.scenarios[0].workload.profile: ")


# -- the probe


def test_a_probe_is_a_scenario_with_one_connection_beside_the_load(tmp_path: Path) -> None:
    text = "{target: {url: 'redis://h:1'}, pools: [{driver: wire}], load: {duration: 4s, warmup: 1s}}"
    main, probe = load(tmp_path, text, probe=PerSecond(20)).scenarios
    assert (main.name, main.pools[0].driver) == ("main", Driver.WIRE)
    assert (probe.name, probe.pools[0].driver) == ("probe", Driver.CLIENT)
    assert (probe.pools[0].client_pools, probe.pools[0].max_connections) == (1, 1)
    assert (probe.load.rate_per_s, probe.load.duration_s, probe.load.warmup_s) == (20, 4, 1)
    assert probe.workload.commands == main.workload.commands


def test_each_target_gets_a_probe(tmp_path: Path) -> None:
    text = """
targets: {eu: {url: "redis://h:1"}, us: {url: "redis://h:2"}}
load: {duration: 1s}
probe: 5/s
scenarios: [{name: a, target: eu}, {name: b, target: us}, {name: c, target: us}]
"""
    plan = load(tmp_path, text)
    assert [each.name for each in plan.scenarios] == ["a", "b", "c", "probe-eu", "probe-us"]
    assert load(tmp_path, plan_yaml(plan)) == plan


def test_each_scenario_without_a_length_gets_the_default_length(tmp_path: Path) -> None:
    text = """
target: {url: "redis://h:1"}
scenarios:
  - {name: a}
  - {name: b, load: {requests: 5}}
  - {name: c, after: a, load: {rate: 5/s}}
"""
    plan = load(tmp_path, text)
    assert [each.load.duration_s for each in plan.scenarios] == [10, None, 10]
    assert [each.start_ns for each in scenario_plans(plan)] == [0, 0, 10**10]


def test_a_probe_beside_an_endless_load_is_endless(tmp_path: Path) -> None:
    main, probe = load(
        tmp_path, "{target: {url: 'redis://h:1'}, load: {duration: 0, warmup: 1s}, probe: 5/s}"
    ).scenarios
    assert main.load.runs_until_stopped
    assert probe.load.runs_until_stopped
    assert probe.load.warmup_s == 1


def test_a_probe_needs_a_load_whose_end_is_planned(tmp_path: Path) -> None:
    text = "{target: {url: 'redis://h:1'}, load: {requests: 5}, probe: 5/s}"
    assert refusal(tmp_path, text) == (
        "plan.yaml: $.probe: expected a load with a duration or stages beside the probe, got 5 requests"
    )


def test_a_probe_passes_over_scenarios_that_it_cannot_go_with(tmp_path: Path) -> None:
    text = """
target: {url: "redis://h:1"}
scenarios:
  - {name: counted, load: {requests: 5}}
  - {name: channels, workload: {profile: pubsub_heavy}, load: {duration: 9s}}
  - {name: timed, workload: {commands: [{command: GET}]}, load: {duration: 7s}}
"""
    probe = load(tmp_path, text, probe=PerSecond(5)).scenarios[-1]
    assert (probe.name, probe.load.duration_s) == ("probe", 7)
    assert [command.command for command in probe.workload.commands] == ["GET"]


def test_a_probe_beside_subscribers_is_refused(tmp_path: Path) -> None:
    text = "{target: {url: 'redis://h:1'}, workload: {profile: pubsub_heavy}, probe: 5/s}"
    assert refusal(tmp_path, text) == (
        "plan.yaml: $.probe: expected a load without subscribers beside the probe, which would take part in their "
        "channels"
    )


def test_a_probe_counts_as_one_of_the_most_scenarios(tmp_path: Path) -> None:
    names = ", ".join(f"{{name: s{number}}}" for number in range(16))
    text = f"{{target: {{url: 'redis://h:1'}}, scenarios: [{names}], probe: 5/s}}"
    assert refusal(tmp_path, text) == "plan.yaml: $.probe: expected at most 16 scenarios, got 17 with the probe"


def test_a_scenario_that_starts_too_late_for_any_agent_is_refused(tmp_path: Path) -> None:
    text = "{target: {url: 'redis://h:1'}, scenarios: [{name: a}, {name: b, start: 9999h}]}"
    assert refusal(tmp_path, text) == (
        "plan.yaml: $.scenarios[1].start: expected a start within 8784h, got b after 9999h"
    )

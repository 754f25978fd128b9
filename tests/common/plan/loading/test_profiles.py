from __future__ import annotations

from pathlib import Path

import pytest

from common.commands import COMMANDS, KeyType, Placeholder, find_command
from common.errors import PlanError
from common.plan.loading import profiles
from common.plan.loading.sources import load_plan
from common.plan.schema import Driver
from common.plan.settings import SETTINGS

by_flag = {setting.flag: setting for setting in SETTINGS}

ASKED_FOR = {
    "async_mixed": {"SET": 30, "GET": 40, "LPUSH": 20, "LRANGE": 10},
    "basic_rw": {"SET": 40, "GET": 50, "DEL": 10},
    "high_throughput": {"SET": 40, "GET": 60},
    "list_operations": {"LPUSH": 40, "LRANGE": 40, "LPOP": 20},
    "pubsub_heavy": {"PUBLISH": 70, "SUBSCRIBE": 30},
    "pubsub_sharded": {"SPUBLISH": 70, "SSUBSCRIBE": 30},
    "transaction_heavy": {"SET": 30, "GET": 40, "INCR": 20, "DEL": 10},
}


@pytest.mark.parametrize("name", sorted(ASKED_FOR))
def test_the_requested_mixes_have_the_requested_weights(name: str) -> None:
    workload = profiles.load(name).workload
    assert {entry["command"].split()[0]: entry["weight"] for entry in workload["commands"]} == ASKED_FOR[name]


@pytest.mark.parametrize("name", profiles.names())
def test_a_built_in_profile_loads_and_has_a_description(name: str) -> None:
    flags = {by_flag["--url"]: "redis://h", by_flag["--duration"]: "1s", by_flag["--profile"]: name}
    plan = load_plan(None, flags, {})
    profile = profiles.load(name)
    assert [each.name for each in plan.scenarios] == [each["name"] for each in profile.scenarios]
    assert plan.workload.profile == (None if profile.scenarios else name)
    assert profile.description


@pytest.mark.parametrize("name", [name for name in profiles.names() if name != "pubsub_heavy"])
def test_a_built_in_profile_loads_for_a_cluster(name: str) -> None:
    flags = {by_flag["--url"]: "redis+cluster://h", by_flag["--duration"]: "1s", by_flag["--profile"]: name}
    assert load_plan(None, flags, {})


def test_a_cluster_has_its_own_profile_of_publishers_and_subscribers() -> None:
    flags = {by_flag["--url"]: "redis+cluster://h", by_flag["--duration"]: "1s", by_flag["--profile"]: "pubsub_heavy"}
    with pytest.raises(PlanError, match=r"expected SPUBLISH in a cluster.*as in profile pubsub_sharded"):
        load_plan(None, flags, {})


def test_profiles_named_for_batches_have_batches() -> None:
    assert profiles.load("high_throughput").workload["pipeline"] == 10
    assert profiles.load("transaction_heavy").workload["transaction"] == 5
    assert profiles.load("async_mixed").workload["pipeline"] == 20


def test_a_profile_may_name_a_driver_and_a_flag_overrides_it() -> None:
    flags = {by_flag["--url"]: "redis://h", by_flag["--duration"]: "1s", by_flag["--profile"]: "async_mixed"}
    assert load_plan(None, flags, {}).pools[0].driver is Driver.ASYNCIO
    assert load_plan(None, {**flags, by_flag["--driver"]: "client"}, {}).pools[0].driver is Driver.CLIENT


@pytest.mark.parametrize("name", profiles.names())
def test_commands_of_different_types_never_share_keys(name: str) -> None:
    profile = profiles.load(name)
    kinds: dict[str, set[KeyType]] = {}
    workloads = [scenario.get("workload", {}) for scenario in profile.scenarios] or [profile.workload]
    entries = [(workload, entry) for workload in workloads for entry in workload["commands"]]
    for workload, entry in entries:
        own = workload.get("keys", {}).get("prefix", "stampede:")
        for said in (entry, *entry.get("then", ())):
            template = find_command(said["command"])
            row = COMMANDS.get(template.name)  # None: a command without keys, such as INFO
            # Others have a key of their own, as a literal.
            if row and row.key_type is not KeyType.ANYTHING and template.arguments[1:2] == (Placeholder.KEY,):
                kinds.setdefault(entry.get("key_prefix", own), set()).add(row.key_type)
    assert all(len(held) == 1 for held in kinds.values())


def test_an_unknown_profile_is_refused_with_the_most_similar_name() -> None:
    with pytest.raises(PlanError) as caught:
        profiles.load("high_thruput", "--profile")
    assert str(caught.value) == (
        f"--profile: expected one of {', '.join(profiles.names())}, or the name of a "
        '.yaml file, got "high_thruput"; did you mean high_throughput?'
    )


@pytest.mark.parametrize("name", ["../basic_rw", "__init__", "", "basic_rw.yaml"])
def test_a_built_in_name_never_reads_another_file(name: str) -> None:
    with pytest.raises(PlanError):
        profiles.load(name)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("pipeline: 3", "$.commands: expected a list with at least one entry, got none"),
        ("commands: []", "$.commands: expected a list with at least one entry, got none"),
        ("commands: GET", '$.commands: expected a list, got "GET"'),
        ("commands: [{command: GET, wait: 1}]", "$.commands[0].wait: unknown key; "),
        ("commands: [{command: GET}]\nprofile: basic_rw", "$.profile: expected commands and their keys, got a profile"),
        (
            "commands: [{command: GET}]\ndriver: telepathy",
            '$.driver: expected one of client, asyncio, wire, got "telepathy"',
        ),
        ("commands: [{command: GET}]\ndescription: 3", "$.description: expected text, got 3"),
        ("[]", "$: expected a mapping with keys such as profile, commands, keys, got an empty list"),
    ],
)
def test_a_fault_in_a_profile_file_has_its_place(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(PlanError) as caught:
        profiles.load(str(file))
    assert str(caught.value).startswith(f"{file}: {line}")

from __future__ import annotations

from pathlib import Path

import pytest

from common.commands import find_command
from common.errors import PlanError
from common.plan import profiles

MIXES = {
    "basic_rw": {"SET": 40, "GET": 50, "DEL": 10},
    "high_throughput": {"SET": 40, "GET": 60},
    "list_operations": {"LPUSH": 40, "LRANGE": 40, "LPOP": 20},
    "pubsub_heavy": {"PUBLISH __key__ __message__": 70, "SUBSCRIBE __key__": 30},
    "transaction_heavy": {"SET": 30, "GET": 40, "INCR": 20, "DEL": 10},
}


def test_the_built_in_profiles_are_these() -> None:
    assert profiles.names() == sorted(MIXES)


@pytest.mark.parametrize("name", sorted(MIXES))
def test_a_built_in_profile_has_its_mix_of_known_commands_and_a_description(name: str) -> None:
    profile = profiles.load(name)
    assert {entry["command"]: entry["weight"] for entry in profile.workload["commands"]} == MIXES[name]
    assert all(find_command(entry["command"]) for entry in profile.workload["commands"])
    assert profile.description


def test_batches_are_as_the_profiles_names_promise() -> None:
    assert profiles.load("high_throughput").workload["pipeline"] == 10
    assert profiles.load("transaction_heavy").workload["transaction"] == 5


def test_commands_of_different_types_never_share_keys() -> None:
    groups: dict[str, set[str]] = {}
    for name in profiles.names():
        workload = profiles.load(name).workload
        own = workload.get("keys", {}).get("prefix", "stampede:")
        for entry in workload["commands"]:
            kind = {"LPUSH": "list", "LPOP": "list", "LRANGE": "list", "INCR": "counter"}.get(
                entry["command"], "string"
            )
            groups.setdefault(entry.get("key_prefix", own), set()).add(kind)
    assert all(len(kinds) == 1 for kinds in groups.values())


def test_an_unknown_profile_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(PlanError) as caught:
        profiles.load("high_thruput", "--profile")
    assert str(caught.value) == (
        "--profile: expected one of basic_rw, high_throughput, list_operations, pubsub_heavy, transaction_heavy, or "
        'the name of a .yaml file, got "high_thruput"; did you mean high_throughput?'
    )


@pytest.mark.parametrize("name", ["../basic_rw", "__init__", "", "basic_rw.yaml"])
def test_a_name_never_reaches_files_that_are_not_meant(name: str) -> None:
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
        ("commands: [{command: GET}]\ndescription: 3", "$.description: expected text, got 3"),
        ("[]", "$: expected a mapping with keys such as profile, commands, keys, got an empty list"),
    ],
)
def test_what_is_wrong_in_a_profile_of_ones_own_is_named(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(PlanError) as caught:
        profiles.load(str(file))
    assert str(caught.value).startswith(f"{file}: {line}")

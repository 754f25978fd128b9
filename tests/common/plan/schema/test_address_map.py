from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import PlanError
from common.plan.loading.sources import load_plan
from common.plan.plan_text import plan_yaml
from common.plan.schema import Plan
from common.plan.schema.address_map import AddressMap, parse_address_map
from common.plan.settings import SETTINGS

WriteFile = Callable[[str], Path]


@pytest.mark.parametrize(
    ("rules", "announced", "reached"),
    [
        ({}, ("10.0.0.1", 6379), ("10.0.0.1", 6379)),
        ({"10.0.0.1:6379": "127.0.0.1:7000"}, ("10.0.0.1", 6379), ("127.0.0.1", 7000)),
        ({"10.0.0.1:6379": "127.0.0.1:7000"}, ("10.0.0.1", 6380), ("10.0.0.1", 6380)),
        ({"10.0.0.1": "127.0.0.1"}, ("10.0.0.1", 6380), ("127.0.0.1", 6380)),
        ({"10.0.0.1": "a", "10.0.0.1:6379": "b"}, ("10.0.0.1", 6379), ("b", 6379)),
        ({"10.0.0.1": "proxy:7000"}, ("10.0.0.1", 6380), ("proxy", 7000)),
        ({"Node-1.Example": "127.0.0.1"}, ("node-1.example", 1), ("127.0.0.1", 1)),
        ({"[fd00::1]:6379": "[::1]:7000"}, ("fd00::1", 6379), ("::1", 7000)),
        ({"fd00::1": "::1"}, ("fd00::1", 6379), ("::1", 6379)),
        ({"[fe80::1]": "[fe80::1%25eth0]"}, ("fe80::1", 6379), ("fe80::1%eth0", 6379)),
    ],
)
def test_an_announced_address_is_mapped_by_the_rules(
    rules: dict[str, str], announced: tuple[str, int], reached: tuple[str, int]
) -> None:
    found = AddressMap(rules)
    assert found.resolve(*announced) == reached
    assert found.maps_to(*reached) == (announced != reached)


def test_a_flag_has_one_rule_or_several() -> None:
    assert parse_address_map("10.0.0.1:6379=127.0.0.1:7000") == {"10.0.0.1:6379": "127.0.0.1:7000"}
    assert parse_address_map("a=b, c:1=d:2") == {"a": "b", "c:1": "d:2"}


@pytest.mark.parametrize("text", ["", "a", "=b", "a=", "a:b=c", "a=c:70000", "a=b,", "a=redis://:never-shown@h"])
def test_a_malformed_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected (FROM=TO|HOST:PORT or HOST) such as ") as caught:
        parse_address_map(text)
    assert "never-shown" not in str(caught.value)


def plan_of(path: Path, *flags: str, **environ: str) -> Plan:
    [remap] = [setting for setting in SETTINGS if setting.flag == "--address-remap"]
    return load_plan(path, {remap: tuple(map(parse_address_map, flags))} if flags else {}, environ)


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    def write_file(target: str) -> Path:
        file = tmp_path / "plan.yaml"
        file.write_text(f"target: {target}\nload: {{duration: 1s}}")
        return file

    return write_file


def test_rules_of_file_environment_and_flags_are_merged(write: WriteFile) -> None:
    file = write("{url: 'redis+cluster://h', address_remap: {10.0.0.1:1: 'a:1', 10.0.0.2: b}}")
    plan = plan_of(file, "10.0.0.2=c", "10.0.0.3=d", STAMPEDE_ADDRESS_REMAP="10.0.0.4=e,10.0.0.1:1=x")
    assert plan.target.address_remap == {
        "10.0.0.4": "e", "10.0.0.1:1": "a:1", "10.0.0.2": "c", "10.0.0.3": "d",
    }  # fmt: skip
    again = write("{}")
    again.write_text(plan_yaml(plan))
    assert plan_of(again) == plan


def test_the_yaml_of_a_plan_without_rules_has_no_such_key(write: WriteFile) -> None:
    assert "address_remap" not in plan_yaml(plan_of(write("{url: 'redis://h'}")))


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (
            "{url: 'redis://h', address_remap: {a: b}}",
            "address_remap.a: expected only with a target of redis+cluster:// or",
        ),
        ("{url: 'redis+cluster://h', address_remap: [a]}", "address_remap: expected a mapping of text to text, got"),
        ("{url: 'redis+cluster://h', address_remap: null}", "address_remap: expected a mapping of text to text, got"),
        ("{url: 'redis+cluster://h', address_remap: {a: 1}}", "address_remap.a: expected text, got 1"),
        ("{url: 'redis+cluster://h', address_remap: {1: a}}", "address_remap: expected text, got 1"),
        (
            "{url: 'redis+cluster://h', address_remap: {'a:x': b}}",
            "address_remap.a:x: expected HOST:PORT or HOST such as",
        ),
    ],
)
def test_a_fault_in_the_rules_of_a_file_has_its_place(write: WriteFile, target: str, line: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(write(target))
    assert f"$.target.{line}" in str(caught.value)

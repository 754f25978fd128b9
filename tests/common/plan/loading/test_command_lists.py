from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from common.commands import Placeholder, find_command, parse_template
from common.errors import PlanError
from common.plan.loading.sources import load_plan
from common.plan.plan_text import plan_yaml
from common.plan.schema import Plan
from common.plan.settings import SETTINGS
from common.protocol.codec import pack, unpack

KEY, DATA = Placeholder.KEY, Placeholder.DATA
FLAGS = {setting.flag: setting for setting in SETTINGS if setting.flag}


def load(tmp_path: Path, workload: str, name: str = "plan.yaml") -> Plan:
    start = "target: {url: 'redis://h'}\nload: {requests: 1}\n"
    (tmp_path / name).write_text(workload if name.endswith("json") else start + workload, encoding="utf-8")
    return load_plan(tmp_path / name, {}, {})


def parts(text: str) -> tuple[object, ...]:
    return find_command(text).arguments


def test_a_command_of_a_plan_file_may_be_a_list_of_arguments_that_nothing_splits(tmp_path: Path) -> None:
    plan = load(
        tmp_path,
        r"""
workload:
  commands:
    - command: [JSON.SET, __key__, $, '{"a": "it''s \n"}']
      then: [{command: [APPEND, "log:__key__", __data__]}]
    - command: [SET, __key__, !!binary AP9fX2tleV9f]
    - command: [GET]
  setup: [[SET, "a b", ""], PING]
  preload: [{command: [SET, __key__, '"']}]
""",
    )
    first, second, third = plan.workload.commands
    assert parts(first.command) == (b"JSON.SET", KEY, b"$", b'{"a": "it\'s \\n"}')
    assert parts(first.then[0].command)[2] is DATA
    assert parts(second.command) == (b"SET", KEY, b"\x00\xff__key__")
    assert parts(third.command) == (b"GET", KEY)
    assert [parts(line) for line in plan.workload.setup] == [(b"SET", b"a b", b""), (b"PING",)]
    assert parts(plan.workload.preload[0].command) == (b"SET", KEY, b'"')


def test_a_profile_file_may_have_lists_of_arguments(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text('commands: [{command: [SET, __key__, "a b"]}]\n')
    plan = load(tmp_path, "workload: {profile: own.yaml}\n")
    assert parts(plan.workload.commands[0].command) == (b"SET", KEY, b"a b")


@pytest.mark.parametrize(
    ("workload", "complaint"),
    [
        (
            "{commands: [{command: [SETEX, k, 010, v]}]}",
            r"commands\[0\].command\[2\]: expected text, got 8; put it in quotes",
        ),
        ("{commands: [{command: [SET, k, [v]]}]}", r"commands\[0\].command\[2\]: expected text, got a list"),
        ("{commands: [{command: []}]}", r"commands\[0\].command: expected text, got an empty list"),
        ("{setup: [[SET, k, true]]}", r"setup\[0\]\[2\]: expected text, got true"),
        ("{commands: [PING]}", r'commands\[0\]: expected a mapping .*, got "PING"'),
        ("{commands: {command: [PING]}}", r"commands: expected a list"),
        ("[]", r"workload: expected a mapping"),
    ],
)
def test_an_argument_that_is_not_text_is_refused_at_its_place(tmp_path: Path, workload: str, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint) as raised:
        load(tmp_path, f"workload: {workload}\n")
    assert "\n" not in str(raised.value)


LINE = 'SET k:__key__ "' + r"""\x00\xff\"'\\é""" + '"'
BYTES = b"\x00\xff\"'\\" + "é".encode()


def test_bytes_of_a_template_are_the_same_in_every_form_of_a_plan(tmp_path: Path) -> None:
    yaml_plan = load(tmp_path, f"workload:\n  commands:\n    - command: >-\n        {LINE}\n")
    escaped = LINE.replace("\\", "\\\\").replace('"', '\\"')
    json_plan = load(
        tmp_path,
        '{"target": {"url": "redis://h"}, "load": {"requests": 1}, '
        f'"workload": {{"commands": [{{"command": "{escaped}"}}]}}}}',
        "plan.json",
    )
    flag = FLAGS["--command"].parse('SET k:__key__ "\\x00\udcff\\"\'\\\\é"')
    for command in (yaml_plan.workload.commands[0].command, json_plan.workload.commands[0].command, flag):
        assert parse_template(command).arguments[2] == BYTES


def test_bytes_of_a_template_survive_the_printed_plan_and_the_wire(tmp_path: Path) -> None:
    plan = load(tmp_path, f"workload:\n  commands:\n    - command: >-\n        {LINE}\n")
    flagged = FLAGS["--command"].parse("SET a\udcffb c")
    workload = replace(
        plan.workload, commands=(*plan.workload.commands, replace(plan.workload.commands[0], command=flagged))
    )
    plan = replace(plan, workload=workload)
    (tmp_path / "printed.yaml").write_text(plan_yaml(plan))
    printed = load_plan(tmp_path / "printed.yaml", {}, {})
    travelled = unpack(pack(plan), Plan)
    for again in (printed, travelled):
        assert [parts(command.command) for command in again.workload.commands] == [
            parts(command.command) for command in plan.workload.commands
        ]
    assert parts(printed.workload.commands[1].command)[1] == b"a\xffb"

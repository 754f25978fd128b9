from __future__ import annotations

import pytest

from common.commands import COMMANDS, PLACEHOLDERS, parse_template
from common.plan.loading import profiles
from coordinator.catalogue import commands_text, page, profiles_text, template_text


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_template_is_written_as_it_can_be_read(name: str) -> None:
    template = COMMANDS[name].template
    assert parse_template(template_text(template)) == template


@pytest.mark.parametrize(
    "text",
    [
        "SET __key__ 'a b'",
        "MGET __keys(12)__",
        "MSET __pairs(3)__ __key__ x",
        "MSET __key__ __data__ __key__ __data__",
        "HSET __key__ 'a field:__rand(-1,100)__' __data__",
        "EVALSHA __sha(limiter)__ 1 __key__ __rand_int__",
        "SET x ''",
        r'SET x "\x00\xff\x5f_key"',
        "ZADD __key:n1__ __key__ __rand(1,9):n2__ a:__key:n1__:__rand(1,9):n2__",
        "MSET __key:n1__ __data:n2__ __key:n1__ __data:n2__ __key__ __data__",
    ],
)
def test_so_is_one_of_a_plan(text: str) -> None:
    assert template_text(parse_template(text)) == text


def test_the_list_of_profiles_has_a_line_for_each() -> None:
    assert [line.split()[0] for line in profiles_text().splitlines()] == profiles.names()


@pytest.mark.parametrize("text", [commands_text(), page()], ids=("text", "page"))
def test_every_command_and_every_placeholder_is_listed(text: str) -> None:
    assert all(template_text(row.template).replace("|", "\\|") in text.replace("|", "\\|") for row in COMMANDS.values())
    assert all(placeholder in text for placeholder in PLACEHOLDERS)
    assert all(row.summary in text for row in COMMANDS.values())


def test_a_cell_of_the_page_cannot_end_early() -> None:
    rows = [line for line in page().splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {3, 6}

from __future__ import annotations

import pytest

from common.commands import COMMANDS, PLACEHOLDERS, template_text
from common.plan.loading import profiles
from coordinator.catalogue import commands_text, page, profiles_text


def test_the_list_of_profiles_has_a_line_for_each_profile() -> None:
    assert [line.split()[0] for line in profiles_text().splitlines()] == profiles.names()


@pytest.mark.parametrize("text", [commands_text(), page()], ids=("text", "page"))
def test_every_command_and_every_placeholder_is_listed(text: str) -> None:
    assert all(template_text(row.template).replace("|", "\\|") in text.replace("|", "\\|") for row in COMMANDS.values())
    assert all(placeholder in text for placeholder in PLACEHOLDERS)
    assert all(row.summary in text for row in COMMANDS.values())


def test_bars_in_a_cell_of_the_page_are_escaped() -> None:
    rows = [line for line in page().splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {3, 6}

"""README.md and ARCHITECTURE.md held against the code: what they name exists, and what exists they name."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from agent.cli import cli as agent_cli
from common import errors
from common.plan.loading import profiles
from common.plan.setting import ENVIRONMENT_PREFIX
from common.plan.settings import SETTINGS
from common.protocol.messages import AgentState
from coordinator.analysis.ledger import Ledger
from coordinator.analysis.verdict import Verdict
from coordinator.catalogue import page
from coordinator.cli import cli as coordinator_cli
from coordinator.cli import main
from coordinator.core.transitions import Phase
from coordinator.journal_lock import LOCK_SUFFIX
from coordinator.report import summary_types as shapes
from coordinator.report.files import JOURNAL_FILE, PLAN_FILE, SUMMARY_FILE, TIMESERIES_FILE
from coordinator.report.preparation_text import CleanUp, Preload

ROOT = Path(__file__).parent.parent
TEXTS = {
    name: (ROOT / name).read_text() for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
}
README, ARCHITECTURE = TEXTS["README.md"], TEXTS["ARCHITECTURE.md"]
GROUPS = {"coordinator": coordinator_cli, "agent": agent_cli}
AGENT_VARIABLES = {"STAMPEDE_AGENT_PROCESSES", "STAMPEDE_TOKEN", "STAMPEDE_TOKEN_FILE", "STAMPEDE_TOKEN_KEY"}

Table = list[list[str]]


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one of any level; code blocks hold no lines that look like one."""
    [found] = re.findall(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found)


def tables(text: str) -> list[Table]:
    """The cells of every table in a text, without its head."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[re.split(r"(?<!\\) *\| *", line)[1:-1] for line in table.splitlines()[2:]] for table in found]


def quoted(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> Iterator[list[str]]:
    """Every command line of ours that a text shows, as words."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] in GROUPS:
                yield words


def keys_of(kind: type) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def exit_codes(error: type[errors.StampedeError]) -> set[int]:
    return {error.exit_code}.union(*map(exit_codes, error.__subclasses__()))


def test_the_architecture_names_every_phase_and_every_state() -> None:
    names = [name for name in quoted(section(ARCHITECTURE, "The two state machines")) if name.isupper()]
    assert names == [place.name for machine in (Phase, AgentState) for place in machine]


@pytest.mark.parametrize("document", list(TEXTS))
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = TEXTS[document]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"(?<![\w/.])(?:\./)?((?:scripts|tests|\.ci|common|agent|coordinator)/[\w./]*\w)", text)
    assert [name for name in {*links, *files} if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("number", "command"),
    [(0, coordinator_cli.commands["start"]), (1, agent_cli.commands["join"])],
    ids=("coordinator start", "agent join"),
)
def test_every_flag_of_the_tables_has_the_alias_and_the_default_that_they_say(
    number: int, command: click.Command
) -> None:
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    known = {flag: option for option in options for flag in option.opts}
    for flag, alias, _, default in tables(section(README, "Flags"))[number]:
        option = known[quoted(flag)[0].split()[0]]
        record = option.get_help_record(click.Context(command))
        assert record is not None
        assert set(quoted(alias)) == set(option.opts) - {quoted(flag)[0].split()[0]}
        assert [default] == (re.findall(r"\[default: (.*?)\]", record[1]) or [""])


@pytest.mark.parametrize("document", list(TEXTS))
def test_every_command_line_of_a_document_is_understood(document: str) -> None:
    for program, name, *arguments in command_lines(TEXTS[document]):
        GROUPS[program].commands[name].make_context(name, arguments).close()


def test_the_readme_shows_command_lines() -> None:
    shown = {(program, name) for program, name, *_ in command_lines(README)}
    assert shown >= {("coordinator", "start"), ("coordinator", "plan"), ("coordinator", "check"), ("agent", "join")}


def test_every_variable_that_the_readme_names_is_read() -> None:
    variables = set(re.findall(rf"\b{ENVIRONMENT_PREFIX}[A-Z_]*[A-Z]", README))
    assert variables - AGENT_VARIABLES - {setting.variable for setting in SETTINGS} == set()


def test_the_plan_file_of_the_readme_and_the_flags_beside_it_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(variable)
    chapter = section(README, "A plan file, and the same as flags")
    [text] = blocks(chapter, "yaml")
    (tmp_path / "plan.yaml").write_text(text)
    *_, [_, _, *flags] = command_lines(chapter)
    facts = []
    for arguments in ([str(tmp_path / "plan.yaml")], flags):
        assert main(["plan", "--json", *arguments]) == errors.EXIT_OK
        facts.append(json.loads(capsys.readouterr().out))
    assert facts[0] == facts[1]
    assert facts[0]["connections"]["ceiling"] == 300


def test_the_table_of_profiles_is_complete() -> None:
    [table] = tables(section(README, "Workloads"))
    assert sorted(quoted(name)[0] for name, _ in table) == profiles.names()


def test_the_page_of_workloads_is_what_the_coordinator_prints() -> None:
    assert (ROOT / "WORKLOADS.md").read_text() == page()


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    [table] = tables(section(README, "Exit codes"))
    assert {int(code) for code, _ in table} == {errors.EXIT_OK, errors.EXIT_INTERRUPTED} | exit_codes(
        errors.StampedeError
    )


def test_the_table_of_files_names_what_a_run_leaves() -> None:
    files, _ = tables(section(README, "What a run leaves"))
    expected = [JOURNAL_FILE, JOURNAL_FILE + LOCK_SUFFIX, PLAN_FILE, SUMMARY_FILE, TIMESERIES_FILE]
    assert [quoted(name)[0] for name, _ in files] == expected


def test_the_table_of_the_summary_has_all_keys_in_order() -> None:
    kinds: dict[str, type] = {
        "run": shapes.Run,
        "target": shapes.Target,
        "load": shapes.Load,
        "generator": shapes.Generator,
        "stages": shapes.Stage,
        "agents": shapes.Agent,
        "totals": shapes.Stats,
        "checkout_wait_us": shapes.Quantiles,
        "connections": shapes.Connections,
        "pubsub": shapes.PubSub,
        "ledger": Ledger,
        "preload": Preload,
        "clean_up": CleanUp,
        "verdict": Verdict,
        "latency_bins": shapes.Bin,
    }
    _, table = tables(section(README, "What a run leaves"))
    assert [quoted(key)[0] for key, _, _ in table] == keys_of(shapes.Summary)
    assert {quoted(key)[0]: quoted(keys) for key, keys, _ in table if keys} == {
        key: keys_of(kind) for key, kind in kinds.items()
    }


def test_the_changelog_speaks_of_the_version_at_hand() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in TEXTS["CHANGELOG.md"]

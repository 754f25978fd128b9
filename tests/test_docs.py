"""The documentation matches the code: what it names exists, and its tables are up to date."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import yaml

from agent.cli import cli as agent_cli
from common import errors
from common.commands import COMMANDS
from common.plan.loading import profiles
from common.plan.settings import ENVIRONMENT_PREFIX, SETTINGS
from common.protocol.messages import AgentState
from coordinator.cli import cli as coordinator_cli
from coordinator.cli import main
from coordinator.core.transitions import Phase
from coordinator.journal.journal_lock import LOCK_SUFFIX
from coordinator.report.run_files import JOURNAL_FILE, PLAN_FILE, SERVERS_FILE, SUMMARY_FILE, TIMESERIES_FILE
from scripts.reference.hooks import on_page_markdown
from scripts.reference.meanings import SUMMARY, VARIABLES
from scripts.reference.tables import stale

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")), *PAGES]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
GROUPS = {"coordinator": coordinator_cli, "agent": agent_cli}
FLAGS_OF_OTHERS = {"--cpus", "--quick", "--seconds", "--serve", "--strict", "--timeout", "--write"}
"""Flags of scripts and of other programs that pages name beside ours."""

WITH_FOREIGN_FLAGS = ("docs/comparison.md", "docs/tutorials/", "CHANGELOG.md", "CONTRIBUTING.md")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> Iterator[list[str]]:
    """All command lines of our programs in a text, as words, without redirections."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.split(r" [<>|] ", line)[0], comments=True)
            if words and words[0] in GROUPS:
                yield words


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def links(text: str) -> list[str]:
    """The targets of links and pictures within the repository."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(variable)


def test_generated_tables_follow_the_code() -> None:
    pages = [str(page.relative_to(ROOT)) for page in stale()]
    assert pages == [], f"run scripts/docs --write, and commit {', '.join(pages)}"


def test_every_described_key_is_in_the_summary() -> None:
    page = TEXTS["docs/reference/summary.md"]
    rows = [f"| `{key}` |" for meanings in SUMMARY.values() for key in meanings]
    assert [row for row in {*rows} if page.count(row) != rows.count(row)] == []


def test_the_menu_lists_all_pages_of_the_site() -> None:
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = [page for section in menu for pages in section.values() for page in pages]
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.mark.parametrize("page", ["architecture.md", "contributing.md"])
def test_documents_of_the_root_are_pages_of_the_site_with_working_links(page: str) -> None:
    text = on_page_markdown("", SimpleNamespace(file=SimpleNamespace(src_uri=page)))
    assert text.splitlines()[0] in TEXTS[page.upper().replace(".MD", ".md")]
    assert [link for link in links(text) if not (DOCS / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize(("document", "longest"), [("README.md", 150), ("ARCHITECTURE.md", 200)])
def test_the_first_documents_to_read_are_short(document: str, longest: int) -> None:
    assert len(TEXTS[document].splitlines()) <= longest


@pytest.mark.parametrize("document", list(TEXTS))
def test_every_link_and_every_file_that_a_document_names_exists(document: str) -> None:
    folder, broken = (ROOT / document).parent, []
    for link in links(TEXTS[document]):
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / document
        known = anchors(target.read_text(encoding="utf-8")) if anchor and target.suffix == ".md" else {anchor}
        if not target.exists() or anchor not in known:
            broken.append(link)
    files = re.findall(
        r"(?<![\w/.])(?:\./)?((?:scripts|tests|\.ci|common|agent|coordinator)/[\w./]*\w)", TEXTS[document]
    )
    assert broken + [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", list(TEXTS))
def test_every_command_line_of_a_document_is_valid(document: str) -> None:
    for program, name, *arguments in command_lines(TEXTS[document]):
        GROUPS[program].commands[name].make_context(name, arguments).close()


def test_documents_show_the_commands_of_both_programs() -> None:
    shown = {(program, name) for text in TEXTS.values() for program, name, *_ in command_lines(text)}
    assert shown == {(program, name) for program, group in GROUPS.items() for name in group.commands}


@pytest.mark.parametrize("document", [name for name in TEXTS if not name.startswith(WITH_FOREIGN_FLAGS)])
def test_every_flag_that_a_document_names_exists(document: str) -> None:
    known = {
        flag
        for group in GROUPS.values()
        for command in group.commands.values()
        for parameter in command.get_params(click.Context(command))
        if isinstance(parameter, click.Option)
        for flag in parameter.opts
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", TEXTS[document]))
    assert named - known - FLAGS_OF_OTHERS - {"--help", "--version"} == set()


def test_every_variable_that_a_document_names_is_read() -> None:
    named = {name for text in TEXTS.values() for name in re.findall(rf"\b{ENVIRONMENT_PREFIX}[A-Z_]*[A-Z]", text)}
    assert named - VARIABLES.keys() - {setting.variable for setting in SETTINGS} == set()


@pytest.mark.parametrize("document", [name for name in TEXTS if not name.startswith("docs/reference/")])
@pytest.mark.usefixtures("no_variables")
def test_every_plan_that_a_document_shows_is_valid(document: str, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(TEXTS[document], "yaml")):
        plan = tmp_path / f"{number}.yaml"
        plan.write_text(block)
        missing = [] if "targets:" in block else ["--url", "redis://127.0.0.1:6379"]
        missing += [] if "scenarios:" in block else ["--duration", "1s"]
        assert main(["plan", str(plan), *missing]) == errors.EXIT_OK


@pytest.mark.usefixtures("no_variables")
def test_the_plan_file_and_the_flags_of_the_quickstart_are_the_same_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TEXTS["docs/quickstart.md"]
    [plan] = blocks(text, "yaml")
    (tmp_path / "plan.yaml").write_text(plan)
    [flags] = [words[2:] for words in command_lines(text) if "--client-instances-per-pool" in words]
    facts = []
    for arguments in ([str(tmp_path / "plan.yaml")], flags):
        assert main(["plan", "--json", *arguments]) == errors.EXIT_OK
        facts.append(json.loads(capsys.readouterr().out))
    assert facts[0] == facts[1]
    assert facts[0]["connections"]["ceiling"] == 300


def test_the_architecture_names_every_phase_and_every_state() -> None:
    [section] = re.findall(r"^## The state machines\n(.*?)^## ", TEXTS["ARCHITECTURE.md"], re.MULTILINE | re.DOTALL)
    assert re.findall(r"`([A-Z]+)`", section) == [place.name for machine in (Phase, AgentState) for place in machine]


def test_the_report_page_names_the_files_that_a_run_leaves() -> None:
    named = re.findall(r"^\| `([\w.]+)` \|", TEXTS["docs/report.md"], re.MULTILINE)
    assert named == [JOURNAL_FILE, JOURNAL_FILE + LOCK_SUFFIX, PLAN_FILE, SUMMARY_FILE, TIMESERIES_FILE, SERVERS_FILE]


def test_the_glossary_names_classes_that_exist_and_no_word_twice() -> None:
    rows = re.findall(r"^\| ([\w -]+) \| .* \| (.*) \|$", TEXTS["docs/glossary.md"], re.MULTILINE)
    words, names = [word for word, _ in rows], re.findall(r"`([A-Z]\w+)`", " ".join(name for _, name in rows))
    code = "\n".join(
        path.read_text() for side in ("common", "agent", "coordinator") for path in ROOT.glob(f"{side}/**/*.py")
    )
    assert len(words) == len(set(words))
    assert [name for name in names if not re.search(rf"^class {name}\b", code, re.MULTILINE)] == []


def test_the_readme_counts_commands_and_profiles() -> None:
    [counts] = re.findall(r"(\d+) commands by name .*; (\d+) profiles", TEXTS["README.md"])
    assert tuple(map(int, counts)) == (len(COMMANDS), len(profiles.names()))


def test_the_changelog_has_the_current_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in TEXTS["CHANGELOG.md"]

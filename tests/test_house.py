"""House rules that neither the linter nor the import contracts of pyproject.toml can express."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]
PACKAGES = ("agent", "common", "coordinator")
LONGEST_MODULE = 500
TEXT_SUFFIXES = {"", ".css", ".csv", ".html", ".js", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}

# Written so that they do not match themselves.
PACKAGE_HOST = re.compile(r"p[y]pi\.|python[h]osted|/si[m]ple\b|(index|trusted)-[u]rl")
MACHINE_PATH = re.compile(r"(?<![\w.~$}-])/(work|root|home/\w+|Users/\w+|tmp/w)\b")
# The PEP 440 name that an unpublished or floating version would have is no pin.
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==[0-9][0-9a-z.]*$")


def texts() -> Iterator[Path]:
    """Every text that people wrote."""
    for name in (*PACKAGES, "tests", "scripts", ".ci"):
        yield from (
            path for path in sorted((ROOT / name).rglob("*")) if path.is_file() and path.suffix in TEXT_SUFFIXES
        )
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file() and path.suffix in {".md", ".toml", ".txt"})


def modules(*roots: str) -> list[Path]:
    return [path for root in roots for path in sorted((ROOT / root).rglob("*.py"))]


def pure_modules() -> list[Path]:
    """The modules and packages that the contract on purity names."""
    [contract] = [contract for contract in CONTRACTS if contract["name"].startswith("pure modules")]
    edges = {ignored.split(" -> ")[0] for ignored in contract["ignore_imports"]}
    found = []
    for name in contract["source_modules"]:
        path = ROOT.joinpath(*name.split("."))
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return [path for path in found if _module_name(path) not in edges]


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def impurities(source: str) -> list[str]:
    """What a pure module may not do although it needs no import that a contract could forbid."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module="common.clock", names=names):
                found += [f"imports {alias.name}" for alias in names if alias.name == "monotonic_ns"]
            case ast.Attribute(attr="monotonic_ns"):
                found.append("reads the clock")
            case ast.Call(func=ast.Name(id="open" | "print" | "input" | "__import__" as name)):
                found.append(f"calls {name}")
            case ast.Call(func=ast.Attribute(attr="read_text" | "read_bytes" | "write_text" | "write_bytes" as name)):
                found.append(f"calls {name}")
    return found


def sleeps(source: str) -> list[int]:
    """Lines that wait for time to pass instead of for something to happen."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep", "asyncio.sleep"}
    ]


@pytest.mark.parametrize("path", pure_modules(), ids=_label)
def test_a_pure_module_reads_no_clock_and_touches_no_file(path: Path) -> None:
    assert impurities(path.read_text()) == []


@pytest.mark.parametrize("path", modules("tests"), ids=_label)
def test_a_test_never_sleeps(path: Path) -> None:
    assert sleeps(path.read_text()) == []


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=_label)
def test_a_module_is_one_room(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("folder", sorted({path.parent for path in modules(*PACKAGES)}), ids=_label)
def test_a_folder_says_what_is_in_it(folder: Path) -> None:
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


@pytest.mark.parametrize("path", list(texts()), ids=_label)
def test_no_file_names_a_package_host_or_a_path_of_somebodys_machine(path: Path) -> None:
    text = path.read_text()
    assert [match[0] for pattern in (PACKAGE_HOST, MACHINE_PATH) for match in pattern.finditer(text)] == []


def test_every_dependency_is_pinned_to_one_version() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {_normal(match[1]) for line in lines if (match := PIN.match(line))}
    assert len(pinned) == len(lines)
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["embedded"], *extras["dev"], *extras["docs"]]
    names = {_normal(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in wanted}
    assert names - pinned == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def scripts() -> list[Path]:
    """What people and CI call; a name with an underscore in front is for other scripts to source."""
    programs = (path for path in sorted((ROOT / "scripts").glob("[!_.]*")) if path.is_file())
    return [*programs, ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", scripts(), ids=_label)
def test_a_script_can_be_run_and_stops_at_the_first_error(script: Path) -> None:
    first, _, rest = script.read_text().partition("\n")
    assert os.access(script, os.X_OK)
    assert "\nset -euo pipefail\n" in rest or "python" in first


def test_the_rules_can_be_broken() -> None:
    assert impurities("from common.clock import MonotonicNs, monotonic_ns") == ["imports monotonic_ns"]
    assert impurities("from common import clock\nclock.monotonic_ns()") == ["reads the clock"]
    assert impurities("open('x')\nprint(path.read_text())") == ["calls open", "calls print", "calls read_text"]
    assert sleeps("import time\n\ntime.sleep(1)") == [3]
    assert PACKAGE_HOST.search("https://" + "py" + "pi.example") is not None
    assert MACHINE_PATH.search('open("' + "/ho" + 'me/me/x")') is not None
    assert PIN.match("redis>=8") is None
    assert pure_modules()


@pytest.mark.parametrize("path", modules("coordinator"), ids=_label)
def test_text_for_people_is_made_where_control_characters_are_escaped(path: Path) -> None:
    if path.name == "styles.py":
        return
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    made = [call.lineno for call in calls if isinstance(call, ast.Name) and call.id == "Text"]
    assert not made, f"{_label(path)}:{made[0]}: expected as_text of coordinator.report.printing"

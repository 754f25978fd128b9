"""House rules that neither the linter nor the import contracts of pyproject.toml can express."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
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
    """Every hand-written text file."""
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


def offenders(paths: Iterable[Path], find: Callable[[str], T]) -> dict[str, T]:
    """What `find` finds in each file, without files in which it finds nothing."""
    found = {_label(path): find(path.read_text()) for path in paths}
    return {label: what for label, what in found.items() if what}


def impurities(source: str) -> list[str]:
    """Impure calls that need no import, so that no import contract can forbid them."""
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
    """Lines that wait for a time instead of an event."""
    tree = ast.parse(source if "sleep(" in source else "")
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep", "asyncio.sleep"}
    ]


def test_a_pure_module_reads_no_clock_and_touches_no_file() -> None:
    assert offenders(pure_modules(), impurities) == {}


def test_a_test_never_sleeps() -> None:
    assert offenders(modules("tests"), sleeps) == {}


def test_a_module_is_one_idea() -> None:
    assert offenders(modules(*PACKAGES), lambda source: len(source.splitlines()) > LONGEST_MODULE) == {}


def test_every_package_has_a_docstring() -> None:
    packages = {path.parent / "__init__.py" for path in modules(*PACKAGES)}
    assert offenders(packages, lambda source: not ast.get_docstring(ast.parse(source))) == {}


def test_no_file_names_a_package_host_or_a_path_of_a_machine() -> None:
    patterns = (PACKAGE_HOST, MACHINE_PATH)
    assert offenders(texts(), lambda text: [match[0] for each in patterns for match in each.finditer(text)]) == {}


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
    """Scripts that people and CI call. Names with a leading underscore are sourced by other scripts."""
    programs = (path for path in sorted((ROOT / "scripts").glob("[!_.]*")) if path.is_file())
    return [*programs, ROOT / ".ci" / "run"]


def test_a_script_can_be_run_and_stops_at_the_first_error() -> None:
    assert [_label(script) for script in scripts() if not os.access(script, os.X_OK)] == []
    assert offenders(scripts(), lambda text: not re.search(r"\A.*python|^set -euo pipefail$", text, re.M)) == {}


def test_the_rules_find_violations() -> None:
    assert impurities("from common.clock import MonotonicNs, monotonic_ns") == ["imports monotonic_ns"]
    assert impurities("from common import clock\nclock.monotonic_ns()") == ["reads the clock"]
    assert impurities("open('x')\nprint(path.read_text())") == ["calls open", "calls print", "calls read_text"]
    assert sleeps("import time\n\ntime.sleep(1)") == [3]
    assert PACKAGE_HOST.search("https://" + "py" + "pi.example") is not None
    assert MACHINE_PATH.search('open("' + "/ho" + 'me/me/x")') is not None
    assert PIN.match("redis>=8") is None
    assert pure_modules()
    assert is_tested_by("test_run_agent_loss", {"run"})
    assert not is_tested_by("test_runs", {"run"})


MIRRORED = (*PACKAGES, "scripts")
"""Folders whose tree tests/ repeats."""


def is_tested_by(test: str, names: set[str]) -> bool:
    """Whether a test file names one of these modules, packages or scripts: `test_run` and `test_run_agent_loss` name
    `run`."""
    parts = test.removeprefix("test_").split("_")
    return any("_".join(parts[:length]) in names for length in range(1, len(parts) + 1))


def test_a_test_file_names_what_it_tests_in_the_folder_that_it_mirrors() -> None:
    misplaced = []
    for path in (path for folder in MIRRORED for path in sorted((ROOT / "tests" / folder).rglob("test_*.py"))):
        mirrored = ROOT / path.parent.relative_to(ROOT / "tests")
        # `__init__` and `__main__` are tested by `test_init` and `test_main`, the script `_env` by `test_env`.
        if not is_tested_by(path.stem, {neighbour.stem.strip("_") for neighbour in mirrored.glob("*")}):
            misplaced.append(_label(path))
    assert misplaced == []


def unescaped(source: str) -> list[int]:
    """Lines that create a `Text`."""
    tree = ast.parse(source if "Text(" in source else "")
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call, ast.Name) and call.id == "Text"]


def test_text_for_people_is_made_by_as_text_which_escapes_control_characters() -> None:
    assert offenders((path for path in modules("coordinator") if path.name != "styles.py"), unescaped) == {}

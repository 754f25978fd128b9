"""Reads the files that a plan consists of, and parses YAML or JSON into raw lists and mappings.

Nothing else in the plan touches the file system. Errors name the line and column of what cannot be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from common.errors import PlanError
from common.file_reading import WAIT_S, read_bounded
from common.redaction import REDACTED
from common.units import show

LARGEST_BYTES = 1_000_000
_JSON_SUFFIX = ".json"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_RESOLVERS = {"tag:yaml.org,2002:bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")}


def read_small_file(path: Path, where: str, wanted: str) -> bytes:
    """The bytes of a file or a pipe. Raises PlanError in the form `{where}: expected {wanted}, got: {reason}`."""
    try:
        data = read_bounded(path, LARGEST_BYTES, WAIT_S)
    except OSError as error:
        raise PlanError(f"{where}: expected {wanted}, got: {error.strerror or error}") from error
    except ValueError as error:
        # The name contains NUL, or characters that the file system's encoding does not have.
        raise PlanError(f"{where}: expected {wanted}, got the impossible name {show(str(path))}") from error
    if len(data) > LARGEST_BYTES:
        raise PlanError(f"{where}: expected {wanted}, got more than {LARGEST_BYTES} bytes")
    return data


class _DuplicateKeyError(yaml.MarkedYAMLError):
    """A mapping has the same key twice. The message names the key."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with three changes: a duplicate key is an error; dates stay text; only `true` and `false` are
    booleans, as in YAML 1.2, because plans use the word `off`."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and its form are PyYAML's
        first: [(tag, _RESOLVERS.get(tag, pattern)) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise _DuplicateKeyError(
                    problem=f"the key {_shown_key(key.value)} comes twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def parse_plan_text(data: bytes, name: str) -> Any:
    """Raw content from the bytes of a file called `name`. Raises PlanError with line and column."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PlanError(f"{name}: expected UTF-8 text, got byte 0x{data[error.start]:02x} at {error.start}") from error
    if not text.strip():
        raise PlanError(f"{name}: expected a plan, got an empty file")
    try:
        raw = _parse_json(text, name) if name.lower().endswith(_JSON_SUFFIX) else _parse_yaml(text, name)
    except RecursionError as error:
        raise PlanError(f"{name}: expected a plan, got lists or mappings nested too deeply") from error
    if raw is None:
        raise PlanError(f"{name}: expected a plan, got nothing but comments")
    return raw


def _parse_yaml(text: str, name: str) -> Any:
    try:
        # Safe: the loader is a SafeLoader.
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = " ".join((error.problem or error.context or "no reason given").split())
        problem = problem if isinstance(error, _DuplicateKeyError) else _unquoted(problem)
        raise PlanError(f"{name}{where}: expected YAML, got: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PlanError(
            f"{name}:{line}: expected YAML text, got the control character {int(error.character):#04x}"
        ) from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # A tag does not fit its value. PyYAML's message would quote the value, which may be a secret.
        raise PlanError(f"{name}: expected values that fit their YAML tags, got one that does not") from error


_QUOTED = re.compile(r"""(["'])(?!.\1(?!\w)).*\1""", re.DOTALL)


def _unquoted(problem: str) -> str:
    """PyYAML's message with `***` for quoted text, which may be a piece of a password. A single quoted character
    stays."""
    hidden = _QUOTED.sub(REDACTED, problem)
    return f"{hidden}; put text that begins with * & ! or % in quotes" if hidden != problem else hidden


def _parse_json(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise PlanError(f"{name}:{error.lineno}:{error.colno}: expected JSON, got: {error.msg}") from error
    except ValueError as error:
        raise PlanError(f"{name}: expected JSON, got: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"the key {_shown_key(key)} comes twice")
        mapping[key] = value
    return mapping


def _shown_key(key: str) -> str:
    """A key as a message names it. Text that does not look like a key may be a piece of a password."""
    return show(key) if re.fullmatch(r"[a-z_]+", key) else show(REDACTED)


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant}, which JSON does not have")

"""Joins commands that a plan file gives as lists of arguments into lines of text, as the schema expects them.

    command: SET __key__ '{"a": 1}'          split as redis-cli splits a line
    command: [SET, __key__, '{"a": 1}']      not split: arguments are literal, except for placeholders

An argument of a list is text, or bytes (`!!binary`) without placeholders.
"""

from __future__ import annotations

from typing import Any

from common.commands.splitting import bytes_word, join_words
from common.plan.key_path import KeyPath
from common.plan.validation import Fault
from common.units import show


class _NotTextError(Exception):
    """An argument is neither text nor bytes."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.problem)
        self.fault = fault


def join_lists_of_plan(raw: Any) -> tuple[Any, Fault | None]:
    """As `join_command_lists`, for every workload of a raw plan."""
    if not isinstance(raw, dict):
        return raw, None
    fault = None
    if "workload" in raw:
        workload, fault = join_command_lists(raw["workload"])
        raw = {**raw, "workload": workload}
    if isinstance(raw.get("scenarios"), list):
        scenarios, of_scenarios = join_lists_of_scenarios(raw["scenarios"])
        raw, fault = {**raw, "scenarios": scenarios}, fault or of_scenarios
    return raw, fault


def join_lists_of_scenarios(raw: list[Any]) -> tuple[list[Any], Fault | None]:
    """As `join_command_lists`, for the workload of every scenario of a list."""
    joined, first = list(raw), None
    for number, scenario in enumerate(raw):
        if isinstance(scenario, dict) and "workload" in scenario:
            workload, fault = join_command_lists(scenario["workload"], ("scenarios", number, "workload"))
            joined[number] = {**scenario, "workload": workload}
            first = first or fault
    return joined, first


def join_command_lists(workload: Any, path: KeyPath = ("workload",)) -> tuple[Any, Fault | None]:
    """(the raw workload with a line for each list of arguments, the first argument that is not text).

    Other faults stay in the workload, and `find_fault` reports them."""
    if not isinstance(workload, dict):
        return workload, None
    try:
        return {key: _section(value, key, (*path, key)) for key, value in workload.items()}, None
    except _NotTextError as error:
        return workload, error.fault


def _section(value: Any, key: Any, path: KeyPath) -> Any:
    if not isinstance(value, list):
        return value
    if key == "setup":
        return [_line(item, (*path, number)) for number, item in enumerate(value)]
    if key in ("commands", "preload", "then"):
        return [_entry(item, (*path, number)) for number, item in enumerate(value)]
    return value


def _entry(entry: Any, path: KeyPath) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {
        key: _line(value, (*path, key)) if key == "command" else _section(value, key, (*path, key))
        for key, value in entry.items()
    }


def _line(value: Any, path: KeyPath) -> Any:
    if not isinstance(value, list) or not value:
        return value
    words = [_word(argument, (*path, number)) for number, argument in enumerate(value)]
    return join_words(words)


def _word(argument: Any, path: KeyPath) -> str:
    if isinstance(argument, bytes):
        return bytes_word(argument)
    if isinstance(argument, str):
        return argument
    remedy = "put it in quotes" if isinstance(argument, int | float) else "an argument is text"
    raise _NotTextError(Fault(path, f"expected text, got {show(argument)}; {remedy}"))

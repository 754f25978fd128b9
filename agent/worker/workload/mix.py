"""The command mix of a plan, compiled once per process. All workers of the process draw from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.worker.metrics.wire_sizes import fixed_reply_bytes
from agent.worker.workload.arguments import ArgumentContext, DeferredArgument
from agent.worker.workload.keys import Keyspace
from agent.worker.workload.values import ValueGenerator
from common.commands import KEY_PLACEHOLDERS, Placeholder, Template
from common.errors import PlanError
from common.plan.planned_commands import keys_of, planned_commands, script_digests
from common.plan.schema import Keys, When, Workload
from common.plan.value_sizes import largest_value, mean_value_bytes

_MADE_AHEAD = 64
"""How many operations a worker makes together. Fewer would be slower: redis-py's data would replace ours in the CPU
cache more often. More would delay other threads."""
_MADE_AHEAD_BYTES = 1 << 20

_DEFERRED = (Placeholder.CURSOR, Placeholder.IDS)


@dataclass(frozen=True, slots=True)
class MixCommand:
    """One entry of the mix. row: index into `CommandMix.names`. then: (row, when, template) of each command that
    follows its reply."""

    row: int
    weight: float
    template: Template
    keys: Keys
    keyspace: Keyspace
    then: list[tuple[int, When, Template]]

    @property
    def has_deferred(self) -> bool:
        """Whether its arguments are complete only just before it is issued."""
        return self.template.count(*_DEFERRED) > 0


class CommandMix:
    """Commands with their weights, and for each row of the report its label (`names`) and its template (`templates`).

    Commands with the same label share a row. Commands of weight 0 are never drawn and have no row. per_hash_tag: see
    `keys_per_hash_tag`.
    """

    def __init__(self, workload: Workload, seed: int, per_hash_tag: int = 0) -> None:
        rows: dict[str, int] = {}
        templates: dict[str, Template] = {}
        commands: dict[int, MixCommand] = {}
        for planned in planned_commands(workload):
            row = rows.setdefault(planned.label, len(rows))
            templates.setdefault(planned.label, planned.template)
            if planned.when is not None:
                commands[planned.entry].then.append((row, planned.when, planned.template))
                continue
            keys = keys_of(workload, planned.command)
            keyspace = Keyspace(keys.prefix, int(keys.minimum), int(keys.maximum), per_hash_tag)
            weight = float(planned.command.weight)
            commands[planned.entry] = MixCommand(row, weight, planned.template, keys, keyspace, [])
        if not commands:
            raise PlanError("$.workload.commands: expected at least one command of a weight above 0, got none")
        self.commands = list(commands.values())
        self.names = tuple(rows)
        self.templates = tuple(templates.values())
        self.values = ValueGenerator(workload.values, seed)
        self.mean_value_bytes = mean_value_bytes(workload.values)
        self.ttl_s = (int(workload.expiry.minimum_s), int(workload.expiry.maximum_s))
        self.scripts = script_digests(workload)
        # Each worker keeps this many values in memory, so large values have a lower limit.
        self.made_ahead = max(1, min(_MADE_AHEAD, _MADE_AHEAD_BYTES // max(1, largest_value(workload.values))))
        """How many operations a worker makes together, if none depends on a reply."""
        self.depends_on_replies = any(command.has_deferred or command.then for command in self.commands)
        """Whether operations depend on earlier replies, so that none can be made ahead."""
        self.ignores_replies = not (self.depends_on_replies or self.values.verify)
        """Whether no reply needs to be examined."""
        self.key_positions = tuple(template.first_with(*KEY_PLACEHOLDERS) for template in self.templates)
        """By row, the index of the first key among the arguments; None without one."""
        self.fixed_reply_bytes = tuple(map(fixed_reply_bytes, self.templates))
        """By row, the size of every reply; None if sizes differ."""
        self.batch_in_one_slot = workload.transaction if per_hash_tag else 0
        """How many consecutive operations must share a hash tag; 0 if none must."""

    def context(
        self,
        command: MixCommand,
        thread: int,
        threads: int,
        deferred: Mapping[Placeholder, DeferredArgument] | None = None,
        choose_key: Callable[[bytes], bytes] | None = None,
    ) -> ArgumentContext:
        """What the arguments of one command are made from; see `ArgumentContext`."""
        return ArgumentContext(
            keyspace=command.keyspace,
            values=self.values,
            ttl_s=self.ttl_s,
            thread=thread,
            threads=threads,
            scripts=self.scripts,
            deferred=deferred or {},
            choose_key=choose_key,
        )

"""The workload of a plan, compiled once for a process, for all of its threads to draw from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.worker.metrics.wire_sizes import fixed_reply_bytes
from agent.worker.workload.arguments import Late, Supplies
from agent.worker.workload.keys import Keyspace
from agent.worker.workload.values import Values, longest_value
from common.commands import Placeholder, Template
from common.errors import PlanError
from common.plan.planned_commands import keys_of, plan_templates, planned_commands, script_digests
from common.plan.schema import Keys, When, Workload

_HANDFUL = 64
"""Operations made in one go. One by one, each would find the caches cold that redis-py has filled in between; many
more, and other threads would notice the pause."""
_HANDFUL_BYTES = 1 << 20

_LATE = (Placeholder.CURSOR, Placeholder.IDS)


@dataclass(frozen=True, slots=True)
class CompiledCommand:
    """One entry of the mix: its row, its weight, its template, its keys, and (row, when, template) of what follows."""

    row: int
    weight: float
    template: Template
    keys: Keys
    keyspace: Keyspace
    then: list[tuple[int, When, Template]]

    @property
    def is_late(self) -> bool:
        """Whether its arguments are complete only when it is about to be issued."""
        return self.template.count(*_LATE) > 0


class Mix:
    """Commands with their weights, and `names`, one a row.

    Commands of the same name share a row. Those of weight 0 are never drawn and have none. per_hash_tag: as
    `common.commands.keys_per_hash_tag` says.
    """

    def __init__(self, workload: Workload, seed: int, per_hash_tag: int = 0) -> None:
        rows: dict[str, int] = {}
        compiled: dict[int, CompiledCommand] = {}
        for planned in planned_commands(workload):
            row = rows.setdefault(planned.template.name, len(rows))
            if planned.when is not None:
                compiled[planned.entry].then.append((row, planned.when, planned.template))
                continue
            keys = keys_of(workload, planned.command)
            keyspace = Keyspace(keys.prefix, int(keys.minimum), int(keys.maximum), per_hash_tag)
            weight = float(planned.command.weight)
            compiled[planned.entry] = CompiledCommand(row, weight, planned.template, keys, keyspace, [])
        if not compiled:
            raise PlanError("$.workload.commands: expected at least one command of a weight above 0, got none")
        self.commands = list(compiled.values())
        self.names = tuple(rows)
        self.values = Values(workload.values, seed)
        self.ttl_s = (int(workload.expiry.minimum_s), int(workload.expiry.maximum_s))
        self.scripts = script_digests(workload)
        # Each thread holds so many values: few of them where they are large.
        self.handful = max(1, min(_HANDFUL, _HANDFUL_BYTES // max(1, longest_value(workload.values))))
        self.is_late = any(command.is_late or command.then for command in self.commands)
        """Whether operations depend on the replies before them, so that none can be made ahead."""
        self.is_plain = not (self.is_late or self.values.verify)
        """Whether no reply leads to anything."""
        self.fixed_reply_bytes = tuple(_fixed_reply_bytes(workload, name) for name in self.names)
        """By row, the size of each of its replies, where all are of the same."""
        self.batch_of_one_tag = workload.transaction if per_hash_tag else 0
        """How many operations at a time have to share a hash tag; 0 for none."""


def supplies_of(
    mix: Mix,
    command: CompiledCommand,
    thread: int,
    threads: int,
    late: Mapping[Placeholder, Late] | None = None,
    hold: Callable[[bytes], bytes] | None = None,
) -> Supplies:
    """What the arguments of one command of the mix are made from, for thread number `thread` of the fleet's `threads`.
    late, hold: see `Supplies`."""
    return Supplies(
        keyspace=command.keyspace,
        values=mix.values,
        ttl_s=mix.ttl_s,
        thread=thread,
        threads=threads,
        scripts=mix.scripts,
        late=late or {},
        hold=hold,
    )


def _fixed_reply_bytes(workload: Workload, name: str) -> int | None:
    sizes = {fixed_reply_bytes(template) for template in plan_templates(workload) if template.name == name}
    return sizes.pop() if len(sizes) == 1 else None

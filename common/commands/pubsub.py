"""Which commands publish, and which subscribe."""

from __future__ import annotations

from common.commands.planned import plan_templates
from common.commands.table import COMMANDS
from common.plan.schema.workload import Workload

SUBSCRIBING = frozenset(name for name, row in COMMANDS.items() if row.subscribes)
"""Commands that a worker issues on connections of its own, on which messages come."""

PUBLISHING = frozenset({"PUBLISH", "SPUBLISH"})
"""Commands that answer to how many subscribers their message went."""


def subscribes(workload: Workload) -> bool:
    """Whether its mix has subscribers. Raises what `find_command` does."""
    return any(template.name in SUBSCRIBING for template in plan_templates(workload))

"""What redis-py makes of a plan's settings, by pool group: for `coordinator plan`. Connects to nothing."""

from __future__ import annotations

from common.plan.schema import Plan
from common.redis_client import effective_client_settings


def client_settings(plan: Plan) -> dict[str, dict[str, str]]:
    """Name to value, by pool group; empty for an embedded server, of which no client can be made before it is up."""
    if not plan.target.url:
        return {}
    return {group.name: dict(effective_client_settings(plan.target, group)) for group in plan.pools}

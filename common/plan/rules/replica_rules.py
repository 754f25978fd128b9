"""Rules for reads from replicas, of targets that are not clusters."""

from __future__ import annotations

from collections.abc import Iterator

from common.errors import PlanError
from common.plan.key_path import KeyPath
from common.plan.planned_commands import is_behind_sentinels
from common.plan.schema import Plan, ReadFrom
from common.plan.schema.target_url import DEFAULT_PORT, Address, Host, TargetKind, parse_host_port, parse_redis_url
from common.units import show

_BEHIND_SENTINELS = (ReadFrom.PRIMARY, ReadFrom.REPLICAS)


def replicas_fit_target(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """Replicas are listed for a standalone server only, once each, and by addresses that parse."""
    target = plan.target
    if not target.replicas:
        return
    address = _address(plan)
    if target.embedded is not None or (
        address is not None and (address.kind is not TargetKind.STANDALONE or address.path is not None)
    ):
        yield (
            ("target", "replicas"),
            "expected only with a target of redis:// or rediss://; clusters and Sentinels list replicas themselves",
        )
        return
    seen = set(address.hosts) if address is not None else set[Host]()
    for number, text in enumerate(target.replicas):
        try:
            name, port = parse_host_port(text)
        except ValueError as error:
            wanted = 'expected HOST:PORT such as "10.0.0.2:6379"'
            yield ("target", "replicas", number), f"{wanted}, got {show(text)}: {error}"
            continue
        host = Host(name, DEFAULT_PORT if port is None else port)
        if host in seen:
            yield ("target", "replicas", number), f"expected each server once, and not the target's, got {show(text)}"
        seen.add(host)


def reads_fit_sentinels(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """Behind Sentinels, all replicas share one TCP pool, whose connections go to one replica after the other."""
    read_from = plan.target.cluster.read_from
    if is_behind_sentinels(plan.target) and read_from not in _BEHIND_SENTINELS:
        yield (
            ("target", "cluster", "read_from"),
            f"expected primary or replicas behind Sentinels, got {read_from.value}",
        )


def _address(plan: Plan) -> Address | None:
    try:
        return parse_redis_url(plan.target.url)
    except PlanError:
        return None


REPLICA_RULES = (replicas_fit_target, reads_fit_sentinels)

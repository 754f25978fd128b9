"""The two scenarios that measure visibility: one writes stamped values, the other one looks for them.

    writer      SET key(n), n = 1, 2, 3...   one connection, open loop at `rate`
    reader      GET key(n)                   one connection, open loop, one read per `poll`

One agent runs both, in two worker processes, so their clocks are the same. A value has a header with its number and the
time of writing (`common.pubsub_header`). The lag of a write is the time from before its SET to the reply of the first
GET that shows it, so it includes both round trips, and up to one `poll`.

The reader looks for all writes that are due and not seen yet in turn: while many writes are delayed, each is looked for
less often, in proportion. A write that is not seen within `timeout` counts as unseen, and so does one that failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

from common.errors import PlanError
from common.plan.schema import (
    Command,
    Expiry,
    Keys,
    Load,
    Pools,
    Scenario,
    StampRole,
    Stamps,
    Values,
    Visibility,
    Workload,
)
from common.plan.timeline import timeline
from common.pubsub_header import HEADER_BYTES
from common.units import NS_PER_S, Bytes, Count, PerSecond, Seconds, listed, show

WRITES, READS = "visibility-write", "visibility-read"
KEY_PREFIX = "stampede:visibility:"
FIRST_KEY = 1_000_000
KEYS = 1_000_000
"""Key numbers, all of the same length: workers replace the number of a drawn key."""
MOST_PENDING = 10_000
"""Most writes that may be looked for at a time: rate x timeout."""
LEAST_POLL_S = 0.0001
_LAST_WRITES_S = 1.0
"""The writer ends this long before the reader (or a tenth of the load before), so that its last writes are found."""
_LEAST_EXPIRY_S = 60


def keys_per_worker(stamps: Stamps) -> int:
    """How many keys a writer uses in turn: none is written again while it is looked for."""
    return 2 * ceil(stamps.rate_per_s * stamps.timeout_s) + 2


def visibility_faults(wanted: Visibility, targets: Sequence[str], *, per_agent: bool) -> Iterator[tuple[str, str]]:
    """(key, problem) of each fault. targets: the names that the plan has."""
    for key, name in (("write", wanted.write), ("read", wanted.read)):
        if name and name not in targets:
            known = f"one of {listed(list(targets))}" if targets else "a target under $.targets, which has none"
            yield key, f"expected {known}, got {show(name)}"
    for key, seconds in (("poll", wanted.poll_s), ("timeout", wanted.timeout_s)):
        if seconds <= 0:
            yield key, "expected a time above zero, got 0s"
    if 0 < wanted.poll_s < LEAST_POLL_S:
        yield "poll", f"expected at least {Seconds(LEAST_POLL_S)}, because one connection reads, got {wanted.poll_s}"
    if 0 < wanted.timeout_s <= wanted.poll_s:
        yield "timeout", f"expected more than poll, {wanted.poll_s}, got {wanted.timeout_s}"
    if (pending := wanted.rate_per_s * wanted.timeout_s) > MOST_PENDING:
        yield "rate", f"expected at most {MOST_PENDING:,} values within the timeout, got {pending:,.0f}"
    if per_agent:
        yield "read", "expected no --per-agent, because one agent writes and reads"


def visibility_scenarios(wanted: Visibility, load: Load) -> tuple[Scenario, Scenario]:
    """The scenarios that write and read beside this load. Raises PlanError, without a place, for a load that ends with
    its requests."""
    line = timeline(load)
    if line.end_ns is None and not load.runs_until_stopped:
        raise PlanError(f"expected a load with a duration or stages, got {load.requests} requests")
    measured_s = 0.0 if line.end_ns is None else (line.end_ns - load.warmup_s.ns) / NS_PER_S
    written_s = measured_s - min(_LAST_WRITES_S, measured_s / 10)
    return (
        _scenario(WRITES, wanted, load, StampRole.WRITE, PerSecond(wanted.rate_per_s), written_s),
        _scenario(READS, wanted, load, StampRole.READ, PerSecond(1 / wanted.poll_s), measured_s),
    )


def _scenario(
    name: str, wanted: Visibility, load: Load, role: StampRole, rate_per_s: PerSecond, measured_s: float
) -> Scenario:
    live_s = Seconds(max(_LEAST_EXPIRY_S, ceil(4 * wanted.timeout_s)) if role is StampRole.WRITE else 0)
    workload = Workload(
        commands=(Command(command="SET" if role is StampRole.WRITE else "GET"),),
        keys=Keys(prefix=KEY_PREFIX, minimum=Count(FIRST_KEY), maximum=Count(FIRST_KEY + KEYS - 1)),
        values=Values(minimum_bytes=Bytes(HEADER_BYTES), maximum_bytes=Bytes(HEADER_BYTES)),
        expiry=Expiry(minimum_s=live_s, maximum_s=live_s),
        stamps=Stamps(role=role, rate_per_s=wanted.rate_per_s, timeout_s=wanted.timeout_s),
    )
    return Scenario(
        name=name,
        target=wanted.write if role is StampRole.WRITE else wanted.read,
        pools=(Pools(name=role.value, client_pools=1, max_connections=1),),
        workload=workload,
        load=Load(duration_s=Seconds(measured_s), warmup_s=load.warmup_s, rate_per_s=rate_per_s),
    )

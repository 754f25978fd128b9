"""Rules that types cannot express: whether the parts of a plan agree with each other.

Each rule is a function that yields its faults. RULES has them in the order in which a reader would check a plan.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator

import msgspec

from common.errors import PlanError
from common.plan.key_path import DescribeSource, KeyPath, in_plan
from common.plan.planned_commands import is_cluster
from common.plan.rules.pubsub_rules import PUBSUB_RULES
from common.plan.rules.replica_rules import REPLICA_RULES
from common.plan.rules.setup_rules import SETUP_RULES
from common.plan.rules.wire_rules import WIRE_RULES
from common.plan.rules.workload_rules import WORKLOAD_RULES
from common.plan.schema import Arrivals, Driver, Maintenance, Plan, Pools, Ramp, Retry, Section, StampRole, TcpPool
from common.plan.schema.address_map import AddressMap
from common.plan.schema.target_url import Address, TargetKind, parse_redis_url
from common.plan.timeline import MAX_STAGES, WARMUP, timeline
from common.plan.visibility import MOST_PENDING
from common.units import Seconds, show

MAX_POOLS = 100_000
MAX_THREADS = 1_000_000
MAX_INSTANCES = 1_000_000
MAX_AGENTS = 10_000
MAX_PROCESSES = 1000
MAX_BATCH = 100_000
"""Most commands in a pipeline or transaction. All of them, and then all replies, are in memory at once."""
MIN_SERVER_STATS_S = 0.02
"""More samples would be a load of their own."""
MIN_LEASE_S = 2.0

Finding = tuple[KeyPath, str]
Rule = Callable[[Plan], Iterator[Finding]]


class Purpose(enum.Enum):
    """Why a plan is loaded: to run it, to examine its target, or only to show it, which needs no target."""

    RUN = "run"
    TARGET = "target"
    VIEW = "view"


def check_plan(plan: Plan, where: DescribeSource = in_plan, purpose: Purpose = Purpose.RUN) -> None:
    """Raises PlanError for the first fault of a plan, with the place of the faulty value."""
    for rule in (*_PURPOSE_RULES[purpose], *RULES):
        for path, problem in rule(plan):
            raise PlanError(f"{where(path)}: {problem}")


def check_plan_limits(plan: Plan, where: DescribeSource) -> None:
    """Raises PlanError if all scenarios together have more of something than a plan may have."""
    pools = tuple(group for scenario in plan.scenarios for group in scenario.pools)
    for _, problem in _pools_are_within_limits(msgspec.structs.replace(plan, pools=pools)):
        raise PlanError(f"{where(('scenarios',))}: {problem}")


def _target_is_given(plan: Plan) -> Iterator[Finding]:
    if not plan.target.is_given:
        yield ("target", "url"), "expected a target, got none; use --url redis://HOST:PORT or --embedded-server"


def _target_is_one_server(plan: Plan) -> Iterator[Finding]:
    target = plan.target
    if target.embedded is not None and target.url:
        yield ("target", "embedded"), "expected either a url or an embedded server, got both"
    if target.embedded is not None and (target.password is not None or target.username is not None):
        yield ("target", "embedded"), "expected no user name and no password for an embedded server, which has neither"


def _times_are_above_zero(plan: Plan) -> Iterator[Finding]:
    times: list[tuple[KeyPath, Seconds | None]] = [
        (("target", "connect_timeout"), plan.target.connect_timeout_s),
        (("target", "socket_timeout"), plan.target.socket_timeout_s),
        *((("load", "stages", i, "duration"), stage.duration_s) for i, stage in enumerate(plan.load.stages)),
        (("fleet", "wait"), plan.fleet.wait_s),
        (("fleet", "prepare"), plan.fleet.prepare_s),
        *((("pools", i, "checkout_timeout"), group.checkout_timeout_s) for i, group in enumerate(plan.pools)),
        *((("pools", i, "tcp_pool_wait"), group.tcp_pool_wait_s) for i, group in enumerate(plan.pools)),
    ]
    for path, seconds in times:
        if seconds is not None and seconds <= 0:
            yield path, "expected a time above zero, got 0s"
    if 0 < plan.target.server_stats_s < MIN_SERVER_STATS_S:
        shortest = Seconds(MIN_SERVER_STATS_S)
        yield ("target", "server_stats"), f"expected at least {shortest}, or off, got {plan.target.server_stats_s}"
    if plan.target.track_hot_keys and not plan.target.server_stats_s:
        yield (
            ("target", "track_hot_keys"),
            "expected server_stats as well, which reads the hot keys, got server_stats off",
        )
    if plan.fleet.lease_s < MIN_LEASE_S:
        yield (
            ("fleet", "lease"),
            f"expected at least 2s, because heartbeats come every second, got {plan.fleet.lease_s}",
        )


def _sections_fit_target(plan: Plan) -> Iterator[Finding]:
    """Settings of TLS, Sentinels, clusters and announced addresses need a target of that kind."""
    target = plan.target
    address = _address(plan)
    if address is None and target.embedded is None:
        return
    kind = address.kind.value if address else target.embedded.value if target.embedded else ""
    sections: list[tuple[str, Section, bool, str]] = [
        ("tls", target.tls, address is not None and address.tls, "rediss"),
        ("sentinel", target.sentinel, kind == TargetKind.SENTINEL.value, "redis+sentinel"),
        ("cluster", target.cluster, kind == TargetKind.CLUSTER.value, "redis+cluster"),
    ]
    reads_elsewhere = kind == TargetKind.SENTINEL.value or bool(target.replicas)
    for name, section, fits, scheme in sections:
        for key in () if fits else _changed_keys(section):
            others = ""
            if key == "read_from":
                if reads_elsewhere:
                    continue
                others = " or redis+sentinel://, or with replicas"
            yield ("target", name, key), f"expected only with a target of {scheme}://{others}, got {_target_text(plan)}"
    for announced, reached in target.address_remap.items():
        path = ("target", "address_remap", announced)
        if kind not in (TargetKind.SENTINEL.value, TargetKind.CLUSTER.value):
            wanted = "expected only with a target of redis+cluster:// or redis+sentinel://, which announce addresses"
            yield path, f"{wanted}, got {_target_text(plan)}"
        try:
            AddressMap({announced: reached})
        except ValueError as error:
            yield path, str(error)
    if target.tls.key_file is not None and target.tls.cert_file is None:
        yield (
            ("target", "tls", "key_file"),
            "expected the certificate of this key as well, got none; use --tls-cert-file",
        )
    if target.maintenance is Maintenance.ON and target.protocol < 3:
        yield ("target", "maintenance"), f"expected protocol 3, which notifications need, got {target.protocol}"
    if target.maintenance is Maintenance.ON and address is not None and address.path is not None:
        yield (
            ("target", "maintenance"),
            "expected off or auto with a unix socket, where redis-py has no notifications, got on",
        )
    if target.maintenance is Maintenance.OFF:
        for name in ("relaxed_timeout", "endpoint_type"):
            if name in _changed_keys(target):
                yield ("target", name), "expected maintenance on or auto, got off; use --maintenance auto"


def _tcp_pools_exist(plan: Plan) -> Iterator[Finding]:
    for number, group in enumerate(plan.pools):
        if group.driver is Driver.ASYNCIO and group.tcp_pool is TcpPool.BLOCKING and is_cluster(plan.target):
            yield (
                ("pools", number, "tcp_pool"),
                "expected raising, the only TCP pools that redis.asyncio has for a cluster's nodes, got blocking",
            )


def _address(plan: Plan) -> Address | None:
    try:
        return parse_redis_url(plan.target.url) if plan.target.url else None
    except PlanError:
        # `resolve_secrets` parses the URL again and reports the fault.
        return None


def _changed_keys(section: Section) -> Iterator[str]:
    """Keys of a section that do not have their default."""
    for field in msgspec.structs.fields(section):
        if getattr(section, field.name) != field.default:
            yield field.encode_name


def _target_text(plan: Plan) -> str:
    target = plan.target
    if target.embedded is not None:
        return f"an embedded {target.embedded.value}"
    address = _address(plan)
    return f"{address.scheme}://" if address else "no url"


def _keepalive_is_whole_seconds(plan: Plan) -> Iterator[Finding]:
    keepalive = plan.target.keepalive
    for key, seconds in (("idle", keepalive.idle_s), ("interval", keepalive.interval_s)):
        if seconds < 1 or not float(seconds).is_integer():
            path = ("target", "keepalive", key)
            yield path, f"expected whole seconds, 1s or more, because socket options have no fractions, got {seconds}"


def _pool_names_are_distinct(plan: Plan) -> Iterator[Finding]:
    names = [group.name for group in plan.pools]
    for number, name in enumerate(names):
        if name in names[:number]:
            yield ("pools", number, "name"), f"expected a unique name, got {show(name)} a second time"


def _pools_are_within_limits(plan: Plan) -> Iterator[Finding]:
    pools = threads = instances = 0
    for number, group in enumerate(plan.pools):
        pools += group.client_pools or 1
        threads += (group.client_pools or 1) * group.workers_per_pool
        instances += (group.client_pools or 1) * group.client_instances_per_pool
        if pools > MAX_POOLS:
            yield ("pools", number, "client_pools"), f"expected at most {MAX_POOLS} pools in all, got {pools}"
        if threads > MAX_THREADS:
            yield (
                ("pools", number, _WORKER_KEYS[group.driver]),
                f"expected at most {MAX_THREADS} worker threads and tasks in all, got {threads}",
            )
        if instances > MAX_INSTANCES:
            yield (
                ("pools", number, "client_instances_per_pool"),
                f"expected at most {MAX_INSTANCES} client instances in all, got {instances}",
            )


def _fleet_is_within_limits(plan: Plan) -> Iterator[Finding]:
    fleet = plan.fleet
    agents = fleet.expect_agents + fleet.local_agents
    if agents > MAX_AGENTS:
        culprit = "local_agents" if fleet.local_agents > MAX_AGENTS else "expect_agents"
        yield ("fleet", culprit), f"expected at most {MAX_AGENTS} agents in all, got {agents}"
    processes = fleet.processes_per_local_agent or 1
    if processes > MAX_PROCESSES:
        yield ("fleet", "processes_per_local_agent"), f"expected at most {MAX_PROCESSES} processes, got {processes}"


def _agents_suffice(plan: Plan) -> Iterator[Finding]:
    fleet = plan.fleet
    agents = fleet.expect_agents + fleet.local_agents
    if fleet.at_least is None:
        return
    if not agents:
        yield ("fleet", "at_least"), "expected agents, got none; set --expect-agents or --local-agents"
    elif fleet.at_least > agents:
        both = f" ({fleet.expect_agents} expected and {fleet.local_agents} local)" if fleet.local_agents else ""
        yield ("fleet", "at_least"), f"expected at most the number of agents, {agents}{both}, got {fleet.at_least}"


_WORKER_KEYS = {Driver.CLIENT: "threads_per_pool", Driver.ASYNCIO: "tasks_per_pool"}
_WORKERS_EXPECTED = {
    Driver.CLIENT: "threads_per_pool, the workers of the client driver",
    Driver.ASYNCIO: "tasks_per_pool, the workers of the asyncio driver",
    Driver.WIRE: "max_connections: the wire driver has one worker for all connections of a pool",
}


def _workers_fit_driver(plan: Plan) -> Iterator[Finding]:
    for number, group in enumerate(plan.pools):
        for driver, key in _WORKER_KEYS.items():
            if driver is not group.driver and (count := getattr(group, key)) != getattr(Pools(), key):
                yield (
                    ("pools", number, key),
                    f"expected {_WORKERS_EXPECTED[group.driver]}, got {key} {count}",
                )


def _backoff_ascends(plan: Plan) -> Iterator[Finding]:
    retry = plan.target.retry
    if retry.base_s > retry.cap_s:
        # If `base` has its default, the fault is in `cap`.
        culprit = "cap" if retry.base_s == Retry().base_s else "base"
        yield ("target", "retry", culprit), f"expected base <= cap, got {retry.base_s} and {retry.cap_s}"


def _batches_are_of_one_kind(plan: Plan) -> Iterator[Finding]:
    workload = plan.workload
    for key in ("pipeline", "transaction"):
        if (size := getattr(workload, key)) > MAX_BATCH:
            yield ("workload", key), f"expected at most {MAX_BATCH} commands per round trip, got {size}"
    if workload.transaction and workload.pipeline > 1:
        yield (
            ("workload", "transaction"),
            f"expected either a pipeline or a transaction, got pipeline {workload.pipeline} and transaction "
            f"{workload.transaction}; a transaction is one round trip already",
        )


def _load_is_consistent(plan: Plan) -> Iterator[Finding]:
    load = plan.load
    if load.duration_s is not None and load.requests is not None:
        yield ("load", "requests"), f"expected either a duration or requests, got {load.duration_s} and {load.requests}"
    if load.requests == 0:
        yield ("load", "requests"), "expected at least 1 request, got 0"
    if load.arrivals is Arrivals.POISSON and not any(leg.is_open for leg in timeline(load).legs):
        yield ("load", "arrivals"), "expected a rate for poisson arrivals, got none; use --rate 1000/s"


def _stages_are_consistent(plan: Plan) -> Iterator[Finding]:
    load = plan.load
    if len(load.stages) > MAX_STAGES:
        yield ("load", "stages"), f"expected at most {MAX_STAGES} stages, got {len(load.stages)}"
    replaced = {"duration": load.duration_s, "requests": load.requests, "rate": load.rate_per_s}
    for key, value in replaced.items():
        if load.stages and value is not None:
            yield ("load", key), f"expected either {key} or stages, got {key} {value} and stages"
    names = {WARMUP} if load.warmup_s > 0 else set[str]()
    for number, stage in enumerate(load.stages):
        path = ("load", "stages", number)
        if stage.ramp is Ramp.LINEAR and stage.rate_per_s is None:
            yield (*path, "ramp"), "expected a rate at the end of the linear ramp, got none"
        if stage.name in names:
            yield (*path, "name"), f"expected a unique name, got {show(stage.name)} a second time"
        names |= {stage.name} if stage.name else set()


def _load_has_a_length(plan: Plan) -> Iterator[Finding]:
    # A plan from files and flags has one by now; an agent also checks the plans that coordinators send.
    if plan.load.duration_s is None and plan.load.requests is None and not plan.load.stages:
        yield ("load",), "expected a duration or requests, got neither; use --duration 30s or --requests 100000"


def _target_is_no_embedded_server(plan: Plan) -> Iterator[Finding]:
    if plan.target.embedded is not None:
        yield (
            ("target", "embedded"),
            "expected the url of a target, got an embedded server, which only a run has",
        )


def _stamps_fit(plan: Plan) -> Iterator[Finding]:
    workload, stamps = plan.workload, plan.workload.stamps
    if stamps is None:
        return
    command = "SET" if stamps.role is StampRole.WRITE else "GET"
    if [each.command for each in workload.commands] != [command] or workload.commands[0].then:
        yield ("workload", "stamps"), f"expected only the command {command} beside stamps"
    if any(group.driver is not Driver.CLIENT for group in plan.pools):
        yield ("workload", "stamps"), "expected the client driver, the only one with stamps"
    if workload.pipeline > 1 or workload.transaction:
        yield ("workload", "stamps"), "expected one command per round trip"
    if stamps.rate_per_s * stamps.timeout_s > MOST_PENDING or stamps.timeout_s <= 0:
        yield ("workload", "stamps"), f"expected a timeout in which at most {MOST_PENDING:,} stamps are written"


RULES: tuple[Rule, ...] = (
    _target_is_one_server,
    _sections_fit_target,
    *REPLICA_RULES,
    _pool_names_are_distinct,
    _pools_are_within_limits,
    _fleet_is_within_limits,
    _agents_suffice,
    _workers_fit_driver,
    _tcp_pools_exist,
    *WORKLOAD_RULES,
    *SETUP_RULES,
    _backoff_ascends,
    _batches_are_of_one_kind,
    _stamps_fit,
    *WIRE_RULES,
    *PUBSUB_RULES,
    _stages_are_consistent,
    _times_are_above_zero,
    _keepalive_is_whole_seconds,
    _load_is_consistent,
)

_PURPOSE_RULES: dict[Purpose, tuple[Rule, ...]] = {
    Purpose.RUN: (_target_is_given, _load_has_a_length),
    Purpose.TARGET: (_target_is_given, _target_is_no_embedded_server),
    Purpose.VIEW: (),
}

"""Everything of a plan that a flag or a variable of the environment can say: one table of data.

The command line makes its options from it, `STAMPEDE_...` variables take their names from it, and both become leaves
of the plan by way of it. `*` in a path is every pool group of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from common.commands.splitting import as_text
from common.errors import PlanError
from common.plan.address_map import parse_address_map
from common.plan.key_path import KeyPath
from common.plan.setting import (
    Fallback,
    Leaves,
    Said,
    Setting,
    parse_errors,
    parse_ratio,
    parse_size_list,
    parse_size_range,
    parse_stage,
    parse_switch,
    parse_time_range,
    parse_weight,
)
from common.units import Bytes, Seconds

COMMANDS: KeyPath = ("workload", "commands")
SMALLEST: KeyPath = ("workload", "values", "minimum")
LARGEST: KeyPath = ("workload", "values", "maximum")
SOONEST: KeyPath = ("workload", "expiry", "minimum")
LATEST: KeyPath = ("workload", "expiry", "maximum")

_POOLS = "Pools (given here, they hold for every pool group of the plan)"
_TARGET, _CLIENT, _MIX, _DATA, _LOAD, _FLEET = "Target", "Client", "Workload", "Keys and values", "Load", "Fleet"

PROFILE = Setting(
    group=_MIX, flag="--profile", path="workload.profile", metavar="NAME|FILE",
    help='built-in workload ("coordinator profiles" lists them), or a YAML file of your own  [default: basic_rw]',
)  # fmt: skip
COMMAND = Setting(
    group=_MIX, flag="--command", metavar="TEMPLATE", repeatable=True, parser=as_text,
    spread=lambda templates: {COMMANDS: [{"command": template} for template in templates]},
    help='a command of the mix, such as GET or "SET __key__ __data__"; may be repeated',
)  # fmt: skip
COMMAND_RATIO = Setting(
    group=_MIX, flag="--command-ratio", metavar="WEIGHT", repeatable=True, parser=parse_weight, spread=lambda _: {},
    help="weight of the --command at the same position; 1 each if never given",
)  # fmt: skip
RATIO = Setting(
    group=_MIX, flag="--ratio", metavar="SET:GET", parser=parse_ratio, help="a mix of SET and GET in these proportions",
    spread=lambda ratio: {
        COMMANDS: [{"command": name, "weight": weight} for name, weight in zip(("SET", "GET"), ratio, strict=True)]
    },
)  # fmt: skip
DATA_SIZE = Setting(
    group=_DATA, flag="--data-size", aliases=("-d",), metavar="SIZE", parser=Bytes.parse,
    spread=lambda size: {SMALLEST: size, LARGEST: size},
    help="size of every value, such as 100 or 1KiB  [default: 32B]",
)  # fmt: skip
DATA_SIZE_RANGE = Setting(
    group=_DATA, flag="--data-size-range", metavar="MIN-MAX", parser=parse_size_range,
    spread=lambda sizes: {SMALLEST: sizes[0], LARGEST: sizes[1]},
    help="sizes drawn uniformly, both ends included",
)  # fmt: skip
DATA_SIZE_LIST = Setting(
    group=_DATA, flag="--data-size-list", metavar="SIZE:WEIGHT,...", parser=parse_size_list,
    spread=lambda sizes: {("workload", "values", "sizes"): sizes}, help="sizes drawn by weight from this list",
)  # fmt: skip
EXPIRY = Setting(
    group=_DATA, flag="--expiry", metavar="TIME", parser=Seconds.parse,
    spread=lambda time: {SOONEST: time, LATEST: time},
    help="time to live that SET gives its keys, in whole seconds; __ttl__ in templates",
)  # fmt: skip
EXPIRY_RANGE = Setting(
    group=_DATA, flag="--expiry-range", metavar="MIN-MAX", parser=parse_time_range,
    spread=lambda times: {SOONEST: times[0], LATEST: times[1]}, help="times to live drawn uniformly",
)  # fmt: skip
SETUP = Setting(
    group=_MIX, flag="--setup", metavar="TEMPLATE", repeatable=True, parser=as_text,
    spread=lambda templates: {("workload", "setup"): list(templates)},
    help="a command to issue before the run, for each key of the range if it names __key__; may be repeated",
)  # fmt: skip
PRELOAD = Setting(
    group=_MIX, flag="--preload", metavar="[on|off]", alone="on", parser=parse_switch,
    spread=lambda wanted: {("workload", "preload"): Fallback([{"command": "SET"}]) if wanted else []},
    help="before the run, fill each key once, by SET where neither plan nor profile says otherwise; off: do not",
)  # fmt: skip
STAGE = Setting(
    group=_LOAD, flag="--stage", metavar="[NAME=]TIME[@RATE[:linear]]", repeatable=True, parser=parse_stage,
    spread=lambda stages: {("load", "stages"): list(stages)},
    help='a stage of the load, such as "30s@10k/s" or "1m@50k/s:linear"; may be repeated',
)  # fmt: skip
ADDRESS_REMAP = Setting(
    group=_TARGET, flag="--address-remap", metavar="FROM=TO", repeatable=True, parser=parse_address_map,
    spread=lambda maps: {("target", "address_remap", key): to for rules in maps for key, to in rules.items()},
    help="reach the server that a cluster or Sentinel announces as FROM at TO; each HOST:PORT or HOST; may be repeated",
)  # fmt: skip
URL = Setting(
    group=_TARGET, flag="--url", aliases=("-u",), path="target.url", metavar="URL",
    help="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
)  # fmt: skip
PASSWORD = Setting(
    group=_TARGET, path="target.password", variable_name="STAMPEDE_PASSWORD", help="the password itself: never a flag"
)
SENTINEL_PASSWORD = Setting(
    group=_TARGET, path="target.sentinel.password", variable_name="STAMPEDE_SENTINEL_PASSWORD",
    help="the password that the Sentinels want: never a flag",
)  # fmt: skip

SETTINGS: tuple[Setting, ...] = (
    URL,
    ADDRESS_REMAP,
    Setting(group=_TARGET, flag="--embedded-server", path="target.embedded", metavar="[standalone|cluster|sentinel]",
            alone="standalone", help="start Valkey servers of our own on loopback and load them"),
    Setting(group=_TARGET, flag="--username", path="target.username", metavar="NAME", help="ACL user"),
    Setting(group=_TARGET, flag="--password-env", path="target.password_env", metavar="NAME",
            help="environment variable that holds the password"),
    Setting(group=_TARGET, flag="--password-file", path="target.password_file", metavar="FILE",
            help="file that holds the password, on one line"),
    PASSWORD,
    Setting(group=_TARGET, flag="--tls-ca-file", path="target.tls.ca_file", metavar="FILE",
            help="PEM file of the authorities to trust; the machine's own without it"),
    Setting(group=_TARGET, flag="--tls-cert-file", path="target.tls.cert_file", metavar="FILE",
            help="PEM file of our own certificate"),
    Setting(group=_TARGET, flag="--tls-key-file", path="target.tls.key_file", metavar="FILE",
            help="PEM file of its key, if that is not in the same file"),
    Setting(group=_TARGET, flag="--tls-server-name", path="target.tls.server_name", metavar="NAME",
            help="name to ask for (SNI) and to expect in the server's certificate, instead of the URL's host"),
    Setting(group=_TARGET, flag="--tls-verify", path="target.tls.verify", metavar="full|ca|none",
            help="check the server's certificate for signer and name, for its signer, or not at all"),
    Setting(group=_TARGET, flag="--sentinel-username", path="target.sentinel.username", metavar="NAME",
            help="ACL user of the Sentinels"),
    Setting(group=_TARGET, flag="--sentinel-password-env", path="target.sentinel.password_env", metavar="NAME",
            help="environment variable that holds the Sentinels' password"),
    Setting(group=_TARGET, flag="--sentinel-password-file", path="target.sentinel.password_file", metavar="FILE",
            help="file that holds the Sentinels' password"),
    SENTINEL_PASSWORD,
    Setting(group=_POOLS, flag="--client-pools", aliases=("--client-instances",), path="pools.*.client_pools",
            help="client instance pools, fleet-wide  [default: one per agent process]"),
    Setting(group=_POOLS, flag="--client-instances-per-pool", aliases=("--connections-per-client",),
            path="pools.*.client_instances_per_pool", help="redis.Redis instances in each pool"),
    Setting(group=_POOLS, flag="--threads-per-pool", aliases=("--threads-per-client",),
            path="pools.*.threads_per_pool", help="worker threads of each pool"),
    Setting(group=_POOLS, flag="--tasks-per-pool", path="pools.*.tasks_per_pool",
            help="worker tasks of each pool, with --driver asyncio"),
    Setting(group=_POOLS, flag="--max-connections", path="pools.*.max_connections",
            help="TCP connections of each redis.Redis"),
    Setting(group=_POOLS, flag="--driver", path="pools.*.driver", metavar="client|asyncio|wire",
            help="redis-py with threads, redis.asyncio with tasks, or RESP at wire speed over redis-py's connections"),
    Setting(group=_POOLS, flag="--connections", path="pools.*.connections", metavar="lazy|prewarm",
            help="open connections as calls need them, or all of them before the start"),
    Setting(group=_POOLS, flag="--checkout-timeout", path="pools.*.checkout_timeout", metavar="TIME",
            help="longest wait of a thread for a client instance"),
    Setting(group=_POOLS, flag="--tcp-pool", path="pools.*.tcp_pool", metavar="raising|blocking",
            help="what a TCP pool does when all its connections are in use"),
    Setting(group=_POOLS, flag="--tcp-pool-wait", path="pools.*.tcp_pool_wait", metavar="TIME",
            help="longest wait of a blocking TCP pool"),
    Setting(group=_CLIENT, flag="--protocol", path="target.protocol", metavar="2|3",
            help="RESP version; 2 for servers and proxies without HELLO"),
    Setting(group=_CLIENT, flag="--client-name", path="target.client_name", metavar="NAME", takes_empty=True,
            help='name that CLIENT LIST shows; "" sends no CLIENT command, for proxies without it'),
    Setting(group=_CLIENT, flag="--connect-timeout", path="target.connect_timeout", metavar="TIME",
            help="longest wait for a TCP connection"),
    Setting(group=_CLIENT, flag="--socket-timeout", path="target.socket_timeout", metavar="TIME",
            help="longest wait for a reply"),
    Setting(group=_CLIENT, flag="--retries", path="target.retry.retries", help="how often a failed call is repeated"),
    Setting(group=_CLIENT, flag="--retry-backoff", path="target.retry.backoff", metavar="KIND",
            help="none, constant, exponential, full-jitter, equal-jitter or decorrelated-jitter"),
    Setting(group=_CLIENT, flag="--retry-base", path="target.retry.base", metavar="TIME", help="first backoff"),
    Setting(group=_CLIENT, flag="--retry-cap", path="target.retry.cap", metavar="TIME", help="longest backoff"),
    Setting(group=_CLIENT, flag="--retry-on", path="target.retry.errors", metavar="ERROR,...", parser=parse_errors,
            help="errors of redis-py to try again on"),
    Setting(group=_CLIENT, flag="--keepalive", path="target.keepalive.enabled", metavar="on|off", help="TCP keepalive"),
    Setting(group=_CLIENT, flag="--keepalive-idle", path="target.keepalive.idle", metavar="TIME",
            help="silence before the first keepalive probe"),
    Setting(group=_CLIENT, flag="--keepalive-interval", path="target.keepalive.interval", metavar="TIME",
            help="time between two probes"),
    Setting(group=_CLIENT, flag="--keepalive-count", path="target.keepalive.count",
            help="probes in vain that end a connection"),
    Setting(group=_CLIENT, flag="--health-check-interval", path="target.health_check_interval", metavar="TIME",
            help="PING a connection that was idle for longer before it is used; 0 for never"),
    Setting(group=_CLIENT, flag="--maintenance", path="target.maintenance", metavar="off|on|auto",
            help="maintenance notifications: off, wanted, or taken where the server has them"),
    Setting(group=_CLIENT, flag="--read-from", path="target.cluster.read_from",
            metavar="primary|any|replicas|random|random-replica", help="nodes of a cluster that answer reads"),
    Setting(group=_CLIENT, flag="--reinitialize-steps", path="target.cluster.reinitialize_steps",
            help="redirections after which a cluster's topology is read anew; 0 for never"),
    Setting(group=_CLIENT, flag="--require-full-coverage", path="target.cluster.require_full_coverage", is_switch=True,
            help="refuse a cluster that does not serve every slot"),
    Setting(group=_CLIENT, flag="--dynamic-startup-nodes", path="target.cluster.dynamic_startup_nodes",
            metavar="on|off", help="forget the URL's nodes of a cluster once others are known"),
    PROFILE,
    COMMAND,
    COMMAND_RATIO,
    RATIO,
    Setting(group=_MIX, flag="--pipeline", path="workload.pipeline", help="commands per round trip"),
    Setting(group=_MIX, flag="--transaction", path="workload.transaction", help="commands per MULTI/EXEC; 0 for none"),
    SETUP,
    PRELOAD,
    Setting(group=_MIX, flag="--channels-per-thread", path="workload.pubsub.channels_per_thread",
            help="subscriptions that each worker thread holds at a time"),
    Setting(group=_MIX, flag="--pubsub-grace", path="workload.pubsub.grace", metavar="TIME",
            help="how long messages under way are waited for at the end"),
    Setting(group=_MIX, flag="--flush-before", path="workload.flush_before", is_switch=True,
            help="empty the target before the run; needs --yes-flush too"),
    Setting(group=_MIX, flag="--clean-up", path="workload.clean_up", metavar="none|keys",
            help="after the run, delete every key of the plan's prefixes and ranges"),
    DATA_SIZE,
    DATA_SIZE_RANGE,
    DATA_SIZE_LIST,
    Setting(group=_DATA, flag="--data-size-file", path="workload.values.sizes_file", metavar="FILE",
            help="sizes drawn from this file's lines of SIZE WEIGHT"),
    Setting(group=_DATA, flag="--data-kind", path="workload.values.kind", metavar="binary|text|json",
            help="what values are made of: any bytes, letters and digits, or a JSON document (at least 8 bytes)"),
    Setting(group=_DATA, flag="--data-compressible", path="workload.values.compressible", metavar="SHARE",
            help="share of each value that a compressor can take away"),
    Setting(group=_DATA, flag="--data-verify", path="workload.values.verify", is_switch=True,
            help="values carry their key and a checksum, which is looked at when they are read"),
    EXPIRY,
    EXPIRY_RANGE,
    Setting(group=_DATA, flag="--key-prefix", path="workload.keys.prefix", metavar="TEXT", help="what keys begin with"),
    Setting(group=_DATA, flag="--key-minimum", path="workload.keys.minimum", help="smallest key number"),
    Setting(group=_DATA, flag="--key-maximum", path="workload.keys.maximum", help="largest key number, included"),
    Setting(group=_DATA, flag="--key-distribution", path="workload.keys.distribution", metavar="KIND",
            help="uniform, sequential, parallel, gaussian, zipfian, latest or hotspot"),
    Setting(group=_DATA, flag="--key-zipf-exp", path="workload.keys.exponent", metavar="X",
            help="exponent of zipfian and latest"),
    Setting(group=_DATA, flag="--key-median", path="workload.keys.median",
            help="centre of gaussian  [default: middle of the range]"),
    Setting(group=_DATA, flag="--key-stddev", path="workload.keys.deviation", metavar="X",
            help="standard deviation of gaussian  [default: a sixth of the range]"),
    Setting(group=_DATA, flag="--hot-keys", path="workload.keys.hot_keys", metavar="SHARE",
            help="share of the keys that are hot, of hotspot"),
    Setting(group=_DATA, flag="--hot-operations", path="workload.keys.hot_operations", metavar="SHARE",
            help="share of the draws that fall on them"),
    Setting(group=_DATA, flag="--keys-per-hash-tag", path="workload.keys.per_hash_tag",
            help="consecutive key numbers that share a slot of a cluster; 0 for none  [default: as the plan needs]"),
    Setting(group=_LOAD, flag="--duration", aliases=("--test-time",), path="load.duration", metavar="TIME",
            help="how long, such as 30s or 2m"),
    Setting(group=_LOAD, flag="--requests", aliases=("-n",), path="load.requests",
            help="how many operations, fleet-wide and exact"),
    Setting(group=_LOAD, flag="--rate", path="load.rate", metavar="RATE",
            help="open loop at this rate of the whole fleet, such as 50k/s; closed loop without it"),
    Setting(group=_LOAD, flag="--arrivals", path="load.arrivals", metavar="constant|poisson",
            help="how the intended send times of an open loop are spaced"),
    Setting(group=_LOAD, flag="--warmup", path="load.warmup", metavar="TIME",
            help="before the rest, at the same load, and not reported"),
    STAGE,
    Setting(group=_LOAD, flag="--seed", path="seed", help="the same seed draws the same keys"),
    Setting(group=_FLEET, flag="--expect-agents", path="fleet.expect_agents", help="agents that join from elsewhere"),
    Setting(group=_FLEET, flag="--local-agents", path="fleet.local_agents", help="agents to start on this machine"),
    Setting(group=_FLEET, flag="--processes", path="fleet.processes_per_local_agent",
            help="worker processes of each local agent  [default: one per usable core]"),
    Setting(group=_FLEET, flag="--per-agent", path="fleet.per_agent", is_switch=True,
            help="pools, rate and requests are each agent's instead of the fleet's"),
    Setting(group=_FLEET, flag="--at-least", path="fleet.at_least",
            help="start with this many agents if not all have joined within --wait  [default: all]"),
    Setting(group=_FLEET, flag="--on-agent-loss", path="fleet.on_agent_loss", metavar="continue|abort|replace",
            help="when an agent is lost: continue without it, stop the run, or have a standby take its share over"),
    Setting(group=_FLEET, flag="--tolerate-lost", path="fleet.tolerate_lost",
            help="agents that may be lost before the run fails, or aborts with --on-agent-loss abort"),
    Setting(group=_FLEET, flag="--wait", path="fleet.wait", metavar="TIME", help="longest wait for agents to join"),
    Setting(group=_FLEET, flag="--prepare", path="fleet.prepare", metavar="TIME",
            help="longest that an agent may prepare without progress"),
    Setting(group=_FLEET, flag="--lease", path="fleet.lease", metavar="TIME",
            help="an agent that hears nothing for so long drains"),
    Setting(group=_FLEET, flag="--drain", path="fleet.drain", metavar="TIME",
            help="longest wait for operations in flight at the end"),
)  # fmt: skip


def leaves(said: Said, name: Callable[[Setting], str]) -> tuple[Leaves, dict[KeyPath, str]]:
    """What settings say, as leaves of a plan, and by which name each leaf was said.

    Raises PlanError where two of them contradict each other.
    """
    values: Leaves = {}
    names: dict[KeyPath, str] = {}
    for setting, value in said.items():
        for path, leaf in setting.leaves(value).items():
            if path in values:
                raise PlanError(f"{name(setting)}: expected one of {names[path]} and {name(setting)}, got both")
            values[path] = leaf
            names[path] = name(setting)
    if COMMAND_RATIO in said:
        values[COMMANDS] = _weighted(values.get(COMMANDS) if COMMAND in said else (), said[COMMAND_RATIO], name)
    return values, names


def _weighted(commands: Any, weights: Sequence[float], name: Callable[[Setting], str]) -> list[dict[str, Any]]:
    if len(weights) != len(commands or ()):
        raise PlanError(
            f"{name(COMMAND_RATIO)}: expected one for each {name(COMMAND)} or none, "
            f"got {len(weights)} for {len(commands or ())}"
        )
    return [{**command, "weight": weight} for command, weight in zip(commands, weights, strict=True)]

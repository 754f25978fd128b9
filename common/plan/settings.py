"""Everything of a plan that a flag or a variable of the environment can say: one table of data.

The command line makes its options from it, `STAMPEDE_...` variables take their names from it, and both become leaves
of the plan by way of it. `*` in a path is every pool group of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import PlanError
from common.plan.shape import Path, default_at, parse_path, parse_text
from common.units import Bytes, show

ENVIRONMENT_PREFIX = "STAMPEDE_"

COMMANDS: Path = ("workload", "commands")
SMALLEST: Path = ("workload", "values", "minimum")
LARGEST: Path = ("workload", "values", "maximum")

Leaves = dict[Path, Any]
Said = Mapping["Setting", Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One row. path: the plan key that takes the value, "" where `parser` and `spread` say it instead.

    flag "": a variable only. alone: the value that the flag means when it stands without one. repeatable: may be given
    several times, in order.
    """

    group: str
    flag: str = ""
    aliases: tuple[str, ...] = ()
    path: str = ""
    metavar: str = "N"
    help: str
    alone: str | None = None
    is_switch: bool = False
    repeatable: bool = False
    parser: Callable[[str], Any] | None = None
    spread: Callable[[Any], Leaves] | None = None
    variable_name: str = ""

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return self.variable_name or ENVIRONMENT_PREFIX + self.flag.removeprefix("--").replace("-", "_").upper()

    def parse(self, text: str) -> Any:
        """The raw value that a plan file would hold. Raises ValueError that says what was found and expected."""
        return self.parser(text) if self.parser else parse_text(text, parse_path(self.path))

    def leaves(self, value: Any) -> Leaves:
        """A parsed value as leaves of the plan."""
        return self.spread(value) if self.spread else {parse_path(self.path): value}

    @property
    def default(self) -> Any:
        """The plan's own default, as the typed value; None where there is none."""
        return default_at(parse_path(self.path)) if self.path else None


def parse_ratio(text: str) -> tuple[float, float]:
    """`"1:10"` -> (1.0, 10.0): memtier's SET:GET. Raises ValueError."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ValueError(f'expected SET:GET such as "1:10", got {show(text)}')
    return float(parts[0]), float(parts[1])


def parse_size_range(text: str) -> tuple[Bytes, Bytes]:
    """`"32-1KiB"` -> (32, 1024). Raises ValueError."""
    low, dash, high = text.partition("-")
    if not dash:
        raise ValueError(f'expected MIN-MAX such as "32-1KiB", got {show(text)}')
    return Bytes.parse(low), Bytes.parse(high)


def _parse_weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < 1e18:
        raise ValueError(f"expected a weight >= 0, got {show(text)}")
    return weight


_POOLS = "Pools (given here, they hold for every pool group of the plan)"
_TARGET, _CLIENT, _MIX, _DATA, _LOAD, _FLEET = "Target", "Client", "Workload", "Keys and values", "Load", "Fleet"

PROFILE = Setting(
    group=_MIX, flag="--profile", path="workload.profile", metavar="NAME|FILE",
    help='built-in workload ("coordinator profiles" lists them), or a YAML file of your own  [default: basic_rw]',
)  # fmt: skip
COMMAND = Setting(
    group=_MIX, flag="--command", metavar="TEMPLATE", repeatable=True, parser=str,
    spread=lambda templates: {COMMANDS: [{"command": template} for template in templates]},
    help='a command of the mix, such as GET or "SET __key__ __data__"; may be repeated',
)  # fmt: skip
COMMAND_RATIO = Setting(
    group=_MIX, flag="--command-ratio", metavar="WEIGHT", repeatable=True, parser=_parse_weight, spread=lambda _: {},
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
PASSWORD = Setting(
    group=_TARGET, path="target.password", variable_name="STAMPEDE_PASSWORD", help="the password itself: never a flag"
)

SETTINGS: tuple[Setting, ...] = (
    Setting(group=_TARGET, flag="--url", aliases=("-u",), path="target.url", metavar="URL",
            help="redis://[username[:password]@]host[:port][/db]"),
    Setting(group=_TARGET, flag="--embedded-server", path="target.embedded", metavar="[standalone]", alone="standalone",
            help="start a Valkey server of our own on loopback and load that"),
    Setting(group=_TARGET, flag="--username", path="target.username", metavar="NAME", help="ACL user"),
    Setting(group=_TARGET, flag="--password-env", path="target.password_env", metavar="NAME",
            help="environment variable that holds the password"),
    Setting(group=_TARGET, flag="--password-file", path="target.password_file", metavar="FILE",
            help="file that holds the password, on one line"),
    PASSWORD,
    Setting(group=_POOLS, flag="--client-pools", aliases=("--client-instances",), path="pools.*.client_pools",
            help="client instance pools, fleet-wide  [default: one per agent process]"),
    Setting(group=_POOLS, flag="--client-instances-per-pool", aliases=("--connections-per-client",),
            path="pools.*.client_instances_per_pool", help="redis.Redis instances in each pool"),
    Setting(group=_POOLS, flag="--threads-per-pool", aliases=("--threads-per-client",),
            path="pools.*.threads_per_pool", help="worker threads of each pool"),
    Setting(group=_POOLS, flag="--max-connections", path="pools.*.max_connections",
            help="TCP connections of each redis.Redis"),
    Setting(group=_POOLS, flag="--driver", path="pools.*.driver", metavar="client", help="how operations are issued"),
    Setting(group=_POOLS, flag="--connections", path="pools.*.connections", metavar="lazy|prewarm",
            help="open connections as calls need them, or all of them before the start"),
    Setting(group=_POOLS, flag="--checkout-timeout", path="pools.*.checkout_timeout", metavar="TIME",
            help="longest wait of a thread for a client instance"),
    Setting(group=_CLIENT, flag="--protocol", path="target.protocol", metavar="2|3", help="RESP version"),
    Setting(group=_CLIENT, flag="--client-name", path="target.client_name", metavar="NAME",
            help="name that CLIENT LIST shows"),
    Setting(group=_CLIENT, flag="--connect-timeout", path="target.connect_timeout", metavar="TIME",
            help="longest wait for a TCP connection"),
    Setting(group=_CLIENT, flag="--socket-timeout", path="target.socket_timeout", metavar="TIME",
            help="longest wait for a reply"),
    Setting(group=_CLIENT, flag="--retries", path="target.retry.retries", help="how often a failed call is repeated"),
    Setting(group=_CLIENT, flag="--retry-backoff", path="target.retry.backoff", metavar="KIND",
            help="none, constant, exponential, full-jitter, equal-jitter or decorrelated-jitter"),
    Setting(group=_CLIENT, flag="--retry-base", path="target.retry.base", metavar="TIME", help="first backoff"),
    Setting(group=_CLIENT, flag="--retry-cap", path="target.retry.cap", metavar="TIME", help="longest backoff"),
    PROFILE,
    COMMAND,
    COMMAND_RATIO,
    RATIO,
    Setting(group=_MIX, flag="--pipeline", path="workload.pipeline", help="commands per round trip"),
    Setting(group=_MIX, flag="--transaction", path="workload.transaction", help="commands per MULTI/EXEC; 0 for none"),
    DATA_SIZE,
    DATA_SIZE_RANGE,
    Setting(group=_DATA, flag="--key-prefix", path="workload.keys.prefix", metavar="TEXT", help="what keys begin with"),
    Setting(group=_DATA, flag="--key-minimum", path="workload.keys.minimum", help="smallest key number"),
    Setting(group=_DATA, flag="--key-maximum", path="workload.keys.maximum", help="largest key number, included"),
    Setting(group=_LOAD, flag="--duration", aliases=("--test-time",), path="load.duration", metavar="TIME",
            help="how long, such as 30s or 2m"),
    Setting(group=_LOAD, flag="--requests", aliases=("-n",), path="load.requests",
            help="how many operations, fleet-wide and exact"),
    Setting(group=_LOAD, flag="--rate", path="load.rate", metavar="RATE",
            help="open loop at this rate of the whole fleet, such as 50k/s; closed loop without it"),
    Setting(group=_LOAD, flag="--arrivals", path="load.arrivals", metavar="constant|poisson",
            help="how the intended send times of an open loop are spaced"),
    Setting(group=_LOAD, flag="--seed", path="seed", help="the same seed draws the same keys"),
    Setting(group=_FLEET, flag="--expect-agents", path="fleet.expect_agents", help="agents that join from elsewhere"),
    Setting(group=_FLEET, flag="--local-agents", path="fleet.local_agents", help="agents to start on this machine"),
    Setting(group=_FLEET, flag="--processes", path="fleet.processes_per_local_agent",
            help="worker processes of each local agent  [default: one per core]"),
    Setting(group=_FLEET, flag="--per-agent", path="fleet.per_agent", is_switch=True,
            help="pools, rate and requests are each agent's instead of the fleet's"),
    Setting(group=_FLEET, flag="--tolerate-lost", path="fleet.tolerate_lost",
            help="agents that may be lost before the run counts as failed"),
    Setting(group=_FLEET, flag="--wait", path="fleet.wait", metavar="TIME", help="longest wait for agents to join"),
    Setting(group=_FLEET, flag="--prepare", path="fleet.prepare", metavar="TIME",
            help="longest wait for agents to get ready"),
    Setting(group=_FLEET, flag="--lease", path="fleet.lease", metavar="TIME",
            help="an agent that hears nothing for so long drains"),
    Setting(group=_FLEET, flag="--drain", path="fleet.drain", metavar="TIME",
            help="longest wait for operations in flight at the end"),
)  # fmt: skip


def leaves(said: Said, name: Callable[[Setting], str]) -> tuple[Leaves, dict[Path, str]]:
    """What settings say, as leaves of a plan, and by which name each leaf was said.

    Raises PlanError where two of them contradict each other.
    """
    values: Leaves = {}
    names: dict[Path, str] = {}
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

"""Options of other load generators, and what they are called here.

`OTHER_OPTIONS` is a table: a command line with one of these options gets the answer of its row. The tutorials for
memtier_benchmark and redis-benchmark have tables of the same rows. `SAME_NAMES` are options that exist here too, with
another meaning: the command line accepts them, so only an answer to another option of the same tool names them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

MEMTIER = "memtier_benchmark"
REDIS = "redis-benchmark"
VALKEY = "valkey-benchmark"
LOCUST = "Locust"
YCSB = "YCSB"


@dataclass(frozen=True, slots=True)
class ForeignOption:
    """tool: whose option it is. names: its spellings; a property of YCSB is "-p NAME". here: what does the same here,
    or why nothing does. difference: what differs, "" for nothing."""

    tool: str
    names: tuple[str, ...]
    here: str
    difference: str = ""

    @property
    def answer(self) -> str:
        """The option here and the difference, in one line."""
        return f"{self.here}, {self.difference}" if self.difference else self.here


_STANDALONE = "--url redis://HOST:PORT"
_UNIX = "--url unix:///PATH"
_TLS = "--url rediss://HOST:PORT"
_CLUSTER = "--url redis+cluster://HOST:PORT"
_DATABASE = "--url redis://HOST:PORT/DB"
_PASSWORD = "the variable STAMPEDE_PASSWORD, or --password-file"
_NO_PASSWORD_FLAG = "because other users of the machine can read command lines"
_NO_COUNTERPART = "nothing does the same"
_CIPHERS = "OpenSSL's configuration"

OTHER_OPTIONS: tuple[ForeignOption, ...] = (
    # memtier_benchmark: connection
    ForeignOption(MEMTIER, ("-s", "--server", "--host", "-p", "--port"), _STANDALONE),
    ForeignOption(MEMTIER, ("-S", "--unix-socket"), _UNIX),
    ForeignOption(MEMTIER, ("--uri",), "--url"),
    ForeignOption(MEMTIER, ("-4", "--ipv4"), _STANDALONE, "with an IPv4 address as HOST"),
    ForeignOption(MEMTIER, ("-6", "--ipv6"), "--url redis://[ADDRESS]:PORT", "with an IPv6 address"),
    ForeignOption(MEMTIER, ("-P",), "--protocol 2|3", "RESP3 by default, and no memcached"),
    ForeignOption(MEMTIER, ("-a", "--authenticate"), f"--username, and {_PASSWORD}", _NO_PASSWORD_FLAG),
    ForeignOption(MEMTIER, ("--select-db",), _DATABASE),
    ForeignOption(MEMTIER, ("--tls",), _TLS),
    ForeignOption(MEMTIER, ("--cert",), "--tls-cert-file"),
    ForeignOption(MEMTIER, ("--key",), "--tls-key-file"),
    ForeignOption(MEMTIER, ("--cacert",), "--tls-ca-file"),
    ForeignOption(MEMTIER, ("--sni",), "--tls-server-name", "also the name that the certificate must have"),
    ForeignOption(MEMTIER, ("--tls-skip-verify",), "--tls-verify none"),
    ForeignOption(MEMTIER, ("--tls-protocols",), _CIPHERS),
    ForeignOption(MEMTIER, ("--cluster-mode",), _CLUSTER),
    ForeignOption(MEMTIER, ("--read-preference",), "--read-from"),
    ForeignOption(MEMTIER, ("--connection-timeout",), "--connect-timeout", "with a unit, such as 2s"),
    ForeignOption(MEMTIER, ("--reconnect-on-error",), "always", "with --retries and their backoff"),
    ForeignOption(MEMTIER, ("--max-reconnect-attempts",), "--retries", "3 by default"),
    ForeignOption(MEMTIER, ("--reconnect-backoff-factor", "--retry-backoff-factor"), "--retry-backoff KIND"),
    ForeignOption(MEMTIER, ("--retry-on-error", "--max-retries"), "--retries N", "3 by default; 0 shows every error"),
    ForeignOption(MEMTIER, ("--retry-backoff-ms",), "--retry-base", "with a unit, such as 8ms"),
    ForeignOption(MEMTIER, ("--max-retry-queue",), _NO_COUNTERPART, "because a worker waits for its retries"),
    ForeignOption(MEMTIER, ("--failed-keys-file",), "the errors in summary.json"),
    ForeignOption(MEMTIER, ("--reconnect-interval",), _NO_COUNTERPART),
    ForeignOption(
        MEMTIER,
        ("--thread-conn-start-min-jitter-micros", "--thread-conn-start-max-jitter-micros"),
        "--connections prewarm",
        "which opens all connections before the start",
    ),
    # memtier_benchmark: load
    ForeignOption(
        MEMTIER,
        ("-t", "--threads"),
        "--client-pools N",
        "with --driver wire: pools of the whole fleet, spread over its processes",
    ),
    ForeignOption(
        MEMTIER, ("-c", "--clients"), "--max-connections N", "with --driver wire: connections of each client pool"
    ),
    ForeignOption(MEMTIER, ("--rate-limiting",), "--rate", "for the whole fleet, not per connection"),
    ForeignOption(
        MEMTIER,
        ("--clients-start", "--clients-step", "--step-duration"),
        "--stage TIME@RATE",
        "repeated: the rate grows, not the number of connections",
    ),
    ForeignOption(MEMTIER, ("-x", "--run-count", "--print-all-runs"), "a loop in the shell", "one start is one run"),
    ForeignOption(MEMTIER, ("--multi-key-get",), '--command "MGET __keys(N)__"'),
    ForeignOption(MEMTIER, ("--wait-ratio", "--num-slaves", "--wait-timeout"), '--command "WAIT 1 100"'),
    ForeignOption(
        MEMTIER,
        ("--command-key-pattern",),
        "key_distribution of a command in a plan file",
        "or --key-distribution for all commands",
    ),
    ForeignOption(MEMTIER, ("--monitor-input", "--monitor-pattern"), _NO_COUNTERPART),
    ForeignOption(
        MEMTIER,
        ("--scan-incremental-iteration", "--scan-incremental-max-iterations"),
        '--command "SCAN 0"',
        "without following the cursor",
    ),
    # memtier_benchmark: keys and values
    ForeignOption(
        MEMTIER,
        ("--key-pattern",),
        "--key-distribution uniform|sequential|parallel|gaussian|zipfian",
        "one for all commands; a plan file can set one for each",
    ),
    ForeignOption(MEMTIER, ("--randomize", "--distinct-client-seed"), "--seed N", "each worker draws its own numbers"),
    ForeignOption(MEMTIER, ("-R", "--random-data"), "always", "--data-compressible makes part of each value constant"),
    ForeignOption(MEMTIER, ("--data-size-pattern",), "always random", "with --data-size-range"),
    ForeignOption(MEMTIER, ("--data-offset",), '--command "SETRANGE __key__ OFFSET __data__"'),
    ForeignOption(MEMTIER, ("--verify-only",), "--data-verify --ratio 0:1"),
    ForeignOption(MEMTIER, ("--data-import", "--generate-keys", "--no-expiry"), _NO_COUNTERPART),
    # memtier_benchmark: output
    ForeignOption(MEMTIER, ("--json-out-file",), "--json", "on stdout; the run folder has the same in summary.json"),
    ForeignOption(MEMTIER, ("-o", "--out-file"), "`coordinator report latest > FILE`", "after the run"),
    ForeignOption(MEMTIER, ("--client-stats",), "the pools in summary.json"),
    ForeignOption(MEMTIER, ("--hdr-file-prefix",), "the latencies in summary.json"),
    ForeignOption(MEMTIER, ("--show-config",), "`coordinator plan`"),
    ForeignOption(MEMTIER, ("-D", "--debug"), "`coordinator check`", "and the errors in summary.json"),
    ForeignOption(MEMTIER, ("--print-percentiles",), "--percentiles", "for tables, the live view and summary.json"),
    ForeignOption(MEMTIER, ("--command-stats-breakdown",), "always", "the report has a row for each command"),
    ForeignOption(
        MEMTIER,
        ("--statsd-host", "--statsd-port", "--statsd-prefix", "--statsd-run-label", "--graphite-port"),
        "timeseries.csv in the run folder",
        "a row per second",
    ),
    ForeignOption(MEMTIER, ("-v", "--version"), "`coordinator --version`"),
    # redis-benchmark
    ForeignOption(REDIS, ("-p",), _STANDALONE),
    ForeignOption(REDIS, ("-s",), _UNIX),
    ForeignOption(REDIS, ("-a",), _PASSWORD, _NO_PASSWORD_FLAG),
    ForeignOption(REDIS, ("--user",), "--username"),
    ForeignOption(REDIS, ("--dbnum",), _DATABASE),
    ForeignOption(REDIS, ("-3",), "--protocol 3", "the default"),
    ForeignOption(REDIS, ("--cluster",), _CLUSTER),
    ForeignOption(REDIS, ("-c",), "--max-connections N", "with --driver wire: connections of each client pool"),
    ForeignOption(REDIS, ("--threads",), "--client-pools N", "with --driver wire: one pool per process is the default"),
    ForeignOption(REDIS, ("-P",), "--pipeline"),
    ForeignOption(REDIS, ("-r",), "--key-maximum", "1M by default, because keys are always drawn at random"),
    ForeignOption(REDIS, ("-t",), "--command NAME", "repeated: commands form one mix, not one test after the other"),
    ForeignOption(REDIS, ("-l",), "--duration 0", "which runs until Ctrl-C"),
    ForeignOption(REDIS, ("-k",), _NO_COUNTERPART, "because connections stay open"),
    ForeignOption(REDIS, ("-I",), "--rate 1/s --connections prewarm", "which opens all connections first"),
    ForeignOption(REDIS, ("-x",), "--command with the argument in its template"),
    ForeignOption(REDIS, ("--csv",), "`coordinator report latest --format csv`", "after the run"),
    ForeignOption(REDIS, ("--precision",), "--json", "for all digits"),
    ForeignOption(REDIS, ("--enable-tracking",), _NO_COUNTERPART),
    ForeignOption(REDIS, ("--tls",), _TLS),
    ForeignOption(REDIS, ("--cert",), "--tls-cert-file"),
    ForeignOption(REDIS, ("--key",), "--tls-key-file"),
    ForeignOption(REDIS, ("--cacert",), "--tls-ca-file"),
    ForeignOption(REDIS, ("--cacertdir",), "--tls-ca-file", "one file instead of a directory"),
    ForeignOption(REDIS, ("--sni",), "--tls-server-name", "also the name that the certificate must have"),
    ForeignOption(REDIS, ("--tls-ciphers", "--tls-ciphersuites"), _CIPHERS),
    ForeignOption(VALKEY, ("--rps",), "--rate", "for the whole fleet"),
    ForeignOption(VALKEY, ("--rfr",), "--read-from replicas|any"),
    ForeignOption(VALKEY, ("--sequential",), "--key-distribution sequential"),
    # Locust
    ForeignOption(LOCUST, ("-H", "--host"), _STANDALONE),
    ForeignOption(LOCUST, ("--users",), "--threads-per-pool N", "a user is a worker thread of a pool"),
    ForeignOption(LOCUST, ("-r", "--spawn-rate"), "--stage TIME@RATE:linear", "a ramp of the rate"),
    ForeignOption(LOCUST, ("-t", "--run-time"), "--duration"),
    ForeignOption(LOCUST, ("-i", "--iterations"), "--requests", "a total of the fleet"),
    ForeignOption(LOCUST, ("-f", "--locustfile", "--config"), "a plan file as the argument", "without code"),
    ForeignOption(LOCUST, ("-s", "--stop-timeout"), "--drain"),
    ForeignOption(LOCUST, ("--expect-workers",), "--expect-agents"),
    ForeignOption(LOCUST, ("--expect-workers-max-wait",), "--wait"),
    ForeignOption(LOCUST, ("--master",), "--expect-agents N", "`coordinator start` is the master"),
    ForeignOption(LOCUST, ("--worker", "--master-host", "--master-port"), "`agent join HOST:5555`"),
    ForeignOption(LOCUST, ("--headless",), "always", "there is no web page"),
    ForeignOption(LOCUST, ("--csv",), "timeseries.csv and summary.json in the run folder", "always written"),
    # YCSB
    ForeignOption(YCSB, ("-threads",), "--threads-per-pool", "of each client pool"),
    ForeignOption(YCSB, ("-target",), "--rate", "an open loop of the whole fleet"),
    ForeignOption(YCSB, ("-P",), "--profile ycsb_a", "to ycsb_f, for workloada to workloadf"),
    ForeignOption(YCSB, ("-p recordcount",), "--key-maximum", "recordcount - 1, because keys are numbered from 0"),
    ForeignOption(YCSB, ("-p operationcount",), "--requests", "a total of the fleet"),
    ForeignOption(YCSB, ("-p maxexecutiontime",), "--duration", "with a unit, such as 60s"),
    ForeignOption(YCSB, ("-p requestdistribution",), "--key-distribution"),
    ForeignOption(YCSB, ("-p fieldlength",), "--data-size"),
    ForeignOption(YCSB, ("-p hotspotdatafraction",), "--hot-keys"),
    ForeignOption(YCSB, ("-p hotspotopnfraction",), "--hot-operations"),
    ForeignOption(YCSB, ("-p measurement.interval",), "always both", "with --rate"),
    ForeignOption(YCSB, ("-p redis.host", "-p redis.port"), _STANDALONE),
    ForeignOption(YCSB, ("-p redis.cluster",), _CLUSTER),
    ForeignOption(YCSB, ("-p redis.password",), _PASSWORD, _NO_PASSWORD_FLAG),
    ForeignOption(YCSB, ("-p redis.timeout",), "--socket-timeout and --connect-timeout"),
    ForeignOption(YCSB, ("-p status.interval",), "always", "every second"),
)

SAME_NAMES: tuple[ForeignOption, ...] = (
    ForeignOption(MEMTIER, ("-n", "--requests"), "the total of the fleet", "not per client"),
    ForeignOption(MEMTIER, ("--protocol",), "2 or 3", "without memcached"),
    ForeignOption(MEMTIER, ("--command-ratio",), "a probability", "not how often in a row"),
    ForeignOption(MEMTIER, ("--retry-on",), "a list of redis-py's errors", "not of error prefixes"),
    ForeignOption(REDIS, ("--insecure",), "for agents without a token", "--tls-verify none is for servers"),
    ForeignOption(LOCUST, ("-u",), "the target's URL", "--threads-per-pool N is for users"),
)
"""Options that exist here too, with what they mean here. An answer names them if the same command line has them."""

_BY_NAME: dict[str, list[ForeignOption]] = {}
for _row in OTHER_OPTIONS:
    for _name in _row.names:
        _BY_NAME.setdefault(_name, []).append(_row)


def answer_to(arguments: Sequence[str], refused: str) -> str:
    """Return a line on an option of another tool: what does the same here. "" for an option of none.

    arguments: the command line. refused: the option that was refused; of `-threads`, this may be `-t`.
    """
    name = next((name for name in _spellings(arguments, refused) if name in _BY_NAME), "")
    by_answer: dict[str, list[str]] = {}
    for row in _BY_NAME.get(name, []):
        by_answer.setdefault(row.answer, []).append(row.tool)
    if not by_answer:
        return ""
    several = len(by_answer) > 1
    each = [f"{answer} ({' and '.join(tools)})" if several else answer for answer, tools in by_answer.items()]
    tools = {tool for named in by_answer.values() for tool in named}
    each += _other_meanings(arguments, tools)
    return f"no '{name}' here: {'; '.join(each)}"


def _other_meanings(arguments: Sequence[str], tools: Collection[str]) -> list[str]:
    """Clauses on options of the same command line that the tools have with another meaning."""
    given = {argument.partition("=")[0] for argument in arguments}
    return [
        f"and '{name}' is {row.answer} ({row.tool})"
        for row in SAME_NAMES
        for name in row.names
        if row.tool in tools and name in given
    ]


def _spellings(arguments: Sequence[str], refused: str) -> list[str]:
    """What the user may have meant by the refused option, the most specific first."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith(refused):
            name = argument.partition("=")[0]
            found += [f"{name} {following.partition('=')[0]}", name]
    return [*found, refused]

"""Options of other load generators: each is answered, and each answer names options that exist."""

from __future__ import annotations

import re

import click
import pytest

from coordinator.cli import cli
from coordinator.foreign_options import OTHER_OPTIONS, SAME_NAMES, ForeignOption, answer_to


def options_of(command: str) -> set[str]:
    parameters = cli.commands[command].get_params(click.Context(cli.commands[command]))
    return {name for parameter in parameters for name in parameter.opts if name.startswith("-")}


START, PLAN = options_of("start"), options_of("plan")
OTHERS = {"--version", "--format"}
"""Options of other commands, which answers name too."""

MEMTIER_OPTIONS = """
-s --server --host -p --port -S --unix-socket -4 --ipv4 -6 --ipv6 -P --protocol -a --authenticate -u --uri --tls
--cert --key --cacert --tls-skip-verify --tls-protocols --sni -x --run-count -D --debug --cluster-mode -v --version -o
--out-file --json-out-file --client-stats --hdr-file-prefix --show-config --hide-histogram --print-percentiles
--print-all-runs --command-stats-breakdown --statsd-host --statsd-port --statsd-prefix --statsd-run-label
--graphite-port -n --requests --rate-limiting -c --clients -t --threads --test-time --clients-start --clients-step
--step-duration --ratio --pipeline --reconnect-interval --reconnect-on-error --max-reconnect-attempts
--reconnect-backoff-factor --connection-timeout --thread-conn-start-min-jitter-micros
--thread-conn-start-max-jitter-micros --multi-key-get --select-db --distinct-client-seed --randomize --command
--command-ratio --command-key-pattern --monitor-input --monitor-pattern --scan-incremental-iteration
--scan-incremental-max-iterations -d --data-size --data-offset -R --random-data --data-size-range --data-size-list
--data-size-pattern --expiry-range --data-import --data-verify --verify-only --generate-keys --no-expiry --key-prefix
--key-minimum --key-maximum --key-pattern --key-stddev --key-median --key-zipf-exp --wait-ratio --num-slaves
--wait-timeout --retry-on-error --max-retries --retry-backoff-ms --retry-backoff-factor --retry-on --max-retry-queue
--failed-keys-file
"""
REDIS_OPTIONS = """
-p -s -a --user -u -c -n -d --dbnum -3 --threads --cluster --enable-tracking -k -r -P -q --precision --csv -l -t -I -x
--tls --sni --cacert --cacertdir --insecure --cert --key --tls-ciphers --tls-ciphersuites --help
"""
"""Without `-h HOST`: `-h` prints our help."""


@pytest.mark.parametrize("name", dict.fromkeys([*MEMTIER_OPTIONS.split(), *REDIS_OPTIONS.split()]))
def test_every_option_of_memtier_and_redis_benchmark_is_ours_or_answered(name: str) -> None:
    assert name in START or answer_to([name], name).startswith(f"no '{name}' here: ")


def test_most_options_are_answered_by_the_table() -> None:
    assert len({name for row in OTHER_OPTIONS for name in row.names}) >= 100
    unknown = [name for name in MEMTIER_OPTIONS.split() if name not in START]
    assert len(unknown) >= 60
    assert all(answer_to([name], name) for name in unknown)


@pytest.mark.parametrize("row", [*OTHER_OPTIONS, *SAME_NAMES], ids=lambda row: f"{row.tool} {row.names[0]}")
def test_an_answer_names_only_options_that_exist(row: ForeignOption) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", row.answer))
    assert named <= START | OTHERS
    assert "\n" not in row.answer
    assert row.answer.isprintable()


def test_no_row_shadows_an_option_of_ours() -> None:
    assert not {name for row in OTHER_OPTIONS for name in row.names} & PLAN
    assert {name for row in SAME_NAMES for name in row.names} <= START


def test_a_tool_has_one_answer_for_each_option() -> None:
    names = [(row.tool, name) for row in OTHER_OPTIONS for name in row.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("arguments", "refused", "line"),
    [
        (["--rate-limiting=5"], "--rate-limiting", "--rate, for the whole fleet, not per connection"),
        (["--cluster-mode"], "--cluster-mode", "--url redis+cluster://HOST:PORT"),
        (["-c", "50"], "-c", "--max-connections N, with --driver wire: connections of each client pool"),
        (["-c50"], "-c", "--max-connections N, with --driver wire: connections of each client pool"),
        (["-l"], "-l", "--duration 0, which runs until Ctrl-C"),
        (["--host", "h"], "--host", "--url redis://HOST:PORT"),
    ],
)
def test_an_option_is_answered_with_ours_and_the_difference(arguments: list[str], refused: str, line: str) -> None:
    assert answer_to(arguments, refused) == f"no '{refused}' here: {line}"


def test_an_option_that_means_several_things_elsewhere_is_answered_for_each_tool() -> None:
    assert answer_to(["-P", "16"], "-P") == (
        "no '-P' here: --protocol 2|3, RESP3 by default, and no memcached (memtier_benchmark); --pipeline "
        "(redis-benchmark); --profile ycsb_a, to ycsb_f, for workloada to workloadf (YCSB)"
    )


@pytest.mark.parametrize(
    ("arguments", "refused", "name", "line"),
    [
        (["-threads", "8"], "-t", "-threads", "--threads-per-pool, of each client pool"),
        (["-target=2000"], "-t", "-target", "--rate, an open loop of the whole fleet"),
        (["-p", "operationcount=5"], "-p", "-p operationcount", "--requests, a total of the fleet"),
        (["-p", "6379"], "-p", "-p", "--url redis://HOST:PORT"),
    ],
)
def test_options_of_ycsb_are_recognised_by_their_whole_spelling(
    arguments: list[str], refused: str, name: str, line: str
) -> None:
    assert answer_to(arguments, refused) == f"no '{name}' here: {line}"


def test_an_answer_also_names_an_option_that_exists_with_another_meaning() -> None:
    line = answer_to(["-n", "1000", "--clients=5"], "--clients")
    assert line.endswith("; and '-n' is the total of the fleet, not per client (memtier_benchmark)")


def test_an_option_of_no_tool_has_no_answer() -> None:
    assert answer_to(["--thread-per-pool", "4"], "--thread-per-pool") == ""

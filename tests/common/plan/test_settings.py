from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from agent.cli import cli as agent
from common.plan.key_path import EVERY
from common.plan.settings import ENVIRONMENT_PREFIX, SETTINGS, plan_fields
from coordinator.cli import cli as coordinator

ROOT = Path(__file__).parents[3]
BY_FLAG = {setting.flag: setting for setting in SETTINGS if setting.flag}

# What scripts of users rely on: flags, variable without its prefix, key of the plan, default.
CONTRACT = """
--url -u | URL | target.url |
--embedded-server | EMBEDDED_SERVER | target.embedded |
--replicas | REPLICAS | target.replicas |
--username | USERNAME | target.username |
- | PASSWORD | target.password |
--password-env | PASSWORD_ENV | target.password_env |
--password-file | PASSWORD_FILE | target.password_file |
--address-remap | ADDRESS_REMAP | target.address_remap |
--server-stats | SERVER_STATS | target.server_stats | 1s
--track-hot-keys | TRACK_HOT_KEYS | target.track_hot_keys |
--tls-ca-file | TLS_CA_FILE | target.tls.ca_file |
--tls-cert-file | TLS_CERT_FILE | target.tls.cert_file |
--tls-key-file | TLS_KEY_FILE | target.tls.key_file |
--tls-server-name | TLS_SERVER_NAME | target.tls.server_name |
--tls-verify | TLS_VERIFY | target.tls.verify | full
--sentinel-username | SENTINEL_USERNAME | target.sentinel.username |
- | SENTINEL_PASSWORD | target.sentinel.password |
--sentinel-password-env | SENTINEL_PASSWORD_ENV | target.sentinel.password_env |
--sentinel-password-file | SENTINEL_PASSWORD_FILE | target.sentinel.password_file |
--driver | DRIVER | pools.*.driver | client
--client-pools --client-instances | CLIENT_POOLS | pools.*.client_pools | one per agent process
--client-instances-per-pool --connections-per-client | CLIENT_INSTANCES_PER_POOL | pools.*.client_instances_per_pool | 1
--threads-per-pool --threads-per-client | THREADS_PER_POOL | pools.*.threads_per_pool | 1
--tasks-per-pool | TASKS_PER_POOL | pools.*.tasks_per_pool | 1
--max-connections | MAX_CONNECTIONS | pools.*.max_connections | 50
--tcp-pool | TCP_POOL | pools.*.tcp_pool | raising
--tcp-pool-wait | TCP_POOL_WAIT | pools.*.tcp_pool_wait | 20s
--connections | CONNECTIONS | pools.*.connections | lazy
--checkout-timeout | CHECKOUT_TIMEOUT | pools.*.checkout_timeout | 20s
--protocol | PROTOCOL | target.protocol | 3
--client-name | CLIENT_NAME | target.client_name | stampede
--connect-timeout | CONNECT_TIMEOUT | target.connect_timeout | 5s
--socket-timeout | SOCKET_TIMEOUT | target.socket_timeout | 5s
--health-check-interval | HEALTH_CHECK_INTERVAL | target.health_check_interval | 0s
--maintenance | MAINTENANCE | target.maintenance | off
--relaxed-timeout | RELAXED_TIMEOUT | target.relaxed_timeout | 10s
--endpoint-type | ENDPOINT_TYPE | target.endpoint_type | auto
--retries | RETRIES | target.retry.retries | 3
--retry-backoff | RETRY_BACKOFF | target.retry.backoff | full-jitter
--retry-base | RETRY_BASE | target.retry.base | 8ms
--retry-cap | RETRY_CAP | target.retry.cap | 512ms
--retry-on | RETRY_ON | target.retry.errors | ConnectionError,TimeoutError
--keepalive | KEEPALIVE | target.keepalive.enabled | on
--keepalive-idle | KEEPALIVE_IDLE | target.keepalive.idle | 30s
--keepalive-interval | KEEPALIVE_INTERVAL | target.keepalive.interval | 5s
--keepalive-count | KEEPALIVE_COUNT | target.keepalive.count | 3
--read-from | READ_FROM | target.cluster.read_from | primary
--reinitialize-steps | REINITIALIZE_STEPS | target.cluster.reinitialize_steps | 5
--require-full-coverage | REQUIRE_FULL_COVERAGE | target.cluster.require_full_coverage |
--dynamic-startup-nodes | DYNAMIC_STARTUP_NODES | target.cluster.dynamic_startup_nodes | on
--profile | PROFILE | workload.profile | basic_rw
--ratio | RATIO | workload.commands |
--command | COMMAND | workload.commands.*.command |
--command-ratio | COMMAND_RATIO | workload.commands.*.weight | 1 each
--command-name | COMMAND_NAME | workload.commands.*.name | the command's name
--pipeline | PIPELINE | workload.pipeline | 1
--transaction | TRANSACTION | workload.transaction | 0
--setup | SETUP | workload.setup |
--preload | PRELOAD | workload.preload |
--channels-per-thread | CHANNELS_PER_THREAD | workload.pubsub.channels_per_thread | 10
--pubsub-grace | PUBSUB_GRACE | workload.pubsub.grace | 1s
--flush-before | FLUSH_BEFORE | workload.flush_before |
--clean-up | CLEAN_UP | workload.clean_up | none
--key-prefix | KEY_PREFIX | workload.keys.prefix | stampede:
--key-minimum | KEY_MINIMUM | workload.keys.minimum | 1
--key-maximum | KEY_MAXIMUM | workload.keys.maximum | 1000000
--key-distribution | KEY_DISTRIBUTION | workload.keys.distribution | uniform
--key-zipf-exp | KEY_ZIPF_EXP | workload.keys.exponent | 0.99
--key-median | KEY_MEDIAN | workload.keys.median | middle of the range
--key-stddev | KEY_STDDEV | workload.keys.deviation | a sixth of the range
--hot-keys | HOT_KEYS | workload.keys.hot_keys | 0.2
--hot-operations | HOT_OPERATIONS | workload.keys.hot_operations | 0.8
--keys-per-hash-tag | KEYS_PER_HASH_TAG | workload.keys.per_hash_tag | as the plan needs
--data-size -d | DATA_SIZE | workload.values | 32B
--data-size-range | DATA_SIZE_RANGE | workload.values |
--data-size-list | DATA_SIZE_LIST | workload.values.sizes |
--data-size-file | DATA_SIZE_FILE | workload.values.sizes_file |
--data-kind | DATA_KIND | workload.values.kind | binary
--data-compressible | DATA_COMPRESSIBLE | workload.values.compressible | 0
--data-verify | DATA_VERIFY | workload.values.verify |
--expiry | EXPIRY | workload.expiry |
--expiry-range | EXPIRY_RANGE | workload.expiry |
--duration --test-time | DURATION | load.duration | 10s, without --requests and --stage
--requests -n | REQUESTS | load.requests |
--rate | RATE | load.rate |
--arrivals | ARRIVALS | load.arrivals | constant
--warmup | WARMUP | load.warmup | 0s
--stage | STAGE | load.stages |
--probe | PROBE | probe |
--percentiles | PERCENTILES | percentiles | 50,90,99,99.9
--seed | SEED | seed | 1
--expect-agents | EXPECT_AGENTS | fleet.expect_agents | 0
--local-agents | LOCAL_AGENTS | fleet.local_agents | 0
--processes | PROCESSES | fleet.processes_per_local_agent | one per usable core
--per-agent | PER_AGENT | fleet.per_agent |
--at-least | AT_LEAST | fleet.at_least | all
--on-agent-loss | ON_AGENT_LOSS | fleet.on_agent_loss | continue
--tolerate-lost | TOLERATE_LOST | fleet.tolerate_lost | 0
--wait | WAIT | fleet.wait | 1m
--prepare | PREPARE | fleet.prepare | 2m
--lease | LEASE | fleet.lease | 30s
--drain | DRAIN | fleet.drain | 10s
"""


def test_flags_variables_keys_and_defaults_stay_as_they_are() -> None:
    rows = [
        (" ".join(setting.flags) or "-", setting.variable, ".".join(map(str, setting.path)), setting.default_text)
        for setting in SETTINGS
    ]
    wanted = [[cell.strip() for cell in line.split("|")] for line in CONTRACT.strip().splitlines()]
    assert rows == [(flags, ENVIRONMENT_PREFIX + name, path, default) for flags, name, path, default in wanted]


def test_no_two_settings_share_a_flag_or_a_variable() -> None:
    flags = [flag for setting in SETTINGS for flag in setting.flags]
    variables = [setting.variable for setting in SETTINGS]
    assert len(flags) == len(set(flags))
    assert len(variables) == len(set(variables))


def test_every_key_of_a_plan_can_be_set_by_a_flag_or_a_variable_except_for_those_of_lists_and_targets() -> None:
    set_by_parent = {"workload.values.minimum", "workload.values.maximum", "workload.expiry.minimum"}
    set_by_parent |= {"workload.expiry.maximum", "workload.scripts"}
    unset = {
        ".".join(map(str, field.path))
        for field in plan_fields()
        if not field.settings and EVERY not in field.path and not hasattr(field.type, "fields")
    }
    of_targets = {path for path in unset if path.startswith(("visibility.", "workload.stamps."))}
    assert unset - set_by_parent - of_targets == {"pools", "scenarios", "targets"}


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("--threads-per-pool", " 4 ", 4),
        ("--connections", "PreWarm", "prewarm"),
        ("--per-agent", "Yes", True),
        ("--per-agent", "0", False),
        ("--rate", "50k/s", "50k/s"),
        ("--requests", "10M", "10M"),
        ("--key-prefix", "4", "4"),
        ("--client-name", "null", "null"),
        ("--data-size-range", "32-1KiB", {"minimum": "32", "maximum": "1KiB"}),
        ("--retry-on", "TimeoutError, ConnectionError", ["TimeoutError", "ConnectionError"]),
        ("--stage", "peak=30s@10k/s:linear", {"name": "peak", "duration": "30s", "rate": "10k/s", "ramp": "linear"}),
        ("--ratio", "1:10", [{"command": "SET", "weight": 1}, {"command": "GET", "weight": 10}]),
    ],
)
def test_text_becomes_the_value_that_a_file_would_hold(flag: str, text: str, value: object) -> None:
    assert BY_FLAG[flag].parse(text) == value


@pytest.mark.parametrize(
    ("flag", "text", "problem"),
    [
        ("--threads-per-pool", "four", 'expected a whole number >= 1, got "four"'),
        ("--threads-per-pool", "0", "expected a whole number >= 1, got 0"),
        ("--threads-per-pool", "1.5", 'expected a whole number >= 1, got "1.5"'),
        ("--connections", "Warm", 'expected one of lazy, prewarm, got "Warm"'),
        ("--per-agent", "perhaps", 'expected true or false, got "perhaps"'),
        ("--data-size-list", "32", 'expected SIZE:WEIGHT,... such as "32:70,1KiB:30", got "32"'),
        ("--data-size-list", "x:1", 'expected a size such as 100, "1KiB" or "4MB", got "x"'),
        ("--stage", "30s@1:fast", 'expected one of step, linear, got "fast"'),
        ("--preload", "perhaps", 'expected true or false, got "perhaps"'),
    ],
)
def test_text_of_the_wrong_kind_is_refused(flag: str, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        BY_FLAG[flag].parse(text)
    assert str(caught.value) == problem


def test_every_flag_that_a_message_or_a_help_text_names_exists() -> None:
    known = {
        flag
        for group in (coordinator, agent)
        for command in group.commands.values()
        for parameter in command.get_params(click.Context(command))
        for flag in parameter.opts
    }
    named = {
        flag
        for package in ("common", "coordinator", "agent")
        for module in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+\w", node.value)
    }
    of_other_programs = {"--cpus", "--cluster"}  # docker, redis-cli
    assert named - known - of_other_programs == {"--version"}

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.errors import PlanError
from common.plan.loading.sources import load_plan
from common.plan.rules.checks import Purpose, check_plan
from common.plan.schema import Arrivals, Cluster, Command, Connections, Embedded, Load, Plan, ReadFrom, Target, Workload
from common.plan.settings import SETTINGS
from common.units import Seconds

FLAGS = {setting.flag: setting for setting in SETTINGS if setting.flag}
ENOUGH = {"--url": "redis://127.0.0.1", "--duration": "1s"}

WriteFile = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    def write_file(text: str, name: str = "plan.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_file


def load(file: Path | None = None, environ: Mapping[str, str] | None = None, **flags: str | list[str]) -> Plan:
    """A plan that has what it needs, unless the file says it; flags as keywords, with their text."""
    given: dict[str, str | list[str]] = dict(ENOUGH) if file is None else {}
    given |= {f"--{name.replace('_', '-')}": text for name, text in flags.items()}
    said: dict[Any, Any] = {}
    for flag, text in given.items():
        setting = FLAGS[flag]
        said[setting] = tuple(map(setting.parse, text)) if isinstance(text, list) else setting.parse(text)
    return load_plan(file, said, environ or {})


def refusal(*arguments: Any, **flags: Any) -> str:
    with pytest.raises(PlanError) as caught:
        load(*arguments, **flags)
    line = str(caught.value)
    assert line.isprintable()
    return line


def test_defaults_come_from_the_schema_and_the_workload_is_basic_rw() -> None:
    plan = load()
    assert plan.pools == Plan().pools
    assert plan.workload.profile == "basic_rw"
    assert [(entry.command, entry.weight) for entry in plan.workload.commands] == [
        ("SET", 40),
        ("GET", 50),
        ("DEL", 10),
    ]


def test_flags_override_the_file_the_file_the_environment_and_that_the_profile(write: WriteFile) -> None:
    file = write(
        "target: {url: 'redis://h'}\nload: {duration: 1s}\nworkload: {profile: high_throughput}\n"
        "pools: [{threads_per_pool: 2, client_instances_per_pool: 2}]"
    )
    environ = {
        "STAMPEDE_THREADS_PER_POOL": "1",
        "STAMPEDE_MAX_CONNECTIONS": "11",
        "STAMPEDE_PIPELINE": "7",
        "STAMPEDE_URL": "redis://elsewhere",
        "STAMPEDE_PER_AGENT": "yes",
    }
    plan = load(file, environ, client_instances_per_pool="3")
    assert (plan.target.url, plan.fleet.per_agent) == ("redis://h", True)
    assert plan.pools[0].client_instances_per_pool == 3
    assert plan.pools[0].threads_per_pool == 2
    assert plan.pools[0].max_connections == 11
    assert plan.workload.pipeline == 7
    assert [entry.weight for entry in plan.workload.commands] == [40, 60]


def test_pool_flags_and_variables_apply_to_every_group_of_the_file(write: WriteFile) -> None:
    file = write(
        "target: {url: 'redis://h'}\nload: {duration: 1s}\n"
        "pools: [{name: a, threads_per_pool: 2, max_connections: 1}, {name: b}, {name: c, max_connections: 3}]"
    )
    plan = load(file, {"STAMPEDE_MAX_CONNECTIONS": "9"}, threads_per_pool="4")
    assert [(group.name, group.threads_per_pool, group.max_connections) for group in plan.pools] == [
        ("a", 4, 1),
        ("b", 4, 9),
        ("c", 4, 3),
    ]


def test_empty_pool_groups_are_kept(write: WriteFile) -> None:
    file = write("target: {url: 'redis://h'}\nload: {duration: 1s}\npools: [{name: a}, {}]")
    assert [group.name for group in load(file).pools] == ["a", "main"]


def test_a_url_without_a_scheme_is_redis(write: WriteFile) -> None:
    host = "127.0.0.1:6379"
    plans = [
        load(url=host),
        load(None, {"STAMPEDE_URL": host, "STAMPEDE_DURATION": "1s"}, url=host),
        load(write(f"target: {{url: '{host}'}}\nload: {{duration: 1s}}")),
    ]
    assert {plan.target.url for plan in plans} == {"redis://127.0.0.1:6379/0"}
    target = load(url="bob:pw@host").target
    assert (target.url, target.username, target.password) == ("redis://host:6379/0", "bob", "pw")
    assert refusal(url="127.0.0.1", tls_verify="ca").endswith("expected only with a target of rediss://, got redis://")


def test_an_empty_client_name_is_a_value_wherever_it_is_given(write: WriteFile) -> None:
    file = write("target: {url: 'redis://h', client_name: ''}\nload: {duration: 1s}")
    named = write("target: {url: 'redis://h', client_name: x}\nload: {duration: 1s}", "named.yaml")
    plans = [load(client_name=""), load(None, {"STAMPEDE_CLIENT_NAME": ""}), load(file), load(named, client_name="")]
    assert [plan.target.client_name for plan in plans] == [""] * 4
    assert load().target.client_name == "stampede"


def test_a_json_file_says_the_same_as_a_yaml_file(write: WriteFile) -> None:
    yaml_plan = load(write("target: {url: 'redis://h'}\nload: {requests: 10k}"))
    json_plan = load(write('{"target": {"url": "redis://h"}, "load": {"requests": "10k"}}', "plan.json"))
    assert yaml_plan == json_plan


def test_a_later_source_chooses_between_alternatives(write: WriteFile) -> None:
    file = write("target: {url: 'redis://h', password_env: NOT_SET}\nload: {duration: 30s}")
    plan = load(file, {"PW": "x"}, requests="100", password_env="PW")
    assert (plan.load.duration_s, plan.load.requests) == (None, 100)
    assert plan.target.password == "x"
    plain = write("target: {url: 'redis://h'}\nload: {duration: 30s}", "b.yaml")
    assert load(plain, embedded_server="standalone").target.url == ""
    assert load(plain, embedded_server="standalone").target.embedded is Embedded.STANDALONE


def test_a_profile_flag_replaces_the_files_commands(write: WriteFile) -> None:
    file = write(
        "target: {url: 'redis://h'}\nload: {duration: 1s}\nworkload: {commands: [{command: INCR}], pipeline: 3}"
    )
    assert [entry.command for entry in load(file).workload.commands] == ["INCR"]
    plan = load(file, profile="high_throughput")
    assert [entry.command for entry in plan.workload.commands] == ["SET", "GET"]
    assert plan.workload.pipeline == 3


def test_commands_replace_those_of_a_profile_and_its_other_keys_stay() -> None:
    plan = load(profile="transaction_heavy", command=["INCR", "SET __key__ __data__"], command_ratio=["3", "1"])
    assert plan.workload.commands == (
        Command(command="INCR", weight=3.0),
        Command(command="SET __key__ __data__", weight=1.0),
    )
    assert plan.workload.transaction == 5


def test_names_and_ratios_are_of_the_command_at_the_same_position() -> None:
    flags = {"command": ["SET __key__ 1", "SET __key__ 2"], "command_name": ["", "twos"], "command_ratio": ["3", "1"]}
    assert load(**flags).workload.commands == (
        Command(command="SET __key__ 1", weight=3.0),
        Command(command="SET __key__ 2", name="twos"),
    )


def test_a_ratio_is_of_set_to_get() -> None:
    assert load(ratio="1:10").workload.commands == (Command(command="SET"), Command(command="GET", weight=10.0))


def test_data_sizes_set_both_ends() -> None:
    assert (
        load(data_size="1KiB").workload.values.minimum_bytes,
        load(data_size="1k").workload.values.maximum_bytes,
    ) == (
        1024,
        1024,
    )
    values = load(data_size_range="32-1KiB").workload.values
    assert (values.minimum_bytes, values.maximum_bytes) == (32, 1024)


def test_quantities_and_choices_are_read_from_flags() -> None:
    plan = load(rate="50k/s", arrivals="poisson", connections="prewarm", socket_timeout="250ms", key_maximum="10M")
    assert plan.load.rate_per_s == 50_000
    assert plan.load.arrivals is Arrivals.POISSON
    assert plan.pools[0].connections is Connections.PREWARM
    assert plan.target.socket_timeout_s == 0.25
    assert plan.workload.keys.maximum == 10**7


@pytest.mark.parametrize("text", ["off", "OFF", "0"])
def test_server_stats_can_be_off(text: str) -> None:
    assert load(server_stats=text).target.server_stats_s == 0


def test_a_profile_file_is_relative_to_the_plan_file_that_names_it(write: WriteFile, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write("commands: [{command: INCR}]\npipeline: 2", "sub/mine.yaml")
    file = write("target: {url: 'redis://h'}\nload: {duration: 1s}\nworkload: {profile: ./mine.yaml}", "sub/plan.yaml")
    plan = load(file)
    assert (plan.workload.profile, plan.workload.pipeline) == (None, 2)
    assert load(profile=str(tmp_path / "sub" / "mine.yaml")).workload == plan.workload


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "pools: [{}, {threads_per_pool: four}]",
            '$.pools[1].threads_per_pool: expected a whole number >= 1, got "four"',
        ),
        ("pools: [{threads_per_pool: 0}]", "$.pools[0].threads_per_pool: expected a whole number >= 1, got 0"),
        ("pools: [{thread_per_pool: 1}]", '$.pools[0].thread_per_pool: unknown key; did you mean "threads_per_pool"?'),
        (
            "workload: {commands: [{command: GET, weight: -1}]}",
            "$.workload.commands[0].weight: expected a number >= 0, got -1",
        ),
        (
            "workload: {keys: {minimum: 9, maximum: 2}}",
            "$.workload.keys.minimum: expected minimum <= maximum, got 9 and 2",
        ),
        (
            "workload: {commands: [{command: GTE}]}",
            "$.workload.commands[0].command: expected a name of the command table",
        ),
        ("workload: {profile: basicrw}", "$.workload.profile: expected one of async_mixed, basic_rw,"),
        ("load: {duration: 1s, requests: 5}", "$.load.requests: expected either a duration or requests, got 1s and 5"),
        (
            "load: {rate: 5, stages: [{duration: 1s}]}",
            "$.load.rate: expected either rate or stages, got rate 5/s and stages",
        ),
        ("load: {requests: 5, stages: [{duration: 1s}]}", "$.load.requests: expected either requests or stages, got"),
        ("load: {duration: 5, stages: [{duration: 1s}]}", "$.load.duration: expected either duration or stages, got"),
        (
            "load: {stages: [{duration: 1s}, {duration: 0s}]}",
            "$.load.stages[1].duration: expected a time above zero, got 0s",
        ),
        ("load: {stages: [{rate: 5}]}", '$.load.stages[0]: expected a key "duration", got none'),
        (
            "load: {stages: [{duration: 1s, ramp: linear}]}",
            "$.load.stages[0].ramp: expected a rate at the end of the linear ramp, got none",
        ),
        (
            "load: {stages: [{duration: 1s, name: a}, {duration: 1s}, {duration: 1s, name: a}]}",
            '$.load.stages[2].name: expected a unique name, got "a" a second time',
        ),
        (
            "load: {warmup: 1s, stages: [{duration: 1s, name: warmup}]}",
            '$.load.stages[0].name: expected a unique name, got "warmup" a second time',
        ),
        (
            "load: {stages: [" + "{duration: 1s}, " * 1001 + "]}",
            "$.load.stages: expected at most 1000 stages, got 1001",
        ),
        (
            "load: {arrivals: poisson, stages: [{duration: 1s}]}",
            "$.load.arrivals: expected a rate for poisson arrivals, got none; use --rate 1000/s",
        ),
        ("target: {url: ''}\nload: {duration: 1s}", "$.target.url: expected a target, got none"),
        ("[1, 2]", "$: expected a mapping with keys such as target, pools, workload, got a list"),
    ],
)
def test_a_fault_in_a_file_has_the_file_and_the_path(write: WriteFile, text: str, line: str) -> None:
    file = write(text if text.startswith(("target", "[")) else f"target: {{url: 'redis://h'}}\n{text}")
    assert refusal(file).startswith(f"{file}: {line}")


@pytest.mark.parametrize(
    ("text", "flags", "duration_s"),
    [
        ("", {}, 10),
        ("load: {rate: 5}", {}, 10),
        ("load: {warmup: 1s, stages: []}", {}, 10),
        ("load: {duration: 3s}", {}, 3),
        ("load: {duration: 0}", {}, 0),
        ("load: {duration: 3s}", {"--duration": "0"}, 0),
        ("load: {requests: 5}", {}, None),
        ("load: {stages: [{duration: 1s}]}", {}, None),
        ("load: {rate: 5}", {"--requests": "5"}, None),
    ],
)
def test_a_load_without_a_length_lasts_ten_seconds(
    write: WriteFile, text: str, flags: dict[str, str], duration_s: float | None
) -> None:
    given = {FLAGS[flag]: FLAGS[flag].parse(value) for flag, value in flags.items()}
    assert load_plan(write(f"target: {{url: 'redis://h'}}\n{text}"), given, {}).load.duration_s == duration_s


@pytest.mark.parametrize("purpose", [Purpose.RUN, Purpose.TARGET, Purpose.VIEW])
def test_a_plan_has_the_same_length_for_every_purpose(purpose: Purpose) -> None:
    assert load_plan(None, {FLAGS["--url"]: "redis://h"}, {}, purpose).load.duration_s == 10


def test_a_plan_for_viewing_needs_no_target_but_a_valid_one(write: WriteFile) -> None:
    assert not load_plan(write("load: {rate: 5}"), {}, {}, Purpose.VIEW).target.is_given
    assert load_plan(write("target: {tls: {verify: none}}"), {}, {}, Purpose.VIEW).load.duration_s == 10
    with pytest.raises(PlanError, match="expected only with a target of rediss://"):
        load_plan(write("target: {url: 'redis://h', tls: {verify: none}}"), {}, {}, Purpose.VIEW)


def test_stages_on_the_command_line_replace_a_files_duration_but_not_its_rate(write: WriteFile) -> None:
    flags = {FLAGS["--stage"]: [{"duration": Seconds(1)}]}
    plan = load_plan(write("target: {url: 'redis://h'}\nload: {duration: 5s}"), flags, {})
    assert (plan.load.duration_s, len(plan.load.stages)) == (None, 1)
    file = write("target: {url: 'redis://h'}\nload: {rate: 5}")
    with pytest.raises(PlanError, match=r"\$\.load\.rate: expected either rate or stages"):
        load_plan(file, flags, {})


@pytest.mark.parametrize("text", ["=1s", "a=b=1s", "a b=1s", "\x1b=1s", f"{'n' * 65}=1s"])
def test_the_name_of_a_stage_flag_is_checked_as_in_a_file(text: str) -> None:
    with pytest.raises(ValueError, match=r'^expected a name of letters, digits, "_", "\." and "-", got '):
        FLAGS["--stage"].parse(text)


def test_a_missing_file_a_folder_and_an_unreadable_file_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert refusal(missing) == f"{missing}: expected a plan that can be read, got: No such file or directory"
    assert refusal(tmp_path) == f"{tmp_path}: expected a plan that can be read, got: it is a directory"
    with pytest.raises(PlanError, match="got the impossible name"):
        load(Path("a\0b"))


@pytest.mark.parametrize("name", ["plan", "profile", "data_size_file", "password_file"])
def test_a_pipe_without_a_writer_does_not_block(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    monkeypatch.setattr("common.plan.loading.parsing.WAIT_S", 0.01)
    said = refusal(pipe) if name == "plan" else refusal(**{name: str(pipe)})
    assert said.startswith(str(pipe) if name == "plan" else f"--{name.replace('_', '-')}: ")
    assert said.endswith("got: it is a pipe that did not end within 0.01 s")


def test_a_too_large_file_is_refused(write: WriteFile) -> None:
    assert "got more than 1000000 bytes" in refusal(write("#" * 1_000_001))


@pytest.mark.parametrize(
    ("variable", "text", "line"),
    [
        ("STAMPEDE_THREADS_PER_POOL", "four", 'STAMPEDE_THREADS_PER_POOL: expected a whole number >= 1, got "four"'),
        ("STAMPEDE_RATIO", "1", 'STAMPEDE_RATIO: expected SET:GET such as "1:10", got "1"'),
        ("STAMPEDE_RATIO", "0:0", "STAMPEDE_RATIO: expected at least one weight above zero, got 0 for all"),
        ("STAMPEDE_THREAD_PER_POOL", "4", "STAMPEDE_THREAD_PER_POOL: unknown variable; did you mean "
         "STAMPEDE_THREADS_PER_POOL?"),
        ("STAMPEDE_PROFILE", "x", "STAMPEDE_PROFILE: expected one of async_mixed, basic_rw"),
        ("STAMPEDE_COMMAND", "GTE", "STAMPEDE_COMMAND: expected a name of the command table"),
    ],
)  # fmt: skip
def test_a_fault_in_the_environment_has_the_variable(variable: str, text: str, line: str) -> None:
    assert refusal(None, {variable: text}).startswith(line)


def test_empty_variables_and_unrelated_ones_with_the_prefix_are_ignored() -> None:
    environ = {"STAMPEDE_RATE": "", "STAMPEDE_SERVICE_HOST": "10.0.0.1", "STAMPEDE_PORT": "tcp://10.0.0.1:5555"}
    assert load(None, environ) == load()


def test_the_variable_that_holds_the_password_may_have_any_name() -> None:
    environ = {"STAMPEDE_PASSWORDS": "x", "STAMPEDE_PASSWORD_ENV": "STAMPEDE_PASSWORDS"}
    assert load(None, environ).target.password == "x"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"requests": "5"}, "--requests: expected either a duration or requests, got 1s and 5"),
        ({"key_minimum": "9", "key_maximum": "2"}, "--key-minimum: expected minimum <= maximum, got 9 and 2"),
        ({"key_maximum": "0"}, "--key-maximum: expected minimum <= maximum, got 1 and 0"),
        ({"data_size_range": "9-2"}, "--data-size-range: expected minimum <= maximum, got 9B and 2B"),
        ({"data_size_range": "9-20", "data_size": "2"}, "--data-size: expected one of --data-size-range and --data"),
        ({"ratio": "1:1", "command": ["GET"]}, "--command: expected one of --ratio and --command, got both"),
        ({"ratio": "0:0"}, "--ratio: expected at least one weight above zero, got 0 for all"),
        ({"command": ["GET"], "command_ratio": ["1", "2"]},
         "--command-ratio: expected one for each --command or none, got 2 for 1"),
        ({"command": ["GET"], "command_name": ["a", "b"]},
         "--command-name: expected one for each --command or none, got 2 for 1"),
        ({"command_ratio": ["1"]}, "--command-ratio: expected one for each --command or none, got 1 for 0"),
        ({"command": ["SELECT 1"]}, "--command: expected a command that leaves its connection unchanged, got SELECT"),
        ({"command": ["SET '"]}, '--command: expected a command such as "SET __key__ __data__", got'),
        ({"transaction": "5", "pipeline": "10"}, "--transaction: expected either a pipeline or a transaction, got"),
        ({"profile": "transaction_heavy", "pipeline": "10"}, "profile transaction_heavy: $.transaction: expected eith"),
        ({"arrivals": "poisson"}, "--arrivals: expected a rate for poisson arrivals, got none"),
        ({"embedded_server": "standalone"}, "--embedded-server: expected either a url or an embedded server, got both"),
        ({"url": "http://h"}, "--url: expected redis://"),
        ({"url": "127.0.0.1:none"}, "--url: expected redis://"),
        ({"url": "redis//:pw@h"}, '--url: expected redis://'),
        ({"url": "redis//:pw@h", "tls_verify": "ca"}, '--url: expected redis://'),
        ({"address_remap": ["a=b"]}, "--address-remap: expected only with a target of redis+cluster:// or redis+sentinel://"),
        ({"tls_ca_file": "x"}, "--tls-ca-file: expected only with a target of rediss://, got redis://"),
        ({"tls_verify": "none", "url": "unix:///x"}, "--tls-verify: expected only with a target of rediss://, got"),
        ({"tls_key_file": "x", "url": "rediss://h"}, "--tls-key-file: expected the certificate of this key as well"),
        ({"sentinel_username": "x"}, "--sentinel-username: expected only with a target of redis+sentinel://, got"),
        ({"read_from": "any"}, "--read-from: expected only with a target of redis+cluster:// or redis+sentinel://"),
        ({"maintenance": "on", "protocol": "2"}, "--maintenance: expected protocol 3, which notifications"),
        ({"relaxed_timeout": "5s"}, "--relaxed-timeout: expected maintenance on or auto, got off; use --maintenance a"),
        ({"endpoint_type": "none"}, "--endpoint-type: expected maintenance on or auto, got off; use --mainten"),
        ({"maintenance": "on", "url": "unix:///x"}, "--maintenance: expected off or auto with a unix socket"),
        ({"keepalive_idle": "1500ms"}, "--keepalive-idle: expected whole seconds, 1s or more, because socket"),
        ({"keepalive_interval": "0s"}, "--keepalive-interval: expected whole seconds, 1s or more, because socket"),
        ({"tcp_pool_wait": "0s"}, "--tcp-pool-wait: expected a time above zero, got 0s"),
        ({"client_pools": "1000000000"}, "--client-pools: expected at most 100000 pools in all, got 1000000000"),
        ({"threads_per_pool": "2000000"}, "--threads-per-pool: expected at most 1000000 worker threads and tasks in"),
        ({"tasks_per_pool": "2000000", "driver": "asyncio"}, "--tasks-per-pool: expected at most 1000000 worker thr"),
        ({"client_pools": "1000", "client_instances_per_pool": "1001"},
         "--client-instances-per-pool: expected at most 1000000 client instances in all, got 1001000"),
        ({"expect_agents": "1000000000"}, "--expect-agents: expected at most 10000 agents in all, got 1000000000"),
        (
            {"expect_agents": "3", "local_agents": "1", "at_least": "5"},
            "--at-least: expected at most the number of agents, 4 (3 expected and 1 local), got 5",
        ),
        (
            {"at_least": "1"},
            "--at-least: expected agents, got none; set --expect-agents or --local-agents",
        ),
        ({"local_agents": "10001"}, "--local-agents: expected at most 10000 agents in all, got 10001"),
        ({"processes": "1001"}, "--processes: expected at most 1000 processes, got 1001"),
        ({"url": "redis+cluster://h:1", "driver": "asyncio", "tcp_pool": "blocking"},
         "--tcp-pool: expected raising, the only TCP pools that redis.asyncio has for a cluster's nodes, got blocking"),
        ({"tasks_per_pool": "8"}, "--tasks-per-pool: expected threads_per_pool, the workers of the client driver"),
        ({"threads_per_pool": "8", "driver": "asyncio"},
         "--threads-per-pool: expected tasks_per_pool, the workers of the asyncio driver, got"),
        ({"socket_timeout": "0"}, "--socket-timeout: expected a time above zero, got 0s"),
        ({"server_stats": "1ms"}, "--server-stats: expected at least 20ms, or off, got 1ms"),
        (
            {"server_stats": "off", "track_hot_keys": "true"},
            "--track-hot-keys: expected server_stats as well, which reads the hot keys, got server_stats off",
        ),
        ({"lease": "1s"}, "--lease: expected at least 2s"),
        ({"retry_base": "2s", "retry_cap": "1s"}, "--retry-base: expected base <= cap, got 2s and 1s"),
        ({"retry_cap": "1ms"}, "--retry-cap: expected base <= cap, got 8ms and 1ms"),
        ({"data_size": "1GiB"}, "--data-size: expected at most Redis' 512MiB, got 1GiB"),
        ({"profile": "./none.yaml"}, "--profile: ./none.yaml: expected a profile that can be read, got: No such"),
    ],
)  # fmt: skip
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, Any], line: str) -> None:
    assert refusal(**flags).startswith(line)


def test_zero_requests_are_refused() -> None:
    setting = {FLAGS["--url"]: "redis://h", FLAGS["--requests"]: "0"}
    with pytest.raises(PlanError, match="--requests: expected at least 1 request, got 0"):
        load_plan(None, setting, {})


def test_a_plan_for_checking_a_target_needs_a_url() -> None:
    assert load_plan(None, {FLAGS["--url"]: "redis://h"}, {}, Purpose.TARGET).load.duration_s == 10
    with pytest.raises(PlanError, match="expected a target, got none"):
        load_plan(None, {}, {}, Purpose.TARGET)
    with pytest.raises(PlanError, match="--embedded-server: expected the url of a target"):
        load_plan(None, {FLAGS["--embedded-server"]: "standalone"}, {}, Purpose.TARGET)


def test_pool_groups_with_the_same_name_are_refused(write: WriteFile) -> None:
    file = write("target: {url: 'redis://h'}\nload: {duration: 1s}\npools: [{name: a}, {name: b}, {name: a}]")
    assert refusal(file) == f'{file}: $.pools[2].name: expected a unique name, got "a" a second time'


@pytest.mark.parametrize(
    "flags",
    [
        {"url": "rediss+cluster://h", "tls_verify": "ca", "read_from": "any"},
        {"url": "rediss+sentinel://h/x", "tls_ca_file": "x", "sentinel_username": "bob"},
        {"url": "redis://h", "maintenance": "auto", "protocol": "2"},
        {"url": "unix:///x", "maintenance": "auto"},
    ],
)
def test_settings_of_a_kind_of_target_need_such_a_target(flags: dict[str, str]) -> None:
    load(**flags)


def test_an_embedded_cluster_is_a_cluster() -> None:
    target = Target(embedded=Embedded.CLUSTER, cluster=Cluster(read_from=ReadFrom.ANY))
    workload = Workload(commands=(Command(command="GET"),))
    plan = Plan(target=target, workload=workload, load=Load(duration_s=Seconds(1.0)))
    check_plan(plan)
    with pytest.raises(PlanError, match=r"redis\+cluster:// or .*, got an embedded standalone"):
        check_plan(
            msgspec.structs.replace(plan, target=msgspec.structs.replace(plan.target, embedded=Embedded.STANDALONE))
        )


def test_the_preload_flag_uses_the_preload_of_profile_or_file_and_else_set(write: WriteFile) -> None:
    def preloaded(file: Path | None = None, **said: str) -> list[str]:
        return [
            entry.command.split()[0] for entry in load(file, url="redis://h", duration="1s", **said).workload.preload
        ]

    file = write("workload: {commands: [{command: HGETALL}], preload: [{command: HSET}]}")
    assert preloaded(preload="on") == ["SET"]
    assert preloaded(preload="on", profile="ycsb_a") == preloaded(profile="ycsb_a") == ["HSET"]
    assert preloaded(file, preload="on") == ["HSET"]
    assert preloaded(preload="off", profile="ycsb_a") == preloaded(file, preload="off") == preloaded() == []


def test_a_preload_that_the_mix_cannot_use_is_refused() -> None:
    said = refusal(url="redis://h", duration="1s", preload="on", profile="list_operations")
    assert said == (
        '--preload: expected a command whose keys suit the mix, got "SET", which leaves a string where LPUSH expects a '
        "list; preload by another command, or give one of them a key_prefix"
    )


def test_a_size_file_replaces_sizes_and_is_relative_to_the_plan(write: WriteFile, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write("100 3\n1KiB 1\n", "sub/sizes.txt")
    text = "target: {url: 'redis://h'}\nload: {duration: 1s}\nworkload: {values: {sizes_file: sizes.txt}}"
    for plan in (load(write(text, "sub/plan.yaml")), load(data_size_file=str(tmp_path / "sub" / "sizes.txt"))):
        assert [(entry.size, entry.weight) for entry in plan.workload.values.sizes] == [(100, 3.0), (1024, 1.0)]
        assert plan.workload.values.sizes_file is None


def test_a_fault_in_a_size_file_has_the_file(write: WriteFile, tmp_path: Path) -> None:
    missing = tmp_path / "none.txt"
    assert refusal(data_size_file=str(missing)).startswith(f"--data-size-file: {missing}: expected a file of sizes")
    bad = write("1 2\n3 x\n", "bad.txt")
    assert refusal(data_size_file=str(bad)) == f'{bad}: line 2: expected a weight of 0 or more, got "x"'
    small = write("3\n", "small.txt")
    assert refusal(data_size_file=str(small), data_verify="true").startswith(f"{small}: expected sizes of at least")

"""Malformed replies are one line before the load, a note in the report after it, and never a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import PlanError, TargetError
from common.plan.schema import Command, Keys, Load, Plan, Target, Workload
from common.protocol import codec
from common.units import Seconds
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.records import AnyRecord, CleanedUp, Reading
from coordinator.report.summary import build_summary
from coordinator.servers.check import check
from coordinator.servers.cleanup import CleanUpThread, delete_plan_keys
from coordinator.servers.commandstats import read_server_counts
from coordinator.servers.facts import probe
from coordinator.servers.preflight import check_commands
from coordinator.servers.setup_commands import flush, set_up
from tests.support.examples import examples
from tests.support.records import clean_run
from tests.support.runs import wait_until
from tests.support.scripted import ScriptedServer

ASKED = ("INFO", "COMMAND INFO", "COMMAND LIST", "COMMAND GETKEYS", "CONFIG GET", "DBSIZE", "SCAN", "UNLINK", "TIME",
         "PING", "HELLO", "CLIENT", "FLUSHDB", "CLUSTER SLOTS", "CLUSTER SHARDS", "CLUSTER INFO", "ACL", "SELECT",
         "SENTINEL", "GET", "SCRIPT")  # fmt: skip

_words = st.binary(max_size=12).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b""))
_counts = st.one_of(st.integers(-(10**6), 10**6), st.integers(), st.just(10**5000))
_sensible = st.sampled_from([b"7000", b"127.0.0.1", b"role:master", b"cmdstat_get:calls=x", b"0", b"OK", b"master"])


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


_scalars = st.one_of(
    _words.map(lambda word: b"+" + word + b"\r\n"),
    _words.map(lambda word: b"-ERR " + word + b"\r\n"),
    st.sampled_from([b"-NOAUTH no\r\n", b"-LOADING no\r\n", b"-MOVED 1 127.0.0.1:1\r\n", b"-ASK x\r\n", b"-\r\n"]),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: b":%d\r\n" % number),
    st.one_of(st.binary(max_size=40), _sensible).map(_bulk),
    st.sampled_from(
        [b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"#t\r\n", b",nan\r\n", b",inf\r\n", b"(" + b"9" * 40 + b"\r\n"]
    ),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: b"*%d\r\n%s" % (len(items), b"".join(items))),
        st.lists(inner, max_size=2).map(lambda items: b"~%d\r\n%s" % (len(items), b"".join(items))),
        st.lists(st.tuples(inner, inner), max_size=3).map(
            lambda pairs: b"%%%d\r\n%s" % (len(pairs), b"".join(key + value for key, value in pairs))
        ),
    ),
    max_leaves=8,
)
_DEEP = b"*1\r\n" * 2000 + b":1\r\n"
_HUGE = _bulk(b"# Commandstats\r\ncmdstat_get:calls=" + b"9" * 5000 + b",usec=1\r\nrun_id:\xff\xfe\r\n")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


def plan_of(server: ScriptedServer, scheme: str = "redis", protocol: int = 3) -> Plan:
    path = "/service" if scheme == "redis+sentinel" else ""
    return Plan(
        target=Target(
            url=server.url.replace("redis", scheme) + path, protocol=protocol, socket_timeout_s=Seconds(0.2),
            connect_timeout_s=Seconds(0.2),
        ),
        workload=Workload(
            commands=(Command(command="GET"), Command(command="SET")),
            keys=Keys(maximum=3),
            setup=("SET a b", "DEL __key__"),
        ),
        load=Load(duration_s=Seconds(1)),
    )  # fmt: skip


def said_by(question: Callable[[], object]) -> str:
    """The error of a query; "none" if there is none."""
    try:
        question()
    except (TargetError, PlanError) as error:
        return str(error)
    return "none"


def one_line(text: str) -> bool:
    return bool(text) and text.isprintable()


@settings(max_examples=examples(60))
@given(
    asked=st.sampled_from(ASKED),
    answer=_values,
    scheme=st.sampled_from(["redis", "redis", "redis+cluster", "redis+sentinel"]),
    protocol=st.sampled_from([2, 3]),
)
@example(asked="INFO", answer=_DEEP, scheme="redis", protocol=3)
@example(asked="INFO", answer=_HUGE, scheme="redis", protocol=2)
@example(asked="INFO", answer=b"+OK\r\n+OK\r\n", scheme="redis", protocol=2)
@example(asked="CLUSTER SLOTS", answer=b"*0\r\n", scheme="redis+cluster", protocol=3)
def test_before_the_load_any_reply_is_accepted_or_a_target_error_in_one_line(
    server: ScriptedServer, asked: str, answer: bytes, scheme: str, protocol: int
) -> None:
    server.answers = {asked: answer}
    plan = plan_of(server, scheme, protocol)
    questions = (
        lambda: probe(plan.target),
        lambda: check_commands(plan),
        lambda: check(plan, 10),
        lambda: flush(plan.target),
        lambda: set_up(plan, lambda _: None),
    )
    for question in questions:
        assert one_line(said_by(question))


@settings(max_examples=examples(40))
@given(
    asked=st.sampled_from(ASKED),
    answer=_values,
    scheme=st.sampled_from(["redis", "redis", "redis+cluster", "redis+sentinel"]),
)
@example(asked="INFO", answer=_HUGE, scheme="redis")
@example(asked="INFO", answer=_DEEP, scheme="redis")
def test_after_the_load_any_reply_still_leads_to_a_report(
    server: ScriptedServer, asked: str, answer: bytes, scheme: str
) -> None:
    server.answers = {asked: answer}
    plan = plan_of(server, scheme)
    read = read_server_counts(plan.target, Reading.AFTER)
    cleaning = CleanUpThread(lambda tally: delete_plan_keys(plan, tally), lambda error: (1, f"crash: {error!r}"))
    cleaned = wait_until(cleaning.result, "the end of the clean-up")
    assert isinstance(cleaned, CleanedUp)
    assert "crash" not in cleaned.error or "TargetError" in cleaned.error, cleaned.error
    run: list[AnyRecord] = list(clean_run())
    again = [codec.unpack(codec.pack(record), type(record)) for record in (read, cleaned)]
    summary = build_summary(fold([*run[:-2], *again, run[-1]]))
    assert (summary.run.outcome.value, summary.totals.operations) == ("completed", 6000)
    assert read.error == "" or summary.ledger.server_calls is None


@pytest.mark.parametrize(
    ("asked", "answer", "said"),
    [
        ("INFO", b":7\r\n", "answered INFO server, but the answer makes no sense, 7: AttributeError"),
        ("INFO", b"*1\r\n:3\r\n", r"answered INFO server, but the answer makes no sense, \[3\]: "),
        ("INFO", b"nonsense\r\n", r"does not speak RESP: is it Redis.*\(asked INFO server\)"),
        ("INFO", None, r"did not answer .*\(asked INFO server\)"),
        ("DBSIZE", None, r"did not answer .*\(asked DBSIZE\)"),
        ("CONFIG GET", b":1\r\n", "answered CONFIG GET, but the answer makes no sense"),
    ],
)
def test_the_error_names_the_command_and_the_reply(
    server: ScriptedServer, asked: str, answer: bytes | None, said: str
) -> None:
    server.answers = {"INFO CLIENTS": b"$0\r\n\r\n", asked: answer}
    with pytest.raises(TargetError, match=rf"^target 127\.0\.0\.1:{server.port} {said}"):
        probe(plan_of(server, protocol=2).target)

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.metrics.intervals import DeliveryMetrics, IntervalMetrics, PoolMetrics
from common.plan.schema import Command, Plan, Then, Workload
from common.plan.schema import When as Follows
from coordinator.analysis.ledger import Ledger, audit
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.journal.records import (
    AnyRecord,
    CountersRead,
    NodeCounters,
    NodeSample,
    NodeSampled,
    NodeSilent,
    Reading,
)
from tests.support.records import accepted, clean_run, command, histogram, interval, noted, opened, plan, reading


def run_of(
    *,
    ok: int = 10,
    errors: int = 0,
    failures: int = 0,
    retries: int = 0,
    server: int | None = None,
    issued: int | None = None,
    **workload: int,
) -> Aggregate:
    """One agent, one second of GET. server: calls that the server counted; by default the right number."""
    get = command(
        histogram(*range(ok)),
        errors={"READONLY": errors} if errors else {},
        failures={"TimeoutError": failures} if failures else {},
    )
    done = ok + errors + failures
    calls = ok + errors if server is None else server
    return fold(
        [
            opened(plan(**workload), ["a1"]),
            reading(Reading.BEFORE, {"get": 100, "ping": 4}),
            accepted("a1", 0, interval(0, {"GET": get}, retries=retries, issued=issued)),
            noted("a1", done, issued=issued),
            reading(Reading.AFTER, {"get": 100 + calls, "ping": 9}),
        ]
    )


def calls_of(*commands: str, **gained: int) -> int | None:
    """The server calls in the ledger for a plan of these commands. gained: the server's counts by command."""
    after = {name.replace("_", "|"): calls for name, calls in gained.items()}
    workload = Workload(commands=tuple(Command(command=text) for text in commands))
    listed = msgspec.structs.replace(plan(), workload=workload)
    records = [opened(listed, ["a1"]), reading(Reading.BEFORE, {}), reading(Reading.AFTER, after)]
    return audit(fold(records)).server_calls


def test_only_the_commands_and_subcommands_of_the_plan_count() -> None:
    assert calls_of("CLIENT INFO", "GET", client_info=7, client_setinfo=4, get=3) == 10
    assert calls_of("CLIENT INFO", "client list", client_info=7, client_list=2, client_setinfo=4) == 9
    assert calls_of("XGROUP __data__ k", "XGROUP CREATE k g 0", xgroup_create=7, xgroup_destroy=4) == 11
    assert calls_of("CONFIG GET maxmemory", "PING x", config_get=4, config_set=1, configure=9, ping=2) == 6
    assert calls_of("CLIENT INFO", client=11) == 11  # before Redis 7, whose commandstats know no subcommands


def test_commands_that_follow_a_reply_count_too() -> None:
    entry = Command(command="GET", then=(Then(command="SET", when=Follows.MISS), Then(command="EXPIRE __key__ 9")))
    the_plan = msgspec.structs.replace(plan(), workload=Workload(commands=(entry,)))
    calls = {"get": 5, "set": 3, "expire": 4, "del": 9}
    records = [opened(the_plan), reading(Reading.BEFORE, {}), reading(Reading.AFTER, calls)]
    assert audit(fold(records)).server_calls == 12


def test_the_ledger_of_a_clean_run_agrees_to_the_last_operation() -> None:
    assert audit(fold(clean_run(seconds=3, per_second=1000))) == Ledger(
        issued=6000, counted=6000, server_calls=6000, unaccounted=0, definite=6000, uncertain=0, transactions=0
    )


@given(st.integers(0, 30), st.integers(0, 5), st.integers(-10, 10))
def test_without_retries_and_failures_every_difference_is_unaccounted(ok: int, errors: int, off: int) -> None:
    server = max(0, ok + errors + off)
    ledger = audit(run_of(ok=ok, errors=errors, server=server))
    assert ledger.uncertain == 0
    assert ledger.unaccounted == abs(server - (ok + errors))


@given(st.integers(0, 30), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 60))
def test_failures_and_retries_make_the_expected_calls_a_range(
    ok: int, errors: int, failures: int, retries: int, server: int
) -> None:
    ledger = audit(run_of(ok=ok, errors=errors, failures=failures, retries=retries, server=server))
    lowest, highest = ok + errors, ok + errors + failures + retries
    assert (ledger.definite, ledger.uncertain) == (lowest, failures + retries)
    assert ledger.unaccounted == min(abs(server - may) for may in range(lowest, highest + 1))


def test_an_operation_that_never_ended_is_unaccounted() -> None:
    ledger = audit(run_of(ok=10, issued=13))
    assert (ledger.issued, ledger.counted, ledger.unaccounted) == (13, 10, 3)


def test_a_retry_may_repeat_a_whole_pipeline() -> None:
    assert audit(run_of(ok=20, retries=1, server=30, pipeline=10)).unaccounted == 0
    assert audit(run_of(ok=20, retries=1, server=31, pipeline=10)).unaccounted == 1


@pytest.mark.parametrize(("calls", "unaccounted"), [({"set": 15, "eval": 5}, 0), ({"set": 8, "eval": 5}, 2)])
def test_the_calls_of_the_script_in_the_command_table_are_known(calls: dict[str, int], unaccounted: int) -> None:
    the_plan = plan()
    workload = Workload(commands=(Command(command="SET"), Command(command="EVAL")))
    the_plan = type(the_plan)(target=the_plan.target, workload=workload, load=the_plan.load)
    done = {"SET": command(histogram(*range(10))), "EVAL": command(histogram(*range(5)))}
    records = [
        opened(the_plan, ["a1"]),
        reading(Reading.BEFORE, {}),
        accepted("a1", 0, interval(0, done)),
        noted("a1", 15),
        reading(Reading.AFTER, calls),
    ]
    assert audit(fold(records)).unaccounted == unaccounted


def test_multi_and_exec_are_compared_with_the_transactions() -> None:
    def ledger(multi: int, executed: int, **more: int) -> Ledger:
        get = command(histogram(*range(10)), failures={"ConnectionError": 5} if more else {})
        return audit(
            fold(
                [
                    opened(plan(transaction=5), ["a1"]),
                    reading(Reading.BEFORE, {}),
                    accepted("a1", 0, interval(0, {"GET": get}, transactions=2, **more)),
                    noted("a1", get.operations, transactions=2),
                    reading(Reading.AFTER, {"get": 10, "multi": multi, "exec": executed}),
                ]
            )
        )

    assert ledger(2, 2).unaccounted == 0
    assert ledger(2, 1).unaccounted == 1
    assert ledger(3, 3).unaccounted == 1  # one transaction
    assert ledger(0, 0).transactions == 2
    assert ledger(3, 1, retries=1).unaccounted == 0


def nodes(when: Reading, *nodes: tuple[str, str, str, dict[str, int]]) -> CountersRead:
    counted = tuple(
        NodeCounters(name=name, role=role, run_id=run_id, calls=calls) for name, role, run_id, calls in nodes
    )
    return CountersRead(when=when, nodes=counted, calls={})


BEFORE = nodes(Reading.BEFORE, ("h:1", "primary", "x", {"get": 5}), ("h:2", "replica", "y", {"get": 1}))


def test_the_counts_of_all_nodes_add_up() -> None:
    get = interval(0, {"GET": command(histogram(*range(10)))})
    after = nodes(Reading.AFTER, ("h:1", "primary", "x", {"get": 12}), ("h:2", "replica", "y", {"get": 4}))
    ledger = audit(fold([opened(plan(), ["a1"]), BEFORE, accepted("a1", 0, get), noted("a1", 10), after]))
    assert (ledger.server_calls, ledger.unaccounted, ledger.note) == (10, 0, None)


@pytest.mark.parametrize(("topology", "unaccounted"), [("standalone", 90), ("sentinel", 0)])
def test_messages_that_sentinels_publish_do_not_count(topology: str, unaccounted: int) -> None:
    publish = interval(0, {"PUBLISH": command(histogram(*range(10)))})
    run = opened(Plan(workload=Workload(commands=(Command(command="PUBLISH"),))), ["a1"])
    run = msgspec.structs.replace(run, target=msgspec.structs.replace(run.target, topology=topology))
    records = [run, reading(Reading.BEFORE, {}), accepted("a1", 0, publish), noted("a1", 10)]
    ledger = audit(fold([*records, reading(Reading.AFTER, {"publish": 100})]))
    assert ledger.unaccounted == unaccounted
    assert audit(fold([*records, reading(Reading.AFTER, {"publish": 8})])).unaccounted == 2


@pytest.mark.parametrize(("lua", "unaccounted"), [("return redis.call('SET', KEYS[1], 1)", 0), ("return 1", 10)])
def test_calls_of_a_script_do_not_count(lua: str, unaccounted: int) -> None:
    done = interval(0, {"SET": command(histogram(*range(10))), "EVAL": command(histogram(*range(10)))})
    commands = (Command(command="SET"), Command(command=f'EVAL "{lua}" 1 __key__'))
    run = opened(Plan(workload=Workload(commands=commands)), ["a1"])
    records = [run, reading(Reading.BEFORE, {}), accepted("a1", 0, done), noted("a1", 20)]
    ledger = audit(fold([*records, reading(Reading.AFTER, {"set": 20, "eval": 10})]))
    assert ledger.unaccounted == unaccounted


READINGS: dict[str, tuple[list[AnyRecord], str]] = {
    "none": ([], "not read before the run"),
    "no second one": ([reading(Reading.BEFORE, {})], "not read after the run"),
    "refused": (
        [reading(Reading.BEFORE, {}, error="NOPERM"), reading(Reading.AFTER, {})],
        "could not be read before the run: NOPERM",
    ),
    "restarted": ([reading(Reading.BEFORE, {}), reading(Reading.AFTER, {}, "server-2")], "restarted or replaced"),
    "went back": ([reading(Reading.BEFORE, {"get": 5}), reading(Reading.AFTER, {"get": 4})], "reset during the run"),
    "a node restarted": (
        [BEFORE, nodes(Reading.AFTER, ("h:1", "primary", "x", {}), ("h:2", "replica", "z", {}))],
        "the server h:2 was restarted or replaced",
    ),
    "a node failed over": (
        [BEFORE, nodes(Reading.AFTER, ("h:1", "replica", "x", {}), ("h:2", "primary", "y", {}))],
        "the server h:1 was failed over during the run, from primary to replica",
    ),
    "a node left": ([BEFORE, nodes(Reading.AFTER, ("h:1", "primary", "x", {}))], "the server h:2 left"),
    "a node joined": (
        [
            BEFORE,
            nodes(Reading.AFTER, ("h:1", "primary", "x", {}), ("h:2", "replica", "y", {}), ("h:3", "replica", "z", {})),
        ],
        "the server h:3 joined",
    ),
    "a node was reset": (
        [BEFORE, nodes(Reading.AFTER, ("h:1", "primary", "x", {"get": 9}), ("h:2", "replica", "y", {"get": 0}))],
        "the counters of the server h:2 were reset",
    ),
    "vanished": ([reading(Reading.BEFORE, {"get": 5}), reading(Reading.AFTER, {"set": 1})], "reset during the run"),
}


@pytest.mark.parametrize(("readings", "reason"), READINGS.values(), ids=READINGS.keys())
def test_the_ledger_says_why_the_server_cannot_be_compared(readings: list[AnyRecord], reason: str) -> None:
    get = interval(0, {"GET": command(histogram(1, 2))})
    ledger = audit(fold([opened(agents=["a1"]), accepted("a1", 0, get), noted("a1", 2), *readings]))
    assert ledger.server_calls is None
    assert ledger.unaccounted == 0
    assert ledger.note is not None
    assert reason in ledger.note


def test_the_frames_of_a_lost_agent_count() -> None:
    get = interval(0, {"GET": command(histogram(1, 2))}, issued=3)
    ledger = audit(fold([opened(agents=["a1"]), accepted("a1", 0, get), noted("a1", 0, lost=True)]))
    assert (ledger.issued, ledger.counted, ledger.unaccounted) == (3, 2, 1)


def test_the_frames_of_a_dead_worker_count() -> None:
    get = interval(0, {"GET": command(histogram(1, 2, 3))}, issued=4)
    ledger = audit(fold([opened(agents=["a1"]), accepted("a1", 0, get), noted("a1", 3, issued=1, processes_lost=1)]))
    assert ledger.issued == 4


def test_operations_in_flight_at_the_death_of_a_worker_are_unaccounted_once() -> None:
    # The process died with 40 operations under way; its last report has 15 of them.
    ledger = audit(run_of(ok=100, issued=115, server=140))
    assert (ledger.issued - ledger.counted, ledger.server_calls) == (15, 140)
    assert ledger.unaccounted == 40


def test_missing_calls_and_unended_operations_are_different_operations() -> None:
    ledger = audit(run_of(ok=100, issued=103, server=90))
    assert ledger.unaccounted == 3 + 10


def test_counters_that_were_read_during_writes_are_not_compared() -> None:
    after = msgspec.structs.replace(reading(Reading.AFTER, {"get": 105}), writers=("a1", "a2"))
    ledger = audit(fold([opened(agents=["a1"]), reading(Reading.BEFORE, {"get": 100}), after]))
    assert ledger.server_calls is None
    assert ledger.note == "the server's counters were read while a1, a2 might still write"


def test_a_repeated_subscription_may_have_been_counted_twice() -> None:
    def ledger(server: int) -> Ledger:
        pools = {"main": PoolMetrics(deliveries=DeliveryMetrics(resubscribed=2))}
        repeats = IntervalMetrics(first=0, last=0, pools=pools)
        run = run_of(ok=10, server=server)
        run.apply(accepted("a1", 1, repeats))
        return audit(run)

    assert (ledger(10).uncertain, ledger(10).unaccounted, ledger(12).unaccounted) == (2, 0, 0)
    assert ledger(13).unaccounted == 1


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_every_redirection_is_one_call_of_the_server(moved: int, down: int, surfaced: int) -> None:
    # A surfaced redirection was counted when it arrived, and is the error of an operation as well.
    redirects = {"MOVED": moved, "CLUSTERDOWN": down + surfaced}
    get = command(histogram(*range(10)), errors={"CLUSTERDOWN": surfaced} if surfaced else {})
    calls = 10 + moved + down + surfaced
    ledger = audit(
        fold(
            [
                opened(plan(), ["a1"]),
                reading(Reading.BEFORE, {"get": 100}),
                accepted("a1", 0, interval(0, {"GET": get}, redirects=redirects)),
                noted("a1", 10 + surfaced),
                reading(Reading.AFTER, {"get": 100 + calls}),
            ]
        )
    )
    assert (ledger.definite, ledger.server_calls, ledger.unaccounted) == (calls, calls, 0)


def with_own_calls(*, info_calls: int, samples: int, lost: int = 0) -> Ledger:
    """The ledger of a plan that sends INFO ten times, of a server that counted `info_calls` of anybody."""
    name = "127.0.0.1:6379"
    workload = Workload(commands=(Command(command="=INFO"),))
    info = command(histogram(*range(10)))

    def counted(when: Reading, calls: int) -> CountersRead:
        own = {"info": 2, "dbsize": 1}
        node = NodeCounters(name=name, role="primary", run_id="r", calls={"info": calls}, own=own)
        return msgspec.structs.replace(reading(when, {}), nodes=(node,))

    return audit(
        fold(
            [
                opened(msgspec.structs.replace(plan(), workload=workload), ["a1"]),
                counted(Reading.BEFORE, 50),
                *(NodeSampled(node=name, at_ns=at, sample=NodeSample(reply_us=1)) for at in range(1, samples + 1)),
                NodeSilent(node=name, at_ns=99, reason="did not answer", own={"info": lost}),
                accepted("a1", 0, interval(0, {"INFO": info})),
                noted("a1", 10),
                counted(Reading.AFTER, 50 + info_calls),
            ]
        )
    )


def test_calls_of_the_coordinator_itself_are_left_out() -> None:
    # Between the two readings: the last query of the first one, and two of the second one.
    assert with_own_calls(info_calls=10 + 7 + 3, samples=7) == Ledger(
        issued=10, counted=10, server_calls=10, unaccounted=0, definite=10, uncertain=0, transactions=0
    )
    assert with_own_calls(info_calls=10 + 7 + 3 + 2, samples=7).unaccounted == 2


@pytest.mark.parametrize(("executed", "unaccounted"), [(0, 0), (1, 0), (2, 0), (3, 1)])
def test_a_call_of_the_coordinator_without_an_answer_may_have_been_counted(executed: int, unaccounted: int) -> None:
    assert with_own_calls(info_calls=10 + 7 + 3 + executed, samples=7, lost=2).unaccounted == unaccounted

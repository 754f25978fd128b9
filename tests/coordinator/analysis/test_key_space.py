from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.plan.schema import CleanUp as CleanUpKind
from common.plan.schema import Keys, Plan, Preload, Script, Workload
from common.protocol.messages import Preloaded
from common.units import NS_PER_S, Count
from coordinator.analysis.key_space import (
    clean_up_of,
    clean_up_text,
    expected_keys,
    key_space_facts,
    key_space_lines,
    preload_mismatch,
    preload_of,
    preload_text,
)
from coordinator.analysis.ledger import audit
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.analysis.verdict import Level, judge
from coordinator.journal.records import AnyRecord, CleanedUp, CountersRead, Reading, RunOpened
from tests.support.records import clean_run, plan


def with_preload(entries: Sequence[Preload], maximum: int = 100) -> Plan:
    base = plan()
    workload = msgspec.structs.replace(
        base.workload, preload=tuple(entries), keys=Keys(prefix="k:", maximum=Count(maximum))
    )
    return msgspec.structs.replace(base, workload=workload)


def entry(low: int | None = None, high: int | None = None, prefix: str | None = None, **more: int) -> Preload:
    return Preload(
        key_prefix=prefix,
        key_minimum=None if low is None else Count(low),
        key_maximum=None if high is None else Count(high),
        **more,  # type: ignore[arg-type]
    )


def run(before: int | None, after: int | None, *more: AnyRecord) -> Aggregate:
    """A run whose two agents preloaded 100 keys."""
    records: list[AnyRecord] = []
    for record in clean_run(with_preload([Preload()])):
        match record:
            case RunOpened():
                done = Preloaded(keys=50, commands=50, bytes_out=2_000, took_ns=2 * NS_PER_S)
                agents = tuple(msgspec.structs.replace(facts, preloaded=done) for facts in record.agents)
                target = msgspec.structs.replace(record.target, keys=before)
                record = msgspec.structs.replace(record, agents=agents, target=target)
            case CountersRead(when=Reading.BEFORE):
                record = msgspec.structs.replace(record, keys=after)
        records.append(record)
    return fold([*records, *more])


def test_keys_in_several_entries_count_once() -> None:
    entries = [entry(), entry(90, 150), entry(200, 200), entry(1, 50, "other:"), entry(150, 150, times=3)]
    assert expected_keys(with_preload(entries)) == 150 + 1 + 50
    assert expected_keys(Plan(workload=Workload())) == 0


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (["HSET user:__key__ f v", "HSET user:__key__ g v"], 100),
        (["HSET user:__key__ f v", "HSET __key__ f v", "SET __key__:x v"], 300),
        (["SADD tags __key__"], None),
        (["SET __key__", "EVAL 'return 1' 1 __key__"], None),
        (["SET __key__:__rand(1,9)__ v"], None),
        (["SET __rand(1,9)__:__key__ v"], None),
    ],
)
def test_the_text_around_the_number_distinguishes_keys(commands: list[str], expected: int | None) -> None:
    assert expected_keys(with_preload([Preload(command=command) for command in commands])) == expected


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=6))
def test_the_expected_keys_are_the_distinct_numbers_of_the_ranges(spans: list[tuple[int, int]]) -> None:
    numbers = {number for low, length in spans for number in range(low, low + length + 1)}
    assert expected_keys(with_preload([entry(low, low + length) for low, length in spans])) == len(numbers)


@pytest.mark.parametrize(
    ("before", "after", "ok"),
    [
        (0, 100, True),  # an empty database
        (7, 107, True),  # beside others
        (100, 100, True),  # all were there already
        (40, 100, True),
        (150, 150, True),
        (0, 99, False),
        (0, 101, False),
        (40, 99, False),
        (None, 100, None),
        (0, None, None),
    ],
)
def test_the_keys_of_the_target_are_compared_with_the_preloaded_keys(
    before: int | None, after: int | None, ok: bool | None
) -> None:
    preload = preload_of(run(before, after))
    assert preload is not None
    assert (preload.keys, preload.commands, preload.seconds, preload.per_s) == (100, 100, 2.0, 50.0)
    assert (preload.expected_keys, preload.ok) == (100, ok)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(0, 99, "keys were evicted, expired or deleted."), (0, 101, "other clients wrote keys.")],
)
def test_missing_or_extra_keys_after_the_preload_make_the_run_suspect(before: int, after: int, said: str) -> None:
    aggregate = run(before, after)
    sizes = f"the target had {before} keys before the preload and {after} after it"
    sentence = f"The preload wrote 100 different keys, but {sizes}: {said}"
    assert list(preload_mismatch(aggregate)) == [sentence]
    verdict = judge(aggregate, audit(aggregate))
    assert (verdict.level, verdict.reasons) == (Level.SUSPECT, (sentence,))


def test_a_complete_preload_leaves_the_run_trusted() -> None:
    aggregate = run(0, 100)
    assert judge(aggregate, audit(aggregate)).level is Level.TRUSTED


def test_a_run_without_preload_and_clean_up_has_no_figures_of_them() -> None:
    assert preload_of(fold(clean_run())) is None
    assert preload_of(Aggregate()) is None
    assert clean_up_of(fold(clean_run())) is None


def test_the_preload_is_one_line_of_text() -> None:
    preload = preload_of(run(0, 100))
    assert preload is not None
    assert preload_text(preload) == "100 keys by 100 commands in 2.0 s (50/s); DBSIZE 0 before, 100 after"
    unreported = preload_of(run(None, 100))
    assert unreported is not None
    assert preload_text(unreported).endswith("; DBSIZE not reported")


def test_the_clean_up_line_says_how_many_keys_are_left_and_why() -> None:
    done = clean_up_of(run(0, 100, CleanedUp(deleted=1_000, left=0, took_ns=NS_PER_S)))
    assert done is not None
    assert clean_up_text(done) == "1,000 keys deleted in 1.0 s, 0 left"
    cut = clean_up_of(run(0, 100, CleanedUp(deleted=5, left=None, took_ns=0, error="interrupted")))
    assert cut is not None
    assert clean_up_text(cut) == "5 keys deleted in 0.0 s, unknown how many are left: interrupted"
    assert clean_up_text(cut, "r-1").endswith(": interrupted; `coordinator start --resume r-1` deletes the rest")
    assert clean_up_text(done, "r-1").endswith(", 0 left")


def test_a_plan_lists_what_is_done_before_and_after_the_load() -> None:
    base = with_preload([entry(), entry(1, 10, "list:", times=5)])
    workload = msgspec.structs.replace(
        base.workload,
        flush_before=True,
        scripts=(Script(name="one", lua="return 1"),),
        setup=("INCR counter", "XGROUP CREATE __key__ g 0 MKSTREAM"),
        clean_up=CleanUpKind.KEYS,
    )
    busy = msgspec.structs.replace(base, workload=workload)
    assert key_space_lines(busy) == [
        "before: the target's database is emptied, if --yes-flush is given too",
        "before: scripts loaded: one",
        "before: setup INCR counter: 1 call",
        "before: setup XGROUP CREATE __key__ g 0 MKSTREAM: 100 calls",
        "before: preload SET: 100 keys, k:1 to k:100, 100 commands",
        "before: preload SET: 10 keys, list:1 to list:10, 50 commands",
        "after: every key that the plan may have written is deleted",
    ]
    assert key_space_facts(busy) == {
        "flush": True,
        "scripts": 1,
        "setup_calls": 101,
        "preload_keys": 110,
        "preload_commands": 150,
        "clean_up": "keys",
    }
    assert key_space_lines(plan()) == []

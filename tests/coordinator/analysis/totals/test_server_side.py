from __future__ import annotations

from collections import Counter

from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import fold
from coordinator.analysis.totals.server_side import FIELDS, MOST_ROWS, MOST_SILENCES, NodeSide, ServerSide
from coordinator.journal.records import AnyRecord, NodeDescribed, NodeSample, NodeSampled, NodeSilent, Reading
from tests.support.records import opened, reading

NAME = "127.0.0.1:6379"
COMMANDS = 1 + FIELDS.index("commands")


def sampled(at_s: float, *, node: str = NAME, own: dict[str, int] | None = None, **values: int) -> NodeSampled:
    sample = NodeSample(reply_us=100, **values)  # type: ignore[arg-type]
    return NodeSampled(node=node, at_ns=round(at_s * NS_PER_S), sample=sample, own=own or {})


def silent(at_s: float, reason: str = "did not answer", **own: int) -> NodeSilent:
    return NodeSilent(node=NAME, at_ns=round(at_s * NS_PER_S), reason=reason, own=own)


def described(when: Reading, at_s: float, own: dict[str, int]) -> NodeDescribed:
    return NodeDescribed(when=when, node=NAME, role="primary", at_ns=round(at_s * NS_PER_S), own=own)


def side_of(*records: NodeSampled | NodeSilent | NodeDescribed) -> NodeSide:
    servers = ServerSide()
    for record in records:
        servers.apply(record, counts=True)
    return servers.nodes["", NAME]


def test_samples_are_kept_in_order_and_once() -> None:
    first, second = sampled(1, commands=5), sampled(2, commands=9)
    assert side_of(first, second, first, second).rows[:, COMMANDS].tolist() == [5, 9]


def test_what_is_unknown_stays_unknown() -> None:
    [row] = side_of(sampled(1)).rows.tolist()
    assert row[:2] == [NS_PER_S, 100]
    assert set(row[2:]) == {-1}


def test_a_long_run_keeps_its_first_and_last_sample_in_a_bounded_number_of_rows() -> None:
    side, count = NodeSide("", NAME), 5 * MOST_ROWS
    for second in range(count):
        side.sampled_at(sampled(second, commands=10 * second))
    rows = side.rows
    assert len(rows) <= MOST_ROWS
    assert len(rows) > MOST_ROWS // 3
    assert (rows[0, COMMANDS], rows[-1, COMMANDS]) == (0, 10 * (count - 1))
    apart = {int(step) // NS_PER_S for step in rows[1:-1, 0] - rows[:-2, 0]}
    assert len(apart) == 1


def test_a_time_without_answers_ends_with_the_next_sample() -> None:
    side = side_of(sampled(1), silent(2), silent(3, "refused the connection"), sampled(5), silent(9))
    assert [(each.since_ns, each.until_ns, each.reason) for each in side.silences] == [
        (2 * NS_PER_S, 5 * NS_PER_S, "did not answer"),
        (9 * NS_PER_S, None, "did not answer"),
    ]


def test_times_without_answers_are_bounded() -> None:
    records = [each for second in range(500) for each in (silent(second), sampled(second + 0.5))]
    assert len(side_of(*records).silences) == MOST_SILENCES


def test_calls_of_ours_count_between_the_two_readings_of_the_ledger() -> None:
    records: list[AnyRecord] = [
        opened(),
        described(Reading.BEFORE, 0, {"info": 2, "config|get": 1}),
        reading(Reading.BEFORE, {}),
        sampled(1),
        sampled(2, own={"cluster|info": 1}),
        silent(3, info=1),
        described(Reading.AFTER, 4, {"info": 2, "slowlog|get": 1}),
        reading(Reading.AFTER, {}),
    ]
    servers = fold(records).servers
    assert servers.own_calls(NAME) == (
        Counter({"info": 4, "cluster|info": 1, "slowlog|get": 1}),
        Counter({"info": 1}),
    )
    assert servers.own_calls("another:1") == (Counter(), Counter())


def test_what_concerns_no_single_server_is_kept_once() -> None:
    servers = ServerSide()
    for _ in range(3):
        servers.apply(NodeSilent(node="", at_ns=1, reason="too many servers", for_good=True), counts=True)
    assert (servers.others, servers.nodes) == (["too many servers"], {})

from __future__ import annotations

import itertools

import pytest

from agent.core.link import FIRST_HEARTBEATS, HELLO_EVERY_NS, REFUSED_FOR_NS, UNANSWERED_NS, Link
from common.protocol.messages import PROTOCOL_MAX, HeartbeatReply, Welcome
from common.units import NS_PER_S
from tests.support.protocol import OTHER_RUN_ID, RUN_ID, welcome

NOW_NS = 77 * NS_PER_S


def joined() -> Link:
    link = Link(NOW_NS)
    link.came_up(NOW_NS)
    assert link.welcomed(welcome(), RUN_ID, NOW_NS)
    return link


def reply(at_ns: int, there_ns: int) -> HeartbeatReply:
    return HeartbeatReply(sent_ns=at_ns, received_ns=there_ns, replied_ns=there_ns)


def test_hello_is_due_at_once_when_the_link_comes_up_and_then_each_second() -> None:
    link = Link(NOW_NS)
    assert not link.hello_is_due(NOW_NS)
    link.came_up(NOW_NS)
    assert link.hello_is_due(NOW_NS)
    assert not link.hello_is_due(NOW_NS + HELLO_EVERY_NS - 1)
    assert link.hello_is_due(NOW_NS + HELLO_EVERY_NS)


def test_a_welcome_agent_says_no_hello_while_it_is_answered() -> None:
    link = joined()
    link.heard(NOW_NS)
    assert not link.hello_is_due(NOW_NS + UNANSWERED_NS)
    assert link.hello_is_due(NOW_NS + UNANSWERED_NS + 1)


def test_a_repeated_welcome_is_no_news_and_keeps_the_clock_estimate() -> None:
    link = joined()
    link.replied(reply(NOW_NS, NOW_NS + 5), RUN_ID, NOW_NS)
    assert not link.welcomed(welcome(), RUN_ID, NOW_NS)
    assert link.clock.count == 1


def test_the_welcome_of_another_coordinator_is_news_and_resets_the_clock_estimate() -> None:
    link = joined()
    link.replied(reply(NOW_NS, NOW_NS + 5), RUN_ID, NOW_NS)
    assert link.welcomed(welcome(), OTHER_RUN_ID, NOW_NS)
    assert link.clock.best is None


def test_a_welcome_under_another_name_is_news() -> None:
    link = joined()
    assert link.welcomed(Welcome(protocol=PROTOCOL_MAX, agent_id="web1-2"), RUN_ID, NOW_NS)


def test_an_answer_of_another_coordinator_is_no_clock_sample() -> None:
    link = joined()
    link.replied(reply(NOW_NS, NOW_NS + 5), OTHER_RUN_ID, NOW_NS)
    assert link.clock.best is None


def test_an_answer_from_before_its_heartbeat_is_no_clock_sample() -> None:
    link = joined()
    link.replied(reply(NOW_NS + 10, NOW_NS), RUN_ID, NOW_NS)
    assert link.clock.best is None


def test_the_first_heartbeats_follow_each_other_quickly() -> None:
    link = joined()
    beats = []
    for step in range(400):
        now_ns = NOW_NS + step * NS_PER_S // 100
        if link.heartbeat_is_due(now_ns):
            beats.append(step)
            link.replied(reply(now_ns, now_ns), RUN_ID, now_ns)
    waits = [after - before for before, after in itertools.pairwise(beats)]
    assert waits == [5] * FIRST_HEARTBEATS + [100] * (len(waits) - FIRST_HEARTBEATS)


def test_no_heartbeat_leaves_before_the_welcome_or_after_the_link_is_lost() -> None:
    link = Link(NOW_NS)
    link.came_up(NOW_NS)
    assert not link.heartbeat_is_due(NOW_NS)
    link.welcomed(welcome(), RUN_ID, NOW_NS)
    assert link.went_down()
    assert not link.heartbeat_is_due(NOW_NS + NS_PER_S)
    assert not link.hello_is_due(NOW_NS + NS_PER_S)
    assert not link.went_down()


def test_only_refusals_over_some_time_prove_a_wrong_token() -> None:
    link = Link(NOW_NS)
    link.examined("", lasting=False)
    assert not link.hopeless
    link.refused(NOW_NS)
    assert not link.hopeless
    link.refused(NOW_NS + REFUSED_FOR_NS)
    assert not link.hopeless
    link.refused(NOW_NS + REFUSED_FOR_NS + 1)
    assert link.hopeless == "the coordinator refuses our token; copy its token file here (--token-file)"


def test_refusals_by_another_server_do_not_blame_the_token() -> None:
    link = Link(NOW_NS)
    for instant_ns in (NOW_NS, NOW_NS + REFUSED_FOR_NS + 1):
        link.refused(instant_ns)
    assert not link.hopeless  # the address was not examined yet
    link.examined("it closes connections", lasting=False)
    assert not link.hopeless


@pytest.mark.parametrize("before", ["", "it closes connections"])
def test_connections_that_a_proxy_closed_do_not_blame_the_token(before: str) -> None:
    link = Link(NOW_NS)
    if before:
        link.examined(before, lasting=False)
    for instant_ns in (NOW_NS, NOW_NS + REFUSED_FOR_NS + 1):
        link.refused(instant_ns)
    link.examined("", lasting=False)
    assert not link.hopeless
    for instant_ns in (NOW_NS, NOW_NS + REFUSED_FOR_NS + 1):
        link.refused(instant_ns)
    assert link.hopeless


def test_a_lasting_obstacle_is_hopeless_when_it_is_found_twice() -> None:
    link = Link(NOW_NS)
    assert link.examined("an HTTP server", lasting=True)
    assert not link.hopeless
    assert not link.examined("an HTTP server", lasting=True)
    assert link.hopeless == "an HTTP server"
    assert link.examined("nothing listens", lasting=False)
    assert not link.hopeless
    assert link.examined("an HTTP server", lasting=True)
    assert not link.hopeless
    link.examined("an HTTP server", lasting=True)
    link.came_up(NOW_NS)
    assert not link.hopeless
    assert link.obstacle == ""


def test_refusals_far_apart_do_not_add_up() -> None:
    link = Link(NOW_NS)
    for minute in range(10):
        link.refused(NOW_NS + minute * 60 * NS_PER_S)
    link.examined("", lasting=False)
    assert not link.hopeless


def test_a_successful_handshake_resets_refusals() -> None:
    link = Link(NOW_NS)
    link.refused(NOW_NS)
    link.came_up(NOW_NS)
    link.refused(NOW_NS + REFUSED_FOR_NS + 1)
    link.examined("", lasting=False)
    assert not link.hopeless

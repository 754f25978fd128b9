from __future__ import annotations

from common.protocol.inbox import Connection
from common.protocol.peer_connections import CONNECTS_PER_S, PENALTY_NS, Peers, Penalties
from common.units import NS_PER_S

NOW_NS = 77 * NS_PER_S
HANDSHAKE_S = 5
SILENTLY = "broken off"


def looked(peers: Peers, now_ns: int = NOW_NS, most: int = 100) -> int:
    peers.check(now_ns, most)
    return peers.refused().total()


def test_an_agent_is_not_refused() -> None:
    peers = Peers(HANDSHAKE_S, SILENTLY)
    peers.accepted(7, NOW_NS)
    peers.succeeded()
    peers.first_message(7, Connection(b"a", 7))
    assert looked(peers) == 0
    peers.disconnected(7)
    assert looked(peers, NOW_NS + 60 * NS_PER_S) == 0
    assert len(peers) == 0


def test_a_handshake_that_fails_is_a_refusal_whether_it_is_reported_or_not() -> None:
    peers = Peers(HANDSHAKE_S, SILENTLY)
    for fileno in (7, 8):
        peers.accepted(fileno, NOW_NS)
    assert looked(peers) == 0
    peers.failed("another token")
    peers.disconnected(7)
    peers.disconnected(8)
    assert looked(peers) == 2
    assert peers.refused() == {"another token": 1, SILENTLY: 1}


def test_a_peer_that_may_still_shake_hands_is_not_refused_yet() -> None:
    peers = Peers(HANDSHAKE_S, SILENTLY)
    peers.accepted(7, NOW_NS)
    assert looked(peers, NOW_NS + HANDSHAKE_S * NS_PER_S) == 0
    peers.disconnected(7)
    assert looked(peers, NOW_NS + HANDSHAKE_S * NS_PER_S) == 1


def test_a_silent_agent_does_not_stay_a_stranger() -> None:
    peers = Peers(HANDSHAKE_S, SILENTLY)
    peers.accepted(7, NOW_NS)
    peers.succeeded()
    late_ns = NOW_NS + 60 * NS_PER_S
    assert peers.check(late_ns, 0) == []
    assert looked(peers, late_ns) == 0


def test_the_oldest_strangers_are_named_when_there_are_too_many() -> None:
    peers = Peers(HANDSHAKE_S, SILENTLY)
    for fileno in range(5):
        peers.accepted(fileno, NOW_NS)
    peers.first_message(0, Connection(b"a", 0))
    assert peers.check(NOW_NS, 2) == [1, 2]


def test_a_postponed_peer_is_not_refused() -> None:
    peers = Peers(HANDSHAKE_S, SILENTLY)
    peers.accepted(7, NOW_NS)
    peers.postponed()
    peers.disconnected(7)
    assert looked(peers) == 0


def test_a_peer_that_sends_endless_bytes_without_a_message_is_found() -> None:
    peers = Peers(HANDSHAKE_S, SILENTLY)
    for fileno in (7, 8):
        peers.accepted(fileno, NOW_NS)
    assert peers.endless({7: 1_000, 8: 1_000}, 100) == []
    peers.message_received(8)
    assert [peer.fileno for peer in peers.endless({7: 1_200, 8: 9_000, 9: 9_000}, 100)] == [7]
    assert [peer.fileno for peer in peers.endless({8: 9_200}, 100)] == [8]


def test_an_address_that_flooded_us_may_connect_rarely_and_others_always() -> None:
    penalties = Penalties()
    assert penalties.may_connect("10.0.0.7", NOW_NS)
    penalties.flooded("10.0.0.7", NOW_NS)
    tries = [penalties.may_connect("10.0.0.7", NOW_NS + step * NS_PER_S // 100) for step in range(100)]
    assert sum(tries) == CONNECTS_PER_S
    assert all(penalties.may_connect("10.0.0.8", NOW_NS) for _ in range(100))


def test_a_flood_is_forgiven_after_a_while() -> None:
    penalties = Penalties()
    penalties.flooded("10.0.0.7", NOW_NS)
    later_ns = NOW_NS + PENALTY_NS + 1
    assert all(penalties.may_connect("10.0.0.7", later_ns) for _ in range(100))


def test_floods_from_very_many_addresses_are_not_all_remembered() -> None:
    penalties = Penalties()
    for number in range(2_000):
        penalties.flooded(f"10.0.{number // 256}.{number % 256}", NOW_NS)
        penalties.may_connect(f"10.0.{number // 256}.{number % 256}", NOW_NS)
    assert penalties.may_connect("10.0.0.0", NOW_NS)
    assert penalties.may_connect("10.0.0.0", NOW_NS)

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from coordinator.analysis.totals.server_side import NodeSide
from coordinator.journal.records import NodeSample, NodeSampled
from coordinator.servers.samples import fields_of, keys_of, parts_of, sample_of

PRIMARY = b"""# Memory\r
used_memory:1000\r
used_memory_rss:1500\r
# Clients\r
connected_clients:7\r
blocked_clients:2\r
# Stats\r
total_commands_processed:900\r
total_net_input_bytes:11\r
total_net_output_bytes:22\r
expired_keys:3\r
evicted_keys:4\r
keyspace_hits:5\r
keyspace_misses:6\r
# Replication\r
role:master\r
connected_slaves:3\r
slave0:ip=10.0.0.1,port=6379,state=online,offset=990,lag=1\r
slave1:ip=10.0.0.2,port=6379,state=online,offset=700,lag=4\r
slave2:ip=10.0.0.3,port=6379,state=wait_bgsave,offset=0,lag=90\r
master_repl_offset:1000\r
# CPU\r
used_cpu_sys:1.5\r
used_cpu_user:2.25\r
used_cpu_sys_main_thread:0.5\r
used_cpu_user_main_thread:0.25\r
# Keyspace\r
db0:keys=10,expires=0,avg_ttl=0\r
db3:keys=5,expires=0,avg_ttl=0\r
"""


def test_a_sample_has_the_load_of_a_primary_and_how_far_its_slowest_online_replica_is_behind() -> None:
    assert sample_of(fields_of(PRIMARY), 250) == NodeSample(
        reply_us=250,
        replica=False,
        cpu_us=3_750_000,
        cpu_main_us=750_000,
        memory=1000,
        rss=1500,
        evicted=4,
        expired=3,
        hits=5,
        misses=6,
        clients=7,
        blocked=2,
        commands=900,
        bytes_in=11,
        bytes_out=22,
        lag_s=4,
        lag_bytes=300,
    )


def test_the_lag_of_a_replica_is_the_time_since_it_heard_from_its_primary() -> None:
    up = {"role": "slave", "master_link_status": "up", "master_last_io_seconds_ago": "2"}
    down = up | {"master_last_io_seconds_ago": "-1", "master_link_down_since_seconds": "30"}
    found = [sample_of(info, 1) for info in (up, down)]
    assert [(sample.replica, sample.lag_s, sample.lag_bytes) for sample in found] == [(True, 2, None), (True, 30, None)]


def test_what_a_server_does_not_report_is_unknown() -> None:
    assert sample_of(fields_of(b"redis_version:7\r\n"), 9) == NodeSample(reply_us=9)


def test_keys_are_those_of_all_databases_and_none_is_a_count_too() -> None:
    assert keys_of(fields_of(PRIMARY)) == 15
    assert keys_of({"role": "master"}) == 0
    assert keys_of({"redis_version": "7"}) is None


def test_cpu_times_beyond_all_bounds_are_unknown() -> None:
    for value in ("1e300", "inf", "nan", "-5", "x"):
        assert sample_of({"used_cpu_user": value, "used_cpu_sys": "1"}, 1).cpu_us is None


@given(st.binary(max_size=300) | st.dictionaries(st.sampled_from(list(fields_of(PRIMARY))), st.text(max_size=30)))
def test_any_reply_gives_a_sample_that_can_be_kept(reply: bytes | dict[str, str]) -> None:
    sample = sample_of(fields_of(reply) if isinstance(reply, bytes) else reply, 1)
    side = NodeSide("", "a:1")
    side.sampled_at(NodeSampled(node="a:1", at_ns=1, sample=sample))
    assert side.rows.shape == (1, 1 + len(msgspec.structs.fields(NodeSample)))


def test_parts_of_a_field_are_read_by_name() -> None:
    assert parts_of("calls=1,usec=2,odd") == {"calls": "1", "usec": "2"}

from __future__ import annotations

import fnmatch
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import TargetError
from common.plan.planned_commands import key_text
from common.plan.schema import Command, Keys, Plan, Target, Workload
from common.units import Count, Seconds
from coordinator.journal.records import CleanedUp
from coordinator.servers.cleanup import CleanUpThread, DeletionProgress, delete_matching, delete_plan_keys
from coordinator.servers.key_patterns import key_patterns
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.runs import wait_until
from tests.support.servers import Server

BOUND_S = 10.0


def plan_of(url: str, *commands: str, prefix: str = "load:", maximum: int = 100, **workload: Any) -> Plan:
    return Plan(
        target=Target(url=url, connect_timeout_s=Seconds(0.5), socket_timeout_s=Seconds(0.5)),
        workload=Workload(
            commands=tuple(Command(command=command) for command in commands or ("SET",)),
            keys=Keys(prefix=prefix, maximum=Count(maximum)),
            **workload,
        ),
    )


def keys_in(server: Server) -> set[bytes]:
    found: Any = server.client().keys("*")
    return set(found)


class FakeStore:
    """A server of keys whose SCAN may return a key twice. unlinked: every key that it was asked to delete."""

    def __init__(self, keys: set[bytes], step: int = 3) -> None:
        self.keys, self._step = set(keys), step
        self._order = sorted(keys)
        self.unlinked: list[bytes] = []
        self._queued: list[tuple[Any, ...]] = []

    def execute_command(self, *args: Any) -> Any:
        if args[0] == "UNLINK":
            self._queued.append(args[1:])
            return self
        name, cursor, _, glob, _, _ = args
        assert name == "SCAN"
        pattern = glob.decode("latin-1")
        end = int(cursor) + self._step
        page = self._order[max(0, int(cursor) - 1) : end]
        found = [key for key in page if key in self.keys and _matches(key.decode("latin-1"), pattern)]
        return 0 if end >= len(self._order) else end, found

    def pipeline(self, transaction: bool) -> FakeStore:
        assert not transaction
        self._queued = []
        return self

    def execute(self, raise_on_error: bool) -> list[Any]:
        assert not raise_on_error
        replies: list[Any] = []
        for keys in self._queued:
            self.unlinked += keys
            replies.append(len(self.keys & set(keys)))
            self.keys -= set(keys)
        return replies


def _matches(key: str, pattern: str) -> bool:
    """Match a Redis glob, whose escapes Python's globs do not have."""
    python, letters = "", iter(pattern)
    for letter in letters:
        if letter == "\\":
            escaped = next(letters)
            python += f"[{escaped}]" if escaped in "*?[" else escaped
        else:
            python += letter
    return fnmatch.fnmatchcase(key, python)


prefixes = st.sampled_from(["load:", "loader:", "load", "l*d:", "l?ad:", "[l]oad:", "load:{", "\\load:", ""])


strangers = st.one_of(
    st.builds(lambda prefix, number: f"{prefix}{number}", prefixes, st.integers(0, 40)),
    st.text("load:{}1*?", max_size=7),
)


@given(
    prefixes,
    st.integers(0, 30),
    st.sets(strangers),
    st.booleans(),
)
def test_only_the_keys_of_the_plan_are_deleted(prefix: str, maximum: int, others: set[str], one_by_one: bool) -> None:
    ours = {f"{prefix}{number}".encode() for number in range(maximum + 1)}
    plan = Plan(
        target=Target(url="redis://h"),
        workload=Workload(
            keys=Keys(prefix=prefix, minimum=Count(0), maximum=Count(maximum)), commands=(Command(command="SET"),)
        ),
    )
    before = ours | {key.encode() for key in others}
    store, progress = FakeStore(before), DeletionProgress()
    delete_matching(
        [store], key_patterns(plan, lambda _: None, lambda _: False).patterns, progress, one_by_one=one_by_one
    )
    assert store.keys == before - ours
    assert (progress.deleted, progress.refused) == (len(ours), 0)


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("prefix", ["load:", "l*d:", "l[a-o]d:", "lo?d:", "l\\od:", "löd:", "{load}:", "%d:"])
def test_a_real_server_keeps_similar_keys(valkey: Server, prefix: str) -> None:
    client = valkey.client()
    similar = {
        f"{prefix}abc", f"{prefix}0", f"{prefix}101", f"{prefix}007", f"{prefix}{{0}}:7", f"{prefix}7:x", f"x{prefix}7",
        "load:7x", "loader:7", "lod:7", "lood:7", "load", "laod:7",
    }  # fmt: skip
    client.mset(dict.fromkeys(similar, "x"))
    client.mset({f"{prefix}{number}": "x" for number in range(1, 101)})
    progress = DeletionProgress()
    delete_plan_keys(plan_of(valkey.url, prefix=prefix), progress)
    assert keys_in(valkey) == {key.encode() for key in similar}
    assert (progress.deleted, progress.refused) == (100, 0)


@pytest.mark.usefixtures("no_leaks")
def test_the_server_reports_which_arguments_are_keys_and_which_commands_write(valkey: Server) -> None:
    plan = plan_of(
        valkey.url, "SADD tags __key__", "XADD events * f v", "ZRANGESTORE best scores 0 -1", "GET secret",
        "EVAL \"return redis.call('SET', KEYS[1], '1')\" 1 made:__key__", "LMOVE from to LEFT RIGHT",
        "PUBLISH channel x",
    )  # fmt: skip
    client = valkey.client()
    for key in ("tags", "best", "scores", "made:load:7", "from", "to", "events"):
        client.set(key, "x")
    for key in ("load:7", "secret", "channel", "f"):
        client.set(key, "x")
    delete_plan_keys(plan, DeletionProgress())
    assert keys_in(valkey) == {b"load:7", b"secret", b"channel", b"f"}


@pytest.mark.usefixtures("no_leaks")
def test_a_user_without_command_info_still_deletes_drawn_keys(valkey: Server) -> None:
    client = valkey.client()
    client.acl_setuser("narrow", enabled=True, passwords=["+word"], commands=["+scan", "+unlink", "+ping"], keys=["*"])
    client.mset({"load:7": "x", "other": "x"})
    plan = plan_of(valkey.url, "SET __key__ x", "HSET other f __data__")
    narrow = Target(url=valkey.url, username="narrow", password="word", client_name=None)
    delete_plan_keys(Plan(target=narrow, workload=plan.workload), DeletionProgress())
    assert keys_in(valkey) == {b"other"}


@pytest.mark.usefixtures("no_leaks")
def test_keys_that_may_not_be_deleted_are_counted_with_the_reply(valkey: Server) -> None:
    client = valkey.client()
    client.acl_setuser("narrow", enabled=True, passwords=["+word"], commands=["+scan", "+ping"], keys=["*"])
    client.set("load:7", "x")
    plan = plan_of(valkey.url)
    narrow = Target(url=valkey.url, username="narrow", password="word", client_name=None)
    cleaned = result_of(
        CleanUpThread(lambda progress: delete_plan_keys(Plan(target=narrow, workload=plan.workload), progress))
    )
    assert (cleaned.deleted, cleaned.left) == (0, 1)
    assert cleaned.error.startswith("UNLINK was answered with NOPERM")


def result_of(cleaning: CleanUpThread) -> CleanedUp:
    return wait_until(cleaning.result, "an end of the clean-up", BOUND_S)  # type: ignore[return-value]


@pytest.mark.usefixtures("no_leaks")
def test_a_complete_clean_up_counts_the_deleted_keys(valkey: Server) -> None:
    valkey.client().mset({f"load:{number}": "x" for number in range(1, 101)})
    cleaned = result_of(CleanUpThread(lambda progress: delete_plan_keys(plan_of(valkey.url), progress)))
    assert (cleaned.deleted, cleaned.left, cleaned.error) == (100, 0, "")
    assert cleaned.took_ns > 0


@pytest.mark.parametrize(("keys_before", "deleted"), [(105, (100, 60, 0)), (10, (40, 0, 0))])
def test_keys_that_a_killed_coordinator_had_deleted_are_in_the_count(
    valkey: Server, keys_before: int, deleted: tuple[int, int, int]
) -> None:
    """105 keys before: 60 of the plan's are gone already. 10 keys: others have added keys since."""
    valkey.client().mset({f"load:{number}": "x" for number in range(1, 41)})
    valkey.client().mset({f"other:{number}": "x" for number in range(5)})
    cleaned = result_of(CleanUpThread(lambda progress: delete_plan_keys(plan_of(valkey.url), progress, keys_before)))
    assert (cleaned.deleted, cleaned.earlier, cleaned.left) == deleted
    assert keys_in(valkey) == {b"other:%d" % number for number in range(5)}


@pytest.mark.usefixtures("no_leaks")
def test_a_stopped_clean_up_leaves_the_remaining_keys(valkey: Server) -> None:
    valkey.client().mset({f"load:{number}": "x" for number in range(1, 101)})
    began, go_on = threading.Event(), threading.Event()

    def delete(progress: DeletionProgress) -> None:
        began.set()
        assert go_on.wait(BOUND_S)
        delete_plan_keys(plan_of(valkey.url), progress)

    cleaning = CleanUpThread(delete)
    assert began.wait(BOUND_S)
    assert cleaning.result() is None
    cleaning.stop()
    go_on.set()
    cleaned = result_of(cleaning)
    assert (cleaned.deleted, cleaned.left, cleaned.error) == (0, None, "interrupted")
    assert valkey.client().dbsize() == 100


@pytest.mark.usefixtures("no_leaks")
def test_a_stopped_clean_up_does_not_wait_for_a_target_that_hangs(valkey: Server) -> None:
    began, let_go = threading.Event(), threading.Event()

    def hang(_: DeletionProgress) -> None:
        began.set()
        let_go.wait(BOUND_S)

    cleaning = CleanUpThread(hang)
    assert began.wait(BOUND_S)
    cleaning.stop()
    assert result_of(cleaning).error == "interrupted"
    let_go.set()
    cleaning._thread.join(BOUND_S)
    assert valkey.port


@pytest.mark.usefixtures("no_leaks")
def test_the_remaining_keys_of_a_dead_target_are_unknown(refusing_url: str) -> None:
    cleaned = result_of(CleanUpThread(lambda progress: delete_plan_keys(plan_of(refusing_url), progress)))
    assert (cleaned.deleted, cleaned.left) == (0, None)
    assert "refused the connection" in cleaned.error


def test_an_unexpected_error_ends_only_the_clean_up() -> None:
    def crash(progress: DeletionProgress) -> None:
        progress.deleted = 7
        raise ZeroDivisionError

    cleaned = result_of(CleanUpThread(crash, lambda error: (1, f"a bug in redis-stampede: {type(error).__name__}")))
    assert (cleaned.deleted, cleaned.left, cleaned.error) == (7, None, "a bug in redis-stampede: ZeroDivisionError")


def test_a_clean_up_without_a_reply_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.servers.cleanup.HANG_NS", 0)
    let_go = threading.Event()
    cleaned = result_of(CleanUpThread(lambda _: let_go.wait(BOUND_S) and None))
    assert (cleaned.left, cleaned.error) == (None, "the target did not answer for 0 s")
    let_go.set()


def test_keys_that_contain_values_are_refused(valkey: Server) -> None:
    with pytest.raises(TargetError, match="keys that SET wrote contain a value"):
        delete_plan_keys(plan_of(valkey.url, "SET __key__:__data__ x"), DeletionProgress())


@pytest.mark.parametrize("per_hash_tag", [0, 10])
def test_a_cluster_is_cleaned_on_all_its_primaries(shared_cluster: ClusterGroup, per_hash_tag: int) -> None:
    client = shared_cluster.client()
    strangers = ("load:101", "load:{x}:7", "loader:7", "load:{7}:7", "load:abc")
    ours = [key_text("load:", number, per_hash_tag).decode() for number in range(1, 101)]
    client.mset_nonatomic(dict.fromkeys((*strangers, *ours), "x"))
    keys = Keys(prefix="load:", maximum=Count(100), per_hash_tag=per_hash_tag)
    plan = Plan(target=Target(url=shared_cluster.url), workload=Workload(commands=(Command(command="SET"),), keys=keys))
    progress = DeletionProgress()
    delete_plan_keys(plan, progress)
    assert (progress.deleted, progress.refused) == (100, 0)
    assert client.exists(*strangers) == len(strangers)
    assert sum(shared_cluster.at(port).dbsize() for port in shared_cluster.primaries) == len(strangers)


def test_the_primary_behind_sentinels_is_cleaned(shared_sentinel: SentinelGroup) -> None:
    shared_sentinel.client().mset({"load:7": "x", "mine": "x"})
    delete_plan_keys(plan_of(shared_sentinel.url), DeletionProgress())
    assert shared_sentinel.at(shared_sentinel.primary).keys("*") == ["mine"]

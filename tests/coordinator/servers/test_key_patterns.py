from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.plan.planned_commands import key_text
from common.plan.schema import Command, Keys, Plan, Preload, Target, Then, Workload
from common.units import Count
from coordinator.servers.key_patterns import FindKeys, KeyPattern, KeyPatterns, key_patterns

KEYS = Keys(prefix="k:", minimum=Count(3), maximum=Count(120))


def no_keys_known(_: tuple[bytes, ...]) -> None:
    return None


def second_argument(arguments: tuple[bytes, ...]) -> frozenset[bytes]:
    return frozenset(arguments[1:2])


def of(*commands: str, find_keys: FindKeys = no_keys_known, url: str = "redis://h", **workload: object) -> KeyPatterns:
    entries = tuple(Command(command=command) for command in commands)
    plan = Plan(target=Target(url=url), workload=Workload(keys=KEYS, commands=entries, **workload))  # type: ignore[arg-type]
    return key_patterns(plan, find_keys, lambda name: name == "MODULE.WRITE")


def matches(found: KeyPatterns, key: str) -> bool:
    return any(pattern.matches(key.encode()) for pattern in found.patterns)


def test_only_keys_of_the_range_match() -> None:
    found = of("SET")
    assert [pattern.glob for pattern in found.patterns] == [b"k:*"]
    assert all(matches(found, f"k:{number}") for number in range(3, 121))
    strangers = (
        "k:2",
        "k:121",
        "k:03",
        "k:3 ",
        "k:3\n",
        "k:+3",
        "k:-3",
        "k:abc",
        "k:",
        "k:3:x",
        "ak:3",
        "k:{0}:3",
        "K:3",
        "k:٣",
        "k:3_0",
        "k:1e1",
    )
    assert not any(matches(found, key) for key in strangers)


def test_commands_that_only_read_have_no_patterns() -> None:
    assert of("GET", "MGET __keys(3)__", "PING", "MODULE.READ __key__").patterns == ()


def test_the_server_is_asked_whether_an_unknown_command_writes() -> None:
    assert matches(of("MODULE.WRITE __key__ 1"), "k:7")


def test_scripts_may_write() -> None:
    assert matches(of("EVAL 'return 1' 1 __key__"), "k:7")


def test_keys_of_follow_ups_preload_and_setup_match_too() -> None:
    plan = Plan(
        target=Target(url="redis://h"),
        workload=Workload(
            keys=KEYS,
            commands=(
                Command(command="GET", key_prefix="g:", then=(Then(command="SET"),)),
                Command(command="SET", key_prefix="never:", weight=0.0),
            ),
            preload=(Preload(key_prefix="p:", key_maximum=Count(5)),),
            setup=("XGROUP CREATE __key__ group 0 MKSTREAM",),
        ),
    )
    found = key_patterns(plan, no_keys_known, lambda name: name == "XGROUP")
    assert all(matches(found, key) for key in ("g:120", "p:5", "k:3"))
    assert not any(matches(found, key) for key in ("p:6", "never:7", "g:121"))


def test_new_keys_match_beyond_the_range() -> None:
    found = of("SET __new_key__ x")
    assert matches(found, "k:121")
    assert matches(found, "k:99999999999999999999")
    assert not matches(found, "k:120")


def test_hash_tags_must_fit_their_number() -> None:
    found = of("MSET __pairs(2)__", url="redis+cluster://h:1")
    assert matches(found, key_text("k:", 117, 100).decode())
    assert matches(found, "k:{1}:117")
    assert not any(matches(found, key) for key in ("k:{0}:117", "k:117", "k:{x}:117", "k:{}:117", "k:{2}:217"))


def test_literal_keys_match_exactly_and_other_arguments_do_not() -> None:
    found = of("SADD tags* __key__", find_keys=second_argument)
    assert [pattern.glob for pattern in found.patterns] == [rb"tags\*"]
    assert matches(found, "tags*")
    assert not any(matches(found, key) for key in ("tagsx", "tags", "k:7"))


def test_a_random_number_within_a_key_must_be_in_its_range() -> None:
    found = of("HSET user:__key__:__rand(1,20)__ f v")
    assert [pattern.glob for pattern in found.patterns] == [b"user:k:*"]
    assert matches(found, "user:k:7:20")
    assert not any(
        matches(found, key) for key in ("user:k:7:21", "user:k:7:0", "user:k:2:20", "user:k:7:007", "user:k:7")
    )


def test_a_named_number_is_the_same_at_each_place_in_a_key() -> None:
    found = of("HSET user:__rand(1,20):r__:__key:k__:__rand(1,20):r__:__key:k__ f __rand(1,20):r__")
    assert [pattern.glob for pattern in found.patterns] == [b"user:*"]
    assert matches(found, "user:7:k:9:7:k:9")
    assert not any(matches(found, key) for key in ("user:7:k:9:8:k:9", "user:7:k:9:7:k:8", "user:21:k:9:21:k:9"))
    assert matches(of("BITOP OR __key:k__ a:__key:k__", find_keys=lambda words: frozenset(words[2:])), "a:k:7")


def test_a_key_that_contains_a_value_is_unrecognizable() -> None:
    found = of("SET __key__:__data__ x")
    assert (found.patterns, found.unrecognizable) == ((), ("SET",))


def test_glob_characters_of_a_prefix_are_escaped() -> None:
    found = of("SET __key__ x", "SET 'k[a-z]?*\\__key__' x")
    assert rb"k\[a\-z\]\?\*\\k:*" in [pattern.glob for pattern in found.patterns]


prefixes = st.text(alphabet="ab:*?[]\\-^{}1", max_size=6)


@given(prefixes, st.integers(0, 300), st.integers(0, 300), st.integers(0, 400), st.sampled_from([0, 1, 7]))
def test_a_pattern_matches_exactly_the_keys_of_its_range(
    prefix: str, low: int, span: int, number: int, per_hash_tag: int
) -> None:
    keys = Keys(prefix=prefix, minimum=Count(low), maximum=Count(low + span), per_hash_tag=per_hash_tag)
    plan = Plan(target=Target(url="redis://h"), workload=Workload(keys=keys, commands=(Command(command="SET"),)))
    [pattern] = key_patterns(plan, no_keys_known, lambda _: False).patterns
    assert pattern.matches(key_text(prefix, number, per_hash_tag)) == (low <= number <= low + span)


@given(st.binary(max_size=12))
def test_a_pattern_matches_no_other_bytes(key: bytes) -> None:
    [pattern] = of("SET").patterns
    made = {b"k:%d" % number for number in range(3, 121)}
    assert pattern.matches(key) == (key in made)
    assert isinstance(pattern, KeyPattern)

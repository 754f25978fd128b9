from __future__ import annotations

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PlanError
from common.plan.schema.target_url import Address, Host, TargetKind, parse_redis_url, redact_url

SECRET = "SeCrEt-never-shown"

words = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
names = st.text(string.ascii_lowercase + string.digits + "-.", min_size=1, max_size=20)
ends = st.builds(
    Host, names | st.sampled_from(["::1", "fe80::a1", "fe80::1%Eth0", "fe80::1%25"]), st.integers(1, 65535)
)
ONE = (Host("host"),)
TWO = (Host("a", 1), Host("::1", 6379))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", Address(hosts=(Host("localhost"),))),
        ("redis://10.0.0.1:7000/3", Address(hosts=(Host("10.0.0.1", 7000),), db=3)),
        ("redis://host/", Address(hosts=ONE)),
        ("redis://HOST", Address(hosts=ONE)),
        ("redis://:secret@host", Address(hosts=ONE, password="secret")),
        ("redis://bob:pass%20word@host:1", Address(hosts=(Host("host", 1),), username="bob", password="pass word")),
        ("redis://bob@host", Address(hosts=ONE, username="bob")),
        ("redis://[::1]:6380/1", Address(hosts=(Host("::1", 6380),), db=1)),
        ("redis://[FE80::1%25Eth0.1]:6380", Address(hosts=(Host("fe80::1%Eth0.1", 6380),))),
        ("redis://[fe80::1%eth0]", Address(hosts=(Host("fe80::1%eth0"),))),
        ("[fe80::1%25lo]:1", Address(hosts=(Host("fe80::1%lo", 1),))),
        ("redis://[fe80::1%251]", Address(hosts=(Host("fe80::1%1"),))),
        ("redis://[fe80::1%25]", Address(hosts=(Host("fe80::1%25"),))),
        (
            "rediss+sentinel://[fe80::1%25a],[fe80::2%b]:1/x",
            Address(
                kind=TargetKind.SENTINEL, tls=True, hosts=(Host("fe80::1%a", 26379), Host("fe80::2%b", 1)), service="x"
            ),
        ),
        ("redis+cluster://[fe80::1%25a]:1/3", Address(kind=TargetKind.CLUSTER, hosts=(Host("fe80::1%a", 1),), db=3)),
        (" redis://host ", Address(hosts=ONE)),
        ("rediss://host", Address(hosts=ONE, tls=True)),
        ("unix:///run/a%20b.sock", Address(path="/run/a b.sock")),
        ("unix://bob:pw@/run/x.sock?db=3", Address(path="/run/x.sock", username="bob", password="pw", db=3)),
        (
            "redis+sentinel://a,b:1/mymaster",
            Address(kind=TargetKind.SENTINEL, hosts=(Host("a", 26379), Host("b", 1)), service="mymaster"),
        ),
        (
            "rediss+sentinel://bob:pw@a/my%2Fown/2",
            Address(
                kind=TargetKind.SENTINEL,
                tls=True,
                hosts=(Host("a", 26379),),
                service="my/own",
                db=2,
                username="bob",
                password="pw",
            ),
        ),
        ("redis+cluster://a:1,[::1]", Address(kind=TargetKind.CLUSTER, hosts=TWO)),
        ("rediss+cluster://:pw@a:1,[::1]/0", Address(kind=TargetKind.CLUSTER, tls=True, hosts=TWO, password="pw")),
        ("127.0.0.1:6380", Address(hosts=(Host("127.0.0.1", 6380),))),
        ("localhost", Address(hosts=(Host("localhost"),))),
        ("localhost/3", Address(hosts=(Host("localhost"),), db=3)),
        ("redis:6379", Address(hosts=(Host("redis", 6379),))),
        ("[::1]:6380", Address(hosts=(Host("::1", 6380),))),
        ("[::1]", Address(hosts=(Host("::1"),))),
        ("my_host.example", Address(hosts=(Host("my_host.example"),))),
        ("bob:p%40w@host:1/2", Address(hosts=(Host("host", 1),), db=2, username="bob", password="p@w")),
        (":pw@host", Address(hosts=ONE, password="pw")),
    ],
)
def test_a_url_has_the_address_and_the_user(url: str, address: Address) -> None:
    assert parse_redis_url(url) == address


@given(username=words, password=words, port=st.integers(1, 65535), db=st.integers(0, 10**6))
def test_credentials_are_percent_decoded(username: str, password: str, port: int, db: int) -> None:
    address = parse_redis_url(f"redis://{quote(username, safe='')}:{quote(password, safe='')}@host:{port}/{db}")
    assert address == Address(hosts=(Host("host", port),), db=db, username=username, password=password)


@given(
    address=st.builds(Address, hosts=st.tuples(ends), tls=st.booleans(), db=st.integers(0, 99))
    | st.builds(Address, path=words.map(lambda text: f"/{text}"), db=st.integers(0, 99))
    | st.builds(
        Address,
        kind=st.just(TargetKind.SENTINEL),
        tls=st.booleans(),
        hosts=st.lists(ends, min_size=1, max_size=4).map(tuple),
        service=words,
        db=st.integers(0, 99),
    )
    | st.builds(
        Address,
        kind=st.just(TargetKind.CLUSTER),
        tls=st.booleans(),
        hosts=st.lists(ends, min_size=1, max_size=4).map(tuple),
        db=st.integers(0, 99),
    )
)
def test_the_url_of_an_address_parses_as_that_address(address: Address) -> None:
    assert parse_redis_url(address.url) == address


@given(st.text())
def test_any_text_is_an_address_or_is_refused_in_one_line(text: str) -> None:
    try:
        parse_redis_url(text)
    except PlanError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "no host"),
        (":6379", "no host"),
        ("localhost:", "a port is missing"),
        ("localhost:port", "port"),
        ("a:1,b:2", "redis+cluster://"),
        ("/run/redis.sock", "unix:///"),
        ("plan.yaml", "name of a file"),
        ("::1", "brackets"),
        ("fe80::1:6379", "brackets"),
        ("bob:pw@::1", "brackets"),
        ("redis//host", "ends in ://"),
        ("redis//:pw@host", "ends in ://"),
        ("redis:/host", "ends in ://"),
        ("unix:/run/x.sock", "ends in ://"),
        ("redis:host:6379", "port"),
        ("host?db=1", "options"),
        ("GET key", "no scheme"),
        ("http://host", '"http"'),
        ("redis+both://host", '"redis+both"'),
        ("redis://", "no host"),
        ("redis://:6379", "no host"),
        ("redis://host:0", "port is 0"),
        ("redis://host:70000", "port"),
        ("redis://host:port", "port"),
        ("redis://a:1,b:2", "port"),
        ("redis://[::1", "port"),
        ("redis://[::1%]", "port"),
        ("redis://[::1%a/b]", "port"),
        ("redis://::1", "port"),
        ("redis://host/one", "database"),
        ("redis://host/-1", "database"),
        ("redis://host?db=1", "options"),
        ("redis://host#x", "options"),
        ("unix://", "no absolute path"),
        ("unix://host/path", "no absolute path"),
        ("unix:///path?db=x", "database"),
        ("unix:///path?timeout=1", "options"),
        ("redis+sentinel://host", "no service"),
        ("redis+sentinel://host,/x", "no host"),
        ("redis+sentinel://host/x/y", "database"),
        ("redis+cluster://a,,b", "no host"),
        ("redis+cluster://a:x", "port"),
    ],
)
def test_a_malformed_url_is_refused_in_one_line(url: str, why: str) -> None:
    with pytest.raises(PlanError, match=r"expected (redis|unix)") as caught:
        parse_redis_url(url)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://bob:{SECRET}@host:notaport",
        f"redis://bob:1/{SECRET}@host",
        f"redis://bob:a/{SECRET}@host",
        f"redis://bob:{SECRET}@host/zero",
        f"http://:{SECRET}@host",
        f"redis://bob:x@{SECRET}@host/zero",
        f"redis://bob:a://{SECRET}@host/zero",
        f"redis+cluster://bob:a/{SECRET}@host,other",
        f"redis+sentinel://bob:{SECRET}@host,other",
        f"unix://bob:{SECRET}@host/path",
        f"bob:{SECRET}@host:notaport",
        f"bob:a://{SECRET}@host",
        f"bob:1/{SECRET}@host",
        f"redis//:{SECRET}@host",
        f"redis:/:{SECRET}@host",
        f"redis:{SECRET}@a,b",
        f"bob:{SECRET}@/run/x.sock",
        f"bob:{SECRET}@::1",
    ],
)
def test_a_refusal_never_shows_the_password(url: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_redis_url(url)
    assert SECRET not in str(caught.value)


def test_the_user_part_of_a_url_is_redacted() -> None:
    assert redact_url("redis://bob:secret@host:1/2") == "redis://***@host:1/2"
    assert redact_url("redis://:secret@host") == "redis://***@host"
    assert redact_url("redis://bob@host") == "redis://***@host"
    assert redact_url("redis://host") == "redis://host"
    assert redact_url("bob:secret@host") == "***@host"
    assert redact_url("redis//:secret@host") == "***@host"
    assert redact_url("bob:a://secret@host") == "***@host"
    assert redact_url("redis+cluster://:secret@a:1,b:2") == "redis+cluster://***@a:1,b:2"


def test_a_malformed_url_without_a_user_part_is_redacted() -> None:
    assert redact_url("redis://bob:secret") == "redis://***"
    assert redact_url("redis://host:1/secret") == "redis://host:1/***"
    assert redact_url("redis://host?password=secret") == "redis://host?***"
    assert redact_url("unix:///run/redis.sock?password=secret") == "unix:///run/redis.sock?***"
    for url in ("redis://[::1]:1/2", "unix:///run/redis.sock?db=2", "redis+sentinel://a:1,b/main/3", "host:6379"):
        assert redact_url(url) == url


def test_an_address_never_shows_its_password() -> None:
    address = Address(hosts=(Host("::1", 1),), username="bob", password=SECRET)
    assert SECRET not in repr(address) + str(address)
    assert str(address) == "[::1]:1"
    zoned = Address(hosts=(Host("fe80::1%eth0"),))
    assert (str(zoned), zoned.url) == ("[fe80::1%eth0]:6379", "redis://[fe80::1%25eth0]:6379/0")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("unix:///run/x.sock", "/run/x.sock"),
        ("redis+sentinel://a,b/mymaster", "mymaster of Sentinels a:26379,b:26379"),
        ("redis+cluster://a,b:1", "cluster a:6379,b:1"),
    ],
)
def test_an_address_has_a_text_for_people(url: str, text: str) -> None:
    assert str(parse_redis_url(url)) == text

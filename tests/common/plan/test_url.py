from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PlanError
from common.plan.url import Address, parse_redis_url, redact_url

SECRET = "hunter2hunter2"
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", Address(host="localhost")),
        ("redis://10.0.0.1:7000/3", Address(host="10.0.0.1", port=7000, db=3)),
        ("redis://host/", Address(host="host")),
        ("redis://:secret@host", Address(host="host", password="secret")),
        ("redis://bob:pass%20word@host:1", Address(host="host", port=1, username="bob", password="pass word")),
        ("redis://bob@host", Address(host="host", username="bob")),
        ("redis://[::1]:6380/1", Address(host="::1", port=6380, db=1)),
        (" redis://host ", Address(host="host")),
    ],
)
def test_a_url_says_where_and_who(url: str, address: Address) -> None:
    assert parse_redis_url(url) == address


@given(username=words, password=words, port=st.integers(1, 65535), db=st.integers(0, 10**6))
def test_percent_encoded_credentials_come_back_as_they_were(username: str, password: str, port: int, db: int) -> None:
    address = parse_redis_url(f"redis://{quote(username, safe='')}:{quote(password, safe='')}@host:{port}/{db}")
    assert address == Address(host="host", port=port, db=db, username=username, password=password)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "no scheme"),
        ("localhost:6379", "scheme"),
        ("http://host", '"http"'),
        ("rediss://host", '"rediss"'),
        ("redis://", "no host"),
        ("redis://:6379", "no host"),
        ("redis://host:0", "port is 0"),
        ("redis://host:70000", "port"),
        ("redis://host:port", "port"),
        ("redis://[::1", "port"),
        ("redis://host/one", "database"),
        ("redis://host/-1", "database"),
        ("redis://host?db=1", "options"),
        ("redis://host#x", "options"),
    ],
)
def test_what_is_no_redis_url_is_refused_in_one_line(url: str, why: str) -> None:
    with pytest.raises(PlanError, match="expected redis://") as caught:
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
    ],
)
def test_a_refusal_never_shows_the_password(url: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_redis_url(url)
    assert SECRET not in str(caught.value)


def test_a_url_is_redacted_but_for_its_password() -> None:
    assert redact_url("redis://bob:secret@host:1/2") == "redis://bob:***@host:1/2"
    assert redact_url("redis://:secret@host") == "redis://:***@host"
    assert redact_url("redis://bob@host") == "redis://bob@host"
    assert redact_url("redis://host") == "redis://host"


def test_an_address_never_shows_its_password() -> None:
    address = Address(host="::1", port=1, username="bob", password=SECRET)
    assert SECRET not in repr(address) + str(address)
    assert str(address) == "[::1]:1"

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import PlanError
from common.plan.loading.sources import load_plan, parse_plan_file
from common.plan.schema.target_url import parse_redis_url
from common.plan.settings import SETTINGS, Setting
from common.redaction import hide_userinfo, hide_values

MARKERS = [
    "Xq7marker",
    "9021073355",
    "*Xq7marker",
    "&Xq7marker",
    "!Xq7marker",
    "%Xq7marker",
    "@Xq7marker",
    "Xq7,mar}ker",
]
PLANS = [
    "target:\n  url: redis://localhost\n  password: {}\n  username: app\nload: {{duration: 1s}}\n",
    "target: {{password: {}, url: redis://localhost}}\nload:\n  duration: 1s\n",
    "target:\n  url: redis+sentinel://localhost/main\n  sentinel:\n    password: {}\nload: {{duration: 1s}}\n",
    "target:\n  password: &{} x\n  url: redis://localhost\n",
    "target:\n  password: !!int {}\n  url: redis://localhost\n",
    "target:\n  password: !!timestamp {}\n",
    "target:\n  password: !!bool {}\n",
    'target:\n  password: "{}"\n  url: redis://app:{}@localhost:6379/0\n',
    '{{"target": {{"password": "{}", "url": "redis://localhost"}}, "load": {{"duration": 1}}}}',
    "target:\n  url: redis://:{}@localhost:6379/0\nload:\n  duration: 1s\n",
    "target:\n  url: redis+cluster://app:{}@a:6379,b:6380\nload:\n  duration: 1s\n",
]
URLS = [
    "redis://:{}@localhost:6379/0",
    "rediss://app:{}@localhost",
    "unix://:{}@/run/redis.sock?db=1",
    "redis+sentinel://app:{}@a:26379,b/main/0",
    "app:{}@localhost:6379",
]
_LETTERS = string.punctuation + " \n\t0aé"


def refusal(parse: Callable[[], object]) -> str:
    """What it says of a text that it refuses; nothing of one that it takes."""
    try:
        parse()
    except (PlanError, ValueError) as error:
        return str(error)
    return ""


@st.composite
def mutated(draw: st.DrawFn, forms: list[str]) -> tuple[str, str]:
    """(a secret, a text with it in which up to three letters beside it were left out, added or replaced)."""
    form = draw(st.sampled_from(forms))
    # In a URL whose own @ is lost, the one of a password would begin the host.
    marker = draw(st.sampled_from([marker for marker in MARKERS if "@" not in marker or "}@" not in form]))
    parts = form.replace("{{", "{").replace("}}", "}").split("{}")
    for _ in range(draw(st.integers(0, 3))):
        number = draw(st.integers(0, len(parts) - 1))
        at = draw(st.integers(0, len(parts[number])))
        removed = draw(st.integers(0, 1))
        added = draw(st.sampled_from(["", *_LETTERS]))
        parts[number] = parts[number][:at] + added + parts[number][at + removed :]
    return marker, marker.join(parts)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@settings(max_examples=500, deadline=None, derandomize=True)
@given(mutated(PLANS), st.sampled_from(["plan.yaml", "plan.json"]))
def test_no_message_about_a_mutated_plan_shows_its_password(directory: Path, case: tuple[str, str], name: str) -> None:
    marker, text = case
    (directory / name).write_text(text)
    assert marker not in refusal(lambda: load_plan(directory / name, {}, {}))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(mutated(URLS))
@example(("Xq7marker", "redis//:Xq7marker@h"))
@example(("Xq7marker", "redis://app:Xq7marker"))
@example(("Xq7marker", "redis://h:6379/Xq7marker"))
@example(("Xq7marker", "redis://h?password=Xq7marker"))
def test_no_message_about_a_mutated_url_shows_its_password(case: tuple[str, str]) -> None:
    marker, url = case
    assert marker not in hide_userinfo(refusal(lambda: parse_redis_url(url)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('expected a duration, got "redis://me:s3cret@h"', 'expected a duration, got "redis://***@h"'),
        ("no such option: redis:/:s3cret@h", "no such option: redis:/***@h"),
        ("redis//:s3cret@h: no such file", "redis//***@h: no such file"),
        ('got ":s3cret@h"', 'got "***@h"'),
        ('got "redis://:a@b s3cret@h"', 'got "redis://***@h"'),
        (
            'expected redis://[username[:password]@]host[:port][/db], got "redis://me:s3cret@"',
            'expected redis://[username[:password]@]host[:port][/db], got "redis://***@"',
        ),
        ('expected [NAME=]TIME[@RATE[:linear]] such as "30s@10k/s:linear"', None),
        ('expected a duration, got "redis://me:s3cret"', 'expected a duration, got "redis://***"'),
        ("/builds/job@2/plan.yaml: $.load.rate: expected a rate", None),
        ('expected redis://, or redis+cluster://, got "a@b"', None),
        ('expected rediss:// or unix://, got ":s3cret@h"', 'expected rediss:// or unix://, got "***@h"'),
        ("redis://h:6379 refused the connection", None),
        ("use --url redis://HOST:PORT or --embedded-server", None),
        ("use --url redis://HOST:PORT/DB", None),
        ("redis://HOST:PORTs3cret failed", "redis://*** failed"),
        ('no run "redis://h?password=s3cret&db=1"', 'no run "redis://h?password=***&db=1"'),
        ('got "h:6379,Password=s3cret,ssl=true"', 'got "h:6379,Password=***,ssl=true"'),
        ("redis:/h?password=s3c:ret: no token there", "redis:/h?password=***: no token there"),
        ("expected --password-env=NAME or password_file", None),
    ],
)
def test_the_user_part_of_a_url_is_hidden_and_nothing_else(text: str, shown: str | None) -> None:
    assert hide_userinfo(text) == (text if shown is None else shown)


def test_values_are_hidden_in_every_form_in_which_a_message_quotes_them() -> None:
    long = "x\ty" * 40
    assert hide_values(f'got "{long[:30]}"', ["abc"]) == f'got "{long[:30]}"'
    assert "x" not in hide_values('got "' + long.replace("\t", "\\t")[:57] + '..."', [long])
    assert hide_values('line 3: got "3"', ["3"]) == 'line 3: got "***"'
    assert hide_values('got "AUTH s3cret-s3c..."', ["s3cret-s3cret"]) == 'got "AUTH ***..."'
    assert hide_values("expected redis://...", ["redistribute"]) == "expected redis://..."


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("90210733", "a number; put it in quotes"),
        ("true", "true or false; put it in quotes"),
        ("[s3cret]", "a list"),
        ("{s3cret: 1}", "a mapping"),
        ("!!set {s3cret}", "a value of type set"),
        ("!!binary czNjcmV0", "a value of type bytes"),
    ],
)
def test_a_password_that_is_not_text_is_refused_without_its_value(said: str, found: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan_file(f"target: {{password: {said}}}".encode(), "plan.yaml")
    assert str(caught.value) == f"plan.yaml: $.target.password: expected text, got {found}"


@pytest.mark.parametrize(
    "text", ["target: {password_env: 90210733}", "target: {password_file: 90210733}", "target: 90210733"]
)
def test_a_number_that_may_be_a_password_in_the_wrong_place_is_not_shown(text: str) -> None:
    message = refusal(lambda: parse_plan_file(text.encode(), "plan.yaml"))
    assert "got a number" in message
    assert "90210733" not in message


def test_a_variable_with_a_password_that_cannot_be_read_is_refused_without_its_value() -> None:
    with pytest.raises(PlanError) as caught:
        load_plan(None, {}, {"STAMPEDE_PASSWORD": "s3cret\udcff"})
    assert str(caught.value) == "STAMPEDE_PASSWORD: expected text, got text that is not UTF-8"


def test_a_url_given_as_the_plan_is_refused_with_the_flag_and_without_the_password() -> None:
    with pytest.raises(PlanError) as caught:
        load_plan(Path("redis://:s3cret@h:6379"), {}, {})
    assert str(caught.value) == "redis://***@h:6379: expected a plan file, got a URL; use --url for a target"


@pytest.mark.parametrize("url", ["redis://h:6379:s3cret", "redis://h/s3cret", "unix://x:s3cret"])
def test_a_url_in_the_place_of_the_plan_shows_no_password(url: str) -> None:
    assert "s3cret" not in refusal(lambda: load_plan(Path(url), {}, {}))


@pytest.mark.parametrize("setting", [each for each in SETTINGS if each.flag], ids=lambda each: each.flag)
def test_a_url_given_to_any_flag_is_refused_without_its_password(setting: Setting) -> None:
    assert "s3cret" not in hide_userinfo(refusal(lambda: setting.parse("redis://me:s3cret@h")))

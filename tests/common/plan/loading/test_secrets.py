from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from common.errors import PlanError
from common.plan.loading.secrets import resolve_secrets, secret_variables, with_secrets_of
from common.plan.plan_text import redacted
from common.plan.schema import Plan, Sentinel, Target
from common.redaction import REDACTED

SECRET = "s3cret: å/@"


def plan(**target: str) -> Plan:
    return Plan(target=Target(**{"url": "redis://h:1/2", **target}))  # type: ignore[arg-type]


def refusal(unresolved: Plan, **environ: str) -> str:
    with pytest.raises(PlanError) as caught:
        resolve_secrets(unresolved, environ)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_credentials_move_out_of_the_url() -> None:
    target = resolve_secrets(plan(url="redis://bob:s3cret%2F%40@h:1/2"), {}).target
    assert (target.url, target.username, target.password) == ("redis://h:1/2", "bob", "s3cret/@")


def test_a_url_without_credentials_stays_as_it_was_written() -> None:
    assert resolve_secrets(plan(url="redis://h"), {}).target.url == "redis://h"


def test_the_password_comes_from_the_plan_the_environment_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET + "\r\n")
    for unresolved in (plan(password=SECRET), plan(password_env="PW"), plan(password_file=str(file))):
        assert resolve_secrets(unresolved, {"PW": SECRET}).target.password == SECRET


def test_two_sources_of_a_password_are_refused() -> None:
    assert refusal(plan(password=SECRET, password_env="PW")) == (
        "plan: $.target.password_env: expected the password once, got password and password_env"
    )
    assert refusal(plan(url="redis://:x@h", password_env="PW")) == (
        "plan: $.target.url: expected the password once, got password_env and url"
    )


def test_a_password_variable_that_is_unset_or_empty_is_refused() -> None:
    wanted = "plan: $.target.password_env: expected an environment variable with the password, got "
    assert refusal(plan(password_env="PW")) == wanted + '"PW", which is not set'
    assert refusal(plan(password_env="PW"), PW="") == wanted + '"PW", which is empty'


def test_a_password_file_that_is_unreadable_or_empty_is_refused(tmp_path: Path) -> None:
    missing = refusal(plan(password_file="none"))
    assert missing.startswith("plan: $.target.password_file: expected a file with the password, ")
    assert missing.endswith("got: No such file or directory")
    file = tmp_path / "pw"
    file.write_bytes(b"\n")
    assert refusal(plan(password_file=str(file))).endswith("which is empty")
    file.write_bytes(b"\xfd")
    assert "expected a password in UTF-8 text, got other bytes in " in refusal(plan(password_file=str(file)))
    file.write_bytes("pw".encode("utf-16"))
    assert "expected a password in UTF-8 text, got UTF-16 text in " in refusal(plan(password_file=str(file)))


def test_a_password_variable_that_is_not_utf_8_is_refused_without_its_value() -> None:
    assert refusal(plan(password_env="PW"), PW="s3cret\udcff") == (
        'plan: $.target.password_env: expected a password in UTF-8 text, got other bytes in "PW"'
    )


def test_the_variables_that_may_have_a_password_include_that_of_the_url() -> None:
    target = Target(password_env="PW", sentinel=Sentinel(password_env="SPW"))
    assert secret_variables(target) == [
        "STAMPEDE_URL", "STAMPEDE_PASSWORD", "STAMPEDE_SENTINEL_PASSWORD", "PW", "SPW",
    ]  # fmt: skip
    assert secret_variables(Target()) == ["STAMPEDE_URL", "STAMPEDE_PASSWORD", "STAMPEDE_SENTINEL_PASSWORD"]


def test_a_byte_order_mark_is_not_part_of_the_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"\xef\xbb\xbfs3cret\r\n")
    assert resolve_secrets(plan(password_file=str(file)), {}).target.password == "s3cret"


def test_a_password_given_as_a_variable_or_file_name_is_not_shown() -> None:
    assert refusal(plan(password_env="s3cret")).endswith("with the password, got a name that is not set")
    assert refusal(plan(password_file="s3cret")).endswith("in the working directory, got: No such file or directory")


def test_two_user_names_that_differ_are_refused() -> None:
    assert refusal(plan(url="redis://bob@h", username="eve")) == (
        "plan: $.target.username: expected one user name, got one here and another in the URL"
    )
    assert resolve_secrets(plan(url="redis://bob@h", username="bob"), {}).target.username == "bob"


def test_a_malformed_url_is_refused_with_its_place_and_without_its_password() -> None:
    line = refusal(plan(url="redis://bob:s3cret@"))
    assert line.startswith("plan: $.target.url: expected redis://")
    assert "s3cret" not in line


def test_a_redacted_plan_has_no_password_and_finds_it_again() -> None:
    whole = resolve_secrets(plan(password_env="PW"), {"PW": SECRET})
    bare = redacted(whole)
    assert bare.target.password == REDACTED
    assert SECRET not in repr(whole) + str(msgspec.to_builtins(bare, enc_hook=float))
    assert resolve_secrets(bare, {"PW": SECRET}) == whole


def test_a_redacted_password_is_not_a_password() -> None:
    assert refusal(plan(password=REDACTED)).endswith("use --password-env or --password-file")


def test_a_plan_without_a_password_needs_no_redaction() -> None:
    assert redacted(plan()) == plan()


def sentinel_plan(**sentinel: str) -> Plan:
    return Plan(target=Target(url="redis+sentinel://bob:data@a,b:1/x/2", sentinel=Sentinel(**sentinel)))


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("rediss://bob:x@h:1/2", "rediss://h:1/2"),
        ("unix://bob:x@/run/a%20b.sock?db=2", "unix:///run/a%20b.sock?db=2"),
        ("redis+sentinel://bob:x@a,[::1]:1/my%2Fown/2", "redis+sentinel://a:26379,[::1]:1/my%2Fown/2"),
        ("rediss+cluster://bob:x@a,b:1", "rediss+cluster://a:6379,b:1"),
    ],
)
def test_a_url_of_any_kind_loses_only_its_credentials(url: str, bare: str) -> None:
    target = resolve_secrets(plan(url=url), {}).target
    assert (target.url, target.username, target.password) == (bare, "bob", "x")


def test_the_sentinels_password_has_its_own_sources(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET + "\n")
    for unresolved in (
        sentinel_plan(password=SECRET),
        sentinel_plan(password_env="PW"),
        sentinel_plan(password_file=str(file)),
    ):
        target = resolve_secrets(unresolved, {"PW": SECRET}).target
        assert (target.password, target.sentinel.password) == ("data", SECRET)


def test_a_fault_of_the_sentinels_password_has_its_place() -> None:
    assert refusal(sentinel_plan(password=SECRET, password_env="PW")) == (
        "plan: $.target.sentinel.password_env: expected the password once, got password and password_env"
    )
    assert refusal(sentinel_plan(password_env="PW")).startswith("plan: $.target.sentinel.password_env: expected an env")
    assert refusal(sentinel_plan(password=REDACTED)).endswith("use --sentinel-password-env or --sentinel-password-file")


def test_the_sentinels_password_is_redacted_and_carried_over_like_the_targets() -> None:
    whole = resolve_secrets(sentinel_plan(password_env="PW"), {"PW": SECRET})
    bare = redacted(whole)
    assert (bare.target.password, bare.target.sentinel.password) == (REDACTED, REDACTED)
    assert SECRET not in repr(whole) + repr(whole.target.sentinel) + str(msgspec.to_builtins(bare, enc_hook=float))
    assert with_secrets_of(bare, whole) == whole

from __future__ import annotations

import base64
import os
import pwd
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import UsageError
from common.protocol import token as token_module
from common.protocol.token import (
    agent_credentials,
    agent_curve,
    coordinator_credentials,
    coordinator_curve,
    default_token_path,
)
from common.protocol.token_sources import TokenVariables
from common.protocol.transport import new_key_pair


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """Where a token would be."""
    return tmp_path / "stampede" / "token"


def key_file(token: Path) -> Path:
    return token.with_name("token.key")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_default_place_of_the_token_is_the_configuration_folder() -> None:
    assert default_token_path({"XDG_CONFIG_HOME": "/etc/xdg"}) == Path("/etc/xdg/stampede/token")
    assert default_token_path({"XDG_CONFIG_HOME": "", "HOME": "/users/me"}) == Path("/users/me/.config/stampede/token")
    assert default_token_path({}) == Path(pwd.getpwuid(os.getuid()).pw_dir, ".config/stampede/token")


def test_a_relative_configuration_folder_is_refused() -> None:
    with pytest.raises(UsageError, match=r'XDG_CONFIG_HOME: expected an absolute path, got "cfg"'):
        default_token_path({"XDG_CONFIG_HOME": "cfg", "HOME": "/users/me"})
    with pytest.raises(UsageError, match=r'no home directory .*: HOME is "me"; .*--token-file'):
        default_token_path({"HOME": "me"})


def test_without_a_home_directory_the_token_needs_an_explicit_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.setattr("common.protocol.token.pwd.getpwuid", nobody)
    with pytest.raises(UsageError, match=r"HOME is not set, and user .* has none of its own; .*--token-file"):
        default_token_path({"HOME": ""})


def test_a_token_with_a_byte_order_mark_is_accepted(token: Path) -> None:
    server = coordinator_curve(token)
    token.write_bytes(b"\xef\xbb\xbf" + token.read_bytes())
    assert agent_curve(token).server == server.keys.public


def test_a_first_start_makes_both_files_readable_by_their_owner_only(token: Path) -> None:
    before = os.umask(0)
    try:
        coordinator_curve(token)
    finally:
        os.umask(before)
    assert mode(token) == mode(key_file(token)) == 0o600
    assert mode(token.parent) == 0o700
    assert sorted(path.name for path in token.parent.iterdir()) == ["token", "token.key"]


def test_both_sides_of_a_token_match(token: Path) -> None:
    server = coordinator_curve(token)
    client = agent_curve(token)
    assert client.server == server.keys.public
    assert client.keys.public == server.admitted


def test_the_pair_is_made_once(token: Path) -> None:
    assert coordinator_curve(token) == coordinator_curve(token)


def test_the_token_does_not_contain_the_coordinators_secret(token: Path) -> None:
    server = coordinator_curve(token)
    assert server.keys.secret.decode() not in token.read_text()
    assert server.keys.secret.decode() in key_file(token).read_text()


def test_a_token_that_was_deleted_is_made_again_from_its_key(token: Path) -> None:
    coordinator_curve(token)
    text = token.read_text()
    token.unlink()
    coordinator_curve(token)
    assert token.read_text() == text


def test_a_coordinator_refuses_a_token_without_its_key(token: Path) -> None:
    coordinator_curve(token)
    key_file(token).unlink()
    with pytest.raises(UsageError, match=r"no token\.key beside it"):
        coordinator_curve(token)
    assert not key_file(token).exists()


def test_a_token_of_another_coordinator_is_refused(token: Path, tmp_path: Path) -> None:
    coordinator_curve(token)
    other = tmp_path / "other" / "token"
    coordinator_curve(other)
    token.write_bytes(other.read_bytes())
    with pytest.raises(UsageError, match=r"does not belong to token\.key"):
        coordinator_curve(token)


def test_many_first_starts_at_once_agree_on_one_pair(token: Path) -> None:
    together = threading.Barrier(8)
    found, failed = [], []

    def start() -> None:
        together.wait(timeout=30)
        try:
            found.append(coordinator_curve(token))
        except UsageError as error:
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert failed == []
    assert len(found) == 8
    assert len({server.keys.public for server in found}) == 1
    assert agent_curve(token).server == found[0].keys.public
    assert sorted(path.name for path in token.parent.iterdir()) == ["token", "token.key"]


def test_a_concurrent_first_start_uses_the_pair_of_the_other(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exists = Path.exists

    def is_made_meanwhile(path: Path) -> bool:
        there = exists(path)
        if path == key_file(token) and not there:
            monkeypatch.setattr(Path, "exists", exists)
            coordinator_curve(token)  # the other start, right after we looked
        return there

    monkeypatch.setattr(Path, "exists", is_made_meanwhile)
    server = coordinator_curve(token)
    assert agent_curve(token).server == server.keys.public


@pytest.mark.parametrize("bits", [0o644, 0o604, 0o660, 0o650])
def test_a_file_that_others_can_read_is_not_used(token: Path, bits: int) -> None:
    coordinator_curve(token)
    token.chmod(bits)
    with pytest.raises(UsageError, match=f"others may read it; expected mode 0600 .chmod 600 {token}"):
        agent_curve(token)
    token.chmod(0o600)
    key_file(token).chmod(bits)
    with pytest.raises(UsageError, match="others may read it"):
        coordinator_curve(token)


def test_the_error_of_an_agent_without_a_token_says_where_to_get_one(token: Path) -> None:
    with pytest.raises(UsageError, match="copy it from the coordinator's machine") as raised:
        agent_curve(token)
    assert "--token-file" in str(raised.value)
    assert "--insecure" in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello\n",
        "agent-secret-key: short\n",
        "agent-secret-key\n",
        f"agent-secret-key: {'~' * 40}\n",
        f"agent-secret-key: {'é' * 20}\n",
        f"agent-secret-key: {new_key_pair().secret.decode()}\n",
        f"agent-secret-key: {new_key_pair().secret.decode()}\ncoordinator-public-key: {'~' * 40}\n",
        f"agent-secret-key: {new_key_pair().secret.decode()}\ncoordinator-public-key: {'#' * 40}\n",
        f"agent-secret-key: {new_key_pair().secret.decode()}\ncoordinator-public-key: short\n",
        "\x00" * 5000,
    ],
    # Each process that collects tests makes new keys, but all must collect the same tests.
    ids=range(11),
)
def test_a_file_that_is_not_a_token_is_one_line(token: Path, text: str) -> None:
    coordinator_curve(token)
    token.write_text(text)
    with pytest.raises(UsageError) as raised:
        agent_curve(token)
    assert str(token) in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_file_that_only_a_group_of_ours_can_read_is_used(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator_curve(token)
    group = 123_456
    for path in (token, key_file(token)):
        path.chmod(0o640)
        os.chown(path, -1, group) if os.getuid() == 0 else None
    if os.getuid() != 0:
        group = token.stat().st_gid
    monkeypatch.setattr(os, "getegid", lambda: group)
    assert coordinator_curve(token).admitted == agent_curve(token).keys.public
    monkeypatch.setattr(os, "getegid", lambda: group + 1)
    monkeypatch.setattr(os, "getgroups", list)
    with pytest.raises(UsageError, match="others may read it"):
        agent_curve(token)


def test_bytes_that_are_not_text_are_not_a_token(token: Path) -> None:
    coordinator_curve(token)
    token.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read the token"):
        agent_curve(token)


def test_a_key_file_that_was_damaged_is_named(token: Path) -> None:
    server = coordinator_curve(token)
    rewrite(key_file(token), server.keys.secret.decode(), "gone")
    with pytest.raises(UsageError, match='line "coordinator-secret-key"'):
        coordinator_curve(token)


def test_keys_are_not_shown_in_an_error(token: Path) -> None:
    secret = coordinator_curve(token).keys.secret.decode()
    rewrite(key_file(token), secret, secret[:-1])
    with pytest.raises(UsageError) as raised:
        coordinator_curve(token)
    assert secret[:-1] not in str(raised.value)
    assert secret not in repr(new_key_pair())


@pytest.mark.parametrize("use", [agent_curve, coordinator_curve])
def test_an_impossible_place_is_one_line(tmp_path: Path, use: object) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place in (tmp_path / ("x" * 300) / "token", file / "token", tmp_path):
        with pytest.raises(UsageError) as raised:
            use(place)  # type: ignore[operator]
        assert str(raised.value).isprintable()


def test_no_file_is_left_half_written(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    coordinator_curve(token)
    token.unlink()
    monkeypatch.setattr(token_module.os, "replace", full)
    with pytest.raises(UsageError, match="No space left on device"):
        coordinator_curve(token)
    assert [path.name for path in token.parent.iterdir()] == ["token.key"]
    monkeypatch.setattr(token_module.os, "link", full)
    key_file(token).unlink()
    with pytest.raises(UsageError, match="No space left on device"):
        coordinator_curve(token)
    assert list(token.parent.iterdir()) == []


def text_of(token: Path) -> str:
    coordinator_curve(token)
    return token.read_text()


@pytest.mark.parametrize(
    "pack", [str, lambda text: base64.b64encode(text.encode()).decode(), lambda text: f" {text}\r\n"]
)
def test_a_variable_has_the_token_as_text_or_in_base64(token: Path, pack: Callable[[str], str]) -> None:
    said = TokenVariables(token=pack(text_of(token)))
    assert agent_credentials(None, said, {}) == agent_curve(token)


@pytest.mark.parametrize("pack", [str, lambda text: base64.encodebytes(text.encode()).decode()])
def test_with_the_coordinators_key_in_a_variable_no_file_is_made(
    token: Path, tmp_path: Path, pack: Callable[[str], str]
) -> None:
    server = coordinator_curve(token)
    said = TokenVariables(key=pack(key_file(token).read_text()), token=token.read_text())
    found = coordinator_credentials(None, said, {"XDG_CONFIG_HOME": str(tmp_path / "none")})
    assert (found.coordinator, found.agents) == (server, agent_curve(token))
    assert found.token == token.read_text()
    assert not (tmp_path / "none").exists()


def test_a_flag_has_precedence_over_variables(token: Path, tmp_path: Path) -> None:
    text = text_of(token)
    other = tmp_path / "other"
    coordinator_curve(other)
    assert agent_credentials(other, TokenVariables(token=text, file=str(token)), {}) == agent_curve(other)
    assert agent_credentials(None, TokenVariables(file=str(other)), {}) == agent_curve(other)
    with pytest.raises(UsageError, match="STAMPEDE_TOKEN and STAMPEDE_TOKEN_FILE: expected one of them, got both"):
        agent_credentials(None, TokenVariables(token=text, file=str(other)), {})
    with pytest.raises(UsageError, match="STAMPEDE_TOKEN_KEY and STAMPEDE_TOKEN_FILE: expected one of them"):
        coordinator_credentials(None, TokenVariables(key="x", file=str(other)), {})
    with pytest.raises(UsageError, match="--token-file -: expected a file"):
        coordinator_credentials(Path("-"), TokenVariables(), {})


def test_a_token_of_another_coordinator_in_the_environment_is_refused_at_once(token: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"STAMPEDE_TOKEN: this token does not belong to .*other"):
        coordinator_credentials(tmp_path / "other", TokenVariables(token=text_of(token)), {})


def test_a_resumed_run_gets_no_new_pair(token: Path) -> None:
    with pytest.raises(UsageError, match=r"--resume: expected the token of this run's agents at .*, got neither"):
        coordinator_credentials(token, TokenVariables(), {}, resuming=True)
    assert not token.parent.exists()
    made = coordinator_credentials(token, TokenVariables(), {})
    assert coordinator_credentials(token, TokenVariables(), {}, resuming=True) == made
    token.unlink()
    assert coordinator_credentials(token, TokenVariables(), {}, resuming=True) == made


def test_a_token_and_a_key_that_were_mixed_up_are_named_in_the_error(token: Path) -> None:
    text = text_of(token)
    with pytest.raises(UsageError, match=r"STAMPEDE_TOKEN_KEY: expected the coordinator's key .*, got a token"):
        coordinator_credentials(None, TokenVariables(key=text), {})
    with pytest.raises(UsageError, match=r"STAMPEDE_TOKEN: expected the token of agents .*, got the coord"):
        agent_credentials(None, TokenVariables(token=key_file(token).read_text()), {})


def test_secrets_are_removed_from_the_environment_and_not_shown() -> None:
    environment = {"STAMPEDE_TOKEN": "a secret", "STAMPEDE_TOKEN_KEY": "a secret", "STAMPEDE_TOKEN_FILE": "f", "A": "b"}
    said = TokenVariables.taken_from(environment)
    assert (said.token, said.key, said.file) == ("a secret", "a secret", "f")
    assert environment == {"STAMPEDE_TOKEN_FILE": "f", "A": "b"}
    assert "a secret" not in repr(said)


def test_a_fingerprint_names_a_pair_of_keys_and_shows_neither(tmp_path: Path) -> None:
    one, other = (coordinator_credentials(tmp_path / name, TokenVariables(), {}) for name in ("one", "other"))
    assert one.fingerprint == coordinator_credentials(tmp_path / "one", TokenVariables(), {}).fingerprint
    assert one.fingerprint != other.fingerprint
    swapped = replace(one, coordinator=replace(one.coordinator, admitted=other.coordinator.admitted))
    assert swapped.fingerprint not in (one.fingerprint, other.fingerprint)
    for keys in (one.coordinator.keys, one.agents.keys):
        assert one.fingerprint.encode() not in keys.secret + keys.public

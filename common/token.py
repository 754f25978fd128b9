"""The token: what makes a coordinator and its agents trust each other, in files that only their owner can read.

Two files lie side by side. `token` is for agents, and is copied to load machines: the coordinator's public key and the
secret key that admits agents. `token.key` stays on the controller: the coordinator's own secret key, and that same
agents' key. So a load machine that is taken over can join a run, but cannot pose as the coordinator.
The key file is made once, by whoever comes first; the token follows from it.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from common.errors import UsageError
from common.transport import CurveClient, CurveServer, KeyPair, key_pair_of, new_key_pair
from common.units import show

_COORDINATOR_SECRET = "coordinator-secret-key"
_COORDINATOR_PUBLIC = "coordinator-public-key"
_AGENT_SECRET = "agent-secret-key"
_TOKEN_HEAD = "# redis-stampede token: whoever has it may join as an agent. Copy it to load machines, mode 0600.\n"
_KEY_HEAD = "# redis-stampede coordinator key: belongs to the token beside it. Never leaves this host.\n"


_ELSEWHERE = "name the token's file with --token-file or STAMPEDE_TOKEN_FILE"


def default_token_path(environment: Mapping[str, str]) -> Path:
    """`$XDG_CONFIG_HOME/stampede/token`, or the same below `~/.config`.

    Raises UsageError for a relative XDG_CONFIG_HOME, which the XDG Base Directory Specification calls invalid, and
    without a home directory, as for the arbitrary users of containers.
    """
    config = environment.get("XDG_CONFIG_HOME")
    if config:
        if not os.path.isabs(config):
            raise UsageError(f"XDG_CONFIG_HOME: expected an absolute path, got {show(config)}; or {_ELSEWHERE}")
        return Path(config) / "stampede" / "token"
    home = environment.get("HOME") or _home_of_this_user()
    if not os.path.isabs(home):
        found = f"HOME is {show(home)}" if home else f"HOME is not set, and user {os.getuid()} has none of its own"
        raise UsageError(f"no home directory to keep the token in: {found}; {_ELSEWHERE}")
    return Path(home) / ".config" / "stampede" / "token"


def _home_of_this_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def coordinator_curve(token: Path) -> CurveServer:
    """The coordinator's side of the token; makes both files at first use. Raises UsageError when it cannot."""
    key_file = token.with_name(token.name + ".key")
    # In this order: the token is made last, so one that was there before we looked for its key has lost it.
    has_token = _exists(token)
    if not _exists(key_file):
        if has_token:
            raise UsageError(
                f"{token}: there is a token but no {key_file.name} beside it; expected both on the controller host "
                "(move the token away to have a new pair made)"
            )
        _make_key_file(key_file)
    lines = _fields(key_file)
    coordinator, agent = _key(key_file, lines, _COORDINATOR_SECRET), _key(key_file, lines, _AGENT_SECRET)
    if not _exists(token):
        text = f"{_TOKEN_HEAD}{_COORDINATOR_PUBLIC}: {coordinator.public.decode()}\n"
        _write(token, f"{text}{_AGENT_SECRET}: {agent.secret.decode()}\n", replace=True)
    elif agent_curve(token) != CurveClient(agent, coordinator.public):
        raise UsageError(
            f"{token}: this token does not belong to {key_file.name} beside it; expected the controller's own "
            "(move it away to have it made again, or name another place with --token-file)"
        )
    return CurveServer(coordinator, agent.public)


def agent_curve(token: Path) -> CurveClient:
    """An agent's side of the token. Raises UsageError when the file is missing, open to others, or not a token."""
    if not _exists(token):
        raise UsageError(
            f"{token}: no token there; copy it from the controller (the first `coordinator start` makes it), "
            "name another with --token-file, or use --insecure on both sides"
        )
    lines = _fields(token)
    agent = _key(token, lines, _AGENT_SECRET)
    public = _key(token, lines, _COORDINATOR_PUBLIC).secret  # any key can be told from what is none in this way
    return CurveClient(agent, public)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot look for the token there: {error.strerror}; name another place with --token-file"
        ) from error


def _make_key_file(path: Path) -> None:
    coordinator, agent = new_key_pair(), new_key_pair()
    text = f"{_KEY_HEAD}{_COORDINATOR_SECRET}: {coordinator.secret.decode()}\n"
    _write(path, f"{text}{_AGENT_SECRET}: {agent.secret.decode()}\n", replace=False)


def _write(path: Path, text: str, *, replace: bool) -> None:
    """Write all of it or nothing, mode 0600. Not replacing, the file of whoever was quicker stands."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            with suppress(FileExistsError):  # two first starts at once: both go on with the one pair that is there
                (os.replace if replace else os.link)(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot write the token: {error.strerror}; name another place with --token-file"
        ) from error


def _fields(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise UsageError(f"{path}: others may read it; expected mode 0600 (chmod 600 {path})")
            lines = file.read(4096).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"{path}: cannot read the token: {why}") from error
    pairs = (line.partition(":") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _key(path: Path, lines: dict[str, str], name: str) -> KeyPair:
    try:
        return key_pair_of(lines.get(name, "").encode())
    except ValueError as error:
        raise UsageError(f'{path}: line "{name}": {error}') from error

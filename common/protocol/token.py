"""The token, by which a coordinator and its agents authenticate each other.

There are two texts. The `token` is copied to load machines. It contains the coordinator's public key and the agents'
secret key. The `key` stays with the coordinator. It contains the coordinator's secret key and the agents' secret key.
So a compromised load machine can join a run, but cannot pose as the coordinator.

Both are usually files in one folder, `token` and `token.key`, readable by their owner only. The first coordinator
creates the key file; the token is derived from the key. Without files, both texts may be environment variables (see
`TokenVariables`), and agents may read the token from stdin. Variables and stdin may also have the file's text in
base64: one line without characters that a shell interprets.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import pwd
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError
from common.protocol.token_sources import KEY, TOKEN, TOKEN_FILE, TokenVariables, read_secret_file, read_secret_stdin
from common.protocol.transport import CurveClient, CurveServer, KeyPair, key_pair_of, new_key_pair
from common.units import show

_COORDINATOR_SECRET = "coordinator-secret-key"
_COORDINATOR_PUBLIC = "coordinator-public-key"
_AGENT_SECRET = "agent-secret-key"
_TOKEN_HEAD = "# redis-stampede token: anyone who has it can join as an agent. Copy it to load machines, mode 0600.\n"
_KEY_HEAD = "# redis-stampede coordinator key: belongs to the token beside it. Never leaves this host.\n"

_ELSEWHERE = f"name the token's file with --token-file or {TOKEN_FILE}"
_STDIN = Path("-")
_THE_TOKEN = "the token"
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A coordinator's keys, and its agents' keys. file: of the token; None for keys from the environment. is_usual:
    agents of the same user find the file by default."""

    coordinator: CurveServer
    agents: CurveClient
    file: Path | None = None
    is_usual: bool = False

    @property
    def token(self) -> str:
        """The text of the token file."""
        return _token_text(self.agents)

    @property
    def fingerprint(self) -> str:
        """Identifies this pair of keys. Made from the two public keys only, so it reveals no secret key."""
        public = self.coordinator.keys.public + self.coordinator.admitted
        return hashlib.sha256(b"redis-stampede keys " + public).hexdigest()[:16]


def agent_credentials(file: Path | None, variables: TokenVariables, environment: Mapping[str, str]) -> CurveClient:
    """An agent's side. file: from the command line, "-" for stdin. Raises UsageError if there is no token."""
    if file == _STDIN:
        return _agent_curve(read_secret_stdin(_THE_TOKEN), "stdin")
    if file is None and variables.token:
        if variables.file:
            raise UsageError(f"{TOKEN} and {TOKEN_FILE}: expected one of them, got both")
        return _agent_curve(variables.token, TOKEN)
    return agent_curve(file or _path(variables, environment))


def coordinator_credentials(
    file: Path | None, variables: TokenVariables, environment: Mapping[str, str], *, resuming: bool = False
) -> Credentials:
    """The coordinator's side. Makes both files at first use. file: from the command line. resuming: do not make a new
    pair of keys, because the run's agents have the token already. Raises UsageError."""
    if file == _STDIN:
        raise UsageError(
            f"--token-file -: expected a file, because the coordinator's key is beside it; it also comes from {KEY}"
        )
    if file is None and variables.key:
        if variables.file:
            raise UsageError(f"{KEY} and {TOKEN_FILE}: expected one of them, got both")
        where, found = KEY, _credentials(*_key_pairs(variables.key, KEY))
    else:
        path = file or _path(variables, environment)
        where = str(path)
        if resuming and not _exists(_key_file(path)) and not _exists(path):
            raise UsageError(
                f"--resume: expected the token of this run's agents at {path}, and {_key_file(path).name} beside it, "
                f"got neither: agents would be refused with a new pair; put both back, {_ELSEWHERE}, or set {KEY}"
            )
        found = Credentials(coordinator_curve(path), agent_curve(path), path, is_usual=file is None)
    if variables.token and _agent_curve(variables.token, TOKEN) != found.agents:
        raise UsageError(
            f"{TOKEN}: this token does not belong to the coordinator's key ({where}): agents with it would be refused; "
            f"expected the token's own key in {KEY}, or no {TOKEN}"
        )
    return found


def _path(variables: TokenVariables, environment: Mapping[str, str]) -> Path:
    return Path(variables.file) if variables.file else default_token_path(environment)


def default_token_path(environment: Mapping[str, str]) -> Path:
    """`$XDG_CONFIG_HOME/stampede/token`, or the same below `~/.config`.

    Raises UsageError for a relative XDG_CONFIG_HOME, which the XDG Base Directory Specification calls invalid, and if
    there is no home directory, which is common in containers.
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
    """The coordinator's side of the token. Makes both files at first use. Raises UsageError if it cannot."""
    key_file = _key_file(token)
    # The token is written last, so a token without a key means that the key was lost. Look for the token first, because
    # another coordinator may write both files now.
    has_token = _exists(token)
    if not _exists(key_file):
        if has_token:
            raise UsageError(
                f"{token}: there is a token but no {key_file.name} beside it; expected both on the coordinator's "
                "machine (move the token away to have a new pair made)"
            )
        _make_key_file(key_file)
    coordinator, agent = _key_pairs(read_secret_file(key_file, "the coordinator's key"), str(key_file))
    credentials = _credentials(coordinator, agent)
    if not _exists(token):
        _write(token, credentials.token, replace=True)
    elif agent_curve(token) != credentials.agents:
        raise UsageError(
            f"{token}: this token does not belong to {key_file.name} beside it; expected the coordinator's own "
            "(move it away to have it made again, or name another place with --token-file)"
        )
    return credentials.coordinator


def agent_curve(token: Path) -> CurveClient:
    """An agent's side of a token file. Raises UsageError if it is missing, readable by others, or not a token."""
    if not _exists(token):
        raise UsageError(
            f"{token}: no token there; copy it from the coordinator's machine (the first `coordinator start` makes "
            f"it), name another with --token-file, set {TOKEN}, or use --insecure on both sides"
        )
    return _agent_curve(read_secret_file(token, _THE_TOKEN), str(token))


def _key_file(token: Path) -> Path:
    return token.with_name(token.name + ".key")


def _credentials(coordinator: KeyPair, agent: KeyPair) -> Credentials:
    return Credentials(CurveServer(coordinator, agent.public), CurveClient(agent, coordinator.public))


def _key_pairs(text: str, origin: str) -> tuple[KeyPair, KeyPair]:
    """(the coordinator's, the agents')"""
    lines = _fields(text)
    if _COORDINATOR_PUBLIC in lines and _COORDINATOR_SECRET not in lines:
        raise UsageError(f"{origin}: expected the coordinator's key (the file token.key), got a token of agents")
    return _key(origin, lines, _COORDINATOR_SECRET), _key(origin, lines, _AGENT_SECRET)


def _agent_curve(text: str, origin: str) -> CurveClient:
    lines = _fields(text)
    if _COORDINATOR_SECRET in lines:
        raise UsageError(f"{origin}: expected the token of agents (the file token), got the coordinator's key")
    agent = _key(origin, lines, _AGENT_SECRET)
    public = _key(origin, lines, _COORDINATOR_PUBLIC).secret  # only checks that it is a key
    return CurveClient(agent, public)


def _token_text(curve: CurveClient) -> str:
    lines = f"{_COORDINATOR_PUBLIC}: {curve.server.decode()}\n{_AGENT_SECRET}: {curve.keys.secret.decode()}\n"
    return _TOKEN_HEAD + lines


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
    """Write the whole file or nothing, mode 0600. replace: overwrite an existing file; otherwise it stays."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            with suppress(FileExistsError):  # two first starts at once: both use the pair that was written first
                (os.replace if replace else os.link)(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot write the token: {error.strerror}; name another place with --token-file"
        ) from error


def _fields(text: str) -> dict[str, str]:
    lines = _decoded(text).splitlines()
    pairs = (line.partition(":") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _decoded(text: str) -> str:
    """The text, decoded if it is base64. A token's own text never looks like base64, because it has colons."""
    joined = "".join(text.split())
    if not _BASE64.fullmatch(joined):
        return text
    try:
        return base64.b64decode(joined, validate=True).decode("utf-8-sig")
    except (binascii.Error, UnicodeDecodeError):
        return text


def _key(origin: str, lines: dict[str, str], name: str) -> KeyPair:
    if name not in lines:
        raise UsageError(f'{origin}: expected a line "{name}: ...", got none: it is not what `coordinator start` wrote')
    try:
        return key_pair_of(lines[name].encode())
    except ValueError as error:
        raise UsageError(f'{origin}: line "{name}": {error}') from error

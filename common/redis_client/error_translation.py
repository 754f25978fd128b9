"""Translates errors of redis-py into one-line messages with a remedy."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from common.errors import TargetError
from common.plan import schema
from common.plan.schema.address_map import AddressMap
from common.plan.schema.target_url import Host, TargetKind
from common.redis_client.address import address_of
from common.redis_client.connections.cluster_topology import NoSlots
from common.redis_client.connections.connection_causes import is_maxclients, os_error_of
from common.redis_client.connections.tls import tls_finding
from common.redis_client.control_client import BAD_REPLY_ERRORS, bad_reply_finding
from common.redis_client.sentinels import PrimaryUnknown

TARGET_ERRORS: tuple[type[Exception], ...] = (redis.RedisError, redis.RedisClusterException, OSError)
"""For `except`: the errors that redis-py raises when the target is at fault."""


@contextmanager
def translated(target: schema.Target, node: str = "") -> Iterator[None]:
    """Converts errors of redis-py, and errors from malformed replies, into a one-line TargetError. node: the server's
    name if the block uses only one of the target's servers."""
    try:
        yield
    except TARGET_ERRORS as error:
        raise translate(error, target, node) from error
    except BAD_REPLY_ERRORS as error:
        kind = TargetKind.STANDALONE if node else address_of(target).kind
        raise TargetError(f"target {node or address_of(target)} {bad_reply_finding(error, _TOPOLOGY[kind])}") from error


def translate(error: Exception, target: schema.Target, node: str = "") -> TargetError:
    """redis-py's error in one line: the target, what is wrong with it, and a remedy. Never shows a password."""
    if finding := _describe_announced(error, target, node):
        return TargetError(f"target {node or address_of(target)}{finding}")
    if node:
        return TargetError(f"target {node} {_describe_server(error, target)}")
    return TargetError(f"target {address_of(target)} {_describe(error, target)}")


def got_no_reply(error: TargetError) -> bool:
    """Whether the target could not be reached or did not reply in time; for a cluster, whether the last node did not.
    An error reply counts as a reply."""
    inner: BaseException | None = error.__cause__
    while isinstance(inner, redis.RedisClusterException):
        inner = inner.__cause__ or inner.__context__
    if isinstance(inner, PrimaryUnknown):
        return inner.knows_service or inner.refusal is None
    if getattr(inner, "status_code", None) or isinstance(inner, redis.AuthenticationError | redis.InvalidResponse):
        return False
    return isinstance(inner, redis.ConnectionError | redis.TimeoutError | OSError)


_TOPOLOGY = {
    TargetKind.STANDALONE: "",
    TargetKind.SENTINEL: "SENTINEL (or a command of the run)",
    TargetKind.CLUSTER: "CLUSTER SLOTS (or a command of the run)",
}
"""Commands that redis-py sends by itself, and whose replies it interprets."""

_NO_SENTINELS = "has no Sentinels at these ports, but other servers: correct target.url"
_TLS_TOO = " that speaks TLS at this port"
_TLS_HINT = "is it Redis, and not its TLS port? For TLS use rediss://"


def _describe(error: Exception, target: schema.Target) -> str:
    if isinstance(error, redis.RedisClusterException):
        return _describe_cluster(error, target)
    if isinstance(error, PrimaryUnknown):
        return _describe_sentinels(error, target)
    finding = _describe_server(error, target)
    whose = "has a primary that " if address_of(target).kind is TargetKind.SENTINEL else ""
    return finding if _NO_SENTINELS in finding else whose + finding


def _describe_server(error: Exception, target: schema.Target) -> str:
    """What is wrong with one server, as the rest of a sentence that begins with the server's name."""
    if is_maxclients(error):
        return f"refused the connection: {_reply_line(error)}: raise maxclients on the server, or use fewer connections"
    cause = os_error_of(error)
    if isinstance(cause, socket.gaierror):
        return "has a host name that cannot be resolved: check target.url"
    if (
        address_of(target).tls
        and cause is not None
        and (finding := tls_finding(cause, target.tls, handshaken=_was_open(error)))
    ):
        return finding
    if finding := _describe_handshake(error, target):
        return finding
    asked = f" (asked {error.command})" if hasattr(error, "command") else ""
    if isinstance(error, redis.TimeoutError | TimeoutError):
        redis_there = f"a Redis{_TLS_TOO if address_of(target).tls else ''}"
        return f"did not answer ({_waited(target)}): is it up, reachable from here, and {redis_there}?{asked}"
    if cause is not None and cause.errno == errno.EINVAL and any(map(_lacks_zone, address_of(target).hosts)):
        return "cannot be reached: a link-local IPv6 address needs a zone, such as redis://[fe80::1%25eth0]:6379"
    if cause is not None:
        return _OS_FINDINGS.get(cause.errno or 0, f"cannot be reached: {_one_line(cause.strerror or cause)}")
    code = getattr(error, "status_code", None)
    if code in _CODE_FINDINGS:
        return _CODE_FINDINGS[code]
    if code and type(error) is redis.ConnectionError:
        # redis-py raises this for "-ERR max number of clients reached". The server speaks RESP, so show its reply.
        return f"refused the connection: {_reply_line(error)}"
    if lacks_database(error):
        return _describe_database(error, target)
    if isinstance(error, redis.ResponseError):
        for mark, finding in _REPLY_FINDINGS:
            if mark in str(error).lower():
                return finding
    for kind, finding in _FINDINGS:
        if isinstance(error, kind):
            return finding.format(reply=_reply_line(error), asked=asked)
    return f"failed: {type(error).__name__}: {_reply_line(error)}"


def _describe_announced(error: Exception, target: schema.Target, node: str) -> str:
    """The message if a server cannot be reached at an address that the cluster or Sentinels announced and that is not
    in the plan; "" for other errors. The message follows the name of the node or target."""
    announced, address = _announced(error), address_of(target)
    if announced is None or (address.kind is TargetKind.CLUSTER and announced in address.hosts):
        return ""
    cause = os_error_of(error)
    if isinstance(error, redis.TimeoutError | TimeoutError):
        what = f"did not answer ({_waited(target)}): is it up?"
    elif isinstance(cause, socket.gaierror):
        what = "has a host name that cannot be resolved."
    elif cause is not None and cause.errno == errno.ECONNREFUSED:
        what = "refused the connection: is it up?"
    elif cause is not None and cause.errno in _UNREACHED:
        what = f"cannot be reached ({cause.strerror}): is it up?"
    else:
        return ""
    source = "the cluster announces" if address.kind is TargetKind.CLUSTER else "Sentinels announce"
    if AddressMap(target.address_remap).maps_to(announced.name, announced.port):
        mapped = "target.address_remap maps"
        place = f", to which {mapped} what {source}," if node else f" has a server that {mapped} to {announced}, which"
        return f"{place} {what} Or correct the map"
    place = f", as {source} it," if node else f" has a server that {source} at {announced}, which"
    return f"{place} {what} If it is behind NAT, use --address-remap {announced}=HOST:PORT"


def _waited(target: schema.Target) -> str:
    return f"waited up to {target.connect_timeout_s} to connect, {target.socket_timeout_s} for a reply"


_UNREACHED = frozenset((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EINVAL))


def _announced(error: BaseException | None) -> Host | None:
    """The announced address of the connection that failed with this error; None if its address is in the plan."""
    return next((each.announced_address for each in _chain(error) if hasattr(each, "announced_address")), None)


def _describe_handshake(error: Exception, target: schema.Target) -> str:
    """The message if the server refused a handshake command that a setting can disable; "" for other errors."""
    command, argument = getattr(error, "handshake_step", ("", ""))
    code = getattr(error, "status_code", None)
    is_refusal = isinstance(error, redis.ResponseError | redis.AuthenticationError)
    if is_refusal and command == "HELLO":
        # HELLO was sent with the password. If the answer is NOAUTH, the server did not understand HELLO.
        is_unknown = code in (None, "ERR", "NOPROTO") or (code == "NOAUTH" and address_of(target).password)
        return (
            f"refused HELLO, the first command of RESP3: {_reply_line(error)}: use --protocol 2" if is_unknown else ""
        )
    if is_refusal and (command, argument) == ("CLIENT", "SETNAME") and code not in _CODE_FINDINGS:
        return f'refused CLIENT SETNAME: {_reply_line(error)}: use --client-name "" to send no CLIENT command'
    if type(error) is redis.ConnectionError and not code and command in _WITHOUT:
        return f"ended the connection at {command}: {_TLS_HINT}. If it does not know {command}, use {_WITHOUT[command]}"
    return ""


_WITHOUT = {"HELLO": "--protocol 2", "CLIENT": '--client-name ""'}


def _describe_cluster(error: Exception, target: schema.Target) -> str:
    """The message if no node of a cluster could be used. The cause of redis-py's error is the error of the last
    node."""
    inner: BaseException | None = error
    while isinstance(inner, redis.RedisClusterException):
        inner = inner.__cause__ or inner.__context__
    if not isinstance(inner, Exception):
        return f"cannot be used: {_one_line(error)}"
    if lacks_database(error):
        return _describe_database(error, target)
    if isinstance(inner, redis.ResponseError) and "cluster support disabled" in str(inner):
        return _describe_server(inner, target)
    return f"has no node that can be used; the last one asked {_describe_server(inner, target)}"


def lacks_database(error: BaseException | None) -> bool:
    """Whether a server refused the plan's database."""
    return any(_NO_DATABASE in str(each).lower() or _ONE_DATABASE in str(each).lower() for each in _chain(error))


# Error replies to SELECT: for a number that is too high, and for any number in a cluster before Valkey 9.
_NO_DATABASE, _ONE_DATABASE = "db index is out of range", "select is not allowed in cluster mode"


def _describe_database(error: Exception, target: schema.Target) -> str:
    if any(_ONE_DATABASE in str(each).lower() for each in _chain(error)):
        return "has database 0 only, as clusters do before Valkey 9: leave the database out of target.url"
    found: int | None = next(filter(None, (getattr(each, "databases", None) for each in _chain(error))), None)
    setting = "cluster-databases" if address_of(target).kind is TargetKind.CLUSTER else "databases"
    has = "database 0 only" if found == 1 else f"databases 0 to {found - 1} only" if found else "fewer databases"
    return f"has {has}, and no {address_of(target).db}: correct target.url, or raise its setting `{setting}`"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all errors that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _describe_sentinels(error: PrimaryUnknown, target: schema.Target) -> str:
    if error.knows_service:
        return "has no primary that its Sentinels consider up: wait for their failover, or start a server"
    if error.refusal is None:
        return (
            "is not known to its Sentinels: correct the service in target.url (SENTINEL MASTERS lists what they know)"
        )
    code = getattr(error.refusal, "status_code", None)
    if code in _CODE_FINDINGS:
        return (
            f"has Sentinels that require their own user and password ({code}): correct target.sentinel.username, "
            "target.sentinel.password_env or target.sentinel.password_file"
        )
    return f"has no Sentinel that can be used; the last one asked {_describe_server(error.refusal, target)}"


def _was_open(error: Exception) -> bool:
    """Whether an open connection was lost. Only the text of redis-py's error shows it."""
    return any(words in str(error) for words in ("while writing to", "while reading from"))


def _lacks_zone(host: Host) -> bool:
    return host.name.startswith("fe80:") and "%" not in host.name


_OS_FINDINGS = {
    errno.ECONNREFUSED: "refused the connection: nothing listens there; start the server or correct target.url",
    errno.ECONNRESET: f"reset the connection: {_TLS_HINT}",
    errno.ENOENT: "is not a Unix socket here: start the server (its setting `unixsocket`) or correct target.url",
    errno.EACCES: "cannot be opened by this user: run as its user, or change its permissions (`unixsocketperm`)",
    errno.EMFILE: "was not reached, because this process may open no more files: raise `ulimit -n`",
    errno.EADDRNOTAVAIL: "was not reached, because this host has no local port left for it: use fewer connections",
}

_PASSWORD_PLACES = "target.password_env or target.password_file"
_CODE_FINDINGS = {
    "NOAUTH": f"requires a password: set {_PASSWORD_PLACES}, or write it into target.url",
    "WRONGPASS": f"refused our user name and password: correct target.username, {_PASSWORD_PLACES}",
}
# By text of the error reply, in lower case.
_REPLY_FINDINGS = (
    ("cluster support disabled", "is a standalone server, not a cluster: use redis:// or rediss://"),
    ("unknown command 'sentinel", _NO_SENTINELS),
    (
        "unknown command 'cluster",
        "knows no CLUSTER commands: if it is a Sentinel, use redis+sentinel://HOST:PORT/SERVICE",
    ),
    ("maint_notifications", "offers no maintenance notifications: set target.maintenance to off or auto"),
    ("support maintenance notifications", "offers no maintenance notifications: set target.maintenance to off or auto"),
)
_FINDINGS: tuple[tuple[type[Exception], str], ...] = (
    (NoSlots, "serves no slots: make it a cluster (redis-cli --cluster create, or fix)"),
    (redis.AuthenticationError, "refused our password: {reply}"),
    (redis.exceptions.NoPermissionError, "does not permit a command: {reply}: use a user whose ACL permits it"),
    (redis.BusyLoadingError, "is still loading its data: {reply}: try again later"),
    (redis.InvalidResponse, f"does not speak RESP: {_TLS_HINT}{{asked}}"),
    (redis.ResponseError, "answered with an error: {reply}{asked}"),
    (redis.ConnectionError, f"ended the connection: {{reply}}: {_TLS_HINT}"),
)


def _reply_line(error: BaseException, given: str | None = None) -> str:
    code = getattr(error, "status_code", None)
    text = _one_line(given if given is not None else error.args[0] if error.args else error)
    return f"{code} {text}" if code and not text.startswith(code) else text


def _one_line(value: object) -> str:
    # Servers quote the arguments of an unknown command: for HELLO and AUTH these include the password.
    text = " ".join(str(value).split()).partition(", with args beginning with")[0]
    return text[:200].rstrip(".")


def error_reply(error: BaseException, text: str | None = None) -> str:
    """An error reply in one line, its code first. text: of the reply, if it is not that of the error."""
    return _reply_line(error, text)

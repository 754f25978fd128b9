"""The target's password: where it comes from, and plans without it.

A resolved plan holds the password itself, and its URL no credentials. The names of the variable and of the file stay
in it: they are no secrets, and a plan that was kept without its password finds it again by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from common.errors import PlanError
from common.plan.files import read_small_file
from common.plan.overlay import Place, nowhere
from common.plan.schema import REDACTED, Plan, Target
from common.plan.url import Address, parse_redis_url
from common.units import show

_WAYS = ("password", "password_env", "password_file")


def resolve_secrets(plan: Plan, environ: Mapping[str, str], where: Place = nowhere) -> Plan:
    """The plan with its password found and its URL free of credentials.

    Raises PlanError where the URL is not one, or the password is given twice or cannot be found.
    """
    target = plan.target
    address = _address(target, where)
    given = [way for way in _WAYS if getattr(target, way) is not None]
    if target.password == REDACTED and len(given) > 1:
        given.remove("password")
    if address is not None and address.password is not None:
        given.append("url")
    if len(given) > 1:
        raise PlanError(f"{where(('target', given[1]))}: expected the password once, got {' and '.join(given)}")
    username = _username(target, address, where)
    resolved = msgspec.structs.replace(
        target,
        url=_bare_url(target.url, address),
        username=username,
        password=_password(target, address, environ, where),
    )
    return msgspec.structs.replace(plan, target=resolved)


def redacted(plan: Plan) -> Plan:
    """The plan as it may be shown and kept: `***` for its password."""
    if plan.target.password is None:
        return plan
    return msgspec.structs.replace(plan, target=msgspec.structs.replace(plan.target, password=REDACTED))


def _address(target: Target, where: Place) -> Address | None:
    if not target.url:
        return None
    try:
        return parse_redis_url(target.url)
    except PlanError as error:
        raise PlanError(f"{where(('target', 'url'))}: {error}") from error


def _bare_url(url: str, address: Address | None) -> str:
    if address is None or (address.username is None and address.password is None):
        return url
    return f"redis://{address}/{address.db}"


def _username(target: Target, address: Address | None, where: Place) -> str | None:
    in_url = address.username if address else None
    if in_url is not None and target.username not in (None, in_url):
        raise PlanError(
            f"{where(('target', 'username'))}: expected the user name of the URL, {show(in_url)}, "
            f"got {show(target.username)}"
        )
    return target.username if in_url is None else in_url


def _password(target: Target, address: Address | None, environ: Mapping[str, str], where: Place) -> str | None:
    if target.password_env is not None:
        return _from_environment(target.password_env, environ, where(("target", "password_env")))
    if target.password_file is not None:
        return _from_file(target.password_file, where(("target", "password_file")))
    if target.password == REDACTED:
        raise PlanError(
            f"{where(('target', 'password'))}: expected a password, got {show(REDACTED)}, which stands for one that "
            "was not kept; say --password-env or --password-file"
        )
    return target.password if address is None or address.password is None else address.password


def _from_environment(name: str, environ: Mapping[str, str], where: str) -> str:
    password = environ.get(name)
    if not password:
        found = "is not set" if password is None else "is empty"
        raise PlanError(
            f"{where}: expected an environment variable that holds the password, got {show(name)}, which {found}"
        )
    return password


def _from_file(name: str, where: str) -> str:
    data = read_small_file(Path(name), where, f"a file that holds the password, {show(name)}")
    try:
        password = data.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise PlanError(
            f"{where}: expected a password in UTF-8 text, got bytes that are not, in {show(name)}"
        ) from error
    if not password:
        raise PlanError(f"{where}: expected a file that holds the password, got {show(name)}, which is empty")
    return password

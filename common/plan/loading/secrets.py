"""Finds the passwords of the target and of its Sentinels.

A resolved plan has the passwords themselves, and its URL has no credentials. The names of variables and files stay in
the plan: they are not secrets, and they lead to the passwords again if the plan was stored without them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from common.errors import PlanError
from common.plan.key_path import DescribeSource, KeyPath, in_plan
from common.plan.loading.parsing import read_small_file
from common.plan.scenarios import map_targets
from common.plan.schema import Plan, Sentinel, Target
from common.plan.schema.target_url import Address, parse_redis_url
from common.plan.settings import PASSWORD, SENTINEL_PASSWORD, URL
from common.plan.validation import is_utf8
from common.redaction import REDACTED
from common.units import show

_SOURCES = ("password", "password_env", "password_file")
_TARGET: KeyPath = ("target",)
_SENTINEL: KeyPath = ("target", "sentinel")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


def resolve_secrets(plan: Plan, environ: Mapping[str, str], where: DescribeSource = in_plan) -> Plan:
    """The plan with its passwords, and with a URL without credentials.

    Raises PlanError for a malformed URL, and for a password that is given twice or cannot be found.
    """
    target = plan.target
    address = _address(target, where)
    in_url = address.password if address else None
    resolved = msgspec.structs.replace(
        target,
        url=_bare_url(target.url, address),
        username=_username(target, address, where),
        password=_password(target, _TARGET, in_url, environ, where),
        sentinel=msgspec.structs.replace(
            target.sentinel, password=_password(target.sentinel, _SENTINEL, None, environ, where)
        ),
    )
    return msgspec.structs.replace(plan, target=resolved)


def secret_variables(target: Target) -> list[str]:
    """The environment variables that may contain a password of this target."""
    named = [target.password_env, target.sentinel.password_env]
    return [setting.variable for setting in (URL, PASSWORD, SENTINEL_PASSWORD)] + [name for name in named if name]


def with_secrets_of(plan: Plan, other: Plan) -> Plan:
    """A plan that was stored without its passwords, with the passwords of another plan."""

    def with_secrets(name: str, target: Target) -> Target:
        known = other.targets.get(name, Target()) if name else other.target
        sentinel = msgspec.structs.replace(target.sentinel, password=known.sentinel.password)
        return msgspec.structs.replace(target, password=known.password, sentinel=sentinel)

    return map_targets(plan, with_secrets)


def _address(target: Target, where: DescribeSource) -> Address | None:
    if not target.url:
        return None
    try:
        return parse_redis_url(target.url)
    except PlanError as error:
        raise PlanError(f"{where(('target', 'url'))}: {error}") from error


def _bare_url(url: str, address: Address | None) -> str:
    if address is None or ("://" in url and address.username is None and address.password is None):
        return url
    return address.url


def _username(target: Target, address: Address | None, where: DescribeSource) -> str | None:
    in_url = address.username if address else None
    if in_url is not None and target.username not in (None, in_url):
        raise PlanError(f"{where(('target', 'username'))}: expected one user name, got one here and another in the URL")
    return target.username if in_url is None else in_url


def _password(
    section: Target | Sentinel, path: KeyPath, in_url: str | None, environ: Mapping[str, str], where: DescribeSource
) -> str | None:
    """The password of a section of the plan, or of the target's URL."""
    given = [source for source in _SOURCES if getattr(section, source) is not None]
    if section.password == REDACTED and len(given) > 1:
        given.remove("password")
    if in_url is not None:
        given.append("url")
    if len(given) > 1:
        raise PlanError(f"{where((*path, given[1]))}: expected the password once, got {' and '.join(given)}")
    if section.password_env is not None:
        return _from_environment(section.password_env, environ, where((*path, "password_env")))
    if section.password_file is not None:
        return _from_file(section.password_file, where((*path, "password_file")))
    if section.password == REDACTED:
        flags = "--sentinel-password-env or --sentinel-password-file"
        raise PlanError(
            f"{where((*path, 'password'))}: expected a password, got {show(REDACTED)}, which stands for a "
            f"password that was not stored; use {flags if path == _SENTINEL else '--password-env or --password-file'}"
        )
    return section.password if in_url is None else in_url


def _from_environment(name: str, environ: Mapping[str, str], where: str) -> str:
    password = environ.get(name)
    if not password:
        # Users confuse --password-env with a password: show only text that looks like the name of a variable.
        shown = f"{show(name)}, which" if _VARIABLE.fullmatch(name) else "a name that"
        found = "is not set" if password is None else "is empty"
        raise PlanError(f"{where}: expected an environment variable with the password, got {shown} {found}")
    if not is_utf8(password):
        raise PlanError(f"{where}: expected a password in UTF-8 text, got other bytes in {show(name)}")
    return password


def _from_file(name: str, where: str) -> str:
    # Users confuse --password-file with a password: do not show a word that is not the name of a file.
    shown = show(name) if "/" in name or Path(name).suffix or Path(name).exists() else "in the working directory"
    data = read_small_file(Path(name), where, f"a file with the password, {shown}")
    try:
        # Editors on Windows may begin the file with a byte order mark.
        password = data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        found = "UTF-16 text" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "other bytes"
        raise PlanError(f"{where}: expected a password in UTF-8 text, got {found} in {shown}") from error
    if not password:
        raise PlanError(f"{where}: expected a file with the password, got {shown}, which is empty")
    return password

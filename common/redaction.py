"""Removes secrets from messages. Pure.

Two rules apply to all text that is shown:

- Every message: the text before the `@` of a URL and after `password=` is `***`, even if the URL is malformed
  (`hide_userinfo`).
- Messages about a plan: the values of its passwords are `***`, even if the plan cannot be parsed (`hide_values`, with
  the values that `password_candidates` finds in the plan's text).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from common.units import printable

REDACTED = "***"

SECRET_KEYS = frozenset({"password", "password_env", "password_file"})
"""Keys of a plan whose wrong values are not quoted. The names of variables and files are included, because users
confuse them with the password itself."""

_USERINFO_FORM = "[username[:password]@]"
"""The form of the user part of a URL in error messages. It is not a secret."""
_PLACEHOLDER = "\0"

_URL_START = re.compile(
    r"""\b(?:rediss?|unix|valkeys?)(?:\+[a-z]+)?(?::/{0,3}|//)(?=[^\s,:;"')/]|:[^\s"])""", re.IGNORECASE
)
"""The beginning of a URL, also of a malformed one: `redis//`, or `redis:/`, because file names lose a slash. Not a
scheme without a URL."""
_TOKEN_USERINFO = re.compile(r"""[^\s"'(=]*:[^\s"]*@""")

_BARE_USERINFO = re.compile(r"""\A[^\s:/"\[\]@]*:(?!\d{1,5}\b|PORT(?:/DB)?(?:[\s,;]|\Z))[^\s"@]+(?=["\s]|\Z)""")
"""A user part without its `@`: the text after the colon is neither a port nor the PORT of our own messages."""

_SECRET_LABEL = re.compile(r"""(?:pass(?:word|wd|phrase)?|pwd|secret|requirepass|auth)(?!\w*_(?:env|file))\W*""", re.I)
_ASSIGNED = re.compile(r"""\b((?:pass(?:word|wd|phrase)?|pwd|secret)=)[^\s"'&,;]*[^\s"'&,;:]""", re.I)
"""A password among the options of a URL or of another tool's connection string."""
_SHORT = 4
"""Shorter values are replaced only where a message quotes exactly them: they also occur within other words."""
_SHORTENED = re.compile(r"([^\n]{,60})(\.\.\.)")
_SHOWN_LETTERS = 57
"""`common.units.show` cuts text after this many characters."""


def hide_userinfo(text: str) -> str:
    """The text with `***` for everything that looks like the user part of a URL. The host stays."""
    masked = _ASSIGNED.sub(rf"\1{REDACTED}", text.replace(_USERINFO_FORM, _PLACEHOLDER))
    starts = [found.span() for found in _URL_START.finditer(masked)]
    ends = [*(begin for begin, _ in starts), len(masked)]
    hidden = masked[: ends[0]]
    for (begin, after_scheme), end in zip(starts, ends[1:], strict=True):
        # Up to the last @: a password that is not percent-encoded may contain @ itself.
        userinfo, at, rest = _BARE_USERINFO.sub(REDACTED, masked[after_scheme:end]).rpartition("@")
        hidden += masked[begin:after_scheme] + (REDACTED if userinfo else "") + at + rest
    return _TOKEN_USERINFO.sub(_hide_token, hidden).replace(_PLACEHOLDER, _USERINFO_FORM)


def hide_values(text: str, values: Iterable[str]) -> str:
    """The text with `***` for each of the values, in all forms in which a message may quote a value."""
    forms = {
        form for value in values for form in (value, printable(value), printable(value[:60])[:_SHOWN_LETTERS]) if form
    }
    for form in sorted(forms, key=len, reverse=True):
        is_short = len(form) < _SHORT
        text = text.replace(f'"{form}"' if is_short else form, f'"{REDACTED}"' if is_short else REDACTED)
    return _SHORTENED.sub(lambda cut: _without_beginning(cut[1], forms) + cut[2], text)


def hide_secrets(text: str, secrets: Iterable[str]) -> str:
    """The text of a server with `***` for every occurrence of a secret, and for every user part of a URL. Short secrets
    are replaced only as whole words."""
    for secret in filter(None, secrets):
        form = re.escape(secret)
        text = re.sub(form if len(secret) >= _SHORT else rf"(?<!\w){form}(?!\w)", REDACTED, text)
    return hide_userinfo(text)


def _without_beginning(text: str, forms: Iterable[str]) -> str:
    """The text before "...". If it ends with the beginning of a value, `***` replaces that beginning."""
    ends = (text[at:] for at in range(len(text) - _SHORT + 1))
    begun = next((end for end in ends if any(form.startswith(end) for form in forms)), None)
    return text if begun is None else text.removesuffix(begun) + REDACTED


def password_candidates(text: str) -> Iterator[str]:
    """Text that may be a password in a plan, parsed or not: what follows each word such as `password`, on the same line
    or the next one. Each candidate comes whole, up to a character that may end it, and as its first word only.

    Some candidates are not passwords. A message then loses a word, but shows no secret.
    """
    for label in _SECRET_LABEL.finditer(text):
        line = text[label.end() :].partition("\n")[0]
        for part in (line, re.split(r"[,}\]]| #", line)[0], *line.split()[:1]):
            yield part.strip(" \t\r,}]'\"")


def _hide_token(found: re.Match[str]) -> str:
    return found[0] if found[0].endswith((f"{REDACTED}@", f"//{_PLACEHOLDER}")) else f"{REDACTED}@"

"""Passwords and tokens in tracking URIs: taken out of whatever is shown or kept."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

MASK = "***"
_SECRET_NAME = r"(?:[\w.-]*(?:pass|pwd|token|secret|key|credential|auth|signature|odbc_connect)[\w.-]*|sig)"


def _patterns(end: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return what finds the user's part of a URI, and secrets in its query.

    Args:
        end: What no URI goes beyond, as in a class of characters.
    """
    # Of http URIs a slash ends the user's part; those of databases may have one in the password.
    web = rf"(?P<scheme>https?://)(?P<web>[^/?#{end}]+)@"
    store = rf"(?P<store>[a-z][\w+.-]*(?<!http)(?<!https)://)(?P<user>[^/:@{end}]*:[^\n{end}]*|[^/:@{end}]+)@"
    query = rf"(?P<name>[?&;]{_SECRET_NAME}=)(?P<value>[^&#{end}]+)"
    return re.compile(rf"(?i){web}|{store}"), re.compile(f"(?i){query}")


# A URI by itself may have blanks and quotes in its password; in a text they end it.
_ALONE, _IN_TEXT = _patterns(""), _patterns(r"""\s"'""")
_BEGINS_URI = re.compile(r"(?i)[a-z][\w+.-]*://")
_ENVIRONMENT = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def mask_uri(uri: str) -> str:
    """Return a URI without its secrets: `http://me:word@host/?token=t` becomes `http://***@host/?token=***`."""
    user, query = _patterns_for(uri)
    return query.sub(rf"\g<name>{MASK}", user.sub(lambda m: f"{m['scheme'] or m['store']}{MASK}@", uri))


def mask_text(text: str, uri: str | None = None) -> str:
    """Return a text in which secrets are masked: those of any URI in it, and of `uri` wherever they stand.

    Args:
        text: For instance the message of another library's error.
        uri: The URI in use; its password may be repeated by itself, plain or percent-encoded.
    """
    text = mask_uri(text.replace(uri, mask_uri(uri)) if uri else text)
    exported = [os.environ.get(name, "") for name in _ENVIRONMENT]
    for secret in sorted({*_secrets(uri or ""), *exported} - {"", MASK}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def masked(value: Any) -> Any:
    """Return a configuration, that is nested mappings, lists and strings, with `mask_uri` done to every string."""
    if isinstance(value, str):
        return mask_uri(value)
    if isinstance(value, Mapping):
        return {key: masked(content) for key, content in value.items()}
    return [masked(content) for content in value] if isinstance(value, (list, tuple)) else value


def is_masked(uri: str) -> bool:
    """Return whether a URI has lost its secrets, so that nothing can be reached by it."""
    return f"://{MASK}@" in uri or re.search(rf"(?i)[?&;]{_SECRET_NAME}={re.escape(MASK)}", uri) is not None


def hide_in_logs(uri: str, libraries: Sequence[str]) -> None:
    """Mask the secrets of a URI, and of others, in whatever libraries log from now on.

    Args:
        uri: The URI in use.
        libraries: Names of loggers; those below them are meant too, which a filter of a logger would not see.
    """
    before = logging.getLogRecordFactory()
    if isinstance(before, _MaskedRecords):
        before.uris.add(uri)
    else:
        logging.setLogRecordFactory(_MaskedRecords(before, uri, libraries))


class _MaskedRecords:
    """Makes log records, those of some libraries without secrets."""

    def __init__(self, make: Any, uri: str, libraries: Sequence[str]) -> None:
        self.make, self.uris, self.libraries = make, {uri}, frozenset(libraries)

    def __call__(self, name: str, *arguments: Any, **options: Any) -> logging.LogRecord:
        record: logging.LogRecord = self.make(name, *arguments, **options)
        if name.partition(".")[0] in self.libraries:
            record.msg, record.args = self._masked(record.getMessage()), ()
            if record.exc_info:  # handlers take the text where it is there
                record.exc_text = self._masked(logging.Formatter().formatException(record.exc_info))
        return record

    def _masked(self, text: str) -> str:
        for uri in self.uris:
            text = mask_text(text, uri)
        return text


def _patterns_for(text: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return _ALONE if _BEGINS_URI.match(text) else _IN_TEXT


def _secrets(uri: str) -> set[str]:
    """Return what must not be shown by itself; a user's name alone is no secret beside a password."""
    users, queries = _patterns_for(uri)
    found = {match["value"] for match in queries.finditer(uri)}
    for match in users.finditer(uri):
        user, colon, word = (match["web"] or match["user"]).partition(":")
        found.add(word if colon else user)
    return found | {unquote(secret) for secret in found}

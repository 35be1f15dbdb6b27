"""Passwords and tokens in tracking URIs: taken out of whatever is shown or kept."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"
# Of http URIs a slash ends the user's part; those of databases may have one in the password.
_USER = re.compile(
    r"""(?i)\b(?P<scheme>https?://)(?P<web>[^/\s?#"']+)@|(?P<store>[a-z][\w+.-]*://)(?P<user>[^\s/:@"']*:[^\s"']*|[^\s/:@"']+)@"""
)
_SECRET_NAME = r"[\w.-]*(?:pass|pwd|token|secret|key|credential|auth|signature|odbc_connect)[\w.-]*"
_QUERY = re.compile(rf"""(?i)(?P<name>[?&;]{_SECRET_NAME}=)(?P<value>[^&\s#"']+)""")
_ENVIRONMENT = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def mask_uri(uri: str) -> str:
    """Return a URI without its secrets: `http://me:word@host/?token=t` becomes `http://***@host/?token=***`."""
    return _QUERY.sub(rf"\g<name>{MASK}", _USER.sub(lambda m: f"{m['scheme'] or m['store']}{MASK}@", uri))


def mask_text(text: str, uri: str | None = None) -> str:
    """Return a text in which secrets are masked: those of any URI in it, and of `uri` wherever they stand.

    Args:
        text: For instance the message of another library's error.
        uri: The URI in use; its password may be repeated by itself, plain or percent-encoded.
    """
    text = mask_uri(text)
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


def _secrets(uri: str) -> set[str]:
    """Return what must not be shown by itself; a user's name alone is no secret beside a password."""
    found = {match["value"] for match in _QUERY.finditer(uri)}
    for match in _USER.finditer(uri):
        user, colon, word = (match["web"] or match["user"]).partition(":")
        found.add(word if colon else user)
    return found | {unquote(secret) for secret in found}

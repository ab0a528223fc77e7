"""Redact credentials in URIs and settings, for reports, logs and messages."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "•••"

_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*://)[^/?#\s\"]+@")
# signatures and tokens in a query string: keep the name, hide the value
_QUERY = re.compile(
    r"(?P<name>[?&;](?:[\w\-]*(?:signature|token|secret|password|passwd|passphrase|credential|access[-_]?key|api[-_]?key)"
    r"[\w\-]*|sig|pwd|key|auth|jwt|sas)=)[^&#\s\"]+",
    re.IGNORECASE,
)
_BEARER = re.compile(
    r"(?P<scheme>\bBearer\s+(?=\S{16})|\bauthorization\W{1,4}(?:\w+\s+)?)[\w.~+/=\-]{6,}", re.IGNORECASE
)
_AWS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_SECRET_NAME = re.compile(
    r"secret|password|passwd|pwd|token|credential|api[-_]?key|access[-_]?key|private[-_]?key|authorization",
    re.IGNORECASE,
)
# names that merely look like secrets
_HARMLESS = re.compile(r"tokens?_per|tokenizer", re.IGNORECASE)


def redact(value: Any, name: str = "") -> Any:
    """Copy JSON-ready data without credentials.

    Hides user and password in ``scheme://user:password@host``, signatures of signed links, values whose key names a
    secret, and all environment variables of a job (``env``), since their names may not reveal their contents.
    """
    if isinstance(value, dict):
        if name == "env":
            return dict.fromkeys(value, HIDDEN)
        return {
            redact(key) if isinstance(key, str) else key: redact(item, str(key))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item, name) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if name and _SECRET_NAME.search(name) and not _HARMLESS.search(name):
        return HIDDEN
    if isinstance(value, str):
        value = _USERINFO.sub(rf"\g<scheme>{HIDDEN}@", value)
        value = _QUERY.sub(rf"\g<name>{HIDDEN}", value)
        value = _BEARER.sub(rf"\g<scheme>{HIDDEN}", value)
        return _AWS_KEY.sub(HIDDEN, value)
    return value

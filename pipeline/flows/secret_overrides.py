"""Hide credentials in a flow's overrides, because Prefect stores flow parameters unredacted."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.redact import HIDDEN, redact

_known: dict[str, str] = {}


def hide(overrides: list[str]) -> list[str]:
    """Redact overrides for a flow that runs in this process, remembering the originals."""
    shown = [_hidden(override) for override in overrides]
    _known.update(zip(shown, overrides, strict=True))
    return shown


def whole(overrides: list[str]) -> list[str]:
    """Restore overrides redacted by :func:`hide`; others are unchanged."""
    return [_known.get(override, override) for override in overrides]


def _hidden(override: str) -> str:
    key, _, text = override.partition("=")
    try:
        value: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return str(redact(override))
    tree: Any = value
    for part in reversed(key.split(".")):  # some are hidden for their names, wherever they stand
        tree = {part: tree}
    if redact(tree) == tree or (isinstance(value, str) and redact(value) != value):
        return str(redact(override))
    return f"{key}={HIDDEN}"

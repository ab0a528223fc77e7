"""Settings of this process's flow whose values hold credentials: Prefect stores a flow's parameters as they are."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.redact import HIDDEN, redact

_known: dict[str, str] = {}


def hide(overrides: list[str]) -> list[str]:
    """The overrides without credentials, for a flow that runs in this process."""
    shown = [_hidden(override) for override in overrides]
    _known.update(zip(shown, overrides, strict=True))
    return shown


def whole(overrides: list[str]) -> list[str]:
    """The same overrides as they were given to :func:`hide`; others as they are."""
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

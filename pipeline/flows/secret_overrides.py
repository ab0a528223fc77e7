"""Settings of this process's flow whose values hold credentials: Prefect stores a flow's parameters as they are."""

from __future__ import annotations

from pipeline.redact import redact

_known: dict[str, str] = {}


def hide(overrides: list[str]) -> list[str]:
    """The overrides without credentials, for a flow that runs in this process."""
    shown: list[str] = [redact(override) for override in overrides]
    _known.update(zip(shown, overrides, strict=True))
    return shown


def whole(overrides: list[str]) -> list[str]:
    """The same overrides as they were given to :func:`hide`; others as they are."""
    return [_known.get(override, override) for override in overrides]

"""Hide credentials in a flow's overrides, because Prefect stores flow parameters unredacted."""

from __future__ import annotations

from pipeline.redact import redact

_known: dict[str, str] = {}


def hide(overrides: list[str]) -> list[str]:
    """Redact overrides for a flow that runs in this process, remembering the originals."""
    shown: list[str] = [redact(override) for override in overrides]
    _known.update(zip(shown, overrides, strict=True))
    return shown


def whole(overrides: list[str]) -> list[str]:
    """Restore overrides redacted by :func:`hide`; others are unchanged."""
    return [_known.get(override, override) for override in overrides]

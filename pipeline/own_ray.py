"""A Ray of a process's own keeps to itself."""

from __future__ import annotations

import os
import secrets


def keep_private() -> None:
    """Nothing is written to the home directory or read from there.

    Ray reads these once, when it is imported: call it before, and they stay set.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

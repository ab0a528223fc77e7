"""A Ray of a process's own keeps to itself."""

from __future__ import annotations

import os
import secrets

OTHER_CLUSTER = frozenset(
    {
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_NAMESPACE",
        "RAY_RUNTIME_ENV",
        "RAY_JOB_ID",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        "RAY_RAYLET_PID",
        "RAY_NODE_ID",
        "RAY_SESSION_NAME",
        "RAY_AUTH_TOKEN_PATH",
    }
)
"""Variables that belong to one particular Ray: a private one must not inherit them."""


def environment() -> dict[str, str]:
    """With a token of its own: nothing is written to the home directory or read from there."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def keep_private() -> None:
    """The same for this process, where it is not set. Ray reads it once, when it is imported: call this before."""
    for key, value in environment().items():
        os.environ.setdefault(key, value)

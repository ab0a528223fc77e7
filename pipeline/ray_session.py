"""A private Ray instance: it ends with its process, and only this user reaches it."""

from __future__ import annotations

import os
import secrets
from typing import Any

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
    """Its own token, so that nothing is written to the home directory or read from there, and loopback alone."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # without it Ray takes 127.0.0.1 for "find out my address" and listens on every interface
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def keep_private() -> None:
    """The same for this process, where it is not set. Ray reads it once, when it is imported: call this before."""
    for key, value in environment().items():
        os.environ.setdefault(key, value)


def options(folder: str, object_store_bytes: int) -> dict[str, Any]:
    """Arguments of ``ray.init``.

    Args:
        folder: a folder of mode 0700 with a short name: paths of sockets below it must not exceed 107 bytes.
    """
    return {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": object_store_bytes,
        # Ray opens its folder to every user; the one around it admits nobody else
        "_temp_dir": os.path.join(folder, "ray"),
        "_node_ip_address": "127.0.0.1",
    }

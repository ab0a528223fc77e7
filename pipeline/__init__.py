"""The workflow around the method: data, training, scores, registry, report."""

from __future__ import annotations

import os

_LOOPBACK = "127.0.0.1,localhost,::1"


def _past_proxies() -> None:
    """Servers on this machine are asked directly, also where a proxy is set and no exception from it."""
    for name in ("no_proxy", "NO_PROXY"):
        given = os.environ.get(name, "")
        if given.strip() != "*" and "127.0.0.1" not in given:
            os.environ[name] = f"{given},{_LOOPBACK}" if given else _LOOPBACK


if any(name.lower() in {"http_proxy", "https_proxy", "all_proxy"} for name in os.environ):
    _past_proxies()

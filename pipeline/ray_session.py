"""Ray, as the training job uses it: the cluster that ``RAY_ADDRESS`` names, or a private instance.

A private one ends with its process, and only this user reaches it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from pipeline.config import Config

# Read by Ray Train in the driver and handed on to its controller and workers.
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # a spot node gives as little as 25 s; Ray's own 5 s would be a fifth of that
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}
_PLACES_SECONDS, _ELASTIC_PLACES_SECONDS = "600", "30"
"""How long Ray Train waits for the workers' slots. A cluster may have to grow first; an elastic run may have counted
a node that is gone, and should count again soon."""
# Only for a private instance, which ends with the job and is restarted with it when it is lost.
_PRIVATE = {
    # no one could read them here; a cluster's nodes export Ray Train's and ours (see pipeline.train.prometheus)
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # clusters announce that a node will be drained; here the watcher would only be one more process
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # a busy machine is slow, not dead; a process that died closes its connections, which shows at once
    "RAY_health_check_timeout_ms": "60000",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    # Ray would kill the workers when other processes fill the memory; the kernel does so only when it is full
    "RAY_memory_monitor_refresh_ms": "0",
    # Ray's default, 15, would yield the processor to every other process of the machine
    "RAY_worker_niceness": "0",
    # nothing restarts its control service
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
_OBJECT_STORE_BYTES = 96 * 2**20
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


@contextlib.contextmanager
def connected(config: Config, cpus: int | None = None) -> Iterator[str]:
    """Connect to the cluster that ``RAY_ADDRESS`` names, or start a private instance; yields a scratch folder.

    A private instance listens on loopback only, keeps its token out of the home directory, shows no dashboard and
    lives in a folder that only this user can enter.

    Args:
        cpus: slots of a private instance; default: one per worker.
    """
    foreign = os.environ.get("RAY_ADDRESS")
    elastic = config.train.minimum_workers not in {None, config.train.workers}
    places = _ELASTIC_PLACES_SECONDS if elastic else _PLACES_SECONDS
    settings = _RAY_TRAIN | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": places} | ({} if foreign else _PRIVATE)
    added = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(added)
    # loads while the processes of Ray start; the driver needs it next
    threading.Thread(target=lambda: importlib.import_module("torch"), daemon=True).start()
    if not foreign:
        keep_private()
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    private: dict[str, Any] = {}
    # the launcher's folder, where there is one: it also removes it when this process is killed
    folder = os.environ.get("AGIT_RAY_FOLDER") or tempfile.mkdtemp(prefix="agit-", dir=_short_folder())
    try:
        if not foreign:
            private = options(folder, _OBJECT_STORE_BYTES)
            private["num_cpus"] = cpus or config.train.workers
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(**quiet, **private)
        # ray.init installs its own handler, which does not end a driver that waits
        signal.signal(signal.SIGTERM, on_sigterm)
        scratch = os.path.join(folder, "train")
        os.makedirs(scratch, exist_ok=True)
        yield scratch
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        for key in added:
            os.environ.pop(key, None)


def _short_folder() -> str:
    return "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()

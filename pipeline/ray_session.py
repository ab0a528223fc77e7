"""Ray connection of a job: the cluster at ``RAY_ADDRESS``, or a private instance.

A private instance ends with its process and is accessible to this user only.
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

# read by Ray Train in the driver and passed on to its controller and workers
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # spot nodes give as little as 25 s notice, of which Ray's default of 5 s would be a fifth
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}
_PLACES_SECONDS, _ELASTIC_PLACES_SECONDS = "600", "30"
"""Timeout of Ray Train for the workers' slots: long, because a cluster may have to grow first; short for elastic runs,
which may have counted a lost node and should count again."""
# for a private instance only, which ends with the job and is restarted with it when it is lost
_PRIVATE = {
    # not exported by a private instance; for clusters see pipeline.train.prometheus
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray's own metrics require no token; a port that no socket takes keeps the last two of their servers away
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
    # useful on clusters only, and one more process
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # long timeouts for busy machines; a dead process is detected at once by its closed connections
    "RAY_health_check_timeout_ms": "60000",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    # otherwise Ray kills workers when other processes use the memory; leave that to the kernel
    "RAY_memory_monitor_refresh_ms": "0",
    # with Ray's default of 15, workers would yield to every other process
    "RAY_worker_niceness": "0",
    # short, because nothing restarts the control service of a private instance
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
"""Variables that refer to a particular Ray instance; a private one must not inherit them."""


def environment() -> dict[str, str]:
    """Environment of a private instance: a new token (none is read from or written to the home directory), loopback."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # otherwise Ray interprets 127.0.0.1 as "detect my address" and listens on every interface
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def keep_private() -> None:
    """Set :func:`environment` in this process, unless set. Call it before importing Ray, which reads it on import."""
    for key, value in environment().items():
        os.environ.setdefault(key, value)


def options(folder: str, object_store_bytes: int) -> dict[str, Any]:
    """Arguments of ``ray.init``.

    Args:
        folder: folder of mode 0700 with a short path: socket paths in it must not exceed 107 bytes.
    """
    return {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": object_store_bytes,
        # Ray makes this folder accessible to all users; its parent is not
        "_temp_dir": os.path.join(folder, "ray"),
        "_node_ip_address": "127.0.0.1",
    }


@contextlib.contextmanager
def connected(config: Config, cpus: int | None = None) -> Iterator[str]:
    """Connect to the cluster that ``RAY_ADDRESS`` names, or start a private instance; yields a scratch folder.

    A private instance listens on loopback only, keeps its token out of the home directory, has no dashboard and uses a
    folder that is accessible to this user only.

    Args:
        cpus: CPU slots of a private instance; default: one per worker.
    """
    foreign = os.environ.get("RAY_ADDRESS")
    elastic = config.train.minimum_workers not in {None, config.train.workers}
    places = _ELASTIC_PLACES_SECONDS if elastic else _PLACES_SECONDS
    settings = _RAY_TRAIN | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": places} | ({} if foreign else _PRIVATE)
    added = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(added)
    # import torch while Ray starts; the driver needs it next
    threading.Thread(target=lambda: importlib.import_module("torch"), daemon=True).start()
    if not foreign:
        keep_private()
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    private: dict[str, Any] = {}
    # the launcher's folder, if any: the launcher removes it even after this process is killed
    folder = os.environ.get("AGIT_RAY_FOLDER") or tempfile.mkdtemp(prefix="agit-", dir=_short_folder())
    try:
        if foreign:
            # every process of the job finds its own cluster, also where the machine has several
            quiet["runtime_env"] = {"env_vars": {"RAY_ADDRESS": foreign}}
        else:
            private = options(folder, _OBJECT_STORE_BYTES)
            private["num_cpus"] = cpus or config.train.workers
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(**quiet, **private)
        # ray.init installs a handler that does not end a waiting driver
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

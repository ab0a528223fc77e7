"""The Ray that a test starts or joins in its own process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.stack_state import free_port


def without_token(patch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's Ray, and no token.

    Ray reads the token once per process, and makes one up in the home directory where nobody sentence not to: a single
    test that forgot would have the processes of every later test refused.
    """
    for name in [name for name in os.environ if name.startswith(("RAY_", "AGIT_"))]:
        patch.delenv(name)
    patch.setenv("RAY_AUTH_MODE", "disabled")


def own_ray(cpus: int) -> None:
    """Starts a Ray in this process; without the address it would join whatever another test has started."""
    import ray

    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error"
    )


@contextlib.contextmanager
def job_ray(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The private Ray of a training job, in this process; gives its scratch folder. SIGTERM stays as it was."""
    from pipeline import ray_session
    from tests.pipeline.training import tiny

    without_token(patch)
    terminate = signal.getsignal(signal.SIGTERM)
    with ray_session.connected(tiny("unused")) as folder:
        yield folder
    signal.signal(signal.SIGTERM, terminate)


@contextlib.contextmanager
def head_node(cpus: int) -> Iterator[tuple[Any, str]]:
    """A cluster of one node that takes jobs; gives the cluster and the address for jobs."""
    from ray._private.utils import write_ray_address
    from ray.cluster_utils import Cluster

    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="agit-head-", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        without_token(patch)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        port = free_port()
        head = {
            "num_cpus": cpus,
            "include_dashboard": True,
            "dashboard_port": port,
            "dashboard_host": "127.0.0.1",
            # any port: without an agent a head takes no jobs, and by default every Ray on this machine takes the
            # same one for it
            "dashboard_agent_listen_port": 0,
            "object_store_memory": 100 * 2**20,
            # its jobs look there for the address of their cluster, as those of `ray start --temp-dir` do, and in a
            # folder that is shared they may find another test's
            "temp_dir": folder,
        }
        cluster = Cluster(initialize_head=True, head_node_args=head)
        write_ray_address(cluster.address, folder)
        try:
            yield cluster, f"http://127.0.0.1:{port}"
        finally:
            cluster.shutdown()

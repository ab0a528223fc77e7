"""One training at a time per machine or cluster, by Prefect's global concurrency limits.

A missing limit would not limit anything, so the first training creates it with one slot. To allow more, raise it:
``prefect global-concurrency-limit update agit-gpu-HOST --limit 2``.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from prefect import get_client, get_run_logger
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from pipeline.config import Config
from pipeline.flows.embedded import EMBEDDED

LEASE_SECONDS = 120.0
"""Lease of a slot: the slot of a killed training is freed after this time."""


def limit_of(config: Config) -> str:
    """Name of the limit, ``agit-gpu-HOST`` or ``agit-cpu-HOST``, for the cluster's host, or else this machine."""
    kind = "cpu" if config.train.device == "cpu" else "gpu"
    where = socket.gethostname()
    if config.cluster.address is not None:
        where = urlsplit(config.cluster.address).netloc.rpartition("@")[2] or config.cluster.address
    return f"agit-{kind}-" + re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")


@contextlib.contextmanager
def slot(config: Config) -> Iterator[None]:
    """Wait for a slot and hold it within the block.

    There is no limit with an embedded server, which serves only one run.
    """
    if os.environ.get(EMBEDDED):
        yield
        return
    name = limit_of(config)
    _create(name)
    get_run_logger().info(
        "training takes a slot of the concurrency limit %s, waiting where there is none", name
    )
    # a temporary outage of the server must not end the training
    with concurrency(
        name, occupy=1, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    ):
        yield


def _create(name: str) -> None:
    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectNotFound):
            client.read_global_concurrency_limit_by_name(name)
            return
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack_state import free_port
from pipeline import storage
from tests.browser import browser, screenshots  # noqa: F401
from tests.pipeline.s3 import S3Server

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before a test imports ONNX Runtime itself

LONGEST = (
    "pipeline/flows/test_train.py",
    "pipeline/tune/test_search.py",
    "chaos/test_chaos.py",
    "pipeline/train/test_job.py",
    "pipeline/launch/test_cluster.py",
    "pipeline/launch/test_stages.py",
    "infra/test_stack.py",
    "pipeline/train/test_network.py",
    "pipeline/train/test_nodes.py",
    "pipeline/launch/test_local.py",
)
"""Files of minutes: they start first, so that short ones fill the end of a run on several processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((i for i, name in enumerate(LONGEST) if path.endswith(name)), len(LONGEST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def _s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(root=tmp_path_factory.mktemp("s3"), port=free_port()).start()
    yield server
    server.stop()


@pytest.fixture
def s3(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> S3Server:
    """A real S3 server with an empty bucket of its own for the test; ``AWS_*`` point at it.

    Use ``s3.uri`` (``s3://bucket``), ``s3.env`` for subprocesses, ``s3.endpoint``. To stop a server in the
    middle of a test use the fixture ``s3_private``, which nobody else shares.
    """
    bucket = "test-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    for key, value in _s3_server.env.items():
        monkeypatch.setenv(key, value)
    # Through the server: it answers from its own view of the folders.
    storage.filesystem(f"s3://{bucket}")[0].mkdir(bucket)
    return S3Server(root=_s3_server.root, port=_s3_server.port, bucket=bucket)


@pytest.fixture
def s3_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server for one test alone, which may :meth:`~S3Server.stop` and :meth:`~S3Server.start` it."""
    server = S3Server(root=tmp_path / "s3", port=free_port())
    server.root.mkdir()
    server.start()
    for key, value in server.env.items():
        monkeypatch.setenv(key, value)
    yield server
    server.stop()

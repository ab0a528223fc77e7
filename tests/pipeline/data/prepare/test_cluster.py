"""Preparing on a Ray cluster of two nodes: the same bytes as on one machine alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.data.prepare import build
from pipeline.data.prepare.encode import Encoded, Task
from pipeline.data.prepare.parallel import ordered_map
from pipeline.data.prepare.stage import prepare
from pipeline.data.sources.source import Entry, LocalFile, carried
from tests.pipeline.data.prepare.test_stage import config, files
from tests.pipeline.pictures import FOUR, folder
from tests.pipeline.s3 import S3Server
from tests.ray_environment import without_token


@pytest.fixture(scope="module")
def cluster(_s3_server: S3Server) -> Iterator[str]:
    """Two nodes of one processor each, which reach the object storage; this process connects to them as any other."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        without_token(patch)
        for key, value in _s3_server.env.items():
            patch.setenv(key, value)
        # a node that is slow on a busy machine is not lost
        patch.setenv("RAY_health_check_timeout_ms", "60000")
        patch.setenv("RAY_agent_register_timeout_ms", "300000")
        patch.setenv("RAY_worker_register_timeout_seconds", "300")
        nodes = Cluster()
        try:
            for _ in range(2):
                nodes.add_node(
                    num_cpus=1,
                    include_dashboard=False,
                    object_store_memory=100 << 20,
                    dashboard_agent_listen_port=0,
                )
            yield nodes.address
        finally:
            nodes.shutdown()


def which_node(number: int) -> tuple[int, str]:
    import ray

    return number, ray.get_runtime_context().get_node_id()


def refuse(number: int) -> int:
    if number == 3:
        raise RunFailed("the third cannot be read")
    return number


@pytest.mark.long
def test_a_cluster_prepares_the_same_bytes(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "ENTRIES_PER_WORKER", 4)
    monkeypatch.setattr(build, "ENTRIES_PER_TASK", 3)
    source = folder(tmp_path / "in", {**FOUR, "trainA": 40}, masks=True)
    (source / "trainA" / "broken.jpg").write_text("no")
    here = prepare(config(source, tmp_path / "here", shard_bytes=4096))
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    there = prepare(config(source, tmp_path / "there", shard_bytes=4096, workers=None))
    assert files(there.uri) == files(here.uri)
    assert there.manifest.splits == here.manifest.splits

    found = list(ordered_map(which_node, range(40), None))
    assert [(number, answer[0]) for number, answer in found] == [(n, n) for n in range(40)]
    assert len({node for _, (_, node) in found}) == 2, "both nodes work"
    with pytest.raises(RunFailed, match="the third cannot be read"):
        list(ordered_map(refuse, range(10), None))


@pytest.mark.long
def test_a_shard_is_a_task_where_every_node_reads_the_source(
    cluster: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(tmp_path / "in", {**FOUR, "trainA": 40}, masks=True)
    (source / "trainA" / "broken.jpg").write_text("no")
    for path in source.rglob("*"):
        if path.is_file():
            storage.upload_file(path, storage.join(s3.uri, "in", path.relative_to(source).as_posix()))
    images = storage.join(s3.uri, "in")
    here = prepare(config(images, storage.join(s3.uri, "here"), shard_bytes=4096))
    assert here.manifest.totals["shards"] > 4
    monkeypatch.setenv("RAY_ADDRESS", cluster)

    def refuse(task: Task) -> Encoded:
        raise AssertionError("a portion's pixels on their way through this process")

    # the tasks import what they run; what this process hands over would be this
    monkeypatch.setattr(build, "encode", refuse)
    before = prepare(config(images, storage.join(s3.uri, "there"), shard_bytes=4096, workers=None))
    assert files(before.uri) == files(here.uri)
    assert before.manifest.splits == here.manifest.splits
    # and again with one file more: what is known is taken over by the tasks
    extra = source / "trainA" / "trainA-000.jpg"
    storage.upload_file(extra, storage.join(images, "trainA", "zz.jpg"))
    more = prepare(config(images, storage.join(s3.uri, "there"), shard_bytes=4096, workers=None))
    assert more.manifest.totals["images"] == here.manifest.totals["images"] + 1
    assert more.manifest.kept > 40


def test_local_files_travel_with_their_task(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"here")
    files = [LocalFile(str(tmp_path / name)) for name in ("a.jpg", "gone.png")]
    entry = carried(Entry("a", files[0], files[1], "digest"))
    shutil.rmtree(tmp_path)
    assert entry.image.read() == b"here"
    assert entry.mask is not None
    with pytest.raises(OSError, match="No such file") as caught:
        entry.mask.read()
    assert caught.value.strerror == "No such file or directory"


def test_a_cluster_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(BadInput, match="no Ray cluster at RAY_ADDRESS nonsense"):
        list(ordered_map(abs, [1, 2, 3], None))

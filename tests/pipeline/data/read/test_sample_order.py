"""Sets larger than the cache: read from object storage in windows, a row group per request."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from agit_core.errors import BadInput
from agit_core.loader import Batch, Loader
from agit_core.sampling import SamplePlan, slots_of
from pipeline import storage
from pipeline.config import Config
from pipeline.data.format import manifest
from pipeline.data.prepare.stage import Prepared, prepare
from pipeline.data.read.reader import ShardImages
from pipeline.data.read.sample_order import sample_plan
from tests.pipeline.data.prepare.test_stage import config
from tests.pipeline.pictures import folder
from tests.pipeline.s3 import DelayedConnection, S3Server

COUNTS = {"trainA": 160, "trainB": 130, "testA": 2, "testB": 2}


@pytest.fixture
def stored(s3: S3Server, tmp_path: Path) -> tuple[Config, Prepared]:
    source = folder(tmp_path / "in", COUNTS)
    settings = {"shard_bytes": 32768, "rows_per_group": 8, "cache_bytes": 0, "shuffle_bytes": 2**17}
    chosen = config(source, s3.uri, **settings)
    return chosen, prepare(chosen)


def opened(uri: str, plan: SamplePlan, cache: Path) -> dict[Any, ShardImages]:
    return {d: ShardImages(uri, f"train{d.upper()}", cache, 0, plan.block) for d in "ab"}


def epoch(loader: Loader, plan: SamplePlan, slots: range, start: int = 0) -> list[Batch]:
    return list(loader.batches(start, slots, plan.steps(1)))


def test_what_is_large_and_far_is_read_in_windows(stored: tuple[Config, Prepared], tmp_path: Path) -> None:
    chosen, made = stored
    plan = sample_plan(chosen, made.uri, made.manifest)
    assert (plan.block, plan.length_a, plan.length_b) == (8, 160, 130)
    assert 16 <= plan.window < 130

    def order(**data: Any) -> SamplePlan:
        changed = chosen.model_copy(update={"data": chosen.data.model_copy(update=data)})
        return sample_plan(changed, made.uri, made.manifest)

    assert order(cache_bytes=2**30).window == 0, "it fits the cache"
    assert order(shuffle="exact").window == 0
    assert order(shuffle="windowed", cache_bytes=2**30).window == plan.window
    here = str(tmp_path / "here")
    storage.download_folder(made.uri, here)
    assert sample_plan(chosen, here, made.manifest).window == 0, "a local disk needs no windows"


def test_an_epoch_costs_a_request_per_row_group_and_little_memory(
    stored: tuple[Config, Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made = stored
    plan = SamplePlan(0, 160, 130, 4, block=8, window=32)
    requests: list[str] = []
    real = storage.read_range

    def counted(uri: str, start: int, length: int) -> bytes:
        requests.append(uri)
        return real(uri, start, length)

    monkeypatch.setattr(storage, "read_range", counted)
    sources = opened(made.uri, plan, tmp_path)
    held = []
    for _ in Loader(sources, plan, 32).batches(0, range(4), plan.steps(1)):
        held.append(max(source._blocks.held for source in sources.values()))  # type: ignore[union-attr]
    # 37 blocks; each lies in one or two row groups or shards, and one at a seam may come twice
    assert len(requests) < 37 * 3
    assert len(requests) < 290 / 2
    # of 20: the window that is read, the one on its way, and blocks at both ends of what four slots read
    assert 10 <= max(held) <= 2 * 32 // 8 + 2 * 4
    assert all(source._blocks.held == 0 for source in sources.values())  # type: ignore[union-attr]


def test_of_a_large_index_only_the_columns_are_fetched(
    stored: tuple[Config, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made = stored
    columns = ["shard", "image_offset"]
    whole = manifest.read_index(made.uri, made.manifest, "trainA").select(columns)
    monkeypatch.setattr(manifest, "_WHOLE", 0)
    monkeypatch.delattr(storage, "read_bytes")
    assert manifest.read_index(made.uri, made.manifest, "trainA", columns).equals(whole)
    storage.remove(storage.join(made.uri, "index/trainA.parquet"))
    with pytest.raises(BadInput, match="index"):
        manifest.read_index(made.uri, made.manifest, "trainA", columns)


def test_the_images_do_not_depend_on_workers_storage_or_position(
    stored: tuple[Config, Prepared], tmp_path: Path
) -> None:
    _, made = stored
    plan = SamplePlan(0, 160, 130, 4, block=8, window=64)
    here = str(tmp_path / "here")
    storage.download_folder(made.uri, here)
    whole = epoch(Loader(opened(here, plan, tmp_path), plan, 32), plan, range(4))
    assert len(whole) == 40
    far = [
        epoch(Loader(opened(made.uri, plan, tmp_path), plan, 32), plan, slots_of(rank, 2, 4))
        for rank in range(2)
    ]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.a, torch.cat([rank[step].a for rank in far]))
        assert torch.equal(batch.b, torch.cat([rank[step].b for rank in far]))
    loader = Loader(opened(made.uri, plan, tmp_path), plan, 32)
    late = epoch(loader, plan, range(4), start=23)
    assert [batch.step for batch in late] == list(range(23, 40))
    assert torch.equal(late[0].a, whole[23].a)
    again = loader.batches(5, range(4))
    assert torch.equal(next(again).b, whole[5].b), "an abandoned loop leaves nothing behind"
    again.close()
    assert all(source._blocks.held == 0 for source in loader.sources.values())  # type: ignore[attr-defined]


def test_a_server_that_is_away_for_a_moment_is_asked_again(s3_private: S3Server, tmp_path: Path) -> None:
    made = prepare(config(folder(tmp_path / "in", COUNTS), s3_private.uri, rows_per_group=8))
    images = ShardImages(made.uri, "trainA", tmp_path, 0, 8)
    s3_private.stop()
    images.expect(3)
    images.expect(4)
    images._blocks._blocks[0].data.exception(60)  # type: ignore[union-attr]
    s3_private.start()
    assert images.read(3).shape == images.read(4).shape == (3, 36, 36)


@pytest.mark.parametrize("window", [0, 64], ids=["exact", "windowed"])
def test_no_step_waits_for_a_line_of_fifty_milliseconds(
    s3: S3Server,
    stored: tuple[Config, Prepared],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    window: int,
) -> None:
    """Every image is asked for before its turn, many at a time: what two decoding threads cannot do alone."""
    _, made = stored
    line = DelayedConnection(s3.port, 0.05)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.endpoint)
    start = time.monotonic()
    storage.read_range(storage.join(made.uri, "manifest.json"), 0, 10)
    assert time.monotonic() - start >= 0.1, "there and back"
    threads, under_way, most = set(), 0, 0
    lock = threading.Lock()
    real = storage.read_range

    def watched(uri: str, start: int, length: int) -> bytes:
        nonlocal under_way, most
        with lock:
            threads.add(threading.current_thread().name.split("_")[0])
            under_way += 1
            most = max(most, under_way)
        try:
            return real(uri, start, length)
        finally:
            with lock:
                under_way -= 1

    monkeypatch.setattr(storage, "read_range", watched)
    plan = SamplePlan(0, 160, 130, 4, 8 if window else 1, window)
    assert len(epoch(Loader(opened(made.uri, plan, tmp_path), plan, 32), plan, range(4))) == 40
    line.close()
    assert threads == {"fetch"}
    assert most >= 8

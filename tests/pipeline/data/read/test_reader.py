from __future__ import annotations

import multiprocessing
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from agit_core.errors import BadInput, RunFailed
from pipeline import records, storage
from pipeline.config import Config
from pipeline.data.format import manifest
from pipeline.data.prepare.stage import Prepared, prepare
from pipeline.data.read import reader, shard_cache
from pipeline.data.read.inspect import verify
from pipeline.data.read.reader import ShardImages
from pipeline.data.read.shard_cache import ShardCache
from tests.pipeline.data.prepare.test_stage import config
from tests.pipeline.data.read.sharing import read_all
from tests.pipeline.pictures import FOUR, folder
from tests.pipeline.s3 import S3Server
from tests.ray_environment import own_ray, without_token

LARGE = 1 << 30


def settings(source: Path, store: Path | str, **data: Any) -> Config:
    return config(source, store, shard_bytes=8192, **data)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return folder(tmp_path / "in", {**FOUR, "trainA": 40}, masks=True)


@pytest.fixture
def local(source: Path, tmp_path: Path) -> Prepared:
    return prepare(settings(source, tmp_path / "out"))


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def cached(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def test_every_image_and_mask_is_what_the_shards_hold(local: Prepared, tmp_path: Path) -> None:
    images = ShardImages(local.uri, "trainA", tmp_path, 0)
    paths = [f"{local.uri}/{s.path}" for s in local.manifest.splits["trainA"].shards]
    assert len(paths) > 2
    table = pa.concat_tables([pq.read_table(path) for path in paths]).to_pylist()
    assert len(images) == len(table) == 40
    for i, row in enumerate(table):
        assert images.encoded(i) == row["image"]["bytes"]
        assert images.name(i) == row["image"]["path"]
        image, mask = images.read(i), images.mask(i)
        assert image.shape == (3, 36, 36)
        assert image.dtype == torch.uint8
        assert mask is not None
        assert mask.shape == (1, 36, 36)
        assert (mask[..., :17] == 255).all()
        assert (mask[..., 19:] == 0).all()
    assert ShardImages(local.uri, "testA", tmp_path, 0).mask(0) is None


def test_read_from_object_storage_is_the_same(
    s3: S3Server, source: Path, local: Prepared, tmp_path: Path
) -> None:
    there = prepare(settings(source, s3.uri))
    plain = ShardImages(local.uri, "trainA", tmp_path, 0)
    ranges = ShardImages(there.uri, "trainA", tmp_path / "none", 0)
    whole = ShardImages(there.uri, "trainA", tmp_path / "cache", LARGE)
    for i in range(0, 40, 3):
        assert ranges.encoded(i) == whole.encoded(i) == plain.encoded(i)
    assert torch.equal(ranges.read(7), plain.read(7))
    shards = there.manifest.splits["trainA"].shards
    until(lambda: len(cached(tmp_path / "cache")) == len(shards))
    assert not (tmp_path / "none").exists()
    assert [i for i in range(40) if whole.encoded(i) != plain.encoded(i)] == []


def test_what_is_cached_needs_no_server(s3_private: S3Server, source: Path, tmp_path: Path) -> None:
    made = prepare(settings(source, s3_private.uri))
    images = ShardImages(made.uri, "trainA", tmp_path / "cache", LARGE)
    shards = made.manifest.splits["trainA"].shards
    until(lambda: len(cached(tmp_path / "cache")) == len(shards))
    outside = ShardImages(made.uri, "trainA", tmp_path / "other", 0)
    s3_private.stop()
    assert images.read(3).shape == (3, 36, 36)
    with pytest.raises(RunFailed, match="does not answer"):
        outside.read(3)
    s3_private.start()
    assert outside.read(3).shape == (3, 36, 36), "the same reader goes on when the storage is back"


def test_the_cache_keeps_to_its_limit_and_evicts_the_longest_unused(
    s3: S3Server, source: Path, tmp_path: Path
) -> None:
    made = prepare(settings(source, s3.uri))
    shards = made.manifest.splits["trainA"].shards
    uris = [(storage.join(made.uri, s.path), s.sha256, s.bytes) for s in shards]
    room = shards[0].bytes + max(shards[1].bytes, shards[3].bytes) + 10
    folder = tmp_path / "cache"
    first = ShardCache(folder, room)
    first.want(uris[:2])
    until(lambda: len(cached(folder)) == 2)
    time.sleep(0.05)
    assert first.path(uris[0][0]) is not None, "used again, so the other is older"
    other = ShardCache(folder, room)
    other.want(uris[3:4])
    time.sleep(0.3)
    assert other.path(uris[3][0]) is None, "what another split of this process uses stays"
    other.close()
    first.close()
    killed = folder / f"{'0' * 64}.{2**22 + 1}-{room}.part"  # no process has such a number
    killed.touch()
    on_its_way = folder / f"{killed.name}.a8_x2.part"  # of its download
    on_its_way.touch()
    other = ShardCache(folder, room)
    other.want(uris[3:4])
    until(lambda: other.path(uris[3][0]) is not None)
    assert not killed.exists()
    assert not on_its_way.exists()
    assert first.path(uris[0][0]) is not None
    assert first.path(uris[1][0]) is None
    assert sum(p.stat().st_size for p in cached(folder)) <= room
    small = ShardImages(made.uri, "trainA", tmp_path / "small", room)
    until(lambda: len(cached(tmp_path / "small")) == 2)
    assert [small.encoded(i)[:2] for i in range(40)] == [b"\xff\xd8"] * 40
    time.sleep(0.2)
    assert len(cached(tmp_path / "small")) == 2, "a set that does not fit does not evict itself"


def test_a_shard_that_is_nearly_here_is_waited_for(
    s3: S3Server, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(settings(source, s3.uri))
    shards = made.manifest.splits["trainA"].shards
    go_on, real = threading.Event(), storage.download_file

    def held_up(uri: str, local: Path) -> None:
        assert uri.endswith(shards[0].path) or go_on.wait(60)
        real(uri, local)

    monkeypatch.setattr(storage, "download_file", held_up)
    monkeypatch.setattr(reader, "_SOON_SECONDS", 1e3)
    images = ShardImages(made.uri, "trainA", tmp_path / "cache", LARGE)
    until(lambda: len(cached(tmp_path / "cache")) == 1 and images._coming(1))
    monkeypatch.setattr(storage, "read_range", None)
    last = len(images) - 1
    images.expect(last)
    assert images._blocks is not None
    assert images._blocks.held == 0, "no request of its own"
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(images.encoded, last)
        until(lambda: reading.running())
        go_on.set()
        assert reading.result(60)[:2] == b"\xff\xd8"
    assert images._cache is not None
    assert images._cache.seconds("another") is None
    images.close()
    assert not images._coming(1)


def test_a_shard_that_arrives_damaged_is_not_cached(
    s3: S3Server, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(settings(source, s3.uri))
    where = storage.join(made.uri, made.manifest.splits["testA"].shards[0].path)
    data = bytearray(storage.read_bytes(where))
    data[len(data) // 2] ^= 255
    storage.write_bytes(where, bytes(data))
    fetched, real = [], storage.download_file

    def counted(uri: str, local: Path) -> None:
        fetched.append(uri)
        real(uri, local)

    monkeypatch.setattr(storage, "download_file", counted)
    monkeypatch.setattr(shard_cache, "_RETRY_SECONDS", 0.1)
    images = ShardImages(made.uri, "testA", tmp_path / "cache", LARGE)
    until(lambda: len(fetched) == 2)
    time.sleep(1)
    assert len(fetched) == 2, "it is not fetched again and again"
    with pytest.raises(
        RunFailed, match="is not what its manifest says; check the data with 'agit data verify'"
    ):
        images.read(0)
    images.close()
    assert cached(tmp_path / "cache") == []
    assert list((tmp_path / "cache").glob("*.part")) == []


def test_reading_the_index_leaves_no_thread_that_aborts_an_ending_process(local: Prepared) -> None:
    """Arrow's threads take Python's lock when they let go of its bytes, also while the process is ending."""
    code = (
        "import sys; from pathlib import Path; from pipeline.data.format import manifest; uri = sys.argv[1];"
        "known = manifest.read(uri); before = len(list(Path('/proc/self/task').iterdir()));"
        "manifest.read_index(uri, known, 'trainA', ['name', 'shard']);"
        "print(len(list(Path('/proc/self/task').iterdir())) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, local.uri], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


def test_processes_share_a_cache(s3: S3Server, source: Path, tmp_path: Path) -> None:
    made = prepare(settings(source, s3.uri))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    readers = [
        context.Process(target=read_all, args=(made.uri, tmp_path / "cache", LARGE, results))
        for _ in range(2)
    ]
    for process in readers:
        process.start()
    sizes = {results.get(timeout=300) for _ in readers}
    for process in readers:
        process.join(300)
    assert len(sizes) == 1
    assert [process.exitcode for process in readers] == [0, 0]
    assert not list((tmp_path / "cache").glob("*.part"))


def test_threads_read_the_same(local: Prepared, tmp_path: Path) -> None:
    images = ShardImages(local.uri, "trainA", tmp_path, 0)
    alone = [images.encoded(i) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.encoded, list(range(40)) * 20)) == alone * 20


def test_a_reader_of_the_wrong_thing_says_so(local: Prepared, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no prepared data at .*manifest.json"):
        ShardImages(str(tmp_path / "nowhere"), "trainA", tmp_path, 0)
    with pytest.raises(BadInput, match="no split 'train'"):
        ShardImages(local.uri, "train", tmp_path, 0)
    copy = tmp_path / "copy"
    shutil.copytree(local.uri, copy)
    (copy / "index" / "trainA.parquet").write_bytes(b"no")
    with pytest.raises(BadInput, match="index"):
        ShardImages(str(copy), "trainA", tmp_path, 0)
    shard = copy / "trainB" / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1  # may well be an image still
    shard.write_bytes(data)
    with pytest.raises(
        BadInput, match=f"shard {shard} is not what its manifest says; remove {copy} and prepare"
    ):
        ShardImages(str(copy), "trainB", tmp_path, 0).read(0)
    shard.unlink()
    with pytest.raises(BadInput, match="missing"):
        ShardImages(str(copy), "trainB", tmp_path, 0).read(0)
    described = manifest.read(local.uri)
    records.MANIFEST.write(str(copy), described.but(image_size=4096))
    with pytest.raises(BadInput, match="manifest was changed"):
        ShardImages(str(copy), "trainB", tmp_path, 0)
    assert {
        "path": "manifest.json",
        "reason": "the manifest was changed after it had been written",
    } in verify(str(copy))["damaged"]
    records.MANIFEST.write(str(copy), described.but(format=99))
    with pytest.raises(BadInput, match="format 99"):
        ShardImages(str(copy), "trainB", tmp_path, 0)


def test_memory_does_not_grow_with_the_images_read(local: Prepared, tmp_path: Path) -> None:
    images = ShardImages(local.uri, "trainA", tmp_path, 0)

    def some(count: int) -> int:
        for i in range(count):
            images.read(i % 40)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = some(200)
    assert some(4000) - before < 20_000  # KiB


def test_other_tools_open_the_shards_unchanged(local: Prepared, tmp_path: Path) -> None:
    pattern = f"{local.uri}/trainA/*.parquet"
    shards = [f"{local.uri}/{s.path}" for s in local.manifest.splits["trainA"].shards]
    frame = pd.concat([pd.read_parquet(path) for path in shards])
    assert list(frame.columns) == ["image", "mask", "width", "height", "sha256"]
    assert len(frame) == 40
    count, total = duckdb.sql(f"select count(*), sum(width) from '{pattern}'").fetchall()[0]
    assert (count, total) == (40, 40 * 36)
    same = duckdb.sql(f"select count(*) from '{pattern}' where sha256(image.bytes) = sha256").fetchall()[0][0]
    assert same == 40


def test_hugging_face_datasets_sees_images(local: Prepared, tmp_path: Path) -> None:
    import datasets

    opened = datasets.load_dataset(
        "parquet", data_files=f"{local.uri}/trainA/*.parquet", split="train", cache_dir=str(tmp_path)
    )
    assert isinstance(opened.features["image"], datasets.Image)
    assert opened[0]["image"].size == (36, 36)
    assert opened[0]["mask"].size == (36, 36)
    without = datasets.load_dataset(
        "parquet", data_files=f"{local.uri}/testA/*.parquet", split="train", streaming=True
    )
    assert next(iter(without))["mask"] is None


def test_hugging_face_datasets_opens_the_folder_as_it_stands(local: Prepared, tmp_path: Path) -> None:
    import datasets
    from huggingface_hub import DatasetCard

    opened = datasets.load_dataset(local.uri, cache_dir=str(tmp_path))
    rows = {split: about.rows for split, about in local.manifest.splits.items()}
    assert {split: len(images) for split, images in opened.items()} == rows
    assert opened["trainA"][0]["image"].size == (36, 36)
    assert opened["testB"].column_names == ["image", "mask", "width", "height", "sha256"]
    card = DatasetCard.load(Path(local.uri) / "README.md")
    assert card.data.task_categories == ["image-to-image"]
    assert [part["split"] for part in card.data.configs[0]["data_files"]] == list(rows)


def test_ray_data_reads_the_shards(local: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    without_token(monkeypatch)
    import ray

    own_ray(1)
    try:
        rows = ray.data.read_parquet(f"{local.uri}/trainA").take_all()
    finally:
        ray.shutdown()
    assert len(rows) == 40
    assert {row["width"] for row in rows} == {36}
    assert all(row["image"]["bytes"][:2] == b"\xff\xd8" for row in rows)

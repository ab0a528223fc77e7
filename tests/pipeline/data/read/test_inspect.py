"""Looking into prepared data, and noticing that it was damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.config import load
from pipeline.data.prepare.stage import prepare
from pipeline.data.read.inspect import inspect, verify
from tests.pipeline.command import agit
from tests.pipeline.data.prepare.test_stage import config, copies
from tests.pipeline.pictures import FOUR, folder
from tests.pipeline.s3 import S3Server


def test_counts_page_and_a_damaged_shard(tmp_path: Path) -> None:
    small = ["data.builtin.train=3", "data.builtin.test=2", "data.workers=1", f"storage={tmp_path}"]
    uri = prepare(load("demo", small)).uri
    found = inspect(uri, tmp_path / "page.html")
    assert found["rows"] == {"trainA": 3, "trainB": 3, "testA": 2, "testB": 2}
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 20, "every image and its mask"
    assert "http" not in page.replace("http://www.w3.org", ""), "the page needs nothing else"
    whole = verify(uri)
    assert whole["ok"]
    assert whole["checked"] == 8
    shard = Path(uri) / "trainA" / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    (Path(uri) / "testB" / "part-00000.parquet").unlink()
    damaged = verify(uri)
    assert not damaged["ok"]
    assert {d["path"] for d in damaged["damaged"]} == {
        "trainA/part-00000.parquet",
        "testB/part-00000.parquet",
    }
    called = agit("data", "verify", uri, cwd=tmp_path)
    assert called.status == 1
    assert "2 of 8 files differ from the manifest" in called.last_line


def test_copies_and_leaks_are_shown(tmp_path: Path) -> None:
    made = prepare(config(copies(tmp_path), tmp_path / "out"))
    found = inspect(made.uri, tmp_path / "page.html", samples=0)
    assert (found["duplicate_groups"], found["near_groups"]) == (2, 1)
    assert found["leaked"] == ["trainA/trainA-002.jpg = testA/leak.jpg"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 2 + 2 * 2 + 2, "the leak, two equal pairs, a near pair"
    assert page.count('alt="testA/leak.jpg"') == 2
    dropped = prepare(config(tmp_path / "in", tmp_path / "out", duplicates="drop"))
    inspect(dropped.uri, tmp_path / "dropped.html", samples=0)
    assert (tmp_path / "dropped.html").read_text().count("<img") == 1 + 2 + 1, "the ones that were kept"
    assert inspect(dropped.uri)["quarantined"]["duplicate of testA/leak.jpg"] == 1


def test_a_mask_that_is_left_behind_is_told(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR, masks=True)
    (source / "masks" / "trainA" / "trainA-003.png").write_bytes(b"no image")
    (source / "README.md").write_text("photographs")
    called = agit(
        *("prepare", "demo", "--set", f"data.source={source}", "--set", "data.workers=1"),
        *(
            "--set",
            "data.image_size=32",
            "--set",
            "data.load_size=36",
            "--set",
            "data.minimum_size=16",
            "--json",
        ),
        cwd=tmp_path,
    )
    assert called.status == 0, called.err
    reason = "the mask cannot be read: not an image"
    assert f"1 used with a remark (such as trainA/trainA-003.jpg: {reason})" in called.err
    assert called.answer["notes"] == {"trainA": [{"name": "trainA-003.jpg", "reason": reason}]}
    beside = "lies beside the folders that are read"
    assert called.answer["left_out"] == [{"name": "README.md", "reason": beside}]
    seen = inspect(str(tmp_path / called.answer["data"]))
    assert (seen["masks_refused"], seen["left_out"]) == ({reason: 1}, {beside: 1})


def test_what_does_not_belong_there_is_named(tmp_path: Path, s3: S3Server) -> None:
    made = prepare(config(folder(tmp_path / "in", FOUR), s3.uri))
    assert verify(made.uri) == {"ok": True, "checked": 8, "damaged": [], "unknown": []}
    storage.write_bytes(storage.join(made.uri, "trainA", "left.parquet"), b"?")
    assert verify(made.uri)["unknown"] == [storage.join(made.uri, "trainA", "left.parquet")]


def test_no_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        inspect(str(tmp_path))

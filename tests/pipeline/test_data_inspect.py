"""Looking into prepared data, and noticing that it was damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from agit_core.errors import BadInput
from pipeline.config import load
from pipeline.data.inspect import inspect, verify
from pipeline.data.prepare import prepare


def test_counts_page_and_a_damaged_shard(tmp_path: Path) -> None:
    small = ["data.builtin.train=3", "data.builtin.test=2", "data.workers=1", f"storage={tmp_path}"]
    uri = prepare(load("demo", small)).uri
    found = inspect(uri, tmp_path / "page.html")
    assert found["rows"] == {"trainA": 3, "trainB": 3, "testA": 2, "testB": 2}
    assert (tmp_path / "page.html").read_text().count("<img") == 10
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


def test_no_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        inspect(str(tmp_path))

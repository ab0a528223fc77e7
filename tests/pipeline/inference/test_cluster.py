"""``agit translate --batch`` on a real local Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.inference.cluster import _share
from tests.agit_core import models
from tests.pipeline.command import agit


@pytest.mark.parametrize(
    ("machines", "workers", "each"),
    [([2], 1, 2), ([2], 2, 1), ([16], 8, 2), ([8, 8], 2, 8), ([8, 4], 2, 4), ([8, 8], 3, 4), ([0, 7], 3, 2)],
)
def test_a_workers_share_fits_on_one_machine(machines: list[int], workers: int, each: int) -> None:
    assert _share(machines, workers) == each


@pytest.mark.long
def test_two_workers_give_what_one_process_gives(tmp_path: Path) -> None:
    models.write_model(tmp_path / "model")
    for i in range(20):
        models.save(tmp_path / "in" / f"{i % 3}" / f"{i:02d}.png", 20 + i, 30, seed=i)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    call = ("translate", "in", "--model", "model", "--masks", "--device", "cpu", "--json")
    batch = agit(*call, "batch", "--batch", "--workers", "2", cwd=tmp_path)
    assert batch.status == 0, batch.err
    assert batch.answer["translated"] == 20
    assert [item["name"] for item in batch.answer["failed"]] == ["broken.png"]
    alone = agit(*call, "alone", cwd=tmp_path)
    assert alone.status == 0, alone.err
    names = [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.png")]
    assert len(names) == 40
    for name in names:
        assert (tmp_path / "batch" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name

    again = agit(*call, "batch", "--batch", cwd=tmp_path)
    assert (again.answer["translated"], again.answer["skipped"]) == (0, 20)

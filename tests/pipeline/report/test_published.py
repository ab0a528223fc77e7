from __future__ import annotations

from pathlib import Path

from pipeline.config import load
from pipeline.report import build, published
from tests.pipeline.fabricated_run import fabricate


def test_published_numbers_only_beside_their_data_set(html: str, tmp_path: Path) -> None:
    assert "U-GAT-IT" not in html
    _, run, data = fabricate(tmp_path)
    horses = load("h2z")
    text = Path(build.build(horses, run, data)).read_text()
    assert "7.58 ± 0.71" in text
    assert "none of its figures may be compared" not in text
    assert "was scored on" in text
    assert text.count("[unverified]</strong>") == sum(not row.verified for row in published.ROWS) == 2

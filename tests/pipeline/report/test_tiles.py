from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report import tiles
from pipeline.report.run_data import read_run
from tests.pipeline.fabricated_run import fabricate, png, strip


def test_strips_are_cut_into_their_columns() -> None:
    pixels = strip("a", 3, 1.0)
    cut = tiles.cut(png(pixels))
    assert cut is not None
    real = decoded(cut.real)
    np.testing.assert_array_equal(real, pixels[:, :64])
    overlay = decoded(cut.overlay, "RGBA")
    np.testing.assert_array_equal(overlay[..., 3], pixels[:, 64:128, 0])
    assert cut.coverage == pytest.approx(pixels[:, 64:128].mean() / 255, abs=1e-3)


def test_a_strip_of_large_tiles_is_reduced_and_small_in_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 4 * 64, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((4 * 640, 640), Image.Resampling.BICUBIC)
    cut = tiles.cut(png(np.asarray(large)))
    assert cut is not None
    assert decoded(cut.translated).shape == (256, 256, 3)
    assert cut.bytes < 200_000


@pytest.mark.parametrize("data", [b"", b"no picture", png(np.zeros((4, 2, 3), np.uint8))])
def test_what_is_no_strip_is_none(data: bytes) -> None:
    assert tiles.cut(data) is None


def decoded(uri: str, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert(mode))


def test_steps_are_left_out_evenly_to_stay_below_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiles.thinned([1, 2, 3], 5) == [1, 2, 3]
    assert tiles.thinned(list(range(101)), 5) == [0, 25, 50, 75, 100]
    _, run, data = fabricate(tmp_path, small=False)
    monkeypatch.setattr(tiles, "VIEWER_BUDGET", 500_000)
    viewer = tiles.viewer(read_run(run, data), {"a2b": "x", "b2a": "y"})
    assert viewer.saved_steps == 6
    assert 2 <= len(viewer.steps) < 6
    assert viewer.steps[0] == 100
    assert viewer.steps[-1] == 600
    assert len(json.dumps(viewer.directions)) < 600_000

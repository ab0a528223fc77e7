from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import config as configs
from pipeline.data.format import manifest
from pipeline.data.prepare.stage import prepare
from pipeline.evaluate import scored_images
from pipeline.evaluate.scoring import evaluate
from tests.pipeline.evaluate.tiny_models import SIDE, attending, settings_tree, write_run

pytestmark = pytest.mark.usefixtures("small_inception")


def _photos(root: Path, masks: dict[str, int]) -> str:
    """Five training and four or three test images; ``masks`` of a split have one, the first an empty one."""
    generator = np.random.default_rng(0)
    for split, count in (("trainA", 5), ("trainB", 5), ("testA", 4), ("testB", 3)):
        (root / split).mkdir(parents=True)
        (root / "masks" / split).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{index}.png")
            if index < masks.get(split, 0):
                mask = np.zeros((40, 40), np.uint8)
                mask[:20] = 255 if index else 0
                Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")
    return str(root)


def test_masks_of_the_training_split_are_used_where_the_test_split_has_none(
    root: Path, tmp_path: Path
) -> None:
    """The layout of horse2zebra: photographs, masks for training images only, one of them empty."""
    tree = settings_tree(tmp_path)
    tree["data"] |= {"source": _photos(tmp_path / "photos", {"trainA": 4, "trainB": 4})}
    settings = configs.parse(tree)
    uri = prepare(settings).uri
    domain = scored_images.open_domain(settings, uri, manifest.read(uri), "a")
    assert domain.masked is not None
    assert (domain.masked.split, len(domain.masked), len(domain.test)) == ("trainA", 4, 4)
    batch = domain.masked.batch(domain.masked.indices)
    assert batch.images.shape == (4, 3, SIDE, SIDE)  # stored at SIDE + 8
    assert batch.masks is not None
    assert sorted(batch.masks.flatten(1).float().mean(1).tolist()) == pytest.approx(
        [0, 0.5, 0.5, 0.5], abs=0.05
    )
    evaluation = evaluate(settings, write_run(settings, "photos", attending(0.999)), uri)
    metrics, counts = evaluation.metrics, evaluation.counts
    assert metrics["attention_iou_a"] == pytest.approx(0.5, abs=0.02)
    assert (counts["masks_trainA"], counts["masks_empty_trainA"], counts["masks_trainB"]) == (4, 1, 3)
    assert "trainB" in evaluation.protocol["background_b"]
    assert evaluation.protocol["warnings"]  # three images of domain B: smaller subsets than asked for
    assert counts["kid_subset_size_target_a2b"] == 3


@pytest.mark.parametrize(
    ("masks", "split", "count"),
    [
        ({"testA": 1, "trainA": 4}, "trainA", 4),
        ({"testA": 3, "trainA": 2}, "testA", 3),
        ({"testA": 2}, "testA", 2),
        ({"testA": 4, "trainA": 5}, "testA", 4),
    ],
)
def test_an_image_without_a_mask_is_not_all_background(
    masks: dict[str, int], split: str, count: int, tmp_path: Path
) -> None:
    tree = settings_tree(tmp_path)
    tree["data"] |= {"source": _photos(tmp_path / "photos", masks)}
    settings = configs.parse(tree)
    made = prepare(settings)
    domain = scored_images.open_domain(settings, made.uri, made.manifest, "a")
    assert domain.masked is not None
    assert (domain.masked.split, len(domain.masked), len(domain.test)) == (split, count, 4)
    assert domain.masks_on_test == (count == 4 and split == "testA")
    for batch in domain.masked.batches(3):
        assert batch.masks is not None
        for index, mask in zip(batch.indices, batch.masks, strict=True):
            assert mask.float().mean() == pytest.approx(
                0.5 if domain.masked.source.name(index) != "0.png" else 0, abs=0.05
            )
    domain.close()

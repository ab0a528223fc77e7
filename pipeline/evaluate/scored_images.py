"""Images for scoring: the test split, and the images with true masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import Config
from pipeline.data.read.reader import ShardImages
from pipeline.data.read.shard_cache import machine_folder
from pipeline.evaluate.counting import count_test_images
from pipeline.records import Manifest, Split


class Batch(NamedTuple):
    """``indices`` within the split; images uint8 (n, 3, S, S); true masks bool (n, 1, S, S)."""

    indices: list[int]
    images: Tensor
    masks: Tensor | None


class Images:
    """Selected images of one split and domain, at the size of scoring.

    Args:
        indices: indices within the split, in order.
        with_masks: include true masks in every batch; each of the images must have one.
    """

    def __init__(
        self, source: ShardImages, split: str, indices: list[int], size: int, with_masks: bool
    ) -> None:
        self.source = source
        self.split = split
        self.indices = indices
        self.size = size
        self.with_masks = with_masks

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self.indices), batch_size):
            yield self.batch(self.indices[start : start + batch_size])

    def batch(self, indices: list[int]) -> Batch:
        images = torch.stack([_resized(self.source.read(i), self.size) for i in indices])
        if not self.with_masks:
            return Batch(indices, images, None)
        return Batch(indices, images, torch.stack([self._mask(i) for i in indices]))

    def names(self) -> list[str]:
        return [str(self.source.name(i)) for i in self.indices]

    def _mask(self, index: int) -> Tensor:
        mask = self.source.mask(index)
        assert mask is not None, f"image {index} of {self.split} has no mask"
        return _resized(mask, self.size) >= 128


@dataclass(frozen=True)
class Domain:
    """Images of one domain for scoring.

    Attributes:
        test: the test images.
        masked: images with true masks, for attention metrics: ``test`` itself if all its images have one, else up to
            as many from the test or the training split, whichever has more masks; or None.
    """

    test: Images
    masked: Images | None

    @property
    def masks_on_test(self) -> bool:
        return self.masked is self.test

    def close(self) -> None:
        self.test.source.close()
        if self.masked is not None and not self.masks_on_test:
            self.masked.source.close()


def open_domain(config: Config, data_uri: str, manifest: Manifest, domain: str) -> Domain:
    """Open domain ``a`` or ``b`` of prepared data.

    Raises:
        BadInput: fewer than two test images.
    """
    size = manifest.image_size
    test_split, train_split = f"test{domain.upper()}", f"train{domain.upper()}"
    count = count_test_images(config, data_uri, manifest, domain)

    def images(split: str, indices: list[int], with_masks: bool) -> Images:
        source = ShardImages(data_uri, split, machine_folder(), config.data.cache_bytes)
        return Images(source, split, indices, size, with_masks)

    def with_masks(split: str) -> Images | None:
        """Images with masks, evenly spread over the split, so that no single folder dominates."""
        if not manifest.splits.get(split, Split()).masks:
            return None
        found = images(split, [], with_masks=True)
        usable = [i for i in range(len(found.source)) if found.source.has_mask(i)]
        step = max(1, len(usable) / count)
        found.indices = sorted({usable[int(k * step)] for k in range(min(count, len(usable)))})
        return found

    test = images(test_split, list(range(count)), with_masks=False)
    if all(map(test.source.has_mask, test.indices)):
        test.with_masks = True
        return Domain(test, test)
    found = [one for one in map(with_masks, (test_split, train_split)) if one is not None]
    most = max(found, key=len, default=None)
    for one in found:
        if one is not most:
            one.source.close()
    return Domain(test, most)


def open_held_out(config: Config, data_uri: str, manifest: Manifest, domain: str, rows: list[int]) -> Domain:
    """Open selected training images of domain ``a`` or ``b``, with true masks where they exist."""
    split = f"train{domain.upper()}"

    def images(indices: list[int], with_masks: bool) -> Images:
        source = ShardImages(data_uri, split, machine_folder(), config.data.cache_bytes)
        return Images(source, split, indices, manifest.image_size, with_masks)

    held = images(rows, with_masks=False)
    masked = [row for row in rows if held.source.has_mask(row)]
    if masked == rows:
        held.with_masks = True
        return Domain(held, held)
    return Domain(held, images(masked, with_masks=True) if masked else None)


def _resized(image: Tensor, size: int) -> Tensor:
    """Resize uint8 (C, H, W) to (C, size, size); training images are stored larger than the scoring size."""
    if image.shape[-2:] == (size, size):
        return image
    resized = F.interpolate(
        image[None].float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].round().clamp(0, 255).to(torch.uint8)

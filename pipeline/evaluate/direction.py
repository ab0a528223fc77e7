"""Translation of one direction's images by one model: Inception features and per-image metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from agit_core.augment import to_float, to_uint8
from agit_core.config import MethodConfig
from agit_core.networks import Networks
from agit_core.scores.inception import Inception
from agit_core.translation import Translation, passes, translate
from pipeline.evaluate.feature_cache import Arrays
from pipeline.evaluate.scored_images import Batch, Domain
from pipeline.metrics import catalog
from pipeline.metrics.measure import Translated

Progress = Callable[[int], None]


class Direction:
    """One direction of a model, with the way back.

    Args:
        networks: networks on the device, in evaluation mode.
        name: ``a2b`` or ``b2a``.
    """

    def __init__(self, networks: Networks, method: MethodConfig, name: str, device: torch.device) -> None:
        ab = (networks.generator_ab, networks.attention_a)
        ba = (networks.generator_ba, networks.attention_b)
        self._forth, self._back = (ab, ba) if name == "a2b" else (ba, ab)
        self._method = method
        self._device = device
        self.attends = self._forth[1] is not None

    def translate(self, batch: Tensor) -> tuple[Tensor, Translation]:
        """Move a batch to the device as float, and translate it by Eq 1."""
        real = to_float(batch.to(self._device))
        return real, self._through(self._forth, real)

    def restore(self, translated: Tensor) -> Tensor:
        return self._through(self._back, translated).output

    def _through(self, maps: tuple[nn.Module, nn.Module | None], images: Tensor) -> Translation:
        threshold = self._method.threshold_at_test
        parts = [translate(part, *maps, threshold) for part in passes(images, self._device)]
        return Translation(*(torch.cat(kind) for kind in zip(*parts, strict=True)))

    @torch.inference_mode()
    def score(self, domain: Domain, inception: Inception, batch_size: int, progress: Progress) -> Arrays:
        """The catalogue's values per image; NaN marks what is undefined for an image.

        Returns:
            ``features`` float32 (N, 2048) of the translated test images as they would be saved (8 bits); ``finite``
            bool (N,) of them, and where the true masks are those of other images ``finite_masked`` (M,); and by name
            each metric of :func:`pipeline.metrics.catalog.per_image` (N or M,) that the model and the masks allow.
        """
        parts: dict[str, list[Tensor]] = {}

        def keep(name: str, values: Tensor) -> None:
            parts.setdefault(name, []).append(values.detach().cpu().clone())

        def measure(batch: Translated, *on: str) -> None:
            for metric in catalog.per_image():
                if metric.on in on and (self.attends or not metric.attention):
                    keep(metric.name, metric.compute(batch))

        beside = ("truth", "background")
        for images in domain.test.batches(batch_size):
            batch = self._translated(images)
            keep("features", inception.features(to_uint8(batch.translated), batch_size))
            keep("finite", torch.isfinite(batch.translated).flatten(1).all(dim=1))
            measure(batch, "test", *(("background",) if domain.masked is None else ()))
            if domain.masks_on_test:
                measure(batch, *beside)
            progress(len(images.indices))
        if domain.masked is not None and not domain.masks_on_test:
            for images in domain.masked.batches(batch_size):
                batch = self._translated(images)
                keep("finite_masked", torch.isfinite(batch.translated).flatten(1).all(dim=1))
                measure(batch, *beside)
                progress(len(images.indices))
        return {name: torch.cat(values) for name, values in parts.items()}

    def _translated(self, images: Batch) -> Translated:
        real, there = self.translate(images.images)
        truth = None if images.masks is None else images.masks.to(self._device)
        tau = self._method.stages.tau
        return Translated(real, there.output, there.mask, lambda: self.restore(there.output), tau, truth)

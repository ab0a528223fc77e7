"""What one model makes of the images of one direction: Inception features and a figure per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agit_core.augment import to_float, to_uint8
from agit_core.config import MethodConfig
from agit_core.networks import Networks
from agit_core.scores import attention, images
from agit_core.scores.inception import Inception
from agit_core.stages import HEALTH_KEYS
from agit_core.translation import Translation, translate
from pipeline.evaluate.feature_cache import Arrays
from pipeline.evaluate.test_images import Domain, Images

Progress = Callable[[int], None]
PAINTED = 0.5
"""Without true masks, the background is where the predicted attention is below this."""
BACKGROUND_KEYS = ("l1", "psnr", "ssim")


class Direction:
    """A model's way from one domain to the other, and back.

    Args:
        networks: on the device, in evaluation mode.
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
        """The images as floats on the device, and Eq 1 of them."""
        real = to_float(batch.to(self._device))
        return real, translate(real, *self._forth, threshold=self._method.threshold_at_test)

    def restore(self, translated: Tensor) -> Tensor:
        return translate(translated, *self._back, threshold=self._method.threshold_at_test).output

    @torch.inference_mode()
    def score(self, domain: Domain, inception: Inception, batch_size: int, progress: Progress) -> Arrays:
        """Figures per image; NaN marks what is undefined for an image.

        Returns:
            ``features`` float32 (N, 2048) of the translated test images as they would be saved (8 bits);
            ``finite``, ``cycle``, ``coverage`` and the health figures (N,) of the test images;
            ``finite_masked``, ``background_*``, ``iou``, ``precision``, ``recall``, ``inside``, ``outside``,
            ``everywhere`` (M,) of the images with true masks, or, where none exist, the background alone of the
            test images. Attention figures are absent for a model without attention.
        """
        parts: dict[str, list[Tensor]] = {}

        def keep(name: str, values: Tensor) -> None:
            parts.setdefault(name, []).append(values.detach().cpu().clone())

        tau = self._method.stages.tau
        for batch in domain.test.batches(batch_size):
            real, there = self.translate(batch.images)
            keep("features", inception.features(to_uint8(there.output), batch_size))
            keep("finite", torch.isfinite(there.output).flatten(1).all(dim=1))
            keep("cycle", images.cycle_l1(real, self.restore(there.output)))
            if self.attends:
                keep("coverage", attention.coverage(there.mask))
                each = [attention.health(mask[None], tau) for mask in there.mask]
                for name in HEALTH_KEYS[1:]:
                    keep(name, torch.tensor([figures[name] for figures in each], dtype=torch.float64))
            if domain.masks_on_test and batch.masks is not None:
                self._compare(real, there, batch.masks.to(self._device), keep)
            elif domain.masked is None:
                self._background(real, there, there.mask < PAINTED, keep)
            progress(len(batch.indices))
        if domain.masked is not None and not domain.masks_on_test:
            self._score_masked(domain.masked, batch_size, keep, progress)
        return {name: torch.cat(values) for name, values in parts.items()}

    def _score_masked(
        self, masked: Images, batch_size: int, keep: Callable[[str, Tensor], None], progress: Progress
    ) -> None:
        for batch in masked.batches(batch_size):
            assert batch.masks is not None
            real, there = self.translate(batch.images)
            keep("finite_masked", torch.isfinite(there.output).flatten(1).all(dim=1))
            self._compare(real, there, batch.masks.to(self._device), keep)
            progress(len(batch.indices))

    def _compare(
        self, real: Tensor, there: Translation, truth: Tensor, keep: Callable[[str, Tensor], None]
    ) -> None:
        if self.attends:
            compared = attention.agreement(there.mask, truth) | attention.inside_outside(there.mask, truth)
            for name, values in compared.items():
                keep(name, values)
            keep("everywhere", attention.everywhere(truth))
        self._background(real, there, ~truth, keep)

    @staticmethod
    def _background(
        real: Tensor, there: Translation, outside: Tensor, keep: Callable[[str, Tensor], None]
    ) -> None:
        scores = images.background(real, there.output, outside)
        for name in BACKGROUND_KEYS:
            keep(f"background_{name}", scores[name])

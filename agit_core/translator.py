"""Inference on any image, in three lines::

from agit_core import Translator
translator = Translator.load("models/h2z")
zebra = translator(PIL.Image.open("horse.jpg"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from agit_core import model_folder, precision, tiling
from agit_core.augment import to_float
from agit_core.errors import BadInput
from agit_core.model_folder import Model
from agit_core.networks import STRIDE
from agit_core.pictures import open_picture
from agit_core.translation import passes, translate

Direction = Literal["a2b", "b2a"]
Picture = TypeVar("Picture", Image.Image, "np.ndarray[Any, Any]", Tensor)

TILE_PIXELS = 1024 * 1024
"""Images with more pixels are translated in tiles of at most this many."""
SMALLEST_TILE = 3 * tiling.OVERLAP
SMALLEST_SIDE = 16
"""Smaller images are padded to this side: the networks use reflection padding and norms at a quarter of the size."""


class Result(NamedTuple, Generic[Picture]):
    """A translated image and its mask."""

    image: Picture
    """Same type and size as the input (grey images become RGB)."""
    mask: Picture
    """Attention, one channel: 255 (or 1.0) where the translation shows, 0 where the source was kept."""


class Translator:
    """A trained model that translates images of any size; thread-safe.

    Args:
        model: a model from :func:`agit_core.model_folder.read`.
        device: ``auto`` (the GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``.
        autocast: ``bf16``: convolutions in bfloat16; ``auto``: bf16 where the hardware is fast at it; ``off``:
            fp32, the reference. Outputs differ by a few grey levels.
        tile_pixels: images with more pixels are translated in overlapping tiles (:mod:`agit_core.tiling`).
            Larger tiles are closer to whole-image statistics and use more memory.
        work_side: scale larger images down so that their longer side is this many pixels, translate them, and add
            the upscaled change to the full image, which keeps its detail. The networks recognise objects best at
            the size they were trained at, so this often looks better than full size, and it is faster.
        threshold: keep source pixels unchanged where the attention is below this, in [0, 1]; default: the model's
            ``threshold_at_test``, usually none.

    Raises:
        BadInput: an unknown device, or a value out of range.
    """

    def __init__(
        self,
        model: Model,
        device: str = "auto",
        autocast: Literal["auto", "bf16", "off"] = "off",
        tile_pixels: int = TILE_PIXELS,
        work_side: int | None = None,
        threshold: float | None = None,
    ) -> None:
        if tile_pixels < SMALLEST_TILE**2:
            raise BadInput(f"tile_pixels must be at least {SMALLEST_TILE**2}, not {tile_pixels}")
        if work_side is not None and work_side < SMALLEST_SIDE:
            raise BadInput(f"work_side must be at least {SMALLEST_SIDE}, not {work_side}")
        self.model = model.with_threshold(threshold)
        self.device = _device(device)
        settings = replace(model.method.precision, autocast=autocast, compile="off")
        self.numerics = precision.resolve(settings, self.device)
        precision.make_exact(self.numerics, self.device)
        self.tile_pixels = tile_pixels
        self.work_side = work_side
        self.watch: Callable[[int, int], None] | None = None
        """Progress callback (rows done, rows in total) for tiled images, which can take minutes."""
        networks = model.networks().to(self.device).to(memory_format=self.numerics.memory_format)
        self._maps: dict[str, tuple[nn.Module, nn.Module | None]] = {
            "a2b": (networks.generator_ab, networks.attention_a),
            "b2a": (networks.generator_ba, networks.attention_b),
        }

    @classmethod
    def load(
        cls,
        uri: str | Path,
        device: str = "auto",
        autocast: Literal["auto", "bf16", "off"] = "off",
        tile_pixels: int = TILE_PIXELS,
        work_side: int | None = None,
        threshold: float | None = None,
    ) -> Translator:
        """Load a model folder or a checkpoint folder; the other arguments are those of the class.

        Args:
            uri: a local path, ``s3://...`` or any other URI that fsspec opens, ``pretrained:h2z128`` for the model
                shipped with the package, or, where the pipeline is installed, ``models:/h2z@champion`` or
                ``hf://USER/REPO`` (Hugging Face Hub). Checksums are verified, and no code from the folder is run.

        Raises:
            BadInput: no model there, or it is damaged or of another version.
        """
        return cls(model_folder.read(uri), device, autocast, tile_pixels, work_side, threshold)

    def __repr__(self) -> str:
        return f"Translator({self.model.name!r}, {' and '.join(self.directions)}, on {self.device})"

    @property
    def directions(self) -> Sequence[str]:
        """Valid values of ``direction``."""
        return self.model.directions

    def maps(self, direction: str) -> tuple[nn.Module, nn.Module | None]:
        """Generator of a direction, and attention network of its source domain.

        Raises:
            BadInput: unknown direction.
        """
        if direction not in self.directions:
            raise BadInput(f"there is no direction '{direction}'; use {' or '.join(self.directions)}")
        return self._maps[direction]

    def __call__(self, image: Picture, direction: str = "a2b") -> Picture:
        """Translate an image; same type and size as the input. See :meth:`translate`."""
        return self.translate(image, direction).image

    @torch.no_grad()
    def translate(self, image: Picture, direction: str = "a2b") -> Result[Picture]:
        """Translate an image and return it with its mask.

        Args:
            image: a PIL image, a numpy uint8 array (H, W), (H, W, 3) or (H, W, 4), or a torch tensor
                (3, H, W) or (N, 3, H, W), uint8 or float in [0, 1]; any height and width. PIL images are
                turned upright by their EXIF orientation. Alpha is copied to the output.
            direction: ``a2b`` or ``b2a``.

        Raises:
            BadInput: an unsupported type or shape, an empty image, or an unknown direction.
        """
        maps = self.maps(direction)
        opened = open_picture(image)
        count, _, height, width = opened.pixels.shape
        if not opened.pixels.numel():
            raise BadInput(f"cannot translate an empty image ({count} of {width} x {height} pixels)")
        if self.work_side is not None and max(height, width) > self.work_side:
            output, mask = self._reduced(opened.pixels, self.work_side, *maps)
        else:
            output, mask = self._at_size(opened.pixels, *maps)
        return cast("Result[Picture]", Result(opened.image(output), opened.mask(mask)))

    def _at_size(
        self, pixels: Tensor, generator: nn.Module, attention: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        """Translate at the given size: output (N, 3, H, W) and mask (N, 1, H, W), of the dtype of ``pixels``."""
        size = _padded(pixels.shape[-2]) * _padded(pixels.shape[-1])
        if size > self.tile_pixels:
            parts = [self._tiled(image[None], generator, attention) for image in pixels]
        else:
            batches = pixels.split(max(1, self.tile_pixels // size))
            few = (part for batch in batches for part in passes(batch, self.device))
            parts = [self._whole(part, generator, attention) for part in few]
        output, mask = (torch.cat(kind) if len(kind) > 1 else kind[0] for kind in zip(*parts, strict=True))
        return output, mask

    def _reduced(
        self, pixels: Tensor, side: int, generator: nn.Module, attention: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        """Translate at reduced size, longer side ``side``: a + up(m * (G(down(a)) - down(a)))."""
        height, width = pixels.shape[-2:]
        scale = side / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = _resized(pixels, size)
        translated, mask = self._at_size(small, generator, attention)
        change = translated.to(small.device) - small
        output = torch.empty_like(pixels)
        for channel in range(
            3
        ):  # one channel at a time: as float32, a huge image takes four times its memory
            part = _floats(pixels[:, channel : channel + 1])
            part += F.interpolate(change[:, channel : channel + 1], (height, width), mode="bicubic")
            output[:, channel : channel + 1] = _like(part, pixels.dtype)
        full_mask = F.interpolate(mask.to(small.device), (height, width), mode="bilinear")
        return output, _like(full_mask, pixels.dtype)

    def _forward(self, x: Tensor, generator: nn.Module, attention: nn.Module | None) -> Tensor:
        """Eq 1 on (N, 3, H, W) in [-1, 1]: output in [-1, 1] and mask in [0, 1], as (N, 4, H, W)."""
        x = x.to(self.device, memory_format=self.numerics.memory_format)
        autocast = self.numerics.autocast
        with torch.autocast(self.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            translation = translate(x, generator, attention, self.model.method.threshold_at_test)
        return torch.cat([translation.output.float(), translation.mask.float()], 1)

    def _whole(
        self, pixels: Tensor, generator: nn.Module, attention: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        height, width = pixels.shape[-2:]
        x = _crop(pixels, range(_padded(height)), range(_padded(width)))
        return _finish(self._forward(x, generator, attention)[..., :height, :width], pixels.dtype)

    def _tiled(
        self, pixels: Tensor, generator: nn.Module, attention: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        height, width = pixels.shape[-2:]
        full_height, full_width = _padded(height), _padded(width)
        side = int(self.tile_pixels**0.5) // STRIDE * STRIDE
        generator = tiling.with_pooled_norms(generator, self.device)
        attention = None if attention is None else tiling.with_pooled_norms(attention, self.device)

        def read(top: int, bottom: int, left: int, right: int) -> Tensor:
            return _crop(pixels, range(top, bottom), range(left, right))

        patch = min(tiling.PATCH, full_height, full_width)
        corners = tiling.patches(full_height, full_width, patch, self.tile_pixels)
        sample = torch.cat([read(top, top + patch, left, left + patch) for top, left in corners])
        self._forward(sample, generator, attention)
        for network in (generator, attention):
            if network is not None:
                tiling.hold_statistics(network)

        output = torch.empty_like(pixels, device="cpu")
        mask = output.new_empty(1, 1, height, width)

        def forward(x: Tensor) -> Tensor:
            return self._forward(x, generator, attention)

        for top, band in tiling.run(read, forward, full_height, full_width, side):
            rows = slice(top, min(top + band.shape[2], height))
            output[:, :, rows], mask[:, :, rows] = _finish(
                band[:, :, : rows.stop - rows.start, :width], pixels.dtype
            )
            if self.watch is not None:
                self.watch(rows.stop, height)
        return output, mask


def _device(name: str) -> torch.device:
    try:
        device = precision.pick_device(name)
    except RuntimeError:
        raise BadInput(f"there is no device '{name}'; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise BadInput(f"there is no device '{name}' ({count} GPUs are visible); use auto or cpu")
    return device


def _floats(pixels: Tensor) -> Tensor:
    """Copy uint8 or float in [0, 1] to float32 in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.to(torch.float32, copy=True)


def _like(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamp floats to [0, 1] in place; scale them to [0, 255] if ``dtype`` is uint8."""
    values = values.clamp_(0, 1)
    return values.mul_(255).round_().to(torch.uint8) if dtype == torch.uint8 else values


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Downscale to float32 in [0, 1] with antialiasing, one channel at a time to save memory."""
    parts = [
        F.interpolate(_floats(channel), size, mode="bicubic", antialias=True)
        for channel in pixels.split(1, dim=1)
    ]
    return torch.cat(parts, 1).clamp_(0, 1)


def _padded(length: int) -> int:
    """Round up to a multiple of the stride, at least ``SMALLEST_SIDE``."""
    return max(SMALLEST_SIDE, -(-length // STRIDE) * STRIDE)


def _reflected(indices: range, length: int, device: torch.device) -> Tensor:
    """Pixel indices along an axis extended by repeated reflection (by replication if ``length`` is 1)."""
    wave = torch.arange(indices.start, indices.stop, device=device) % max(1, 2 * length - 2)
    return torch.where(wave < length, wave, 2 * length - 2 - wave)


def _crop(pixels: Tensor, rows: range, columns: range) -> Tensor:
    """Crop images (N, 3, H, W), uint8 or float in [0, 1], to float32 in [-1, 1].

    Rows and columns beyond the image are filled by reflection.
    """
    height, width = pixels.shape[-2:]
    vertical = _reflected(rows, height, pixels.device)
    horizontal = _reflected(columns, width, pixels.device)
    part = pixels.index_select(2, vertical).index_select(3, horizontal)
    return to_float(part) if part.dtype == torch.uint8 else part.float() * 2 - 1


def _finish(result: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split (N, 4, H, W), output in [-1, 1] and mask in [0, 1], into images of ``dtype``, uint8 or float in [0, 1]."""
    output, mask = (result[:, :3] + 1) / 2, result[:, 3:]
    if dtype != torch.uint8:
        return output.clamp(0, 1), mask.clamp(0, 1)
    return tuple((x * 255).round().clamp(0, 255).to(torch.uint8) for x in (output, mask))  # type: ignore[return-value]

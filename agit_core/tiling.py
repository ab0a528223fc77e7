"""Tiled translation of images that do not fit into memory, without visible seams.

Naive tiling leaves seams for two reasons. First, convolutions near a tile's edge see padding instead of the
neighbouring pixels. Tiles therefore overlap; the outermost pixels of inner edges are discarded and the rest is
blended. Second, instance norm computes its statistics per tile, so the same grass gets different colours in tiles
with and without a horse, which no overlap can hide. The statistics are therefore measured once per image, pooled over
a sample of its patches (over the whole image if it is small), and held fixed for all tiles. This follows thumbnail
instance normalisation (Chen et al. 2022), but with full-scale patches instead of a thumbnail, because the networks
depend on scale.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agit_core.layers import InstanceNorm
from agit_core.networks import STRIDE

MARGIN = 32
"""Pixels at an inner tile edge that are computed but discarded."""
OVERLAP = 128
"""Minimum overlap of neighbouring tiles in pixels: two margins and the blending ramp between them."""
PATCH = 64
"""Side in pixels of the patches for the statistics. Many small patches represent an image better than a few large
ones, by a factor of two; still smaller ones would consist mostly of rim."""
RIM = 1 / 8
"""Share of a patch's side, at each edge, that is excluded from the statistics."""


class PooledNorm(nn.Module):
    """Instance norm with statistics pooled over a batch of patches of one image, then held fixed.

    While ``measuring``, the statistics of the current batch are used and stored, excluding the rim of each patch,
    which depends on padding.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, norm: InstanceNorm, device: torch.device) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.measuring = True
        self.register_buffer("mean", torch.zeros(norm.channels, device=device))
        self.register_buffer("variance", torch.ones(norm.channels, device=device))

    def forward(self, x: Tensor) -> Tensor:
        if self.measuring:
            height, width = x.shape[-2:]
            top, left = int(height * RIM), int(width * RIM)
            inner = x[..., top : height - top, left : width - left].float()
            self.variance, self.mean = torch.var_mean(inner, (0, 2, 3), correction=0)
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, eps=1e-5)


def with_pooled_norms(network: nn.Module, device: torch.device) -> nn.Module:
    """Copy a network with every instance norm replaced by a :class:`PooledNorm`; parameters are shared.

    Each image gets a copy, so that threads can translate different images at the same time.
    """
    shared = {id(parameter): parameter for parameter in network.parameters()}
    pooled = copy.deepcopy(network, shared)
    for module in list(pooled.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                setattr(module, name, PooledNorm(child, device))
    return pooled


def hold_statistics(network: nn.Module) -> None:
    """Stop measuring and keep the current statistics."""
    for module in network.modules():
        if isinstance(module, PooledNorm):
            module.measuring = False


@dataclass(frozen=True)
class Span:
    """One tile along one axis: pixels ``[start, stop)`` and their blending weights."""

    start: int
    stop: int
    weights: Tensor


def spans(length: int, tile: int, overlap: int = OVERLAP, margin: int = MARGIN) -> list[Span]:
    """Divide one axis into overlapping tiles whose weights sum to 1 at every pixel.

    Starts are multiples of the networks' stride, so that all tiles sample the image on the same grid.

    Args:
        length: pixels along the axis, a multiple of the stride.
        tile: largest side of a tile, a multiple of the stride, at least three times the overlap.
    """
    if length <= tile:
        return [Span(0, length, torch.ones(length))]
    count = -(-(length - overlap) // (tile - overlap))
    # the smallest tile that this count allows, so that overlaps are minimal and no pixel lies in three tiles
    tile = min(tile, _up((length + (count - 1) * (overlap + STRIDE)) / count))
    starts = [round(i * (length - tile) / (count - 1) / STRIDE) * STRIDE for i in range(count)]
    result = []
    for i, start in enumerate(starts):
        weights = torch.ones(tile)
        if i:
            shared = starts[i - 1] + tile - start
            weights[:shared] = _ramp(shared, margin)
        if i + 1 < count:
            shared = start + tile - starts[i + 1]
            weights[tile - shared :] = 1 - _ramp(shared, margin)
        result.append(Span(start, start + tile, weights))
    return result


def _up(value: float) -> int:
    """Round up to a multiple of the stride."""
    return math.ceil(value / STRIDE) * STRIDE


def _ramp(shared: int, margin: int) -> Tensor:
    """Blending weights over a shared strip: 0 on the margin, a smooth rise, 1 on the other tile's margin."""
    inner = shared - 2 * margin
    position = ((torch.arange(shared) + 0.5 - margin) / inner).clamp(0, 1)
    return position * position * (3 - 2 * position)


def patches(height: int, width: int, side: int, budget: int) -> list[tuple[int, int]]:
    """Top left corners of a regular grid of ``side`` x ``side`` patches with at most ``budget`` pixels in total.

    The grid has the image's aspect ratio and covers it evenly.
    """
    count = max(1, budget // (side * side))
    rows = max(1, min(-(-height // side), round((count * height / width) ** 0.5)))
    columns = max(1, min(-(-width // side), count // rows))

    def starts(length: int, count: int) -> list[int]:
        step = (length - side) / count
        return [int((i + 0.5) * step) // STRIDE * STRIDE for i in range(count)]

    return [(top, left) for top in starts(height, rows) for left in starts(width, columns)]


def run(
    read: Callable[[int, int, int, int], Tensor],
    forward: Callable[[Tensor], Tensor],
    height: int,
    width: int,
    tile: int,
) -> Iterator[tuple[int, Tensor]]:
    """Apply ``forward`` tile by tile and yield finished bands of rows: (first row, (1, C, rows, width)).

    Peak memory: the activations of one tile and two bands of output, independent of the image's height.

    Args:
        read: (top, bottom, left, right) -> (1, 3, h, w) float.
        forward: (1, 3, h, w) -> (1, C, h, w) float.
        height, width: multiples of the stride.
    """
    carried: Tensor | None = None  # contribution of the tiles above to the rows shared with the next tiles
    columns, rows = spans(width, tile), spans(height, tile)
    for i, row in enumerate(rows):
        band: Tensor | None = None
        for column in columns:
            out = forward(read(row.start, row.stop, column.start, column.stop)).float().cpu()
            if band is None:
                band = out.new_zeros(1, out.shape[1], row.stop - row.start, width)
            band[..., column.start : column.stop].addcmul_(out, column.weights)
        assert band is not None
        band *= row.weights[:, None]
        if carried is not None:
            band[:, :, : carried.shape[2]] += carried
        done = (rows[i + 1].start if i + 1 < len(rows) else height) - row.start
        yield row.start, band[:, :, :done]
        carried = band[:, :, done:].clone()

"""Translating images that do not fit into memory at once: tiles that agree with each other, blended.

Two things make naive tiles visible. Convolutions near a tile's edge see padding instead of the neighbour, so
tiles overlap, the outermost pixels of an inner edge are thrown away and the rest is blended. And instance
norm takes its mean and variance over the tile, so that the same grass gets different colours in a tile with
and in one without a horse; no overlap hides that. Therefore the statistics are measured once per image, over
a sample of its own patches pooled together (all of it, when it is small), and then held fixed for every tile.
That is the idea of thumbnail instance normalisation (Chen et al. 2022), with patches at the tiles' own scale
in place of a thumbnail, because the networks react to scale.
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
"""Pixels at an inner tile edge that are computed but not used."""
OVERLAP = 128
"""Pixels that neighbouring tiles share at least: two margins and the blending ramp between them."""
PATCH = 64
"""Side of the patches that the statistics are measured on. Many small ones spread over the image stand for it
better than a few large ones, by a factor of two; still smaller ones are mostly rim."""
RIM = 1 / 8
"""Share of a patch's side, at each edge, that is left out of the statistics."""


class PooledNorm(nn.Module):
    """An instance norm whose statistics are taken over a whole batch of patches and then held fixed.

    Batch normalisation over the patches of one image, so to speak. While ``measuring`` the batch's own
    statistics are used and kept; the rim of each patch, where the networks saw padding, does not count.
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
    """A copy that shares the network's parameters, with every instance norm pooled.

    A copy per image, so that threads translate different images at the same time.
    """
    shared = {id(parameter): parameter for parameter in network.parameters()}
    pooled = copy.deepcopy(network, shared)
    for module in list(pooled.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                setattr(module, name, PooledNorm(child, device))
    return pooled


def hold_statistics(network: nn.Module) -> None:
    """From now on the measured statistics stay as they are."""
    for module in network.modules():
        if isinstance(module, PooledNorm):
            module.measuring = False


@dataclass(frozen=True)
class Span:
    """One tile along one axis: pixels ``[start, stop)`` and the weight of each of them in the blend."""

    start: int
    stop: int
    weights: Tensor


def spans(length: int, tile: int, overlap: int = OVERLAP, margin: int = MARGIN) -> list[Span]:
    """Tiles of one axis. At every pixel the weights of the tiles there add up to 1.

    Starts are multiples of the networks' stride, so that every tile samples the image on the same grid.

    Args:
        length: pixels along the axis, a multiple of the stride.
        tile: a tile's largest side, a multiple of the stride, at least three times the overlap.
    """
    if length <= tile:
        return [Span(0, length, torch.ones(length))]
    count = -(-(length - overlap) // (tile - overlap))
    # the smallest tile that so many need: neighbours then share the overlap and no pixel has three tiles
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
    """The next multiple of the stride."""
    return math.ceil(value / STRIDE) * STRIDE


def _ramp(shared: int, margin: int) -> Tensor:
    """0 over the margin, a smooth rise to 1, 1 over the other tile's margin."""
    inner = shared - 2 * margin
    position = ((torch.arange(shared) + 0.5 - margin) / inner).clamp(0, 1)
    return position * position * (3 - 2 * position)


def patches(height: int, width: int, side: int, budget: int) -> list[tuple[int, int]]:
    """Top left corners of a regular grid of ``side`` x ``side`` patches, of at most ``budget`` pixels together.

    The grid has the image's aspect, so that the patches stand for all of it.
    """
    wanted = max(1, budget // (side * side))
    rows = max(1, min(-(-height // side), round((wanted * height / width) ** 0.5)))
    columns = max(1, min(-(-width // side), wanted // rows))

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
    """Applies ``forward`` tile by tile and yields finished bands of rows: (first row, (1, C, rows, width)).

    Memory is that of one tile's activations and two bands of the output, however high the image is.

    Args:
        read: (top, bottom, left, right) -> (1, 3, h, w) float.
        forward: (1, 3, h, w) -> (1, C, h, w) float.
        height, width: multiples of the stride.
    """
    carried: Tensor | None = None  # what the tiles above gave to the rows they share with the next ones
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

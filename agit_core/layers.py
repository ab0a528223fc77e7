"""Layers that PyTorch lacks, or whose PyTorch kernels are slow on CPUs.

The fast variants compute the same functions (tests compare them); exported programs use PyTorch's own layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class InstanceNorm(nn.Module):
    """Instance normalisation without running statistics, identical in training and inference.

    Computed as a group norm with one channel per group: the same formula and, measured on a CPU, two to three
    times faster than ``F.instance_norm``. On channels_last tensors the group norm kernel is 4 to 30 times slower,
    so there each image is batch-normalised separately, which is as fast as on contiguous tensors.
    """

    def __init__(self, channels: int, affine: bool) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        # the loop over images would fix the batch size of an exported program
        if x.device.type != "cpu" or torch.compiler.is_exporting() or x.is_contiguous():
            return F.group_norm(x, self.channels, self.weight, self.bias, eps=1e-5)
        images = [
            F.batch_norm(image, None, None, self.weight, self.bias, training=True, eps=1e-5)
            for image in x.split(1)
        ]
        return images[0] if len(images) == 1 else torch.cat(images)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Tanh(nn.Tanh):
    """Tanh in at least fp32: in bf16 it saturates at 1, with zero gradient, from 3.5 upwards."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_at_least_fp32(x))


class Sigmoid(nn.Sigmoid):
    """Sigmoid in at least fp32: in bf16 it saturates at 1, with zero gradient, from 6.3 upwards, so that a
    saturated mask could never recover."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_at_least_fp32(x))


class TransposedConvolution(nn.ConvTranspose2d):
    """Transposed convolution with the bias added separately.

    PyTorch's bf16 CPU kernel is two to three times slower with a bias argument.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        y = F.conv_transpose2d(x, self.weight, None, self.stride, self.padding, self.output_padding)  # type: ignore[arg-type]
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


class ToImage(nn.Conv2d):
    """The generators' last convolution, 7x7 to three channels; H and W must be even.

    CPU kernels vectorise over channels, and here there are only three. The convolution is therefore computed on
    blocks of 2x2 pixels: four times the input channels, twelve output channels, and a 4x4 kernel that holds the 7x7
    kernel once per pixel of a block. This takes a third more multiplications but only 60 % of the time, forward and
    backward together.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            return super().forward(x)
        outputs, inputs, size, _ = self.weight.shape
        half = (size + 1) // 2
        moved = [F.pad(self.weight, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)]
        split = torch.stack(moved, 1).view(outputs, 4, inputs, half, 2, half, 2)
        weight = split.permute(0, 1, 4, 6, 2, 3, 5).reshape(4 * outputs, 4 * inputs, half, half)
        y = _in_layout_of(x, F.pixel_shuffle(F.conv2d(_blocks(_padded(self, x)), weight), 2))
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


class FromImage(nn.Conv2d):
    """The attention networks' first convolution, 7x7 with stride 2 from three channels; H and W must be even.

    Computed on blocks of 2x2 pixels as a 4x4 convolution with stride 1 from twelve channels, for which the CPU
    kernel of the input gradient is ten times faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            return super().forward(x)
        outputs, inputs, size, _ = self.weight.shape
        half = (size + 1) // 2
        split = F.pad(self.weight, (0, 1, 0, 1)).view(outputs, inputs, half, 2, half, 2)
        weight = split.permute(0, 3, 5, 1, 2, 4).reshape(outputs, 4 * inputs, half, half)
        return _in_layout_of(x, F.conv2d(_blocks(_padded(self, x)), weight, self.bias))


def _padded(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
    return F.pad(x, convolution._reversed_padding_repeated_twice, mode)  # type: ignore[arg-type]


def _in_layout_of(x: Tensor, y: Tensor) -> Tensor:
    """Make ``y`` contiguous if ``x`` is: it comes out channels_last, which slows down the fp32 layers after it."""
    return y.contiguous() if x.is_contiguous() else y


def _blocks(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 4C, H / 2, W / 2), channels last; ordered by position in the 2x2 block, then channel."""
    n, channels, height, width = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(n, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
    return blocks.reshape(n, height // 2, width // 2, 4 * channels).permute(0, 3, 1, 2)


class SamePadded(nn.Module):
    """TensorFlow's ``SAME`` padding for a 3x3 stride-2 convolution on even sides: right and bottom only."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1, 0, 1))


class DropLast(nn.Module):
    """Drop the last row and column: an unpadded 3x3 stride-2 transposed convolution yields 2n + 1 pixels where
    TensorFlow's ``SAME`` yields 2n."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :-1, :-1]


class Residual(nn.Module):
    """x + body(x), followed by a ReLU if ``relu_after`` (the authors' code and the port)."""

    recomputes = False
    """Activation checkpointing: what is inside is computed again in the backward pass instead of being kept."""

    def __init__(self, body: nn.Sequential, relu_after: bool) -> None:
        super().__init__()
        self.body = body
        self.relu_after = relu_after

    def forward(self, x: Tensor) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            # nothing inside is random
            return checkpoint(self._sum, x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return self._sum(x)

    def _sum(self, x: Tensor) -> Tensor:
        y = x + self.body(x)
        return F.relu(y) if self.relu_after else y

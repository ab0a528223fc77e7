"""The layers that the networks are made of and PyTorch does not have, or not as fast on CPUs.

Those that are faster are the same functions, which is tested; exported programs get PyTorch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class InstanceNorm(nn.Module):
    """Instance normalisation without running statistics: the same in training and at inference.

    Computed as a group norm with one channel per group, which is the same formula and, measured on CPU, two to
    three times faster than ``F.instance_norm``. That kernel is 4 to 30 times slower on channels_last tensors,
    where batch norm, image by image, is as fast as it is on contiguous ones.
    """

    def __init__(self, channels: int, affine: bool) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        # an exported program must not know how many images it was traced with
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
    """In fp32 at least: in bf16 it is 1, with a gradient of 0, from 3.5 on."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_at_least_fp32(x))


class Sigmoid(nn.Sigmoid):
    """In fp32 at least: in bf16 it is 1, with a gradient of 0, from 6.3 on, and a mask would never come back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_at_least_fp32(x))


class TransposedConvolution(nn.ConvTranspose2d):
    """A transposed convolution that adds its bias afterwards.

    The bf16 kernel for CPUs is two to three times slower when it is handed the bias.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        y = F.conv_transpose2d(x, self.weight, None, self.stride, self.padding, self.output_padding)  # type: ignore[arg-type]
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


class ToImage(nn.Conv2d):
    """The generators' last convolution, 7x7 to three channels, on sides that are even.

    Kernels for CPUs compute many channels at once and have only three here. So it is computed on blocks of 2x2
    pixels: four times the channels in, twelve out, a 4x4 kernel that holds the 7x7 one once for each pixel of a
    block. That is a third more multiplications in 60 % of the time, forward and backward together.
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
    """The attention networks' first convolution, 7x7 with stride 2 from three channels, on sides that are even.

    On blocks of 2x2 pixels it is a 4x4 convolution with stride 1 from twelve channels, and the kernel for the
    gradient of the image is ten times faster.
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
    """``y``, contiguous where ``x`` is: behind blocks it is channels_last, which slows fp32 layers that follow."""
    return y.contiguous() if x.is_contiguous() else y


def _blocks(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 4C, H / 2, W / 2): first by place in the 2x2 block, then by channel; channels last."""
    n, channels, height, width = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(n, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
    return blocks.reshape(n, height // 2, width // 2, 4 * channels).permute(0, 3, 1, 2)


class SamePadded(nn.Module):
    """TensorFlow's ``SAME`` padding of a 3x3 stride-2 convolution on an even side: right and bottom only."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1, 0, 1))


class DropLast(nn.Module):
    """An unpadded 3x3 stride-2 transposed convolution gives 2n + 1; TensorFlow's ``SAME`` drops the last."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :-1, :-1]


class Residual(nn.Module):
    """x + body(x), with a ReLU behind the sum in the authors' code only."""

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

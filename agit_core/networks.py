"""Generators, attention networks and discriminators of the three presets.

``agit`` follows the authors' TensorFlow code layer by layer (including its one-sided ``SAME`` padding), ``uaggan``
the first PyTorch port, ``cyclegan`` the baseline of Zhu et al. 2017 without attention. Tests compare all three with
outputs and parameter counts of the original codes. Inputs are float images (N, 3, H, W) in [-1, 1]; H and W are
multiples of 4.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agit_core.config import Initialisation, NetworkConfig
from agit_core.layers import (
    DropLast,
    FromImage,
    InstanceNorm,
    Residual,
    SamePadded,
    Sigmoid,
    Tanh,
    ToImage,
    TransposedConvolution,
)

Padding = Literal["zeros", "reflect"]
STRIDE = 4
"""H and W must be multiples of this: generators and attention networks halve the image twice."""


def _block(conv: nn.Module, channels: int, affine: bool, *before: nn.Module) -> list[nn.Module]:
    return [*before, conv, InstanceNorm(channels, affine), nn.ReLU()]


def cancelled_biases(network: nn.Module, normalise: bool = True) -> list[nn.Parameter]:
    """Biases directly before an instance norm, which cancels them: they have no effect on the output.

    Their gradient is zero up to rounding, which Adam would amplify to full steps in random directions; a
    discriminator would carry that noise into stage ``masked``, where its norms are off and the biases count. They
    are therefore frozen while the norm is on. ``normalise``: whether the discriminators' norms are on.
    """
    convolutions: list[nn.Module] = []
    for parent in network.modules():
        if isinstance(parent, nn.Sequential):
            for layer, following in itertools.pairwise(parent):
                if isinstance(following, InstanceNorm):
                    convolutions += [
                        m for m in layer.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
                    ]
        elif isinstance(parent, Discriminator) and normalise:
            pairs = zip(parent.convolutions, parent.norms, strict=False)
            convolutions += [c for c, n in pairs if isinstance(n, InstanceNorm)]
    return [m.bias for m in convolutions if isinstance(m.bias, nn.Parameter)]


def _residual(channels: int, padding_mode: Padding, affine: bool, bias: bool, relu_after: bool) -> Residual:
    def conv() -> nn.Conv2d:
        return nn.Conv2d(channels, channels, 3, padding=1, padding_mode=padding_mode, bias=bias)

    body = [conv(), InstanceNorm(channels, affine), nn.ReLU(), conv(), InstanceNorm(channels, affine)]
    return Residual(nn.Sequential(*body), relu_after)


def _resize_block(inputs: int, outputs: int, affine: bool, bias: bool) -> list[nn.Module]:
    """Nearest x2, then a 3x3 convolution: upsampling without a checkerboard (Odena et al. 2016)."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    return _block(conv, outputs, affine, nn.Upsample(scale_factor=2, mode="nearest"))


def generator_agit(width: int, blocks: int, upsampling: str) -> nn.Sequential:
    """The authors' resnet generator: images (N, 3, H, W) to images of the same shape, in [-1, 1]."""
    w = width
    layers = _block(nn.Conv2d(3, w, 7, padding=3), w, True)
    layers += _block(nn.Conv2d(w, 2 * w, 3, stride=2), 2 * w, True, SamePadded())
    layers += _block(nn.Conv2d(2 * w, 4 * w, 3, stride=2), 4 * w, True, SamePadded())
    layers += [_residual(4 * w, "zeros", affine=True, bias=True, relu_after=True) for _ in range(blocks)]
    for inputs, outputs in ((4 * w, 2 * w), (2 * w, w)):
        if upsampling == "resize":
            layers += _resize_block(inputs, outputs, affine=True, bias=True)
        else:
            up = nn.Sequential(TransposedConvolution(inputs, outputs, 3, stride=2), DropLast())
            layers += _block(up, outputs, True)
    layers += [ToImage(w, 3, 7, padding=3), Tanh()]
    return nn.Sequential(*layers)


def generator_cyclegan(
    width: int, blocks: int, upsampling: str, bias: bool, up_kernel: int, padding: Padding, relu_after: bool
) -> nn.Sequential:
    """CycleGAN's resnet generator: images (N, 3, H, W) to images of the same shape, in [-1, 1].

    ``uaggan`` uses it without biases, with 4x4 upsampling, zero padding and a ReLU after each residual sum.
    """
    w = width
    layers = _block(nn.Conv2d(3, w, 7, padding=3, padding_mode=padding, bias=bias), w, False)
    layers += _block(nn.Conv2d(w, 2 * w, 3, stride=2, padding=1, bias=bias), 2 * w, False)
    layers += _block(nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1, bias=bias), 4 * w, False)
    layers += [
        _residual(4 * w, padding, affine=False, bias=bias, relu_after=relu_after) for _ in range(blocks)
    ]
    for inputs, outputs in ((4 * w, 2 * w), (2 * w, w)):
        if upsampling == "resize":
            layers += _resize_block(inputs, outputs, affine=False, bias=bias)
        else:
            extra = 1 if up_kernel == 3 else 0
            up = TransposedConvolution(inputs, outputs, up_kernel, 2, 1, output_padding=extra, bias=bias)
            layers += _block(up, outputs, False)
    layers += [ToImage(w, 3, 7, padding=3, padding_mode=padding, bias=bias), Tanh()]
    return nn.Sequential(*layers)


def attention_agit(width: int, decoder: str, activation: str) -> nn.Sequential:
    """The authors' attention network: images (N, 3, H, W) to a mask (N, 1, H, W) in [0, 1].

    With the 1x1 decoder, all upsampling happens at the end. Nearest x2 followed by a 1x1 convolution, a norm and a
    ReLU gives every pixel of a 2x2 block the same value, so this is the same function at a sixteenth of the cost.

    The ReLU before the last convolution limits the mask: losses that lower the mask turn the last weights negative;
    after a ReLU, the logit then cannot exceed the bias; and the bias sinks from 0, so that masks stay below 0.5 from
    then on. ``activation="identity"`` omits that ReLU.
    """
    w = width
    kernel, padding = (1, 0) if decoder == "1x1" else (3, 1)

    def up() -> nn.Module:
        return nn.Identity() if decoder == "1x1" else nn.Upsample(scale_factor=2, mode="nearest")

    layers = _block(FromImage(3, w, 7, stride=2, padding=3, padding_mode="reflect"), w, True)
    layers += _block(nn.Conv2d(w, 2 * w, 3, stride=2), 2 * w, True, SamePadded())
    layers += [_residual(2 * w, "reflect", affine=True, bias=True, relu_after=True)]
    layers += _block(nn.Conv2d(2 * w, 2 * w, kernel, padding=padding), 2 * w, True, up())
    layers += _block(nn.Conv2d(2 * w, w, kernel, padding=padding), w, True, up())
    layers[-1] = _last_activation(activation)
    layers += [nn.Conv2d(w, 1, kernel, padding=padding), Sigmoid()]
    if decoder == "1x1":
        layers.append(nn.Upsample(scale_factor=4, mode="nearest"))
    return nn.Sequential(*layers)


class AtHalfSize(nn.Sequential):
    """An attention network that runs on the image at half size; parameter names are unchanged.

    The image is averaged over 2x2 pixels and the mask upsampled bilinearly. Sides that are not multiples of 8 are
    padded by 4 pixels at the right or bottom (edge replication), and the mask is cropped.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        bottom, right = -height % (2 * STRIDE), -width % (2 * STRIDE)
        padded = F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x
        mask = super().forward(F.avg_pool2d(padded, 2))
        mask = F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=False)
        return mask[..., :height, :width]


def _last_activation(name: str) -> nn.Module:
    return nn.ReLU() if name == "relu" else nn.Identity()


def attention_uaggan(
    width: int, bias: bool, padding: Padding, relu_after: bool, activation: str
) -> nn.Sequential:
    """The port's attention network: images (N, 3, H, W) to a mask (N, 1, H, W) in [0, 1].

    ``activation`` as in :func:`attention_agit`.
    """
    w = width

    def up() -> nn.Upsample:
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    layers = _block(FromImage(3, w, 7, stride=2, padding=3, padding_mode=padding, bias=bias), w, False)
    layers += _block(nn.Conv2d(w, 2 * w, 3, stride=2, padding=1, bias=bias), 2 * w, False)
    layers += [_residual(2 * w, padding, affine=False, bias=bias, relu_after=relu_after)]
    layers += _block(nn.Conv2d(2 * w, 2 * w, 3, padding=1, bias=bias), 2 * w, False, up())
    layers += _block(nn.Conv2d(2 * w, w, 3, padding=1, bias=bias), w, False, up())
    layers[-1] = _last_activation(activation)
    layers += [nn.Conv2d(w, 1, 7, padding=3, padding_mode=padding, bias=bias), Sigmoid()]
    return nn.Sequential(*layers)


class Discriminator(nn.Module):
    """Patch discriminator: one logit (or least-squares score) per overlapping patch.

    Args:
        channels: output channels of each convolution except the last, which has one.
        strides: stride of each convolution, including the last.
        padding: zeros on each side of each convolution.
        normed: which convolutions are followed by an instance norm.
        affine: whether the norms have a scale and shift.
        bias: whether the convolutions have biases.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        padding: int,
        normed: list[bool],
        affine: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        widths = [3, *channels, 1]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 4, stride, padding, bias=bias)
            for i, stride in enumerate(strides)
        )
        self.norms = nn.ModuleList(
            InstanceNorm(c, affine) if n else nn.Identity() for c, n in zip(channels, normed, strict=True)
        )

    def forward(self, x: Tensor, normalise: bool = True) -> Tensor:
        """Scores (N, 1, h, w) of images (N, 3, H, W).

        ``normalise=False`` skips the instance norms, with the same convolution weights. It is used in stage
        ``masked``, where large parts of the image are exactly 0 and would distort the statistics.
        """
        for conv, norm in zip(self.convolutions, self.norms, strict=False):
            x = conv(x)
            if normalise:
                x = norm(x)
            x = F.leaky_relu(x, 0.2)
        return self.convolutions[-1](x)


def _discriminator(preset: str, w: int, port: bool) -> Discriminator:
    if preset == "agit":  # 256 px -> 35 x 35
        return Discriminator([w, 2 * w, 4 * w, 8 * w], [2, 2, 2, 1, 1], 2, [True] * 4, affine=True, bias=True)
    normed = [port, True, True, True]
    if preset == "uaggan":  # 256 px -> 15 x 15
        return Discriminator([w, w, 2 * w, 4 * w], [2, 2, 2, 2, 1], 1, normed, affine=False, bias=False)
    # 256 px -> 30 x 30, with a receptive field of 70 x 70 pixels
    return Discriminator([w, 2 * w, 4 * w, 8 * w], [2, 2, 2, 1, 1], 1, normed, affine=False, bias=True)


DISCRIMINATOR_NAMES = ("discriminator_a", "discriminator_b")


class Networks(nn.Module):
    """The six networks; ``attention_a`` and ``attention_b`` are None when the configuration has no attention."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        preset = config.preset
        generator_width = config.generator_width or (32 if preset == "agit" else 64)
        attention_width = config.attention_width or (32 if preset == "agit" else 64)
        discriminator_width = config.discriminator_width or 64
        # the layers of the port that revision 1 lacked
        port = preset == "uaggan" and config.revision >= 2
        padding: Padding = "zeros" if port else "reflect"

        def generator() -> nn.Module:
            if preset == "agit":
                return generator_agit(generator_width, config.generator_blocks, config.upsampling)
            bias, kernel = (False, 4) if preset == "uaggan" else (True, 3)
            return generator_cyclegan(
                generator_width, config.generator_blocks, config.upsampling, bias, kernel, padding, port
            )

        def attention() -> nn.Module | None:
            if not config.has_attention:
                return None
            if preset == "agit":
                network = attention_agit(
                    attention_width, config.attention_decoder, config.attention_activation
                )
            else:
                network = attention_uaggan(
                    attention_width, preset == "cyclegan", padding, port, config.attention_activation
                )
            return network if config.attention_scale == 1 else AtHalfSize(*network)

        self.generator_ab = generator()
        self.generator_ba = generator()
        self.attention_a = attention()
        self.attention_b = attention()
        self.discriminator_a = _discriminator(preset, discriminator_width, port)
        self.discriminator_b = _discriminator(preset, discriminator_width, port)


def initialise(module: nn.Module, kind: Initialisation, generator: torch.Generator) -> None:
    """Draw the weights in place; biases and shifts are 0 unless stated.

    ``normal``: convolutions N(0, 0.02), norm scales N(1, 0.02), as in pytorch-CycleGAN. ``truncated``: the same,
    truncated at two standard deviations, as in the authors' code (TensorFlow's truncated normal; effective standard
    deviation 0.0176, maximum 0.04). ``pytorch``: the framework's default, as in the port: weights and biases uniform
    in +- 1 / sqrt(fan in), scales 1.
    """

    for layer in module.modules():
        convolution = isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | InstanceNorm) or layer.weight is None:
            continue
        mean = 0.0 if convolution else 1.0
        bound = 1 / math.sqrt(layer.weight[0].numel())
        if kind == "normal":
            nn.init.normal_(layer.weight, mean, 0.02, generator=generator)
        elif kind == "truncated":
            nn.init.trunc_normal_(layer.weight, mean, 0.02, mean - 0.04, mean + 0.04, generator=generator)
        elif convolution:
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        else:
            nn.init.ones_(layer.weight)
        if layer.bias is not None and kind == "pytorch" and convolution:
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif layer.bias is not None:
            nn.init.zeros_(layer.bias)


def build(config: NetworkConfig, seed: int = 0) -> Networks:
    """Build and initialise the networks on the CPU in fp32; equal seeds give equal weights on every machine."""
    networks = Networks(config)
    initialise(networks, config.initialiser, torch.Generator().manual_seed(seed))
    return networks

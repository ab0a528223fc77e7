"""The 2015-12-05 Inception as eager layers with folded batch norms, built from the TorchScript file.

Every layer of the script is a bias-free convolution, a batch norm with fixed statistics and a ReLU:

    relu((w * x - mean) / sqrt(var + eps) + beta)  =  relu(w' * x + b'),
    w' = w / sqrt(var + eps),  b' = beta - mean / sqrt(var + eps)

On a CPU, the folded network in channels_last takes half the script's time and yields the same features up to
rounding (a test compares them). The structure can be hard-coded because the file's SHA-256 is fixed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_EPS = 1e-3


class Branches(nn.Module):
    """Runs every branch on the same input and concatenates the outputs' channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


@torch.no_grad()
def fold(script: torch.jit.ScriptModule) -> nn.Sequential:
    """Build the folded network, float32 (N, 3, 299, 299) to (N, 2048, 1, 1), in evaluation mode, without gradients."""
    layers: Any = script.net.layers
    return _convert(layers).eval().requires_grad_(False)


def _convert(module: Any) -> Any:
    kind = module.original_name
    children = dict(module.named_children())
    if kind == "Conv2dLayer":
        return _convolution(module)
    if kind in {"MaxPool2d", "AvgPool2d"}:
        return _pool(kind, module)
    if kind == "Sequential":
        return nn.Sequential(*map(_convert, children.values()))
    if kind == "InceptionE":
        return _split_towers({name: _convert(child) for name, child in children.items()})
    return Branches(*map(_convert, children.values()))


def _convolution(module: Any) -> nn.Sequential:
    outputs, inputs, *kernel = module.weight.shape
    padding = module.padding if isinstance(module.padding, int) else tuple(module.padding)
    layer = nn.Conv2d(inputs, outputs, tuple(kernel), stride=module.stride, padding=padding)
    scale = torch.rsqrt(module.var + _EPS)
    layer.weight.copy_(module.weight * scale[:, None, None, None])
    assert layer.bias is not None
    layer.bias.copy_(module.beta - module.mean * scale)
    return nn.Sequential(layer, nn.ReLU(inplace=True))


def _pool(kind: str, module: Any) -> nn.Module:
    # the script has a pool's sizes in its code only, not as attributes
    code = module.code
    if kind == "MaxPool2d":
        return nn.MaxPool2d(3, stride=2) if "[2, 2]" in code else nn.MaxPool2d(3, stride=1, padding=1)
    if "[8, 8]" in code:
        return nn.AvgPool2d(8)
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _split_towers(part: dict[str, nn.Module]) -> Branches:
    """The last two blocks, whose towers end in parallel 1x3 and 3x1 convolutions."""
    return Branches(
        part["conv"],
        nn.Sequential(part["tower_conv"], Branches(part["tower_mixed_conv"], part["tower_mixed_conv_1"])),
        nn.Sequential(
            part["tower_1_conv"],
            part["tower_1_conv_1"],
            Branches(part["tower_1_mixed_conv"], part["tower_1_mixed_conv_1"]),
        ),
        nn.Sequential(part["tower_2_pool"], part["tower_2_conv"]),
    )

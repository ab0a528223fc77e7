"""How the same mathematics is computed on this machine: autocast, memory layout, compilation, determinism."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from agit_core.config import PrecisionConfig


@dataclass(frozen=True)
class Numerics:
    """A :class:`PrecisionConfig` with every ``auto`` decided."""

    autocast: torch.dtype | None
    channels_last: bool
    compile: bool

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def describe(self) -> str:
        dtype = "fp32" if self.autocast is None else "bf16 autocast"
        layout = "channels_last" if self.channels_last else "channels_first"
        return f"{dtype}, {layout}, {'compiled' if self.compile else 'eager'}"


def pick_device(name: str = "auto") -> torch.device:
    """``auto``: the GPU when there is one."""
    return torch.device(
        "cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu")
    )


def resolve(config: PrecisionConfig, device: torch.device) -> Numerics:
    """Decides the ``auto`` settings. On CPU they are what measured fastest there: contiguous, eager.

    The group-norm kernel behind the instance norms is several times faster on contiguous CPU tensors than on
    channels_last ones, which outweighs what the convolutions gain.
    """
    gpu = device.type == "cuda"
    bf16 = torch.cuda.is_bf16_supported() if gpu else processor_has_bf16()
    switch = {"on": True, "off": False, "auto": gpu}
    return Numerics(
        autocast=torch.bfloat16
        if config.autocast == "bf16" or (config.autocast == "auto" and bf16)
        else None,
        channels_last=switch[config.channels_last],
        compile=switch[config.compile],
    )


def processor_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices itself; emulated bf16 is slower than fp32."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags


def make_deterministic(device: torch.device, deterministic: bool) -> None:
    """Deterministic kernels where they exist, or the fastest that cuDNN finds."""
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # a debugging aid that deterministic mode switches on: filling every fresh tensor costs some 7 % of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

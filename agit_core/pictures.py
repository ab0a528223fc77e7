"""Conversion between user-facing image types and network tensors.

PIL images, numpy arrays and torch tensors are accepted; outputs have the input's type, size and device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from agit_core import pixels
from agit_core.errors import BadInput


class Opened(NamedTuple):
    """A picture as a tensor, with functions that convert results back to its type."""

    pixels: Tensor
    """(N, 3, H, W), uint8 or float in [0, 1]."""
    image: Callable[[Tensor], Any]
    """Converts a translation, a tensor of the shape and dtype of ``pixels``."""
    mask: Callable[[Tensor], Any]
    """Converts a mask (N, 1, H, W) of the dtype of ``pixels``."""


def open_picture(picture: Any) -> Opened:
    """Convert a picture of any accepted type to a tensor.

    - ``PIL.Image`` of any mode, read by :func:`agit_core.pixels.read`: upright, in sRGB, 8 bits; an alpha channel
      (or a palette's transparent colour) is copied to the output unchanged. Mask: mode L.
    - numpy uint8 (H, W), (H, W, 3) or (H, W, 4), the fourth channel being alpha. Mask: (H, W).
    - torch (3, H, W) or (N, 3, H, W), uint8 or floating point in [0, 1]. Mask: (1, H, W) or (N, 1, H, W).

    Raises:
        BadInput: any other type, shape or range, or an image that cannot be decoded.
    """
    if isinstance(picture, Image.Image):
        return _open_pil(picture)
    if isinstance(picture, np.ndarray):
        return _open_array(picture)
    if isinstance(picture, Tensor):
        return _open_tensor(picture)
    raise BadInput(
        f"cannot translate a {type(picture).__name__}; give a PIL image, a numpy array or a torch tensor"
    )


def _open_pil(picture: Image.Image) -> Opened:
    try:
        colour, alpha, _ = pixels.read(picture)
    except Exception as error:  # PIL decodes lazily, and its decoders raise undocumented types
        raise BadInput(f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None

    def image(output: Tensor) -> Image.Image:
        translated = Image.fromarray(_to_array(output))
        if alpha is not None:
            translated.putalpha(alpha)
        return translated

    return Opened(_from_array(np.asarray(colour)), image, lambda m: Image.fromarray(_to_array(m)))


def _open_array(picture: np.ndarray[Any, Any]) -> Opened:
    channels = picture.shape[2] if picture.ndim == 3 else 1
    if picture.dtype != np.uint8 or picture.ndim not in {2, 3} or channels not in {1, 3, 4}:
        raise BadInput(
            f"cannot translate a numpy array of {picture.dtype} and shape {picture.shape}; "
            "give uint8 of shape (H, W), (H, W, 3) or (H, W, 4)"
        )
    colour = (
        picture[..., :3]
        if channels >= 3
        else np.broadcast_to(picture.reshape(*picture.shape[:2], 1), (*picture.shape[:2], 3))
    )
    alpha = picture[..., 3:] if channels == 4 else None

    def image(output: Tensor) -> np.ndarray[Any, Any]:
        array = _to_array(output)
        return array if alpha is None else np.concatenate([array, alpha], axis=2)

    return Opened(_from_array(colour), image, _to_array)


def _open_tensor(picture: Tensor) -> Opened:
    if (
        picture.ndim not in {3, 4}
        or picture.shape[-3] != 3
        or not (picture.dtype == torch.uint8 or picture.is_floating_point())
    ):
        raise BadInput(
            f"cannot translate a tensor of {picture.dtype} and shape {tuple(picture.shape)}; "
            "give uint8 or floats of shape (3, H, W) or (N, 3, H, W)"
        )
    if picture.is_floating_point() and picture.numel():
        low, high = (float(x) for x in torch.aminmax(picture.detach()))
        if not (low >= 0 and high <= 1):
            raise BadInput(
                f"a float image must lie in [0, 1], this one lies in [{low:.3g}, {high:.3g}]; rescale it"
            )
    batch = picture.detach() if picture.ndim == 4 else picture.detach()[None]

    def back(output: Tensor) -> Tensor:
        output = output.to(picture.device, picture.dtype)
        return output if picture.ndim == 4 else output[0]

    pixels = batch if batch.dtype in {torch.uint8, torch.float32} else batch.float()
    return Opened(pixels, back, back)


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    # copied: the array may be read-only, and the tensor must be contiguous
    return torch.from_numpy(array.transpose(2, 0, 1).copy())[None]


def _to_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Convert uint8 (1, C, H, W) to (H, W, 3) or, for one channel, (H, W)."""
    array = tensor[0].cpu().numpy()
    return array[0] if array.shape[0] == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))

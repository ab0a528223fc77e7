"""Images in a folder as a training source, for use without the pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from agit_core import pixels
from agit_core.errors import BadInput

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class FolderImages:
    """An :class:`agit_core.loader.ImageSource`: the images of a folder and its subfolders, in the order of their names.

    Images are read when they are needed: upright, in sRGB, transparent ones over white, squashed to a square. For
    large sets or photographs prepare the data with the pipeline, which resizes each image once.

    Args:
        folder: folder with images; files with other suffixes and hidden files are ignored.
        size: side of the squares, in pixels, at least the training size; crops are taken from them.

    Raises:
        BadInput: no such folder, or no image in it.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise BadInput(f"there is no folder {folder}")
        self.size = size
        self.paths = sorted(
            path
            for path in root.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(root).parts)
        )
        if not self.paths:
            raise BadInput(f"there is no image in {folder} (known suffixes: {' '.join(sorted(SUFFIXES))})")

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Tensor:
        """Return uint8 (3, size, size).

        Raises:
            BadInput: the file is not an image or is damaged.
        """
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                colour = pixels.over_white(pixels.read(image))
        except Exception as error:  # Pillow's decoders raise undocumented types
            raise BadInput(f"{path} cannot be read ({' '.join(str(error).split())}); remove it") from None
        square = colour.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(square).transpose(2, 0, 1).copy())

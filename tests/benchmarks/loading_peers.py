"""The same epoch as each loader's own documentation would have it: shuffled, cropped, flipped, batched.

Every peer gets the faster decoder (torchvision's, as ours) where its interface leaves the choice, and as many
worker processes as ours has decoding threads. All yield float32 (n, 3, S, S) in [-1, 1].
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

BUFFER = 1000
"""Images that the streaming peers shuffle among."""


class StubTransformers(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """mosaicml-streaming imports ``transformers`` for its text sets; nothing of it is used here."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        known = name.split(".")[0] == "transformers"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: type(name, (), {})  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


class Augment:
    """Random crop and flip, then float in [-1, 1]; picklable."""

    def __init__(self, size: int) -> None:
        self._crop = v2.Compose([v2.RandomCrop(size), v2.RandomHorizontalFlip()])

    def __call__(self, image: Tensor) -> Tensor:
        return self._crop(image).to(torch.float32).div_(127.5).sub_(1.0)

    def encoded(self, data: bytes) -> Tensor:
        return self(decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB))


def _loaded(dataset: Any, spec: dict[str, Any], **options: Any) -> Iterator[Tensor]:
    return iter(DataLoader(dataset, batch_size=spec["batch"], num_workers=spec["workers"], **options))


def imagefolder(spec: dict[str, Any]) -> Iterator[Tensor]:
    """As in every tutorial: Pillow."""
    steps = [v2.RandomCrop(spec["image_size"]), v2.RandomHorizontalFlip(), v2.ToImage()]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    dataset = ImageFolder(spec["folder"], v2.Compose(steps))
    return (images for images, _ in _loaded(dataset, spec, shuffle=True))


def _decoded(path: str) -> Any:
    return decode_image(path, ImageReadMode.RGB)


def imagefolder_fast(spec: dict[str, Any]) -> Iterator[Tensor]:
    """With torchvision's decoder, which few use: the stronger opponent, and the one that counts."""
    dataset = ImageFolder(spec["folder"], Augment(spec["image_size"]), loader=_decoded)
    return (images for images, _ in _loaded(dataset, spec, shuffle=True))


def webdataset(spec: dict[str, Any]) -> Iterator[Tensor]:
    import webdataset as wds

    dataset = wds.WebDataset(spec["tars"], shardshuffle=len(spec["tars"]), empty_check=False)
    dataset = dataset.shuffle(BUFFER).to_tuple("jpg").map_tuple(Augment(spec["image_size"]).encoded)
    return (images[0] for images in _loaded(dataset, spec))


def streaming(spec: dict[str, Any]) -> Iterator[Tensor]:
    sys.meta_path.append(StubTransformers())
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # of a process that was killed

    class Images(StreamingDataset):  # type: ignore[misc]
        augment = Augment(spec["image_size"])

        def __getitem__(self, at: int) -> Any:
            return self.augment.encoded(super().__getitem__(at)["image"])

    remote = "://" in spec["mds"]
    places = {"remote": spec["mds"], "local": spec["scratch"]} if remote else {"local": spec["mds"]}
    dataset = Images(**places, shuffle=True, batch_size=spec["batch"])
    for stream in dataset.streams if remote else ():
        # its workers would share the connection that fetched the index, and take each other's shards
        stream._downloader.clean_up()
    return _loaded(dataset, spec)


def datasets(spec: dict[str, Any]) -> Iterator[Tensor]:
    import datasets as hf

    opened = hf.load_dataset("parquet", data_files=spec["parquet"], split="train", streaming=True)
    opened = opened.select_columns(["image"]).cast_column("image", hf.Image(decode=False))
    augment = Augment(spec["image_size"])

    def together(rows: list[Any]) -> Tensor:
        return torch.stack([augment.encoded(row["image"]["bytes"]) for row in rows])

    return _loaded(opened.shuffle(seed=0, buffer_size=BUFFER), spec, collate_fn=together)


def write_mds(folder: str, target: str) -> None:
    """A folder of JPEG files as a set of mosaicml-streaming."""
    sys.meta_path.append(StubTransformers())
    from streaming import MDSWriter

    with MDSWriter(out=target, columns={"image": "bytes"}, size_limit=8 << 20) as out:
        for path in sorted(Path(folder).glob("*/*.jpg")):
            out.write({"image": path.read_bytes()})

"""Reader of prepared images by index."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.format import manifest
from pipeline.data.format.shards import check_length
from pipeline.data.read.prefetch import Blocks
from pipeline.data.read.shard_cache import ShardCache

_SOON_SECONDS = 1.0
_CHECKED: set[tuple[Path, int, int, str]] = set()
"""Local shards that this process has compared with their checksums. It reads them into the page cache, where they are
needed next, and takes 0.75 s of a core per GB (SHA-256 on a processor with SHA extensions)."""
_COLUMNS = ["shard", "image_offset", "image_length", "mask_offset", "mask_length"]


class ShardImages:
    """The images of one split; an ``agit_core.loader.ImageSource``. Thread-safe.

    An image is a slice of a memory-mapped shard: only the index (about 30 bytes per image) is held in memory, and the
    processes of a machine share the pages. Shards in object storage are copied into a local cache in the background.
    Until a shard has arrived, or if the cache is too small for it, announced images are prefetched by byte ranges (a
    row group at a time if the sampling order is by blocks) and others are fetched when they are read; a shard that is
    about to arrive is waited for.

    Args:
        data_uri: folder of a prepared data set.
        split: ``trainA``, ``trainB``, ``testA`` or ``testB``.
        cache_dir: local cache folder for shards from object storage, shared by the processes of a machine.
        cache_bytes: size limit of the cache; 0 disables it.
        block: images to fetch together: the block size of the sampling order.

    Raises:
        BadInput: no prepared data there, no such split, or a damaged index.
        RunFailed: the storage does not respond.
    """

    def __init__(self, data_uri: str, split: str, cache_dir: Path, cache_bytes: int, block: int = 1) -> None:
        self._uri = data_uri
        described = manifest.read(data_uri)
        manifest.check(data_uri, described)
        self._shards = manifest.split_of(data_uri, described, split).shards
        index = manifest.read_index(data_uri, described, split, _COLUMNS)
        self._shard, self._image_at, self._image_bytes, self._mask_at, self._mask_bytes = (
            # np.asarray would load pandas, which takes each process a second or two
            np.from_dlpack(index[name].combine_chunks())
            for name in _COLUMNS
        )
        self._split = split
        self._described = described
        self._names: list[str] | None = None
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()
        remote = storage.is_remote(data_uri)
        self._cache = ShardCache(cache_dir, cache_bytes) if remote else None
        self._blocks = Blocks(self._fetch, block) if remote else None
        if self._cache is not None:
            self._cache.want([(self._where(n), s.sha256, s.bytes) for n, s in enumerate(self._shards)])

    def __len__(self) -> int:
        return len(self._shard)

    def read(self, index: int) -> Tensor:
        """Read image ``index``, uint8 (3, S, S), RGB."""
        data = self._blocks.take(index) if self._blocks is not None else None
        return _decoded(data or self.encoded(index), "RGB", self._where(int(self._shard[index])))

    def expect(self, index: int) -> None:
        """Announce a later :meth:`read` of this image, so that it can be prefetched."""
        number = int(self._shard[index])
        if self._blocks is not None and self._map(number) is None and not self._coming(number):
            self._blocks.expect(index)

    def forget(self) -> None:
        """Withdraw all announced reads."""
        if self._blocks is not None:
            self._blocks.forget()

    def has_mask(self, index: int) -> bool:
        """Whether there is a mask, without reading it."""
        return bool(self._mask_bytes[index])

    def mask(self, index: int) -> Tensor | None:
        """Mask of an image, uint8 (1, S, S), 255 on the object and 0 elsewhere; None if it has none."""
        length = int(self._mask_bytes[index])
        if not length:
            return None
        data = self._bytes(index, int(self._mask_at[index]), length)
        return _decoded(data, "GRAY", self._where(int(self._shard[index])))

    def name(self, index: int) -> str:
        """The image's name in the source, such as ``n02381460_1000.jpg``."""
        if self._names is None:
            table = manifest.read_index(self._uri, self._described, self._split, ["name"])
            self._names = table["name"].to_pylist()
        return self._names[index]

    def encoded(self, index: int) -> bytes:
        """The stored JPEG or PNG."""
        return bytes(self._bytes(index, int(self._image_at[index]), int(self._image_bytes[index])))

    def close(self) -> None:
        """Stop fetching and unmap the shards."""
        if self._cache is not None:
            self._cache.close()
        if self._blocks is not None:
            self._blocks.close()
        with self._lock:
            for mapped in self._maps.values():
                mapped.close()
            self._maps = {}

    def _where(self, number: int) -> str:
        return storage.join(self._uri, self._shards[number].path)

    def _bytes(self, index: int, offset: int, length: int) -> bytes:
        number = int(self._shard[index])
        mapped = self._map(number)
        if mapped is None and self._cache is not None and self._coming(number):
            self._cache.wait(self._where(number), 2 * _SOON_SECONDS)
            mapped = self._map(number)
        if mapped is None:
            data = storage.read_range(self._where(number), offset - 4, length + 4)
        else:
            data = mapped[offset - 4 : offset + length]
        check_length(data[:4], length, self._where(number))
        return data[4:]

    def _coming(self, number: int) -> bool:
        """Whether the cache will have the whole shard shortly, so that waiting is cheaper than separate requests."""
        seconds = self._cache.seconds(self._where(number)) if self._cache is not None else None
        return seconds is not None and seconds < _SOON_SECONDS

    def _fetch(self, number: int) -> dict[int, bytes]:
        """Fetch the images of a block, with one request per run of contiguous images in a shard."""
        assert self._blocks is not None
        first = number * self._blocks.size
        stop = min(first + self._blocks.size, len(self))
        shards, starts, lengths = (
            column[first:stop].tolist() for column in (self._shard, self._image_at, self._image_bytes)
        )
        images: dict[int, bytes] = {}
        begin = 0
        for end in range(1, len(shards) + 1):
            if end < len(shards) and (shards[end], starts[end]) == (
                shards[end - 1],
                starts[end - 1] + lengths[end - 1] + 4,
            ):
                continue
            origin = starts[begin] - 4
            run = storage.read_range(
                self._where(shards[begin]), origin, starts[end - 1] + lengths[end - 1] - origin
            )
            for at in range(begin, end):
                here = starts[at] - origin
                check_length(run[here - 4 : here], lengths[at], self._where(shards[begin]))
                images[first + at] = run[here : here + lengths[at]]
            begin = end
        return images

    def _map(self, number: int) -> mmap.mmap | None:
        mapped = self._maps.get(number)
        if mapped is not None:
            return mapped
        if self._cache is None:
            path: Path | None = storage.local_path(self._where(number))
        else:
            path = self._cache.path(self._where(number))
        if path is None:
            return None
        with self._lock:
            if number not in self._maps:
                try:
                    if not self._whole(number, path):
                        return None
                    with path.open("rb") as file:
                        self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except FileNotFoundError:
                    if self._cache is not None:
                        return None  # evicted a moment ago
                    raise BadInput(f"the shard {path} is missing; prepare the data again") from None
            return self._maps[number]

    def _whole(self, number: int, path: Path) -> bool:
        """Compare a shard with its manifest, once per process; False: a cached copy that is fetched anew.

        Raises:
            BadInput: the shard itself is damaged.
        """
        sha256, seen = self._shards[number].sha256, path.stat()
        # a cached copy is touched whenever it is used
        known = (path, 0 if self._cache else seen.st_mtime_ns, seen.st_size, sha256)
        if known in _CHECKED:
            return True
        if storage.sha256(path) == sha256:
            _CHECKED.add(known)
            return True
        if self._cache is not None:
            path.unlink(missing_ok=True)
            return False
        raise BadInput(
            f"the shard {path} is not what its manifest says; remove {self._uri} and prepare the data again"
        )


def _decoded(data: bytes, mode: str, where: str) -> Tensor:
    """uint8 (C, H, W) of an encoded image; ``mode`` as in :class:`torchvision.io.ImageReadMode`.

    Raises:
        BadInput: it is no image, so that the shard is damaged.
    """
    # takes two seconds to load: not for the driver and Ray Train's controller, which know of images but see none
    from torchvision.io import ImageReadMode, decode_image

    try:
        return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode[mode])
    except (RuntimeError, ValueError) as error:
        text = str(error).split("\n", 1)[0][-100:]
        raise BadInput(f"an image of {where} cannot be decoded ({text}); prepare the data again") from None

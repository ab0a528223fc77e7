"""The page of ``agit data inspect --html``: counts, duplicates side by side, samples of every split."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader
from PIL import Image

from pipeline.data.format import manifest as manifests
from pipeline.data.read.card import card as data_card
from pipeline.data.read.reader import ShardImages
from pipeline.records import Manifest

_MOST_GROUPS = 24
_MOST_IN_GROUP = 6
_THUMBNAIL = 144


def page(uri: str, manifest: Manifest, samples: int) -> str:
    """Render the page, with all pictures embedded."""
    card = data_card(manifest, manifest.domain_names())
    environment = Environment(loader=PackageLoader("pipeline"), autoescape=True)
    splits = {split: _Split(uri, manifest, split) for split in sorted(manifest.splits, key=_order)}
    try:
        copies = manifest.duplicates
        pictured = [
            ("Leaks: test images that are also training images", manifest.leaks),
            ("Leaks that look the same", manifest.near_leaks),
            ("Equal files", copies.groups),
            ("Near copies", copies.near),
        ]
        return environment.get_template("data.html.j2").render(
            css=environment.loader.get_source(environment, "report.css")[0],  # type: ignore[union-attr]
            name=manifest.name,
            uri=uri,
            card=card,
            tiles=_tiles(manifest),
            sizes=[split.sizes() for split in splits.values()],
            pictured=[(title, _pictures(groups, splits)) for title, groups in pictured],
            grids=[
                (f"{row['name']}", split.sample(samples))
                for row, split in zip(card["splits"], splits.values(), strict=True)
            ],
        )
    finally:
        for split in splits.values():
            split.images.close()


def _order(split: str) -> tuple[bool, str]:
    return not split.startswith("train"), split


def _tiles(manifest: Manifest) -> list[tuple[str, str, str]]:
    totals, copies = manifest.totals, manifest.duplicates
    policy = "one of each kept" if copies.policy == "drop" else "reported, all kept"
    return [
        ("images", f"{totals['images']:,}", f"of {totals['files_in']:,} files"),
        ("shards", f"{totals['shards']:,}", f"{totals['bytes'] / 2**20:,.1f} MiB"),
        ("masks", f"{totals['masks']:,}", "carried along"),
        (
            "duplicate groups",
            f"{copies.exact_groups:,}",
            f"{policy}; {copies.near_groups:,} near copies",
        ),
        ("leaks", f"{len(manifest.leaks):,}", f"and {len(manifest.near_leaks):,} that look the same"),
        ("quarantined", f"{totals['quarantined']:,}", "with reasons below"),
    ]


class _Split:
    """A split's images by name, as thumbnails."""

    def __init__(self, uri: str, manifest: Manifest, split: str) -> None:
        self.images = ShardImages(uri, split, Path(), 0)
        index = manifests.read_index(uri, manifest, split, ["name", "source_width", "source_height"])
        self._names: pa.ChunkedArray = index["name"]
        self._sides = [np.asarray(index[name].to_numpy()) for name in ("source_width", "source_height")]

    def sizes(self) -> str:
        """Smallest, median and largest size of the originals."""
        width, height = self._sides
        if not len(width):
            return "none"
        order = np.argsort(width.astype(np.int64) * height, kind="stable")
        shown = [f"{width[i]} × {height[i]}" for i in order[[0, len(order) // 2, -1]]]
        return shown[0] if len(set(shown)) == 1 else f"{shown[0]} to {shown[2]}, median {shown[1]}"

    def sample(self, count: int) -> list[dict[str, str | None]]:
        """The first images, with their masks."""
        shown = []
        for i in range(min(count, len(self.images))):
            mask = self.images.mask(i)
            picture = None if mask is None else _data_uri(Image.fromarray(mask[0].numpy()), "PNG")
            shown.append({"name": self._names[i].as_py(), "data": self.thumbnail(i), "mask": picture})
        return shown

    def find(self, name: str) -> str | None:
        """Thumbnail of an image by name; None if the data set does not contain it."""
        row = self._names.index(name).as_py()
        return None if row < 0 else self.thumbnail(row)

    def thumbnail(self, index: int) -> str:
        with Image.open(io.BytesIO(self.images.encoded(index))) as image:
            return _data_uri(image, "JPEG")


def _pictures(groups: list[list[str]], splits: dict[str, _Split]) -> list[list[tuple[str, str]]]:
    """The first groups as (split/name, thumbnail), without groups that have no picture."""
    shown = []
    for group in groups[:_MOST_GROUPS]:
        members = [(label, *label.split("/", 1)) for label in group[:_MOST_IN_GROUP]]
        found = [(label, splits[split].find(name)) for label, split, name in members]
        shown.append([(label, data) for label, data in found if data is not None])
    return [group for group in shown if group]


def _data_uri(image: Image.Image, format: str) -> str:
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"

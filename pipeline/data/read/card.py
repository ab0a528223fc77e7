"""Data card: counts, duplicates, leaks and quarantined files, from the data's manifest."""

from __future__ import annotations

from typing import Any

from pipeline.records import Duplicates, Manifest, Split

_MOST_ENTRIES = 200
_SPLITS = {"trainA": "training, {a}", "trainB": "training, {b}", "testA": "test, {a}", "testB": "test, {b}"}


def card(manifest: Manifest, names: tuple[str, str]) -> dict[str, Any]:
    """Build the data card's context for the template.

    Args:
        manifest: of the prepared data; everything except ``splits`` may be missing.
        names: names of domain A and domain B.
    """
    found = manifest.splits
    splits = {name: found[name] for name in sorted(found, key=_order)}
    rows = [_split(name, split, names) for name, split in splits.items()]
    total = sum(row["rows"] for row in rows)
    copies = manifest.duplicates
    return {
        "lead": f"{total:,} images of {names[0]} and {names[1]}, stored at {_size(manifest)}.",
        "splits": rows,
        "blocks": [
            _block(
                "Quarantined",
                _reasons(splits, "quarantined"),
                "Every file could be used.",
                "{} did not take part.",
                ("file", "files"),
            ),
            _block(
                "Left out",
                [f"{entry['name']}: {entry['reason']}" for entry in manifest.left_out],
                "Nothing else lay beside the images.",
                "{} beside the images, such as texts, or masks of no image.",
                ("entry", "entries"),
            ),
            _block(
                "Duplicates",
                _groups(copies.groups),
                "No two files are equal.",
                f"{{}} of equal files ({_policy(copies)}).",
                ("group", "groups"),
                copies.exact_groups,
            ),
            _block(
                "Near copies",
                _groups(copies.near),
                "No two pictures look the same.",
                "{} of pictures that look the same.",
                ("group", "groups"),
                copies.near_groups,
            ),
            _block(
                "Leaks between training and test",
                _groups(manifest.leaks) + _groups(manifest.near_leaks, " (look the same)"),
                "No test image is among the training images.",
                "{} of a training and a test image: "
                + (
                    "the training image was left out."
                    if copies.policy == "drop"
                    else "the scores see something the model was trained on."
                ),
                ("pair", "pairs"),
            ),
            _block(
                "Noted",
                _reasons(splits, "notes"),
                "No image needed a remark.",
                "{} used, with a remark.",
                ("image", "images"),
            ),
        ],
        "facts": [
            (name, value)
            for name, value in (
                ("Name", manifest.name),
                ("Source", manifest.source),
                ("Prepared", manifest.created),
                ("Fingerprint", manifest.fingerprint),
            )
            if value
        ],
    }


def _split(name: str, split: Split, names: tuple[str, str]) -> dict[str, Any]:
    label = _SPLITS.get(name, name).format(a=names[0], b=names[1])
    quarantined = len(split.quarantined)
    return {
        "name": f"{label} ({name})",
        "files_in": split.rows + quarantined if split.files_in is None else split.files_in,
        "rows": split.rows,
        "masks": split.masks or "none",
        "quarantined": quarantined,
    }


def _order(name: str) -> tuple[int, str]:
    return (list(_SPLITS).index(name) if name in _SPLITS else len(_SPLITS), name)


def _size(manifest: Manifest) -> str:
    image, load = manifest.image_size, manifest.load_size
    if not image:
        return "their own size"
    cropped = f", training images at {load} px for random crops" if load and load != image else ""
    return f"{image} × {image} px{cropped}"


def _reasons(splits: dict[str, Split], part: str) -> list[str]:
    return [
        f"{name}/{entry.get('name', '?')}: {entry.get('reason', 'no reason given')}"
        for name, split in splits.items()
        for entry in getattr(split, part)
    ]


def _groups(groups: list[list[str]], remark: str = "") -> list[str]:
    return [" = ".join(group) + remark for group in groups]


def _policy(copies: Duplicates) -> str:
    return "one of each kept" if copies.policy == "drop" else "all kept"


def _block(
    title: str, entries: list[str], none: str, some: str, units: tuple[str, str], counted: int | None = None
) -> dict[str, Any]:
    """Section with a list of entries; ``counted``: their number if the manifest lists only the first ones."""
    count = max(len(entries), counted or 0)
    text = some.format(f"{count:,} {units[count != 1]}") if count else none
    shown = entries[:_MOST_ENTRIES]
    summary = "Show them" if count == len(shown) else f"Show the first {len(shown)}"
    return {"title": title, "text": text, "entries": shown, "summary": summary}

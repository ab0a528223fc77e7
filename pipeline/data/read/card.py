"""Data card: counts, duplicates, leaks and quarantined files, from the data's manifest."""

from __future__ import annotations

from typing import Any

_MOST_ENTRIES = 200
_SPLITS = {"trainA": "training, {a}", "trainB": "training, {b}", "testA": "test, {a}", "testB": "test, {b}"}


def card(manifest: dict[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    """Build the data card's context for the template.

    Args:
        manifest: manifest of the prepared data; every key except ``splits`` may be missing.
        names: names of domain A and domain B.
    """
    found = manifest.get("splits") or {}
    splits = {name: found[name] for name in sorted(found, key=_order)}
    rows = [_split(name, split, names) for name, split in splits.items()]
    total = sum(row["rows"] for row in rows)
    copies = manifest.get("duplicates") or {}
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
                [f"{entry['name']}: {entry['reason']}" for entry in manifest.get("left_out") or []],
                "Nothing else lay beside the images.",
                "{} beside the images, such as texts, or masks of no image.",
                ("entry", "entries"),
            ),
            _block(
                "Duplicates",
                _groups(copies.get("groups")),
                "No two files are equal.",
                f"{{}} of equal files ({_policy(copies)}).",
                ("group", "groups"),
                copies.get("exact_groups"),
            ),
            _block(
                "Near copies",
                _groups(copies.get("near")),
                "No two pictures look the same.",
                "{} of pictures that look the same.",
                ("group", "groups"),
                copies.get("near_groups"),
            ),
            _block(
                "Leaks between training and test",
                _groups(manifest.get("leaks")) + _groups(manifest.get("near_leaks"), " (look the same)"),
                "No test image is among the training images.",
                "{} of a training and a test image: "
                + (
                    "the training image was left out."
                    if copies.get("policy") == "drop"
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
                ("Name", manifest.get("name")),
                ("Source", manifest.get("source")),
                ("Prepared", manifest.get("created")),
                ("Fingerprint", manifest.get("fingerprint")),
            )
            if value
        ],
    }


def _split(name: str, split: dict[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    label = _SPLITS.get(name, name).format(a=names[0], b=names[1])
    rows = int(split.get("rows") or 0)
    quarantined = len(split.get("quarantined") or [])
    return {
        "name": f"{label} ({name})",
        "files_in": split.get("files_in", rows + quarantined),
        "rows": rows,
        "masks": split.get("masks") or "none",
        "quarantined": quarantined,
    }


def _order(name: str) -> tuple[int, str]:
    return (list(_SPLITS).index(name) if name in _SPLITS else len(_SPLITS), name)


def _size(manifest: dict[str, Any]) -> str:
    image, load = manifest.get("image_size"), manifest.get("load_size")
    if not image:
        return "their own size"
    cropped = f", training images at {load} px for random crops" if load and load != image else ""
    return f"{image} × {image} px{cropped}"


def _reasons(splits: dict[str, Any], part: str) -> list[str]:
    return [
        f"{name}/{entry.get('name', '?')}: {entry.get('reason', 'no reason given')}"
        for name, split in splits.items()
        for entry in split.get(part) or []
    ]


def _groups(groups: list[list[str]] | None, remark: str = "") -> list[str]:
    return [" = ".join(str(member) for member in group) + remark for group in groups or []]


def _policy(copies: dict[str, Any]) -> str:
    return "one of each kept" if copies.get("policy") == "drop" else "all kept"


def _block(
    title: str, entries: list[str], none: str, some: str, units: tuple[str, str], counted: int | None = None
) -> dict[str, Any]:
    """Section with a list of entries; ``counted``: their number if the manifest lists only the first ones."""
    count = max(len(entries), counted or 0)
    text = some.format(f"{count:,} {units[count != 1]}") if count else none
    shown = entries[:_MOST_ENTRIES]
    summary = "Show them" if count == len(shown) else f"Show the first {len(shown)}"
    return {"title": title, "text": text, "entries": shown, "summary": summary}

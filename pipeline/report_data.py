"""The data card: what went in, what came out, and what was set aside, from the data's manifest."""

from __future__ import annotations

from typing import Any

_MOST_ENTRIES = 200
_SPLITS = {"trainA": "training, {a}", "trainB": "training, {b}", "testA": "test, {a}", "testB": "test, {b}"}


def card(manifest: dict[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    """Counts, duplicates, leaks and quarantined files of prepared data, ready for the template.

    Args:
        manifest: of the prepared data; every part but ``splits`` may be missing.
        names: of domain A and domain B.
    """
    splits = manifest.get("splits") or {}
    rows = [_split(name, splits[name], names) for name in sorted(splits, key=_order)]
    total = sum(row["rows"] for row in rows)
    quarantined = [
        f"{entry.get('name', '?')} ({name}): {entry.get('reason', 'no reason given')}"
        for name in sorted(splits, key=_order)
        for entry in splits[name].get("quarantined") or []
    ]
    duplicates = _groups(manifest.get("duplicates"))
    leaks = _groups(manifest.get("leaks"))
    return {
        "lead": f"{total:,} images of {names[0]} and {names[1]}, stored at {_size(manifest)}.",
        "splits": rows,
        "blocks": [
            _block(
                "Quarantined",
                quarantined,
                "Every file could be read.",
                "{} could not be used and did not take part.",
                ("file", "files"),
            ),
            _block(
                "Duplicates",
                duplicates,
                "No two files hold the same picture.",
                "{} of files with the same content.",
                ("group", "groups"),
            ),
            _block(
                "Leaks between training and test",
                leaks,
                "No test image is among the training images.",
                "{} between training and test: the scores see something the model was trained on.",
                ("pair", "pairs"),
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


def _block(title: str, entries: list[str], none: str, some: str, units: tuple[str, str]) -> dict[str, Any]:
    count = len(entries)
    text = some.format(f"{count:,} {units[count != 1]}") if count else none
    shown = entries[:_MOST_ENTRIES]
    summary = "Show them" if count <= _MOST_ENTRIES else f"Show the first {_MOST_ENTRIES}"
    return {"title": title, "text": text, "entries": shown, "summary": summary}


def _groups(value: Any) -> list[str]:
    """One line per group, whether the manifest holds lists, objects or a mapping of them."""
    if isinstance(value, dict):
        value = value.get("groups") or [v for v in value.values() if isinstance(v, list | dict)]
    if not isinstance(value, list):
        return []
    return [_line(group) for group in value]


def _line(group: Any) -> str:
    if isinstance(group, dict):
        names = [_line(v) for v in group.values() if isinstance(v, list | dict | str)]
        return " = ".join(names)
    if isinstance(group, list | tuple):
        return " = ".join(_line(item) for item in group)
    return str(group)

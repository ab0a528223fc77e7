"""Outputs of ``agit translate``: names, resuming an earlier run, and protection against overwriting."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.inference.image_items import check_writable, mask_name, output_name
from pipeline.inference.inputs import IMAGES, READ_VIDEOS, VIDEOS, Inputs, Item, suffix_of

_LONGEST_NAME = 255
_LONGEST_PATH = 4000
"""Longest file name and path in bytes; the path leaves room for the name of a temporary file."""
JOURNAL = ".agit-translate.json"
"""File in the output folder that records the model, direction and input of its files, and whether it is complete."""


def single(source: str, output: str, suffixes: tuple[str, ...], masks: bool, overwrite: bool) -> str:
    """URI of the translation of a single file: the output itself, or a file in it if the output is a folder.

    Raises:
        BadInput: the output has the wrong kind of suffix, is the input itself, or exists.
    """
    suffix = "" if output.endswith("/") else suffix_of(output)
    named = suffix in suffixes
    if not named and suffix in (*IMAGES, *VIDEOS):
        theirs, ours = ("a video", "an image") if suffixes is IMAGES else ("an image", "a video")
        if suffix_of(source) not in (*IMAGES, *READ_VIDEOS):
            ours = "by its name no video"
        raise BadInput(
            f"{output} is the name of {theirs}, and {source} is {ours}; "
            f"end it with one of {', '.join(suffixes[:4])}, or with / to make it a folder"
        )
    name = storage.name(source)
    if suffixes is VIDEOS and suffix_of(name) not in VIDEOS:
        name = f"{name}.mp4"
    target = output if named else storage.join(output, name if suffixes is VIDEOS else output_name(name))
    if suffixes is IMAGES:
        check_writable(target)
    if _real(target) == _real(source):
        raise BadInput(f"the output {target} is the input itself; name another output")
    _refuse_file(os.path.dirname(target) if named else output)
    for uri in [target, *([mask_name(target)] if masks else [])]:
        if storage.exists(uri) and not overwrite:
            raise BadInput(f"{uri} exists; give another output or --overwrite")
    return target


@dataclass(frozen=True)
class Plan:
    """Work left for one input and output folder."""

    todo: list[tuple[Item, str]]
    """Items to translate, with the URIs of their translations."""
    skipped: int
    """Number of items finished by an earlier run."""
    refused: list[dict[str, str]]
    """``name`` and ``reason`` of items that cannot have an output."""
    journal: dict[str, Any]
    finished: list[dict[str, str]] | None
    """Failures of an earlier run that completed; None if there is no such run."""


def plan(
    found: Inputs, source: str, folder: str, masks: bool, identity: dict[str, Any], overwrite: bool
) -> Plan:
    """Compare the items with the contents of the output folder, and write the journal.

    Args:
        identity: model, direction and options of the translation; existing files count as finished only if the
            journal has the same ones.

    Raises:
        BadInput: a file would be overwritten, or the folder is inside the input or is a file.
    """
    source_path, folder_path = _real(source), _real(folder)
    if folder_path == source_path or folder_path.startswith(source_path.rstrip("/") + "/"):
        raise BadInput(f"the output {folder} is inside the input; give another output")
    _refuse_file(folder)

    def files(target: str) -> list[str]:
        return [target, mask_name(target)] if masks else [target]

    targets: dict[str, Item] = {}
    refused, names, folders = [], set[str](), set[str]()
    for item in found.items:
        target = storage.join(folder, output_name(item.name))
        above = set(_above(target, folder))
        if any(_too_long(file) for file in files(target)):
            refused.append({"name": item.name, "reason": "its name is too long for an output file"})
        elif names.isdisjoint([*files(target), *above]) and folders.isdisjoint(files(target)):
            targets[target] = item
            names.update(files(target))
            folders |= above
        else:
            refused.append({"name": item.name, "reason": "its translation would overwrite another image's"})
    existing = set(storage.list_(folder, recursive=True))
    journal_uri = storage.join(folder, JOURNAL)
    journal = {"format": 1, "input": source, **identity}
    previous = _journal(journal_uri) if journal_uri in existing else {}
    finished = previous.pop("failed", None)
    # with --overwrite, an interrupted run is resumed, but a finished one is done again
    resumed = previous == journal and not (overwrite and finished is not None)
    conflicts = [uri for target in targets for uri in files(target) if uri in existing]
    if conflicts and not resumed:
        if not overwrite:
            raise BadInput(
                f"{conflicts[0]} exists and comes from another model, direction, option or input; "
                "give another output or --overwrite"
            )
        # removed before the first translation: after an interruption, all existing files are from this run
        for uri in [journal_uri, *conflicts]:
            storage.remove(uri)
        existing -= set(conflicts)
    if targets:
        storage.write_json(journal_uri, journal)
    todo = [(item, target) for target, item in targets.items() if not existing.issuperset(files(target))]
    return Plan(todo, len(targets) - len(todo), refused, journal, finished if resumed else None)


def pack(folder: str, output: str) -> None:
    """Pack the finished translations of a folder into a zip at ``output``, and remove the folder."""
    start = len(storage.join(folder)) + 1
    with tempfile.TemporaryDirectory(prefix="agit-zip-") as scratch:
        packed = Path(scratch) / "out.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:  # images are compressed already
            for uri in storage.list_(folder, recursive=True):
                if storage.name(uri) != JOURNAL:
                    file.writestr(uri[start:], storage.read_bytes(uri))
        storage.upload_file(packed, output)
    storage.remove(folder)


def _journal(uri: str) -> dict[str, Any]:
    """An earlier run's journal; empty if it is damaged, and existing files then count as another run's."""
    try:
        found = storage.read_json(uri)
    except (ValueError, IsADirectoryError):
        return {}
    return found if isinstance(found, dict) else {}


def _above(target: str, folder: str) -> Iterator[str]:
    """The folders between a file and the output folder."""
    while len(target := target.rpartition("/")[0]) > len(folder):
        yield target


def _too_long(file: str) -> bool:
    parts = [os.fsencode(part) for part in file.split("/")]
    return max(map(len, parts)) > _LONGEST_NAME or len(os.fsencode(file)) > _LONGEST_PATH


def _refuse_file(folder: str) -> None:
    """Refuse a local output folder if it or one of its parents is a file; object storage has no such limit."""
    if storage.is_remote(folder):
        return
    path = storage.local_path(folder)
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not existing.is_dir():
        raise BadInput(f"the output {existing} is a file; give a folder")


def _real(uri: str) -> str:
    return uri.rstrip("/") if storage.is_remote(uri) else os.path.realpath(storage.local_path(uri))

"""Where translations go: names, what an earlier run has finished, and nothing overwritten unless asked for."""

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
"""Bytes that file systems take, with room for the name of an unfinished file."""
JOURNAL = ".agit-translate.json"
"""In the output folder: which model, direction and input its files belong to, and whether all are there."""


def single(source: str, output: str, suffixes: tuple[str, ...], masks: bool, overwrite: bool) -> str:
    """Where the translation of one file goes: the output itself, or a file in it when it is a folder."""
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
            raise BadInput(f"{uri} exists; name another output or allow it to be overwritten (--overwrite)")
    return target


@dataclass(frozen=True)
class Plan:
    todo: list[tuple[Item, str]]
    """Items still to be translated, and where to."""
    skipped: int
    """How many an earlier run has finished."""
    refused: list[dict[str, str]]
    journal: dict[str, Any]
    finished: list[dict[str, str]] | None
    """What a run that came to its end could not translate."""


def plan(
    found: Inputs, source: str, folder: str, masks: bool, identity: dict[str, Any], overwrite: bool
) -> Plan:
    """Compares the items with what the folder holds, and writes the journal.

    Args:
        identity: what the translations are made of; files of another one are not taken for finished ones.

    Raises:
        BadInput: a file would be overwritten, or the folder lies in the input or is a file.
    """
    inside, outside = _real(source), _real(folder)
    if outside == inside or outside.startswith(inside.rstrip("/") + "/"):
        raise BadInput(f"the output {folder} lies in the input; name another output")
    _refuse_file(folder)

    def files(target: str) -> list[str]:
        return [target, mask_name(target)] if masks else [target]

    targets: dict[str, Item] = {}
    refused, names, folders = [], set[str](), set[str]()
    for item in found.items:
        target = storage.join(folder, output_name(item.name))
        above = set(_above(target, folder))
        if any(_too_long(file) for file in files(target)):
            refused.append({"name": item.name, "reason": "its name is too long for a file beside it"})
        elif names.isdisjoint([*files(target), *above]) and folders.isdisjoint(files(target)):
            targets[target] = item
            names.update(files(target))
            folders |= above
        else:
            refused.append({"name": item.name, "reason": "another image's translation has its name"})
    there = set(storage.list_(folder, recursive=True))
    journal_uri = storage.join(folder, JOURNAL)
    journal = {"format": 1, "input": source, **identity}
    earlier = storage.read_json(journal_uri) if journal_uri in there else {}
    finished = earlier.pop("failed", None)
    # an interrupted run that overwrites goes on as well; a finished one starts again
    resumed = earlier == journal and not (overwrite and finished is not None)
    taken = [uri for target in targets for uri in files(target) if uri in there]
    if taken and not resumed:
        if not overwrite:
            raise BadInput(
                f"{taken[0]} exists and is not of this model, direction, options and input; "
                "name another output or allow it to be overwritten (--overwrite)"
            )
        # removed at once: should this run be interrupted, what is there is its own
        for uri in [journal_uri, *taken]:
            storage.remove(uri)
        there -= set(taken)
    if targets:
        storage.write_json(journal_uri, journal)
    todo = [(item, target) for target, item in targets.items() if not there.issuperset(files(target))]
    return Plan(todo, len(targets) - len(todo), refused, journal, finished if resumed else None)


def pack(folder: str, output: str) -> None:
    """The finished translations as one zip, which takes the folder's place."""
    start = len(storage.join(folder)) + 1
    with tempfile.TemporaryDirectory(prefix="agit-zip-") as scratch:
        packed = Path(scratch) / "out.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:  # images do not compress twice
            for uri in storage.list_(folder, recursive=True):
                if storage.name(uri) != JOURNAL:
                    file.writestr(uri[start:], storage.read_bytes(uri))
        storage.upload_file(packed, output)
    storage.remove(folder)


def _above(target: str, folder: str) -> Iterator[str]:
    """The folders between a file and the output folder."""
    while len(target := target.rpartition("/")[0]) > len(folder):
        yield target


def _too_long(file: str) -> bool:
    parts = [os.fsencode(part) for part in file.split("/")]
    return max(map(len, parts)) > _LONGEST_NAME or len(os.fsencode(file)) > _LONGEST_PATH


def _refuse_file(folder: str) -> None:
    """A local file cannot be a folder, nor hold one; an object may have the name of a prefix."""
    if storage.is_remote(folder):
        return
    path = storage.local_path(folder)
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise BadInput(f"the output {there} is a file; name a folder or another output")


def _real(uri: str) -> str:
    return uri.rstrip("/") if storage.is_remote(uri) else os.path.realpath(storage.local_path(uri))

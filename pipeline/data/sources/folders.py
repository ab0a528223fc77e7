"""Folders of images: which folder is which split, masks and the automatic split."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.litter import is_litter
from pipeline.data.sources import public
from pipeline.data.sources.listing import File, listing
from pipeline.data.sources.source import Entry, Source

_HASHING = 4
_FEWEST = 2
"""Test images of a domain that can be scored."""
_PORTION = 4096
_FEW = 8  # names to look up, at the price of a request each
_TEST = ("test", "testing", "val", "valid", "validation", "eval", "dev")
_TRAIN = ("train", "training")


def open_folder(uri: str, masks: str | None, test_fraction: float) -> Source:
    """``trainA``, ``trainB`` and optionally ``testA``, ``testB``, ``valA``, ``valB`` (or ``A`` and ``B``) below one
    folder; two folders of any names, of which the first in alphabetical order is A; or ``train`` and optionally
    ``test``, ``val`` with two classes below each, as of ImageFolder and Hugging Face. What is called validation is
    test data here.

    Masks lie in ``masks/<split>/`` below it (or under the folder's own name), or below ``masks`` if that is given,
    under the image's name with any extension. Without test folders a share of the images is held out, chosen by
    their contents alone.

    Raises:
        BadInput: the folder is missing or holds neither layout, or masks of which none belongs to an image.
    """
    children = {storage.name(child).lower(): child for child in _children(uri)}
    train = {
        d: next(
            (children[n] for n in (f"train{d}".lower(), f"train_{d}".lower(), d.lower()) if n in children),
            None,
        )
        for d in "AB"
    }
    classes = next((children[n] for n in _TRAIN if n in children), None)
    if not any(train.values()) and classes is not None:
        return _of_classes(uri, classes, children, masks or children.get("masks"), test_fraction)
    if not any(train.values()) and (pair := _pair(children)):
        source = open_two_folders(pair[0], pair[1], masks or children.get("masks"), test_fraction)
        source.description = uri
        return source
    if train["A"] is None or train["B"] is None:
        lacking = " and ".join(f"train{d}" for d in "AB" if train[d] is None)
        found = ", ".join(sorted(map(storage.name, children.values()))[:8]) or "nothing"
        raise BadInput(
            f"{uri} has no folder {lacking} (it holds {found}); "
            "put the images of each domain into a folder of its own, such as trainA and trainB, "
            "or give two folders as 'path/to/A,path/to/B'"
        )
    folders = {f"train{d}": [str(train[d])] for d in "AB"}
    for d in "AB":
        names = [f"{kind}{joint}{d}".lower() for kind in _TEST for joint in ("", "_")]
        if found_tests := [children[name] for name in names if name in children]:
            folders[f"test{d}"] = found_tests
    mask_root = masks or children.get("masks")
    return from_folders(uri, folders, mask_root, test_fraction)


def _of_classes(
    uri: str, train: str, children: dict[str, str], masks: str | None, test_fraction: float
) -> Source:
    """``train/<class>`` and, if there are any, ``test/<class>``, ``val/<class>``: the two classes are the domains."""
    roots = [train, *(children[name] for name in _TEST if name in children)]
    below = {
        root: {
            storage.name(child): child
            for child in storage.list_(root)
            if not is_litter(storage.name(child)) and storage.is_folder(child)
        }
        for root in roots
    }
    classes = sorted(below[train], key=lambda name: (name.casefold(), name))
    if len(classes) != 2:
        found = ", ".join(classes[:8]) or "no folder"
        raise BadInput(
            f"{train} must hold one folder for each of two classes, which become the domains; it holds {found}; "
            "or give two folders as 'path/to/A,path/to/B'"
        )
    for root in roots:
        if others := sorted(below[root].keys() - classes):
            raise BadInput(
                f"{root} holds a class '{others[0]}' that {train} does not have; correct or remove it"
            )
    folders = {
        f"{split}{letter}": places
        for split, group in (("train", roots[:1]), ("test", roots[1:]))
        for letter, name in zip("AB", classes, strict=True)
        if (places := [below[root][name] for root in group if name in below[root]])
    }
    source = from_folders(uri, folders, masks, test_fraction)
    source.names = dict(zip("ab", classes, strict=True))
    return source


def _pair(children: dict[str, str]) -> list[str]:
    """The two folders besides ``masks``; nothing when there are more or fewer."""
    named = [
        child
        for name, child in children.items()
        if not is_litter(name) and name not in {"masks", *_TRAIN, *_TEST}
    ]
    found = [child for child in named if storage.is_folder(child)] if len(named) <= _FEW else []
    return sorted(found) if len(found) == 2 else []


def open_two_folders(a: str, b: str, masks: str | None, test_fraction: float) -> Source:
    """Any two folders as domains A and B, with an automatic test split; masks below ``masks/A``, ``masks/B``."""
    source = from_folders(f"{a},{b}", {"trainA": [a], "trainB": [b]}, masks, test_fraction)
    names = {"a": storage.name(a) or "A", "b": storage.name(b) or "B"}
    if names["a"] != names["b"]:
        source.names = names
    return source


def from_folders(
    description: str, folders: dict[str, list[str]], mask_root: str | None, test_fraction: float
) -> Source:
    """Entries of each split, whose images lie in one folder or several."""
    splits: dict[str, list[Entry]] = {}
    every = [folder for places in folders.values() for folder in places]
    remote = any(map(storage.is_remote, every))
    called = Counter(map(storage.name, every))
    fitting: dict[str, set[str]] = {}
    for split, places in folders.items():
        splits[split] = []
        for folder in places:
            masks: dict[str, File] = {}
            own = storage.name(folder)
            for candidate in (split, split[-1], *([own] if called[own] == 1 else [])) if mask_root else ():
                found = listing(storage.join(str(mask_root), candidate))
                masks = {_stem(f.relative): f for f in found} | masks
                fitting.setdefault(candidate, {f.relative for f in found})
            files = listing(folder)
            for candidate, names in fitting.items():
                stems = {_stem(f.relative) for f in files} if candidate in (split, split[-1], own) else set()
                fitting[candidate] = {name for name in names if _stem(name) not in stems}
            # of several folders the name says which
            before = f"{own}/" if len(places) > 1 else ""
            splits[split] += [
                replace(entry, name=f"{before}{entry.name}") for entry in _entries(files, masks)
            ]
    if mask_root and not any(e.mask for entries in splits.values() for e in entries) and listing(mask_root):
        raise BadInput(
            f"no mask in {mask_root} belongs to an image of {description}: masks lie in folders called as those of the "
            "images, such as trainA and trainB (or A and B), under the images' names; correct or remove them"
        )
    left = [
        (f"{storage.name(str(mask_root))}/{place}/{name}", "the mask belongs to no image")
        for place, names in sorted(fitting.items())
        for name in sorted(names)
    ]
    return Source(description, with_test(splits, test_fraction), remote=remote, left_out=left)


def with_test(splits: dict[str, list[Entry]], fraction: float) -> dict[str, list[Entry]]:
    """Holds out a share of the training entries of each domain that has no test entries.

    The contents decide: the choice survives renaming, adding, removing and moving files (also between a disk and
    object storage), and copies of one picture always fall on the same side.
    """
    result = dict(splits)
    for domain in "AB":
        train, test = f"train{domain}", f"test{domain}"
        if splits.get(test) or not splits.get(train):
            result.setdefault(test, [])
            continue
        with ThreadPoolExecutor(_HASHING) as pool:
            ranks = dict(zip((e.name for e in splits[train]), pool.map(_rank, splits[train]), strict=True))
        ranked = sorted(splits[train], key=lambda entry: (ranks[entry.name], entry.name))
        held = [entry for entry in ranked if ranks[entry.name] < fraction * 2**64]
        if len(held) < _FEWEST:  # a handful of images: as many as can be scored, as long as some are left
            held = ranked[: min(_FEWEST, len(ranked) - 1)]
        names = {entry.name for entry in held}
        result[test] = sorted(held, key=lambda entry: entry.name)
        result[train] = [entry for entry in splits[train] if entry.name not in names]
    return result


def _entries(files: list[File], masks: dict[str, File]) -> list[Entry]:
    def entry(file: File) -> Entry:
        mask = masks.get(_stem(file.relative))
        digest = file.digest() + (f"+{mask.digest()}" if mask else "")
        return Entry(file.relative, file.readable, mask.readable if mask else None, digest)

    entries: list[Entry] = []
    with ThreadPoolExecutor(_HASHING) as pool:
        for start in range(0, len(files), _PORTION):  # a kilobyte for every file that waits
            entries += pool.map(entry, files[start : start + _PORTION])
    return entries


def _rank(entry: Entry) -> int:
    """A number from the MD5 of the image, of which alone object storage says it without a download."""
    known = entry.image.known_md5()
    try:
        known = known or hashlib.md5(entry.image.read(), usedforsecurity=False).hexdigest()
    except OSError:
        known = hashlib.md5(entry.digest.encode(), usedforsecurity=False).hexdigest()  # for the quarantine
    return int(known[:16], 16)


def no_folder(text: str) -> BadInput:
    """Why what ``data.source`` names cannot be opened as a folder of this machine."""
    if storage.local_path(text).exists():
        return BadInput(
            f"{text} is no folder, nor by its name a zip, tar, Parquet or CSV file; give one of these in data.source"
        )
    near = difflib.get_close_matches(text, public.NAMES, 1)
    hint = (
        f"did you mean the public set '{near[0]}'?" if near else "give the path of the images in data.source"
    )
    return BadInput(f"there is no folder {text}; {hint}")


def _children(uri: str) -> Iterable[str]:
    if not storage.is_remote(uri) and not storage.local_path(uri).is_dir():
        raise no_folder(uri)
    found = storage.list_(uri)
    if not found and storage.is_remote(uri):
        raise BadInput(f"there is nothing at {uri}; give the prefix of the images in data.source")
    return found


def _stem(relative: str) -> str:
    return str(PurePosixPath(relative).with_suffix(""))

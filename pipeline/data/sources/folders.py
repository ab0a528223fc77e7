"""Folder sources: layouts, masks, and the automatic test split."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.litter import SIDECAR, is_litter, is_sidecar
from pipeline.data.sources import public
from pipeline.data.sources.listing import CIRCLE, File, count_files, listing
from pipeline.data.sources.source import Entry, Source, Unreachable, distinct

_HASHING = 4
_FEWEST = 2
"""Smallest number of test images per domain that can be scored."""
_UNREADABLE = ("unreadable:", "unreachable:", "empty")
_PORTION = 4096
_MOST_COUNTED = 10_000
_FEW = 8  # names to look up; each costs a request
TEST = ("test", "testing", "val", "valid", "validation", "eval", "dev")
TRAIN = ("train", "training")
_JOINTS = ("", "_", "-", " ")
"""Between split and domain, as in ``train_A``."""


def open_folder(
    uri: str, masks: str | None, test_fraction: float, lost: dict[str, str] | None = None
) -> Source:
    """Open a folder in one of four layouts.

    - ``trainA``, ``trainB`` (or ``A``, ``B``) and optionally ``testA``, ``testB``, ``valA``, ``valB``;
    - two folders with any names, the first in alphabetical order being A;
    - ``train`` and optionally ``test``, ``val`` with two class folders each, as for ImageFolder and Hugging Face;
    - two class folders with ``train`` and ``test`` each.

    Case is ignored. Validation images count as test images. Masks are in ``masks/<split>/`` (or under the image
    folder's name), or in the folder given as ``masks``, with the image's name and any extension. Without test folders,
    a share of the images is held out, selected by content.

    Args:
        lost: local paths under ``uri`` that could not be unpacked, with reasons.

    Raises:
        BadInput: the folder is missing or has no such layout, or none of the masks belongs to an image.
    """
    children = _children(uri)
    train = {d: _train_of(children, d) for d in "AB"}
    classes = _one_of(children, *TRAIN)
    mask_root = masks or _one_of(children, "masks")
    if not any(train.values()) and classes is not None:
        folders, names = _of_classes(classes, children)
    elif not any(train.values()) and (pair := _pair(children)):
        folders, names = _of_pair(*pair), _names(*pair)
    elif train["A"] is None or train["B"] is None:
        lacking = " and ".join(f"train{d}" for d in "AB" if train[d] is None)
        found = ", ".join(sorted(map(storage.name, children))[:8]) or "nothing"
        raise BadInput(
            f"{uri} has no folder {lacking} (it holds {found}); "
            "put the images of each domain into a separate folder, such as trainA and trainB, "
            "or give two folders as 'path/to/A,path/to/B'"
        )
    else:
        a, b = train["A"], train["B"]
        plain = storage.name(a).upper() == "A" and storage.name(b).upper() == "B"
        folders, names = _of_pair(a, b) if plain else {"trainA": [a], "trainB": [b]}, {}
        for d in "AB":
            if found_tests := [
                place
                for kind in TEST
                for joint in _JOINTS
                if (place := _one_of(children, f"{kind}{joint}{d}"))
            ]:
                folders[f"test{d}"] = [*folders.get(f"test{d}", []), *found_tests]
    source = from_folders(uri, folders, mask_root, test_fraction, lost)
    source.names = names or source.names
    read = [*(place for group in folders.values() for place in group), *([mask_root] if mask_root else [])]
    source.left_out += beside(uri, read)
    for path, reason in (lost or {}).items():
        if not any(path.startswith(f"{_place(place)}/") for place in read):
            name = storage.as_text(path[len(_place(uri)) + 1 :])
            source.left_out.append((name, f"cannot be read: {reason}"))
    return source


def open_two_folders(a: str, b: str, masks: str | None, test_fraction: float) -> Source:
    """Open any two folders as domains A and B, split by ``train`` and ``test`` subfolders or else automatically, with
    masks in ``masks/A``, ``masks/B``."""
    folders = _of_pair(a, b)
    source = from_folders(f"{a},{b}", folders, masks, test_fraction)
    source.names = _names(a, b) or source.names
    for root, letter in ((a, "A"), (b, "B")):
        source.left_out += beside(root, [*folders[f"train{letter}"], *folders.get(f"test{letter}", [])])
    return source


def _of_pair(a: str, b: str) -> dict[str, list[str]]:
    """Folders per split for two domain folders, with or without ``train`` and ``test`` subfolders."""
    folders: dict[str, list[str]] = {}
    for letter, root in (("A", a), ("B", b)):
        if storage.is_remote(root):  # probe for the names, because listing would list all images once more
            inside = [storage.join(root, name) for name in (*TRAIN, *TEST)]
        else:
            inside = [child for child in _children(root) if storage.name(child).lower() in {*TRAIN, *TEST}]
        inside = [place for place in inside if storage.is_folder(place)]
        train = _one_of(inside, *TRAIN)
        tests = [place for name in TEST if (place := _one_of(inside, name))] if train else []
        folders[f"train{letter}"] = [train or root]
        folders |= {f"test{letter}": tests} if tests else {}
    return folders


def _of_classes(train: str, children: list[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Folders per split and domain names for ``train/<class>`` and optional ``test/<class>``, ``val/<class>``."""
    roots = [train, *(place for name in TEST if (place := _one_of(children, name)))]
    below = {root: [child for child in _children(root) if storage.is_folder(child)] for root in roots}
    classes = sorted(map(storage.name, below[train]), key=lambda name: (name.casefold(), name))
    if len(classes) != 2:
        found = ", ".join(classes[:8]) or "no folder"
        raise BadInput(
            f"{train} must hold one folder for each of two classes, which become the domains; it holds {found}; "
            "or give two folders as 'path/to/A,path/to/B'"
        )
    known = {name.casefold() for name in classes}
    for root in roots:
        if others := [name for name in map(storage.name, below[root]) if name.casefold() not in known]:
            raise BadInput(
                f"{root} holds a class '{others[0]}' that {train} does not have; correct or remove it"
            )
    folders = {
        f"{split}{letter}": places
        for split, group in (("train", roots[:1]), ("test", roots[1:]))
        for letter, name in zip("AB", classes, strict=True)
        if (places := [place for root in group if (place := _one_of(below[root], name))])
    }
    return folders, dict(zip("ab", classes, strict=True))


def holds_domains(children: list[str]) -> bool:
    """Whether one of a folder's entries is a training folder of domain A or B."""
    return any(_train_of(children, d) for d in "AB")


def _train_of(children: list[str], domain: str) -> str | None:
    return _one_of(children, *(f"train{joint}{domain}" for joint in _JOINTS), domain)


def _one_of(children: list[str], *names: str) -> str | None:
    """The child with the first of these names that exists, ignoring case; None if there is none.

    Raises:
        BadInput: several children differ only in case.
    """
    for name in names:
        found = [child for child in children if storage.name(child).casefold() == name.casefold()]
        if len(found) > 1:
            raise BadInput(
                f"{found[0]} and {storage.name(found[1])} differ in upper and lower case only; rename one of them"
            )
        if found:
            return found[0]
    return None


def _pair(children: list[str]) -> list[str]:
    """The two folders other than ``masks`` and test folders; empty if there are not exactly two, or one is a complete
    data set."""
    tests = {f"{kind}{joint}{d}" for kind in TEST for joint in _JOINTS for d in "ab"}
    named = [
        child for child in children if storage.name(child).lower() not in {"masks", *TRAIN, *TEST, *tests}
    ]
    found = [child for child in named if storage.is_folder(child)] if len(named) <= _FEW else []
    sets = any(storage.is_folder(storage.join(child, "trainA")) for child in found)
    return sorted(found) if len(found) == 2 and not sets else []


def _names(a: str, b: str) -> dict[str, str]:
    names = {"a": storage.name(a) or "A", "b": storage.name(b) or "B"}
    return names if names["a"] != names["b"] else {}


def beside(root: str, used: list[str]) -> list[tuple[str, str]]:
    """Unused files and folders, with reasons, next to the used folders and on the path to them."""
    left: list[tuple[str, str]] = []
    read = set(map(_place, used))
    if _place(root) in read:
        return left
    for child in _children(root):
        if _place(child) in read:
            continue
        if any(place.startswith(f"{_place(child)}/") for place in read):
            left += [(f"{storage.name(child)}/{name}", reason) for name, reason in beside(child, used)]
        elif storage.is_remote(child) or not storage.local_path(child).is_dir():
            left.append((storage.name(child), "lies beside the folders that are read"))
        else:
            count = count_files(child, _MOST_COUNTED)
            number = f"{count} or more" if count == _MOST_COUNTED else str(count)
            if not os.access(child, os.R_OK | os.X_OK):
                left.append((f"{storage.name(child)}/", "is none of the folders that are read, nor readable"))
            elif count:
                why = f"is none of the folders that are read ({number} files)"
                left.append((f"{storage.name(child)}/", why))
    return left


def _place(uri: str) -> str:
    return uri.rstrip("/") if storage.is_remote(uri) else str(storage.local_path(uri))


def from_folders(
    description: str,
    folders: dict[str, list[str]],
    mask_root: str | None,
    test_fraction: float,
    lost: dict[str, str] | None = None,
) -> Source:
    """Build a source from one or several image folders per split; ``lost`` as in :func:`open_folder`."""
    lost = lost or {}
    splits: dict[str, list[Entry]] = {}
    left: list[tuple[str, str]] = []
    every = [folder for places in folders.values() for folder in places]
    called = Counter(map(storage.name, every))
    masks = _Masks(mask_root, lost)
    _refuse_shared(folders)
    for split, places in folders.items():
        splits[split] = []
        for folder in places:
            own = storage.name(folder)
            # with several folders, the folder's name is part of the entry's name: test/, val/; or test/cat/, val/cat/
            if len(places) == 1:
                before = ""
            elif len({storage.name(place) for place in places}) == len(places):
                before = f"{own}/"
            else:
                before = f"{storage.name(folder.rstrip('/').rpartition('/')[0])}/{own}/"
            files = []
            for file in listing(folder, lost):
                if why := SIDECAR if is_sidecar(file.relative) else _circle(file):
                    left.append((f"{own}/{file.relative}", why))
                else:
                    files.append(file)
            under = (
                split,
                split[-1],
                *([own] if called[own] == 1 else []),
                folder[len(description) :].strip("/"),
            )
            entries = _entries(files, masks.of(under, files))
            splits[split] += [replace(entry, name=f"{before}{entry.name}") for entry in entries]
    if masks.files and not any(e.mask for entries in splits.values() for e in entries):
        raise BadInput(
            f"no mask in {mask_root} belongs to an image of {description}: masks lie in folders called as those of the "
            "images, such as trainA and trainB (or A and B), under the images' names; correct or remove them"
        )
    left += [(f"{storage.name(str(mask_root))}/{name}", reason) for name, reason in masks.left()]
    splits = {split: distinct(entries) for split, entries in splits.items()}
    source = Source(description, with_test(splits, test_fraction), remote=any(map(storage.is_remote, every)))
    source.left_out = left
    return source


def _circle(file: File) -> str:
    return CIRCLE if isinstance(file.readable, Unreachable) and file.readable.reason == CIRCLE else ""


def _refuse_shared(folders: dict[str, list[str]]) -> None:
    """Refuse folders that belong to both domains, or of which one lies in the other.

    Raises:
        BadInput: there are such folders.
    """
    a, b = ([_real(place) for split in folders if split[-1] == d for place in folders[split]] for d in "AB")
    for one in a:
        for other in b:
            if f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"):
                shared = min(one, other, key=len)
                raise BadInput(f"images of both domains lie in {shared}; give each domain its own folder")


def _real(uri: str) -> str:
    return uri.rstrip("/") if storage.is_remote(uri) else str(storage.local_path(uri).resolve())


class _Masks:
    """The files under a folder of masks, with a record of the used ones."""

    def __init__(self, root: str | None, lost: dict[str, str]) -> None:
        found = listing(root, lost) if root else []
        self.files = {file.relative: file for file in found if not is_sidecar(file.relative)}
        self._text = [file.relative for file in found if is_sidecar(file.relative)]
        self._used: set[str] = set()

    def of(self, places: tuple[str, ...], images: list[File]) -> dict[str, File]:
        """Masks by the images' names without extension; earlier ``places`` take precedence."""
        stems = {_stem(file.relative) for file in images}
        masks: dict[str, File] = {}
        for place in dict.fromkeys(place for place in places if place):
            here = {
                stem: file
                for name, file in self.files.items()
                if name.startswith(f"{place}/") and (stem := _stem(name[len(place) + 1 :])) in stems
            }
            masks = here | masks
            self._used.update(file.relative for file in here.values())
        return masks

    def left(self) -> list[tuple[str, str]]:
        """Unused files, with reasons."""
        unused = sorted(self.files.keys() - self._used)
        return [(name, "the mask belongs to no image") for name in unused] + [
            (name, SIDECAR) for name in self._text
        ]


def with_test(splits: dict[str, list[Entry]], fraction: float) -> dict[str, list[Entry]]:
    """Hold out a share of the training entries of each domain that has no test entries.

    Entries are selected by content: the selection is stable when files are renamed, added, removed or moved (also
    between disk and object storage), and duplicates always fall on the same side.
    """
    result = dict(splits)
    for domain in "AB":
        train, test = f"train{domain}", f"test{domain}"
        if splits.get(test) or not splits.get(train):
            result.setdefault(test, [])
            continue
        with ThreadPoolExecutor(_HASHING) as pool:
            ranks = dict(zip((e.name for e in splits[train]), pool.map(_rank, splits[train]), strict=True))
        readable = [entry for entry in splits[train] if not entry.digest.startswith(_UNREADABLE)]
        ranked = sorted(readable or splits[train], key=lambda entry: (ranks[entry.name], entry.name))
        held = [entry for entry in ranked if ranks[entry.name] < fraction * 2**64]
        if (
            len(held) < _FEWEST
        ):  # few images: hold out enough for scoring, but leave at least one for training
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
        for start in range(0, len(files), _PORTION):  # limits the queue: a kilobyte per pending file
            entries += pool.map(entry, files[start : start + _PORTION])
    return entries


def _rank(entry: Entry) -> int:
    """Rank of an entry from its image's MD5, the only hash that object storage provides without a download."""
    known = entry.image.known_md5()
    try:
        known = known or hashlib.md5(entry.image.read(), usedforsecurity=False).hexdigest()
    except OSError:
        known = hashlib.md5(entry.digest.encode(), usedforsecurity=False).hexdigest()  # unreadable
    return int(known[:16], 16)


def no_folder(text: str) -> BadInput:
    """Error for a ``data.source`` that is not a local folder."""
    if storage.local_path(text).exists():
        return BadInput(
            f"{text} is no folder, nor by its name a zip, tar, Parquet or CSV file; give one of these in data.source"
        )
    near = difflib.get_close_matches(text, public.NAMES, 1)
    hint = (
        f"did you mean the public set '{near[0]}'?" if near else "give the path of the images in data.source"
    )
    return BadInput(f"there is no folder {text}; {hint}")


def _children(uri: str) -> list[str]:
    """Entries of a folder, without hidden and system files."""
    if not storage.is_remote(uri) and not storage.local_path(uri).is_dir():
        raise no_folder(uri)
    found = storage.list_(uri)
    if not found and storage.is_remote(uri):
        raise BadInput(f"there is nothing at {uri}; give the prefix of the images in data.source")
    return [child for child in found if not is_litter(storage.name(child))]


def _stem(relative: str) -> str:
    return str(PurePosixPath(relative).with_suffix(""))

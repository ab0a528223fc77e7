"""Export of a model to ONNX, ``torch.export``, safetensors or the Hugging Face Hub, verified before it is published.

Every file is compared with the PyTorch model on images, at their own size and at a second one, before it is written
to the output. A folder also receives the model card and, last, ``export.json``.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from agit_core import checkpoint, export, model_folder
from agit_core.errors import BadInput
from agit_core.model_folder import Model
from pipeline import storage
from pipeline.inference import hub, model_card
from pipeline.inference.check_images import CheckImages, choose
from pipeline.records import Evaluation

FORMATS = ("onnx", "torch-export", "safetensors", "hub")
MANIFEST = "export.json"
TOLERANCE = 1e-3
"""Default tolerance on the output's [-1, 1] and the mask's [0, 1]: an eighth of a grey level."""
COUNT = 20
"""Default number of images per direction for the check."""
_SUFFIXES = {**export.SUFFIXES, "safetensors": ".safetensors", "hub": ".safetensors"}
_FOLDERS = ("safetensors", "hub")
"""Formats that are a model folder with both directions."""
Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class _Target:
    """Output of an export: a folder, or one file with one direction."""

    uri: str
    directions: tuple[str, ...]
    is_file: bool

    @staticmethod
    def of(uri: str, file_format: str, direction: str | None, model: Model) -> _Target:
        suffix = PurePosixPath(storage.name(uri)).suffix.lower()
        if suffix not in _SUFFIXES.values():
            return _Target(uri, (direction,) if direction else model.directions, False)
        if suffix != _SUFFIXES[file_format] or file_format in _FOLDERS:
            raise BadInput(
                f"{uri} does not fit --format {file_format}: give a folder"
                + ("" if file_format in _FOLDERS else f" or a name in {_SUFFIXES[file_format]}")
            )
        return _Target(uri, (direction or model.directions[0],), True)


def run(
    model_uri: str,
    output: str,
    file_format: str,
    *,
    direction: str | None = None,
    check: str | None = None,
    count: int = COUNT,
    tolerance: float = TOLERANCE,
    threshold: float | None = None,
    overwrite: bool = False,
    push: str | None = None,
    private: bool = False,
    progress: Progress = lambda event: None,
) -> dict[str, Any]:
    """Export a model and check it against the PyTorch model.

    Args:
        output: a folder (receives ``a2b.onnx``, ``b2a.onnx``, ``README.md``, ``export.json``; for safetensors, a
            model folder; for hub, a repository of the Hugging Face Hub), or one file ending in ``.onnx`` or
            ``.pt2``, which holds one direction.
        direction: export only this direction; default: both, or ``a2b`` for a single file.
        check: folder of images for the check; default: the model's test images, else generated ones.
        count: images per direction.
        tolerance: largest allowed difference from the PyTorch model; above it, nothing is written.
        threshold: keep source pixels where the attention is below this; default: the model's threshold.
        push: repository, ``USER/REPO``, to publish a hub export to; created ``private`` or not.

    Returns:
        ``ok``, ``model``, ``format``, ``output``, ``files`` (URIs), ``worst`` (largest difference, on [-1, 1]),
        ``worst_grey_levels``, ``worst_mask``, ``tolerance``, ``checks`` per direction and, if pushed, the
        commit's URL (``pushed``).

    Raises:
        BadInput: no model there; the output exists, is the model itself, or does not fit the format; no access
            to the Hub's repository.
        RunFailed: the Hub does not answer; the folder has been written.
    """
    if push is not None and file_format != "hub":
        raise BadInput("--push is for --format hub")
    repo = None if push is None else hub.check_name(push)
    model_uri = model_folder.resolve(model_uri)
    trained = model_folder.read(model_uri)
    model = trained.with_threshold(threshold)
    target = _Target.of(output, file_format, direction, model)
    if _same(target.uri, model_uri):
        raise BadInput(f"{target.uri} is the model itself; give another output")
    _refuse_existing(target, overwrite)
    # the stored scores do not apply with another threshold
    scores = model_card.evaluation_of(model_uri) if model.method == trained.method else Evaluation()
    with tempfile.TemporaryDirectory(prefix="agit-export-") as name:
        folder = Path(name)
        if file_format == "safetensors":
            _write_folder(model, scores, folder)
        elif file_format == "hub":
            _write_hub_folder(model, scores, folder, repo)
        checks = {}
        for one in target.directions:
            images = choose(model, one, check, count)
            path = folder / f"{one}{_SUFFIXES[file_format]}"
            progress({"message": f"{one}: writing", "done": 0, "total": 2 * len(images.images)})
            if file_format in _FOLDERS:
                again = export.OneDirection(model_folder.read(folder), one).eval()
                runner: export.Run = torch.no_grad()(again.forward)
            else:
                export.write(model, one, file_format, path)
                runner = export.load(path, file_format)
            checks[one] = _check(model, one, runner, images, progress)
        result = _result(model, file_format, checks, tolerance)
        if file_format not in _FOLDERS:
            card = model_card.render(model, scores, result, model_card.manifest_of(model))
            (folder / model_card.FILE).write_text(card, encoding="utf-8")
        files = _publish(folder, target, model, result) if result["ok"] else []
        answer = result | {"output": output, "files": files}
        if repo is not None and files:
            progress({"message": f"pushing to {repo}"})
            answer["pushed"] = hub.push(folder, repo, private, f"{model.name}, SHA-256 {model.digest[:12]}")
    return answer


def _check(
    model: Model, direction: str, runner: export.Run, images: CheckImages, progress: Progress
) -> dict[str, Any]:
    measure = export.compare(model, direction)
    native, resized = list(images.images), images.resized()
    differences, done = [], 0
    for batch in [*native, *resized]:
        differences.append(measure(batch, runner))
        done += len(batch)
        progress({"message": f"{direction}: comparing", "done": done, "total": 2 * len(native)})
    return {
        "images": len(native),
        "source": images.source,
        "sizes": _sizes(native),
        "other_sizes": _sizes(resized),
        "worst": max(d.output for d in differences[: len(native)]),
        "worst_other_size": max(d.output for d in differences[len(native) :]),
        "worst_mask": max(d.mask for d in differences),
        "undecided_pixels": sum(d.undecided for d in differences),
    }


def _sizes(batches: list[torch.Tensor]) -> list[str]:
    """Distinct sizes as ``WIDTHxHEIGHT``, sorted."""
    return sorted({f"{batch.shape[3]}x{batch.shape[2]}" for batch in batches})


def _result(
    model: Model, file_format: str, checks: dict[str, dict[str, Any]], tolerance: float
) -> dict[str, Any]:
    worst = max(max(c["worst"], c["worst_other_size"]) for c in checks.values())
    mask = max(c["worst_mask"] for c in checks.values())
    result = {
        "ok": max(worst, mask) <= tolerance,
        "model": {"name": model.name, "sha256": model.digest},
        "format": file_format,
        "opset": export.OPSET if file_format == "onnx" else None,
        "worst": worst,
        "worst_grey_levels": worst * 127.5,
        "worst_mask": mask,
        "tolerance": tolerance,
        "checks": checks,
    }
    return storage.finite(result)  # infinite differences (outputs of another shape, NaN) become None


def _write_folder(model: Model, scores: Evaluation, folder: Path) -> None:
    """Write a model folder with averaged generators in place, no optimiser state, model card and scores."""
    card = model_card.render(model, scores, manifest=model_card.manifest_of(model))
    extra = {model_card.FILE: card.encode()}
    if scores.metrics:
        extra[model_card.SCORES] = json.dumps(scores.plain(), indent=1).encode()
    model_folder.write(
        folder, model.name, model.method, model.image_size, model.weights, model.lineage, extra
    )
    if not (folder / "networks.safetensors").is_file():
        raise BadInput("--format safetensors needs the package safetensors: pip install safetensors")


def _write_hub_folder(model: Model, scores: Evaluation, folder: Path, repo: str | None) -> None:
    """The model folder as a repository of the Hub; nothing in it names a place of the machine that trained it."""
    public = replace(model, lineage=hub.shown_lineage(model))
    shown = hub.shown_scores(scores)
    card = model_card.render(public, shown, manifest=model_card.manifest_of(model), repo=repo)
    extra = {model_card.FILE: card.encode(), hub.CONFIG: hub.config_file(model)}
    if shown.metrics:
        extra[model_card.SCORES] = json.dumps(shown.plain(), indent=1).encode()
    model_folder.write(
        folder, model.name, model.method, model.image_size, model.weights, public.lineage, extra, hub.WEIGHTS
    )


def _publish(folder: Path, target: _Target, model: Model, result: dict[str, Any]) -> list[str]:
    """Replace an earlier export at the output by these files, the manifest last; return their URIs."""
    if target.is_file:
        name = f"{target.directions[0]}{_SUFFIXES[result['format']]}"
        storage.upload_file(folder / name, target.uri)
        return [target.uri]
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    manifest = {
        **result,
        "directions": {direction: export.contract(model, direction) for direction in target.directions},
        "files": {name: checkpoint.sha256(folder / name) for name in names},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    # a model folder is valid once it has model.json
    last = [MANIFEST] + [name for name in names if name == model_folder.MANIFEST]
    ordered = [name for name in names if name not in last] + last
    _clear(target.uri, ordered)
    for name in ordered:
        storage.upload_file(folder / name, storage.join(target.uri, name))
    return [storage.join(target.uri, name) for name in ordered]


def _clear(folder: str, new: list[str]) -> None:
    """Remove an earlier export: first the manifests that make it valid, then files that the new one does not write."""
    start = len(storage.join(folder)) + 1
    existing = {uri[start:]: uri for uri in storage.list_(folder, recursive=True)}
    old: set[str] = set()
    if MANIFEST in existing:
        # an unrelated file of the same name lists nothing to remove
        with contextlib.suppress(ValueError, KeyError, TypeError):
            old = set(storage.read_json(existing[MANIFEST])["files"])
    manifests = {MANIFEST, model_folder.MANIFEST}
    stale = existing.keys() & ((old - set(new)) | (manifests & set(new)))
    for name in sorted(stale, key=lambda name: name not in manifests):
        storage.remove(existing[name])


def _same(one: str, other: str) -> bool:
    if storage.is_remote(one) or storage.is_remote(other):
        return one.rstrip("/") == other.rstrip("/")
    return storage.local_path(one).resolve() == storage.local_path(other).resolve()


def _refuse_existing(target: _Target, overwrite: bool) -> None:
    exists = storage.exists(target.uri) if target.is_file else bool(storage.list_(target.uri))
    if not target.is_file and not exists and storage.exists(target.uri):
        raise BadInput(f"{target.uri} is a file; give a folder, or a file name with the format's suffix")
    if exists and not overwrite:
        raise BadInput(f"{target.uri} already exists; give another output, or --overwrite")

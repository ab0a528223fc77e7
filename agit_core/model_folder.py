"""A trained model as a folder: what inference needs and nothing else, checked and loaded without running code.

``model.json`` (written last) names the method, the image size, the lineage and the SHA-256 of every other
file; the weights stand in ``networks.safetensors``, or in ``networks.pt`` where safetensors is not installed.
:func:`read` also takes a checkpoint folder of a running training.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agit_core import checkpoint, pretrained, saved_method
from agit_core.config import MethodConfig
from agit_core.errors import BadInput, RunFailed
from agit_core.networks import DISCRIMINATOR_NAMES, Networks

FORMAT = 1
MANIFEST = "model.json"
DIRECTIONS = ("a2b", "b2a")
_WEIGHTS = ("networks.safetensors", "networks.pt")
_AVERAGED = ("averaged.safetensors", "averaged.pt")


@dataclass(frozen=True)
class Model:
    """A model folder in memory."""

    name: str
    method: MethodConfig
    image_size: int
    """Side of the square images it was trained on."""
    weights: dict[str, Tensor]
    """State of :class:`~agit_core.networks.Networks`, on the CPU; averaged generators already in place."""
    digest: str
    """SHA-256 of the manifest, which names the SHA-256 of every file: the model's identity."""
    lineage: dict[str, Any]
    directions: tuple[str, ...] = DIRECTIONS

    def with_threshold(self, threshold: float | None) -> Model:
        """The model with another ``threshold_at_test``; None: with its own.

        Raises:
            BadInput: not in [0, 1].
        """
        if threshold is None:
            return self
        return replace(self, method=replace(self.method, threshold_at_test=threshold))

    @property
    def judges(self) -> bool:
        """Whether the discriminators' weights are there, which inference does not need (see :func:`slimmed`)."""
        return any(key.startswith(DISCRIMINATOR_NAMES) for key in self.weights)

    def networks(self) -> Networks:
        """The networks with these weights, on the CPU in fp32, in evaluation mode; absent discriminators are random.

        Raises:
            BadInput: the weights do not belong to the configuration.
        """
        networks = Networks(self.method.networks)
        try:
            missing = networks.load_state_dict(self.weights, strict=False)
            if lost := [key for key in missing.missing_keys if not key.startswith(DISCRIMINATOR_NAMES)]:
                raise RuntimeError(f"without {', '.join(lost)}")
            if missing.unexpected_keys:
                raise RuntimeError(f"unexpected {', '.join(missing.unexpected_keys)}")
        except RuntimeError as error:
            raise BadInput(
                f"the weights of model '{self.name}' do not fit its configuration "
                f"({' '.join(str(error).split())[:200]}); the folder was put together from different models"
            ) from None
        return networks.eval().requires_grad_(False)


def write(
    directory: str | Path,
    name: str,
    method: MethodConfig,
    image_size: int,
    weights: dict[str, Tensor],
    lineage: dict[str, Any] | None = None,
    extra: dict[str, bytes] | None = None,
) -> Path:
    """Writes a model folder; ``model.json`` last.

    Args:
        weights: a state of :class:`~agit_core.networks.Networks`, averaged generators already in place.
        extra: further files by relative path (a model card, code), listed with their checksums.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    safetensors = _safetensors()
    if safetensors is not None:
        file = folder / _WEIGHTS[0]
        safetensors.save_file(weights, file, metadata={"format": "pt"})
    else:
        file = folder / _WEIGHTS[1]
        torch.save(weights, file)
    names = [file.name]
    for path, data in (extra or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        names.append(path)
    manifest = {
        "format": FORMAT,
        "name": name,
        "method": saved_method.to_dict(method),
        "image_size": image_size,
        "directions": list(DIRECTIONS),
        "lineage": lineage or {},
        "files": {item: checkpoint.sha256(folder / item) for item in sorted(names)},
    }
    (folder / f".{MANIFEST}.part").write_text(json.dumps(manifest, indent=1) + "\n")
    os.replace(folder / f".{MANIFEST}.part", folder / MANIFEST)
    return folder


def slimmed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What inference needs, in half precision: a quarter to an eighth of the size, grey levels differ by one or two.

    Computation stays in fp32: :meth:`Model.networks` converts the weights back.
    """
    return {k: v.half() for k, v in weights.items() if not k.startswith(DISCRIMINATOR_NAMES)}


def read(uri: str | Path) -> Model:
    """Reads a model or checkpoint folder.

    Args:
        uri: a local path; ``pretrained:NAME`` of a model in this package; a URI whose scheme an
            installed resolver knows (entry points ``agit.resolvers``,
            such as ``models:/h2z@champion``); any other URI that fsspec opens (``s3://...``).

    Raises:
        BadInput: nothing there, neither a model nor a checkpoint, a damaged file, weights that are not finite,
            a scheme nobody knows.
    """
    text = resolve(str(uri))
    if "://" not in text:
        return _read_local(Path(text).expanduser(), text)
    with tempfile.TemporaryDirectory(prefix="agit-model-") as folder:
        _download(text, Path(folder))
        return _read_local(Path(folder), text)


def resolve(uri: str) -> str:
    """A path or fsspec URI for ``uri``: registered resolvers translate their own schemes.

    A resolver is an entry point of the group ``agit.resolvers`` named after the scheme; it is called with the
    URI and answers with a path or another URI.
    """
    scheme, colon, _ = uri.partition(":")
    if not colon or len(scheme) < 2 or "/" in scheme:  # a path (also C:\...)
        return uri
    if scheme == pretrained.SCHEME:
        return str(pretrained.folder(uri))
    if scheme == "file":
        return uri.removeprefix("file://")
    found = list(metadata.entry_points(group="agit.resolvers", name=scheme))
    if found:
        return str(found[0].load()(uri)).removeprefix("file://")
    if "://" not in uri:
        raise BadInput(
            f"nothing here resolves '{uri}'; install agit[pipeline] for the model registry or give a path"
        )
    return uri


def _read_local(folder: Path, where: str) -> Model:
    for manifest_name in (MANIFEST, checkpoint.MANIFEST):
        if (folder / manifest_name).is_file():
            break
    else:
        raise BadInput(
            f"no model at {where}: it has neither {MANIFEST} nor {checkpoint.MANIFEST}; give a model folder"
        )
    text = (folder / manifest_name).read_bytes()
    try:
        manifest = json.loads(text)
        files: dict[str, str] = manifest["files"]
        method = manifest["method"]
        image_size = int(manifest["image_size"])
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{where}/{manifest_name} is not a model's manifest ({error!r})") from None
    if version != FORMAT:
        raise BadInput(f"{where}/{manifest_name} has format {version}; this version reads format {FORMAT}")
    weights = _load(folder, _WEIGHTS, files, where)
    if any(name in files for name in _AVERAGED):
        weights |= _load(folder, _AVERAGED, files, where)
    broken = checkpoint.not_finite(weights)
    if broken:
        raise BadInput(
            f"the weights of the model at {where} are not finite ({broken[0]} and {len(broken) - 1} more), so that "
            "its training had diverged; use an earlier checkpoint or version"
        )
    lineage = manifest.get("lineage") or {k: manifest[k] for k in ("step", "epoch", "stage") if k in manifest}
    return Model(
        name=str(manifest.get("name") or where.rstrip("/").rsplit("/", 1)[-1]),
        method=saved_method.from_dict(method),
        image_size=image_size,
        weights=weights,
        digest=checkpoint.sha256(folder / manifest_name),
        lineage=lineage,
        directions=tuple(manifest.get("directions", DIRECTIONS)),
    )


def _load(folder: Path, names: tuple[str, ...], files: dict[str, str], where: str) -> dict[str, Tensor]:
    for name in names:
        if name in files:
            break
    else:
        raise BadInput(f"the model at {where} lists none of {', '.join(names)}")
    path = folder / name
    if not path.is_file() or checkpoint.sha256(path) != files[name]:
        raise BadInput(
            f"{where}/{name} is missing or does not match its checksum; fetch or write the model again"
        )
    if name.endswith(".pt"):
        try:
            loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what a pickle that wants more than tensors raises is not documented
            raise BadInput(f"{where}/{name} cannot be read safely: {str(error).split('. ')[0]}") from None
        return loaded
    safetensors = _safetensors()
    if safetensors is None:
        raise BadInput(f"{where}/{name} needs the package safetensors: pip install safetensors")
    weights: dict[str, Tensor] = safetensors.load_file(path)
    return weights


def _safetensors() -> Any:
    """The optional package, or None."""
    try:
        return importlib.import_module("safetensors.torch")
    except ModuleNotFoundError:
        return None


def _download(uri: str, folder: Path) -> None:
    """Copies the manifest and the weights it names; a checkpoint's optimiser state stays where it is."""
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise BadInput(
            f"'{uri}' needs the package fsspec: pip install fsspec, or give a local path"
        ) from None
    try:
        fs, root = url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise BadInput(f"cannot open '{uri}': {error}") from None
    for manifest_name in (MANIFEST, checkpoint.MANIFEST):
        try:
            text = fs.cat_file(f"{root.rstrip('/')}/{manifest_name}")
            break
        except FileNotFoundError:
            continue
        except Exception as error:  # whatever the storage's client raises
            raise _lost(uri, error) from error
    else:
        raise BadInput(
            f"no model at {uri}: it has neither {MANIFEST} nor {checkpoint.MANIFEST}; give a model folder"
        )
    (folder / manifest_name).write_bytes(text)
    listed = json.loads(text).get("files", {})
    for name in (*_WEIGHTS, *_AVERAGED):
        if name in listed:
            try:
                fs.get_file(f"{root.rstrip('/')}/{name}", str(folder / name))
            except Exception as error:
                raise _lost(uri, error) from error


def _lost(uri: str, error: Exception) -> BadInput | RunFailed:
    """A wrong key is a wrong call; a storage that is away may be back when the call is repeated."""
    told = f"cannot read the model at {uri}: {' '.join(str(error).split())}"
    return BadInput(told) if isinstance(error, PermissionError | FileNotFoundError) else RunFailed(told)

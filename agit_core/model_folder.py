"""Model folders: a trained model for inference only, verified on load and read without running code.

``model.json`` (written last) names the method, the image size, the lineage and the SHA-256 of every other
file. The weights are in ``networks.safetensors``, or in ``networks.pt`` where safetensors is not installed.
:func:`read` also accepts a checkpoint folder of a running training.
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
# the third is the name that the Hugging Face Hub looks for
_WEIGHTS = ("networks.safetensors", "networks.pt", "model.safetensors")
_AVERAGED = ("averaged.safetensors", "averaged.pt")
_MOST_PIXELS = 65536


@dataclass(frozen=True)
class Model:
    """A model folder in memory."""

    name: str
    method: MethodConfig
    image_size: int
    """Side of the square images it was trained on."""
    weights: dict[str, Tensor]
    """State dict of :class:`~agit_core.networks.Networks`, on the CPU, with averaged generators if there are any."""
    digest: str
    """The model's identity: SHA-256 of the manifest, which in turn lists the SHA-256 of every file."""
    lineage: dict[str, Any]
    directions: tuple[str, ...] = DIRECTIONS

    def with_threshold(self, threshold: float | None) -> Model:
        """Copy with another ``threshold_at_test``; None keeps the model's own.

        Raises:
            BadInput: not in [0, 1].
        """
        if threshold is None:
            return self
        return replace(self, method=replace(self.method, threshold_at_test=threshold))

    @property
    def has_discriminators(self) -> bool:
        """Whether the discriminators' weights are included; inference does not need them (see :func:`slimmed`)."""
        return any(key.startswith(DISCRIMINATOR_NAMES) for key in self.weights)

    def networks(self) -> Networks:
        """Build the networks on the CPU in fp32 and evaluation mode; missing discriminators are random.

        Raises:
            BadInput: the weights do not fit the configuration.
        """
        try:
            with torch.device("meta"):  # shapes alone: a configuration of absurd widths takes no memory
                _load_into(Networks(self.method.networks), self.weights)
            networks = Networks(self.method.networks)
            _load_into(networks, self.weights)
        except RuntimeError as error:
            raise BadInput(
                f"the weights of model '{self.name}' do not fit its configuration "
                f"({' '.join(str(error).split())[:200]}); the folder mixes files of different models"
            ) from None
        return networks.eval().requires_grad_(False)


def _load_into(networks: Networks, weights: dict[str, Tensor]) -> None:
    """Fill networks with weights, of which only the discriminators' may be absent.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    there = next(networks.parameters()).device
    missing = networks.load_state_dict({k: v.to(there) for k, v in weights.items()}, strict=False)
    if lost := [key for key in missing.missing_keys if not key.startswith(DISCRIMINATOR_NAMES)]:
        raise RuntimeError(f"missing {', '.join(lost)}")
    if missing.unexpected_keys:
        raise RuntimeError(f"unexpected {', '.join(missing.unexpected_keys)}")


def write(
    directory: str | Path,
    name: str,
    method: MethodConfig,
    image_size: int,
    weights: dict[str, Tensor],
    lineage: dict[str, Any] | None = None,
    extra: dict[str, bytes] | None = None,
    weights_file: str = _WEIGHTS[0],
) -> Path:
    """Write a model folder, ``model.json`` last, and return its path.

    Args:
        weights: state dict of :class:`~agit_core.networks.Networks`, with averaged generators if there are any.
        extra: contents of further files by relative path (a model card, code); the manifest lists them too.
        weights_file: name of the safetensors file, one of those that :func:`read` knows.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    safetensors = _safetensors()
    if safetensors is not None:
        file = folder / weights_file
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
    """Drop the discriminators and convert to half precision: a quarter to an eighth of the size.

    Outputs change by one or two grey levels. Computation stays in fp32: :meth:`Model.networks` converts back.
    """
    return {k: v.half() for k, v in weights.items() if not k.startswith(DISCRIMINATOR_NAMES)}


def read(uri: str | Path) -> Model:
    """Read a model folder or a checkpoint folder.

    Args:
        uri: a local path; ``pretrained:NAME`` for a model in this package; a URI with the scheme of an
            installed resolver (entry point group ``agit.resolvers``), such as ``models:/h2z@champion``; any
            other URI that fsspec opens (``s3://...``).

    Raises:
        BadInput: nothing found, neither a model nor a checkpoint, a damaged file, weights that are not finite, or
            an unknown scheme.
        RunFailed: the storage cannot be read at the moment.
    """
    text = resolve(str(uri))
    if "://" not in text:
        return _read_local(Path(text).expanduser(), text)
    with tempfile.TemporaryDirectory(prefix="agit-model-") as folder:
        _download(text, Path(folder))
        return _read_local(Path(folder), text)


def resolve(uri: str) -> str:
    """Resolve ``uri`` to a path or an fsspec URI through the resolver installed for its scheme.

    A resolver is an entry point of the group ``agit.resolvers`` named after the scheme: a function of the URI that
    returns a path or another URI.
    """
    scheme, colon, _ = uri.partition(":")
    if not colon or len(scheme) < 2 or "/" in scheme:  # a path, including C:\...
        return uri
    if scheme == pretrained.SCHEME:
        return str(pretrained.folder(uri))
    if scheme == "file":
        return uri.removeprefix("file://")
    resolvers = list(metadata.entry_points(group="agit.resolvers", name=scheme))
    if resolvers:
        return str(resolvers[0].load()(uri)).removeprefix("file://")
    if "://" not in uri:
        raise BadInput(
            f"no resolver is installed for '{uri}'; install agit[pipeline] for the model registry or give a path"
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
    manifest = _parsed((folder / manifest_name).read_bytes(), f"{where}/{manifest_name}")
    files: dict[str, str] = manifest["files"]
    weights = _load(folder, _WEIGHTS, files, where)
    if any(name in files for name in _AVERAGED):
        weights |= _load(folder, _AVERAGED, files, where)
    broken = checkpoint.not_finite(weights)
    if broken:
        raise BadInput(
            f"the weights of the model at {where} are not finite ({broken[0]} and {len(broken) - 1} more): "
            "its training diverged; use an earlier checkpoint or version"
        )
    lineage = manifest.get("lineage") or {k: manifest[k] for k in ("step", "epoch", "stage") if k in manifest}
    try:
        method = saved_method.from_dict(manifest["method"])
    except BadInput as error:
        raise BadInput(f"{where}/{manifest_name}: {error}") from None
    return Model(
        name=str(manifest.get("name") or where.rstrip("/").rsplit("/", 1)[-1]),
        method=method,
        image_size=manifest["image_size"],
        weights=weights,
        digest=checkpoint.sha256(folder / manifest_name),
        lineage=lineage,
        directions=tuple(manifest.get("directions", DIRECTIONS)),
    )


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    """A manifest of which everything that is used has its type and range.

    Raises:
        BadInput: names what is wrong.
    """
    try:
        manifest: dict[str, Any] = json.loads(text)
        version = manifest["format"]
        if version != FORMAT:
            raise BadInput(f"{where} has format {version}; this version reads format {FORMAT}")
        size, directions = manifest["image_size"], manifest.get("directions", list(DIRECTIONS))
        checks = {
            "files": _texts(manifest["files"]),
            "method": isinstance(manifest["method"], dict),
            "image_size": type(size) is int and 1 <= size <= _MOST_PIXELS,
            "directions": isinstance(directions, list)
            and bool(directions)
            and set(directions) <= {*DIRECTIONS},
            "lineage": isinstance(manifest.get("lineage", {}), dict),
        }
    except BadInput:
        raise
    # nested too deeply; not JSON; no object, or without a key
    except (RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        text_of = f"{type(error).__name__}: {str(error)[:100]}"
        raise BadInput(
            f"{where} is not a model's manifest ({text_of}); fetch or write the model again"
        ) from None
    if wrong := [key for key, fits in checks.items() if not fits]:
        raise BadInput(
            f"{where} is not a model's manifest ({wrong[0]} is {str(manifest.get(wrong[0]))[:60]!r}); "
            "fetch or write the model again"
        )
    return manifest


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _load(folder: Path, names: tuple[str, ...], files: dict[str, str], where: str) -> dict[str, Tensor]:
    for name in names:
        if name in files:
            break
    else:
        raise BadInput(f"the manifest of the model at {where} lists none of {', '.join(names)}")
    path = folder / name
    if not path.is_file() or checkpoint.sha256(path) != files[name]:
        raise BadInput(
            f"{where}/{name} is missing or does not match its checksum; fetch or write the model again"
        )
    safetensors = _safetensors()
    if not name.endswith(".pt") and safetensors is None:
        raise BadInput(f"{where}/{name} needs the package safetensors: pip install safetensors")
    try:
        if name.endswith(".pt"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        else:
            loaded = safetensors.load_file(path)
    # what a pickle that wants more than tensors, or a cut file, raises is not documented
    except Exception as error:
        text = " ".join(str(error).split("\n", 1)[0].split(". ")[0].split())
        raise BadInput(
            f"{where}/{name} cannot be read safely: {text}; fetch or write the model again"
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BadInput(f"{where}/{name} does not hold a state of networks; fetch or write the model again")
    return loaded


def _safetensors() -> Any:
    """``safetensors.torch``, or None where the optional package is not installed."""
    try:
        return importlib.import_module("safetensors.torch")
    except ModuleNotFoundError:
        return None


def _download(uri: str, folder: Path) -> None:
    """Download the manifest and the weights it names, but not a checkpoint's optimiser state."""
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
            raise _unreadable(uri, error) from error
    else:
        raise BadInput(
            f"no model at {uri}: it has neither {MANIFEST} nor {checkpoint.MANIFEST}; give a model folder"
        )
    (folder / manifest_name).write_bytes(text)
    listed = _parsed(text, f"{uri}/{manifest_name}")["files"]
    for name in (*_WEIGHTS, *_AVERAGED):
        if name in listed:
            try:
                fs.get_file(f"{root.rstrip('/')}/{name}", str(folder / name))
            except Exception as error:
                raise _unreadable(uri, error) from error


def _unreadable(uri: str, error: Exception) -> BadInput | RunFailed:
    """Classify a read error: missing files and wrong credentials are bad input, anything else may be temporary."""
    message = f"cannot read the model at {uri}: {' '.join(str(error).split())}"
    return BadInput(message) if isinstance(error, PermissionError | FileNotFoundError) else RunFailed(message)

"""Reproduce a registered model from its recorded lineage, and compare the weights.

A model folder records its lineage: the configuration, the data's fingerprint, the code and the libraries. The data is
prepared again from its source, in a separate storage, and must have the same fingerprint; then the training is run
as usual. On the same kind of machine, the weights are bit-identical.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agit_core import model_folder
from agit_core.errors import BadInput
from agit_core.model_folder import Model
from pipeline import progress, retrain, storage, tasks
from pipeline.config import Config, parse_recorded
from pipeline.data.format import manifest
from pipeline.launch import specs
from pipeline.records import Data, Run
from pipeline.registry import lineage, models
from pipeline.registry.identity import weights_digest

_SHOWN = 5  # names of differing images in a message


@dataclass(frozen=True)
class Origin:
    """A model and its lineage."""

    uri: str
    model: Model
    lineage: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return str(self.lineage["weights_sha256"])

    @staticmethod
    def of(name: str, config: Config) -> Origin:
        """Read a model folder, ``models:/h2z@champion`` or ``models:/h2z/3``.

        Args:
            config: names the registry to use.

        Raises:
            BadInput: no such model, or an incomplete lineage.
        """
        uri = models.resolve(name, config)
        model = model_folder.read(uri)
        needed = {"config", "data_fingerprint", "run_id", "weights_sha256"}
        if missing := sorted(needed - model.lineage.keys()):
            raise BadInput(
                f"the lineage of the model at {uri} is incomplete ({', '.join(missing)} missing); "
                "only models that agit registered can be reproduced"
            )
        return Origin(uri, model, model.lineage)


def settings(origin: Origin, storage_uri: str | None = None, here: Config | None = None) -> Config:
    """Configuration of the model's run, with another storage.

    Args:
        here: configuration whose ``cluster`` section to use; default: that of the model's run.

    Raises:
        BadInput: the configuration is not valid in this version, or the storage is that of the model's run.
    """
    tree = dict(origin.lineage["config"])
    root = str(tree.get("storage", "./.agit"))
    # relative paths in the configuration refer to the working directory then; the lineage has absolute ones
    tree["data"] = {**(tree.get("data") or {}), **(origin.lineage.get("sources") or {})}
    tree["storage"] = storage_uri or storage.join(root, "reproductions", str(origin.lineage["run_id"]))
    if here is not None:
        tree["cluster"] = here.plain()["cluster"]
    config = parse_recorded(tree, f"configuration of {origin.uri}")
    if specs.absolute(config.storage) == specs.absolute(root):
        raise BadInput(
            f"{config.storage} holds the model's original run, which would be reused instead of reproduced; "
            "give another --storage"
        )
    return config


def differences(origin: Origin) -> list[str]:
    """Differences in code, libraries and machine since the model was made, one sentence each."""
    then, now = origin.lineage.get("code") or {}, lineage.code_version()
    sentences = []
    if then.get("source_sha256") != now["source_sha256"]:
        sentences.append(f"the code differs: the model was made by {_code(then)}, this is {_code(now)}")
    packages = origin.lineage.get("packages") or {}
    for name, version in lineage.packages().items():
        if name != "agit" and packages.get(name, version) != version:
            sentences.append(f"{name} was {packages[name]} and is {version}")
    machine = origin.lineage.get("machine") or {}
    for name, value in lineage.machine().items():
        if machine.get(name, value) != value:
            sentences.append(f"the machine's {name.replace('_', ' ')} was {machine[name]} and is {value}")
    return sentences


def data(origin: Origin, config: Config, from_prepared: bool = False) -> Data:
    """The model's training data, prepared again from the source, or the original shards (``from_prepared``).

    Raises:
        BadInput: the data differs from the data that the model was trained on; the message lists the differences.
    """
    fingerprint, original_uri = (
        str(origin.lineage["data_fingerprint"]),
        str(origin.lineage.get("data_uri") or ""),
    )
    if from_prepared:
        tree = manifest.find(original_uri)
        if tree is None:
            raise BadInput(f"the prepared data at {original_uri} no longer exists; leave --from-prepared out")
        prepared = Data(original_uri, tree, True)
    else:
        prepared = tasks.prepare(config)
    if prepared.manifest.fingerprint == fingerprint:
        return prepared
    raise BadInput(
        f"{config.data.source} no longer contains the data that the model was trained on: "
        f"{_what_changed(original_uri, prepared)}; restore the images"
        + ("" if from_prepared else ", or train on the original shards with --from-prepared")
    )


def start(origin: Origin, config: Config, here: Config) -> str | None:
    """Folder of the weights that the model's training started from; None: follow the configuration.

    Args:
        here: configuration that names the registry for a version in ``train.start_from``.

    Raises:
        BadInput: these weights are missing, have changed, or were not recorded.
    """
    start_from, recorded = config.train.start_from, origin.lineage.get("start")
    if start_from is None:
        return None
    if recorded is not None:
        if model_folder.read(recorded["uri"]).digest != recorded["digest"]:
            raise BadInput(
                f"{recorded['uri']}, which the training of {origin.uri} started from, now holds another model; "
                "restore it"
            )
        return str(recorded["uri"])
    if start_from.startswith("models:") and "@" in start_from:
        raise BadInput(
            f"the model at {origin.uri} was trained from {start_from} by a release that did not record the version; "
            "it cannot be reproduced"
        )
    return models.resolve(start_from, here) if start_from.startswith("models:") else None


def train(config: Config, prepared: Data, start_uri: str | None) -> Run:
    """Run the training again, or resume it after an interrupted call, without a live run in MLflow."""
    quiet = config.train.model_copy(update={"report_to": ()})
    return tasks.train(config.model_copy(update={"train": quiet}), prepared, start_uri)


def compare(origin: Origin, run: Run) -> dict[str, Any]:
    """Compare the run's weights with the model's.

    Returns:
        ``identical``, ``weights_sha256`` (of both) and ``largest_difference`` (absolute, by network; 0 if equal).
    """
    again = model_folder.read(run.result.model)
    digest = weights_digest(again)
    apart: dict[str, float] = {}
    for name, tensor in origin.model.weights.items():
        if name.startswith("discriminator") or name not in again.weights:
            continue
        network = name.split(".", 1)[0]
        distance = (
            float((tensor.double() - again.weights[name].double()).abs().max()) if tensor.numel() else 0.0
        )
        apart[network] = max(apart.get(network, 0.0), distance)
    return {
        "identical": digest == origin.digest,
        "weights_sha256": {"model": origin.digest, "again": digest},
        "largest_difference": apart,
    }


def reproduce(
    name: str, here: Config, storage_uri: str | None = None, from_prepared: bool = False
) -> dict[str, Any]:
    """Read the lineage, check the data, train again and compare the weights.

    Args:
        here: configuration that names the registry and the cluster to train on.

    Returns:
        ``model``, ``run_id``, ``storage``, ``steps``, ``checkpoint``, ``differences`` and the result of
        :func:`compare`.

    Raises:
        BadInput: as :meth:`Origin.of`, :func:`settings`, :func:`start` and :func:`data`.
        RunFailed: the training did not finish; the same call resumes it.
    """
    origin = Origin.of(name, here)
    config = settings(origin, storage_uri, here)
    start_uri = start(origin, config, here)
    changed = differences(origin)
    for sentence in changed:
        progress.note(f"note: {sentence}; the weights may differ")
    prepared = data(origin, config, from_prepared)
    run = train(config, prepared, start_uri)
    compared = compare(origin, run)
    if run.run_id != origin.lineage["run_id"]:
        changed.append(f"the run id is {run.run_id} here and was {origin.lineage['run_id']}")
    return {
        "model": origin.uri,
        "run_id": run.run_id,
        "storage": config.storage,
        "steps": run.result.steps,
        "checkpoint": run.result.model,
        "differences": changed,
        **compared,
    }


def _what_changed(original_uri: str, prepared: Data) -> str:
    changed = retrain.changes(original_uri, prepared) if original_uri else None
    if changed is None:
        return "the differences are unknown, because the original shards no longer exist"
    names = [f"{kind} {name}" for kind, listed in vars(changed).items() for name in listed]
    if not names:
        return "the same images, prepared with other settings or by other code"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{changed} ({', '.join(names[:_SHOWN])}{more})"


def _code(version: Mapping[str, Any]) -> str:
    commit = str(version.get("git_commit") or "")[:10]
    changed = " with uncommitted changes" if version.get("git_dirty") else ""
    if commit:
        return f"commit {commit}{changed}"
    return f"version {version.get('version')} ({str(version.get('source_sha256') or 'unknown')[:10]})"

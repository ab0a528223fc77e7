"""Rebuilds a registered model from what stands beside it, and says whether the weights are the same.

A model folder holds its lineage: the configuration, the fingerprint of the data, the code and the libraries.
The data is prepared again from its source, under a storage of its own, and must have the same fingerprint; the
training is started as always. On the same kind of machine the weights come out bit for bit the same.
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

_SHOWN = 5


@dataclass(frozen=True)
class Origin:
    """A model and where it comes from."""

    uri: str
    model: Model
    lineage: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return str(self.lineage["weights_sha256"])

    @staticmethod
    def of(name: str, config: Config) -> Origin:
        """Reads a model folder or ``models:/h2z@champion``, ``models:/h2z/3``.

        Args:
            config: says which registry is asked.

        Raises:
            BadInput: no such model, or one whose lineage does not say enough.
        """
        uri = models.resolve(name, config)
        model = model_folder.read(uri)
        told = model.lineage
        needed = {"config", "data_fingerprint", "run_id", "weights_sha256"}
        if missing := sorted(needed - told.keys()):
            raise BadInput(
                f"the model at {uri} does not say where it comes from ({', '.join(missing)} missing in its lineage); "
                "only models that agit registered can be reproduced"
            )
        return Origin(uri, model, told)


def settings(origin: Origin, storage_uri: str | None = None, here: Config | None = None) -> Config:
    """The configuration of the model's run, under another storage.

    Args:
        here: says on which cluster it runs; default: where the model's run did.

    Raises:
        BadInput: this version of the code does not understand it.
    """
    tree = dict(origin.lineage["config"])
    root = str(tree.get("storage", "./.agit"))
    # a relative path was meant in the folder of the run's command
    tree["data"] = {**(tree.get("data") or {}), **(origin.lineage.get("sources") or {})}
    tree["storage"] = storage_uri or storage.join(root, "reproductions", str(origin.lineage["run_id"]))
    if here is not None:
        tree["cluster"] = here.plain()["cluster"]
    config = parse_recorded(tree, f"configuration of {origin.uri}")
    if specs.absolute(config.storage) == specs.absolute(root):
        raise BadInput(
            f"{config.storage} holds the model's own run, which would only be found again; give another --storage"
        )
    return config


def differences(origin: Origin) -> list[str]:
    """What is not as it was when the model was made, apart from the data; one sentence each."""
    then, now = origin.lineage.get("code") or {}, lineage.code_version()
    told = []
    if then.get("source_sha256") != now["source_sha256"]:
        told.append(f"the code differs: the model was made by {_code(then)}, this is {_code(now)}")
    packages = origin.lineage.get("packages") or {}
    for name, version in lineage.packages().items():
        if name != "agit" and packages.get(name, version) != version:
            told.append(f"{name} was {packages[name]} and is {version}")
    machine = origin.lineage.get("machine") or {}
    for name, value in lineage.machine().items():
        if machine.get(name, value) != value:
            told.append(f"the machine's {name.replace('_', ' ')} was {machine[name]} and is {value}")
    return told


def data(origin: Origin, config: Config, from_prepared: bool = False) -> Data:
    """The model's data: prepared again from the source, or the shards it was trained on.

    Raises:
        BadInput: it is not the data that the model was trained on; says what differs.
    """
    wanted, before_uri = str(origin.lineage["data_fingerprint"]), str(origin.lineage.get("data_uri") or "")
    if from_prepared:
        found = manifest.find(before_uri)
        if found is None:
            raise BadInput(f"the prepared data at {before_uri} is gone; leave --from-prepared out")
        prepared = Data(before_uri, found, True)
    else:
        prepared = tasks.prepare(config)
    if prepared.manifest["fingerprint"] == wanted:
        return prepared
    raise BadInput(
        f"{config.data.source} no longer gives the data that the model was trained on: "
        f"{_what_changed(before_uri, prepared)}; restore the images"
        + ("" if from_prepared else ", or train on the shards that are still there with --from-prepared")
    )


def start(origin: Origin, config: Config, here: Config) -> str | None:
    """The folder of the weights that the model's training started from; None: what the configuration says.

    Args:
        here: says which registry knows a version that ``train.start_from`` names.

    Raises:
        BadInput: they are gone or others, or it cannot be told which they were.
    """
    named, known = config.train.start_from, origin.lineage.get("start")
    if named is None:
        return None
    if known is not None:
        if model_folder.read(known["uri"]).digest != known["digest"]:
            raise BadInput(
                f"{known['uri']}, which the training of {origin.uri} started from, holds another model now; restore it"
            )
        return str(known["uri"])
    if named.startswith("models:") and "@" in named:
        raise BadInput(
            f"the model at {origin.uri} was trained from {named} by a release that did not note which version that "
            "was; it cannot be reproduced"
        )
    return models.resolve(named, here) if named.startswith("models:") else None


def train(config: Config, prepared: Data, start_uri: str | None) -> Run:
    """The same training again, or the one that an interrupted call has begun."""
    return tasks.train(config, prepared, start_uri)


def compare(origin: Origin, run: Run) -> dict[str, Any]:
    """Whether the run's weights are the model's, and if not, how far apart they are.

    Returns:
        ``identical``, ``weights_sha256`` (of both) and ``largest_difference`` by network, 0 where equal.
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
    """Everything: reads the lineage, checks the data, trains again and compares.

    Args:
        here: whose registry is asked, and where the training runs.

    Returns:
        ``model``, ``run_id``, ``storage``, ``steps``, ``checkpoint``, ``differences`` and what
        :func:`compare` says.

    Raises:
        BadInput: see the parts.
        RunFailed: the training did not finish; the same call goes on with it.
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
        changed.append(f"the run is {run.run_id} here and was {origin.lineage['run_id']}")
    return {
        "model": origin.uri,
        "run_id": run.run_id,
        "storage": config.storage,
        "steps": run.result.steps,
        "checkpoint": run.result.model,
        "differences": changed,
        **compared,
    }


def _what_changed(before_uri: str, prepared: Data) -> str:
    changed = retrain.changes(before_uri, prepared) if before_uri else None
    if changed is None:
        return "what differs cannot be said, for the earlier shards are gone"
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

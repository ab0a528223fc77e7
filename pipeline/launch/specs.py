"""Specifications of training jobs in storage, and run ids.

A run is identified by its configuration and data: the same call finds the same run, finished, running or killed.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
from typing import Any

from agit_core import saved_method
from agit_core.errors import BadInput
from pipeline import records, storage
from pipeline.config import Config, fingerprint
from pipeline.data.format import manifest
from pipeline.records import Manifest, Owner, Spec
from pipeline.redact import redact
from pipeline.train import lease

# settings that do not affect the result of a training, only where and how it runs
_EXECUTION_ONLY = {
    "workers",
    "minimum_workers",
    # the same mathematics in less memory
    "microbatch",
    "activation_checkpointing",
    "grow_after_s",
    "device",
    "threads_per_worker",
    "prefetch_threads",
    "log_every",
    "sample_every",
    "samples",
    "checkpoint_every",
    "keep_checkpoints",
    "best_by",
    "storage_patience_s",
    "max_failures",
    "stop_on_collapse",
    "report_to",
    "profile",
    # no effect on a run that never diverges; a diverged one can be resumed with another limit
    "rollbacks",
}
VERDICT = "AGIT-VERDICT "
"""Prefix of the last output line of a failed job, followed by JSON: ``{"kind": ..., "message": ...}``."""


def run_id(config: Config, data_manifest: Manifest) -> str:
    """Id of a run; the same method, schedule, seed and data give the same id."""
    identity = {
        "method": saved_method.identity(config.method),
        "train": config.train.model_dump(mode="json", exclude=_EXECUTION_ONLY),
        "seed": config.seed,
        "data": data_manifest.fingerprint,
    }
    if config.data.shuffle == "windowed":
        # changes the order of the images, and thus the weights
        identity["shuffle_bytes"] = config.data.shuffle_bytes
    if config.validation.images:
        # fewer images to train on
        identity["validation"] = config.validation.images
    if config.validation.early_stopping is not None:
        # another end
        identity["early_stopping"] = [
            config.validation.early_stopping,
            config.validation.every,
            config.deciding_score,
        ]
    return f"{config.name}-{fingerprint(identity, 8)}"


def spec_of(config: Config, data_uri: str, name: str, start: str | None = None) -> Spec:
    """Specification of a run's training job.

    Args:
        start: folder of the initial weights, if ``train.start_from`` no longer refers to it.
    """
    run_uri = records.run_uri(absolute(config.storage), name)
    return Spec(run_id=name, run_uri=run_uri, data_uri=data_uri, config=_absolute_config(config, start))


def specify(config: Config, prepared_uri: str) -> str:
    """Store the specification of a job that is started by other means (a RayJob); return its URI.

    Raises:
        RunFailed: another job is training this run.
    """
    data_uri = absolute(prepared_uri)
    name = run_id(config, manifest.read(data_uri))
    spec = spec_of(config, data_uri, name)
    before = lease.refuse_second(spec.run_uri)
    attempt = 1 if before is None else before.attempt + 1
    return write_spec(spec, attempt, Owner(token=secrets.token_hex(16)))


def absolute(uri: str) -> str:
    """Make a local path absolute, so that it is valid in any working directory."""
    return uri.rstrip("/") if storage.is_remote(uri) else str(storage.local_path(uri))


def write_spec(spec: Spec, attempt: int, owner: Owner) -> str:
    """Store a specification with its attempt and owner; return its URI."""
    records.SPEC.write(spec.run_uri, spec.but(attempt=attempt, owner=owner))
    return records.SPEC.uri(spec.run_uri)


def read_spec(spec_uri: str) -> Spec:
    """Read the specification of this job.

    Raises:
        BadInput: it does not exist, usually because this node does not share the launcher's storage.
        TakenOver: another launcher has replaced it.
    """
    spec = records.SPEC.read_at(spec_uri)
    if spec is None:
        raise BadInput(
            f"there is no {spec_uri} on {socket.gethostname()}; give storage that every node of the cluster "
            "reaches under the same name, such as s3://bucket/prefix or a shared folder"
        )
    lease.confirm(spec)
    return spec


def parse_verdict(line: str) -> dict[str, str] | None:
    """Parse a verdict from a line of a job's output; None if it is not one."""
    _, mark, text = line.partition(VERDICT)
    with contextlib.suppress(ValueError):
        verdict = json.loads(text) if mark else None
        return verdict if isinstance(verdict, dict) and {"kind", "message"} <= verdict.keys() else None
    return None


def _absolute_config(config: Config, start: str | None) -> dict[str, Any]:
    # the job reads prepared data: where it came from, and the servers that it does not ask, are for people
    tree: dict[str, Any] = redact(config.plain())
    tree["storage"] = absolute(config.storage)
    tree["train"]["start_from"] = start or start_of(config)
    return tree


def start_of(config: Config) -> str | None:
    """``train.start_from`` as an absolute folder, resolved here because workers have no access to the registry.

    The run id, in contrast, is derived from ``models:/h2z@champion`` as typed: the same command then finds the same
    run even after that run has become the champion.

    Raises:
        BadInput: there is no such model, version or alias.
    """
    start = config.train.start_from
    if start is None or not start.startswith("models:"):
        return start if start is None or ":" in start else absolute(start)
    from pipeline.registry import models

    return models.resolve(start, config)

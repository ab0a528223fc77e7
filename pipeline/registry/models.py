"""The models of the registry: their versions, who is challenger and champion, and why.

MLflow keeps versions, aliases and tags; the model folders and the audit trail are files in storage:
``models/{name}/{run_id}/`` and ``models/{name}/audit/*.json``, one per event, never changed. Only the process
of the flow or of a person's command comes here; workers do not.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from typing import Any

from agit_core.errors import BadInput
from pipeline.config import Config
from pipeline.registry import audit, versions
from pipeline.registry.tracking import client, explained, tracking_uri

CHALLENGER, CHAMPION = "challenger", "champion"
_MODEL_URI = re.compile(r"models:/+(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))?$")


def model_name(config: Config) -> str:
    return config.register_.model or config.name


def champion(config: Config) -> dict[str, Any] | None:
    """The champion, None without one: see :func:`pipeline.registry.versions.holder`; ``uri`` is its model folder."""
    return versions.holder(tracking_uri(config), model_name(config), CHAMPION)


def promote(config: Config, version: int | str, reason: str) -> dict[str, Any]:
    """A person makes a version the champion, whatever the gate said. Returns the event that was recorded.

    Args:
        version: a number or an alias, such as ``challenger``.

    Raises:
        BadInput: no such version, it is the champion already, or no reason.
    """
    uri, name = tracking_uri(config), model_name(config)
    target = versions.named(uri, name, str(version))
    present = champion(config)
    if present is not None and present["version"] == target:
        raise BadInput(f"version {target} of '{name}' is the champion already; nothing to promote")
    return _change(config, "promote", target, present, reason)


def rollback(config: Config, reason: str) -> dict[str, Any]:
    """The champion before the present one becomes champion again. Returns the event that was recorded.

    Raises:
        BadInput: there is no earlier champion, or no reason.
    """
    present = champion(config)
    name = model_name(config)
    stack = audit.champions(events(config))
    if present is not None and present["version"] in stack:
        # above it lies what was announced and never became champion, because the registry failed
        while stack.pop() != present["version"]:
            pass
    if present is None or not stack:
        raise BadInput(f"model '{name}' has no earlier champion to roll back to; promote a version instead")
    target = versions.named(tracking_uri(config), name, str(stack[-1]))
    return _change(config, "rollback", target, present, reason)


def history(config: Config) -> dict[str, Any]:
    """Versions with aliases, decision and scores, newest first, and the audit's events, oldest first."""
    uri, name = tracking_uri(config), model_name(config)
    told = []
    found = versions.versions(uri, name)
    # the search leaves the aliases out; one request for all versions, as there may be hundreds
    aliases = versions.aliases(uri, name) if found else {}
    for full in found:
        told.append(
            {
                "version": int(full.version),
                "aliases": sorted(
                    alias for alias, number in aliases.items() if int(number) == int(full.version)
                ),
                "run_id": full.tags.get("agit.run_id"),
                "source": full.source,
                "created": int(full.creation_timestamp) / 1000,
                "decision": json.loads(full.tags.get("agit.decision", "{}")),
                "metrics": json.loads(full.tags.get("agit.metrics", "{}")),
            }
        )
    told.sort(key=lambda row: row["version"], reverse=True)
    return {"name": name, "versions": told, "events": events(config)}


def events(config: Config) -> list[dict[str, Any]]:
    """The audit trail of the model's versions in this registry, oldest first."""
    name = model_name(config)
    return audit.events(config.storage, name, versions.runs(tracking_uri(config), name))


def resolve(uri: str, config: Config | None = None) -> str:
    """The model folder behind ``models:/h2z@champion`` or ``models:/h2z/3``; any other URI as it is.

    Without a configuration the registry of ``MLFLOW_TRACKING_URI``, or of ``./.agit``, is asked.

    Raises:
        BadInput: there is no such model, version or alias.
    """
    if not uri.startswith("models:"):
        return uri
    return str(find(uri, config).source)


def find(uri: str, config: Config | None = None) -> Any:
    """The version behind ``models:/h2z@champion`` or ``models:/h2z/3``, as MLflow describes it.

    Raises:
        BadInput: there is no such model, version or alias.
    """
    parsed = _MODEL_URI.match(uri)
    if parsed is None or not (parsed["alias"] or parsed["version"]):
        raise BadInput(f"'{uri}' names no version; write models:/NAME@champion or models:/NAME/3")
    server = tracking_uri(config)
    number = versions.named(server, parsed["name"], parsed["alias"] or parsed["version"])
    return versions.get(server, parsed["name"], number)


def _change(
    config: Config, action: str, target: int, present: dict[str, Any] | None, reason: str
) -> dict[str, Any]:
    if not reason.strip():
        raise BadInput(f"`agit {action}` needs a reason: tell it with --reason, for whoever asks later")
    uri, name = tracking_uri(config), model_name(config)
    event = audit.record(
        config.storage,
        name,
        f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{action}-v{target:05d}-{uuid.uuid4().hex[:6]}",
        action=action,
        version=target,
        mlflow_run_id=versions.get(uri, name, target).run_id,
        previous=present["version"] if present else None,
        champion=target,
        reason=reason.strip(),
    )
    with explained(uri):
        client(uri).set_registered_model_alias(name, CHAMPION, str(target))
        client(uri).set_model_version_tag(name, str(target), f"agit.{action}", json.dumps(event))
    return event

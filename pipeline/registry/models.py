"""Registered models: lookup, history, and manual promotion and rollback of the champion.

MLflow stores versions, aliases and tags. Model folders and the audit trail are files in storage:
``models/{name}/{run_id}/`` and ``models/{name}/audit/*.json``, one per event and never changed. Only the process of a
flow or of a command accesses the registry; training workers do not.
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
from pipeline.registry.tracking import alone, client, explained, tracking_uri

CHALLENGER, CHAMPION = "challenger", "champion"
_MODEL_URI = re.compile(r"models:/+(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))?$")


def model_name(config: Config) -> str:
    return config.register_.model or config.name


def champion(config: Config) -> dict[str, Any] | None:
    """The champion as described by :func:`pipeline.registry.versions.holder`, or None."""
    return versions.holder(tracking_uri(config), model_name(config), CHAMPION)


def promote(config: Config, version: int | str, reason: str) -> dict[str, Any]:
    """Make a version the champion manually, regardless of the gate. Returns the recorded audit event.

    Args:
        version: a number or an alias, such as ``challenger``.

    Raises:
        BadInput: no such version, it is already the champion, or the reason is empty.
    """
    uri, name = tracking_uri(config), model_name(config)
    with alone(uri, name):
        target = versions.named(uri, name, str(version))
        current = champion(config)
        if current is not None and current["version"] == target:
            raise BadInput(f"version {target} of '{name}' is already the champion; nothing to promote")
        return _change(config, "promote", target, current, reason)


def rollback(config: Config, reason: str) -> dict[str, Any]:
    """Make the previous champion the champion again. Returns the recorded audit event.

    Raises:
        BadInput: there is no previous champion, or the reason is empty.
    """
    uri, name = tracking_uri(config), model_name(config)
    with alone(uri, name):
        current = champion(config)
        stack = audit.champions(events(config))
        if current is not None and current["version"] in stack:
            # entries above the current champion were recorded, but the registry failed before they became champion
            while stack.pop() != current["version"]:
                pass
        if current is None or not stack:
            raise BadInput(
                f"model '{name}' has no previous champion to roll back to; promote a version instead"
            )
        target = versions.named(uri, name, str(stack[-1]))
        return _change(config, "rollback", target, current, reason)


def history(config: Config) -> dict[str, Any]:
    """Versions with aliases, decisions and scores, newest first, and the audit events, oldest first."""
    uri, name = tracking_uri(config), model_name(config)
    rows = []
    found = versions.versions(uri, name)
    # MLflow's search does not return aliases; one request for all versions, as there may be hundreds
    aliases = versions.aliases(uri, name) if found else {}
    for full in found:
        rows.append(
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
    rows.sort(key=lambda row: row["version"], reverse=True)
    return {
        "name": name,
        "versions": rows,
        "events": audit.events(config.storage, name, versions.runs(found)),
    }


def events(config: Config) -> list[dict[str, Any]]:
    """The audit trail of the model's versions in this registry, oldest first."""
    name = model_name(config)
    found = versions.versions(tracking_uri(config), name)
    return audit.events(config.storage, name, versions.runs(found))


def resolve(uri: str, config: Config | None = None) -> str:
    """Resolve ``models:/h2z@champion`` or ``models:/h2z/3`` to its model folder; return any other URI unchanged.

    Without a configuration, the registry is that of ``MLFLOW_TRACKING_URI``, or else of ``./.agit``.

    Raises:
        BadInput: there is no such model, version or alias.
    """
    if not uri.startswith("models:"):
        return uri
    return str(find(uri, config).source)


def find(uri: str, config: Config | None = None) -> Any:
    """MLflow's version object for ``models:/h2z@champion`` or ``models:/h2z/3``.

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
    config: Config, action: str, target: int, current: dict[str, Any] | None, reason: str
) -> dict[str, Any]:
    if not reason.strip():
        raise BadInput(f"`agit {action}` needs a reason for the audit trail; give it with --reason")
    uri, name = tracking_uri(config), model_name(config)
    event = audit.record(
        config.storage,
        name,
        f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{action}-v{target:05d}-{uuid.uuid4().hex[:6]}",
        action=action,
        version=target,
        mlflow_run_id=versions.get(uri, name, target).run_id,
        previous=current["version"] if current else None,
        champion=target,
        reason=reason.strip(),
    )
    with explained(uri):
        client(uri).set_registered_model_alias(name, CHAMPION, str(target))
        client(uri).set_model_version_tag(name, str(target), f"agit.{action}", json.dumps(event))
    return event

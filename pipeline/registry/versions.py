"""Lookup of a registered model's versions by number, alias or weights."""

from __future__ import annotations

import json
from typing import Any

from agit_core.errors import BadInput
from pipeline.redact import redact
from pipeline.registry import tracking
from pipeline.registry.tracking import client, explained


def _exists(uri: str) -> bool:
    """False for a SQLite file that does not exist: a query would create an empty database, which takes seconds."""
    file = tracking.database(uri)
    return file is None or file.is_file()


def versions(uri: str, name: str) -> list[Any]:
    """All versions, without aliases (MLflow's search does not return them)."""
    return _search(uri, f"name = '{name}'")


def all_versions(uri: str) -> list[Any]:
    """The versions of every model of a registry."""
    return _search(uri, None)


def _search(uri: str, filter_string: str | None) -> list[Any]:
    if not _exists(uri):
        return []
    items: list[Any] = []
    token = None
    while True:
        with explained(uri):
            page = client(uri).search_model_versions(filter_string, max_results=1000, page_token=token)
        items += page
        token = page.token
        if not token:
            return items


def runs(found: list[Any]) -> dict[int, str]:
    """MLflow run id by version; it distinguishes a version from that of the same number in another registry."""
    return {int(item.version): str(item.run_id) for item in found}


def get(uri: str, name: str, number: int) -> Any:
    """One version with its aliases.

    Raises:
        LookupError: there is no such version.
    """
    with explained(uri):
        return client(uri).get_model_version(name, str(number))


def of_weights(uri: str, name: str, run_id: str, digest: str) -> list[Any]:
    """Versions registered from these weights of this run: at most one, unless its model folder was lost."""
    return [
        get(uri, name, int(version.version))
        for version in versions(uri, name)
        if (version.tags.get("agit.run_id"), version.tags.get("agit.weights_sha256")) == (run_id, digest)
    ]


def holder(uri: str, name: str, alias: str) -> dict[str, Any] | None:
    """The version with an alias: ``name``, ``version``, ``uri`` (model folder), ``weights_sha256``, ``metrics``.

    None if no version has the alias.
    """
    if not _exists(uri):
        return None
    try:
        with explained(uri):
            version = client(uri).get_model_version_by_alias(name, alias)
    except LookupError:
        return None
    return {
        "name": name,
        "version": int(version.version),
        "uri": str(version.source),
        "weights_sha256": version.tags.get("agit.weights_sha256"),
        "metrics": json.loads(version.tags.get("agit.metrics", "{}")),
    }


def named(uri: str, name: str, version: str) -> int:
    """Number of the version given by number or alias.

    Raises:
        BadInput: there is none; the message lists the existing ones.
    """
    numbers = sorted(int(item.version) for item in versions(uri, name))
    if not numbers:
        raise BadInput(f"no model '{name}' is registered at {redact(uri)}; register one with agit run")
    if version.isdigit():
        if int(version) in numbers:
            return int(version)
        existing = ", ".join(map(str, numbers[-10:]))
        raise BadInput(f"model '{name}' has no version {version}; its versions are {existing}")
    aliased = holder(uri, name, version)
    if aliased is None:
        raise BadInput(
            f"model '{name}' has no alias '{version}'; its aliases are "
            f"{', '.join(sorted(aliases(uri, name))) or 'none yet'}; name one of these, or a version's number"
        )
    return int(aliased["version"])


def aliases(uri: str, name: str) -> dict[str, Any]:
    """Alias -> number of the version that has it."""
    with explained(uri):
        return dict(client(uri).get_registered_model(name).aliases)

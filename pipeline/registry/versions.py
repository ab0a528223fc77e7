"""Looking up versions of a registered model by number, alias or origin."""

from __future__ import annotations

import json
from typing import Any

from agit_core.errors import BadInput
from pipeline.redact import redact
from pipeline.registry import tracking
from pipeline.registry.tracking import client, explained


def _is_there(uri: str) -> bool:
    """False where asking would create an empty database first, which takes seconds."""
    file = tracking.database(uri)
    return file is None or file.is_file()


def versions(uri: str, name: str) -> list[Any]:
    """All versions; MLflow's search leaves their aliases out."""
    return _search(uri, f"name = '{name}'")


def all_versions(uri: str) -> list[Any]:
    """The versions of every model of a registry."""
    return _search(uri, None)


def _search(uri: str, filter_string: str | None) -> list[Any]:
    if not _is_there(uri):
        return []
    found: list[Any] = []
    token = None
    while True:
        with explained(uri):
            page = client(uri).search_model_versions(filter_string, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def runs(uri: str, name: str) -> dict[int, str]:
    """The MLflow run of each version, which tells it from the same number in another registry."""
    return {int(item.version): str(item.run_id) for item in versions(uri, name)}


def get(uri: str, name: str, number: int) -> Any:
    """One version with its aliases; LookupError when there is none."""
    with explained(uri):
        return client(uri).get_model_version(name, str(number))


def of_weights(uri: str, name: str, run_id: str, digest: str) -> list[Any]:
    """The versions that were registered from these weights of this run: one, unless its folder was lost."""
    return [
        get(uri, name, int(version.version))
        for version in versions(uri, name)
        if (version.tags.get("agit.run_id"), version.tags.get("agit.weights_sha256")) == (run_id, digest)
    ]


def holder(uri: str, name: str, alias: str) -> dict[str, Any] | None:
    """``name``, ``version``, ``uri``, ``weights_sha256`` and ``metrics`` of the version that has the alias, if any."""
    if not _is_there(uri):
        return None
    try:
        with explained(uri):
            found = client(uri).get_model_version_by_alias(name, alias)
    except LookupError:
        return None
    return {
        "name": name,
        "version": int(found.version),
        "uri": str(found.source),
        "weights_sha256": found.tags.get("agit.weights_sha256"),
        "metrics": json.loads(found.tags.get("agit.metrics", "{}")),
    }


def named(uri: str, name: str, version: str) -> int:
    """The number of a version that is given as a number or an alias.

    Raises:
        BadInput: there is none; says which there are.
    """
    numbers = sorted(int(item.version) for item in versions(uri, name))
    if not numbers:
        raise BadInput(f"no model '{name}' is registered at {redact(uri)}; register one with agit run")
    if version.isdigit():
        if int(version) in numbers:
            return int(version)
        known = ", ".join(map(str, numbers[-10:]))
        raise BadInput(f"model '{name}' has no version {version}; its versions are {known}")
    found = holder(uri, name, version)
    if found is None:
        raise BadInput(
            f"model '{name}' has no alias '{version}'; its aliases are "
            f"{', '.join(sorted(aliases(uri, name))) or 'none yet'}; name one of these, or a version's number"
        )
    return int(found["version"])


def aliases(uri: str, name: str) -> dict[str, Any]:
    """Alias -> number of the version that has it."""
    with explained(uri):
        return dict(client(uri).get_registered_model(name).aliases)

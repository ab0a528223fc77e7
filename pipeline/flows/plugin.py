"""Prefect plugin: ``prefect deployment run train-h2z`` without the flow's name, and use of the local stack.

Loaded through the entry point ``prefect.plugins`` if ``prefect.toml`` enables plugins. A name without a slash is looked
up among all deployments. If no server is configured but ``agit-stack`` runs one for this folder, that one is used.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from prefect.plugins import HookContext, SetupResult, register_hook

STACK = Path(".agit/stack/stack.json")
"""State of a running stack, written by ``agit-stack up`` and removed by ``agit-stack down``; no secrets."""
KEYS = Path(".agit/stack/keys.json")
"""Keys of the stack, readable by its owner only."""


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Patch Prefect's clients and point them at the local stack (called by Prefect on import)."""
    from prefect.client.orchestration import PrefectClient, SyncPrefectClient

    _wrap_async(PrefectClient)
    _wrap_sync(SyncPrefectClient)
    url = None if ctx.api_url else _stack_url()
    if url is None:
        return None
    return SetupResult(env={"PREFECT_API_URL": url, **_stack_key()}, note=f"server of the local stack, {url}")


def _stack_url() -> str | None:
    try:
        return str(json.loads(STACK.read_text())["prefect_api_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stack_key() -> dict[str, str]:
    try:
        return {"PREFECT_API_AUTH_STRING": str(json.loads(KEYS.read_text())["prefect"])}
    except (OSError, ValueError, KeyError, TypeError):  # a stack of another user or of an earlier version
        return {}


def _wrap_async(client: Any) -> None:
    read = client.read_deployment_by_name

    @functools.wraps(read)
    async def by_name(self: Any, name: str) -> Any:
        if "/" not in name:
            name = _full_name(name, *await _deployments_and_flows(self, name))
        return await read(self, name)

    client.read_deployment_by_name = by_name


async def _deployments_and_flows(client: Any, name: str) -> tuple[list[Any], list[Any]]:
    found = await client.read_deployments(**_filter(name)) or await client.read_deployments()
    return found, await client.read_flows()


def _wrap_sync(client: Any) -> None:
    read = client.read_deployment_by_name

    @functools.wraps(read)
    def by_name(self: Any, name: str) -> Any:
        if "/" not in name:
            found = self.read_deployments(**_filter(name)) or self.read_deployments()
            name = _full_name(name, found, self.read_flows())
        return read(self, name)

    client.read_deployment_by_name = by_name


def _filter(name: str) -> dict[str, Any]:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    return {"deployment_filter": DeploymentFilter(name=DeploymentFilterName(any_=[name]))}


def _full_name(name: str, deployments: list[Any], flows: list[Any]) -> str:
    """``FLOW/NAME`` of the deployment with this name, which must be unique.

    Args:
        deployments: those with this name or, if there are none, all.
    """
    flow_names = {flow.id: flow.name for flow in flows}
    full = sorted(f"{flow_names.get(d.flow_id, '?')}/{d.name}" for d in deployments)
    matching = [one for one in full if one.rpartition("/")[2] == name]
    if len(matching) == 1:
        return matching[0]
    if matching:
        _refuse(f"{len(matching)} deployments have the name '{name}'; give one of {', '.join(matching)}")
    hint = f"there are: {', '.join(full)}" if full else "none is registered (run `prefect deploy --all`)"
    _refuse(f"there is no deployment '{name}'; {hint}")


def _refuse(message: str) -> NoReturn:
    # SystemExit on Prefect's command line, which would show an exception as a traceback
    if "prefect.cli.deployment" in sys.modules:
        raise SystemExit(message)
    raise ValueError(message)

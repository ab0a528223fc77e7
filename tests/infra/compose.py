"""The compose files as the real `docker compose` reads them; it needs no engine for that."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.infra.commands import tool

FOLDER = Path("infra/docker")
TEAM = FOLDER / "compose.yaml"
GPU = FOLDER / "compose.gpu.yaml"


def read(*files: Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The merged, interpolated and validated configuration.

    Raises:
        ValueError: with what docker compose says is wrong.
    """
    given = {key: value for key, value in os.environ.items() if not key.startswith(("COMPOSE_", "AGIT_"))}
    done = subprocess.run(
        [tool("docker-compose"), *(f"--file={file}" for file in files), "config", "--format=json"],
        env={**given, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise ValueError(done.stderr.strip())
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def problems(config: dict[str, Any]) -> list[str]:
    """What docker compose accepts and would fail, or be open to the world, all the same."""
    services = config["services"]
    found = []
    for name, service in services.items():
        found += [f"{name}: {text}" for text in _healthy(service)]
        found += [f"{name}: {text}" for text in _secrets(service, config.get("secrets", {}))]
        found += [f"{name}: {text}" for text in _ports(service)]
        found += [f"{name}: {text}" for text in _dependencies(service, services)]
        found += [f"{name}: {text}" for text in _addresses(name, services)]
    return found


def words(service: dict[str, Any]) -> list[str]:
    """The command of a service as the container gets it: `$$` is compose's escape for `$`."""
    return [word.replace("$$", "$") for word in service.get("command") or []]


def _healthy(service: dict[str, Any]) -> list[str]:
    test = service.get("healthcheck", {}).get("test", [])
    names = re.findall(r"os\.environ\[\"(\w+)\"\]", " ".join(test))
    return [
        f"the health check reads {key}, which is not set"
        for key in names
        if key not in service["environment"]
    ]


def _secrets(service: dict[str, Any], known: dict[str, Any]) -> list[str]:
    granted = {entry["target"]: entry["source"] for entry in service.get("secrets", [])}
    found = [f"secret {source} is not defined" for source in granted.values() if source not in known]
    environment = service.get("environment") or {}
    text = " ".join([*(service.get("entrypoint") or []), *words(service), *map(str, environment.values())])
    used = set(re.findall(r"/run/secrets/\w+", text))
    found += [f"{path} is not among its secrets" for path in sorted(used - granted.keys())]
    for key, value in environment.items():
        if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", key) and not str(value).startswith("/run/secrets/"):
            found.append(f"{key} is no reference to a secret")
        if str(value).startswith("/run/secrets/") and not key.endswith("_FILE"):
            found.append(f"{key} names a file but does not end in _FILE")
    return found


def _ports(service: dict[str, Any]) -> list[str]:
    open_ = [port for port in service.get("ports", []) if port.get("host_ip") != "127.0.0.1"]
    return [
        f"port {port['published']} is published to {port.get('host_ip', 'every address')}" for port in open_
    ]


def _dependencies(service: dict[str, Any], services: dict[str, Any]) -> list[str]:
    found = []
    for name, how in service.get("depends_on", {}).items():
        other = services[name]
        checked = "healthcheck" in other or other.get("build", {}).get("target") == "mlflow"
        if how["condition"] == "service_healthy" and not checked:
            found.append(f"waits for {name} to be healthy, which has no health check")
        if how["condition"] == "service_completed_successfully" and other["restart"] != "no":
            found.append(f"waits for the end of {name}, which is always started again")
    return found


def _addresses(name: str, services: dict[str, Any]) -> list[str]:
    """Hosts and ports that a service calls: do they exist, listen there and share a network with it?"""
    service = services[name]
    # where browsers come from is nothing that the service calls
    given = {
        k: v for k, v in (service.get("environment") or {}).items() if not k.endswith("_ALLOWED_ORIGINS")
    }
    text = " ".join([*words(service), *map(str, given.values())])
    calls = {call for call in re.findall(r"(?:https?://|@)([\w.-]+):(\d+)", text) if call[0] != "127.0.0.1"}
    host, port = given.get("PREFECT_SERVER_DATABASE_HOST"), "5432"
    calls |= {(host, port)} if host else set()
    found = []
    for host, port in sorted(calls):
        if host not in services:
            found.append(f"calls {host}, which is no service")
        elif port not in listening(host, services[host]):
            found.append(
                f"calls {host}:{port}, which listens at {', '.join(listening(host, services[host]))}"
            )
        elif not service["networks"].keys() & services[host]["networks"].keys():
            found.append(f"calls {host} but shares no network with it")
    return found


def listening(name: str, service: dict[str, Any]) -> list[str]:
    """The ports that a service's command opens."""
    text = " ".join(words(service))
    found = re.findall(r"-{1,2}(?:s3\.|dashboard-|metrics-export-)?port[= ](\d+)", text)
    return found or {"postgres": ["5432"]}.get(name, [])

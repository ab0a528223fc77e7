"""The team server of compose.yaml, started for real: a deployment through Prefect, Ray, S3 and MLflow."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml

from infra.stack_state import free_port
from tests.containers.engine import ROOT, Engine
from tests.infra import compose, dockerfile
from tests.infra.commands import tool
from tests.pipeline.command import TINY
from tests.pipeline.training import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(5400)]
PROJECT = "agit-test"


@dataclass
class Team:
    """A running team server."""

    engine: Engine
    command: list[str]
    environment: dict[str, str]
    ports: dict[str, int]

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.command, *arguments], env=self.environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0 or not check, self._why(done)
        return done

    def _why(self, done: subprocess.CompletedProcess[str]) -> str:
        logs = self.compose("logs", "--tail=30", check=False)
        return f"{done.stdout[-2000:]}{done.stderr[-4000:]}\n{logs.stdout[-12000:]}"

    def inside(self, service: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's container, with the secrets that its entrypoint reads."""
        name = f"{PROJECT}-{service}-1"
        return self.engine.podman("exec", name, "agit-entrypoint", *command, check=check, timeout=1800)


def overrides(images: dict[str, str]) -> dict[str, Any]:
    """What differs from compose.yaml here: the images' names, and health checks as a line for a shell.

    Podman 4.3 splits a check in the form CMD at its spaces.
    """
    own = dockerfile.stages()["mlflow"].all("HEALTHCHECK")[0]
    checks = {"mlflow": json.loads(own[own.index("[") :])}
    services: dict[str, Any] = {}
    for name, service in compose.read(compose.TEAM)["services"].items():
        services[name] = {"image": images.get(name, images["agit"])}
        if "healthcheck" in service:
            kind, *checks[name] = service["healthcheck"]["test"]
            assert kind == "CMD", f"{name}: a check in another form"
        if name in checks:
            services[name]["healthcheck"] = {"test": ["CMD-SHELL", shlex.join(checks[name])]}
    if images["s3"].startswith("localhost/"):
        # the stand-in has neither SeaweedFS's page of health nor wget
        line = "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8333), 4)'"
        services["s3"]["healthcheck"] = {"test": ["CMD-SHELL", line]}
    return {"services": services}


def _healthy(engine: Engine, stopped: threading.Event) -> None:
    """Run the health checks, which systemd does where it is there."""
    while not stopped.wait(3):
        names = engine.podman(
            "ps", f"--filter=name={PROJECT}-", "--format={{.Names}}", check=False
        ).stdout.split()
        for name in names:
            engine.podman("healthcheck", "run", name, check=False)


@pytest.fixture(scope="module")
def team(engine: Engine, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    # a copy: the secrets are made beside compose.yaml
    shutil.copytree(
        ROOT / "infra/docker", folder / "docker", ignore=shutil.ignore_patterns("secrets", ".env")
    )
    subprocess.run([folder / "docker/secrets.sh"], check=True, capture_output=True)
    (folder / "images.yaml").write_text(yaml.safe_dump(overrides(images)))
    ports = {name: free_port() for name in ("PREFECT_PORT", "MLFLOW_PORT", "RAY_PORT", "S3_PORT")}
    socket = folder / "podman.sock"
    given = {k: v for k, v in os.environ.items() if not k.startswith(("COMPOSE_", "AGIT_", "DOCKER_"))}
    environment = {
        **given,
        **{name: str(port) for name, port in ports.items()},
        "DOCKER_HOST": f"unix://{socket}",
        "RAY_SHM_SIZE": "1gb",
    }
    files = [f"--file={folder / 'docker/compose.yaml'}", f"--file={folder / 'images.yaml'}"]
    command = [tool("docker-compose"), f"--project-name={PROJECT}", *files]
    service = subprocess.Popen(
        engine.command("system", "service", "--time=0", f"unix://{socket}"),
        env=engine.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stopped = threading.Event()
    checks = threading.Thread(target=_healthy, args=(engine, stopped), daemon=True)
    running = Team(engine, command, environment, ports)
    try:
        wait_for(socket.exists, "podman's service", 60)
        checks.start()
        running.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout=900")
        yield running
    finally:
        stopped.set()
        running.compose("down", "--volumes", "--timeout=20", check=False)
        service.terminate()
        service.wait(60)


def test_its_services_are_up_and_the_databases_out_of_reach(team: Team) -> None:
    listed = team.compose("ps", "--all", "--format=json").stdout.splitlines()
    states = {one["Service"]: (one["State"], one["ExitCode"]) for one in map(json.loads, listed)}
    assert {name for name, (state, _) in states.items() if state == "running"} == {
        *("postgres", "s3", "prefect", "mlflow", "ray-head", "worker")
    }
    assert states["bucket"] == states["deployments"] == ("exited", 0)
    assert httpx.get(f"http://127.0.0.1:{team.ports['PREFECT_PORT']}/api/health", timeout=30).json() is True
    page = httpx.get(f"http://127.0.0.1:{team.ports['PREFECT_PORT']}", timeout=30, follow_redirects=True)
    assert "<title>Prefect" in page.text
    assert httpx.get(f"http://127.0.0.1:{team.ports['MLFLOW_PORT']}/health", timeout=30).text == "OK"
    # the worker shares no network with the databases
    reach = "import socket; socket.create_connection(('postgres', 5432), 5)"
    assert team.inside("worker", "python", "-c", reach, check=False).returncode != 0
    # jobs are taken with the token alone
    ray = httpx.get(f"http://127.0.0.1:{team.ports['RAY_PORT']}/api/jobs/", timeout=30)
    assert ray.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}


def test_a_deployment_trains_on_ray_and_registers_with_mlflow(team: Team) -> None:
    """As a user starts it: by the deployment's name, followed to its end."""
    team.inside("worker", "bash", "-c", f"cat > tiny.yaml <<'END'\n{TINY}END")
    parameters = {
        "config": "tiny.yaml",
        "overrides": ["register.gate.better_than_nothing=false", "register.gate.better_than_blob=false"],
    }
    words = ("prefect", "deployment", "run", "agit/train-demo", "--watch", "--params", json.dumps(parameters))
    done = team.inside("worker", *words, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}{team.compose('logs', '--tail=80', 'worker').stdout}"
    found = httpx.get(
        f"http://127.0.0.1:{team.ports['MLFLOW_PORT']}/api/2.0/mlflow/registered-models/get",
        params={"name": "tiny"},
        timeout=60,
    )
    assert found.json()["registered_model"]["latest_versions"][0]["version"] == "1"
    jobs = team.inside("ray-head", "ray", "job", "list").stdout
    assert jobs.count("SUCCEEDED") >= 1, jobs
    listed = (
        "from pipeline import storage; fs, root = storage.filesystem('s3://agit/runs'); "
        "print(*(path.rsplit('/', 1)[-1] for path in fs.find(root)))"
    )
    names = set(team.inside("worker", "python", "-c", listed).stdout.split())
    assert {"result.json", "report.html", "registration.json"} <= names

"""The team server: what `docker compose` says of it, and what it would only say when it is too late."""

from __future__ import annotations

import copy
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import prefect.settings
import pytest
import yaml
from mlflow.environment_variables import MLFLOW_S3_ENDPOINT_URL, MLFLOW_SERVER_ENABLE_JOB_EXECUTION
from prefect.settings.legacy import _get_settings_fields
from prefect_kubernetes.settings import KubernetesSettings

from tests.infra import commands, compose, dockerfile
from tests.infra.pins import constraints


@pytest.fixture(scope="module")
def team() -> dict[str, Any]:
    return compose.read(compose.TEAM)


def test_docker_compose_accepts_it_and_nothing_is_wrong_with_it(team: dict[str, Any]) -> None:
    assert compose.problems(team) == []


def test_with_gpus_only_ray_changes(team: dict[str, Any]) -> None:
    gpu = compose.read(compose.TEAM, compose.GPU)
    assert compose.problems(gpu) == []
    changed = {name for name in team["services"] if team["services"][name] != gpu["services"][name]}
    assert changed == {"ray-head"}
    head = gpu["services"]["ray-head"]
    assert head["build"]["args"]["VARIANT"] == "gpu"
    assert head["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


BREAKAGES = {
    "a secret that nobody defined": (
        "worker",
        lambda s: s["secrets"].append({"source": "x", "target": "/x"}),
    ),
    "a secret that was not granted": ("ray-head", lambda s: s["secrets"].pop()),
    "a password in the open": ("mlflow", lambda s: s["environment"].update(PGPASSWORD="hunter2")),
    "a health check without its address": ("prefect", lambda s: s["environment"].pop("HEALTH_URL")),
    "an open port": ("mlflow", lambda s: s["ports"][0].update(host_ip="0.0.0.0")),
    "a wrong port": ("worker", lambda s: s["environment"].update(MLFLOW_TRACKING_URI="http://mlflow:5001")),
    "a wrong host": ("worker", lambda s: s["environment"].update(PREFECT_API_URL="http://perfect:4200/api")),
    "no way to it": ("prefect", lambda s: s["networks"].pop("databases")),
    "waiting for ever": ("bucket", lambda s: s.update(restart="always")),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_what_is_broken_is_noticed(team: dict[str, Any], what: str) -> None:
    broken = copy.deepcopy(team)
    name, damage = BREAKAGES[what]
    damage(broken["services"][name])
    assert len(compose.problems(broken)) >= 1


def test_docker_compose_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    bad = tmp_path / "compose.yaml"
    bad.write_text(compose.TEAM.read_text().replace("shm_size: 1gb", "shm_sise: 1gb"))
    with pytest.raises(ValueError, match="shm_sise"):
        compose.read(bad)


def test_every_command_is_one_that_the_image_understands(team: dict[str, Any]) -> None:
    checked = []
    for name, service in team["services"].items():
        words = compose.words(service)
        if name in {"s3", "postgres"}:
            continue
        commands.check(words)
        checked.append(name)
    assert len(checked) == 6


def test_worker_takes_its_work_from_the_pool_of_the_deployments(team: dict[str, Any]) -> None:
    project = yaml.safe_load(Path("infra/prefect.yaml").read_text())
    pools = {entry["work_pool"]["name"] for entry in project["deployments"]}
    worker = compose.words(team["services"]["worker"])
    pool, kind = worker[worker.index("--pool") + 1], worker[worker.index("--type") + 1]
    assert pools == {pool}
    assert compose.words(team["services"]["deployments"]) == ["python", "-m", "infra.register", kind]
    # what the deployments read from the environment is given to the service that makes them
    given = team["services"]["deployments"]["environment"]
    wanted = set(re.findall(r"\{\{ \$(AGIT_\w+) \}\}", Path("infra/prefect.yaml").read_text()))
    assert wanted <= given.keys()
    assert given["AGIT_STORAGE"].startswith("s3://agit/"), "in the bucket that the stack makes"


def test_settings_of_prefect_are_known_to_it() -> None:
    """Prefect passes over a misspelt variable without a word."""
    known = set(_get_settings_fields(prefect.settings.Settings))
    known |= set(_get_settings_fields(KubernetesSettings))
    files = [*compose.FOLDER.iterdir(), *Path("infra/kubernetes").rglob("*.yaml")]
    # on this side of a colon or equals sign, or as a name in a list of variables
    pattern = r"(?:^\s*|name: |[ {])(PREFECT_[A-Z_]+?)(?:_FILE)?(?:[:=,]|$)"
    used = {
        name
        for file in files
        if file.is_file()
        for line in file.read_text().splitlines()
        if not line.lstrip().startswith("#")
        for name in re.findall(pattern, line.split("${")[0])
    }
    assert len(used) > 10
    assert used <= known, used - known


def test_images_are_pinned_and_ours_are_built(team: dict[str, Any]) -> None:
    for name, service in team["services"].items():
        _, _, tag = service["image"].partition(":")
        assert re.match(r"\d+\.\d+", tag), f"{name}: {service['image']}"
        if "build" in service:
            target = service["build"]["target"]
            assert target in dockerfile.stages()
            assert Path(service["build"]["context"], service["build"]["dockerfile"]).is_file()


def test_servers_are_not_root_and_cannot_become_it(team: dict[str, Any]) -> None:
    for name, service in team["services"].items():
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service, name
        if "build" in service:
            assert service["cap_drop"] == ["ALL"], name


def test_secrets_script_makes_every_secret_once(tmp_path: Path, team: dict[str, Any]) -> None:
    folder = tmp_path / "secrets"
    for _ in range(2):
        subprocess.run([compose.FOLDER / "secrets.sh", folder], check=True, capture_output=True)
        now = {path.name: path.read_text() for path in folder.iterdir()}
        before = locals().get("before", now)
        assert now == before, "existing secrets are kept"
    assert now.keys() == {Path(secret["file"]).name for secret in team["secrets"].values()}
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in now.values())
    assert len(set(now.values())) == len(now)
    # other users of the host cannot enter the folder; another user in a container can read the file
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def test_settings_of_the_example_are_those_of_the_compose_files() -> None:
    text = compose.TEAM.read_text() + compose.GPU.read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    offered = set(re.findall(r"^# (\w+)=", (compose.FOLDER / "env.example").read_text(), re.MULTILINE))
    assert offered == used
    ignored = subprocess.run(
        ["git", "check-ignore", "infra/docker/.env", "infra/docker/secrets/ray_token"],
        capture_output=True,
        text=True,
    )
    assert len(ignored.stdout.splitlines()) == 2


def test_other_names_for_mlflow_are_let_in() -> None:
    config = compose.read(compose.TEAM, environment={"MLFLOW_ALLOWED_HOSTS": "mlflow.example.org"})
    command = compose.words(config["services"]["mlflow"])
    hosts = next(word for word in command if word.startswith("--allowed-hosts="))
    assert hosts.split("=")[1].split(",") == [
        "mlflow:5000",
        "localhost:*",
        "127.0.0.1:*",
        "mlflow.example.org",
    ]


def test_prefects_api_is_called_by_its_own_pages_alone() -> None:
    config = compose.read(compose.TEAM, environment={"PREFECT_PORT": "4321"})
    origins = config["services"]["prefect"]["environment"]["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]
    assert origins.split(",") == ["http://127.0.0.1:4321", "http://localhost:4321"]


def test_mlflow_reads_the_artifacts_it_shows_and_starts_no_job_runners(team: dict[str, Any]) -> None:
    server, worker = team["services"]["mlflow"], team["services"]["worker"]
    given = server["environment"]
    assert given[MLFLOW_SERVER_ENABLE_JOB_EXECUTION.name] == "false"
    assert given[MLFLOW_S3_ENDPOINT_URL.name] == worker["environment"]["AWS_ENDPOINT_URL"]
    assert {"s3_access_key", "s3_secret_key"} <= {entry["source"] for entry in server["secrets"]}
    assert (
        f"--default-artifact-root={team['services']['deployments']['environment']['AGIT_STORAGE']}/mlflow"
        in (compose.words(server))
    )


def test_mlflow_speaks_postgres_and_s3() -> None:
    server = constraints(str(compose.FOLDER / "mlflow.txt"))
    assert {"psycopg2-binary", "boto3", "alembic", "sqlalchemy"} <= server.keys()
    assert os.access(compose.FOLDER / "databases.sh", os.R_OK)

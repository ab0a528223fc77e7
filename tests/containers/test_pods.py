"""The pods of infra/kubernetes from their rendered manifests, up to a flow run that trains on the Ray of the pods.

What has no counterpart without Kubernetes' API: the operator (its commands are made in pods.py), the autoscaler, and
Prefect's worker, which would make the flow run's job; the test makes it from the same template.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra.register import pool_template
from tests.containers.engine import ROOT, Engine
from tests.containers.pods import Cluster
from tests.infra import manifests
from tests.pipeline.command import TINY
from tests.pipeline.training import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(5400)]
NETWORK, SUBNET = "agit-test-pods", "10.231.7"
HEAD = "agit-head-svc"


def deployment(cluster: Cluster, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod of a deployment and its container."""
    pod = manifests.one(cluster.docs, "Deployment", name)["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


@pytest.fixture(scope="module")
def cluster(
    engine: Engine, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("pods")
    key = {
        name: secrets.token_hex(16) for name in ("access", "secret", "ray", "prefect", "mlflow", "postgres")
    }
    given = {
        "agit-env": {
            "AWS_ACCESS_KEY_ID": key["access"],
            "AWS_SECRET_ACCESS_KEY": key["secret"],
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": "http://s3:8333",
            "MLFLOW_TRACKING_URI": "http://mlflow:5000",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": key["ray"],
        },
        "agit-ray-token": {"auth_token": key["ray"]},
        "agit-databases": {
            "host": "postgres",
            "prefect_password": key["prefect"],
            "mlflow_password": key["mlflow"],
        },
    }
    named = {"agit:0.1.0-cpu": images["agit"], "agit-mlflow:0.1.0": images["mlflow"]}
    docs = manifests.build(ROOT / "infra/kubernetes/overlays/cpu")
    made = Cluster(engine, docs, NETWORK, SUBNET, folder, given, named)
    _remove(engine)
    engine.podman("network", "create", f"--subnet={SUBNET}.0/24", NETWORK)
    try:
        _outside(made, key, images["postgres"], images["s3"])
        yield made
    finally:
        _remove(engine)


def _remove(engine: Engine) -> None:
    engine.podman("network", "rm", "--force", "--time=5", NETWORK, check=False)


def _outside(cluster: Cluster, key: dict[str, str], postgres_image: str, s3_image: str) -> None:
    """PostgreSQL and an object store, which the manifests expect to be run elsewhere."""
    engine, folder = cluster.engine, cluster.folder / "secrets"
    folder.mkdir(mode=0o755)
    for name, value in (
        ("postgres_password", key["postgres"]),
        ("prefect_db_password", key["prefect"]),
        ("mlflow_db_password", key["mlflow"]),
    ):
        (folder / name).write_text(value)
    engine.podman(
        *("run", "--detach", "--name=agit-test-postgres", f"--network={NETWORK}", "--network-alias=postgres"),
        f"--volume={folder}:/run/secrets:ro",
        f"--volume={ROOT / 'infra/docker/databases.sh'}:/docker-entrypoint-initdb.d/databases.sh:ro",
        "--env=POSTGRES_PASSWORD_FILE=/run/secrets/postgres_password",
        "--env=POSTGRES_INITDB_ARGS=--auth-host=scram-sha-256",
        postgres_image,
    )
    arguments = [
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        "-s3.ip.bind=0.0.0.0",
        "-s3.port=8333",
    ]
    engine.podman(
        *("run", "--detach", "--name=agit-test-s3", f"--network={NETWORK}", "--network-alias=s3"),
        f"--env=AWS_ACCESS_KEY_ID={key['access']}",
        f"--env=AWS_SECRET_ACCESS_KEY={key['secret']}",
        "--entrypoint=/entrypoint.sh",
        s3_image,
        *arguments,
    )
    bucket = "from pipeline import storage; fs, name = storage.filesystem('s3://agit'); fs.mkdir(name)"
    aws = [f"--env={name}={value}" for name, value in cluster.secrets["agit-env"].items()]
    image = cluster.images["agit:0.1.0-cpu"]
    command = ("run", "--rm", f"--network={NETWORK}", *aws, image, "python", "-c", bucket)
    wait_for(lambda: engine.podman(*command, check=False).returncode == 0, "the object store", 120)


@pytest.fixture(scope="module")
def servers(cluster: Cluster) -> Cluster:
    for name in ("prefect-server", "mlflow"):
        pod, container = deployment(cluster, name)
        cluster.start(f"agit-test-{name}", pod, container, service=name)
    return cluster


def test_the_servers_pass_their_probes(servers: Cluster) -> None:
    for name in ("prefect-server", "mlflow"):
        _, container = deployment(servers, name)
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            servers.probe(f"agit-test-{name}", container, kind)
    url = f"http://{servers.addresses['agit-test-prefect-server']}:4200"
    assert "<title>Prefect" in httpx.get(url, timeout=60, follow_redirects=True).text


@pytest.fixture(scope="module")
def ray(servers: Cluster) -> Cluster:
    spec = manifests.one(servers.docs, "RayCluster", "agit")["spec"]
    servers.ray("agit-test-head", spec["headGroupSpec"], "head", HEAD)

    def answers() -> bool:
        return servers.engine.podman("exec", "agit-test-head", "ray", "status", check=False).returncode == 0

    wait_for(answers, "Ray's head", 180)
    servers.ray("agit-test-node", spec["workerGroupSpecs"][0], "worker", HEAD)
    return servers


def test_rays_nodes_find_each_other_and_ask_for_the_token(ray: Cluster) -> None:
    script = (
        "import json, ray; ray.init(log_to_driver=False); "
        "print(json.dumps([sum(node['Alive'] for node in ray.nodes()), ray.cluster_resources().get('CPU')]))"
    )

    def nodes() -> bool:
        done = ray.engine.podman("exec", "agit-test-head", "python", "-c", script, check=False)
        return done.stdout.endswith("[2, 2.0]\n")

    wait_for(nodes, "the worker", 300)
    url = f"http://{ray.addresses['agit-test-head']}:8265/api/jobs/"
    assert httpx.get(url, timeout=30).status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}
    token = ray.secrets["agit-ray-token"]["auth_token"]
    given = {"Authorization": f"Bearer {token}"}
    assert httpx.get(url, headers=given, timeout=30).status_code == httpx.codes.OK


def test_a_flow_run_trains_on_the_pods(ray: Cluster) -> None:
    """Registered by the init container; its own pod is the one of the work pool's template."""
    pod = manifests.one(ray.docs, "Deployment", "prefect-worker")["spec"]["template"]["spec"]
    ray.start("agit-test-deployments", pod, pod["initContainers"][0], wait=True)
    api = f"http://{ray.addresses['agit-test-prefect-server']}:4200/api"
    (found,) = (
        one
        for one in httpx.post(f"{api}/deployments/filter", json={}, timeout=60).json()
        if one["name"] == "train-demo"
    )
    overrides = ["register.gate.better_than_nothing=false", "register.gate.better_than_blob=false"]
    parameters = {"config": "/tmp/tiny.yaml", "overrides": overrides}
    run = httpx.post(
        f"{api}/deployments/{found['id']}/create_flow_run", json={"parameters": parameters}, timeout=60
    ).json()
    job = pool_template("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    of_job = dict(job["containers"][0])
    settings = manifests.one(ray.docs, "ConfigMap", "agit-settings")["data"]
    # what Prefect's worker fills in
    of_job |= {
        "image": "agit:0.1.0-cpu",
        "args": ["prefect", "flow-run", "execute"],
        "env": [
            {"name": "PREFECT_API_URL", "value": settings["PREFECT_API_URL"]},
            {"name": "PREFECT__FLOW_RUN_ID", "value": run["id"]},
        ],
        "envFrom": [{"secretRef": {"name": "agit-env"}}],
        "volumeMounts": [{"name": "config", "mountPath": "/tmp"}],
    }
    config_volume = {"name": "config", "emptyDir": {}}
    folder = ray.folder / "agit-test-flow-run/config"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(TINY)
    answer = ray.start("agit-test-flow-run", {**job, "volumes": [config_volume]}, of_job, wait=True)
    ended = httpx.get(f"{api}/flow_runs/{run['id']}", timeout=60).json()
    assert ended["state_type"] == "COMPLETED", answer[-6000:]
    version = httpx.get(
        f"http://{ray.addresses['agit-test-mlflow']}:5000/api/2.0/mlflow/registered-models/get",
        params={"name": "tiny"},
        timeout=60,
    ).json()
    assert version["registered_model"]["latest_versions"][0]["version"] == "1"
    jobs = ray.engine.podman("exec", "agit-test-head", "ray", "job", "list").stdout
    assert "SUCCEEDED" in jobs, jobs

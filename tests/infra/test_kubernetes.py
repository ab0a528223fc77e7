"""The Kubernetes manifests: built by kustomize, checked by schema, and against what they refer to."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import ray
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from agit_core.errors import BadInput
from infra.register import pool_template
from pipeline import config
from pipeline.train.driver import AUTOSCALED_GPUS, needs_gpu
from tests.infra import commands, dockerfile, manifests, network
from tests.infra.manifests import FOLDER, OVERLAYS, build, one, problems, templates
from tests.infra.pins import constraints

RAY_JOB = FOLDER / "ray-job"


def secrets() -> dict[str, set[str]]:
    """Secrets and keys that the commands of env.example make."""
    text = (FOLDER / "env.example").read_text()
    joined = re.sub(r"\\\n#\s*", " ", text)
    made: dict[str, set[str]] = {}
    for name, rest in re.findall(r"create secret generic (\S+)(.*)", joined):
        made[name] = set(re.findall(r"--from-(?:literal|file)=(\w+)", rest))
        if "--from-env-file" in rest:
            made[name] |= set(re.findall(r"^(\w+)=", text, re.MULTILINE))
    for name, key in re.findall(r"patch secret (\S+) .*?stringData.*?(\w+)\\\":", joined):
        made[name].add(key)
    return made


@pytest.fixture(scope="module")
def gke() -> list[dict[str, Any]]:
    return build(FOLDER / "overlays" / "gke")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_is_sound(overlay: str) -> None:
    docs = build(FOLDER / "overlays" / overlay)
    assert len(docs) == 18
    assert problems(docs, secrets()) == []


def test_ray_job_is_sound_and_alone() -> None:
    docs = build(RAY_JOB)
    assert [doc["kind"] for doc in docs] == ["RayJob"]
    assert problems(docs, secrets()) == []
    cluster = one(build(FOLDER / "base"), "RayCluster", "agit")
    assert docs[0]["spec"]["rayClusterSpec"] == cluster["spec"]
    # what its pods need and it does not make is made by hand, in the guide
    guide = (FOLDER.parent / "README.md").read_text()
    for template in templates(docs[0]):
        account = template["spec"].get("serviceAccountName")
        assert account is None or f"kubectl -n agit create serviceaccount {account}" in guide


HEAD = ["spec", "headGroupSpec", "template", "spec"]
WORKER = ["spec", "workerGroupSpecs", 0, "template", "spec"]
POD = ["spec", "template", "spec"]
BREAKAGES: dict[str, tuple[str, str, list[Any], Any]] = {
    "a field that KubeRay does not know": ("RayCluster", "agit", ["spec", "enableAutoscaling"], True),
    "a value of the wrong kind": (
        "RayCluster",
        "agit",
        ["spec", "headGroupSpec", "rayStartParams"],
        {"num-cpus": 0},
    ),
    "a field that Kubernetes does not know": ("Deployment", "mlflow", [*POD, "tolerance"], []),
    "a wrong field in Ray's pods": ("RayCluster", "agit", [*WORKER, "containers", 0, "preStop"], {}),
    "a role without verbs": ("Role", "prefect-worker", ["rules", 0, "verbs"], None),
    "a secret's key that is not made": (
        "Deployment",
        "mlflow",
        [*POD, "containers", 0, "env", 2, "valueFrom", "secretKeyRef", "key"],
        "password",
    ),
    "a password in the open": (
        "Deployment",
        "mlflow",
        [*POD, "containers", 0, "env", 2],
        {"name": "PGPASSWORD", "value": "x"},
    ),
    "a variable that is not set": ("Deployment", "mlflow", [*POD, "containers", 0, "args"], ["$(DB_HOST)"]),
    "an account that is not there": ("Deployment", "prefect-worker", [*POD, "serviceAccountName"], "prefect"),
    "a ConfigMap that is not there": ("ConfigMap", "agit-settings", ["metadata", "name"], "settings"),
    "a probe of a port without a name": ("Deployment", "mlflow", [*POD, "containers", 0, "ports"], []),
    "root": ("RayCluster", "agit", [*HEAD, "securityContext", "runAsNonRoot"], False),
    "no shared memory": (
        "RayCluster",
        "agit",
        [*WORKER, "containers", 0, "volumeMounts"],
        [{"name": "tmp", "mountPath": "/tmp"}],
    ),
    "a volume that is not there": ("RayCluster", "agit", [*WORKER, "volumes"], []),
    "no memory limit": ("Deployment", "mlflow", [*POD, "containers", 0, "resources", "limits"], {}),
    "a service of nobody": ("Service", "mlflow", ["spec", "selector"], {"app": "mlflow"}),
    "the default namespace": ("Service", "mlflow", ["metadata", "namespace"], "default"),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_what_is_broken_is_noticed(gke: list[dict[str, Any]], what: str) -> None:
    assert problems(manifests.broken(gke, *BREAKAGES[what]), secrets()) != []


def test_kustomize_refuses_a_patch_that_hits_nothing(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text((FOLDER / "base" / "ray-cluster.yaml").read_text())
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [cluster.yaml]\npatches:\n  - target: {kind: RayCluster, name: agit}\n    patch: |\n"
        "      - {op: replace, path: /spec/workerGroupSpecs/1/groupName, value: x}\n"
    )
    with pytest.raises(ValueError, match="workerGroupSpecs"):
        build(tmp_path)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_versions_are_those_of_the_pins_and_images_those_that_are_built(overlay: str) -> None:
    docs = build(FOLDER / "overlays" / overlay)
    assert one(docs, "RayCluster", "agit")["spec"]["rayVersion"] == constraints()["ray"]
    images = {container["image"] for doc in docs for _, container in manifests.containers(doc)}
    built = set(re.findall(r"-t (\S+)", dockerfile.PATH.read_text()))
    assert {image.rsplit("/", 1)[-1] for image in images} <= built
    registries = {image.rpartition("/")[0] for image in images}
    assert len(registries) == 1, "an overlay renames every image or none"
    worker = one(docs, "Deployment", "prefect-worker")["spec"]["template"]["spec"]
    given = {entry["name"]: entry.get("value") for entry in worker["initContainers"][0]["env"]}
    assert given["AGIT_IMAGE"] == worker["containers"][0]["image"], "flow runs use the worker's image"


def test_prefects_api_is_called_by_its_own_pages_alone(gke: list[dict[str, Any]]) -> None:
    """At the address that `kubectl port-forward` gives."""
    (server,) = one(gke, "Deployment", "prefect-server")["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value") for entry in server["env"]}
    origins = given["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert origins == ["http://127.0.0.1:4200", "http://localhost:4200"]


@pytest.mark.parametrize("provider", ["gke", "eks", "aks"])
def test_gpu_workers_come_and_go_on_spot_nodes(provider: str) -> None:
    cluster = one(build(FOLDER / "overlays" / provider), "RayCluster", "agit")["spec"]
    (group,) = cluster["workerGroupSpecs"]
    pod = group["template"]["spec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    assert group["maxReplicas"] >= 1
    assert len(pod["nodeSelector"]) == 1
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    keys = {toleration["key"] for toleration in pod["tolerations"]}
    assert "nvidia.com/gpu" in keys
    tainted = provider != "eks"  # Karpenter does not taint spot nodes by itself
    assert (pod["nodeSelector"].keys() <= keys) == tainted
    # the head computes nothing and stays where nodes are not taken away
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nodeSelector" not in head["template"]["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_head_knows_how_many_gpus_may_come(overlay: str) -> None:
    cluster = one(build(FOLDER / "overlays" / overlay), "RayCluster", "agit")["spec"]
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    environment = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    given = {entry["name"]: entry.get("value") for entry in environment}
    assert int(given[AUTOSCALED_GPUS]) == group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))


def test_device_auto_waits_for_gpus_that_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 0.0})  # at rest
    assert not needs_gpu(config.load("h2z"))
    monkeypatch.setenv(AUTOSCALED_GPUS, "4")
    assert needs_gpu(config.load("h2z"))
    assert needs_gpu(config.load("h2z", ["train.device=cuda", "train.workers=4"]))
    with pytest.raises(BadInput, match="Ray sees 4"):
        needs_gpu(config.load("h2z", ["train.device=cuda", "train.workers=5"]))
    assert not needs_gpu(config.load("h2z", ["train.device=cpu"]))


def test_hook_of_the_spot_nodes_ends_before_the_node_does(gke: list[dict[str, Any]]) -> None:
    pod = one(gke, "RayCluster", "agit")["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    program, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert int(seconds) + 15 <= pod["terminationGracePeriodSeconds"]
    copies = dockerfile.stages()["base"].all("COPY")
    assert any(line.endswith(f"/{program}") for line in copies)


def test_commands_are_those_of_the_image(gke: list[dict[str, Any]]) -> None:
    checked = []
    for doc in gke:
        for _, container in manifests.containers(doc):
            if args := container.get("args"):
                commands.check([re.sub(r"\$\((\w+)\)", r"\1", word) for word in args])
                checked.append(args)
    assert len(checked) == 4
    entry = build(RAY_JOB)[0]["spec"]["entrypoint"]
    commands.check(shlex.split(entry))
    assert shlex.split(entry)[:3] == ["python", "-m", "pipeline.train_job"], "the only training path"


def test_pool_template_settings_and_services_agree(gke: list[dict[str, Any]]) -> None:
    """What the deployments, the flow runs' pods and the cluster call each other."""
    properties = pool_template("kubernetes")["variables"]["properties"]
    defaults = {key: field.get("default") for key, field in properties.items()}
    assert defaults["namespace"] == "agit"
    accounts = {doc["metadata"]["name"] for doc in gke if doc["kind"] == "ServiceAccount"}
    assert defaults["service_account_name"] in accounts
    assert defaults["secret"] in secrets()
    settings = one(gke, "ConfigMap", "agit-settings")["data"]
    cluster = one(gke, "RayCluster", "agit")
    assert settings["AGIT_RAY_ADDRESS"] == f"http://{cluster['metadata']['name']}-head-svc:8265"
    wanted = set(re.findall(r"\{\{ \$(AGIT_\w+) \}\}", Path("infra/prefect.yaml").read_text()))
    assert wanted <= settings.keys()
    services = {
        (doc["metadata"]["name"], port["port"])
        for doc in gke
        if doc["kind"] == "Service"
        for port in doc["spec"]["ports"]
    }
    urls = settings["PREFECT_API_URL"] + (FOLDER / "env.example").read_text()
    called = {(host, int(port)) for host, port in re.findall(r"http://([\w-]+):(\d+)", urls)}
    assert called == services


def test_job_of_a_flow_run_is_sound(gke: list[dict[str, Any]]) -> None:
    """What Prefect's worker makes of the pool's template for a flow run, checked like the manifests."""
    template = pool_template("kubernetes", "registry.example.org/team/agit:0.1.0-cpu")
    jobs = KubernetesWorkerJobConfiguration
    # a client that is asked nothing, in place of a server that would be started
    client = PrefectClient("http://127.0.0.1:9/api")
    made = asyncio.run(jobs.from_template_and_values(template, {"working_dir": "/x"}, client=client))
    made.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="train demo"), flow=Flow(name="agit"))
    job = {**made.job_manifest, "metadata": {**made.job_manifest["metadata"], "name": "flow-run"}}
    pod = job["spec"]["template"]
    assert manifests.schema_errors(job) == []
    assert "prefect.io/flow-run-id" in pod["metadata"]["labels"], "the network policies know it by this"
    assert pod["spec"]["containers"][0]["image"] == "registry.example.org/team/agit:0.1.0-cpu"
    assert pod["spec"]["containers"][0]["args"] == ["prefect", "flow-run", "execute"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def test_ray_gets_its_token_from_the_secret_that_flow_runs_use(gke: list[dict[str, Any]]) -> None:
    auth = one(gke, "RayCluster", "agit")["spec"]["authOptions"]
    assert auth["mode"] == "token"
    assert "auth_token" in secrets()[auth["secretName"]]
    assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= secrets()["agit-env"]


def test_rights_are_least(gke: list[dict[str, Any]]) -> None:
    rules = [rule for doc in gke if doc["kind"] in {"Role", "ClusterRole"} for rule in doc["rules"]]
    assert not [doc for doc in gke if doc["kind"].startswith("ClusterRole")]
    assert all("*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"] for rule in rules)
    assert "secrets" not in {name for rule in rules for name in rule["resources"]}
    writable = {
        name
        for rule in rules
        if {"create", "delete", "patch", "update"} & set(rule["verbs"])
        for name in rule["resources"]
    }
    assert writable == {"jobs"}
    flow = one(gke, "ServiceAccount", "agit-flow")
    assert flow["automountServiceAccountToken"] is False


def test_network_lets_through_what_is_needed_and_no_more(gke: list[dict[str, Any]]) -> None:
    flow_run = {"prefect.io/flow-run-id": "x"}
    worker = {"app.kubernetes.io/name": "prefect-worker"}
    head = {"ray.io/cluster": "agit", "ray.io/node-type": "head"}
    node = {"ray.io/cluster": "agit", "ray.io/node-type": "worker"}
    prefect, mlflow = {"app.kubernetes.io/name": "prefect-server"}, {"app.kubernetes.io/name": "mlflow"}
    open_ = [
        (flow_run, head, 8265),
        (flow_run, prefect, 4200),
        (flow_run, mlflow, 5000),
        (worker, prefect, 4200),
        (node, head, 6379),
        (head, node, 10002),
    ]
    shut = [
        (worker, head, 8265),
        (flow_run, node, 10002),
        (flow_run, head, 6379),
        (node, mlflow, 5000),
        (mlflow, prefect, 4200),
        (node, flow_run, 80),
    ]
    for source, target, port in open_:
        assert network.passes(gke, source, target, port), (source, target, port)
    for source, target, port in shut:
        assert not network.passes(gke, source, target, port), (source, target, port)

"""The Kubernetes manifests: built by kustomize, checked by schema, and against what they refer to."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import ray
import yaml
from mlflow.environment_variables import MLFLOW_S3_ENDPOINT_URL, MLFLOW_SERVER_ENABLE_JOB_EXECUTION
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from agit_core.errors import BadInput
from infra.register import pool_template
from pipeline.config import load
from pipeline.train import prometheus
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
    assert len(docs) == 21
    assert problems(docs, secrets()) == []


def test_ray_job_is_sound_and_alone() -> None:
    docs = build(RAY_JOB)
    assert [doc["kind"] for doc in docs] == ["RayJob"]
    assert problems(docs, secrets()) == []
    cluster = one(build(FOLDER / "base"), "RayCluster", "agit")
    for _, container in manifests.containers(cluster):
        container["image"] = f"registry.example.org/team/{container['image']}"
    assert docs[0]["spec"]["rayClusterSpec"] == cluster["spec"]
    assert {c["image"].rpartition("/")[0] for _, c in manifests.containers(docs[0])} == {
        "registry.example.org/team"
    }
    # the command of the guide makes a new one each time: kustomize itself has no generateName
    guide = (FOLDER.parent / "README.md").read_text()
    (edit,) = re.findall(r"kustomize infra/kubernetes/ray-job \| sed '(.+?)' \| kubectl create -f -", guide)
    sent = subprocess.run(
        ["sed", edit], input=manifests.rendered(RAY_JOB), capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(sent.stdout)["metadata"] == {"generateName": "agit-train-", "namespace": "agit"}
    # what its pods need and it does not make is made by hand, in the guide
    assert "kubectl apply -f infra/kubernetes/base/priorities.yaml" in guide
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
    "a drain that waits for ever": (
        "PriorityClass",
        "agit-training",
        [],
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "x", "namespace": "agit"},
            "spec": {"minAvailable": 1},
        },
    ),
    "a priority class that is not there": ("PriorityClass", "agit-control", ["metadata", "name"], "x"),
    "a disk without bounds": (
        "RayCluster",
        "agit",
        [*WORKER, "containers", 0, "resources", "limits", "ephemeral-storage"],
        None,
    ),
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
    assert not needs_gpu(load("h2z"))
    monkeypatch.setenv(AUTOSCALED_GPUS, "4")
    assert needs_gpu(load("h2z"))
    assert needs_gpu(load("h2z", ["train.device=cuda", "train.workers=4"]))
    with pytest.raises(BadInput, match="Ray sees 4"):
        needs_gpu(load("h2z", ["train.device=cuda", "train.workers=5"]))
    assert not needs_gpu(load("h2z", ["train.device=cpu"]))


NOTICE_SECONDS = {"gke": 25, "eks": 120, "aks": 30}
"""From the announcement of a spot node's end to it; of Google's 30 s the kubelet leaves pods 25."""


@pytest.mark.parametrize("provider", NOTICE_SECONDS)
def test_hook_of_the_spot_nodes_ends_before_the_node_does(provider: str) -> None:
    docs = build(FOLDER / "overlays" / provider)
    pod = one(docs, "RayCluster", "agit")["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    program, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert int(seconds) + 5 <= pod["terminationGracePeriodSeconds"] <= NOTICE_SECONDS[provider]
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
    # a training of days is not moved to save a node, and a pod that is lost all the same is started again: Prefect's
    # own agreement with Kubernetes is that the flow run then goes on, in one pod at a time
    assert KEPT.items() <= pod["metadata"]["annotations"].items()
    assert job["spec"]["backoffLimit"] >= 1
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    assert made.env["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "relinquish"
    classes = {doc["metadata"]["name"] for doc in gke if doc["kind"] == "PriorityClass"}
    assert pod["spec"]["priorityClassName"] in classes
    assert {"cpu", "memory", "ephemeral-storage"} == pod["spec"]["containers"][0]["resources"][
        "requests"
    ].keys()


KEPT = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Annotations of a pod whose node is not emptied to save money."""


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


@pytest.mark.parametrize("overlay", [*OVERLAYS, "ray-job"])
def test_torch_finds_a_driver_that_is_mounted_and_no_node_is_emptied_under_a_training(overlay: str) -> None:
    docs = build(RAY_JOB if overlay == "ray-job" else FOLDER / "overlays" / overlay)
    (doc,) = [doc for doc in docs if doc["kind"] in {"RayCluster", "RayJob"}]
    cluster = doc["spec"].get("rayClusterSpec", doc["spec"])
    for template in templates({"kind": "RayCluster", "spec": cluster}):
        assert KEPT.items() <= template["metadata"]["annotations"].items()
        (container,) = template["spec"]["containers"]
        assert environment(container)["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"


def test_mlflow_reads_the_artifacts_it_shows_and_starts_no_job_runners(gke: list[dict[str, Any]]) -> None:
    (server,) = one(gke, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    given = environment(server)
    assert given[MLFLOW_SERVER_ENABLE_JOB_EXECUTION.name] == "false"
    keys = {name: given[name]["secretKeyRef"]["key"] for name in given if name.startswith("AWS_")}
    assert keys == {name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")}
    assert given[MLFLOW_S3_ENDPOINT_URL.name]["secretKeyRef"]["key"] == "AWS_ENDPOINT_URL"


@pytest.mark.parametrize("overlay", [*OVERLAYS, "ray-job"])
def test_keys_are_optional_and_the_bucket_is_named_once(overlay: str) -> None:
    """Pods with their own identity have no keys; another bucket is a change of one line."""
    docs = build(RAY_JOB if overlay == "ray-job" else FOLDER / "overlays" / overlay)
    references = [
        entry["valueFrom"]["secretKeyRef"]
        for doc in docs
        for _, container in manifests.containers(doc)
        for entry in container.get("env", [])
        if entry["name"].startswith("AWS_")
    ]
    assert len(references) >= 8
    assert all(reference["optional"] for reference in references)
    named = re.findall(r"s3://[\w/-]+", yaml.safe_dump_all(docs))
    assert named == (
        [] if overlay == "ray-job" else [one(docs, "ConfigMap", "agit-settings")["data"]["AGIT_STORAGE"]]
    )


def with_components(folder: Path, overlay: str, *components: str) -> list[dict[str, Any]]:
    """An overlay with more components, as its owner would name them."""
    at = {name: os.path.relpath(FOLDER / name, folder) for name in (f"overlays/{overlay}", *components)}
    tree = {"resources": [at.pop(f"overlays/{overlay}")], "components": list(at.values())}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(tree))
    return build(folder)


def test_pods_can_have_an_identity_of_their_own(tmp_path: Path) -> None:
    docs = with_components(tmp_path, "eks", "components/workload-identity")
    assert problems(docs, secrets()) == []
    roles = {
        doc["metadata"]["name"]
        for doc in docs
        if doc["kind"] == "ServiceAccount"
        and "eks.amazonaws.com/role-arn" in doc["metadata"].get("annotations", {})
    }
    # every pod that reads or writes the store runs under one of them
    users = {
        template["spec"].get("serviceAccountName")
        for doc in docs
        for template in templates(doc)
        if any("AWS_REGION" in environment(c) for c in template["spec"]["containers"])
    }
    users.add(pool_template("kubernetes")["variables"]["properties"]["service_account_name"]["default"])
    assert users == roles


def exported() -> set[str]:
    """Names under which Prometheus sees a training's figures."""
    names = {f"ray_agit_{name}" for name in (*prometheus.GAUGES, *prometheus.LABELLED)}
    return names | {f"ray_agit_{name}_total" for name in prometheus.COUNTERS}


# of the exporters beside it: kube-state-metrics and Ray's own
FOREIGN = {
    "kube_pod_status_phase",
    "kube_job_status_failed",
    "kube_pod_container_status_restarts_total",
    "ray_node_gpus_utilization",
    "ray_node_mem_used",
}


def test_prometheus_reaches_the_nodes_and_alerts_and_dashboard_ask_for_what_is_exported(
    tmp_path: Path,
) -> None:
    docs = with_components(tmp_path, "gke", "components/monitoring")
    assert problems(docs, secrets()) == []
    (endpoint,) = one(docs, "PodMonitor", "ray")["spec"]["podMetricsEndpoints"]
    pods = [
        template
        for template in templates(one(docs, "RayCluster", "agit"))
        if network.chosen(one(docs, "PodMonitor", "ray")["spec"]["selector"], {"ray.io/cluster": "agit"})
    ]
    assert len(pods) == 2
    for template in pods:
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        node = {"ray.io/cluster": "agit"}
        assert network.passes(docs, {}, node, ports[endpoint["port"]], namespace="monitoring")
        assert not network.passes(docs, {}, node, ports[endpoint["port"]], namespace="other")
        assert not network.passes(docs, {}, node, 8265, namespace="monitoring")
    (group,) = one(docs, "PrometheusRule", "agit")["spec"]["groups"]
    asked = [rule["expr"] for rule in group["rules"]]
    dashboard = json.loads(one(docs, "ConfigMap", "agit-dashboard")["data"]["agit.json"])
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {name for text in asked for name in re.findall(r"\b(?:ray|kube)_\w+", text)}
    assert used <= exported() | FOREIGN, used - exported() - FOREIGN
    assert all(text.count("(") == text.count(")") for text in asked)
    # what the alerts are there for
    watched = " ".join(rule["expr"] for rule in group["rules"])
    for name in ("step", "last_row_time_seconds", "last_checkpoint_time_seconds", "non_finite_losses_total"):
        assert f"ray_agit_{name}" in watched
    assert all({"summary", "description"} <= rule["annotations"].keys() for rule in group["rules"])


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

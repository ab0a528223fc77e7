"""The Kubernetes manifests as kustomize builds them, and what is wrong with them."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.infra.commands import tool

FOLDER = Path("infra/kubernetes")
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
# the oldest Kubernetes that the pinned kubectl's neighbours still serve, and the newest
VERSIONS = ("1.32", "1.37")

Doc = dict[str, Any]


@cache
def _built(folder: str) -> str:
    done = subprocess.run([tool("kubectl"), "kustomize", folder], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return done.stdout


def rendered(folder: Path) -> str:
    """What `kubectl kustomize` prints."""
    return _built(str(folder))


def build(folder: Path) -> list[Doc]:
    """What `kubectl apply -k` would send.

    Raises:
        ValueError: with what kustomize says.
    """
    return list(yaml.safe_load_all(_built(str(folder))))


def schema_errors(doc: Doc) -> list[str]:
    """Fields that Kubernetes or KubeRay do not know, values of the wrong kind, what is missing."""
    name = f"{doc['kind']}/{doc['metadata']['name']}"
    if doc["apiVersion"] == "ray.io/v1":
        whole = yaml.safe_load(Path("tests/infra/kuberay.yaml").read_text())
        validator = jsonschema.Draft202012Validator({**whole, "$ref": f"#/$defs/{doc['kind']}"})
        found = [
            f"{name}: {list(error.path)}: {error.message}" for error in validator.iter_errors(doc["spec"])
        ]
        for template in templates(doc):
            found += [f"{name}: {text}" for text in _kubernetes(_as_template(template))]
        return found
    if doc["apiVersion"] == "monitoring.coreos.com/v1":
        return []
    return [f"{name}: {text}" for text in _kubernetes(doc)]


def _kubernetes(doc: Doc) -> tuple[str, ...]:
    return _validated(json.dumps(doc, sort_keys=True))


@cache
def _validated(text: str) -> tuple[str, ...]:
    """Of a manifest as JSON: reading the schemas takes most of the time, and most manifests come again."""
    doc, found = json.loads(text), []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(doc, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{list(error.path)}: {error.message} (Kubernetes {version})")
    return tuple(found)


def _as_template(template: Doc) -> Doc:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}


def templates(doc: Doc) -> list[Doc]:
    """The pod templates in a manifest."""
    spec = doc.get("spec", {})
    if doc["kind"] in {"Deployment", "Job"}:
        return [spec["template"]]
    if doc["kind"] == "RayJob":
        return [
            spec["submitterPodTemplate"],
            *templates({"kind": "RayCluster", "spec": spec["rayClusterSpec"]}),
        ]
    if doc["kind"] == "RayCluster":
        groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]
        return [group["template"] for group in groups]
    return []


def containers(doc: Doc) -> Iterator[tuple[Doc, Doc]]:
    """Every container with its pod's spec."""
    for template in templates(doc):
        pod = template["spec"]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield pod, container


def one(docs: list[Doc], kind: str, name: str) -> Doc:
    return next(doc for doc in docs if (doc["kind"], doc["metadata"]["name"]) == (kind, name))


def problems(docs: list[Doc], secrets: dict[str, set[str]]) -> list[str]:
    """What no schema knows: names that lead nowhere, pods that would be refused or starve.

    Args:
        secrets: names and keys of the secrets that are made outside.
    """
    found = [text for doc in docs for text in schema_errors(doc)]
    names: dict[str, set[str]] = {}
    for doc in docs:
        names.setdefault(doc["kind"], set()).add(doc["metadata"]["name"])
        if doc["kind"] not in {"Namespace", "PriorityClass"} and doc["metadata"].get("namespace") != "agit":
            found.append(f"{doc['kind']}/{doc['metadata']['name']} is in no namespace of ours")
    for doc in docs:
        where = f"{doc['kind']}/{doc['metadata']['name']}"
        for template in templates(doc):
            account = template["spec"].get("serviceAccountName")
            if account and "ServiceAccount" in names and account not in names["ServiceAccount"]:
                found.append(f"{where}: no service account {account}")
            priority = template["spec"].get("priorityClassName")
            if priority not in names.get("PriorityClass", {priority}) or priority is None:
                found.append(f"{where}: no priority class {priority}")
        for pod, container in containers(doc):
            label = f"{where}/{container['name']}"
            found += [f"{label}: {text}" for text in _references(container, names, secrets)]
            found += [f"{label}: {text}" for text in _hardening(pod, container)]
    found += _selectors(docs)
    return found


def _references(container: Doc, names: dict[str, set[str]], secrets: dict[str, set[str]]) -> Iterator[str]:
    for source in container.get("envFrom", []):
        config = source.get("configMapRef", {}).get("name")
        if config and config not in names.get("ConfigMap", set()):
            yield f"no ConfigMap {config}"
    declared: set[str] = set()
    for entry in container.get("env", []):
        declared.add(entry["name"])
        reference = entry.get("valueFrom", {}).get("secretKeyRef")
        if reference and reference["key"] not in secrets.get(reference["name"], set()):
            yield f"secret {reference['name']} has no key {reference['key']}"
        if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", entry["name"]) and not reference:
            yield f"{entry['name']} is not taken from a secret"
        config = entry.get("valueFrom", {}).get("configMapKeyRef")
        if config and config["name"] not in names.get("ConfigMap", set()):
            yield f"no ConfigMap {config['name']}"
    for name in re.findall(r"\$\((\w+)\)", " ".join(container.get("args", []))):
        if name not in declared:
            yield f"$({name}) is not set"
    ports = {port["name"] for port in container.get("ports", []) if "name" in port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        port = container.get(probe, {}).get("httpGet", {}).get("port")
        if isinstance(port, str) and port not in ports:
            yield f"{probe} asks port {port}, which is not named"


def _hardening(pod: Doc, container: Doc) -> Iterator[str]:
    """Kubernetes' pod security standard `restricted`, which the namespace enforces, and resources."""
    of_pod, of_container = pod.get("securityContext", {}), container.get("securityContext", {})
    if of_pod.get("runAsNonRoot") is not True or of_pod.get("runAsUser", 0) == 0:
        yield "may run as root"
    if of_pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if of_container.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if of_container.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    resources = container.get("resources", {})
    limited = {"memory", "ephemeral-storage"}
    if {"cpu", *limited} - resources.get("requests", {}).keys() or limited - resources.get(
        "limits", {}
    ).keys():
        yield "asks for no CPU, memory or ephemeral storage, or has no limit of the latter two"
    mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
    if mounted - {volume["name"] for volume in pod.get("volumes", [])}:
        yield "mounts a volume that the pod does not have"
    paths = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
    if of_container.get("readOnlyRootFilesystem") and "/tmp" not in paths:
        yield "can write nowhere"
    if (
        container["name"].startswith("ray-")
        and "submitter" not in container["name"]
        and "/dev/shm" not in paths
    ):
        yield "has 64 MB of shared memory"


def _selectors(docs: list[Doc]) -> Iterator[str]:
    """Services and policies that select nobody, and disruption budgets that no drain gets past."""
    pods = [template.get("metadata", {}).get("labels", {}) for doc in docs for template in templates(doc)]
    for doc in docs:
        if doc["kind"] == "Service":
            chosen = [labels for labels in pods if doc["spec"]["selector"].items() <= labels.items()]
            if len(chosen) != 1:
                yield f"Service/{doc['metadata']['name']} selects {len(chosen)} kinds of pods"
        if doc["kind"] == "PodDisruptionBudget" and (
            doc["spec"].get("minAvailable", 0) or not doc["spec"].get("maxUnavailable", 1)
        ):
            yield f"PodDisruptionBudget/{doc['metadata']['name']} holds every drain of a single pod"
        if doc["kind"] == "RoleBinding":
            for subject in doc["subjects"]:
                if subject.get("namespace", "agit") != "agit":
                    yield f"RoleBinding/{doc['metadata']['name']} gives rights away to another namespace"


def broken(docs: list[Doc], kind: str, name: str, path: list[Any], value: Any) -> list[Doc]:
    """A copy with one value changed; None removes it, and without a path the value is one manifest more."""
    docs = copy.deepcopy(docs)
    place: Any = one(docs, kind, name)
    if not path:
        return [*docs, value]
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return docs

"""Pods of the rendered manifests as podman runs them: one container each, in a network with the services' names."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.containers.engine import Engine
from tests.infra import manifests

Doc = dict[str, Any]
# of the operator, for rayVersion 2.60
_RAY_START = {
    "head": "ray start --head --dashboard-host=0.0.0.0 --no-monitor",
    "worker": "ray start --address={address}:6379",
}
_RAY_ALWAYS = "--block --metrics-export-port=8080 --dashboard-agent-listen-port=52365"


@dataclass
class Cluster:
    """The manifests of an overlay and what they refer to.

    Attributes:
        subnet: the first three numbers of the network's addresses.
        secrets: values by name of the secret and key.
        images: what stands for the images that the manifests name.
    """

    engine: Engine
    docs: list[Doc]
    network: str
    subnet: str
    folder: Path
    secrets: dict[str, dict[str, str]]
    images: dict[str, str]
    addresses: dict[str, str] = field(default_factory=dict)

    def environment(self, container: Doc) -> dict[str, str]:
        """The variables of a container but for those that name the pod's own address."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            if config := source.get("configMapRef"):
                found |= manifests.one(self.docs, "ConfigMap", config["name"])["data"]
            else:
                found |= self.secrets[source["secretRef"]["name"]]
        for entry in container.get("env", []):
            value = self._value(entry)
            if value is not None:
                found[entry["name"]] = value
        return found

    def _value(self, entry: Doc) -> str | None:
        if "value" in entry:
            return str(entry["value"])
        source = entry["valueFrom"]
        if secret := source.get("secretKeyRef"):
            value = self.secrets[secret["name"]].get(secret["key"])
            assert value is not None or secret.get("optional"), f"no secret {secret}"
            return value
        if config := source.get("configMapKeyRef"):
            return str(manifests.one(self.docs, "ConfigMap", config["name"])["data"][config["key"]])
        return {"metadata.namespace": "agit", "status.podIP": None}[source["fieldRef"]["fieldPath"]]

    def start(
        self,
        name: str,
        pod: Doc,
        container: Doc,
        *,
        service: str | None = None,
        command: list[str] | None = None,
        extra: dict[str, str] | None = None,
        wait: bool = False,
    ) -> str:
        """Start one container of a pod as its manifest says; returns its output where it is waited for.

        Args:
            service: the name by which the others reach it.
            command: in the place of the image's entrypoint and the manifest's arguments.
            extra: variables that an operator adds.
        """
        address = self.addresses[name] = f"{self.subnet}.{len(self.addresses) + 10}"
        environment = {**self.environment(container), "POD_IP": address, **(extra or {})}
        of_pod, of_container = pod.get("securityContext", {}), container["securityContext"]
        assert of_container["capabilities"] == {"drop": ["ALL"]}
        assert of_container["allowPrivilegeEscalation"] is False
        options = [f"--name={name}", f"--network={self.network}", f"--ip={address}", "--cap-drop=ALL"]
        options += ["--security-opt=no-new-privileges"]
        if user := of_pod.get("runAsUser"):
            options.append(f"--user={user}:{of_pod['runAsGroup']}")
        if of_container.get("readOnlyRootFilesystem"):
            options += ["--read-only", "--read-only-tmpfs=false"]
        if service:
            options.append(f"--network-alias={service}")
        options += [f"--env={key}={value}" for key, value in environment.items()]
        options += [self._mount(name, pod, mount) for mount in container.get("volumeMounts", [])]
        words = [
            re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], word)
            for word in container.get("args", [])
        ]
        if command:
            options.append(f"--entrypoint={command[0]}")
            words = command[1:]
        how = ["--rm"] if wait else ["--detach"]
        done = self.engine.podman(
            "run", *how, *options, self.images[container["image"]], *words, timeout=1800
        )
        return done.stdout + done.stderr

    def _mount(self, name: str, pod: Doc, mount: Doc) -> str:
        volume = next(one for one in pod["volumes"] if one["name"] == mount["name"])["emptyDir"]
        if volume.get("medium") == "Memory":
            size = volume["sizeLimit"].removesuffix("i").lower()
            return f"--mount=type=tmpfs,destination={mount['mountPath']},tmpfs-mode=1777,tmpfs-size={size}"
        folder = self.folder / name / mount["name"]
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o2777)  # fsGroup
        return f"--volume={folder}:{mount['mountPath']}"

    def probe(self, name: str, container: Doc, kind: str) -> None:
        """Ask a probe as the kubelet does: at the pod's address, as often as the manifest allows.

        Raises:
            AssertionError: every try failed.
        """
        probe = container[kind]
        port = next(p["containerPort"] for p in container["ports"] if p["name"] == probe["httpGet"]["port"])
        url = f"http://{self.addresses[name]}:{port}{probe['httpGet']['path']}"
        answer: object = None
        for _ in range(probe.get("failureThreshold", 3)):
            try:
                answer = httpx.get(url, timeout=probe.get("timeoutSeconds", 5))
                if answer.is_success:
                    return
            except httpx.HTTPError as error:
                answer = error
            time.sleep(probe.get("periodSeconds", 10))
        logs = self.engine.podman("logs", "--tail=40", name, check=False)
        raise AssertionError(f"{url}: {answer}\n{logs.stdout}{logs.stderr}")

    def ray(self, name: str, group: Doc, kind: str, address: str) -> str:
        """Start a node of the cluster with the command that KubeRay's operator makes of its group."""
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        line = " ".join(
            [
                _RAY_START[kind].format(address=address),
                _RAY_ALWAYS,
                *(
                    f"--{key}" if value == "true" else f"--{key}={value}"
                    for key, value in group["rayStartParams"].items()
                ),
            ]
        )
        if kind == "worker":
            line += f" --num-cpus={container['resources']['requests']['cpu']}"
        extra = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.secrets["agit-ray-token"]["auth_token"],
            "RAY_ADDRESS": "127.0.0.1:6379" if kind == "head" else f"{address}:6379",
            "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        }
        service = address if kind == "head" else None
        return self.start(
            name, pod, container, service=service, command=["/bin/bash", "-lc", line], extra=extra
        )

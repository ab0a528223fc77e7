"""Who reaches whom, by the network policies of the manifests."""

from __future__ import annotations

from typing import Any


def passes(
    docs: list[dict[str, Any]],
    source: dict[str, str],
    target: dict[str, str],
    port: int,
    namespace: str | None = None,
) -> bool:
    """Kubernetes' rule: a selected pod is reached only as some policy allows.

    Args:
        namespace: of the source, where it is another one than the target's.
    """
    policies = [
        doc["spec"]
        for doc in docs
        if doc["kind"] == "NetworkPolicy" and chosen(doc["spec"]["podSelector"], target)
    ]
    if not policies:
        return True
    for policy in policies:
        for rule in policy.get("ingress", []):
            ports = [entry["port"] for entry in rule.get("ports", [])]
            if any(_lets_in(peer, source, namespace) for peer in rule["from"]) and (
                not ports or port in ports
            ):
                return True
    return False


def _lets_in(peer: dict[str, Any], source: dict[str, str], namespace: str | None) -> bool:
    if ("namespaceSelector" in peer) != (namespace is not None):
        return False
    labels = {"kubernetes.io/metadata.name": namespace or ""}
    return chosen(peer.get("namespaceSelector", {}), labels) and chosen(peer.get("podSelector", {}), source)


def chosen(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    by_label = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    for expression in selector.get("matchExpressions", []):
        have = labels.get(expression["key"])
        if have is None or (expression["operator"] == "In" and have not in expression["values"]):
            return False
    return by_label

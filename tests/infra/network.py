"""Who reaches whom, by the network policies of the manifests."""

from __future__ import annotations

from typing import Any


def passes(docs: list[dict[str, Any]], source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Kubernetes' rule: a selected pod is reached only as some policy allows; inside one namespace."""
    policies = [
        doc["spec"]
        for doc in docs
        if doc["kind"] == "NetworkPolicy" and _chosen(doc["spec"]["podSelector"], target)
    ]
    if not policies:
        return True
    for policy in policies:
        for rule in policy.get("ingress", []):
            peers = [peer for peer in rule["from"] if "namespaceSelector" not in peer]
            ports = [entry["port"] for entry in rule.get("ports", [])]
            if any(_chosen(peer["podSelector"], source) for peer in peers) and (not ports or port in ports):
                return True
    return False


def _chosen(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    by_label = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    for expression in selector.get("matchExpressions", []):
        have = labels.get(expression["key"])
        if have is None or (expression["operator"] == "In" and have not in expression["values"]):
            return False
    return by_label

"""The method's configuration as JSON, in what is saved, and what two configurations have in common.

Imports no PyTorch: the pipeline names and compares runs with it before anything heavy is loaded.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from agit_core.config import MethodConfig
from agit_core.errors import BadInput

T = TypeVar("T")


def to_dict(config: MethodConfig) -> dict[str, Any]:
    """JSON-ready form of a method's configuration."""
    return dataclasses.asdict(config)


def from_dict(tree: dict[str, Any]) -> MethodConfig:
    """The inverse of :func:`to_dict`.

    Settings that the version which wrote ``tree`` did not have take the value that stands for what it did
    (``before``), not today's default.

    Raises:
        BadInput: keys that this version does not know.
    """
    try:
        return _from_dict(MethodConfig, tree)
    except (TypeError, KeyError) as error:
        raise BadInput(f"this is not a method configuration that this version knows: {error}") from None


def identity(config: MethodConfig) -> dict[str, Any]:
    """What a training computes, JSON-ready: equal for configurations that differ in words only.

    Settings that stand for what earlier versions did, before they had them, are left out: so a run keeps the name
    that it had there.
    """
    return _identity(dataclasses.replace(config, networks=config.networks.settled))


def differences(one: MethodConfig, other: MethodConfig) -> list[str]:
    """The settings in which two trained methods differ, such as ``networks.revision (1 and 2)``.

    Precision and initialisation do not count: the mathematics is the same, and the weights are there already.
    """
    flat = []
    for config in (one, other):
        parts = dataclasses.asdict(dataclasses.replace(config, networks=config.networks.architecture))
        del parts["precision"]
        sections = {key: value if isinstance(value, dict) else {"": value} for key, value in parts.items()}
        flat.append({f"{k}.{n}".rstrip("."): v for k, part in sections.items() for n, v in part.items()})
    return [f"{key} ({value} and {flat[1][key]})" for key, value in flat[0].items() if value != flat[1][key]]


def _from_dict(kind: type[T], tree: dict[str, Any]) -> T:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        section = field.default_factory
        if field.name not in tree and "before" in field.metadata:
            values[field.name] = field.metadata["before"]
        elif isinstance(section, type):
            values[field.name] = _from_dict(section, tree[field.name])
    return kind(**{**tree, **values})


def _identity(part: Any) -> dict[str, Any]:
    tree = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if "before" not in field.metadata or value != field.metadata["before"]:
            tree[field.name] = _identity(value) if dataclasses.is_dataclass(value) else value
    return tree

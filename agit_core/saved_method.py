"""Saved form (JSON), identity and comparison of method configurations.

Imports no PyTorch: the pipeline names and compares runs with it before loading anything heavy.
"""

from __future__ import annotations

import dataclasses
import typing
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar

from agit_core.config import MethodConfig
from agit_core.errors import BadInput

T = TypeVar("T")


def to_dict(config: MethodConfig) -> dict[str, Any]:
    """Convert a method configuration to JSON-ready form."""
    return dataclasses.asdict(config)


def from_dict(tree: dict[str, Any]) -> MethodConfig:
    """Inverse of :func:`to_dict`.

    Settings unknown to the version that wrote ``tree`` take the value that describes its behaviour (``before``), not
    today's default.

    Raises:
        BadInput: keys that this version does not know, or values of another type.
    """
    try:
        return _from_dict(MethodConfig, tree)
    except BadInput:  # says itself which setting
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise BadInput(f"not a method configuration that this version can read: {error}") from None


def identity(config: MethodConfig) -> dict[str, Any]:
    """Canonical JSON-ready form, equal for configurations that describe the same computation.

    Settings at their ``before`` value are left out, so that a run keeps the id that earlier versions gave it.
    """
    return _identity(dataclasses.replace(config, networks=config.networks.settled))


def differences(one: MethodConfig, other: MethodConfig) -> list[str]:
    """Settings in which two trained methods differ, such as ``networks.revision (1 and 2)``.

    Precision and initialisation are ignored: neither changes what the trained weights mean.
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
    kinds = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        section = field.default_factory
        if field.name not in tree and "before" in field.metadata:
            values[field.name] = field.metadata["before"]
        elif isinstance(section, type):
            values[field.name] = _from_dict(section, tree[field.name])
        elif field.name in tree and not _is(tree[field.name], kinds[field.name]):
            raise ValueError(f"{field.name} is {str(tree[field.name])[:40]!r}")
    return kind(**{**tree, **values})


def _is(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON is of a field's type; an integer is a float, a list is a tuple."""
    parts = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, UnionType):
        return any(_is(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        fitting = isinstance(value, list | tuple) and len(value) == len(parts)
        return fitting and all(map(_is, value, parts))
    if kind is NoneType:
        return value is None
    return type(value) is kind or (kind is float and type(value) is int)


def _identity(part: Any) -> dict[str, Any]:
    tree = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if "before" not in field.metadata or value != field.metadata["before"]:
            tree[field.name] = _identity(value) if dataclasses.is_dataclass(value) else value
    return tree

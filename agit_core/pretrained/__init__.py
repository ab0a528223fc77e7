"""Trained models shipped with the package, as model folders: ``Translator.load("pretrained:h2z128")``."""

from __future__ import annotations

from pathlib import Path

from agit_core.errors import BadInput

SCHEME = "pretrained"


def names() -> list[str]:
    """Names of the shipped models, sorted."""
    return sorted(p.parent.name for p in Path(__file__).parent.glob("*/model.json"))


def folder(uri: str) -> Path:
    """The model folder of ``pretrained:NAME``.

    Raises:
        BadInput: there is no such model.
    """
    name = uri.removeprefix(f"{SCHEME}:")
    if name not in names():
        raise BadInput(
            f"there is no pretrained model '{name}'; use {SCHEME}:{f' or {SCHEME}:'.join(names())}"
        )
    return Path(__file__).parent / name

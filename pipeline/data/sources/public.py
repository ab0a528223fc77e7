"""The data sets that CycleGAN users know, by name, from the address that the CycleGAN project gives."""

from __future__ import annotations

ADDRESS = "http://efrosgans.eecs.berkeley.edu/cyclegan/datasets/{name}.zip"
NAMES = (
    "ae_photos",
    "apple2orange",
    "cezanne2photo",
    "cityscapes",
    "facades",
    "horse2zebra",
    "iphone2dslr_flower",
    "maps",
    "monet2photo",
    "summer2winter_yosemite",
    "ukiyoe2photo",
    "vangogh2photo",
)
_ALIASES = {"h2z": "horse2zebra", "a2o": "apple2orange", "summer2winter": "summer2winter_yosemite"}


def canonical(name: str) -> str | None:
    """The set's full name, or None when this is no set's name."""
    name = _ALIASES.get(name, name)
    return name if name in NAMES else None


def url(name: str) -> str:
    """Where a set (by its full name) is downloaded from."""
    return ADDRESS.format(name=name)


def domain_names(name: str) -> dict[str, str] | None:
    """``{"a": "horse", "b": "zebra"}`` from a name such as ``horse2zebra``."""
    a, separator, b = name.split("_")[0].partition("2")
    return {"a": a, "b": b} if separator and a and b else None

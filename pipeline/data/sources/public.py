"""Public CycleGAN data sets by name, downloaded from the CycleGAN project's server."""

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
    """Full name of a data set, or None if there is no set of this name or alias."""
    name = _ALIASES.get(name, name)
    return name if name in NAMES else None


def url(name: str) -> str:
    """Download URL of a data set, given its full name."""
    return ADDRESS.format(name=name)


def domain_names(name: str) -> dict[str, str] | None:
    """Names of the domains: ``{"a": "horse", "b": "zebra"}`` for ``horse2zebra``; None if the name does not tell."""
    a, separator, b = name.split("_")[0].partition("2")
    return {"a": a, "b": b} if separator and a and b else None

"""The versions that constraints.txt pins."""

from __future__ import annotations

import re
from pathlib import Path


def constraints(path: str = "constraints.txt") -> dict[str, str]:
    """Package (normalised name) to version."""
    pairs = re.findall(r"^([\w.-]+)==([\w.+!]+)", Path(path).read_text(), re.MULTILINE)
    return {normalised(name): version for name, version in pairs}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

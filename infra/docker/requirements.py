"""Prints what an extra of pyproject.toml needs, one requirement a line: ``python requirements.py pipeline``.

The image installs these before it gets the project's own files, so that a changed file costs no new install.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(project: Path, extras: list[str]) -> list[str]:
    """The project's dependencies and those of the extras.

    Raises:
        KeyError: there is no such extra.
    """
    tree = tomllib.loads(project.read_text())["project"]
    return [
        *tree["dependencies"],
        *(need for extra in extras for need in tree["optional-dependencies"][extra]),
    ]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml"), sys.argv[1:])))

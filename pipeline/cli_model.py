"""Commands that use a model: ``translate``, ``export``."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this file."""

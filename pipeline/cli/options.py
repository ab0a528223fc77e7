"""Arguments and options shared by several commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.config import Config

ConfigName = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A preset's name (see `agit presets`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting, e.g. data.source=./photos or storage=s3://bucket/prefix; repeatable.",
    ),
]


def read_config(config: str, overrides: list[str] | None) -> Config:
    """Load the configuration given by CONFIG and ``--set``."""
    from pipeline.config import load  # imported late, which keeps --help fast

    return load(config, overrides or [])

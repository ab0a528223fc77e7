"""Arguments and options that many commands share."""

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
        help="A setting that differs, such as data.source=./photos or storage=s3://bucket/prefix.",
    ),
]


def read_config(config: str, overrides: list[str] | None) -> Config:
    """The configuration that CONFIG and ``--set`` describe; imports the schema only now, so that help is quick."""
    from pipeline.config import load

    return load(config, overrides or [])

"""Arguments and options that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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

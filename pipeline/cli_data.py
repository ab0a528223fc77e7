"""``agit data ...``: look into prepared data and check it."""

from __future__ import annotations

import typer

from pipeline import cli_show
from pipeline.cli_options import ConfigName, Overrides
from pipeline.cli_output import DONE, FAILED, Answer, Debug, Json
from pipeline.config import load

app = typer.Typer(help="Look into prepared data and check it.", no_args_is_help=True)


@app.command()
def inspect(
    config: ConfigName, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> Answer:
    """What is in the prepared data: rows, sizes, masks, duplicates, quarantined files."""
    settings = load(config, overrides or [])
    from pipeline.data import inspect as stage

    return Answer(stage.inspect(settings), cli_show.mapping)


@app.command()
def verify(
    config: ConfigName, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Read every shard again and compare it with the manifest's checksums."""
    settings = load(config, overrides or [])
    from pipeline.data import inspect as stage

    found = stage.verify(settings)
    return Answer(found, cli_show.mapping, DONE if found["ok"] else FAILED)

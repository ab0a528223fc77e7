"""``agit data ...``: look into prepared data and check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import show
from pipeline.cli.output import Answer, Debug, Json

app = typer.Typer(help="Look into prepared data and check it.", no_args_is_help=True)

DataUri = Annotated[str, typer.Argument(help="folder or s3:// prefix with a manifest.json")]
Page = Annotated[
    Path | None, typer.Option("--html", help="also write a page with samples, copies and leaks here")
]


@app.command()
def inspect(uri: DataUri, html: Page = None, json: Json = False, debug: Debug = False) -> Answer:
    """What is in prepared data: rows, sizes, masks, duplicates, leaks, quarantined files."""
    from pipeline.data.read import inspect as stage

    return Answer(stage.inspect(uri, html), show.mapping)


@app.command()
def verify(uri: DataUri, json: Json = False, debug: Debug = False) -> Answer:
    """Read every shard again and compare it with the manifest's checksums."""
    from pipeline import progress
    from pipeline.data.read import inspect as stages

    with progress.shown_on(progress.for_terminal()), progress.stage("verify") as stage:
        found = stages.verify(uri, stage)
        stage.message = f"{found['checked']} files, {len(found['damaged'])} damaged"
    failure = None
    if found["damaged"]:
        first = found["damaged"][0]
        failure = (
            f"{len(found['damaged'])} of {found['checked']} files are not what the manifest says, such as "
            f"{first['path']} ({first['reason']}); remove {uri} and prepare the data again"
        )
    return Answer(found, show.mapping, failure)

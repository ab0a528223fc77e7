"""``agit data ...``: inspect and verify prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import show
from pipeline.cli.output import Answer, Debug, Json

app = typer.Typer(help="Inspect and verify prepared data.", no_args_is_help=True)

DataUri = Annotated[str, typer.Argument(help="Prepared data: a folder or s3:// prefix with a manifest.json.")]
Page = Annotated[
    Path | None,
    typer.Option("--html", help="Also write a page with samples, duplicates and leaks to this file."),
]


@app.command()
def inspect(uri: DataUri, html: Page = None, json: Json = False, debug: Debug = False) -> Answer:
    """Summarise prepared data: rows, sizes, masks, duplicates, leaks, quarantined files.

    `agit prepare` prints the data's URI.
    """
    from pipeline.data.read import inspect as stage

    return Answer(stage.inspect(uri, html), show.mapping)


@app.command()
def verify(uri: DataUri, json: Json = False, debug: Debug = False) -> Answer:
    """Read every shard and compare it with the manifest's checksums; exit status 1 if one is damaged."""
    from pipeline import progress
    from pipeline.data.read import inspect as stages

    with progress.shown_on(progress.for_terminal()), progress.stage("verify") as stage:
        found = stages.verify(uri, stage)
        stage.message = f"{found['checked']} files, {len(found['damaged'])} damaged"
    failure = None
    if found["damaged"]:
        first = found["damaged"][0]
        failure = (
            f"{len(found['damaged'])} of {found['checked']} files differ from the manifest, e.g. "
            f"{first['path']} ({first['reason']}); remove {uri} and prepare the data again"
        )
    return Answer(found, show.mapping, failure)

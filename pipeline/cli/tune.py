"""``agit tune`` searches for better settings; ``agit reproduce`` rebuilds a model and compares the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import output, show
from pipeline.cli.options import ConfigName, Overrides, read_config
from pipeline.cli.output import Answer, Debug, Json


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(tune)
    app.command()(reproduce)


def tune(
    config: ConfigName,
    overrides: Overrides = None,
    preset: Annotated[
        Path | None,
        typer.Option("--preset", "-o", metavar="FILE", help="Also write the best configuration here."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Search `tune.space` for the best settings with Ray Tune and ASHA, as the Prefect flow `agit-tune`.

    Trials are ordinary runs. The same command again goes on with a search that was interrupted; a larger
    `tune.trials` adds trials to it. The best configuration is written as a preset for `agit run`.
    """
    settings = read_config(config, overrides)
    from pipeline import progress
    from pipeline.flows import embedded
    from pipeline.tune import stages

    stages.check(settings)
    with progress.shown_on(progress.for_terminal()):
        summary = embedded.run_flow(
            "agit-tune",
            output.debugging(),
            config=config,
            overrides=overrides or [],
            preset=str(preset) if preset else None,
        )
    return Answer(summary, show.tuned)


def reproduce(
    model: Annotated[
        str,
        typer.Argument(
            help="models:/h2z@champion, models:/h2z/3, a version's number, or a model folder's URI."
        ),
    ],
    config: Annotated[
        str,
        typer.Option(
            "--config", metavar="CONFIG", help="Whose registry and cluster, and whose model a number means."
        ),
    ] = "demo",
    overrides: Overrides = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", help="Where the new run goes; default: reproductions/RUN below the model's."
        ),
    ] = None,
    from_prepared: Annotated[
        bool, typer.Option("--from-prepared", help="Train on the stored shards; do not look at the source.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train a registered model again from its lineage and say whether the weights are bit for bit the same.

    Checks that the source still gives the same images and tells what else differs. Exit status 1 when the
    weights differ.
    """
    settings = read_config(config, overrides)
    from pipeline import progress
    from pipeline import reproduce as stages
    from pipeline.registry import models

    name = f"models:/{models.model_name(settings)}/{model}" if model.isdigit() else model
    with progress.shown_on(progress.for_terminal()):
        told = stages.reproduce(name, settings, storage, from_prepared)
    failure = None if told["identical"] else f"the weights differ from those of {name}"
    return Answer(told, show.reproduced, failure)

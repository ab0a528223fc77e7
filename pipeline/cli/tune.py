"""The commands ``tune`` (hyperparameter search) and ``reproduce`` (train a registered model again)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import output, show
from pipeline.cli.options import ConfigName, Overrides, read_config
from pipeline.cli.output import Answer, Debug, Json


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(tune)
    app.command()(reproduce)


def tune(
    config: ConfigName,
    overrides: Overrides = None,
    preset: Annotated[
        Path | None,
        typer.Option(
            "--preset", "-o", metavar="FILE", help="Also write the best configuration to this file."
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Search for better settings with Ray Tune and ASHA.

    Runs as the Prefect flow `agit-tune`. `tune.space` lists the settings; trials are ordinary runs. Running the
    same command again resumes an interrupted search; a larger `tune.trials` extends it. The best configuration is
    written as a preset for `agit run`.

    \b
    Example:
      agit tune h2z64 --set "tune.space={method.optimizer.learning_rate: {loguniform: [1e-4, 1e-3]}}"
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
            help="models:/h2z@champion, models:/h2z/3, a version number, or the URI of a model folder."
        ),
    ],
    config: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="CONFIG",
            help="Configuration that names the registry, the cluster and, for a version number, the model.",
        ),
    ] = "demo",
    overrides: Overrides = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            help="Storage of the new run. Default: reproductions/RUN in the storage of the original.",
        ),
    ] = None,
    from_prepared: Annotated[
        bool,
        typer.Option("--from-prepared", help="Train on the original shards instead of preparing the source."),
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train a registered model again; compare the weights.

    Follows the model's lineage. Verifies that the source still contains the same images, and lists other
    differences (code, libraries, machine). Exit status 1 if the weights differ.

    \b
    Example:
      agit reproduce models:/h2z@champion
    """
    settings = read_config(config, overrides)
    from pipeline import progress
    from pipeline import reproduce as stages
    from pipeline.registry import models

    name = f"models:/{models.model_name(settings)}/{model}" if model.isdigit() else model
    with progress.shown_on(progress.for_terminal()):
        result = stages.reproduce(name, settings, storage, from_prepared)
    failure = None if result["identical"] else f"the weights differ from those of {name}"
    return Answer(result, show.reproduced, failure)

"""The command ``translate``, and the options by which commands refer to a model."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import show
from pipeline.cli.options import Overrides, read_config
from pipeline.cli.output import Answer, Debug, Json

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.registry.model_reference import ModelReference

TILE_PIXELS = 1024 * 1024  # copy of agit_core.translator.TILE_PIXELS, whose import takes seconds


PRETRAINED = "pretrained:h2z128"


class Direction(StrEnum):
    a2b = "a2b"
    b2a = "b2a"


class Autocast(StrEnum):
    off = "off"
    bf16 = "bf16"
    auto = "auto"


ModelUri = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="URI",
        help="pretrained:h2z128, models:/NAME@champion, hf://USER/REPO, or the path or s3:// URI of a model folder, "
        "a checkpoint folder or a finished run.",
    ),
]


Threshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Keep source pixels unchanged where the attention is below this. Default: the model's "
        "method.threshold_at_test, else blend with the soft mask.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(translate)


def model_of(uri: str, overrides: list[str] | None) -> tuple[ModelReference, Config]:
    """Resolve ``--model``; return it with the settings that name the registry."""
    settings = read_config("demo", overrides)
    from pipeline.registry.model_reference import resolve

    return resolve(uri, settings), settings


def translate(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="An image, a folder, a .zip, Parquet with an image column, or a video; a path or s3://. Animations "
            "keep all frames; every file that is not translated is named.",
        ),
    ],
    output: Annotated[
        str,
        typer.Argument(metavar="OUTPUT", help="A folder or .zip; for a single image or video also a file."),
    ],
    model: ModelUri,
    direction: Annotated[
        Direction, typer.Option(help="From domain A to B (e.g. horse to zebra), or back.")
    ] = Direction.a2b,
    masks: Annotated[
        bool, typer.Option("--masks", help="Also write the attention masks, as NAME.mask.png.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    batch: Annotated[
        bool,
        typer.Option(
            "--batch",
            help="Distribute the images over Ray: the cluster at cluster.address or RAY_ADDRESS, or this machine.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Ray workers for --batch. Default: one per GPU, else one per two CPUs."),
    ] = None,
    smooth: Annotated[
        float,
        typer.Option(
            help="Temporal smoothing of videos, 0 (off) to below 1; 0.8 removes most flicker of static areas."
        ),
    ] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    autocast: Annotated[
        Autocast,
        typer.Option(
            help="bf16: faster on hardware that supports it, differs by a few grey levels; auto: if supported."
        ),
    ] = Autocast.off,
    tile_pixels: Annotated[
        int,
        typer.Option(help="Translate larger images in blended tiles of at most this many pixels."),
    ] = TILE_PIXELS,
    work_side: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Translate larger images scaled down to this longer side (e.g. twice the training size) and add the "
            "change to the full image: faster, and objects appear at the size seen in training.",
        ),
    ] = None,
    threshold: Threshold = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Translate images or a video with a trained model.

    Images can have any size and come from a folder, an archive or Parquet. File names are kept and existing files
    are not overwritten. Running the same command again resumes an interrupted one. Unreadable files are listed and
    skipped.

    \b
    Examples:
      agit translate photo.jpg out.jpg --model pretrained:h2z128 --direction a2b
      agit translate photos/ out/ --model models:/h2z@champion --masks
    """
    subject, settings = model_of(model, overrides)
    from pipeline import progress
    from pipeline.registry.model_reference import describe

    how: dict[str, Any] = {
        "direction": direction.value,
        "masks": masks,
        "overwrite": overwrite,
        "batch": batch,
        "workers": workers,
        "smooth": smooth,
        "device": device,
        "autocast": autocast.value,
        "tile_pixels": tile_pixels,
        "work_side": work_side,
        "threshold": threshold,
    }
    with progress.shown_on(progress.for_terminal()), progress.stage("translate") as stage:
        if settings.cluster.address is None:
            from pipeline.inference.translate import translate as run

            done = run(input, output, subject.folder, **how, progress=stage)
        else:
            from pipeline.launch import stages
            from pipeline.launch.specs import absolute

            # the cluster has its own copy of the packaged models
            packaged = model.startswith("pretrained:")
            where = {"input": absolute(input), "output": absolute(output)}
            where["model"] = model if packaged else absolute(subject.folder)
            done = stages.submit(settings, "translate", stage, **where, **how)
        stage.message = _counts(done)
    return Answer({**done, **describe(subject, settings)}, _show)


def _counts(done: dict[str, Any]) -> str:
    parts = [f"{done['translated']} {done['unit']}"]
    parts += [f"{done['skipped']} done before"] if done["skipped"] else []
    parts += [f"{len(done['failed'])} not translated"] if done["failed"] else []
    return ", ".join(parts)


def _show(done: dict[str, Any]) -> None:
    show.lines(show.by_reason("skipped", done["failed"]))
    show.lines([f"note: {note}" for note in done.get("notes", [])])
    show.mapping({"output": done["output"], "translated": _counts(done)})

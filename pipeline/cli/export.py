"""Commands that hand a model out: ``export``, ``serve``, ``demo-ui``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from pipeline.cli import show
from pipeline.cli.model import PRETRAINED, Direction, ModelUri, Threshold, chosen
from pipeline.cli.options import Overrides
from pipeline.cli.output import Answer, Debug, Json


class Format(StrEnum):
    onnx = "onnx"
    torch_export = "torch-export"
    safetensors = "safetensors"


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Host = Annotated[
    str, typer.Option(help="Address to listen at. Others can reach it only if you say so: there is no login.")
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(export)
    app.command()(serve)
    app.command(name="demo-ui")(demo_ui)


def export(
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="A folder for both directions and the model card; or NAME.onnx, NAME.pt2 for one direction.",
        ),
    ],
    model: ModelUri,
    file_format: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.onnx,
    direction: Annotated[
        Direction | None, typer.Option(help="Only this direction; one file holds a2b unless told otherwise.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Images to compare on (with testA and testB inside, each direction takes its own); "
            "default: the model's test images, else generated ones.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many images to compare per direction.")] = 20,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference from the PyTorch model, on [-1, 1].")
    ] = 1e-3,
    threshold: Threshold = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write a model as ONNX, torch.export or safetensors, compared with the PyTorch model on real images.

    Batch, height and width stay free. A file that differs by more than the tolerance is not handed out
    (exit status 1).
    """
    subject, settings = chosen(model, overrides)
    from pipeline import progress
    from pipeline.inference.export import run
    from pipeline.registry.model_reference import describe

    with progress.shown_on(progress.for_terminal()), progress.stage("export") as stage:
        done = run(
            subject.folder,
            output,
            file_format.value,
            direction=direction.value if direction else None,
            check=check,
            count=images,
            tolerance=tolerance,
            threshold=threshold,
            overwrite=overwrite,
            progress=stage,
        )
        stage.message = _worst(done)
    origin = describe(subject, settings)
    done = {**done, **origin, "model": {**origin["model"], **done["model"]}}
    return Answer(done, _show, None if done["ok"] else _worst(done))


def _worst(done: dict[str, Any]) -> str:
    if done["worst"] is None or done["worst_mask"] is None:
        return "the file's answers cannot be compared with the PyTorch model's; nothing was written"
    told = (
        f"worst difference {done['worst']:.2g} of [-1, 1] ({done['worst_grey_levels']:.2g} grey levels), "
        f"mask {done['worst_mask']:.2g}"
    )
    return (
        told if done["ok"] else f"{told}, above the tolerance of {done['tolerance']:g}; nothing was written"
    )


def _show(done: dict[str, Any]) -> None:
    rows = [
        {
            "direction": direction,
            "images": check["images"],
            "own size": _digits(check["worst"]),
            "another size": _digits(check["worst_other_size"]),
            "mask": _digits(check["worst_mask"]),
            "compared on": check["source"],
        }
        for direction, check in done["checks"].items()
    ]
    show.table_of(rows, list(rows[0]))
    show.mapping({"difference": _worst(done), "files": "\n".join(done["files"]) or "none"})


def _digits(value: float | None) -> str:
    return "not comparable" if value is None else f"{value:.2g}"


def serve(
    model: ModelUri,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 5000,
    device: Device = "auto",
    threshold: Threshold = None,
    megapixels: Annotated[
        float,
        typer.Option(min=0.001, max=50, help="Limit of a request's images together, in million pixels."),
    ] = 16,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Serve a model over HTTP: base64 images in, base64 PNG image and mask out.

    MLflow's own scoring server (POST /invocations, GET /ping), as `mlflow models serve` starts it. Ctrl-C ends it.
    """
    from pipeline.serve import http
    from pipeline.serve import server as serving

    folder = chosen(model, overrides)[0].folder
    url = http.run(
        lambda: serving.application(folder, device, threshold, round(megapixels * 1e6)),
        host,
        port,
        serving.LIMIT,
        _told("serving"),
    )
    return Answer({"url": url, "model": model}, show.mapping)


def demo_ui(
    model: ModelUri = PRETRAINED,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    device: Device = "auto",
    max_side: Annotated[
        int, typer.Option(min=16, help="Larger images are scaled down to this side first.")
    ] = 1024,
    threshold: Threshold = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """A page in the browser to try a model on: drop an image, see the mask and the result. Ctrl-C ends it."""
    from pipeline.serve import http, page
    from pipeline.serve import uploads as serve_images

    folder = chosen(model, overrides)[0].folder
    url = http.run(
        lambda: page.application(folder, device, max_side, threshold),
        host,
        port,
        serve_images.LARGEST_BYTES,
        _told("open"),
    )
    return Answer({"url": url, "model": model}, show.mapping)


def _told(what: str) -> Callable[[str], None]:
    """Says where the server is, in the log's place: standard output belongs to --json."""
    return lambda url: print(f"{what} {url}", file=sys.stderr, flush=True)

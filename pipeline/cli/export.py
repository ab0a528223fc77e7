"""Commands that export or serve a model: ``export``, ``serve``, ``demo-ui``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from pipeline.cli import show
from pipeline.cli.model import PRETRAINED, Direction, ModelUri, Threshold, model_of
from pipeline.cli.options import Overrides
from pipeline.cli.output import Answer, Debug, Json


class Format(StrEnum):
    onnx = "onnx"
    torch_export = "torch-export"
    safetensors = "safetensors"
    hub = "hub"


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Host = Annotated[
    str,
    typer.Option(
        help="Address to listen on. There is no login: with the default, only this machine has access."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(export)
    app.command()(serve)
    app.command(name="demo-ui")(demo_ui)


def export(
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="A folder, for both directions and the model card; or NAME.onnx or NAME.pt2, for one direction.",
        ),
    ],
    model: ModelUri,
    file_format: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.onnx,
    direction: Annotated[
        Direction | None,
        typer.Option(help="Export only this direction. Default: both; a2b if OUT is a single file."),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Images for the comparison with the PyTorch model; testA and testB inside are used for a2b and "
            "b2a. Default: the model's test images, else generated ones.",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Number of images per direction for the comparison.")
    ] = 20,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest allowed difference from the PyTorch model, on [-1, 1].")
    ] = 1e-3,
    threshold: Threshold = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="USER/REPO",
            help="With --format hub: also publish to this repository of the Hugging Face Hub (needs HF_TOKEN).",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: create the repository as private.")
    ] = False,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Export a model: ONNX, torch.export, safetensors, Hugging Face Hub.

    The file is compared with the PyTorch model on images. Batch size, height and width stay dynamic. If an output
    differs by more than the tolerance, nothing is written (exit status 1).

    \b
    Examples:
      agit export out/ --model pretrained:h2z128 --format onnx
      agit export zebra.pt2 --model models:/h2z@champion --format torch-export
      agit export out/ --model models:/h2z@champion --format hub --push USER/REPO
    """
    subject, settings = model_of(model, overrides)
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
            push=push,
            private=private,
            progress=stage,
        )
        stage.message = _worst(done)
    origin = describe(subject, settings)
    done = {**done, **origin, "model": {**origin["model"], **done["model"]}}
    return Answer(done, _show, None if done["ok"] else _worst(done))


def _worst(done: dict[str, Any]) -> str:
    if done["worst"] is None or done["worst_mask"] is None:
        return "the file's outputs are not comparable with the PyTorch model's (shape or NaN); nothing was written"
    difference = (
        f"largest difference {done['worst']:.2g} on [-1, 1] ({done['worst_grey_levels']:.2g} grey levels), "
        f"mask {done['worst_mask']:.2g}"
    )
    if done["ok"]:
        return difference
    return f"{difference}, above the tolerance of {done['tolerance']:g}; nothing was written"


def _show(done: dict[str, Any]) -> None:
    rows = [
        {
            "direction": direction,
            "images": check["images"],
            "original size": _digits(check["worst"]),
            "second size": _digits(check["worst_other_size"]),
            "mask": _digits(check["worst_mask"]),
            "compared on": check["source"],
        }
        for direction, check in done["checks"].items()
    ]
    show.table_of(rows, list(rows[0]))
    files = "\n".join(done["files"]) or "none"
    show.mapping({"difference": _worst(done), "files": files, "pushed": done.get("pushed")})


def _digits(value: float | None) -> str:
    return "not comparable" if value is None else f"{value:.2g}"


def serve(
    model: ModelUri,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 5000,
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
    """Serve a model over HTTP.

    Runs MLflow's scoring server (POST /invocations, GET /ping), as `mlflow models serve` does: base64 images in, base64
    PNG image and mask out. Stop with Ctrl-C.

    \b
    Example:
      agit serve --model models:/h2z@champion --port 5000
    """
    from pipeline.serve import http
    from pipeline.serve import server as serving

    folder = model_of(model, overrides)[0].folder
    url = http.run(
        lambda: serving.application(folder, device, threshold, round(megapixels * 1e6)),
        host,
        port,
        serving.LIMIT,
        _announce("serving"),
    )
    return Answer({"url": url, "model": model}, show.mapping)


def demo_ui(
    model: ModelUri = PRETRAINED,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 7860,
    device: Device = "auto",
    max_side: Annotated[
        int, typer.Option(min=16, help="Scale larger images down to this side in pixels first.")
    ] = 1024,
    threshold: Threshold = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Serve a web page for trying a model.

    Drop an image to see its mask and translation. Stop with Ctrl-C.

    \b
    Examples:
      agit demo-ui
      agit demo-ui --model models:/h2z@champion
    """
    from pipeline.serve import http, page
    from pipeline.serve import uploads as serve_images

    folder = model_of(model, overrides)[0].folder
    url = http.run(
        lambda: page.application(folder, device, max_side, threshold),
        host,
        port,
        serve_images.LARGEST_BYTES,
        _announce("open"),
    )
    return Answer({"url": url, "model": model}, show.mapping)


def _announce(verb: str) -> Callable[[str], None]:
    """Print the server's URL to standard error, because standard output is reserved for --json."""
    return lambda url: print(f"{verb} {url}", file=sys.stderr, flush=True)

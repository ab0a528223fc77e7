"""``agit demo-ui``: a web page for trying a model: drop an image, see its mask and translation.

FastAPI with one static page. It makes no external requests and keeps no uploads.
"""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from agit_core import Translator
from agit_core.augment import to_uint8
from agit_core.errors import BadInput
from agit_core.model_folder import Model
from pipeline.inference import model_card
from pipeline.inference.check_images import GENERATED, choose
from pipeline.records import Manifest
from pipeline.serve import uploads

MAX_SIDE = 1024
WAITING = 8
"""Queued translations, which are processed one at a time; further requests are asked to try again later."""
EXAMPLES = 4
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_ASSETS = {"report.css": "text/css", "demo_ui.css": "text/css", "demo_ui.js": "text/javascript"}


@dataclass
class Studio:
    """A model with its request queue.

    Attributes:
        max_side: larger images are scaled down to this side in pixels first.
    """

    translator: Translator
    max_side: int = MAX_SIDE
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _waiting: int = 0

    async def translate(self, data: bytes, direction: str) -> dict[str, Any]:
        """Translate an encoded image and return the data for the page.

        Raises:
            BadInput: not an image, too large, or an unknown direction.
            Busy: the queue is full.
        """
        if self._waiting >= WAITING:
            raise Busy
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(self._translate, data, direction)
        finally:
            self._waiting -= 1

    def _translate(self, data: bytes, direction: str) -> dict[str, Any]:
        self.translator.maps(direction)
        began = time.perf_counter()
        sent = uploads.decode_colours(data)
        picture = sent.copy()
        picture.thumbnail((self.max_side, self.max_side), Image.Resampling.LANCZOS)
        done = self.translator.translate(picture, direction)
        return {
            "original": _uri(picture),
            "image": _uri(done.image),
            "mask": _uri(_tint(done.mask)),
            "coverage": float(np.asarray(done.mask).mean() / 255),
            "seconds": round(time.perf_counter() - began, 2),
            "width": picture.width,
            "height": picture.height,
            "scaled_from": [sent.width, sent.height] if sent.size != picture.size else None,
        }


class Busy(Exception):
    """The queue of translations is full."""


def application(
    model_uri: str, device: str = "auto", max_side: int = MAX_SIDE, threshold: float | None = None
) -> FastAPI:
    """Create the page's application.

    Raises:
        BadInput: no model there.
    """
    studio = Studio(Translator.load(model_uri, device, threshold=threshold), max_side)
    model = studio.translator.model
    page = _page(model, max_side)
    examples = {direction: _examples(model, direction) for direction in model.directions}
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, follow: Any) -> Response:
        if request.headers.get("sec-fetch-site") == "cross-site" and request.method != "GET":
            return JSONResponse({"error": "requests from other sites are refused"}, 403)
        response: Response = await follow(request)
        response.headers.update(_HEADERS)
        return response

    @app.get("/", response_class=HTMLResponse)
    def index() -> str:
        return page

    @app.get("/assets/{name}")
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            return Response(status_code=404)
        return Response(_text(name), media_type=_ASSETS[name])

    @app.get("/examples/{direction}")
    def list_examples(direction: str) -> list[str]:
        return [f"/examples/{direction}/{n}.png" for n in range(len(examples.get(direction, [])))]

    @app.get("/examples/{direction}/{number}.png")
    def example(direction: str, number: int) -> Response:
        if not 0 <= number < len(examples.get(direction, [])):
            return Response(status_code=404)
        return Response(examples[direction][number], media_type="image/png")

    @app.post("/translate")
    async def translate(request: Request, direction: str = "a2b") -> JSONResponse:
        try:
            return JSONResponse(await studio.translate(await request.body(), direction))
        except BadInput as error:
            return JSONResponse({"error": str(error)}, 400)
        except Busy:
            return JSONResponse({"error": "the server is busy; try again in a moment"}, 503)

    @app.get("/ping")
    def ping() -> dict[str, str]:
        return {"model": model.name, "sha256": model.digest}

    return app


def _page(model: Model, max_side: int) -> str:
    a, b = (model_card.manifest_of(model) or Manifest()).domain_names()
    environment = Environment(
        loader=PackageLoader("pipeline", "templates"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("demo_ui.html.j2").render(
        name=model.name,
        labels={"a2b": f"{a} → {b}", "b2a": f"{b} → {a}"},
        directions=model.directions,
        attends=model.method.networks.has_attention,
        size=model.image_size,
        steps=int(model.lineage.get("steps") or model.lineage.get("step") or 0),
        digest=model.digest[:12],
        limit=uploads.LARGEST_BYTES,
        max_side=max_side,
    )


def _examples(model: Model, direction: str) -> list[bytes]:
    """Example images from the model's test split, if it is accessible."""
    chosen = choose(model, direction, None, EXAMPLES)
    if chosen.source == GENERATED and model.lineage.get("data_uri"):
        return []
    return [uploads.png(Image.fromarray(to_uint8(i)[0].permute(1, 2, 0).numpy())) for i in chosen.images]


def _tint(mask: Image.Image) -> Image.Image:
    """Turn a mask into an overlay in one colour, with the attention as opacity."""
    tinted = Image.new("RGBA", mask.size, (224, 60, 138, 0))
    tinted.putalpha(mask)
    return tinted


def _uri(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(uploads.png(picture)).decode("ascii")


def _text(name: str) -> str:
    return resources.files("pipeline").joinpath("templates", name).read_text(encoding="utf-8")

"""MLflow flavour of a model folder, for MLflow's server and clients.

``MLmodel``, stored next to ``model.json``, names this module as its loader. Images are exchanged as base64::

    MLFLOW_TRACKING_URI=sqlite:///$PWD/.agit/mlflow.db mlflow models serve -m models:/h2z@champion --env-manager local
    POST /invocations  {"inputs": {"image": ["<base64>"]}, "params": {"direction": "a2b"}}
    -> {"predictions": [{"image": "<base64 PNG>", "mask": "<base64 PNG>"}]}

MLflow drops ``params`` that the signature does not name before they get here: its own server ignores them, with a
warning in its log, and only ``agit serve`` refuses them (:class:`pipeline.serve.http.KnownParameters`).
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model as MlflowModel
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import add_to_model
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from agit_core import Translator
from agit_core.errors import BadInput
from agit_core.model_folder import Model
from pipeline.serve import uploads

log = logging.getLogger(__name__)
FILE = "MLmodel"
MOST_IMAGES = 64
"""Images per request; responses are held in memory."""
MOST_PIXELS = 16_000_000
"""Default limit for the total pixels of a request; 12 million take a CPU about a minute."""
MOST_WAITING = 8
"""Queued requests; further ones are refused at once with status 503."""


def mlmodel(model: Model) -> str:
    """Contents of ``MLmodel`` for a model folder."""
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema([ColSpec(DataType.string, "image"), ColSpec(DataType.string, "mask")]),
        params=ParamSchema([ParamSpec("direction", DataType.string, model.directions[0])]),
    )
    described = MlflowModel(
        signature=signature,
        metadata={"model": model.name, "directions": list(model.directions), "image_size": model.image_size},
    )
    add_to_model(described, loader_module=__name__)
    return str(described.to_yaml())


class Refusal(MlflowException):
    """Error message for the caller, without the request's data that MLflow's server would prepend."""

    def serialize_as_json(self) -> str:
        self.message = str(self)
        text: str = super().serialize_as_json()
        return text


class Served:
    """MLflow's Python model, one image per row.

    Requests are processed one at a time: concurrent ones would compete for cores and multiply the memory.
    """

    def __init__(self, translator: Translator, most_pixels: int | None = None) -> None:
        self._translator = translator
        self._most_pixels = MOST_PIXELS if most_pixels is None else most_pixels
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + MOST_WAITING)

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Translate the column ``image`` (base64) into ``image`` and ``mask`` (base64 PNG).

        Raises:
            Refusal: an invalid request (status 400), a full queue (503), or an internal error (500), whose traceback
                goes to the log only.
        """
        if not self._places.acquire(blocking=False):
            raise Refusal(
                f"the server is busy: {MOST_WAITING} requests wait already; send this one again later",
                error_code=TEMPORARILY_UNAVAILABLE,
            )
        try:
            with self._turn:
                return self._predict(model_input, params)
        except BadInput as error:
            raise Refusal(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        except Exception:
            log.exception("a request failed")
            raise Refusal(
                "the request failed; the server's log says why", error_code=INTERNAL_ERROR
            ) from None
        finally:
            self._places.release()

    def _predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None) -> pd.DataFrame:
        direction = (params or {}).get("direction", self._translator.directions[0])
        if len(model_input) > MOST_IMAGES:
            raise BadInput(f"{len(model_input)} images are too many for one call; send {MOST_IMAGES}")
        self._translator.maps(direction)  # checks the direction even if there are no images
        rows, pixels = [], 0
        for number, text in enumerate(model_input["image"]):
            try:
                picture = uploads.decode_base64(text)
                pixels += picture.width * picture.height
                if pixels > self._most_pixels:
                    raise BadInput(
                        f"with this one the request has {pixels / 1e6:.3g} million pixels, more than the server's "
                        f"limit of {self._most_pixels / 1e6:.3g} million; send smaller images, or several requests"
                    )
                done = self._translator.translate(picture, direction)
            except BadInput as error:
                raise BadInput(f"image {number}: {error}") from None
            rows.append({"image": uploads.png_base64(done.image), "mask": uploads.png_base64(done.mask)})
        return pd.DataFrame(rows, columns=["image", "mask"])


def _load_pyfunc(path: str) -> Served:
    """Load a model folder (MLflow's hook), verifying its checksums."""
    return Served(Translator.load(Path(path)))

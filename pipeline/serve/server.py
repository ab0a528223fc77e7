"""``agit serve``: MLflow's scoring server for any model, including models in object storage.

It has the protocol of ``mlflow models serve`` (``/invocations``, ``/ping``, ``/version``), see
:mod:`pipeline.serve.pyfunc`. Models are resolved as everywhere (``models:/...``, paths, ``s3://``); requests must be
JSON and are limited in size.
"""

from __future__ import annotations

import os

import yaml
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.models import Model as MlflowModel
from mlflow.pyfunc import PyFuncModel, scoring_server
from starlette.types import ASGIApp

from agit_core import Translator
from pipeline.serve import http, pyfunc, uploads

_LONGEST_SECONDS = 3600
"""Request timeout. With MLflow's default of a minute, large photographs on a CPU would time out, but still be
translated."""
LIMIT = 2 * uploads.LARGEST_BYTES
"""Largest request body in bytes; base64 adds a third to the largest image."""


def application(
    model_uri: str, device: str = "auto", threshold: float | None = None, most_pixels: int | None = None
) -> ASGIApp:
    """Create the server's application.

    Args:
        most_pixels: limit for the total pixels of a request; None: :data:`pipeline.serve.pyfunc.MOST_PIXELS`.

    Raises:
        BadInput: no model there.
    """
    os.environ.setdefault(MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.name, str(_LONGEST_SECONDS))
    translator = Translator.load(model_uri, device, threshold=threshold)
    described = MlflowModel.from_dict(yaml.safe_load(pyfunc.mlmodel(translator.model)))
    model = PyFuncModel(described, pyfunc.Served(translator, most_pixels))
    # JSON only: MLflow also accepts Parquet and CSV, but a small Parquet file can expand beyond the memory
    return http.JsonOnly(http.KnownParameters(scoring_server.init(model), ("direction",), ("image",)))

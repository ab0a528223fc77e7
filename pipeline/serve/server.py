"""``agit serve``: MLflow's own scoring server around any model, also one that is on object storage.

The same protocol as ``mlflow models serve`` (``/invocations``, ``/ping``, ``/version``), see
:mod:`pipeline.serve.pyfunc`; models are found as everywhere else (``models:/...``, paths, ``s3://``) and
requests are JSON, and limited in size.
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
"""MLflow's own limit of a minute would leave large photographs without an answer on a CPU, and translate them all the
same."""
LIMIT = 2 * uploads.LARGEST_BYTES
"""Of a request: an image of the largest size is a third larger as base64."""


def application(
    model_uri: str, device: str = "auto", threshold: float | None = None, most_pixels: int | None = None
) -> ASGIApp:
    """The server's application.

    Args:
        most_pixels: of the images of a request together; None: :data:`pipeline.serve.pyfunc.MOST_PIXELS`.

    Raises:
        BadInput: no model there.
    """
    os.environ.setdefault(MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.name, str(_LONGEST_SECONDS))
    translator = Translator.load(model_uri, device, threshold=threshold)
    described = MlflowModel.from_dict(yaml.safe_load(pyfunc.mlmodel(translator.model)))
    model = PyFuncModel(described, pyfunc.Served(translator, most_pixels))
    # MLflow reads Parquet and CSV too; a small Parquet file unpacks to more than the machine's memory
    return http.JsonOnly(http.KnownParameters(scoring_server.init(model), ("direction",)))

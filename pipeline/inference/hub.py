"""Models on the Hugging Face Hub: what a repository of one holds, publishing it, and reading it back.

``hf://USER/REPO`` or ``hf://USER/REPO@REVISION`` names a model there wherever a model is named. Address, token and
cache are huggingface_hub's own: ``HF_ENDPOINT``, ``HF_TOKEN`` or ``hf auth login``, ``HF_HOME``.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agit_core import model_folder, saved_method
from agit_core.errors import BadInput, RunFailed
from agit_core.model_folder import Model
from pipeline import storage
from pipeline.records import Evaluation
from pipeline.redact import redact

SCHEME = "hf"
CONFIG = "config.json"
"""By this file the Hub counts downloads; ours says what the model is, and :mod:`agit_core` does not need it."""
WEIGHTS = "model.safetensors"
"""The name by which the Hub finds weights and shows their shapes."""
_URI = re.compile(r"hf:/+(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>.+))?$")
_FILES = ["*.json", "*.safetensors", "*.pt", "README.md"]
_SHOWN_LINEAGE = (
    "run_id",
    "steps",
    "step",
    "epoch",
    "stage",
    "data_fingerprint",
    "code",
    "packages",
    "device",
)
_SHOWN_SCORES = ("metrics", "baseline", "intervals", "counts", "protocol", "inception")


def check_name(repo: str) -> str:
    """The name of a repository, ``USER/REPO``.

    Raises:
        BadInput: the Hub would not take it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise BadInput(f"'{repo}' is no name of a repository: {' '.join(str(error).split())}") from None
    if "/" not in repo:
        raise BadInput(f"'{repo}' is no name of a repository; write USER/REPO")
    return repo


def config_file(model: Model) -> bytes:
    """``config.json``: kind, image size, directions and method."""
    tree = {
        "model_type": "agit",
        "image_size": model.image_size,
        "directions": list(model.directions),
        "method": saved_method.to_dict(model.method),
    }
    return (json.dumps(tree, indent=1) + "\n").encode()


def shown_scores(scores: Evaluation) -> Evaluation:
    """The scores without the places that they were measured at."""
    return Evaluation.model_validate(scores.model_dump(include=set(_SHOWN_SCORES), exclude_unset=True))


def shown_lineage(model: Model) -> dict[str, Any]:
    """Where a model comes from, for strangers: versions, data and settings, no folders, hosts or buckets."""
    lineage = {key: model.lineage[key] for key in _SHOWN_LINEAGE if key in model.lineage}
    config = redact(model.lineage.get("config") or {})
    if not config:
        return lineage
    data = dict(config.get("data") or {})
    source = str(data.get("source") or "")
    data |= {"source": source if source.startswith("http") else storage.name(source), "masks": None}
    train = {**(config.get("train") or {}), "start_from": None}
    kept = {key: config[key] for key in ("name", "seed", "method") if key in config}
    return {**lineage, "config": {**kept, "data": data, "train": train}}


def push(folder: Path, repo: str, private: bool, message: str) -> str:
    """Makes the repository where there is none yet, and a commit of all files of a folder; returns its address.

    Raises:
        BadInput: no such user, no token, or one that may not write there.
        RunFailed: the Hub does not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _explained(f"push to {repo}", api.endpoint):
        api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        return str(commit.commit_url)


def resolve(uri: str) -> str:
    """The local folder, in huggingface_hub's cache, of ``hf://USER/REPO`` at a revision (default: ``main``).

    What is in the cache is used where the Hub is out of reach.

    Raises:
        BadInput: no such repository, revision or right.
        RunFailed: the Hub does not answer, and the cache does not hold it.
    """
    found = _URI.match(uri)
    if found is None:
        raise BadInput(f"'{uri}' is no model on the Hub; write hf://USER/REPO or hf://USER/REPO@REVISION")
    from huggingface_hub import constants, snapshot_download

    repo = check_name(found["repo"])
    with _explained(f"read {uri}", constants.ENDPOINT):
        folder = snapshot_download(repo, revision=found["revision"], allow_patterns=_FILES)
    if not any((Path(folder) / name).is_file() for name in (model_folder.MANIFEST, "checkpoint.json")):
        raise BadInput(f"{uri} is no model of agit: it has no {model_folder.MANIFEST}")
    return folder


@contextlib.contextmanager
def _explained(what: str, endpoint: str) -> Iterator[None]:
    """What huggingface_hub raises, as one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise BadInput(f"cannot {what}: ask for access on its page first") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        reason = "there is no such repository or revision, or it is private; log in with `hf auth login`"
        raise BadInput(f"cannot {what}: {reason} or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            reason = (
                "the Hub refuses the token; log in with `hf auth login` or set HF_TOKEN to one that may write"
            )
            raise BadInput(f"cannot {what}: {reason}") from error
        raise RunFailed(f"cannot {what}: {endpoint} answers with {status}") from error
    except OSError as error:  # connection errors, also of httpx, are wrapped in or derived from it
        raise RunFailed(f"cannot {what}: {endpoint} does not answer ({_first(error)})") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in {"httpx", "httpx2", "requests"}:
            raise
        raise RunFailed(f"cannot {what}: {endpoint} does not answer ({_first(error)})") from error


def _first(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__

"""Identity of a model's weights, independent of where and how they are stored."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from agit_core import saved_method
from agit_core.model_folder import Model
from pipeline.config import fingerprint


def weights_digest(model: Model) -> str:
    """SHA-256 over all that determines translations: weights (without discriminators), architecture, threshold."""
    digest = hashlib.sha256()
    method = saved_method.identity(replace(model.method, networks=model.method.networks.architecture))
    digest.update(fingerprint([method["networks"], method["threshold_at_test"]]).encode())
    for name in sorted(model.weights):
        if not name.startswith("discriminator"):
            digest.update(name.encode() + model.weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()

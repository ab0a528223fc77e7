"""Reads of a training worker, with retries while the storage does not respond."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from agit_core import model_folder, saved_method
from agit_core.errors import BadInput, RunFailed
from agit_core.model_folder import Model
from pipeline.config import Config
from pipeline.data.read.reader import ShardImages
from pipeline.data.read.shard_cache import machine_folder
from pipeline.records import Spec

log = logging.getLogger(__name__)
T = TypeVar("T")


class PatientImages:
    """Images of a split, with retries while the storage does not respond."""

    def __init__(self, open_: Callable[[], ShardImages], patiently_: Callable[..., Any]) -> None:
        self._patiently = patiently_
        self._images: ShardImages = patiently_(open_)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Tensor:
        """Read image ``index``, uint8 (3, H, W)."""
        try:
            return self._images.read(index)
        except RunFailed:
            return self._patiently(lambda: self._images.read(index))

    def expect(self, index: int) -> None:
        """As :class:`agit_core.loader.Prefetching`."""
        self._images.expect(index)

    def forget(self) -> None:
        """As :class:`agit_core.loader.Prefetching`."""
        self._images.forget()


def patiently(action: Callable[[], T], seconds: float) -> T:
    """Retry an action on RunFailed for ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        try:
            return action()
        except RunFailed as error:
            if time.monotonic() >= until:
                raise
            log.warning("trying again: %s", error)
            time.sleep(1)


def open_split(spec: Spec, config: Config, split: str, block: int = 1) -> ShardImages:
    """Open the shards of a split, cached on this node if they are in object storage; ``block`` as in the plan."""
    return ShardImages(spec.data_uri, split, machine_folder(), config.data.cache_bytes, block)


def start_model(config: Config) -> Model:
    """Read the model of ``train.start_from``: a model or checkpoint folder.

    Raises:
        BadInput: it has no discriminators, or another architecture.
    """
    uri = str(config.train.start_from)
    model = model_folder.read(uri)
    if not model.has_discriminators:
        raise BadInput(
            f"train.start_from: the model at {uri} is for inference only and has no discriminators; "
            "give a checkpoint or a registered model"
        )
    changed = saved_method.differences(model.method, config.method)
    if networks := [setting for setting in changed if setting.startswith("networks.")]:
        raise BadInput(
            f"train.start_from: the model at {uri} has other networks than method.networks: "
            f"{', '.join(networks)}; use its method.networks or start from scratch"
        )
    return model

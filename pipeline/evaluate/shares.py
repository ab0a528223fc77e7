"""The costly part of an evaluation, features and figures per image, in shares that other processes compute.

A share is a run of whole batches, so every image is computed in the batch in which one process would compute it, and
the gathered arrays are the same.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from agit_core import model_folder, precision
from agit_core.scores.inception import Inception
from pipeline.config import Config, parse
from pipeline.data.format import manifest
from pipeline.evaluate import feature_cache
from pipeline.evaluate.direction import Direction
from pipeline.evaluate.feature_cache import Arrays
from pipeline.evaluate.scored_images import Domain, Images, open_domain


@dataclass(frozen=True)
class Share:
    """Number ``part`` of ``of`` equal runs of batches.

    Attributes:
        name: a domain, whose real images' features are asked for, or a direction.
        model_uri: the model or checkpoint folder that translates; None for a domain.
    """

    name: str
    model_uri: str | None
    part: int
    of: int


Spread = Callable[[Sequence[Share]], Iterator[Arrays]]
"""Computes shares somewhere and yields their arrays in the same order."""


def real_features(
    images: Images, inception: Inception, batch_size: int, done: Callable[[int], None]
) -> Arrays:
    """``features`` float32 (N, 2048) of images as they are."""
    parts = []
    for batch in images.batches(batch_size):
        parts.append(inception.features(batch.images, batch_size))
        done(len(batch.indices))
    return {"features": torch.cat(parts)}


def split(domain: Domain, name: str, model_uri: str | None, batch_size: int, workers: int) -> list[Share]:
    """As many shares as there are workers, or batches of test images where those are fewer."""
    of = max(1, min(workers, _batches(domain.test, batch_size)))
    return [Share(name, model_uri, part, of) for part in range(of)]


def cut(domain: Domain, share: Share, batch_size: int) -> Domain:
    """The part of a domain that belongs to a share; masks of other images are shared out alike."""
    test = _cut(domain.test, share, batch_size)
    if domain.masked is None or domain.masks_on_test:
        return Domain(test, domain.masked and test)
    return Domain(test, _cut(domain.masked, share, batch_size))


def gathered(arrays: Iterable[Arrays]) -> Arrays:
    """The arrays of all shares, in their order, as one process would have them."""
    found = list(arrays)
    names = dict.fromkeys(name for part in found for name in part)
    return {name: torch.cat([part[name] for part in found if name in part]) for name in names}


def compute(config: Config, data_uri: str, share: Share) -> Arrays:
    """A share's arrays, in a process that has nothing open yet.

    Raises:
        BadInput: no such model or data, or no Inception network.
        RunFailed: the storage does not answer.
    """
    device = precision.pick_device(config.evaluate.device)
    precision.make_exact(precision.Numerics(None, False, False), device)
    inception = _inception(json.dumps(config.plain(), sort_keys=True), device)
    domain = open_domain(config, data_uri, manifest.read(data_uri), share.name[0])
    size = config.evaluate.batch_size
    try:
        mine = cut(domain, share, size)
        if share.model_uri is None:
            return real_features(mine.test, inception, size, lambda images: None)
        model = model_folder.read(share.model_uri)
        direction = Direction(model.networks().to(device), model.method, share.name, device)
        return direction.score(mine, inception, size, lambda images: None)
    finally:
        domain.close()


@functools.lru_cache(maxsize=1)
def _inception(settings: str, device: torch.device) -> Inception:
    """Kept for the next share: a process computes several, and compiling the network takes longer than few images."""
    return feature_cache.load_inception(parse(json.loads(settings)), device)


def _batches(images: Images, batch_size: int) -> int:
    return -(-len(images) // batch_size)


def _cut(images: Images, share: Share, batch_size: int) -> Images:
    batches = _batches(images, batch_size)
    first, end = (batches * part // share.of * batch_size for part in (share.part, share.part + 1))
    return Images(images.source, images.split, images.indices[first:end], images.size, images.with_masks)

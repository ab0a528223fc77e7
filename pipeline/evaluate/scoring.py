"""Evaluation of any model or checkpoint: realism, faithfulness and attention.

Every metric is compared with the identity baseline (the source images as their own translation) and, if there is one,
the current champion, on the same images, subsets and resamples.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from agit_core import model_folder, precision
from agit_core.errors import BadInput
from agit_core.model_folder import Model
from agit_core.scores import attention, distances
from agit_core.scores.inception import Inception
from pipeline import records, run_status, storage
from pipeline.config import Config
from pipeline.data.format import manifest
from pipeline.data.read.held_out import Rows
from pipeline.evaluate import compare, feature_cache
from pipeline.evaluate.compare import Figures, Judge
from pipeline.evaluate.direction import Direction
from pipeline.evaluate.feature_cache import Arrays
from pipeline.evaluate.scored_images import Domain, Images, open_domain, open_held_out
from pipeline.evaluate.shares import Spread, cut, gathered, real_features, split
from pipeline.evaluate.strips import EACH_END, keep_extremes
from pipeline.metrics import catalog
from pipeline.metrics.catalog import DIRECTIONS, NOTHING
from pipeline.metrics.measure import PAINTED
from pipeline.records import Evaluation, Manifest, Rival, ScoredModel
from pipeline.registry import models
from pipeline.registry.identity import weights_digest

log = logging.getLogger(__name__)

FORMAT = 1
Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Subject:
    """The evaluated model and the output folder of its evaluation."""

    model_uri: str
    folder: str
    model: Model


def evaluate(
    config: Config,
    uri: str,
    data_uri: str,
    progress: Progress | None = None,
    champion: Mapping[str, Any] | Literal["registry"] | None = "registry",
    spread: Spread | None = None,
) -> Evaluation:
    """Score a model on the test images of prepared data and store the evaluation.

    Args:
        uri: a finished run's folder (its model is scored, the best checkpoint by validation or the last, and the
            result written there), a checkpoint or model folder, or ``models:/name@alias`` (written below
            ``{storage}/evaluations``).
        progress: called with ``{"done", "total", "unit", "images_per_s", "eta_s", "message"}``.
        champion: as :func:`pipeline.registry.models.champion` describes it; default: the registry is asked.
        spread: computes the shares of ``evaluate.workers`` processes; default: this process computes everything.

    Raises:
        BadInput: no such model or data, no Inception network, fewer than two test images.
        RunFailed: the storage does not answer.
    """
    device = precision.pick_device(config.evaluate.device)
    described = manifest.read(data_uri)
    subject = _subject(config, uri, described)
    # all checks of the call come before the first image
    inception = feature_cache.load_inception(config, device)
    found = models.champion(config) if champion == "registry" else champion
    rival, rival_model = _champion(found, subject.model)
    domains = {name: open_domain(config, data_uri, described, name) for name in "ab"}
    try:
        scorer = _Scorer(config, described, domains, inception, device, progress, rivals=rival is not None)
        scorer.spread = spread
        real = {name: scorer.real(name) for name in "ab"}
        judge = Judge(config.evaluate, config.seed, real["a"], real["b"])
        outcome = scorer.outcome(subject.model, "the model", subject.model_uri)
        mine = judge.model(outcome)
        nothing = judge.nothing(mine)
        others = {"do_nothing": nothing}
        if rival is not None and rival_model is not None:
            others["champion"] = judge.model(scorer.outcome(rival_model, "the champion", str(rival["uri"])))
            rival |= {"metrics": others["champion"].metrics, "intervals": _own(others["champion"])}
        rows = _per_image(outcome, domains, real)
        pictures = storage.join(subject.folder, records.PICTURES)
        scorer.message = "pictures of the best and the worst"
        networks = scorer.networks(subject.model)
        keep_extremes(pictures, rows, networks, domains, device, scorer)
    finally:
        for domain in domains.values():
            domain.close()
    evaluation = Evaluation(
        format=FORMAT,
        uri=subject.folder,
        model=ScoredModel(uri=subject.model_uri, weights_sha256=weights_digest(subject.model)),
        data={"uri": data_uri, "fingerprint": described.fingerprint, "name": described.name},
        metrics=mine.metrics | {f"{NOTHING}{name}": value for name, value in nothing.metrics.items()},
        baseline=nothing.metrics,
        champion=None if rival is None else Rival.model_validate(rival),
        intervals=compare.intervals(mine, others),
        baseline_intervals=_own(nothing),
        inception=inception.describe(),
        counts=_counts(domains, outcome) | judge.counts,
        protocol=_protocol(config, domains, judge, subject.model),
        per_image=rows,
    )
    records.EVALUATION.write(subject.folder, evaluation)
    return evaluation


def figures(
    config: Config,
    model_uri: str,
    data_uri: str,
    inception: Inception,
    device: torch.device,
    held_out: Mapping[Literal["a", "b"], Rows] | None = None,
) -> dict[str, float | None]:
    """Metrics of a checkpoint or model folder by contract name.

    Unlike :func:`evaluate`, without intervals, champion, pictures or files, except the cached features of real images.

    Args:
        held_out: score on these training images instead of the test images.

    Raises:
        BadInput: no such model or data, fewer than two test images.
        RunFailed: the storage does not answer.
    """
    described, model = manifest.read(data_uri), model_folder.read(model_uri)
    evaluate_config = config.evaluate.model_copy(update={"bootstrap": 0})
    if held_out is None:
        domains = {name: open_domain(config, data_uri, described, name) for name in "ab"}
    else:
        domains = {
            str(name): open_held_out(config, data_uri, described, name, rows.held)
            for name, rows in held_out.items()
        }
    try:
        scorer = _Scorer(config, described, domains, inception, device, None, rivals=False)
        judge = Judge(evaluate_config, config.seed, scorer.real("a"), scorer.real("b"))
        networks = scorer.networks(model)
        outcome = {}
        for name in DIRECTIONS:
            direction = Direction(networks, model.method, name, device)
            domain = domains[name[0]]
            outcome[name] = direction.score(domain, inception, config.evaluate.batch_size, scorer)
    finally:
        for domain in domains.values():
            domain.close()
    return judge.model(outcome).metrics


class _Scorer:
    """Computes features and per-image metrics, through the cache, and reports progress."""

    def __init__(
        self,
        config: Config,
        described: Manifest,
        domains: dict[str, Domain],
        inception: Inception,
        device: torch.device,
        progress: Progress | None,
        rivals: bool,
    ) -> None:
        self.config = config
        self.described = described
        self.domains = domains
        self.inception = inception
        self.device = device
        # plain fp32, because a champion's cached scores may come from another machine
        precision.make_exact(precision.Numerics(None, False, False), device)
        self.message = ""
        self.spread: Spread | None = None
        self._progress = progress
        self._done, self._skipped, self._started = 0, 0, time.monotonic()
        real = sum(len(domain.test) for domain in domains.values())
        self._total = real + sum(_model_images(d) for d in domains.values()) * (2 if rivals else 1)
        self._total += 4 * EACH_END

    def __call__(self, images: int, skipped: bool = False) -> None:
        self._done += images
        self._skipped += images if skipped else 0
        if self._progress is None:
            return
        rate = (self._done - self._skipped) / max(time.monotonic() - self._started, 1e-9)
        left = max(self._total - self._done, 0)
        self._progress(
            {
                "done": min(self._done, self._total),
                "total": self._total,
                "unit": "images",
                "images_per_s": rate or None,
                "eta_s": left / rate if rate else None,
                "message": self.message,
            }
        )

    def real(self, domain: str) -> Tensor:
        """Inception features of the real test images, (N, 2048)."""
        test = self.domains[domain].test
        self.message = f"real images, {test.split}"

        def compute() -> Arrays:
            if self.spread is not None:
                return self._spread(self.spread, domain, None)
            return real_features(test, self.inception, self.config.evaluate.batch_size, self)

        return self._cached(self._key(domain), compute, test, len(test))["features"]

    def _spread(self, spread: Spread, name: str, model_uri: str | None) -> Arrays:
        domain, evaluate = self.domains[name[0]], self.config.evaluate
        shares = split(domain, name, model_uri, evaluate.batch_size, evaluate.workers)
        found = []
        for share, arrays in zip(shares, spread(shares), strict=True):
            found.append(arrays)
            mine = cut(domain, share, evaluate.batch_size)
            self(len(mine.test) if model_uri is None else _model_images(mine))
        return gathered(found)

    def outcome(self, model: Model, message: str, model_uri: str) -> dict[str, Arrays]:
        """Features and per-image metrics of a model, by direction."""
        digest = weights_digest(model)
        networks: Any = None
        arrays = {}
        for name in DIRECTIONS:
            domain = self.domains[name[0]]
            self.message = f"{message}, {name}"

            def compute(name: str = name, domain: Domain = domain) -> Arrays:
                nonlocal networks
                if self.spread is not None:
                    return self._spread(self.spread, name, model_uri)
                networks = networks or self.networks(model)
                direction = Direction(networks, model.method, name, self.device)
                return direction.score(domain, self.inception, self.config.evaluate.batch_size, self)

            parts = {"model": digest, "tau": model.method.stages.tau, "metrics": catalog.digest()}
            key = self._key(name[0], direction=name, **parts)
            arrays[name] = self._cached(key, compute, domain.test, _model_images(domain))
        return arrays

    def networks(self, model: Model) -> Any:
        return model.networks().to(self.device)

    def _key(self, domain: str, **parts: Any) -> str:
        which = self.domains[domain]
        masked = [which.masked.split, which.masked.indices] if which.masked is not None and parts else None
        count = len(which.test)
        if which.test.indices != list(range(count)):  # held out of a training split
            parts["indices"] = which.test.indices
        return feature_cache.key(
            data=self.described.fingerprint,
            split=which.test.split,
            images=count,
            masked=masked,
            **parts,
        )

    def _cached(self, key: str, compute: Callable[[], Arrays], test: Images, images: int) -> Arrays:
        arrays, cached = feature_cache.cached(self.config, key, compute, len(test))
        if cached:
            self(images, skipped=True)
        return arrays


def _model_images(domain: Domain) -> int:
    extra = domain.masked if not domain.masks_on_test else None
    return len(domain.test) + (len(extra) if extra is not None else 0)


def _subject(config: Config, uri: str, described: Manifest) -> Subject:
    uri = models.resolve(uri, config)
    model_uri = run_status.model_checkpoint(uri)
    if model_uri is not None:
        return Subject(model_uri, uri, model_folder.read(model_uri))
    model = model_folder.read(uri)
    digest = weights_digest(model)[:12]
    folder = storage.join(config.storage, "evaluations", f"{digest}-{described.fingerprint}")
    return Subject(uri, folder, model)


def _champion(holder: Mapping[str, Any] | None, model: Model) -> tuple[dict[str, Any] | None, Model | None]:
    """The current champion, unless it is the evaluated model itself."""
    if holder is None:
        return None, None
    try:
        champion = model_folder.read(holder["uri"])
    except BadInput as error:
        raise BadInput(
            f"the champion to compare with, {holder['name']} version {holder['version']}, cannot be read: {error}"
        ) from None
    if weights_digest(champion) == weights_digest(model):
        return None, None
    return {"name": holder["name"], "version": holder["version"], "uri": holder["uri"]}, champion


def _own(figures: Figures) -> dict[str, Any]:
    return compare.intervals(figures, {})


def _per_image(
    outcome: dict[str, Arrays], domains: dict[str, Domain], real: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """One row per translated test image; ``score`` 0: like the average target, 1: like the average source."""
    rows: list[dict[str, Any]] = []
    for direction in DIRECTIONS:
        arrays, test = outcome[direction], domains[direction[0]].test
        scores = distances.distance_to_target(arrays["features"], real[direction[0]], real[direction[2]])
        on_test = {"coverage": "attention_coverage", "cycle_l1": "cycle_l1"}
        if domains[direction[0]].masked in (None, test):
            on_test |= {"iou": "attention_iou", "background_l1": "background_l1"}
        for row, (index, name) in enumerate(zip(test.indices, test.names(), strict=True)):
            finite = bool(arrays["finite"][row])
            entry: dict[str, Any] = {
                "direction": direction,
                "domain": direction[0],
                "index": index,
                "name": name,
            }
            entry["score"] = float(scores[row]) if scores is not None and finite else None
            for key, source in on_test.items():
                if source in arrays:
                    value = float(arrays[source][row])
                    entry[key] = value if value == value and finite else None
            rows.append(entry)
    return rows


def _counts(domains: dict[str, Domain], outcome: dict[str, Arrays]) -> dict[str, int]:
    counts = {f"test_{name}": len(domain.test) for name, domain in domains.items()}
    for direction in DIRECTIONS:
        name, arrays = direction[0], outcome[direction]
        masked = domains[name].masked
        if masked is not None:
            counts[f"masks_{masked.split}"] = len(masked)
            if "attention_iou" in arrays:
                counts[f"masks_empty_{masked.split}"] = int(torch.isnan(arrays["attention_iou"]).sum())
        broken = int((~arrays["finite"]).sum())
        if broken:
            counts[f"not_finite_{direction}"] = broken
    return counts


def _protocol(config: Config, domains: dict[str, Domain], judge: Judge, model: Model) -> dict[str, Any]:
    protocol: dict[str, Any] = {
        "kid": f"{config.evaluate.subsets} subsets of up to {config.evaluate.subset_size}, seed {config.seed}, "
        "raw (papers print it x 100); mean is of target and source; std is between subsets",
        "kid_source": "translations against the very images they came from, so it can fall slightly below 0",
        "fid": "translations against the real test images of the target; biased upwards with few images",
        "do_nothing": "the source images taken as their own translation; it attends nowhere",
        "intervals": f"95 %: value +- 1.96 standard errors over {config.evaluate.bootstrap} resamples of images, "
        "shared by all that are compared; a difference of KID is that of all images, not of the subsets",
        "per_image": "distance to the target (0: like the average target image, 1: the average source image)",
    }
    if model.method.networks.has_attention:
        protocol["attention"] = (
            f"attended: attention >= {attention.THRESHOLD}; images with an empty mask left out"
        )
    for name, domain in domains.items():
        if domain.masked is None:
            protocol[f"background_{name}"] = (
                f"outside the predicted attention (< {PAINTED}) on {domain.test.split}: no true masks exist"
            )
        else:
            protocol[f"background_{name}"] = f"outside the true masks of {domain.masked.split}"
            protocol[f"masks_{name}"] = f"{len(domain.masked)} images of {domain.masked.split}"
    if judge.warnings:
        protocol["warnings"] = judge.warnings
    return protocol

"""What a training worker works with: device, ranks, data, sampling plan and checkpoint store."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import ray.train
import ray.train.torch
import torch

from agit_core.loader import ImageSource, Loader
from agit_core.sampling import SamplePlan
from agit_core.trainer import Trainer
from agit_core.world import World
from pipeline.config import Config
from pipeline.data.format import manifest
from pipeline.data.read import held_out
from pipeline.data.read.sample_order import sample_plan, total_steps
from pipeline.records import Spec
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.reading import PatientImages, open_split, patiently

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """The fixed properties of a worker.

    Attributes:
        total: steps of the run, after which the learning rate is 0.
        end: the step at which this job ends; a trial of a search ends at each rung and may resume later.
        score_every: steps between scored checkpoints; None: none are scored.
        on_cluster: whether Ray is shared: nodes may be preempted, and metrics are exported.
    """

    spec: Spec
    config: Config
    device: torch.device
    world: World
    store: CheckpointStore
    plan: SamplePlan
    loader: Loader
    total: int
    end: int
    score_every: int | None
    on_cluster: bool

    @staticmethod
    def of(spec: Spec, on_cluster: bool) -> Setup:
        """Read the data's description and open its images, with retries while the storage does not respond."""
        config = Config.model_validate(spec.config)
        train = config.train
        # before the first use of the thread pool, so that results do not depend on when it was sized
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        local = ray.train.get_context().get_local_world_size()
        torch.set_num_threads(train.threads_per_worker or max(1, cores // local))
        device: torch.device = ray.train.torch.get_device()

        def retried(action: Callable[[], T]) -> T:
            return patiently(action, train.storage_patience_s)

        described = retried(lambda: manifest.read(spec.data_uri))
        apart = retried(lambda: held_out.rows(config, spec.data_uri, described))
        plan = sample_plan(config, spec.data_uri, described, apart)
        sources: dict[Any, ImageSource] = {d: _images(spec, config, plan, f"train{d.upper()}") for d in "ab"}
        if apart is not None:
            sources = {d: held_out.Subset(sources[d], apart[d].trained) for d in apart}
        total = total_steps(config, plan)
        return Setup(
            spec=spec,
            config=config,
            device=device,
            world=World.current(),
            store=CheckpointStore.of(spec.run_uri, config),
            plan=plan,
            loader=Loader(
                sources,
                plan,
                config.data.image_size,
                config.method.flip,
                train.prefetch_threads,
                pin=device.type == "cuda",
            ),
            total=total,
            end=min(spec.until or total, total),
            score_every=None if apart is None else config.validation.every,
            on_cluster=on_cluster,
        )

    def trainer(self) -> Trainer:
        """A trainer at step 0."""
        return Trainer(
            self.config.method,
            self.plan,
            self.config.data.image_size,
            self.total,
            self.device,
            self.config.seed,
            self.world,
            self.config.train.microbatch,
            self.config.train.activation_checkpointing,
        )

    def images(self, split: str) -> PatientImages:
        return _images(self.spec, self.config, self.plan, split)

    def patiently(self, action: Callable[[], T]) -> T:
        """Retry an action while the storage does not respond, for ``train.storage_patience_s``."""
        return patiently(action, self.config.train.storage_patience_s)


def _images(spec: Spec, config: Config, plan: SamplePlan, split: str) -> PatientImages:
    patience = config.train.storage_patience_s
    return PatientImages(
        lambda: open_split(spec, config, split, plan.block), lambda action: patiently(action, patience)
    )

"""The training loop and its exact state.

The loop is a generator that yields after every step: the caller decides when to log, sample, checkpoint or stop.
Only ``window``, ``check_weights`` and ``snapshot`` synchronise with the device.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agit_core import checkpoint, networks, saved_method
from agit_core.checkpoint import Snapshot
from agit_core.config import MethodConfig
from agit_core.errors import BadInput, Diverged
from agit_core.history import History
from agit_core.layers import Residual
from agit_core.loader import Batch, Loader
from agit_core.optimizers import learning_rate_factor, load_state, set_learning_rate
from agit_core.precision import make_deterministic, make_exact, resolve
from agit_core.sampling import SamplePlan, slots_of
from agit_core.stages import HEALTH_KEYS, Stage, StageMachine
from agit_core.step import FIGURES, GENERATOR_NAMES, LOSS_KEYS, Passes, TrainingStep
from agit_core.world import World

log = logging.getLogger(__name__)

_UNNAMED_FIGURES = (
    *("generator_ab", "generator_ba", "cycle_a", "cycle_b"),
    *("identity_a", "identity_b", "discriminator_a", "discriminator_b"),
    *("coverage_a", "above_tau_a", "bimodality_a", "spread_a", "opacity_a"),
    *("coverage_b", "above_tau_b", "bimodality_b", "spread_b", "opacity_b"),
)
"""Order of the running sums in checkpoints of earlier versions, which store them without names."""


class StepResult(NamedTuple):
    """Outcome of one training step."""

    step: int
    """Number of steps done so far."""
    epoch: int
    stage: Stage
    switched: bool
    """Whether this step was the first of stage ``masked``."""
    figures: Tensor
    """:data:`agit_core.step.FIGURES` of this rank's items, float32, on the device."""


class MeanFigures(NamedTuple):
    """Means of the step figures over the global batch and several steps."""

    losses: dict[str, float]
    mask_health: dict[str, float]
    steps: int

    @property
    def finite(self) -> bool:
        """Whether all losses are finite; NaN in a mask makes the cycle loss NaN too."""
        return all(map(math.isfinite, self.losses.values()))


class Trainer:
    """Trains the six networks of one run.

    Args:
        config: method settings.
        plan: sampling order; also fixes the global batch size.
        image_size: side of the square training images, in pixels.
        total_steps: step at which the learning rate reaches 0 and the run ends.
        device: device of this rank.
        seed: seed of the initial weights, the image pool and PyTorch's global random state.
        world: rank and world size; by default from ``torch.distributed``, collectively (every rank at once).
        microbatch: images per domain in one forward pass of this rank, see :class:`agit_core.step.TrainingStep`.
        recompute: activation checkpointing of the generators' residual blocks: same bits, less memory, more time.
        extra_loss: loss of your own, scalar mean over the images; added to that of generators and attention with
            the weight that you give it. Checkpoints do not store it.
    """

    def __init__(
        self,
        config: MethodConfig,
        plan: SamplePlan,
        image_size: int,
        total_steps: int,
        device: torch.device | None = None,
        seed: int = 0,
        world: World | None = None,
        microbatch: int | None = None,
        recompute: bool = False,
        extra_loss: Callable[[Passes], Tensor] | None = None,
    ) -> None:
        self.config = config
        self.plan = plan
        self.image_size = image_size
        self.total_steps = total_steps
        self.device = device or torch.device("cpu")
        self.world = world or World.current()
        self.slots = slots_of(self.world.rank, self.world.size, plan.batch_size)
        self.numerics = resolve(config.precision, self.device)
        make_exact(self.numerics, self.device)
        make_deterministic(self.device, config.precision.deterministic)
        # otherwise each process starts from a random state, which checkpoints would store
        torch.manual_seed(seed)
        self.networks = networks.build(config.networks, seed)
        for module in self.networks.modules():
            if isinstance(module, Residual):
                module.recomputes = recompute
        self.stages = StageMachine(config.stages, config.networks.has_attention)
        history_a, history_b = (
            History(config.history, self.slots, plan.batch_size, seed, domain) for domain in "ab"
        )
        self.training_step = TrainingStep(
            config,
            self.networks,
            (history_a, history_b),
            self.numerics,
            self.device,
            self.world,
            plan.batch_size,
            microbatch,
            extra_loss,
        )
        self.averaged = self._generator_weights() if config.optimizer.average_decay else {}
        self.step = 0
        self.rollbacks = 0
        """Number of rollbacks after divergence; each halves the learning rates."""
        # row 0: sums, row 1: number of items in each sum
        self._window = torch.zeros(2, len(FIGURES), dtype=torch.float64, device=self.device)
        self._epoch = torch.zeros_like(self._window)
        self._ended: list[tuple[int, MeanFigures]] = []
        self.training_step.enter(self.stages.rules)

    # ------------------------------------------------------------------ the loop

    def run(self, loader: Loader, until: int | None = None) -> Iterator[StepResult]:
        """Train from the current step to ``until`` (at most ``total_steps``), yielding after each step."""
        stop = min(self.total_steps, until if until is not None else self.total_steps)
        for batch in loader.batches(self.step, self.slots, stop):
            yield self.train_on(batch)

    def train_on(self, batch: Batch) -> StepResult:
        """Train one step on ``batch``, the next one of the plan."""
        assert batch.step == self.step, f"step {self.step} got the batch of step {batch.step}"
        if self.plan.starts_epoch(batch.step):
            health = self._close_epoch(self.plan.epoch_of(batch.step - 1)).mask_health
            self.stages.epoch_ended((health["coverage_a"] + health["coverage_b"]) / 2)
        switched = self.stages.advance(batch.step, batch.epoch)
        if switched:
            log.info("step %d: %s", batch.step, self.stages.rules.describe())
            self.training_step.enter(self.stages.rules)
        self._set_learning_rates()
        figures = self.training_step(batch, self.step / self.total_steps)
        self._update_average()
        # weight by items: ranks of an uneven split hold different numbers of them
        counts = torch.full_like(figures, len(self.slots), dtype=torch.float64)
        weighted = torch.stack([figures * counts, counts])
        self._window += weighted
        self._epoch += weighted
        self.step += 1
        if self.step == self.total_steps:
            self._close_epoch(batch.epoch)
        return StepResult(self.step, batch.epoch, self.stages.stage, switched, figures)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the generators in the last step."""
        return float(self.training_step.optimizer_g.param_groups[0]["lr"])

    def _set_learning_rates(self) -> None:
        factor = learning_rate_factor(self.step, self.total_steps, self.config.optimizer)
        factor *= 0.5**self.rollbacks
        set_learning_rate(self.training_step.optimizer_g, factor)
        set_learning_rate(self.training_step.optimizer_d, factor)

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self.averaged:
            return
        # warm-up: the first averages follow quickly; full decay after about 9 / (1 - decay) steps
        decay = min(self.config.optimizer.average_decay, (1 + self.step) / (10 + self.step))
        live = [p for n, p in self.networks.state_dict().items() if n in self.averaged]
        torch._foreach_lerp_(list(self.averaged.values()), live, 1 - decay)

    def _generator_weights(self) -> dict[str, Tensor]:
        return {
            name: value.detach().clone()
            for name, value in self.networks.state_dict().items()
            if name.startswith(GENERATOR_NAMES)
        }

    # ------------------------------------------------------------------ figures

    def window(self) -> MeanFigures:
        """Means since the last call, over all ranks. Collective; synchronises with the device."""
        total = self.world.sum(self._window)
        self._window.zero_()
        return _means(total, self.plan.batch_size)

    def check_losses(self, window: MeanFigures) -> None:
        """Check a window, equal on all ranks, for losses that are not finite.

        Raises:
            Diverged: a loss is NaN or infinite; names the steps and the setting to lower.
        """
        if not window.finite:
            raise self._diverged(f"the losses of steps {self.step - window.steps + 1} to {self.step}")

    def check_weights(self) -> None:
        """Check weights, averaged weights and Adam's moments for values that are not finite.

        Collective; synchronises with the device.

        Raises:
            Diverged: on every rank, if any rank has one.
        """
        step = self.training_step
        tensors = [*self.networks.state_dict().values(), *self.averaged.values()]
        for optimizer in (step.optimizer_g, step.optimizer_d):
            for moments in optimizer.state.values():
                tensors += [moments["exp_avg"], moments["exp_avg_sq"]]
        broken = ~torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
        if float(self.world.sum(broken.reshape(1))):
            raise self._diverged(f"the weights after step {self.step}")

    def _diverged(self, what: str) -> Diverged:
        rate = f"{self.learning_rate:.3g}"
        return Diverged(
            f"the training diverged: {what} are not finite; lower method.optimizer.learning_rate (now {rate})"
        )

    def ended_epochs(self) -> list[tuple[int, MeanFigures]]:
        """Epochs that ended since the last call: (epoch, means over all ranks)."""
        ended, self._ended = self._ended, []
        return ended

    def _close_epoch(self, epoch: int) -> MeanFigures:
        """Means over the epoch that ended (the run's last may be partial), equal on all ranks. Collective."""
        figures = _means(self.world.sum(self._epoch), self.plan.batch_size)
        self._epoch.zero_()
        self._ended.append((epoch, figures))
        return figures

    # ------------------------------------------------------------------ state

    def snapshot(self) -> Snapshot | None:
        """Copy the exact state to the CPU on rank 0; None on other ranks. Collective.

        The image pools and the epoch's sums of all ranks are merged, so that a run can resume at any world size.

        Raises:
            Diverged: the weights are not finite; see :meth:`check_weights`.
        """
        self.check_weights()
        step = self.training_step
        histories = self.world.gather((step.history_a.state(), step.history_b.state()))
        # move the live sums to rank 0, as a resumed run has them: both then continue bit-identically
        total = self.world.sum(self._epoch)
        self._epoch.copy_(total if self.world.rank == 0 else torch.zeros_like(total))
        if histories is None:
            return None
        return Snapshot(
            info={
                "step": self.step,
                "epoch": self.plan.epoch_of(self.step),
                "stage": self.stages.stage.value,
                "switched_at_step": self.stages.switched_at_step,
                **self._fixed(),
                "method": saved_method.to_dict(self.config),
            },
            networks=_to_cpu(self.networks.state_dict()),
            averaged=_to_cpu(self.averaged),
            training={
                "optimizer_g": _to_cpu(step.optimizer_g.state_dict()),
                "optimizer_d": _to_cpu(step.optimizer_d.state_dict()),
                "stages": self.stages.state_dict(),
                "coverage": _to_cpu(step.coverage.state_dict()),
                "epoch_figures": dict(zip(FIGURES, total.T.tolist(), strict=True)),
                "torch_random_state": torch.get_rng_state(),
                "rollbacks": self.rollbacks,
            },
            history={
                "a": {s: t for part in histories for s, t in part[0].items()},
                "b": {s: t for part in histories for s, t in part[1].items()},
            },
        )

    def save(self, directory: Path) -> None:
        """Write the state as a checkpoint folder, on rank 0. Collective."""
        snapshot = self.snapshot()
        if snapshot is not None:
            checkpoint.write(directory, snapshot)

    def load(self, directory: Path) -> None:
        """Resume from a checkpoint folder, at any world size.

        Raises:
            CheckpointDamaged: the folder is incomplete or does not match its checksums.
            BadInput: the checkpoint has another method, data set, batch or image size.
        """
        self.restore(checkpoint.read(directory))

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot; see :meth:`load`."""
        self._check_belongs(snapshot.info)
        self.networks.load_state_dict(snapshot.networks)
        live = self.networks.state_dict()
        # in the memory layout of the live weights: another layout would use another kernel and round differently
        self.averaged = {n: torch.empty_like(live[n]).copy_(t) for n, t in snapshot.averaged.items()}
        training, step = snapshot.training, self.training_step
        load_state(step.optimizer_g, training["optimizer_g"])
        load_state(step.optimizer_d, training["optimizer_d"])
        self.stages.load_state_dict(training["stages"])
        # checkpoints of earlier versions have no controller, nor do their methods
        step.coverage.load_state_dict(training.get("coverage", {}))
        step.history_a.load(snapshot.history["a"], self.device)
        step.history_b.load(snapshot.history["b"], self.device)
        self._epoch.zero_()
        if self.world.rank == 0:
            self._epoch.copy_(_running(training["epoch_figures"]))
        self._window.zero_()
        torch.set_rng_state(training["torch_random_state"])
        self.step = int(snapshot.info["step"])
        self.rollbacks = int(training.get("rollbacks", 0))  # earlier versions had no rollbacks
        step.enter(self.stages.rules)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Initialise a new run with the weights of an earlier model, without its optimiser state or step."""
        self.networks.load_state_dict(weights)
        self.averaged = self._generator_weights() if self.config.optimizer.average_decay else {}

    def _fixed(self) -> dict[str, Any]:
        """Values that are fixed for the whole run."""
        return {
            "total_steps": self.total_steps,
            "image_size": self.image_size,
            "batch_size": self.plan.batch_size,
            "lengths": [self.plan.length_a, self.plan.length_b],
            "seed": self.plan.seed,
            "shuffle_window": [self.plan.block, self.plan.window],
        }

    def _check_belongs(self, info: dict[str, Any]) -> None:
        for key, value in self._fixed().items():
            # checkpoints of earlier versions lack "shuffle_window"
            if key in info and info[key] != value:
                raise BadInput(
                    f"the checkpoint was made with {key} {info[key]}, this run has {value}; "
                    "start a new run or use the settings it was made with"
                )
        if changed := saved_method.differences(saved_method.from_dict(info["method"]), self.config):
            raise BadInput(
                "the checkpoint was made with another method configuration than this run's: "
                f"{', '.join(changed)}; start a new run or use the settings it was made with"
            )


def _running(stored: dict[str, list[float]] | Tensor) -> Tensor:
    """The epoch's sums and counts from a checkpoint, float64 (2, len(FIGURES)).

    A figure missing from the checkpoint starts at zero items: its mean covers the rest of the epoch.
    """
    if isinstance(stored, Tensor):
        *sums, items = stored.tolist()
        stored = {name: [total, items] for name, total in zip(_UNNAMED_FIGURES, sums, strict=True)}
    return torch.tensor([stored.get(name, [0.0, 0.0]) for name in FIGURES], dtype=torch.float64).T


def _means(total: Tensor, batch_size: int) -> MeanFigures:
    sums, counts = total
    means = dict(zip(FIGURES, (sums / counts.clamp(min=1.0)).tolist(), strict=True))
    health = {f"{key}_{domain}": means[f"{key}_{domain}"] for domain in "ab" for key in HEALTH_KEYS}
    return MeanFigures({k: means[k] for k in LOSS_KEYS}, health, round(float(counts.max()) / batch_size))


def _to_cpu(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True).contiguous()
    if isinstance(tree, dict):
        return {k: _to_cpu(v) for k, v in tree.items()}
    return [_to_cpu(v) for v in tree] if isinstance(tree, list | tuple) else tree

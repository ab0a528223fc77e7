"""The method's settings as frozen dataclasses.

The pipeline's pydantic models use these classes directly: YAML files are validated against them, and the method
is described only once. ``__pydantic_config__`` is a plain dict: this package does not import pydantic. Where the
paper and the authors' code differ, the default follows the code and a switch selects the paper's variant.

Deliberate differences from the original codes, under any settings. Networks and losses are equal (tests compare
them), and so are the image pool, stage switch, tau, betas and loss weights.

    what            original codes                              here, and why
    optimisers      authors: one Adam for four minimisations,   one Adam per side, as published: the shared powers
                    which share the powers of beta: constant    are an accident, over after 2000 iterations
                    gradients move 1.93 times as far at
                    iteration 11, 1.64 at 301, 1.07 at 2001
    order           authors: G_A, D_B, G_B, D_A, each with      generators, then discriminators on the same fakes, as
                    fresh forward passes                        in pytorch-CycleGAN: fewer passes, A and B alike
    learning rate   falls per epoch; pytorch-CycleGAN: 0.990    falls per step, 0 after the last one: independent of
                    in epoch 100 of 200, 0 in the last          the length of an epoch
    resizing        authors: bilinear                           bicubic with antialiasing, as in pytorch-CycleGAN:
                                                                no moire in reduced images
    pairs           authors: fixed order, common crop and flip  A and B drawn, cropped and flipped independently; an
                    pytorch-CycleGAN: B with replacement        epoch shows each image of the larger domain once
    crops at test   authors: random                             none: scores can be repeated
    biases that a   trained: only rounding moves them           stay as drawn while the norm is on
    norm cancels
    loss of D       the port: real + fake                       0.5 * (real + fake), as in the other two; Adam divides
                                                                a constant factor out

A setting added later names in its metadata (``before``) the value that saved configurations without it imply: see
``agit_core.saved_method.from_dict`` and ``identity``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from agit_core.errors import BadInput

Upsampling = Literal["transposed", "resize"]
Initialisation = Literal["normal", "truncated", "pytorch"]
MOST_CHANNELS, MOST_BLOCKS = 1024, 256
"""Far beyond any use: a mistyped or malicious configuration must not take all memory."""
_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture of the four trainable maps and the two discriminators (see ``agit_core.networks``)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    preset: Literal["agit", "uaggan", "cyclegan"] = "agit"
    """``agit``: the authors' code. ``uaggan``: the first PyTorch port. ``cyclegan``: the baseline."""
    generator_width: int | None = None
    """Channels after the first convolution; None takes the preset's (32 for agit, 64 for the others)."""
    generator_blocks: int = 9
    attention: bool | None = None
    """False: no attention networks, so the mask is one everywhere (plain CycleGAN). None: the preset's choice."""
    attention_width: int | None = None
    """Channels after the attention network's first convolution; None takes the preset's."""
    attention_decoder: Literal["1x1", "3x3"] = "1x1"
    """Kernel of the attention decoder (agit only): 1x1 in the authors' code, 3x3 in the paper's supplement."""
    attention_activation: Literal["relu", "identity"] = field(default="relu", metadata={"before": "relu"})
    """Activation before the attention network's last convolution. ``relu`` (the authors' code) caps masks at about
    0.5 once the last weights have turned negative (see ``agit_core.networks``)."""
    attention_scale: Literal[1, 2] = field(default=1, metadata={"before": 1})
    """2: attention runs on the image at half size, which doubles its receptive field; the mask is upsampled."""
    discriminator_width: int | None = None
    upsampling: Upsampling = "transposed"
    """``resize`` (nearest neighbour, then a convolution) avoids checkerboard artefacts."""
    initialisation: Initialisation | None = field(default=None, metadata={"before": "normal"})
    """Weight initialisation (see ``agit_core.networks.initialise``). None: the preset's, ``truncated`` for agit,
    ``pytorch`` for uaggan and ``normal`` for cyclegan. Earlier versions used ``normal`` for all three."""
    revision: Literal[1, 2] = field(default=2, metadata={"before": 1})
    """Revision of the presets' layers. 1: uaggan with reflection padding, no ReLU after residual sums and no norm
    after the discriminator's first convolution, as in models and checkpoints of earlier versions."""

    @property
    def initialiser(self) -> Initialisation:
        """The effective initialisation: the configured one, or else the preset's."""
        preset: dict[str, Initialisation] = {"agit": "truncated", "uaggan": "pytorch", "cyclegan": "normal"}
        return self.initialisation or preset[self.preset]

    @property
    def settled(self) -> NetworkConfig:
        """Canonical form: the initialisation by name, and the earliest revision with the same layers."""
        revision = self.revision if self.preset == "uaggan" else 1
        return replace(self, initialisation=self.initialiser, revision=revision)

    @property
    def architecture(self) -> NetworkConfig:
        """Canonical form without the initialisation: equal configurations have interchangeable weights."""
        return replace(self.settled, initialisation="normal")

    @property
    def has_attention(self) -> bool:
        """Whether there are attention networks; in ``cyclegan`` only if ``attention`` is set."""
        return self.preset != "cyclegan" if self.attention is None else self.attention

    @property
    def smallest_image(self) -> int:
        """Smallest image side, in pixels, that survives the discriminators' repeated halving."""
        return {"agit": 16, "cyclegan": 24, "uaggan": 32}[self.preset]


@dataclass(frozen=True)
class LossConfig:
    """Weights and kinds of the losses (see ``agit_core.losses``)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    adversarial: Literal["lsgan", "vanilla"] = "lsgan"
    """``lsgan``: the authors' code; ``vanilla``: the paper's logarithmic loss (Eq 2)."""
    cycle_weight: float = 10.0
    identity_weight: float = 0.0
    """Relative to ``cycle_weight``, as in CycleGAN (0.5 there); 0 skips the two extra generator passes."""
    binarity_weight: float = field(default=0.0, metadata={"before": 0.0})
    """Weight of 4 m (1 - m), averaged over both domains' masks and ramped in between a quarter and three quarters of
    the training; 0: off."""


@dataclass(frozen=True)
class CoverageConfig:
    """Bands in which a controller holds the mean attention of each domain (see ``agit_core.coverage``)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    band_a: tuple[float, float] | None = None
    """Lowest and highest mean mask of domain A; the controller acts outside of this band. None: no controller."""
    band_b: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("band_a", "band_b"):
            band = getattr(self, name)
            if band is None:
                continue
            # JSON has no tuples: a configuration read back must equal the stored one
            object.__setattr__(self, name, tuple(band))
            if len(band) != 2 or not 0.0 <= band[0] <= band[1] <= 1.0:
                raise BadInput(f"method.coverage.{name} must be [low, high] with 0 <= low <= high <= 1")


@dataclass(frozen=True)
class StageConfig:
    """When the second stage starts and what it changes (see ``agit_core.stages``)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    masking: Literal["staged", "always", "never"] = "staged"
    """``always``: mask the discriminator's input in every step; ``never``: in none. Attention trains in both."""
    switch_by: Literal["epoch", "step", "settled"] = "epoch"
    switch_at: int = 30
    """First epoch (or step) of stage ``masked``, 0-based; for ``settled``, the latest such epoch."""
    settled_tolerance: float = 0.01
    """``settled``: switch once the mean mask coverage of both domains moved less than this ..."""
    settled_epochs: int = 3
    """... over this many epochs in a row."""
    tau: float = 0.1
    """The discriminator sees ``x * 1[mask >= tau]`` in stage ``masked``."""
    norm_after_switch: Literal["removed", "kept"] = "removed"
    """The discriminator's inner instance norms in stage ``masked``."""
    fake_source: Literal["blend", "raw"] = "blend"
    """The fake that is masked after the switch: the blend b' (authors' code) or the raw G(a) (the paper's Eq 6)."""


@dataclass(frozen=True)
class HistoryConfig:
    """The image pool of earlier fakes for the discriminators (see ``agit_core.history``)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    size: int = 50
    """Images per domain over all batch slots, rounded up to a multiple of the batch; 0 switches the pool off."""
    probability: float = 0.5
    """Probability of showing an earlier fake, once the pool is full."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam and its schedule (see ``agit_core.optimizers``)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    learning_rate: float = 1e-4
    attention_learning_rate: float | None = None
    """None: equal to ``learning_rate``, as in the paper."""
    beta1: float = 0.5
    beta2: float = 0.999
    policy: Literal["linear", "cosine", "step"] = field(default="linear", metadata={"before": "linear"})
    """How the rate falls, as in pytorch-CycleGAN but per step. ``linear`` and ``cosine``: to 0 at the end, after
    ``constant_fraction`` of the steps; ``step``: times ``step_factor`` after each ``step_fraction`` of the steps."""
    constant_fraction: float = 0.5
    """``linear``, ``cosine``: share of all steps at the full rate; 1: constant."""
    step_fraction: float = field(default=0.25, metadata={"before": 0.25})
    """``step``: share of all steps between two reductions (there: 50 epochs of 200)."""
    step_factor: float = field(default=0.1, metadata={"before": 0.1})
    """``step``: what the rate is multiplied by."""
    average_decay: float = 0.0
    """Decay per step of the generators' exponential moving average, used for samples and inference; 0: off."""


@dataclass(frozen=True)
class PrecisionConfig:
    """How the computation is carried out. Reference for every switch: eager fp32, channels first."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    autocast: Literal["auto", "bf16", "off"] = "auto"
    """``auto``: bf16 on GPUs and on processors with bf16 matrix instructions, otherwise off."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """``auto``: on GPUs and with bf16."""
    compile: Literal["auto", "on", "off"] = "auto"
    """``torch.compile``; ``auto``: on GPUs only."""
    deterministic: bool = True
    """Deterministic kernels, so that a resumed run is bit-identical; off: cuDNN picks the fastest. On a GPU this needs
    ``compile``: eager PyTorch sums the gradient of reflection padding in an undefined order there."""


@dataclass(frozen=True)
class MethodConfig:
    """The method: networks, losses, coverage, stages, history, optimiser, precision."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    networks: NetworkConfig = field(default_factory=NetworkConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    coverage: CoverageConfig = field(default_factory=CoverageConfig, metadata={"before": CoverageConfig()})
    stages: StageConfig = field(default_factory=StageConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    flip: bool = True
    """Random horizontal flip of training images."""
    threshold_at_test: float | None = None
    """Inference sets the mask to 0 below this value; None blends with the soft mask (Eq 1)."""

    def __post_init__(self) -> None:
        checks = [
            (
                1 <= self.networks.generator_blocks <= MOST_BLOCKS,
                f"method.networks.generator_blocks must lie in [1, {MOST_BLOCKS}]",
            ),
            (
                self.networks.attention_decoder == "1x1" or self.networks.preset == "agit",
                "method.networks.attention_decoder applies to the preset agit, "
                f"not to {self.networks.preset}; leave it out",
            ),
            *(
                (
                    width is None or 1 <= width <= MOST_CHANNELS,
                    f"method.networks.{name} must lie in [1, {MOST_CHANNELS}]",
                )
                for name, width in (
                    ("generator_width", self.networks.generator_width),
                    ("attention_width", self.networks.attention_width),
                    ("discriminator_width", self.networks.discriminator_width),
                )
            ),
            (0.0 <= self.stages.tau <= 1.0, "method.stages.tau must lie in [0, 1]"),
            (self.stages.switch_at >= 0, "method.stages.switch_at must not be negative"),
            (self.stages.settled_epochs >= 1, "method.stages.settled_epochs must be at least 1"),
            (self.history.size >= 0, "method.history.size must not be negative"),
            (0.0 <= self.history.probability <= 1.0, "method.history.probability must lie in [0, 1]"),
            (
                0 < self.optimizer.learning_rate < float("inf"),
                "method.optimizer.learning_rate must be positive and finite",
            ),
            (
                self.optimizer.attention_learning_rate is None or self.optimizer.attention_learning_rate >= 0,
                "method.optimizer.attention_learning_rate must not be negative",
            ),
            (
                0.0 <= self.optimizer.constant_fraction <= 1.0,
                "method.optimizer.constant_fraction must lie in [0, 1]",
            ),
            (0.0 < self.optimizer.step_fraction <= 1.0, "method.optimizer.step_fraction must lie in (0, 1]"),
            (0.0 < self.optimizer.step_factor <= 1.0, "method.optimizer.step_factor must lie in (0, 1]"),
            (0.0 <= self.optimizer.average_decay < 1.0, "method.optimizer.average_decay must lie in [0, 1)"),
            (self.losses.cycle_weight >= 0, "method.losses.cycle_weight must not be negative"),
            (self.losses.identity_weight >= 0, "method.losses.identity_weight must not be negative"),
            (self.losses.binarity_weight >= 0, "method.losses.binarity_weight must not be negative"),
            (
                self.threshold_at_test is None or 0.0 <= self.threshold_at_test <= 1.0,
                f"method.threshold_at_test must lie in [0, 1], not {self.threshold_at_test}",
            ),
        ]
        for holds, message in checks:
            if not holds:
                raise BadInput(message)

"""Options of a recovery. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.adapters.config import AdapterConfig
from stages.common.later import LATER
from stages.decoders.holding import STORED
from stages.recover.objectives.distillation import DistillationConfig
from stages.recover.objectives.on_policy import OnPolicyConfig


@dataclass(kw_only=True, slots=True)
class RecoverConfig:
    """Options of the training. The options of an objective are the field of its name."""

    tokens: int = 60_000
    """Budget: tokens that pass through the model, prompts included; the last row may exceed it."""
    learning_rate: float = 3e-3
    """Peak of the schedule."""
    warmup: float = 0.05
    """Fraction of the budget over which the rate rises linearly; the rate then follows `schedule`."""
    schedule: str = "cosine"
    """The way from the peak rate to `final`: "cosine", "linear", or "wsd", which keeps the peak rate up to the last
    `decay` of the budget."""
    decay: float = 0.2
    """Fraction of the budget over which schedule=wsd lets the rate fall; the other schedules do not use it."""
    final: float = 0.1
    """Rate at the last step, as a fraction of the peak rate."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay of the adapter."""
    gradient_clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    sequence_length: int = 512
    """Longest row in tokens. A longer row loses the beginning of its prompt, then the end of its response."""
    batch_tokens: int = 1024
    """Tokens in one optimizer step. Fewer tokens give more steps from a small budget; more tokens give less noise."""
    micro_batch_tokens: int = 1024
    """Tokens in one forward and backward pass, rows packed without padding. More tokens are faster and need more
    memory. A step ends with a whole row; its passes may go beyond this number in the same proportion. The number is
    halved by itself where it does not fit. It affects only rounding (and the inputs that a dropout drops)."""
    gradient_checkpointing: bool = False
    """Whether to keep each layer's input instead of all its activations, and compute these again in the backward pass:
    a fraction of the memory for about a third more time. The result is the same."""
    base: str = field(default=STORED, metadata=LATER)
    """The frozen weights while the adapter is trained: "stored" is in the precision of the computation, "nf4" in 4
    bits, "8bit" in 8. Fewer bits take less memory and more time. The adapter is merged into the model as it was."""
    compile: bool = False
    """Whether to compile the decoder layers (inductor): faster steps after a minute. Needs a C++ compiler."""
    loss: str = "all"
    """The tokens that the loss is taken on: "all", or the "response" alone. On short answers, training on the response
    alone makes the model forget the language."""
    objective: str = "cross_entropy"
    """The loss: "cross_entropy" of the labelled tokens, "distillation" from the dense model, or "on_policy", which
    also distils on text that the pruned model writes itself."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)
    keep: str = "last"
    """The parameters that are saved: the "last", or the "best" by validation loss among the points of the curve,
    including the point before training."""
    curve_every: int = 20_000
    """Tokens of training between two points of the curve, at which held-out rows are scored. The first point is before
    training and the last after it."""
    validation_tokens: int = 1536
    """Tokens of held-out rows scored at a point (all rows where there are fewer). More tokens give less noise and take
    more time. Where the data has choices, these rows are also the questions of the curve's accuracy."""
    test_tokens: int = 1536
    """Tokens of further held-out rows, scored once after the training (as far as there are such rows). Nothing is
    chosen by these rows, so they measure fairly a rate that was chosen by the validation loss. 0 scores none."""
    merge: bool = True
    """Whether to fold the adapter into a copy of the model. With false only the adapter is saved, and it is judged
    attached to the pruned model. This saves disk for many recoveries of one model."""


@dataclass(kw_only=True, slots=True)
class RecoverStageConfig:
    """All options that decide the recover stage's artifact."""

    adapter: AdapterConfig
    recover: RecoverConfig
    dtype: str
    """Precision of the computation, "float32" or "bfloat16"; adapter and optimizer stay float32."""
    seed: int


@dataclass(kw_only=True, slots=True)
class TuneStageConfig(RecoverStageConfig):
    """All options that decide the tune stage's artifact: those of a recovery whose rate the trials decide."""

    rates: list[float]
    """Learning rates of the trials."""
    tokens: int
    """Budget of each trial in tokens: the recovery's own, or less."""


@dataclass(kw_only=True, slots=True)
class RecoverOptions(RecoverConfig):
    """The recover group: the stage's own options, with a precision that may be left to the machine."""

    dtype: str = "auto"
    """Precision of the computation: float32, bfloat16, or auto (bfloat16 where the hardware multiplies it)."""
    seed: int = 0
    """Seed of the adapter's start and of what the training draws; the command's own `seed` unless set."""
    tune: str = "none"
    """lr: try several learning rates, and recover at the one with the lowest validation loss; none: try no others."""
    tune_factors: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0, 3.0, 10.0])
    """The rates that are tried, as factors of `learning_rate`. They include 1, the rate shared by all adapters."""
    tune_tokens: int | None = None
    """Budget of each trial in tokens. Null is the recovery's own budget; then the best trial is the recovery."""
    tune_seed: int | None = None
    """Seed of the trials, so that several seeds share them; it needs shorter trials. Null is the recovery's own."""

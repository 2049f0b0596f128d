"""What decides a recovery. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.adapters.config import AdapterConfig
from stages.recover.objectives.distillation import DistillationConfig


@dataclass(kw_only=True, slots=True)
class RecoverConfig:
    """How it is trained. Options of an objective are the field of its name."""

    tokens: int = 60_000
    """Budget: tokens that pass through the model, prompts included; the last row may exceed it."""
    learning_rate: float = 3e-3
    """Peak of the schedule."""
    warmup: float = 0.05
    """Fraction of the budget over which the rate rises linearly; it then falls along a cosine to `final`."""
    final: float = 0.1
    """Rate at the last step, as a fraction of the peak."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay of the adapter."""
    gradient_clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    sequence_length: int = 512
    """Longest row in tokens; longer ones lose the beginning of their prompt, then the end of their response."""
    batch_tokens: int = 1024
    """Tokens in one optimizer step: more steps from a small budget, against noise."""
    micro_batch_tokens: int = 1024
    """Tokens in one forward and backward pass, rows packed without padding: memory against speed. Halved by itself
    where it does not fit; decides nothing but rounding (and which inputs a dropout drops)."""
    gradient_checkpointing: bool = False
    """Keep each layer's input instead of all its activations, and compute them again on the way back: a fraction of the
    memory for about a third more time. The result is the same."""
    compile: bool = False
    """Compile the decoder layers (inductor): faster steps after a minute, for which a C++ compiler must be there."""
    loss: str = "all"
    """Where the loss is taken: "all" tokens, or only the "response", which on short answers forgets the language."""
    objective: str = "cross_entropy"
    """What is minimised: "cross_entropy" of the labelled tokens, or "distillation" from the dense model."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    keep: str = "last"
    """Which parameters are saved: the "last", or the "best" by validation loss among the points of the curve, the one
    before training included."""
    curve_every: int = 20_000
    """Tokens trained on between two points of the curve at which held-out rows are scored; the first point is before
    training and the last after it."""
    validation_tokens: int = 1536
    """Tokens of held-out rows scored at a point (all rows where there are fewer): noise against time. Where the data
    has choices, these rows are the questions of the curve's accuracy too."""
    test_tokens: int = 1536
    """Tokens of further held-out rows, scored once when the training is over (as far as there are such rows). Nothing
    is chosen by them, so they tell fairly what a rate chosen by the validation loss is worth; 0 scores none."""
    merge: bool = True
    """Fold the adapter into a copy of the model; false leaves the adapter alone, which is then judged attached to the
    pruned model: for many recoveries, whose copies of one model would fill the disk."""


@dataclass(kw_only=True, slots=True)
class RecoverStageConfig:
    """Everything that decides the recover stage's artifact."""

    adapter: AdapterConfig
    recover: RecoverConfig
    dtype: str
    """Computation's precision, "float32" or "bfloat16"; adapter and optimizer stay float32."""
    seed: int


@dataclass(kw_only=True, slots=True)
class TuneStageConfig(RecoverStageConfig):
    """Everything that decides the tune stage's artifact: a recovery, of which the trials decide the rate."""

    rates: list[float]
    """Learning rates tried."""
    tokens: int
    """Budget of each trial; the recovery's own, or less."""


@dataclass(kw_only=True, slots=True)
class RecoverOptions(RecoverConfig):
    """The recover group: the stage's own options, with a precision that may be left to the machine."""

    dtype: str = "auto"
    """Computation's precision: float32, bfloat16, or auto (bfloat16 where the hardware multiplies it)."""
    seed: int = 0
    tune: str = "none"
    """lr: try several learning rates, and recover at the one with the lowest validation loss; none: only the one."""
    tune_factors: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0, 3.0, 10.0])
    """The rates that are tried, as factors of `learning_rate`; 1, the rate shared by all adapters, among them."""
    tune_tokens: int | None = None
    """Budget of each trial; null is the recovery's own, and then the best trial is the recovery."""

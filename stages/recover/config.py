"""What decides a recovery. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class AdapterConfig:
    """Common to every adapter; each subclasses this in its file with options of its own."""

    name: str = "none"
    """Name in `stages.recover.adapters.ADAPTERS`, or "none" where nothing is recovered."""


@dataclass(kw_only=True, slots=True)
class RecoverConfig:
    """How it is trained."""

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
    """Tokens in one forward and backward pass, rows packed without padding: memory against speed."""
    loss: str = "all"
    """Where the loss is taken: "all" tokens, or only the "response", which on short answers forgets the language."""
    curve_every: int = 20_000
    """Tokens trained on between two points of the curve at which held-out rows are scored; the first point is before
    training and the last after it."""
    validation_tokens: int = 1536
    """Tokens of held-out rows scored at a point (all rows where there are fewer): noise against time. Where the data
    has choices, these rows are the questions of the curve's accuracy too."""


@dataclass(kw_only=True, slots=True)
class RecoverStageConfig:
    """Everything that decides the recover stage's artifact."""

    adapter: AdapterConfig
    recover: RecoverConfig
    dtype: str
    """Computation's precision, "float32" or "bfloat16"; adapter and optimizer stay float32."""
    seed: int

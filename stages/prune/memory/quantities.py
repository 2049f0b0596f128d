"""The quantities that decide the memory of pruning, and what all its phases have of it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from stages.common.machine import multiplies_bfloat16
from stages.common.units import in_gib
from stages.decoders.activations import forward_bytes
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.prune.memory.sizes import BATCH_TOKENS, LOGITS, cast_forward_bytes

SCORES = ("", "weights", "activations", "elimination", "taylor", "surgeon")
"""What a criterion's scores are made of; empty where nothing is scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The quantities that decide the memory.

    Attributes:
        shape: the dense decoder.
        dtype: precision of the scores' passes.
        stored: precision of the checkpoint, in which the cut is made.
        sequences: number of calibration sequences; 0 where no text is read.
        length: tokens of each calibration sequence; 0 where no text is read.
        scores: one of `SCORES`.
        output: whether backward also reaches the output projection, for hidden channels.
        curvature: number of sequences whose gradients are taken for second moments.
        losses: whether a search gathers second moments of its own.
        trials: number of allocations that are tried; 0 without a search.
        judges: number of sequences that a trial's loss is measured on.
        fits: whether trials are fitted.
        compensate: the compensation of the cut; "none" where nothing is cut.
        offload: whether one layer is in memory at a time.
        device: where the model is.
    """

    shape: DecoderShape
    dtype: str
    stored: str
    sequences: int
    length: int
    scores: str = ""
    output: bool = False
    curvature: int = 0
    losses: bool = False
    trials: int = 0
    judges: int = 0
    fits: bool = False
    compensate: str = "none"
    offload: bool = False
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The memory of a phase in bytes: weights, activations, and matrices such as moments, logits and factorisations."""

    phase: str
    weights: int
    activations: int = 0
    matrices: int = 0

    @property
    def total(self) -> int:
        """The sum of the three parts."""
        return self.weights + self.activations + self.matrices

    def parts(self) -> str:
        """Return the three parts in GiB, as a plan shows them."""
        return in_gib({"weights": self.weights, "activations": self.activations, "matrices": self.matrices})


def weights_of(work: Work, each: int) -> int:
    """Return the bytes of the weights that are in memory, in numbers of `each` bytes."""
    if not work.offload:
        return work.shape.parameters() * each
    outside = work.shape.embedding_parameters() + work.shape.hidden
    return (outside + 2 * work.shape.layer_parameters(largest_layer(work))) * each


def largest_layer(work: Work) -> LayerShape:
    """Return the layer with the most parameters."""
    return max(work.shape.layers, key=work.shape.layer_parameters)


def streams_of(work: Work, each: int, sequences: float) -> int:
    """Return the bytes of the residual stream of so many sequences."""
    return int(sequences * work.length * work.shape.hidden * each)


def batch_of(work: Work, each: int, sequences: int) -> int:
    """Return the bytes at work while a layer is passed without backward.

    Where inputs of maps are read in float32, the gate and up are gone by then, so it is no more.
    """
    tokens = min(sequences * work.length, max(work.length, BATCH_TOKENS))
    layer, shape = largest_layer(work), work.shape
    a_token = forward_bytes(layer, shape.head_dim, hidden=shape.hidden, each=each)
    if each < 4 and work.device == "cpu" and not multiplies_bfloat16():
        a_token = max(a_token, cast_forward_bytes(layer, hidden=shape.hidden, each=each))
    return tokens * a_token


def logits_of(work: Work, each: int, sequences: int) -> int:
    """Return the bytes of the logits that exist at once, in `each` and twice in float32."""
    count = min(sequences, max(1, LOGITS // (work.length * work.shape.vocabulary)))
    return count * work.length * work.shape.vocabulary * (each + 8)

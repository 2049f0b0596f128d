"""An estimate of the memory that pruning will need, before anything is loaded. No torch here.

    weights      in the precision of the scores, or as stored where that is more, because the cut is made in it; with
                 `prune.offload=layer` all but the layers, and one layer twice
    activations  with gradients those that backward needs, at most `GRAPH` bytes (`stages.prune.statistics.gradients`
                 computes the rest again); else those of a batch in one layer; and the text's between two layers. Or
                 what sequential compensation holds of the text, where that is more (`STREAMS`)
    matrices     logits of a batch, the inputs of a matrix in float32, and the moments of these inputs where
                 compensation solves for the matrix

Activations are those of a llama's layer. `benchmarks.prune` sets the estimate beside measured memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stages.common.machine import free_memory_bytes
from stages.decoders.registry import FAMILIES
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.config import FITTED, PruneConfig

GRAPH = 2**31
"""Bytes of activations that are kept for backward at once; at least those of one layer."""
BATCH_TOKENS = 2048
"""Tokens that pass a layer together where there is no backward; at least one sequence."""
LOGITS = 2**22
"""Logits that exist at once (16 MiB in float32); at least those of one sequence."""
STREAMS = 12
"""Numbers a token, each as often as there are hidden channels, that sequential compensation holds at once: the streams
of the dense and the cut model in front of a layer, inside it and behind it, and what its sub-layers read and give."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The quantities that decide the memory.

    Attributes:
        shape: the dense decoder.
        dtype: precision of the scores' passes.
        stored: precision of the checkpoint.
        sequences: number of calibration sequences; 0 where no text is read.
        length: tokens of each calibration sequence; 0 where no text is read.
        gradients: whether the criterion runs backward.
        output: whether backward also reaches the output projection, for hidden channels.
        offload: whether one layer is in memory at a time.
        least_squares: whether compensation solves for the output projections.
        sequential: whether compensation runs the dense and the cut model side by side, with a copy of a layer.
    """

    shape: DecoderShape
    dtype: str
    stored: str
    sequences: int
    length: int
    gradients: bool
    output: bool = False
    offload: bool = False
    least_squares: bool = False
    sequential: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The memory in bytes, in the three parts that the module describes."""

    weights: int
    activations: int
    matrices: int

    @property
    def total(self) -> int:
        """The sum of the three parts."""
        return self.weights + self.activations + self.matrices


def check_memory(
    shape: DecoderShape,
    config: PruneConfig,
    *,
    gradients: bool,
    stored: str,
    calibration: tuple[int, int] | None,
    device: str,
) -> Estimate:
    """Return the most memory that pruning a model of `shape` will need.

    Args:
        shape: the dense decoder.
        config: the options of the pruning.
        gradients: whether the criterion runs backward.
        stored: the checkpoint's precision.
        calibration: sequences and tokens in each; None where no text is read.
        device: where the model will be.

    Raises:
        UserError: it is more than is free on `device`; the message says how much, and what would need less.
    """
    sequences, length = calibration or (0, 0)
    work = Work(
        shape=shape,
        dtype=config.dtype,
        stored=stored,
        sequences=sequences,
        length=length,
        gradients=gradients,
        output=gradients and "hidden" in config.granularity,
        offload=config.offload == "layer",
        least_squares=config.compensate in FITTED,
        # A family that norms its outputs is fitted as by least_squares.
        sequential=config.compensate == "sequential" and FAMILIES[shape.family].plain_outputs,
    )
    need, free = estimate(work), free_memory_bytes(device)
    if need.total <= free:
        return need
    text = f", {need.activations / GIB:.1f} activations of {sequences} x {length} tokens" if sequences else ""
    raise UserError(
        f"prune={config.method} needs about {need.total / GIB:.1f} GiB on {device} ({need.weights / GIB:.1f} weights"
        f"{text}, {need.matrices / GIB:.1f} matrices at work), and {free / GIB:.1f} GiB are free. {_remedies(work)}"
    )


def estimate(work: Work) -> Estimate:
    """Return the memory that pruning will need."""
    shape, each = work.shape, BYTES[work.dtype]
    weight = max(each, BYTES[work.stored])
    largest = max(shape.layers, key=shape.layer_parameters)
    held = shape.parameters()
    if work.offload:
        outside = shape.embedding_parameters() + shape.hidden
        held = outside + 2 * shape.layer_parameters(largest)
    held += shape.layer_parameters(largest) * work.sequential
    tokens = work.sequences * work.length
    batch = min(tokens, max(work.length, BATCH_TOKENS))
    one_layer = activation_bytes(largest, shape.head_dim, hidden=shape.hidden, each=each)
    activations = 2 * tokens * shape.hidden * each
    if work.gradients:
        activations += min(tokens * one_layer * len(shape.layers), max(GRAPH, tokens * one_layer))
    else:
        activations += batch * one_layer
    if work.sequential:  # in the precision of the weights, after the scores have been computed
        activations = max(activations, STREAMS * tokens * shape.hidden * weight + batch * one_layer)
    inputs = max(largest.mlp, largest.heads * shape.head_dim, shape.hidden)
    matrices = max(LOGITS, work.length * shape.vocabulary) * (each + 12) + 8 * tokens * inputs * work.gradients
    if work.output:
        # The gradient of all logits is kept: it is a factor of the output projection's gradient.
        matrices += tokens * shape.vocabulary * each
    if work.least_squares:
        matrices += 4 * 8 * inputs**2
    return Estimate(weights=held * weight, activations=activations, matrices=matrices)


def activation_bytes(layer: LayerShape, head_dim: int, *, hidden: int, each: int) -> int:
    """Return the bytes of activations that backward through one layer needs for each token.

    They are two norms (in float32 inside), q, k and v before and after their rotation, the attention's output, and four
    times the MLP's channels. `each` is the bytes of one number.
    """
    norms = (8 + 6 * each) * hidden
    attention = 3 * each * (layer.heads + layer.kv_heads) * head_dim
    return norms + attention + 4 * each * layer.mlp


def _remedies(work: Work) -> str:
    """Return a sentence with the options that would need less, and the estimate of each."""
    ways = {"prune.dtype=bfloat16": replace(work, dtype="bfloat16")}
    if work.gradients:
        ways["prune.offload=layer with a criterion without gradients"] = replace(
            work, gradients=False, output=False, offload=True
        )
    else:
        ways["prune.offload=layer"] = replace(work, offload=True)
    if work.sequences > 1:
        half = work.sequences // 2
        ways[f"prune.calibration.sequences={half}"] = replace(work, sequences=half)
    need = estimate(work).total
    # A remedy that saves less than a twentieth is none.
    less = {way: estimate(other).total for way, other in ways.items() if estimate(other).total < 0.95 * need}
    listed = ", ".join(f"{way} ({total / GIB:.1f} GiB)" for way, total in less.items())
    return f"What needs less: {listed}." if listed else "Prune on a machine with more memory, or a smaller model."

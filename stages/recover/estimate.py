"""An estimate of the memory that a recovery will need, from shapes and options, before anything is loaded. No torch.

It is that of the phase that needs the most: the loss, the backward pass, or the update. Each counts

    weights      of the model that is trained: in the precision of the computation, in 4 or in 8 bits
    teacher      the dense model's weights, where the objective has a teacher
    trained      parameters in float32, AdamW's two moments of them, their gradients; and where low-rank weights are
                 cast once a step (`stages.adapters.cast`), these casts and the gradients in their precision
    activations  those that backward needs of a micro-batch, and what is at work beside them
    logits       of one chunk of labelled tokens, of model and teacher

Activations are those of a llama's layer. Not counted: the whole model in the processor's memory while a base in few
bits is loaded, text that an on-policy step writes, the kept start of pissa, olora and corda, and CUDA's own memory.
`tests/recover/test_estimate.py` sets the estimate beside measured memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from stages.adapters.low_rank import LowRankConfig
from stages.adapters.ranks import layers_of
from stages.adapters.registry import ADAPTERS
from stages.common.machine import free_memory_bytes
from stages.common.units import BYTES, GIB, in_gib
from stages.decoders.activations import forward_bytes
from stages.decoders.chunks import chunk_tokens
from stages.decoders.holding import STORED, bytes_of_weights
from stages.decoders.registry import FAMILIES
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.recover.config import RecoverConfig, RecoverStageConfig
from stages.recover.objectives.distillation import DistillationConfig
from stages.recover.sizes import CROSS_ENTROPY_CHUNK, DIVERGENCE_CHUNK, TRAINED_CHUNK


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The quantities that decide the memory.

    Attributes:
        config: the options of the recovery.
        shape: the model to recover.
        teacher: the teacher; None where there is none, or where its weights are in memory already.
        device: where the recovery runs, "cpu" or "cuda".
        tokens: tokens of the longest micro-batch.
    """

    config: RecoverStageConfig
    shape: DecoderShape
    teacher: DecoderShape | None
    device: str
    tokens: int

    @property
    def each(self) -> int:
        """The bytes of a number in the precision of the computation."""
        return BYTES[self.config.dtype]

    @property
    def full(self) -> bool:
        """Whether the model's own weights are trained."""
        return ADAPTERS[self.config.adapter.name].trained is not None

    @property
    def hidden(self) -> int:
        """The bytes of one hidden state of each token."""
        return self.tokens * self.shape.hidden * self.each


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The memory of a phase in bytes, by its parts (see the module)."""

    phase: str
    weights: int
    teacher: int
    trained: int
    activations: int
    logits: int
    tokens: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return self.weights + self.teacher + self.trained + self.activations + self.logits

    def parts(self) -> str:
        """Return the parts in GiB, as a plan and an error show them."""
        parts = {
            "weights": self.weights,
            "teacher": self.teacher,
            "adapter and optimizer": self.trained,
            f"activations of {self.tokens:,} tokens": self.activations,
            "logits": self.logits,
        }
        return in_gib(parts)


def estimate(work: Work) -> Estimate:
    """Return the memory of the phase that needs the most."""
    return max(phases(work), key=lambda need: need.total)


def longest_micro_batch(recover: RecoverConfig) -> int:
    """Return the most tokens of a micro-batch, unless it is a single row that is longer.

    A step ends with a whole row, and its micro-batches may go beyond their number of tokens in the same proportion.
    """
    beyond = (recover.batch_tokens + recover.sequence_length - 1) / recover.batch_tokens
    return math.ceil(min(recover.micro_batch_tokens, recover.batch_tokens) * beyond)


def check_memory(work: Work) -> None:
    """Raise a `UserError` where even the work's micro-batch, the smallest there can be, needs more than is free.

    A larger micro-batch that does not fit is halved in the training, so it is no reason to refuse. The caller leaves
    out several processes: under fsdp each holds a share of the weights, and copies on processors share one memory.
    """
    need, free = estimate(work), free_memory_bytes(work.device)
    if need.total <= free:
        return
    raise UserError(
        f"the recovery needs about {need.total / GIB:.1f} GiB on {work.device}, even with {work.tokens:,} tokens at a "
        f"time ({need.parts()}), and {free / GIB:.1f} GiB are free. {_remedies(work)}"
    )


def phases(work: Work) -> Iterator[Estimate]:
    """Yield the memory of every phase of a step."""
    kept, layers = kept_bytes(work), layer_bytes(work)
    several = work.config.recover.batch_tokens > work.config.recover.micro_batch_tokens
    beside = {"trained": trained_bytes(work, gradients=several)}
    logits, passed = logits_bytes(work), _teacher_pass(work)
    # The last hidden states, and those of them that predict a label.
    yield _phase(work, "the loss", kept + 2 * work.hidden + max(0, passed - logits), logits=logits, **beside)
    of_head = _head_gradient(work)
    again = max(layers) if work.config.recover.gradient_checkpointing else 0
    yield _phase(work, "the backward pass", kept + again + 2 * work.hidden + of_head + _backward(work), **beside)
    beside = {"trained": trained_bytes(work, gradients=True)}
    yield _phase(work, "the update", layers[0] + _backward(work), **beside)


def _phase(work: Work, phase: str, activations: int, *, trained: int, logits: int = 0) -> Estimate:
    way = work.config.recover.base
    whole = 0 if way == STORED else _largest_projection(work.shape) * work.each  # as it is multiplied
    each = 4 if work.full else work.each
    taught = teaching(work.config.recover)
    return Estimate(
        phase=phase,
        weights=weights_bytes(work.shape, way, each),
        teacher=0 if work.teacher is None else weights_bytes(work.teacher, taught.teacher_weights, work.each),
        trained=trained,
        activations=activations + whole,
        logits=logits,
        tokens=work.tokens,
    )


def weights_bytes(shape: DecoderShape, way: str, each: int) -> int:
    """Return the bytes of a model whose linear layers are held in the given way; all else has `each` bytes a number."""
    linear = sum(sizes.in_features * sizes.out_features for _, sizes in layers_of(shape))
    return bytes_of_weights(linear, way, each) + (shape.parameters() - linear) * each


def trained_bytes(work: Work, *, gradients: bool) -> int:
    """Return the bytes of what is trained, beside the model's own weights; `gradients`: with all gradients in float32.

    Where low-rank weights are cast once a step, their gradients are always there, in both precisions.
    """
    config = work.config
    count = ADAPTERS[config.adapter.name].parameters(config.adapter, work.shape)
    if isinstance(config.adapter, LowRankConfig) and config.dtype != "float32" and not config.recover.compile:
        return count * (4 + 8 + 4 + 2 * work.each)
    return count * (8 + (0 if work.full else 4) + (4 if gradients else 0))


def kept_bytes(work: Work) -> int:
    """Return the bytes that lie between the forward and the backward pass of the layers."""
    if not work.config.recover.gradient_checkpointing:
        return sum(layer_bytes(work))
    stream = 4 if work.full else work.each  # weights in float32 give a residual stream in float32
    return len(work.shape.layers) * work.tokens * work.shape.hidden * stream


def layer_bytes(work: Work) -> list[int]:
    """Return the bytes that backward needs of each layer."""
    config = work.config
    kept = ADAPTERS[config.adapter.name].keeps(config.adapter, work.shape, work.each)
    return [
        work.tokens * (_frozen(work, layer) + own.token) + own.layer
        for layer, own in zip(work.shape.layers, kept, strict=True)
    ]


def _frozen(work: Work, layer: LayerShape) -> int:
    """Return the bytes for each token that backward needs of a layer whose weights are frozen.

    They are the inputs of the norms; q, k, v, what attention gives, and a float32 number a head; and the MLP's gate
    before and after its activation, and up.
    """
    shape, each, family = work.shape, work.each, FAMILIES[work.shape.family]
    fused = work.device != "cpu" and not work.config.recover.compile
    # A norm op by op keeps its input in float32, torch's fused one as it is.
    norm = shape.hidden * (each if fused and not work.full else 4)
    queries, keys = layer.heads * shape.head_dim, layer.kv_heads * shape.head_dim
    attended = queries
    # Attention in one call gives o its input; one by one, its outputs are copied end to end, and both are kept.
    if work.device != "cpu" and each < 4 and "o_proj" in getattr(work.config.adapter, "targets", ["o_proj"]):
        attended = 0
    attention = each * (queries + 2 * keys + attended) + 4 * layer.heads
    attention += len(family.attention_norms) * norm + (4 * (queries + keys) if family.head_norms else 0)
    # liger-kernel computes the activation again.
    channels = 2 if fused and find_spec("liger_kernel") else 3
    mlp = each * channels * layer.mlp + len(family.mlp_norms) * norm
    return (attention if layer.heads else 0) + (mlp if layer.mlp else 0)


def _backward(work: Work) -> int:
    """Return the bytes at work in the backward pass of a layer: gradients of the stream and of the MLP's channels."""
    return 2 * work.hidden + 2 * work.tokens * max(layer.mlp for layer in work.shape.layers) * work.each


def _teacher_pass(work: Work) -> int:
    """Return the bytes at work while the teacher reads a micro-batch."""
    if work.teacher is None:
        return 0
    shape = work.teacher
    a_token = max(
        forward_bytes(layer, shape.head_dim, hidden=shape.hidden, each=work.each) for layer in set(shape.layers)
    )
    held = teaching(work.config.recover).teacher_weights
    whole = 0 if held == STORED else _largest_projection(shape) * work.each
    return work.tokens * a_token + whole


def logits_bytes(work: Work) -> int:
    """Return the bytes of the logits of a chunk with all that is made of them, and the hidden states' gradient."""
    recover, vocabulary = work.config.recover, work.shape.vocabulary
    if recover.objective == "cross_entropy":
        if _trains_head(work):
            # In float32, computed again in the backward pass: logits, log-probabilities and their gradient.
            return work.hidden + _chunks(work, TRAINED_CHUNK, first=12, later=12) * vocabulary
        if work.each == 4:
            return work.hidden + _chunks(work, CROSS_ENTROPY_CHUNK, first=4, later=0, left=4) * vocabulary
        # The head's output, which is in one buffer for all chunks, its copy in float32, and the gradient in bfloat16.
        return work.hidden + _chunks(work, CROSS_ENTROPY_CHUNK, first=8, later=4, left=6) * vocabulary
    divergences = {recover.distillation.divergence}
    if recover.objective == "on_policy":
        divergences = {recover.on_policy.divergence, recover.on_policy.rows.divergence}
    # In float32: logits and log-probabilities of the model, log-probabilities of the teacher, and two that the
    # divergence makes of them (jensen five).
    each = 4 * ((8 if "jensen" in divergences else 5) + (teaching(recover).temperature != 1))
    chunks = _chunks(work, DIVERGENCE_CHUNK, first=each, later=each, left=4) * vocabulary
    return work.hidden + 4 * work.tokens * work.shape.hidden + chunks + _head_gradient(work)


def _chunks(work: Work, least: int, *, first: int, later: int, left: int = 0) -> int:
    """Return the bytes for each token of the vocabulary at the peak of a loss that is taken chunk by chunk.

    `first` and `later` are the bytes that a chunk takes for each of its logits. Beside a later one, `left` bytes are
    left of each logit of the one before.
    """
    count = min(chunk_tokens(work.device, work.shape.vocabulary, least), work.tokens)
    second = min(count, work.tokens - count)
    return max(count * first, second * later + count * left if second else 0)


def _head_gradient(work: Work) -> int:
    """Return the bytes of the gradient of a head that is trained, and of its cast."""
    numbers = work.shape.vocabulary * work.shape.hidden
    return numbers * (4 + (work.each if work.each < 4 else 0)) if _trains_head(work) else 0


def _trains_head(work: Work) -> bool:
    return work.full and getattr(work.config.adapter, "weights", "all") == "all"


def _largest_projection(shape: DecoderShape) -> int:
    return max(sizes.in_features * sizes.out_features for _, sizes in layers_of(shape))


def teaching(recover: RecoverConfig) -> DistillationConfig:
    """Return the options of the teacher, where the objective has one."""
    return recover.on_policy.rows if recover.objective == "on_policy" else recover.distillation


def _remedies(work: Work) -> str:
    """Return a sentence with the options that would need less, and the estimate of each."""
    need = estimate(work).total
    less = {way: estimate(other).total for way, other in _ways(work).items()}
    # A remedy that saves less than a twentieth is none.
    listed = [f"{way} ({total / GIB:.1f} GiB)" for way, total in less.items() if total < 0.95 * need]
    if not listed:
        return "Recover on a device with more memory, or a smaller model."
    return f"What needs less: {', '.join(listed)}."


def _ways(work: Work) -> dict[str, Work]:
    """Return by option what would need less, in the order in which to try them."""
    config, adapter = work.config, work.config.adapter
    half = work.tokens // 2
    ways = {f"rows of at most {half} tokens, recover.sequence_length={half}": replace(work, tokens=half)}
    if not config.recover.gradient_checkpointing:
        ways["recover.gradient_checkpointing=true"] = _with(work, gradient_checkpointing=True)
    if config.recover.base == STORED and ADAPTERS[adapter.name].leaves_base(adapter):
        ways["recover.base=nf4"] = _with(work, base="nf4")
    taught = teaching(config.recover)
    if work.teacher is not None and taught.teacher_weights == STORED:
        fewer = replace(taught, teacher_weights="nf4")
        if config.recover.objective == "on_policy":
            other = _with(work, on_policy=replace(config.recover.on_policy, rows=fewer))
            ways["recover.on_policy.rows.teacher_weights=nf4"] = other
        else:
            ways["recover.distillation.teacher_weights=nf4"] = _with(work, distillation=fewer)
    rank = getattr(adapter, "rank", 1)
    if rank > 1:
        smaller: Any = replace(adapter, rank=rank // 2)  # type: ignore[call-arg]
        ways[f"adapter.rank={rank // 2}"] = replace(work, config=replace(config, adapter=smaller))
    if work.full:
        ways["adapter=rora"] = replace(work, config=replace(config, adapter=ADAPTERS["rora"].config(name="rora")))
    return ways


def _with(work: Work, **options: Any) -> Work:
    return replace(work, config=replace(work.config, recover=replace(work.config.recover, **options)))

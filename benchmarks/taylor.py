"""Taylor scores in two ways, ours and the stock one, each measured in a process of its own.

The stock way is LLM-Pruner's: a backward pass with the gradient of every parameter kept, then the scores. For second
order there is a backward pass for each sequence, with the squares added up in a copy (`acc_grad`). Ours is what
`prune=llmpruner` runs. The clock runs from token ids to the scores of heads and channels.
"""

from __future__ import annotations

import copy
import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from stages.common.machine import resident_bytes, return_freed_memory
from stages.decoders.anatomy import Projection, decoder_layers
from stages.decoders.architecture import DTYPES
from stages.decoders.shapes import DecoderShape
from stages.prune.groups import slice_sums
from stages.prune.memory.estimate import estimate
from stages.prune.memory.quantities import Work
from stages.prune.statistics.slices import group_scores
from stages.prune.statistics.taylor import slice_scores
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4},
    "100m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""Llamas with a vocabulary of 32,000. 1b is TinyLlama's shape without its grouped queries, 7b is LLaMA-7B's."""
SAMPLING = 0.002
"""Seconds between two readings of the memory, where the system has no high-water mark that can be reset."""

Groups = dict[str, Tensor]
"""The scores of each layer and kind of group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The model, the calibration text and the criterion of one measurement."""

    size: str
    expansion: str
    dtype: str
    device: str
    sequences: int
    length: int
    threads: int | None


def measure(way: str, task: Task) -> tuple[JSON, Groups]:
    """Return seconds and bytes of one way, and its scores. It must be called in a fresh process.

    Bytes: `weights`; `activations`, the peak of forward and loss alone with the graph that backward needs; `peak`, that
    of the whole way. The last two are above what the process held before, which includes the weights.
    """
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    model = build(task)
    model = model.float() if way == "exact" else model
    shape, generator = (task.sequences, task.length), torch.Generator().manual_seed(1)
    ids_BT = torch.randint(model.config.vocab_size, shape, generator=generator).to(task.device)
    with torch.no_grad():
        _loss(model, ids_BT[:1, :2])  # lets the libraries set themselves up before anything is measured
    activations, _, _ = _peak(task.device, lambda: float(_loss(model, ids_BT).detach()))
    peak, seconds, groups = _peak(task.device, lambda: WAYS[way](model, ids_BT, task.expansion))
    numbers = {"weights": weight_bytes(model), "activations": activations, "peak": peak, "seconds": seconds}
    return numbers | {"parameters": model.num_parameters(), "threads": torch.get_num_threads()}, groups


def build(task: Task) -> PreTrainedModel:
    """Return a llama with the initial weights of seed 0."""
    torch.manual_seed(0)
    with torch.device(task.device):
        model: PreTrainedModel = LlamaForCausalLM._from_config(
            LlamaConfig(**SIZES[task.size]), dtype=DTYPES[task.dtype]
        )
    return model.eval()


def estimated(task: Task) -> int:
    """Return the bytes that the prune stage foresees in all."""
    config = LlamaConfig(**SIZES[task.size])
    work = Work(
        shape=DecoderShape.from_config(config.to_dict()),
        dtype=task.dtype,
        stored=task.dtype,
        sequences=task.sequences,
        length=task.length,
        scores="taylor",
        device=task.device,
    )
    return estimate(work).total


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of all parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def ours(model: PreTrainedModel, ids_BT: Tensor, expansion: str) -> Groups:
    """Return the scores as `prune=llmpruner` computes them."""
    layers = decoder_layers(model)
    projections = [projection for layer in layers for projection in layer.projections]
    return _groups(model, slice_scores(model, projections, ids_BT, [expansion])[expansion])


def stock(model: PreTrainedModel, ids_BT: Tensor, expansion: str) -> Groups:
    """Return the scores from gradients that are all kept."""
    if expansion in ("param_second", "param_mix"):
        _accumulate_squares(model, ids_BT)
    torch.autograd.backward(_loss(model, ids_BT))
    projections = [projection for layer in decoder_layers(model) for projection in layer.projections]
    return _groups(model, [_kept_scores(projection, expansion) for projection in projections])


def _accumulate_squares(model: PreTrainedModel, ids_BT: Tensor) -> None:
    for sequence_T in ids_BT:
        torch.autograd.backward(_loss(model, sequence_T[None]))
        for parameter in model.parameters():
            parameter.grad = parameter.grad * parameter.grad / len(ids_BT)
            if hasattr(parameter, "acc_grad"):
                parameter.acc_grad += parameter.grad
            else:
                parameter.acc_grad = copy.deepcopy(parameter.grad)
        model.zero_grad()


def _kept_scores(projection: Projection, expansion: str) -> Tensor:
    parameter: Any = projection.linear.weight
    weight, gradient = parameter.detach().float(), parameter.grad.float()
    if expansion == "vectorize":
        return slice_sums(projection, weight * gradient).abs()
    if expansion == "param_first":
        return slice_sums(projection, (weight * gradient).abs())
    second = weight * parameter.acc_grad.float() * weight
    values = second if expansion == "param_second" else weight * gradient - second / 2
    return slice_sums(projection, values.abs())


WAYS: dict[str, Callable[[PreTrainedModel, Tensor, str], Groups]] = {
    "stock": stock,
    "ours": ours,
    "exact": ours,
}
"""The ways by name. "exact" is ours in float32 with the same weights."""


def _groups(model: PreTrainedModel, slices: list[Tensor]) -> Groups:
    scores = iter(slices)
    found: Groups = {}
    for layer in decoder_layers(model):
        kinds = group_scores(layer, {projection.name: next(scores) for projection in layer.projections})
        found |= {f"layer {layer.index} {kind}": kinds[kind] for kind in ("heads", "channels")}
    return found


def _loss(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    loss: Tensor = model(ids_BT, labels=ids_BT, use_cache=False).loss
    return loss


def _peak(device: str, work: Callable[[], Any]) -> tuple[int, float, Any]:
    """Return the most bytes that `work` holds above what was held before, its seconds, and its result."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before, started = torch.cuda.memory_allocated(), time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, time.perf_counter() - started, result
    return_freed_memory()  # so that memory counts when it is used again
    before = resident_bytes("VmRSS") or 0
    with _HighWaterMark() as mark:
        started = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - started
    return mark.bytes - before, seconds, result


class _HighWaterMark:
    """The most memory that the process holds within the block: the system's mark, or else the largest sample."""

    bytes = 0

    def __enter__(self) -> _HighWaterMark:
        self.ended, self.watching = threading.Event(), None
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            self.watching = threading.Thread(target=self._watch)
            self.watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.watching is None:
            self.bytes = resident_bytes("VmHWM") or 0
        else:
            self.watching.join()

    def _watch(self) -> None:
        while not self.ended.wait(SAMPLING):
            self.bytes = max(self.bytes, resident_bytes("VmRSS") or 0)

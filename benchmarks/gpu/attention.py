"""Attention over packed documents: its results against float32, and its time when the documents' lengths are new.

`loop` is what stock code does: one call of torch's attention a document. A library that builds a plan for each shape
takes long at the first call with fresh lengths. Training meets fresh lengths in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.check import Found, Part, Row, Setting
from benchmarks.gpu.device import kernels, once, seconds_of
from benchmarks.gpu.slices import lengths
from stages.decoders.packed_attention import packed_attention
from stages.rows.packing import Document, Layout, collate
from stages.stage import JSON

TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}
"""The largest difference from float32 on a processor, as a share of the largest value."""
QUERIES, KEYS, WIDTH = 32, 32, 128
"""Heads of a llama-7B, and the dimension of one."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries, keys and values [1, heads, tokens, dimension] of one layer."""

    query: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def drawn(cls, tokens: int, *, queries: int, keys: int, width: int, device: str, dtype: torch.dtype) -> Heads:
        """Return random ones, the same on every device, whose gradients are taken. bfloat16 holds them exactly."""
        generator = torch.Generator().manual_seed(0)
        shapes = ((1, heads, tokens, width) for heads in (queries, keys, keys))
        parts = (
            torch.randn(shape, generator=generator).bfloat16().to(device, dtype).requires_grad_() for shape in shapes
        )
        return cls(*parts)

    def gradients(self, output: Tensor) -> list[Tensor]:
        """Return the gradients of a fixed weighting of `output`."""
        weights = torch.linspace(-1, 1, output.numel()).bfloat16().to(output.device, output.dtype).view(output.shape)
        return list(torch.autograd.grad(output, (self.query, self.key, self.value), weights))


def packed(heads: Heads, layout: Layout) -> Tensor:
    """Return this project's attention [1, T, H, D]."""
    layer, parts = torch.nn.Identity(), (heads.query, heads.key, heads.value)
    output: Tensor = packed_attention(layer, *parts, None, document_layout=layout)[0]
    return output


def loop(heads: Heads, layout: Layout) -> Tensor:
    """Return the same by one call of torch's attention a document, none of which shares a beginning."""
    ends = list(accumulate(layout.lengths, initial=0))
    parts = [
        scaled_dot_product_attention(
            heads.query[:, :, start:stop],
            heads.key[:, :, start:stop],
            heads.value[:, :, start:stop],
            is_causal=True,
            enable_gqa=heads.query.shape[1] != heads.key.shape[1],
        )
        for start, stop in pairwise(ends)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


def attention(setting: Setting, found: Found) -> Part:
    """Compare the results of grouped heads and shared beginnings with float32's, and time both ways."""
    differences = {
        f"{queries} query heads on {keys}{', shared beginnings' if share else ''}": _difference(
            setting, queries, keys, share=share
        )
        for queries, keys in ((4, 4), (8, 2))
        for share in (False, True)
    }
    largest = max(differences.values())
    allowed = TOLERANCE[setting.dtype]
    times = {name: _times(setting, way) for name, way in (("packed", packed), ("loop", loop))}
    lines = [Row("attention against float32, largest difference", f"{largest:.1e}", f"{allowed:.0e}")]
    lines += [Row(f"attention, {_words[name]}", _timed(each)) for name, each in times.items()]
    numbers: JSON = {"differences": differences, "times": times}
    if setting.device == "cuda":
        numbers["kernels"] = {name: _kernels(setting, way) for name, way in (("packed", packed), ("loop", loop))}
        for name, each in numbers["kernels"].items():
            lines.append(Row(f"kernels of {_words[name]}", _named(each)))
    else:
        lines.append(Row("kernels of attention by name", "skipped: a processor runs no CUDA kernels"))
    wrong = [f"{name}: {each:.1e} from float32" for name, each in differences.items() if each > allowed]
    return Part(numbers, lines, wrong)


_words = {"packed": "ours", "loop": "one call a document"}


def _difference(setting: Setting, queries: int, keys: int, *, share: bool) -> float:
    """Return the largest difference of outputs and gradients from float32 on a processor, relative to the largest."""
    documents = [Document([7] * 20 * share + list(range(30, 30 + count)), 0, "", cut=False) for count in (40, 9, 3, 64)]
    results = []
    for device, dtype in (("cpu", torch.float32), (setting.device, getattr(torch, setting.dtype))):
        batch = collate(documents, device, share=share)
        tokens = batch.input_ids_1T.shape[1]
        heads = Heads.drawn(tokens, queries=queries, keys=keys, width=64, device=device, dtype=dtype)
        output = packed(heads, batch.layout)
        results.append([output.detach(), *heads.gradients(output)])
    pairs = zip(*results, strict=True)
    return max(float((one - other.cpu().float()).abs().max() / one.abs().max()) for one, other in pairs)


def _times(setting: Setting, way: Callable[[Heads, Layout], Tensor]) -> JSON:
    """Return seconds of forward and backward: at the first call, with fresh lengths, with these again, and settled."""
    tokens = 128 if setting.toy else 8192
    width = 16 if setting.toy else WIDTH
    queries, keys = (4, 4) if setting.toy else (QUERIES, KEYS)
    heads = Heads.drawn(
        tokens, queries=queries, keys=keys, width=width, device=setting.device, dtype=getattr(torch, setting.dtype)
    )
    first, fresh = (Layout(_filled(tokens, seed)) for seed in (0, 1))

    def step(layout: Layout) -> Callable[[], object]:
        return lambda: heads.gradients(way(heads, layout))

    return {
        "documents": len(fresh.lengths),
        "first": once(step(first), setting.device),
        "fresh_lengths": once(step(fresh), setting.device),
        "again": once(step(fresh), setting.device),
        "settled": seconds_of(step(fresh), setting.device, least=0.02 if setting.toy else 0.2),
    }


def _filled(tokens: int, seed: int) -> tuple[int, ...]:
    """Return lengths of documents that fill `tokens` to the last one."""
    drawn = list(lengths(tokens, longest=tokens // 4, seed=seed))
    drawn[-1] -= sum(drawn) - tokens
    return tuple(drawn)


def _kernels(setting: Setting, way: Callable[[Heads, Layout], Tensor]) -> dict[str, int]:
    layout = Layout(_filled(2048, 2))
    heads = Heads.drawn(2048, queries=QUERIES, keys=KEYS, width=WIDTH, device="cuda", dtype=torch.bfloat16)
    heads.gradients(way(heads, layout))
    with kernels() as found:
        heads.gradients(way(heads, layout))
    return dict(found.names.most_common())


def _timed(each: JSON) -> str:
    names = (("first", "first call"), ("fresh_lengths", "fresh lengths"), ("settled", "settled"))
    return ", ".join(f"{words} {1000 * each[name]:.1f} ms" for name, words in names)


def _named(names: dict[str, int]) -> str:
    """Return the most frequent kernels, names shortened."""
    most: Sequence[tuple[str, int]] = list(names.items())[:4]
    return f"{sum(names.values())} launches: " + "; ".join(f"{count} {name[:60]}" for name, count in most)

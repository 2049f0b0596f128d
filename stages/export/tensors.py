"""Tensors of a GGUF file from a checkpoint's weights: their names, order and precision, read one at a time.

This module owns the renaming, the splitting of fused projections, llama's row order, the offset of a family's norms,
and the zeros in place of sub-layers that pruning removed. Shapes are Hugging Face's, [rows, columns]; GGUF lists them
the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from safetensors import safe_open
from torch import Tensor

from stages.decoders.registry import FAMILIES
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.export.architectures import Target
from stages.export.config import BLOCKED

TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    **{name: GGMLQuantizationType[name.upper()] for name in BLOCKED},
}
STORED = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
"""`export.dtype` for each precision in a safetensors header."""
BLOCK = 32
"""Values that share a scale in the formats of few bits. A row must be whole blocks."""
OUTPUT, EMBEDDING = "output.weight", "token_embd.weight"
"""The output projection and the embeddings in a GGUF file. Without the former the latter is both."""
COMPUTED = ".rotary_emb.inv_freq"
"""A buffer that old checkpoints carry and that models compute themselves."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor: its Hugging Face name, shape and stored precision, and the function that reads it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Weight:
        """Return this weight with `change` applied to what is read. `change` keeps the shape."""
        read = self.read
        return replace(self, read=lambda: change(read()))


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a GGUF file."""

    name: str
    weight: Weight
    type: GGMLQuantizationType

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return prod(self.weight.shape) // int(block) * int(size)

    def data(self) -> np.ndarray[Any, Any]:
        """Return the tensor's data as it is written.

        Raises:
            UserError: a value is not finite in the precision written.
        """
        tensor = self.weight.read()
        if tuple(tensor.shape) != self.weight.shape:
            raise UserError(f"{self.weight.name} has the shape {tuple(tensor.shape)}, not {self.weight.shape}.")
        written = tensor.to(torch.float16 if self.type is GGMLQuantizationType.F16 else torch.float32)
        if not bool(written.isfinite().all()):
            raise UserError(
                f"export=gguf: {self.weight.name} holds values that are not finite in {self.type.name}. "
                "Write another precision (export.dtype=bf16 or f32), or check the model."
            )
        if self.type is GGMLQuantizationType.BF16:
            return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
        array = written.contiguous().numpy()
        return quantize(array, self.type) if self.quantised else array

    @property
    def quantised(self) -> bool:
        """Whether values share a scale."""
        return self.type.name.lower() in BLOCKED


def entries(
    directory: Path, shape: DecoderShape, target: Target, *, dtype: str, factors: Tensor | None = None
) -> list[Entry]:
    """Return the tensors of the model in `directory` as a GGUF file holds them.

    Args:
        directory: a Hugging Face directory with safetensors.
        shape: the model's shape.
        target: the form in which it is written.
        dtype: precision of the matrices: "auto" or one of TYPES. `_type` has the exceptions.
        factors: numbers that the rotary frequencies are divided by, if any.

    Raises:
        UserError: llama.cpp's architecture has no place for one of the tensors.
    """
    names = gguf.get_tensor_name_map(_ARCHITECTURES[target.architecture], len(target.layers))
    found = []
    head = EMBEDDING if shape.tied and target.rules.tied_head else OUTPUT
    for weight in _weights(directory, shape, target):
        name = names.get_name(weight.name, try_suffixes=(".weight", ".bias"))
        if name is None or (weight.name.endswith(".bias") and not target.rules.llama_order):
            raise UserError(
                f"export=gguf: llama.cpp's {target.architecture} has no place for {weight.name}. "
                "Publish the Hugging Face directory instead: export=hf."
            )
        found.append(Entry(name, weight, _type(weight, dtype, head=name == head)))
    if factors is not None:
        weight = Weight("rope_freqs", tuple(factors.shape), "f32", lambda: factors)
        found.append(Entry("rope_freqs.weight", weight, GGMLQuantizationType.F32))
    return found


_ARCHITECTURES = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}


def _type(weight: Weight, dtype: str, *, head: bool) -> GGMLQuantizationType:
    """Return the type in which a weight is written, by the rules of llama.cpp's tool (src/llama-quant.cpp).

    That tool writes the output projection, or the embeddings where they are both, with at least 6 bits. Its 6-bit type
    (q6_k) can't be written here, so `head` is in 8 bits: the tool's own choice where rows don't divide into blocks of
    256. A matrix whose rows are not whole blocks of 32 is f16.
    """
    # llama.cpp needs norms and biases in float32.
    if len(weight.shape) == 1:
        return GGMLQuantizationType.F32
    if dtype not in BLOCKED:
        return TYPES[weight.dtype if dtype == "auto" else dtype]
    if weight.shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    return TYPES["q8_0" if head else dtype]


def _weights(directory: Path, shape: DecoderShape, target: Target) -> Iterator[Weight]:
    """Yield the weights in the architecture's form: unfused, in its row order, with stand-ins."""
    stored = {weight.name: weight for weight in _stored(directory)}
    if shape.tied:
        stored.pop("lm_head.weight", None)
    # Some architectures of llama.cpp want an output matrix in the file, so the embeddings are written a second time.
    if shape.tied and not target.rules.tied_head:
        stored["lm_head.weight"] = replace(stored["model.embed_tokens.weight"], name="lm_head.weight")
    for weight in stored.values():
        for part in _unfused(weight, shape):
            yield _reordered(part, shape, target)
    dtype = stored["model.embed_tokens.weight"].dtype
    for index, (layer, written) in enumerate(zip(shape.layers, target.layers, strict=True)):
        yield from _stand_ins(f"model.layers.{index}", layer, written, shape, dtype)


def _stored(directory: Path) -> Iterator[Weight]:
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                # The header says shape and precision. The weight itself is read when it is written.
                header = file.get_slice(name)
                dtype = STORED.get(header.get_dtype())
                if name.endswith(COMPUTED):
                    continue
                if dtype is None:
                    raise UserError(f"{path} stores {name} as {header.get_dtype()}; export reads {', '.join(STORED)}.")
                yield Weight(name, tuple(header.get_shape()), dtype, _reader(path, name))


def _reader(path: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    return read


def _unfused(weight: Weight, shape: DecoderShape) -> list[Weight]:
    """Return the projections in a weight: several, where phi3 stores them in one matrix."""
    if ".qkv_proj." in weight.name:
        layer = _layer(weight, shape.layers)
        sizes = [layer.heads * shape.head_dim, layer.kv_heads * shape.head_dim, layer.kv_heads * shape.head_dim]
        return _split(weight, "qkv_proj", ("q_proj", "k_proj", "v_proj"), sizes)
    if ".gate_up_proj." in weight.name:
        size = _layer(weight, shape.layers).mlp
        return _split(weight, "gate_up_proj", ("gate_proj", "up_proj"), [size, size])
    return [weight]


def _split(weight: Weight, fused: str, names: tuple[str, ...], sizes: list[int]) -> list[Weight]:
    parts, start = [], 0
    for name, size in zip(names, sizes, strict=True):
        rows = slice(start, start + size)
        parts.append(
            Weight(
                weight.name.replace(fused, name),
                (size, *weight.shape[1:]),
                weight.dtype,
                lambda rows=rows: weight.read()[rows],  # type: ignore[misc]
            )
        )
        start += size
    return parts


def _reordered(weight: Weight, shape: DecoderShape, target: Target) -> Weight:
    """Return `weight` with its rows in llama's order, or with the family's offset added to a norm."""
    if target.rules.llama_order and (found := re.search(r"\.([qk])_proj\.", weight.name)):
        layer = _layer(weight, shape.layers)
        heads = layer.heads if found[1] == "q" else layer.kv_heads
        return weight.mapped(lambda tensor: interleaved(tensor, heads))
    offset = FAMILIES[shape.family].norm_offset
    if offset and weight.name.endswith("norm.weight"):
        return weight.mapped(lambda tensor: tensor.float() + offset)
    return weight


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Return each head's rows in llama's order: row i beside row i + head_dim/2, with which it is turned."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _stand_ins(
    prefix: str, layer: LayerShape, written: LayerShape, shape: DecoderShape, dtype: str
) -> Iterator[Weight]:
    """Yield a sub-layer that computes zero, where the layer has none and the architecture needs one.

    It has biases where those of other layers do, so that a reader may ask every layer for the same tensors.
    """
    if written.heads and not layer.heads:
        # The norm's weight does not matter before projections of zeros.
        yield _constant(f"{prefix}.input_layernorm.weight", (shape.hidden,), dtype, 1.0)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from _zeros(f"{prefix}.self_attn.{name}", (shape.head_dim, shape.hidden), dtype, shape.qkv_bias)
        o_bias = shape.o_bias or shape.output_bias
        yield from _zeros(f"{prefix}.self_attn.o_proj", (shape.hidden, shape.head_dim), dtype, o_bias)
    if written.mlp and not layer.mlp:
        yield _constant(f"{prefix}.post_attention_layernorm.weight", (shape.hidden,), dtype, 1.0)
        for name in ("gate_proj", "up_proj"):
            yield from _zeros(f"{prefix}.mlp.{name}", (written.mlp, shape.hidden), dtype, shape.mlp_bias)
        down_bias = shape.mlp_bias or shape.output_bias
        yield from _zeros(f"{prefix}.mlp.down_proj", (shape.hidden, written.mlp), dtype, down_bias)


def _zeros(name: str, size: tuple[int, int], dtype: str, biased: bool) -> Iterator[Weight]:
    """Yield a linear map that computes zero: its weight and, where it is `biased`, its bias."""
    yield _constant(f"{name}.weight", size, dtype, 0.0)
    if biased:
        yield _constant(f"{name}.bias", size[:1], dtype, 0.0)


def _constant(name: str, size: tuple[int, ...], dtype: str, value: float) -> Weight:
    return Weight(name, size, dtype, lambda: torch.full(size, value))


def _layer(weight: Weight, layers: tuple[LayerShape, ...]) -> LayerShape:
    return layers[int(weight.name.split("layers.")[1].partition(".")[0])]

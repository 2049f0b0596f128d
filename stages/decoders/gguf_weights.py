"""Weights of a GGUF file, dequantised, in Hugging Face's order of rows; and a model that computes with them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from stages.decoders.gguf_header import Header, Stored, read_header
from stages.decoders.registry import FAMILIES, PRUNED_PREFIX
from stages.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Maps that phi3 has in one matrix, which a file has apart."""
ARCHITECTURES = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}


def read_tensor(path: Path, stored: Stored) -> Tensor:
    """Return one tensor of a GGUF file, in float32."""
    rows = prod(stored.shape[:-1])
    data = np.fromfile(path, np.uint8, stored.size, offset=stored.start).reshape(rows, -1)
    values = dequantize(data, gguf.GGMLQuantizationType[stored.type])
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(stored.shape)


def halved(tensor: Tensor, heads: int) -> Tensor:
    """Return each head's rows in Hugging Face's order: the even rows of llama's, then the odd ones."""
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape).contiguous()


@torch.no_grad()
def filled(model: PreTrainedModel, file: Path) -> PreTrainedModel:
    """Return `model`, which `file` was written from, with the file's weights; changed in place.

    Raises:
        UserError: the file lacks a weight of the model, or has it in another shape.
    """
    header = read_header(file)
    names = gguf.get_tensor_name_map(ARCHITECTURES[header.architecture], int(header.number("block_count")))
    for name, parameter in model.named_parameters():
        parts = [_part(header, names, part, model) for part in _apart(name)]
        whole = torch.cat(parts) if all(part is not None for part in parts) else None  # type: ignore[arg-type]
        if whole is None or whole.shape != parameter.shape:
            raise UserError(f"{file} has no {name} of the shape {list(parameter.shape)}. Build it again: force=[gguf].")
        parameter.copy_(whole)
    return model


def _apart(name: str) -> list[str]:
    fused = next((fused for fused in FUSED if f".{fused}." in name), None)
    return [name] if fused is None else [name.replace(fused, part) for part in FUSED[fused]]


def _part(header: Header, names: gguf.TensorNameMap, name: str, model: PreTrainedModel) -> Tensor | None:
    """Return the weight of one Hugging Face name; None where the file has none."""
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    stored = None if found is None else header.tensors.get(found)
    family = FAMILIES[str(model.config.model_type).removeprefix(PRUNED_PREFIX)]
    if stored is None or family.gguf is None:
        return None
    tensor = read_tensor(header.path, stored)
    if family.gguf.llama_order and (".q_proj." in name or ".k_proj." in name):
        return halved(tensor, tensor.shape[0] // int(model.config.head_dim))
    return tensor - family.norm_offset if family.norm_offset and name.endswith("norm.weight") else tensor

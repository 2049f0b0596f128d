"""Layers of a model in pieces on several processes, by torch's `fully_shard` (FSDP).

accelerate's FSDP is built on the same function, and shards on accelerators only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stages.common.machine import return_freed_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard(root: nn.Module, layers: Sequence[nn.Module], device: str, whole: Collection[nn.Parameter] = ()) -> list[Any]:
    """Leave this process its piece, on `device`, of each of `layers` and of the rest of `root`; returns all of these.

    A module is moved to the device whole before it is cut, one after the other. So a device holds its share and one
    layer. Parameters in `whole` are left as they are, on every process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (torch.distributed.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh, ignored_params=set(whole))
    modules: list[Any] = [*layers, root]
    for module in modules:
        # The first gathering makes the buffers for the weights, and must not make them in inference mode.
        module.unshard()
        module.reshard()
        return_freed_memory()
    return modules


def shard_layers(model: PreTrainedModel, device: str) -> None:
    """Leave this process its pieces of the layers of `model`; embeddings, the last norm and the head are whole.

    So the head can be applied outside the forward pass. All processes have to run the model together.
    """
    decoder = model.get_decoder()
    pieces = {id(parameter) for layer in decoder.layers for parameter in layer.parameters()}
    whole = [parameter for parameter in model.parameters() if id(parameter) not in pieces]
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    shard(decoder, decoder.layers, device, whole)


def everywhere(flag: bool) -> bool:
    """Return whether `flag` is true in every process."""
    least = torch.tensor(int(flag))
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    return bool(least)

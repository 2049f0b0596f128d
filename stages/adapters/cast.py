"""Low-rank weights in the computation's precision: cast once a step, with gradients that add up in flat buffers.

The weights are float32, and a pass computes in bfloat16. Autograd would cast every weight for every micro-batch, and
every gradient back. On a GPU each of these casts is a launch that costs more than its arithmetic. Here:

* all weights are cast by one call at the beginning of a step, into views of one buffer;
* the backward pass adds gradients to views of another buffer, in the computation's precision. After each micro-batch
  that buffer is added, as a whole, to one in float32. So micro-batches add up in float32, as they do under autograd;
* maps of one input (query, key and value; gate and up) are one operation: their matrices A lie one under the other and
  are one product, and their gradients of the input add up in place.

Outside a step, layers cast for themselves (`.fused`). So do layers whose parameters are sharded.

Shape legend: T tokens, O outputs, I inputs, R rank, S ranks of all maps of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stages.adapters.adapter import ADAPTER
from stages.adapters.fused import FusedLora
from stages.adapters.ranks import JOINED

ALIGNED = 64
"""Elements to whose multiples views begin, because products of unaligned matrices run in slower kernels."""


@dataclass(slots=True)
class Maps:
    """Adapted maps of one input, with their low-rank weights as they are in the step that runs."""

    layers: Sequence[FusedLora]
    down_SI: Tensor
    """The matrices A, one under the other."""
    ups_OR: Sequence[Tensor]
    of_down_SI: Tensor
    """Where the gradient of `down_SI` adds up."""
    of_ups_OR: Sequence[Tensor]
    norms_O: list[Tensor] = field(default_factory=list)
    """DoRA's norms of the maps, which do not change in a step; empty until they are needed."""
    ready: tuple[Tensor, dict[FusedLora, Tensor]] | None = None
    """The last input, and the outputs for it that their layers have not fetched."""

    @classmethod
    def of(cls, layers: Sequence[FusedLora], starts: Sequence[int], cast: Tensor, slopes: Tensor) -> Maps:
        """Return the maps of `layers`, whose parameters begin at `starts` in both buffers."""
        *_, last_RI = downs_RI = _parameters(layers)[: len(layers)]
        until = starts[len(downs_RI) - 1] + last_RI.numel()
        down_SI, of_down_SI = (flat[starts[0] : until].view(-1, last_RI.shape[1]) for flat in (cast, slopes))
        ups = list(zip(starts, _parameters(layers), strict=True))[len(layers) :]
        ups_OR, of_ups_OR = ([_view(flat, start, up_OR) for start, up_OR in ups] for flat in (cast, slopes))
        return cls(layers, down_SI, ups_OR, of_down_SI, of_ups_OR)

    def output(self, layer: FusedLora, x: Tensor) -> Tensor:
        """Return `layer`'s output [..., O] for x [..., I]. Those of its siblings for this x are computed with it."""
        if self.ready is None or self.ready[0] is not x or layer not in self.ready[1]:
            self.ready = (x, dict(zip(self.layers, self._outputs(x), strict=True)))
        output = self.ready[1].pop(layer)
        if not self.ready[1]:
            self.ready = None
        return output

    def _outputs(self, x: Tensor) -> Sequence[Tensor]:
        dtype, (first, *_) = self.down_SI.dtype, self.layers
        dropped = first.lora_dropout[ADAPTER](x).to(dtype) if first.drops() else None
        factors: list[Tensor | None] = [None] * len(self.layers)
        if ADAPTER in first.lora_variant:
            self.norms_O = self.norms_O or [layer.norms() for layer in self.layers]
            magnitudes = (layer.lora_magnitude_vector[ADAPTER].weight for layer in self.layers)
            factors = [(m_O / norm_O).to(dtype) for m_O, norm_O in zip(magnitudes, self.norms_O, strict=True)]
        with torch.autocast(x.device.type, enabled=False):
            # Without the parameters autograd would see nothing to train behind frozen inputs.
            operands = (*factors, *_parameters(self.layers))
            outputs: Sequence[Tensor] = _Linears.apply(self, x.to(dtype), dropped, *operands)  # type: ignore[no-untyped-call]
        return outputs


class Casts:
    """The low-rank weights of a model, cast; does nothing where there is nothing to cast."""

    def __init__(self, groups: Sequence[Sequence[FusedLora]], dtype: torch.dtype) -> None:
        """Make the buffers for the layers of all `groups`."""
        self._parameters: list[Tensor] = [parameter for group in groups for parameter in _parameters(group)]
        starts, size = _places(groups)
        device = self._parameters[0].device if groups else None
        cast, self._slopes = (torch.zeros(size, dtype=dtype, device=device) for _ in range(2))
        self._sums = torch.zeros(size, device=device)
        every = list(zip(self._parameters, chain.from_iterable(starts), strict=True))
        self._cast, self._gradients = (
            [_view(flat, start, parameter) for parameter, start in every] for flat in (cast, self._sums)
        )
        self._maps = [Maps.of(group, at, cast, self._slopes) for group, at in zip(groups, starts, strict=True)]

    @classmethod
    def of(cls, model: nn.Module, dtype: torch.dtype) -> Casts:
        """Return the casts of `model`'s low-rank adapters, as far as they are computed in another precision."""
        layers = [(name, module) for name, module in model.named_modules() if _is_cast(module)]
        groups = [[layer for _, layer in group] for _, group in groupby(layers, key=lambda named: _group(*named))]
        return cls(groups if dtype != torch.float32 else [], dtype)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Cast the weights for the passes in the block, and give the parameters their gradients at its end."""
        if not self._parameters:
            yield
            return
        with torch.no_grad():
            torch._foreach_copy_(self._cast, self._parameters)
        self._slopes.zero_()
        self._sums.zero_()
        try:
            for maps in self._maps:
                for layer in maps.layers:
                    layer.maps = maps
            yield
        finally:
            for maps in self._maps:
                maps.norms_O, maps.ready = [], None
                for layer in maps.layers:
                    layer.maps = None
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def collect(self) -> None:
        """Add the gradients of a micro-batch to those of the step."""
        self._sums.add_(self._slopes)
        self._slopes.zero_()


def _is_cast(module: nn.Module) -> TypeGuard[FusedLora]:
    return isinstance(module, FusedLora) and module.plain() and not isinstance(module.lora_A[ADAPTER].weight, DTensor)


def _group(name: str, layer: FusedLora) -> tuple[Any, ...]:
    """Return the same for neighbouring layers that form one group."""
    parent, _, own = name.rpartition(".")
    # With dropout each map drops other inputs.
    joined = JOINED.get(own, own) if isinstance(layer.lora_dropout[ADAPTER], nn.Identity) else own
    return parent, joined, layer.lora_A[ADAPTER].weight.shape[1], layer.scaling[ADAPTER], ADAPTER in layer.lora_variant


def _parameters(layers: Sequence[FusedLora]) -> list[nn.Parameter]:
    """Return the matrices A of all layers, then their matrices B."""
    return [part[ADAPTER].weight for name in ("lora_A", "lora_B") for part in (getattr(each, name) for each in layers)]


def _places(groups: Sequence[Sequence[FusedLora]]) -> tuple[list[list[int]], int]:
    """Return where the parameters of each group begin in a buffer, and the buffer's size."""
    starts: list[list[int]] = []
    size = 0
    for group in groups:
        starts.append([])
        for index, parameter in enumerate(_parameters(group)):
            # The matrices A of a group lie without a gap.
            if not 0 < index < len(group):
                size = -(-size // ALIGNED) * ALIGNED
            starts[-1].append(size)
            size += parameter.numel()
    return starts, size


def _view(flat: Tensor, start: int, like: Tensor) -> Tensor:
    return flat[start : start + like.numel()].view(like.shape)


class _Linears(torch.autograd.Function):
    """y = f ⊙ (x Wᵀ + s d Aᵀ Bᵀ) + bias for each of `maps`, as `.fused` has it for one."""

    @staticmethod
    def forward(
        ctx: Any, maps: Maps, x: Tensor, dropped: Tensor | None, *operands: Tensor | None
    ) -> tuple[Tensor, ...]:
        count, scaling = len(maps.layers), maps.layers[0].scaling[ADAPTER]
        x_TI = x.reshape(-1, x.shape[-1])
        dropped_TI = x_TI if dropped is None else dropped.reshape(x_TI.shape)
        inner_TS = dropped_TI @ maps.down_SI.T
        outputs, unscaled = [], []
        for layer, inner_TR, up_OR, factor_O in zip(
            maps.layers, _by_map(inner_TS, maps), maps.ups_OR, operands[:count], strict=True
        ):
            weight_OI, bias_O = _base(layer, x.dtype)
            output_TO = F.linear(x_TI, weight_OI, bias_O if factor_O is None else None)
            output_TO.addmm_(inner_TR, up_OR.T, alpha=scaling)
            if factor_O is not None:
                unscaled.append(output_TO)
                output_TO = output_TO * factor_O
                if bias_O is not None:
                    output_TO += bias_O
            outputs.append(output_TO.view(*x.shape[:-1], -1))
        factors = [factor for factor in operands[:count] if factor is not None]
        ctx.save_for_backward(dropped_TI, inner_TS, *factors, *unscaled)
        ctx.maps, ctx.scaling, ctx.dropout, ctx.shape = maps, scaling, dropped is not None, x.shape
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        maps, count, scaling = ctx.maps, len(ctx.maps.layers), ctx.scaling
        dropped_TI, inner_TS, *scaled = ctx.saved_tensors
        slopes_TO = [slope.reshape(-1, slope.shape[-1]) for slope in upstream]
        of_factors: list[Tensor | None] = [None] * count
        if scaled:
            of_factors = [
                torch.linalg.vecdot(slope, unscaled, dim=0)
                for slope, unscaled in zip(slopes_TO, scaled[count:], strict=True)
            ]
            slopes_TO = [slope * factor for slope, factor in zip(slopes_TO, scaled[:count], strict=True)]
        inner = zip(slopes_TO, _by_map(inner_TS, maps), maps.of_ups_OR, strict=True)
        for slope_TO, inner_TR, of_up_OR in inner:
            of_up_OR.addmm_(slope_TO.T, inner_TR, alpha=scaling)
        slopes_TR = [slope_TO @ up_OR for slope_TO, up_OR in zip(slopes_TO, maps.ups_OR, strict=True)]
        slope_TS = slopes_TR[0] if count == 1 else torch.cat(slopes_TR, dim=1)
        maps.of_down_SI.addmm_(slope_TS.T, dropped_TI, alpha=scaling)
        of_x = of_dropped = None
        if ctx.needs_input_grad[1]:
            weights_OI = (_base(layer, slope_TS.dtype)[0] for layer in maps.layers)
            of_x = slopes_TO[0] @ next(weights_OI)
            for slope_TO, weight_OI in zip(slopes_TO[1:], weights_OI, strict=True):
                of_x.addmm_(slope_TO, weight_OI)
            # With dropout the two paths meet different inputs: autograd adds them up behind the dropout's own backward.
            if ctx.dropout:
                of_dropped = (slope_TS @ maps.down_SI).mul_(scaling).view(ctx.shape)
            else:
                of_x.addmm_(slope_TS, maps.down_SI, alpha=scaling)
            of_x = of_x.view(ctx.shape)
        return None, of_x, of_dropped, *of_factors, *[None] * (2 * count)


def _by_map(tensor_TS: Tensor, maps: Maps) -> Sequence[Tensor]:
    return torch.split(tensor_TS, [up_OR.shape[1] for up_OR in maps.ups_OR], dim=1)


def _base(layer: FusedLora, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias of the map itself; a weight that is kept in fewer bits is made whole here."""
    base = layer.base_layer
    return base.weight.to(dtype), None if base.bias is None else base.bias.to(dtype)

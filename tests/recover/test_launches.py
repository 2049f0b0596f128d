"""The number of kernels of a micro-batch, forward and backward.

A GPU needs about 5 µs to launch a kernel. At 1,024 tokens a layer of a 7B model is 2.4 ms of arithmetic on an H100, of
which 64 launches leave room for more than seven times as many.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.llama import modeling_llama

from helpers.decoders import decoder, token_ids
from helpers.launches import Launches
from helpers.toy import adapter_config
from stages.adapters.cast import Casts
from stages.adapters.registry import ADAPTERS
from stages.decoders.kernels import ROTARY, fuse_mlps, fuse_norms, fuse_rotary
from stages.decoders.packed_attention import set_attention


def counted(adapter: str, layers: int) -> Launches:
    """Return the launches of a step's second micro-batch of a llama, whose fused kernels are stand-ins."""
    model, launches = decoder(num_hidden_layers=layers).to(torch.bfloat16), Launches()
    same = launches.kernel("norm", lambda x: [x])
    fuse_norms(model, lambda norm, x: same(x)[0], "cpu")
    gated = launches.kernel("swiglu", lambda gate, up: [gate])
    fuse_mlps(model, lambda mlp, x: mlp.down_proj(gated(mlp.gate_proj(x), mlp.up_proj(x))[0]), "cpu")
    turned = launches.kernel("rotary", lambda query, key: [query, key])
    fuse_rotary(model, lambda query, key, cos, sin: turned(query, key), "cpu")  # type: ignore[arg-type, return-value]
    attended = launches.kernel("attention", lambda query, key, value: [query.transpose(1, 2)])

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any
    ) -> tuple[Tensor, None]:
        return attended(query, key, value)[0], None

    AttentionInterface.register("counted", attention)
    set_attention(model, "counted")
    ADAPTERS[adapter].attach(model, adapter_config(adapter), ())
    casts = Casts.of(model.train(), torch.bfloat16)
    ids_BT = token_ids(1, 16)
    with casts.step(), launches:
        for _ in range(2):
            launches.calls.clear()
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.get_decoder()(ids_BT, use_cache=False).last_hidden_state
            hidden.backward(torch.ones_like(hidden))
            casts.collect()
    return launches


@pytest.mark.parametrize(("adapter", "bound"), [("lora", 64), ("dora", 128)])
def test_a_layer_takes_few_launches(adapter: str, bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, ROTARY, getattr(modeling_llama, ROTARY))
    # Products: 7 of the base and 7 of the matrices B forward, 4 of the matrices A, and for each of these 18 its two
    # gradients, without that of the base's weights. Beside them 2 norms, rotary, attention and SwiGLU, all twice, 4
    # sums of the residual stream, and 2 joins of the ranks' gradients. DoRA has 9 more for each of the 7 factors.
    few, many = (counted(adapter, layers).calls for layers in (2, 4))
    layer = many - few
    assert sum(layer.values()) / 2 <= bound, layer
    # No weight is cast in a pass: what is cast to another precision, if anything, is the factor of DoRA.
    assert layer["_to_copy"] / 2 <= {"lora": 0, "dora": 14}[adapter], layer

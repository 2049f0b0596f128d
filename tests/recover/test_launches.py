"""The number of kernels of a micro-batch, forward and backward.

A GPU needs about 5 µs to launch a kernel. At 1,024 tokens a layer of a 7B model is 2.4 ms of arithmetic on an H100, of
which 64 launches leave room for more than seven times as many.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.llama import modeling_llama

from benchmarks.gpu.training import training
from helpers.decoders import decoder, token_ids
from helpers.launches import Launches
from helpers.toy import adapter_config, config, data_artifact
from stages.adapters.cast import Casts
from stages.adapters.registry import ADAPTERS
from stages.common.progress import progress
from stages.decoders.kernels import ROTARY, fuse_mlps, fuse_norms, fuse_rotary
from stages.decoders.packed_attention import set_attention
from stages.decoders.variable_length import KERNELS, Kernel
from stages.recover.checkpoints import Progress
from stages.recover.drawing import steps
from stages.recover.loop import Training
from stages.recover.workers import Turn
from stages.stage import Context


def fuse(model: PreTrainedModel, launches: Launches) -> None:
    """Give a llama stand-ins for its fused kernels, which `launches` counts."""
    same = launches.kernel("norm", lambda x: [x])
    fuse_norms(model, lambda norm, x: same(x)[0], "cpu")
    gated = launches.kernel("swiglu", lambda gate, up: [gate])
    fuse_mlps(model, lambda mlp, x: mlp.down_proj(gated(mlp.gate_proj(x), mlp.up_proj(x))[0]), "cpu")
    turned = launches.kernel("rotary", lambda query, key: [query, key])
    fuse_rotary(model, lambda query, key, cos, sin: turned(query, key), "cpu")  # type: ignore[arg-type, return-value]


def counted(adapter: str, layers: int) -> Launches:
    """Return the launches of a step's second micro-batch, whose attention is a stand-in too."""
    model, launches = decoder(num_hidden_layers=layers).to(torch.bfloat16), Launches()
    fuse(model, launches)
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


@pytest.fixture(autouse=True)
def rotary_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, ROTARY, getattr(modeling_llama, ROTARY))


@pytest.mark.parametrize(("adapter", "bound"), [("lora", 64), ("dora", 128)])
def test_a_layer_takes_few_launches(adapter: str, bound: int) -> None:
    # Products: 7 of the base and 7 of the matrices B forward, 4 of the matrices A, and for each of these 18 its two
    # gradients, without that of the base's weights. Beside them 2 norms, rotary, attention and SwiGLU, all twice, 4
    # sums of the residual stream, and 2 joins of the ranks' gradients. DoRA has 9 more for each of the 7 factors.
    few, many = (counted(adapter, layers).calls for layers in (2, 4))
    layer = many - few
    assert sum(layer.values()) / 2 <= bound, dict(layer)
    # No weight is cast in a pass: what is cast to another precision, if anything, is the factor of DoRA.
    assert layer["_to_copy"] / 2 <= {"lora": 0, "dora": 14}[adapter], layer


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Training, Launches]]:
    """Return what makes a recovery, at its first step, and the counter of its fused kernels where it has some."""

    def made(layers: int, adapter: str, fused: bool = True, **recover: Any) -> tuple[Training, Launches]:
        monkeypatch.delitem(KERNELS, "cpu", raising=False)
        model, launches = decoder(num_hidden_layers=layers, vocab_size=512).to(torch.bfloat16), Launches()
        teacher = decoder(num_hidden_layers=layers, vocab_size=512).to(torch.bfloat16)
        settings = config({"name": adapter}, dtype="bfloat16", tokens=1300, curve_every=1300, **recover)
        context = Context(output=tmp_path / str(layers), cache=tmp_path / "cache", checkpoint_seconds=math.inf)
        train = data_artifact(tmp_path / "data") / "train.jsonl"
        found = training(model, settings, train, context, teacher=teacher)
        found.progress = Progress()
        if not fused:
            return found, launches
        # Stand-ins do no arithmetic, and a model's attention is tried when it is set.
        fuse(model, launches)
        attended = launches.kernel("attention", lambda query, key, value: [query])
        kernel = Kernel(lambda query, key, value, *_: attended(query, key, value)[0], frozenset({torch.bfloat16}))
        monkeypatch.setitem(KERNELS, "cpu", kernel)
        return found, launches

    return made


def of_a_micro_batch(recovery: Training, launches: Launches) -> Counter[str]:
    """Return the launches of the second micro-batch of a step, from the collated batch to its gradients."""
    documents = next(steps(recovery.stream, recovery.config, Progress())).documents
    assert recovery._collated(documents).layout.shared is not None
    with recovery.casts.step(), launches:
        for index in range(2):
            launches.calls.clear()
            recovery._take(Turn(index, documents, 1.0, documents), 100)
            recovery.casts.collect()
    return launches.calls.copy()


@pytest.mark.parametrize(("adapter", "bound"), [("lora", 70), ("dora", 134)])
def test_documents_that_share_beginnings_take_six_more(packed: Any, adapter: str, bound: int) -> None:
    few, many = (of_a_micro_batch(*packed(layers, adapter)) for layers in (2, 4))
    layer = many - few
    # Keys and values are gathered for each document, and each gather has two launches backward: zeros, and a sum.
    assert layer["index_select"] == layer["new_zeros"] == layer["index_add"] == 2 * 2
    assert layer["attention"] == layer["attention backward"] == 2
    assert sum(layer.values()) / 2 <= bound, dict(layer)
    # Nothing goes document by document, and no gradient is copied into zeros of its own.
    assert not [name for name in layer if any(word in name for word in ("split", "scaled_dot", "select_backward"))]


@pytest.mark.parametrize(("options", "bound"), [({}, 44), ({"objective": "distillation"}, 76)])
def test_loss_and_head_take_few_launches(packed: Any, options: dict[str, Any], bound: int) -> None:
    """Everything of a micro-batch but its layers, with one chunk of the vocabulary."""
    # Beside the head's two products: 14 for embedding, rotary tables and the last norm, 20 for the loss with its
    # gradient, and 8 to scale that and to send it back. A teacher has an embedding, tables and a norm of its own (16),
    # and one product. Its divergence takes two softmaxes, exponentials and a second sum.
    few, many = (of_a_micro_batch(*packed(layers, "lora", **options)) for layers in (2, 4))
    rest = few - (many - few)
    assert 0 < sum(rest.values()) <= bound, dict(rest)


@pytest.mark.parametrize("adapter", ["lora", "dora", "lora_plus"])
def test_the_launches_of_an_update_do_not_grow_with_the_model(packed: Any, adapter: str) -> None:
    """A call on a list of tensors is one launch for some dozens of them, where a loop would take several for each."""
    found = []
    for layers in (2, 4):
        recovery, launches = packed(layers, adapter, fused=False)
        # The first step makes the optimizer's moments.
        for drawn in islice(steps(recovery.stream, recovery.config, Progress()), 2):
            passed = recovery._accumulate(drawn.documents, lambda: None, drawn.beyond, 1024)
            launches.calls.clear()
            with launches:
                recovery._finish_step(drawn, drawn.documents, passed, progress("", total=1, unit="", silent=True))
        found.append(launches.calls.copy())
    assert found[0] == found[1]
    # The norm (3), the factor that clips (4) and the clipping, losses and norm in one tensor to read, and for each rate
    # the moments' step numbers and AdamW.
    rates = 2 if adapter == "lora_plus" else 1
    assert found[0]["_fused_adamw_"] == rates
    assert sum(found[0].values()) <= 9 + 2 * rates, dict(found[0])

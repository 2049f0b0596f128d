"""Attention in one call, whatever the documents' lengths, against attention document by document.

The CUDA kernel's meaning is given by a stand-in in plain torch. What is asked of torch itself is counted on the meta
device, where torch's own operation runs without numbers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.decoders import KINDS, decoder
from helpers.variable_length import StandIn, stand_in
from stages.decoders import sdpa
from stages.decoders.packed_attention import hidden_states, in_one_call, one_by_one, use_packed_attention
from stages.decoders.variable_length import KERNELS, Kernel, kernel_for
from stages.rows.packing import Batch, Document, collate

CPU = torch.device("cpu")
LENGTHS = (5, 17, 1, 30, 8)


def documents(lengths: Sequence[int] = LENGTHS) -> list[Document]:
    generator = torch.Generator().manual_seed(3)
    return [
        Document(torch.randint(1, 96, (length,), generator=generator).tolist(), 0, "toy", cut=False)
        for length in lengths
    ]


def alike() -> list[Document]:
    """Return documents of which some begin alike, one is the beginning of another, and two are the same."""
    begin = list(range(10, 30))
    rows = [[*begin, 3, 4, 5], [40, 41], [*begin[:12], 7, 8], begin, [*begin, 3, 9], [*begin, 3, 9]]
    return [Document(ids, 0, "toy", cut=False) for ids in rows]


@pytest.mark.parametrize("head_size", [8, 12, 200])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("batch", [collate(documents()), collate(alike(), share=True)], ids=["apart", "shared"])
def test_one_call_gives_the_outputs_and_gradients_of_one_call_a_document(
    batch: Batch, kv_heads: int, head_size: int
) -> None:
    kernel = Kernel(StandIn(), frozenset({torch.float32}))
    found = [
        outputs_and_gradients(attend, batch, kv_heads, head_size)
        for attend in (one_by_one, lambda *parts, **options: in_one_call(kernel, *parts, **options))
    ]
    torch.testing.assert_close(found[1], found[0])


def outputs_and_gradients(attend: Any, batch: Batch, kv_heads: int, head_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = batch.input_ids_1T.shape[1]
    parts = [
        torch.randn(1, heads, tokens, head_size, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]
    output = attend(*parts, batch.layout)
    output.square().sum().backward()
    return [output.detach(), *(part.grad for part in parts if part.grad is not None)]


@pytest.mark.parametrize("family", KINDS)
def test_documents_have_the_states_that_transformers_gives_each_alone_windows_included(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"sliding_window": 6} if "sliding_window" in KINDS[family][2] or family == "mistral" else {}
    model = decoder(family, **options)
    stock = [model.get_decoder()(torch.tensor([one.ids])).last_hidden_state[0] for one in documents()]
    kernel = stand_in(monkeypatch)
    use_packed_attention(model)
    kernel.shapes.clear()
    states = hidden_states(model, collate(documents()))
    torch.testing.assert_close(states, torch.cat(stock), atol=1e-5, rtol=1e-5)
    assert len(kernel.shapes) == 3


def trained(batch: Batch) -> tuple[Tensor, list[Tensor]]:
    model = decoder().double()
    use_packed_attention(model)
    states = batch.predicting(hidden_states(model, batch))
    states.square().sum().backward()
    return states.detach(), [value.grad for value in model.get_decoder().layers.parameters()]


def test_a_model_has_the_same_gradients_with_and_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(collate(alike(), share=True))
    stand_in(monkeypatch)
    batch = collate(alike(), share=True)
    states, gradients = trained(batch)
    torch.testing.assert_close(states, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, expected[1], atol=1e-4, rtol=1e-3)
    # A mask would cost memory in the square of the documents' lengths.
    assert "masks" not in batch.layout.__dict__


class Counted(TorchDispatchMode):
    """Counts the operations that torch is asked for, with the shapes of what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, tuple[Any, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(arg.shape) + arg.stride() for arg in args if isinstance(arg, Tensor)]
        self.calls[str(func), tuple(shapes)] += 1
        return func(*args, **kwargs or {})


def counted(batch: Batch) -> Counter[tuple[str, tuple[Any, ...]]]:
    """Return the operations of a training pass over a batch, on the meta device."""
    model = decoder(hidden_size=96, num_attention_heads=6, head_dim=16).to(torch.bfloat16)
    use_packed_attention(model)
    with Counted() as counting:
        hidden_states(model.to("meta"), batch).sum().backward()
    return counting.calls


def sharing(count: int, tokens: int) -> list[Document]:
    """Return `count` documents of one beginning that have `tokens` tokens in sequence."""
    begin = list(range(10, 30))
    own = [[40 + place] for place in range(count - 1)]
    own.append([60] * (tokens - len(begin) - len(own)))
    return [Document(begin + ids, 0, "toy", cut=False) for ids in own]


def without(found: Counter[tuple[str, tuple[Any, ...]]], *words: str) -> Counter[tuple[str, tuple[Any, ...]]]:
    """Return the operations whose names have none of these words."""
    return Counter({each: count for each, count in found.items() if not any(word in each[0] for word in words)})


def test_no_shape_depends_on_the_documents_and_attention_is_one_operation_a_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = KERNELS["cuda"]
    monkeypatch.setitem(KERNELS, "meta", replace(cuda, lacking=lambda device: None))
    layouts = [(5, 17, 1, 30, 8), (12, 12, 12, 12, 13), (57, 1, 1, 1, 1), (61,), (3,) * 20 + (1,)]
    apart = [counted(collate(documents(lengths), "meta")) for lengths in layouts]
    assert apart[0] == apart[1] == apart[2]
    # The number of documents is in the cumulative lengths alone, which are copied and given to attention. Its kernel is
    # compiled for a head size and a precision. It reads those lengths on the card, and has no plan.
    lengths_of = ("varlen", "_to_copy", "lift_fresh")
    assert without(apart[0], *lengths_of) == without(apart[3], *lengths_of) == without(apart[4], *lengths_of)
    # Shared beginnings give attention more keys and values than the sequence has tokens. They are gathered, and their
    # gradients added up, by kernels that have no plan either.
    batches = [collate(sharing(count, 61), "meta", share=True) for count in (2, 7)]
    shared = [counted(batch) for batch in batches]
    gathers = ("index_select", "index_add", "new_zeros", *lengths_of)
    for batch, found in zip(batches, shared, strict=True):
        assert (batch.input_ids_1T.shape[1], batch.layout.shared is None) == (61, False)
        assert without(found, *gathers) == without(apart[0], *gathers)
    for found in (*apart, *shared):
        names = [name for name, _ in found.elements()]
        assert len([name for name in names if "varlen" in name or "attention" in name]) == 6, found
        assert not [name for name in names if "split" in name or "scaled_dot" in name]


def test_boundaries_are_made_once_a_batch() -> None:
    one, same = (collate(documents()).layout.bounds(CPU) for _ in range(2))
    assert one is same
    with torch.inference_mode():
        first = collate(documents((3, 4))).layout.bounds(CPU)
    assert not first.queries_N.is_inference()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": torch.float32}, "float32"),
        ({"dropout": 0.1}, "no dropout"),
        ({"head_size": 264}, "264 numbers"),
        ({"lacking": "the card is too old"}, "too old"),
    ],
)
def test_why_documents_are_attended_to_one_by_one_is_said_once(
    options: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"dtype": torch.bfloat16, "head_size": 64} | options
    lacking = asked.pop("lacking", None)
    monkeypatch.setitem(KERNELS, "cpu", Kernel(StandIn(), frozenset({torch.bfloat16}), lambda device: lacking))
    with caplog.at_level(logging.WARNING):
        assert kernel_for(CPU, **asked) is None
        assert kernel_for(CPU, **asked) is None
    assert len(caplog.records) == 1
    assert reason in caplog.text


def test_autocast_decides_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(StandIn(), frozenset({torch.bfloat16}))
    monkeypatch.setitem(KERNELS, "cpu", kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernel_for(CPU, torch.float32, 8) is kernel
        # Rotated queries and keys are in float32 there, values are not.
        q, k, v = torch.randn(3, 2, 8), torch.randn(3, 2, 8), torch.randn(3, 2, 8).bfloat16()
        assert kernel(q, k, v, collate(documents((3,))).layout.bounds(CPU)).dtype == torch.bfloat16


def test_cudnn_is_off_for_a_block_on_cuda_alone() -> None:
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with sdpa.without_plans("cpu"):
        assert torch.backends.cuda.cudnn_sdp_enabled()
    with sdpa.without_plans("cuda"):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_repeated_heads_are_what_grouped_heads_see() -> None:
    query, key, value = (torch.randn(1, heads, 7, 8) for heads in (6, 2, 2))
    grouped = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    apart = scaled_dot_product_attention(query, sdpa.repeated(key, 3), sdpa.repeated(value, 3))
    torch.testing.assert_close(apart, grouped)

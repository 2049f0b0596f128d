"""Recoveries that do not fit in memory, and gradient checkpointing. What runs out is the machine's real memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from helpers.decoders import decoder
from helpers.peak import has_mark
from helpers.toy import config, recovered
from stages.adapters.registry import ADAPTERS
from stages.common.files import read_jsonl
from stages.common.machine import resident_bytes, return_freed_memory
from stages.decoders.packed_attention import use_packed_attention
from stages.errors import UserError
from stages.recover.loop import Training
from stages.recover.objectives.registry import OBJECTIVES
from stages.recover.seeds import seeded
from stages.recover.stage import run
from stages.rows.packing import Batch, Document
from stages.stage import Context

MORE_THAN_THERE_IS = 1 << 60
DOCUMENTS = [Document(list(range(3, 3 + length)), 1, "toy", cut=False) for length in (6, 3, 5)]
SHORT: dict[str, Any] = {"tokens": 600, "batch_tokens": 200, "micro_batch_tokens": 200, "validation_tokens": 50}


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make cross-entropy an objective that needs more memory than there is where a micro-batch has more tokens."""
    plain = OBJECTIVES["cross_entropy"]

    def at_most(tokens: int) -> None:
        def build(*arguments: Any) -> Callable[[Tensor, Batch], Mapping[str, Tensor]]:
            summed = plain.build(*arguments)

            def hungry(hidden_TE: Tensor, batch: Batch) -> Mapping[str, Tensor]:
                if len(hidden_TE) > tokens:
                    torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
                return summed(hidden_TE, batch)

            return hungry

        monkeypatch.setitem(OBJECTIVES, "cross_entropy", replace(plain, build=build))

    return at_most


def test_out_of_memory_halves_the_micro_batch_says_so_and_gives_the_same_result(
    tmp_path: Path, fits: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    whole, _ = recovered(tmp_path, config(**SHORT), name="whole")
    fits(80)
    halved, summary = recovered(tmp_path, config(**SHORT), name="halved")

    size = summary["training"]["micro_batch_tokens"]
    said = [record.getMessage() for record in caplog.records if "do not fit in memory" in record.getMessage()]
    assert len(said) == 2
    assert "DefaultCPUAllocator" in said[0]
    assert said[1].endswith(f"going on with {size}; the global batch stays.")
    for one, other in zip(*(read_jsonl(output / "history.jsonl") for output in (whole, halved)), strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    first, second = (load_file(output / "adapter" / "adapter_model.safetensors") for output in (whole, halved))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4)

    # A run that is stopped and goes on takes the smaller cuts at once, so it ends in the same bytes.
    resumed, inputs = tmp_path / "resumed", {"model": tmp_path / "base", "data": tmp_path / "data"}
    with pytest.raises(KeyboardInterrupt):
        run(config(**SHORT), inputs, Context(output=resumed, checkpoint_seconds=0, log=_stop_after_two_steps))
    caplog.clear()
    run(config(**SHORT), inputs, Context(output=resumed, checkpoint_seconds=0))
    assert not caplog.records
    for file in ("adapter/adapter_model.safetensors", "history.jsonl", "recovery.json"):
        assert (resumed / file).read_bytes() == (halved / file).read_bytes(), file


def _stop_after_two_steps(point: dict[str, Any]) -> None:
    if point["step"] == 2:
        raise KeyboardInterrupt


def test_a_single_row_that_does_not_fit_is_an_error_with_the_remedies(
    tmp_path: Path, fits: Callable[[int], None]
) -> None:
    fits(20)
    with pytest.raises(UserError, match=r"single document of \d\d tokens .*sequence_length.*gradient_checkpointing"):
        recovered(tmp_path, config(**SHORT))


def _training(
    model: PreTrainedModel,
    *,
    checkpointing: bool,
    dtype: str = "float32",
    name: str = "rora",
    dropout: float = 0.1,
    targets: list[str] | None = ["o_proj", "down_proj"],  # noqa: B006
) -> Training:
    adapter = {"name": name, "dropout": dropout} | ({} if targets is None else {"targets": targets})
    settings = config(adapter, gradient_checkpointing=checkpointing)
    use_packed_attention(model)
    with seeded(0):
        ADAPTERS[name].attach(model, settings.adapter, ())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return Training(
        model=model,
        objective=OBJECTIVES["cross_entropy"].build(model, None, None, dtype, Context(output=Path())),
        stream=cast(Any, None),
        measure=lambda tokens: {},
        config=settings.recover,
        dtype=dtype,
        seed=0,
        context=Context(output=Path()),
        identity={},
    )


def _backward(training: Training, documents: list[Document]) -> None:
    training.model.train()
    with seeded(0):
        (training._summed(documents)["loss"] / 10).backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    plain, checkpointing = (_training(decoder(family), checkpointing=on) for on in (False, True))
    for training in (plain, checkpointing):
        _backward(training, DOCUMENTS)

    for name, parameter in plain.parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        torch.testing.assert_close(checkpointing.parameters[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("adapter", "dropout"), [("rora", 0.0), ("rora", 0.1), ("dora", 0.0)])
def test_gradient_checkpointing_gives_the_same_gradients_where_adapters_are_cast_once_a_step(
    adapter: str, dropout: float
) -> None:
    """In bfloat16 projections of one input are one operation, whose outputs wait for each other. Each layer is run
    again in the backward pass, and must not meet what waited in the first pass."""
    found = []
    for on in (False, True):
        training = _training(
            decoder().bfloat16(), checkpointing=on, dtype="bfloat16", name=adapter, dropout=dropout, targets=None
        )
        training.model.train()
        with training.casts.step():
            for documents in (DOCUMENTS, DOCUMENTS[:2]):
                _backward(training, documents)
                training.casts.collect()
        assert training.casts._maps
        found.append({name: parameter.grad for name, parameter in training.parameters.items()})
    plain, checkpointing = found
    for name, gradient in plain.items():
        assert gradient is not None
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(checkpointing[name], gradient, rtol=0, atol=0, msg=name)


@has_mark
def test_gradient_checkpointing_keeps_a_fraction_of_the_activations() -> None:
    documents = [Document([7] * 96, 1, "toy", cut=False)] * 20
    kept = []
    for on in (False, True):
        training = _training(decoder(num_hidden_layers=8), checkpointing=on)
        training.model.train()
        return_freed_memory()
        before = resident_bytes("VmRSS") or 0
        loss = training._summed(documents)["loss"]
        return_freed_memory()
        kept.append((resident_bytes("VmRSS") or 0) - before)
        del loss

    assert kept[1] < 0.4 * kept[0], kept

"""The estimate of what a recovery needs: within a tenth of what its steps hold, and refused only where nothing fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from helpers.decoders import decoder
from helpers.peak import held_bytes
from helpers.packings import needs_library
from helpers.toy import adapter_config, config, data_artifact, model_artifact, recovered
from stages.adapters.registry import ADAPTERS
from stages.decoders.packed_attention import use_packed_attention
from stages.decoders.quantised import hold
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.recover import estimate as counted
from stages.recover.config import RecoverStageConfig
from stages.recover.estimate import GIB, Work, estimate, longest_micro_batch, weights_bytes
from stages.recover.loop import Training
from stages.recover.objectives.registry import objective_of
from stages.recover.plan import adapter_of
from stages.recover.seeds import seeded
from stages.recover.stage import material_of, trained
from stages.rows.packing import Document
from stages.stage import Context

TOKENS, LENGTH = 512, 64
SIZES = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "num_key_value_heads": 2}


class Rows:
    """Documents of random tokens, all of one length, in the place of a file's."""

    path = Path()

    def __len__(self) -> int:
        return 1000

    def drawn(self, documents: int) -> int:
        return documents

    def documents(self, start: int = 0) -> Iterator[Document]:
        drawn = torch.Generator().manual_seed(start)
        while True:
            yield Document(torch.randint(3, 96, (LENGTH,), generator=drawn).tolist(), 1, "", cut=False)


def small(dtype: torch.dtype, layers: int = 6) -> PreTrainedModel:
    return decoder(num_hidden_layers=layers, vocab_size=768, **SIZES).to(dtype)


def settings(adapter: dict[str, Any], dtype: str, **recover: Any) -> RecoverStageConfig:
    steps = {"tokens": 3 * TOKENS, "batch_tokens": TOKENS, "micro_batch_tokens": TOKENS, "sequence_length": LENGTH}
    return config(adapter, dtype=dtype, loss="all", **steps | {"curve_every": 10**6} | recover)


def taken(own: RecoverStageConfig, root: Path) -> tuple[int, Work]:
    """Return the most bytes that three steps of a recovery hold beside weights, and the quantities that decide them."""
    (objective, options), adapter = objective_of(own.recover), adapter_of(own)
    model = small(getattr(torch, "float32" if adapter.trained is not None else own.dtype))
    shape = DecoderShape.from_config(model.config.to_dict())
    teacher = small(getattr(torch, own.dtype)) if objective.taught else None
    use_packed_attention(model)
    with seeded(0):
        adapter.attach(model, own.adapter, ())
    context = Context(output=root)
    loss = objective.build(model, options, teacher, own.dtype, context)

    def train() -> None:
        Training(
            model=model,
            objective=loss,
            stream=cast(Any, Rows()),
            measure=lambda tokens: {"validation_loss": 0.0},
            config=own.recover,
            dtype=own.dtype,
            seed=0,
            context=context,
            identity={},
        ).run()

    held = held_bytes(train, nn.ModuleList([model, *([teacher] if teacher is not None else [])]))
    work = Work(config=own, shape=shape, teacher=None if teacher is None else shape, device="cpu", tokens=TOKENS)
    return held, work


RECOVERIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rora": ({"name": "rora", "rank": 16}, {}),
    "lora, large": ({"name": "lora", "rank": 64}, {}),
    "dora": ({"name": "dora", "rank": 16}, {}),
    "some targets": ({"name": "rora", "rank": 16, "targets": ["q_proj", "down_proj"]}, {}),
    "dropout": ({"name": "lora", "rank": 16, "dropout": 0.1}, {}),
    "full": ({"name": "full"}, {}),
    "two micro-batches": ({"name": "rora", "rank": 64}, {"batch_tokens": 2 * TOKENS, "tokens": 6 * TOKENS}),
    "full, two micro-batches": ({"name": "full"}, {"batch_tokens": 2 * TOKENS, "tokens": 6 * TOKENS}),
    "distillation": ({"name": "rora", "rank": 16}, {"objective": "distillation"}),
    "full, distillation": ({"name": "full"}, {"objective": "distillation"}),
    "checkpointing": ({"name": "rora", "rank": 16}, {"gradient_checkpointing": True}),
    "checkpointing, distillation": (
        {"name": "rora", "rank": 16},
        {"gradient_checkpointing": True, "objective": "distillation"},
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recovery", RECOVERIES)
def test_the_estimate_is_within_a_tenth_of_what_steps_hold(recovery: str, dtype: str, tmp_path: Path) -> None:
    adapter, options = RECOVERIES[recovery]
    held, work = taken(settings(adapter, dtype, **options), tmp_path)
    assert beside_weights(work) == pytest.approx(held, rel=0.1)


def beside_weights(work: Work) -> int:
    need, own = counted.estimate(work), ADAPTERS[work.config.adapter.name]
    known = 0 if work.full else 4 * own.parameters(work.config.adapter, work.shape)
    return need.total - need.weights - need.teacher - known


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_knows_how_many_numbers_it_trains(name: str) -> None:
    model, own = decoder(), adapter_config(name)
    shape = DecoderShape.from_config(model.config.to_dict())
    ADAPTERS[name].attach(model, own, ())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert ADAPTERS[name].parameters(own, shape) == trained


def test_ranks_of_single_layers_and_parts_of_a_model_are_counted() -> None:
    for name, options in (
        ("rora", {"ranks": {"down_proj": 7, "layers.1.q_proj": 2}}),
        ("full", {"weights": "decoder"}),
        ("full", {"weights": "projections"}),
    ):
        model, own = decoder(), adapter_config(name, **options)
        shape = DecoderShape.from_config(model.config.to_dict())
        ADAPTERS[name].attach(model, own, ())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert ADAPTERS[name].parameters(own, shape) == trained


@needs_library
@pytest.mark.parametrize("way", ["nf4", "8bit"])
def test_weights_in_few_bits_are_counted_as_they_are_held(way: str) -> None:
    model = small(torch.bfloat16)
    shape = DecoderShape.from_config(model.config.to_dict())
    kept = sum(parameter.nbytes for parameter in hold(model, way, "cpu").parameters())
    packed = [module.held for module in model.modules() if hasattr(module, "held")]
    kept += sum(codes.nbytes + state.absmax.nbytes for codes, state in packed)
    assert weights_bytes(shape, way, 2) == pytest.approx(kept, rel=0.01)


def test_a_recovery_that_fits_with_one_row_at_a_time_is_not_refused_and_one_that_never_fits_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": model_artifact(tmp_path / "base"), "data": data_artifact(tmp_path / "data")}
    own, found = config(), []
    monkeypatch.setattr(counted, "free_memory_bytes", lambda device: found.append(device) or 0)
    with pytest.raises(UserError, match=r"needs about [\d.]+ GiB on cpu, even with \d+ tokens") as refused:
        recovered(tmp_path, own)
    material = material_of(own, inputs, "cpu")
    shape = material.shape
    assert shape is not None
    longest = int(str(refused.value).partition("even with ")[2].split()[0])
    assert longest < own.recover.micro_batch_tokens
    least = estimate(Work(config=own, shape=shape, teacher=None, device="cpu", tokens=longest)).total
    assert least < estimate(Work(config=own, shape=shape, teacher=None, device="cpu", tokens=128)).total
    monkeypatch.setattr(counted, "free_memory_bytes", lambda device: least)
    recovered(tmp_path, own, name="fits")
    monkeypatch.setattr(counted, "free_memory_bytes", lambda device: 0)
    (tmp_path / "shared").mkdir()
    trained(own, material, Context(output=tmp_path / "shared", engine="ddp"))


LLAMA_7B = DecoderShape(
    family="llama", hidden=4096, head_dim=128, vocabulary=32000, tied=False, layers=(LayerShape(32, 32, 11008),) * 32
)

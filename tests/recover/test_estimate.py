"""The estimate of what a recovery needs: near what its steps hold, and refused only where no micro-batch would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from helpers.decoders import decoder
from helpers.packings import needs_library
from helpers.peak import held_bytes
from helpers.toy import adapter_config, config, data_artifact, model_artifact, recovered
from stages.adapters.registry import ADAPTERS
from stages.common.units import GIB
from stages.decoders.packed_attention import use_packed_attention
from stages.decoders.quantised import hold
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.recover import estimate as counted
from stages.recover.config import RecoverConfig, RecoverStageConfig
from stages.recover.estimate import Work, check_memory, estimate, longest_micro_batch, weights_bytes
from stages.recover.loop import Training
from stages.recover.objectives.distillation import DistillationConfig
from stages.recover.objectives.registry import objective_of
from stages.recover.plan import adapter_of
from stages.recover.seeds import seeded
from stages.recover.stage import material_of, trained
from stages.rows.packing import Document
from stages.stage import Context

TOKENS, LENGTH = 384, 64
SIZES = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "num_key_value_heads": 2}
MODEL = {"num_hidden_layers": 4, "vocab_size": 768, **SIZES}
OF_WORDS = {"num_hidden_layers": 1, "vocab_size": 8192, **SIZES}
"""A model whose logits need the most."""
RORA = {"name": "rora", "rank": 16}
DISTILLED = {"objective": "distillation"}
TWICE = {"batch_tokens": 2 * TOKENS, "tokens": 4 * TOKENS}
LLAMA_7B = DecoderShape(
    family="llama", hidden=4096, head_dim=128, vocabulary=32000, tied=False, layers=(LayerShape(32, 32, 11008),) * 32
)


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


def settings(adapter: dict[str, Any], dtype: str, **recover: Any) -> RecoverStageConfig:
    steps = {"tokens": 2 * TOKENS, "batch_tokens": TOKENS, "micro_batch_tokens": TOKENS, "sequence_length": LENGTH}
    return config(adapter, dtype=dtype, loss="all", **steps | {"curve_every": 10**6} | recover)


def beside_weights(own: RecoverStageConfig, root: Path, family: str = "llama", **sizes: Any) -> tuple[int, int]:
    """Return the bytes beside weights and the adapter's parameters: the estimate, and what two steps hold."""
    (objective, options), adapter = objective_of(own.recover), adapter_of(own)
    model = decoder(family, **sizes).to(getattr(torch, "float32" if adapter.trained is not None else own.dtype))
    shape = DecoderShape.from_config(model.config.to_dict())
    teacher = decoder(family, **sizes).to(getattr(torch, own.dtype)) if objective.taught else None
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
    taught_by = None if teacher is None else shape
    need = estimate(Work(config=own, shape=shape, teacher=taught_by, device="cpu", tokens=TOKENS))
    known = 0 if adapter.trained is not None else 4 * adapter.parameters(own.adapter, shape)
    return need.total - need.weights - need.teacher - known, held


RECOVERIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rora": (RORA, {}),
    "lora of a high rank": ({"name": "lora", "rank": 64}, {}),
    "dora": ({"name": "dora", "rank": 16}, {}),
    "two targets": ({**RORA, "targets": ["q_proj", "down_proj"]}, {}),
    "dropout": ({"name": "lora", "rank": 16, "dropout": 0.1}, {}),
    "miss": ({"name": "miss", "rank": 16}, {}),
    "prefix": ({"name": "prefix"}, {}),
    "full": ({"name": "full"}, {}),
    "projections": ({"name": "full", "weights": "projections"}, {}),
    "two micro-batches": ({"name": "rora", "rank": 64}, TWICE),
    "full, two micro-batches": ({"name": "full"}, TWICE),
    "distillation": (RORA, DISTILLED),
    "full, distillation": ({"name": "full"}, DISTILLED),
    "checkpointing": (RORA, {"gradient_checkpointing": True}),
    "checkpointing, dora, distillation": ({"name": "dora", "rank": 16}, {"gradient_checkpointing": True, **DISTILLED}),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recovery", RECOVERIES)
def test_the_estimate_is_within_a_tenth_of_what_steps_hold(recovery: str, dtype: str, tmp_path: Path) -> None:
    adapter, options = RECOVERIES[recovery]
    found, held = beside_weights(settings(adapter, dtype, **options), tmp_path, **MODEL)
    assert found == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        (RORA, {}),
        ({"name": "full"}, {}),
        *(
            (RORA, DISTILLED | {"distillation": DistillationConfig(**more)})
            for more in (
                {},
                {"divergence": "reverse", "weight": 0.5},
                {"divergence": "jensen"},
                {"temperature": 2.0},
                {"teacher_top_k": 16},
            )
        ),
        ({"name": "full"}, DISTILLED),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_logits_are_counted(adapter: dict[str, Any], options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    found, held = beside_weights(settings(adapter, dtype, **options), tmp_path, **OF_WORDS)
    assert found == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "olmo2", "granite"])
def test_other_families_are_counted(family: str, tmp_path: Path) -> None:
    more = {"head_dim": 32, "sliding_window": 4096} if family in ("qwen3", "gemma2") else {}
    found, held = beside_weights(settings(RORA, "bfloat16"), tmp_path, family, **MODEL, **more)
    assert found == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["hira", "series", "parallel"])
def test_adapters_that_autograd_differentiates_are_within_a_fifth(name: str, dtype: str, tmp_path: Path) -> None:
    """Nothing is kept of what comes before the first adapter, which the estimate does not know; so of few layers."""
    own = settings({"name": name, **({"rank": 16} if name == "hira" else {"bottleneck": 32})}, dtype)
    found, held = beside_weights(own, tmp_path, **MODEL | {"num_hidden_layers": 8})
    assert found == pytest.approx(held, rel=0.2)


ALSO: list[dict[str, Any]] = [
    {"name": "rora", "ranks": {"down_proj": 7, "layers.1.q_proj": 2}},
    {"name": "full", "weights": "decoder"},
    {"name": "full", "weights": "projections"},
]


@pytest.mark.parametrize("options", [*({"name": name} for name in ADAPTERS), *ALSO])
def test_an_adapter_knows_how_many_numbers_it_trains(options: dict[str, Any]) -> None:
    model, own = decoder(), adapter_config(**options)
    shape = DecoderShape.from_config(model.config.to_dict())
    ADAPTERS[own.name].attach(model, own, ())
    numbers = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert ADAPTERS[own.name].parameters(own, shape) == numbers


@needs_library
@pytest.mark.parametrize("way", ["nf4", "8bit"])
def test_weights_in_few_bits_are_counted_as_they_are_held(way: str) -> None:
    model = decoder(**MODEL).to(torch.bfloat16)
    shape = DecoderShape.from_config(model.config.to_dict())
    kept = sum(parameter.nbytes for parameter in hold(model, way, "cpu").parameters())
    for module in model.modules():
        if hasattr(module, "held"):
            codes, state = module.held
            kept += codes.nbytes + state.absmax.nbytes
    assert weights_bytes(shape, way, 2) == pytest.approx(kept, rel=0.01)


def test_only_what_would_not_fit_with_one_row_at_a_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 0
    monkeypatch.setattr(counted, "free_memory_bytes", lambda device: free)
    own = config()
    with pytest.raises(UserError, match=r"needs about [\d.]+ GiB on cpu, even with \d+ tokens at a time \(") as refused:
        recovered(tmp_path, own)
    longest = int(str(refused.value).partition("even with ")[2].split()[0])
    inputs = {"model": tmp_path / "base", "data": tmp_path / "data"}
    material = material_of(own, inputs, "cpu")
    assert material.shape is not None
    work = Work(config=own, shape=material.shape, teacher=None, device="cpu", tokens=longest)
    free = estimate(work).total
    assert free < estimate(replace(work, tokens=own.recover.micro_batch_tokens)).total
    recovered(tmp_path, own, name="fits")
    free -= 1
    with pytest.raises(UserError, match="even with"):
        recovered(tmp_path, own, name="does not")
    # Processes share weights or memory, so what one of them needs is not known.
    trained(own, material, Context(output=tmp_path / "does not", engine="ddp"))


def test_a_teacher_whose_answers_may_all_be_in_a_cache_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counted, "free_memory_bytes", lambda device: 0)
    base = model_artifact(tmp_path / "base")
    inputs = {"model": base, "data": data_artifact(tmp_path / "data"), "teacher": base}
    for cached in (False, True):
        options = DistillationConfig(teacher_top_k=8, cache_teacher=cached)
        own = config(objective="distillation", distillation=options)
        (tmp_path / str(cached)).mkdir()
        with pytest.raises(UserError, match="even with") as refused:
            trained(own, material_of(own, inputs, "cpu"), Context(output=tmp_path / str(cached)))
        tokens = int(str(refused.value).partition("even with ")[2].split()[0])
        shape = material_of(own, inputs, "cpu").shape
        assert shape is not None
        need = estimate(Work(config=own, shape=shape, teacher=None if cached else shape, device="cpu", tokens=tokens))
        assert bool(need.teacher) is not cached


def default_of_a_7b(**options: Any) -> Work:
    recover = RecoverConfig(batch_tokens=512, objective="distillation")
    own = RecoverStageConfig(
        adapter=adapter_config("rora", rank=64), recover=replace(recover, **options), dtype="bfloat16", seed=0
    )
    tokens = longest_micro_batch(own.recover)
    return Work(config=own, shape=LLAMA_7B, teacher=LLAMA_7B, device="cuda", tokens=tokens)


def test_the_default_recovery_of_a_whole_7b_needs_32_gb_and_in_4_bits_16() -> None:
    assert 32 < estimate(default_of_a_7b()).total / GIB < 35
    fewer = DistillationConfig(teacher_weights="nf4")
    assert estimate(default_of_a_7b(base="nf4", distillation=fewer, gradient_checkpointing=True)).total < 13 * GIB


def test_a_refusal_names_what_needs_less_in_the_order_in_which_to_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted, "free_memory_bytes", lambda device: 24 * GIB)
    with pytest.raises(UserError, match=r"12\.6 weights, 12\.6 teacher") as refused:
        check_memory(default_of_a_7b())
    ways = ["sequence_length", "gradient_checkpointing=true", "base=nf4", "distillation.teacher_weights=nf4"]
    places = [str(refused.value).index(f"recover.{way}") for way in ways]
    assert places == sorted(places)


def test_a_step_that_ends_with_a_whole_row_may_go_beyond_its_tokens() -> None:
    assert longest_micro_batch(RecoverConfig(batch_tokens=512, micro_batch_tokens=1024, sequence_length=512)) == 1023
    assert longest_micro_batch(RecoverConfig(batch_tokens=4096, micro_batch_tokens=1024, sequence_length=512)) == 1152

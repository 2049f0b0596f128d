"""The contract of every family: whatever is cut, the model stays what its shape says, runs, saves, loads and trains."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
from transformers import DynamicCache, PreTrainedModel
from transformers.models.llama import modeling_llama

from helpers.decoders import KINDS, decoder, token_ids
from stages.common.files import read_json
from stages.decoders.anatomy import decoder_anatomy
from stages.decoders.checkpoint import count_parameters, load_model, save_cut_model
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.model.weights import summarise
from stages.prune.groups import Kept, Selection, keep_all, kept_shape
from stages.prune.surgery import add_output_bias, cut

ALL = keep_all(LayerShape(6, 3, 40))
HEADS, QUERIES, CHANNELS = [0, 1, 4, 5], [0, 3, 4], list(range(3, 34))
FEWER_HIDDEN = [channel for channel in range(48) if channel % 8 != 5]
SELECTIONS: dict[str, Selection] = {
    "heads": Selection([Kept(HEADS, [0, 2], ALL.mlp)] * 3),
    "queries": Selection([Kept(QUERIES, ALL.kv_heads, ALL.mlp)] * 3),
    "channels": Selection([Kept(ALL.heads, ALL.kv_heads, CHANNELS)] * 3),
    "hidden": Selection([ALL] * 3, FEWER_HIDDEN),
    "heads and hidden": Selection([Kept(HEADS, [0, 2], ALL.mlp)] * 3, FEWER_HIDDEN),
    "layers": Selection([None, ALL, ALL]),
    "attention": Selection([Kept([], [], ALL.mlp), ALL, ALL]),
    "mlp": Selection([ALL, Kept(ALL.heads, ALL.kv_heads, []), ALL]),
    "all at once": Selection([Kept([], [], CHANNELS), None, Kept([2], [1], ALL.mlp)], FEWER_HIDDEN),
}
"""What stays, by granularity. Of 48 hidden channels 42 stay, which six heads divide and four don't."""
GEMMAS = ("gemma2", "gemma3_text")
TIED = ("llama", "qwen2", *GEMMAS)


def architecture(family: str, kind: str) -> str:
    """The `model_type` that this is saved as."""
    if kind == "heads and hidden" and family == "llama":
        return "mistral"
    refused = kind == "heads and hidden" and family in GEMMAS
    return f"pruned_{family}" if refused or kind in ("attention", "mlp", "all at once") else family


@dataclass(frozen=True)
class Case:
    family: str
    kind: str
    dense: PreTrainedModel
    model: PreTrainedModel
    shape: DecoderShape


@cache
def case(family: str, kind: str) -> Case:
    """A family's model with one granularity cut; only read by the tests."""
    # Removed channels change what epsilon weighs, so it is small here.
    dense = decoder(family, tie_word_embeddings=family in TIED, rms_norm_eps=1e-10)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in dense.parameters():
            if parameter.ndim == 1:  # norms too: none of their weights is another's
                parameter += 0.2 * torch.randn(parameter.shape, generator=noise)
    model = copy.deepcopy(dense)
    cut(model, SELECTIONS[kind])
    shape = kept_shape(DecoderShape.from_config(dense.config.to_dict()), SELECTIONS[kind])
    return Case(family, kind, dense, model, shape)


def zeroed(case: Case) -> PreTrainedModel:
    """The dense model with every weight of the removed groups set to zero.

    Norms over all heads (olmo2's of q and k) see the zeros: their mean of squares is that of the heads that stay, times
    the share that stays, which their weights make up for.
    """
    model, selection = copy.deepcopy(case.dense), SELECTIONS[case.kind]
    anatomy = decoder_anatomy(model)
    with torch.no_grad():
        for layer, keep in zip(anatomy.layers, selection.layers, strict=True):
            keep = keep or Kept([], [], [])
            for projection in layer.projections:
                size = projection.weight.shape[projection.axis]
                if projection in layer.mlp:
                    rows = keep.mlp
                else:
                    heads = keep.heads if projection.per_query_head else keep.kv_heads
                    rows = [head * layer.head_dim + row for head in heads for row in range(layer.head_dim)]
                gone = [row for row in range(size) if row not in rows]
                projection.weight.index_fill_(projection.axis, torch.tensor(gone, dtype=torch.long), 0)
                bias = projection.linear.bias
                if bias is not None and projection.axis == 0:
                    projection.part(bias)[gone] = 0
                elif bias is not None and not rows:
                    bias.zero_()
            for norm in layer.head_norms:
                share = len(keep.heads) / 6 if norm.per_query_head else len(keep.kv_heads) / 3
                norm.module.weight *= share**0.5
        if selection.hidden is not None:
            gone = [channel for channel in range(48) if channel not in selection.hidden]
            for place in anatomy.hidden:
                place.weight.index_fill_(place.axis, torch.tensor(gone), 0)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(token_ids()).logits
    return found


@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("family", KINDS)
class TestContract:
    def test_the_cut_model_has_the_sizes_that_its_shape_counts(self, family: str, kind: str) -> None:
        found = case(family, kind)
        assert count_parameters(found.model) == found.shape.parameters()
        assert tuple(layer.shape for layer in decoder_anatomy(found.model).layers) == found.shape.layers

    def test_cutting_equals_zeroing(self, family: str, kind: str) -> None:
        found = case(family, kind)
        torch.testing.assert_close(logits(found.model), logits(zeroed(found)), rtol=1e-3, atol=1e-4)

    def test_the_cache_changes_nothing(self, family: str, kind: str) -> None:
        model, ids = case(family, kind).model, token_ids(2, 12)
        seen = DynamicCache(config=model.config)
        with torch.no_grad():
            steps = [
                model(part, past_key_values=seen, use_cache=True).logits for part in torch.split(ids, [9, 1, 1, 1], 1)
            ]
            torch.testing.assert_close(torch.cat(steps, 1), model(ids).logits, rtol=1e-3, atol=1e-4)
        options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
        assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))

    def test_gradients_reach_every_weight_that_is_left(self, family: str, kind: str) -> None:
        model = case(family, kind).model
        loss = model(token_ids(), labels=token_ids()).loss
        for gradient in torch.autograd.grad(loss, list(model.parameters())):
            assert gradient.isfinite().all()
            assert gradient.any()

    def test_saved_and_loaded_it_computes_the_same_bits(self, family: str, kind: str, tmp_path: Path) -> None:
        found = case(family, kind)
        save_cut_model(found.model, found.shape, tmp_path / "cut", like=tmp_path, dtype="float32", record={})
        loaded = load_model(tmp_path / "cut", dtype="float32")
        assert torch.equal(logits(loaded), logits(found.model))
        assert summarise(tmp_path / "cut")["parameters"] == found.shape.parameters()
        assert DecoderShape.from_config(read_json(tmp_path / "cut" / "config.json")).layers == found.shape.layers
        assert loaded.config.model_type == architecture(family, kind)

    def test_tied_embeddings_stay_tied(self, family: str, kind: str) -> None:
        model = case(family, kind).model
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (family in TIED)


@pytest.mark.parametrize("family", KINDS)
def test_biases_that_compensation_adds_are_counted_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = copy.deepcopy(case(family, "mlp").model)
    add_output_bias(model)
    for layer in decoder_anatomy(model).layers:
        for projection in (p for p in layer.projections if p.axis == 1):
            torch.nn.init.normal_(projection.linear.bias, generator=torch.Generator().manual_seed(layer.index))
    shape = dataclasses.replace(case(family, "mlp").shape, output_bias=True)
    assert count_parameters(model) == shape.parameters()
    save_cut_model(model, shape, tmp_path / "cut", like=tmp_path, dtype="float32", record={})
    assert torch.equal(logits(load_model(tmp_path / "cut", dtype="float32")), logits(model))
    assert DecoderShape.from_config(read_json(tmp_path / "cut" / "config.json")) == shape


@pytest.mark.parametrize("family", KINDS)
def test_cutting_twice_is_cutting_once(family: str) -> None:
    once, twice = (copy.deepcopy(case(family, "heads").dense) for _ in range(2))
    cut(once, Selection([Kept([0, 1], [0], [0, 39]), None, ALL], FEWER_HIDDEN[:21]))
    cut(twice, Selection([Kept(HEADS, [0, 2], [0, 1, 39]), ALL, ALL], FEWER_HIDDEN))
    cut(twice, Selection([Kept([0, 1], [0], [0, 2]), None, ALL], list(range(21))))
    torch.testing.assert_close(logits(twice), logits(once), rtol=1e-3, atol=1e-4)


def test_an_independent_dependency_analysis_finds_the_same_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rotary angles, which act inside a head and tie no two heads; the analysis does not end with them."""
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda query, key, cos, sin: (query, key))
    model = decoder(num_key_value_heads=6, num_hidden_layers=2)
    model.set_attn_implementation("eager")
    anatomy = decoder_anatomy(model)
    attention, mlp = anatomy.layers[1].attention, anatomy.layers[1].mlp
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, token_ids(1, 5), output_transform=lambda output: output.logits, verbose=False
    )

    def group(module: torch.nn.Module, prune: Any, indices: list[int]) -> set[tuple[torch.Tensor, int]]:
        """Every parameter that loses `indices` with those of `module`, and the axis."""
        found: set[tuple[torch.Tensor, int]] = set()
        for dependency, lost in graph.get_pruning_group(module, prune, idxs=indices):
            target = dependency.target.module
            if isinstance(target, torch.nn.Linear | torch.nn.Embedding | torch.nn.Parameter):
                assert lost == indices
                rows = isinstance(target, torch.nn.Parameter) or (
                    isinstance(target, torch.nn.Linear) and graph.is_out_channel_pruning_fn(dependency.handler)
                )
                weight = target if isinstance(target, torch.nn.Parameter) else target.weight
                found.add((weight, 0 if rows else 1))
        return found

    out = torch_pruning.prune_linear_out_channels
    head = group(attention[1].linear, out, list(range(8, 16)))
    assert head == {(projection.weight, projection.axis) for projection in attention}
    assert group(mlp[0].linear, out, [3]) == {(projection.weight, projection.axis) for projection in mlp}
    channel = group(model.get_input_embeddings(), torch_pruning.prune_embedding_out_channels, [5])
    assert channel == {(place.weight, place.axis) for place in anatomy.hidden}

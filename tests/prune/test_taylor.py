"""Taylor scores against their definition, from gradients that autograd keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.decoders import decoder, token_ids
from helpers.peak import has_mark, peak_bytes
from stages.decoders.anatomy import Projection, decoder_anatomy
from stages.prune.statistics import gradients, taylor
from stages.prune.statistics.taylor import EXPANSIONS, slice_scores

TERMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "vectorize": lambda w, g, a: w * g,
    "param_first": lambda w, g, a: (w * g).abs(),
    "param_second": lambda w, g, a: (w * a * w).abs(),
    "param_mix": lambda w, g, a: (w * g - w * a * w / 2).abs(),
}


def kept_gradients(model: PreTrainedModel, ids: Tensor) -> dict[int, Tensor]:
    """Return the gradient of every parameter, by identity."""
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    found = {id(p): p.grad.double() for p in model.parameters() if p.grad is not None}
    model.zero_grad()
    return found


def by_definition(model: PreTrainedModel, projections: list[Projection], ids: Tensor, name: str) -> list[Tensor]:
    singles = [kept_gradients(model, sample[None]) for sample in ids]
    whole, found = kept_gradients(model, ids), []
    for p in projections:
        fisher = sum((single[id(p.linear.weight)] ** 2 for single in singles), torch.zeros(())) / len(ids)
        weight, gradient, second = (
            p.part(t.detach().double()) for t in (p.linear.weight, whole[id(p.linear.weight)], fisher)
        )
        terms = TERMS[name](weight, gradient, second)
        found.append((terms.sum(1 - p.axis) if terms.dim() > 1 else terms).abs())
    return found


def both_sides(model: PreTrainedModel) -> list[Projection]:
    """Return one layer's projections, two parts of one, and all matrices and norms along the hidden channels."""
    anatomy = decoder_anatomy(model)
    root = anatomy.layers[1].projections[0].linear
    hidden: list[Any] = [(place.module, place.axis) for place in anatomy.hidden if place.parameter == "weight"]
    return [
        *anatomy.layers[1].projections,
        *(Projection("part", root, axis, start=8, size=16) for axis in (0, 1)),
        *(Projection("hidden", module, axis) for module, axis in hidden),
    ]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.mean()))


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("llama", True), ("gemma3_text", True), ("phi3", False), ("granite", True)]
)
def test_rows_columns_parts_embeddings_and_norms_score_by_the_definition(
    family: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taylor, "BLOCK", 4 * 48 * 7)  # blocks that divide nothing evenly
    monkeypatch.setattr(gradients, "LOGITS", 3 * 24 * 96)  # the head takes three sequences, then one
    model, ids = decoder(family, tie_word_embeddings=tied), token_ids()
    ids[:, 3] = ids[0, 5]  # a token that occurs more than once
    ids[1, 7:] = 0  # padding, whose embedding has no gradient
    projections = both_sides(model)
    assert len({id(p.linear.weight) for p in projections}) < len(projections)
    found = slice_scores(model, projections, ids, EXPANSIONS)
    for name in EXPANSIONS:
        assert_equal(found[name], by_definition(model, projections, ids, name))


@pytest.mark.parametrize("name", EXPANSIONS)
def test_an_expansion_scores_the_same_alone(name: str) -> None:
    model, ids = decoder(), token_ids()
    projections = both_sides(model)
    assert_equal(
        slice_scores(model, projections, ids, [name])[name], slice_scores(model, projections, ids, EXPANSIONS)[name]
    )


@pytest.mark.parametrize("graph", [2**31, 1])
def test_what_lies_below_the_first_weight_changes_nothing(graph: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "GRAPH", graph)
    model, ids = decoder(), token_ids()
    last = decoder_anatomy(model).layers[2].projections
    head = [Projection("head", model.get_output_embeddings(), 1)]
    everything = slice_scores(model, [*both_sides(model), *last, *head], ids, ["param_mix"])["param_mix"]
    for own, expected in ((last, everything[-8:-1]), (head, everything[-1:])):
        assert_equal(slice_scores(model, own, ids, ["param_mix"])["param_mix"], expected)


def test_the_model_is_left_as_it_was() -> None:
    model = decoder()
    model.model.norm.weight.requires_grad_(False)
    slice_scores(model, both_sides(model), token_ids(), EXPANSIONS)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]


@has_mark
@pytest.mark.parametrize("name", ["param_first", "param_mix"])
def test_no_gradient_is_held(name: str) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
    model, ids = decoder(num_hidden_layers=12, **sizes), token_ids(length=8)
    projections = [projection for layer in decoder_anatomy(model).layers for projection in layer.projections]
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert peak_bytes(lambda: slice_scores(model, projections, ids, [name])) < 0.4 * weights

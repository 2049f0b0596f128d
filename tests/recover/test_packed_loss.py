"""The packed forward pass and the chunked head against the plain way: each document alone, with labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedModel

from helpers.decoders import KINDS, decoder
from stages.decoders.logits import Logits
from stages.decoders.packed_attention import hidden_states, use_packed_attention
from stages.errors import UserError
from stages.prune.groups import Kept, Selection
from stages.prune.surgery import cut
from stages.recover import loss as head_loss
from stages.recover.loss import summed_cross_entropy
from stages.rows.packing import Document, collate

LENGTHS = (5, 17, 1, 30, 8)


def documents(first_label: int = 3) -> list[Document]:
    generator = torch.Generator().manual_seed(3)
    return [
        Document(torch.randint(1, 96, (length,), generator=generator).tolist(), first_label, "toy", cut=False)
        for length in LENGTHS
    ]


def packed(model: PreTrainedModel) -> PreTrainedModel:
    use_packed_attention(model)
    return model


def alone(model: PreTrainedModel, document: Document) -> torch.Tensor:
    return model.get_decoder()(input_ids=torch.tensor([document.ids])).last_hidden_state[0]


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("kv_heads", [1, 3, 6])
def test_documents_of_a_batch_have_the_hidden_states_they_have_alone(family: str, kv_heads: int) -> None:
    options: dict[str, Any] = {"num_key_value_heads": kv_heads} | (
        {"sliding_window": None} if family == "mistral" else {}
    )
    expected = torch.cat([alone(decoder(family, **options), document) for document in documents()])

    states = hidden_states(packed(decoder(family, **options)), collate(documents()))

    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", KINDS)
def test_so_they_do_in_every_family_when_parts_of_it_are_gone(family: str) -> None:
    model = decoder(family, **({"sliding_window": 64} if "sliding_window" in KINDS[family][2] else {}))
    cut(model, Selection([Kept([], [], [0, 1]), None, Kept([2, 3], [1], [])], list(range(40))))
    expected = torch.cat([alone(model, document) for document in documents()])
    states = hidden_states(packed(model), collate(documents()))
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_no_gradient_crosses_from_one_document_to_another() -> None:
    model = packed(decoder())
    batch = collate(documents())
    embedded = model.get_input_embeddings()(batch.input_ids_1T).detach().requires_grad_()
    states = model.get_decoder()(
        inputs_embeds=embedded, position_ids=batch.position_ids_1T, document_layout=batch.layout, use_cache=False
    ).last_hidden_state[0]
    second = slice(LENGTHS[0], LENGTHS[0] + LENGTHS[1])

    states[second].square().sum().backward()

    touched = embedded.grad[0].abs().sum(1) > 0  # type: ignore[index]
    assert touched[second].all()
    assert int(touched.sum()) == LENGTHS[1]


def test_modelling_code_that_goes_round_the_attention_interface_is_refused() -> None:
    model = decoder()
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"document_layout": None}), with_kwargs=True
    )

    with pytest.raises(UserError, match="LlamaForCausalLM does not use transformers' attention interface"):
        use_packed_attention(model)


@pytest.mark.parametrize("first_label", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"family": "gemma2", "final_logit_softcapping": 2.0, "sliding_window": 64},
        {"family": "granite"},
    ],
)
def test_loss_and_gradients_equal_the_plain_model_called_with_labels(
    monkeypatch: pytest.MonkeyPatch, first_label: int, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(head_loss, "CHUNK", 7)  # several chunks, the last one short
    reference = decoder(**options)
    total = torch.zeros(())
    for document in documents(first_label):
        labels = torch.tensor([[-100] * first_label + document.ids[first_label:]])
        if document.labels > 0:
            total = total + reference(torch.tensor([document.ids]), labels=labels).loss * document.labels
    total.backward()

    model = packed(decoder(**options))
    batch = collate(documents(first_label))
    states = hidden_states(model, batch)
    loss = summed_cross_entropy(
        states[batch.predictors_N],
        model.get_output_embeddings(),
        batch.labels_N,
        Logits.of(model),
    )
    loss.backward()

    torch.testing.assert_close(loss, total, atol=1e-4, rtol=1e-5)
    for (name, expected), actual in zip(reference.named_parameters(), model.parameters(), strict=True):
        # The head is frozen in a recovery, so its own gradient is not taken.
        if "layers" in name:
            torch.testing.assert_close(actual.grad, expected.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_the_heads_gradient_is_the_analytic_one() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=generator).requires_grad_()
    head = torch.nn.Linear(6, 11)
    labels = torch.randint(11, (9,), generator=generator)
    expected = torch.autograd.grad(
        cross_entropy(linear(hidden, head.weight, head.bias), labels, reduction="sum") * 0.5, hidden
    )[0]

    (summed_cross_entropy(hidden, head, labels) * 0.5).backward()

    torch.testing.assert_close(hidden.grad, expected)


def test_no_labels_make_a_loss_of_nothing_and_a_gradient_of_nothing() -> None:
    hidden = torch.randn(0, 6).requires_grad_()
    loss = summed_cross_entropy(hidden, torch.nn.Linear(6, 11), torch.zeros(0, dtype=torch.long))
    loss.backward()

    assert loss.item() == 0
    assert hidden.grad is not None


def template_documents() -> list[Document]:
    """Return documents of which some begin alike, one is the beginning of another, and two are the same."""
    begin = list(range(10, 30))
    rows = [[*begin, 3, 4, 5], [40, 41], [*begin[:12], 7, 8], begin, [*begin, 3, 9], [*begin, 3, 9], [*begin[:4], 50]]
    return [Document(ids, min(2, len(ids) - 1), "toy", cut=False) for ids in rows]


@pytest.mark.parametrize("family", KINDS)
def test_what_documents_begin_with_is_computed_once_and_changes_nothing(family: str) -> None:
    options = {"sliding_window": 64} if "sliding_window" in KINDS[family][2] else {}
    outcomes = []
    for share in (False, True):
        model = packed(decoder(family, **options))
        batch = collate(template_documents(), share=share)
        states = hidden_states(model, batch)[batch.predictors_N]
        cross_entropy(model.get_output_embeddings()(states), batch.labels_N, reduction="sum").backward()
        outcomes.append((batch, states.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (plain, expected, gradients), (shared, states, found) = outcomes
    assert shared.input_ids_1T.numel() < 0.6 * plain.input_ids_1T.numel()
    assert torch.equal(shared.labels_N, plain.labels_N)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, gradients, atol=1e-4, rtol=1e-3)

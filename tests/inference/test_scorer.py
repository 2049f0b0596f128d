"""Our log-likelihoods against lm-eval's `HFLM`, and against arithmetic."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM

from helpers.models import MODELS
from helpers.questions import ROWS, reader, stock, stock_loglikelihoods
from helpers.tiny_tokenizer import byte_tokenizer
from stages.errors import UserError
from stages.inference.encoding import Query
from stages.inference.scorer import Scorer
from stages.task_library.definitions import documents, load_task

Requests = list[tuple[str, str]]
TOLERANCE = 1e-3
QUESTIONS: Requests = [
    ("Question: is this the one?\nAnswer:", " true"),
    ("Question: is this the one?\nAnswer:", " true"),
    ("Question: is this the one?\nAnswer:", " true answer"),
    ("Question: is this the two?\nAnswer:", " false"),
    ("The context ends in spaces   ", "and goes on"),
    ("", "nothing before"),
    ("naïve café 東京", " ☕ ünïcödé"),
    ("x", "y"),
]


def assert_equal_to_stock(model: Any, requests: Requests, tokenizer: Any = None, **options: Any) -> None:
    wanted = stock_loglikelihoods(stock(model, tokenizer), requests)
    found = Scorer(model, tokenizer or byte_tokenizer(), **options).loglikelihoods(requests)
    for request, (loglikelihood, greedy), (expected, expected_greedy) in zip(requests, found, wanted, strict=True):
        assert loglikelihood == pytest.approx(expected, abs=TOLERANCE, rel=0), request
        assert greedy == expected_greedy, request


def questions(name: str) -> Requests:
    return [request for document in documents(load_task(name, ROWS[name])) for request in document.requests]


@pytest.mark.parametrize("name", ROWS)
def test_every_task_scores_as_hflm_scores_it(name: str) -> None:
    assert_equal_to_stock(reader(), questions(name))


FAST = ["llama", "one shape a layer", "biases on q, k and v", "norms on q and k"]
FAST.append("factors on embeddings, sub-layers and logits")


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_built_as_llama_takes_the_fast_way(kind: str) -> None:
    flat = Scorer(MODELS[kind](), byte_tokenizer()).flat
    assert (flat is not None) == (kind in FAST or kind.startswith("mistral"))


def test_joining_weights_changes_no_weight_and_costs_no_memory() -> None:
    model, untouched = reader(), reader()
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    size = sum(parameter.numel() for parameter in untouched.parameters())
    Scorer(model, byte_tokenizer())
    for one, other in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(one, other)
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(held.values()) <= 4 * size
    assert len(held) < len(storages)


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_scores_as_hflm_scores_it(kind: str) -> None:
    assert_equal_to_stock(MODELS[kind](), [*QUESTIONS, *questions("winogrande"), *questions("piqa")])


@pytest.mark.parametrize("length", [16, 24, 40])
def test_long_contexts_are_cut_from_the_left_as_hflm_cuts_them(length: int) -> None:
    model = reader(max_position_embeddings=length)
    requests = [(context * 3, continuation) for context, continuation in QUESTIONS]
    assert_equal_to_stock(model, [(context, text[:12]) for context, text in requests])
    queries = Scorer(model, byte_tokenizer()).encoder.queries([("word " * 40, "end"), ("w", "end")])
    assert [query.truncated for query in queries] == [True, False]
    assert len(queries[0].inputs) == length


def test_a_tokenizer_that_adds_its_own_beginning_is_used_as_hflm_uses_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|end|>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert_equal_to_stock(reader(), [*QUESTIONS, ("<|end|>begun already", " here")], tokenizer)


def test_examples_before_the_question_are_shared_by_all_questions() -> None:
    examples = "Question: one? Answer: two\n\n" * 6
    requests = [(examples + context, continuation) for context, continuation in QUESTIONS if context.strip()]
    model = reader()
    assert_equal_to_stock(model, requests)
    scorer = Scorer(model, byte_tokenizer())
    assert tokens_read(scorer, requests) < 2 * max(len(query.inputs) for query in scorer.encoder.queries(requests))


@pytest.mark.parametrize(("name", "share"), [("winogrande", 0.7), ("boolq", 0.51), ("arc_easy", 0.5)])
def test_the_choices_of_a_question_share_its_beginning(name: str, share: float) -> None:
    scorer = Scorer(reader(), byte_tokenizer(), batch_tokens=1)  # a row a pass: nothing is padded
    requests = questions(name)
    alone = sum(len(query.inputs) for query in scorer.encoder.queries(requests))
    assert tokens_read(scorer, requests) <= share * alone


def tokens_read(scorer: Scorer, requests: Requests) -> int:
    counts: list[int] = []
    hook = scorer.model.get_input_embeddings().register_forward_hook(lambda _, ids, __: counts.append(ids[0].numel()))
    scorer.loglikelihoods(requests)
    hook.remove()
    return sum(counts)


def test_batching_does_not_change_the_scores() -> None:
    requests = [*QUESTIONS, *questions("hellaswag")]
    one, other = (Scorer(reader(), byte_tokenizer(), batch_tokens=tokens) for tokens in (1, 10_000))
    for (left, _), (right, _) in zip(one.loglikelihoods(requests), other.loglikelihoods(requests), strict=True):
        assert left == pytest.approx(right, abs=1e-4)


def test_greedy_is_what_greedy_decoding_writes() -> None:
    model, tokenizer = reader(), byte_tokenizer()
    ids = tokenizer("The answer is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        best = int(model(ids).logits[0, -1].argmax())
        worst = int(model(ids).logits[0, -1].argmin())
    found = Scorer(model, tokenizer).score([query(ids, best), query(ids, worst)])
    assert [greedy for _, greedy in found] == [True, False]


def query(ids: torch.Tensor, target: int) -> Query:
    return Query(inputs=ids[0].tolist(), targets=[target], truncated=False)


def test_bfloat16_is_near_float32() -> None:
    requests = questions("piqa")
    exact = Scorer(reader(), byte_tokenizer()).loglikelihoods(requests)
    rounded = Scorer(reader().to(torch.bfloat16), byte_tokenizer()).loglikelihoods(requests)
    for (left, _), (right, _) in zip(exact, rounded, strict=True):
        assert left == pytest.approx(right, rel=0.05)


def test_scoring_nothing_gives_nothing() -> None:
    assert Scorer(reader(), byte_tokenizer()).loglikelihoods([]) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [(("context", ""), "no token of its own"), (("context", " long" * 20), "the model reads 24")],
)
def test_a_continuation_without_a_likelihood_is_an_error(request_: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scorer(reader(max_position_embeddings=24), byte_tokenizer()).loglikelihoods([request_])


def test_an_architecture_that_would_be_scored_wrongly_is_refused() -> None:
    class Scaled(LlamaForCausalLM):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            output = super().forward(*arguments, **options)
            output.logits = 3 * output.logits
            return output

    model = copy.deepcopy(reader())
    model.__class__ = Scaled
    with pytest.raises(UserError, match="does not know this architecture"):
        Scorer(model, byte_tokenizer())


def test_a_model_whose_outputs_are_not_finite_is_an_error() -> None:
    model = reader()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        Scorer(model, byte_tokenizer())

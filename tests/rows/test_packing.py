from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from helpers.tiny_tokenizer import byte_tokenizer
from stages.errors import UserError
from stages.rows.packing import Batch, Document, collate, encode, encode_whole, split, take
from stages.rows.stream import Stream


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def row(prompt: str, response: str, task: str = "toy") -> dict[str, str]:
    return {"prompt": prompt, "response": response, "task": task}


def document(length: int, first_label: int = 0, base: int = 1) -> Document:
    return Document(list(range(base, base + length)), first_label, "toy", cut=False)


def write_rows(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps(row(f"row {index}: ", "é" * (index % 3))) + "\n" for index in range(count)))
    return path


@pytest.mark.parametrize(
    ("prompt", "response"),
    [("a question? ", "true"), ("Pick:\n", "öл two"), ("", "text alone"), ("ends in a space ", " false")],
)
def test_the_labelled_tokens_spell_the_response_and_nothing_of_the_prompt_before_it(
    tokenizer: PreTrainedTokenizerFast, prompt: str, response: str
) -> None:
    (encoded,) = encode([row(prompt, response)], tokenizer, length=100, label_prompts=False)

    unlabelled, labelled = encoded.ids[: encoded.first_label], encoded.ids[encoded.first_label :]
    assert tokenizer.decode(encoded.ids) == prompt + response + "<|end|>"
    assert prompt.startswith(tokenizer.decode(unlabelled))
    assert tokenizer.decode(labelled).endswith(response + "<|end|>")
    # A token that straddles the boundary is labelled whole: at most one token's worth of prompt.
    assert len(tokenizer(prompt)["input_ids"]) - len(unlabelled) <= 1


def test_a_row_is_the_tokens_of_its_text_as_one(tokenizer: PreTrainedTokenizerFast) -> None:
    (encoded,) = encode([row("the correct ans", "wer is true")], tokenizer, length=100, label_prompts=False)

    assert encoded.ids[:-1] == tokenizer("the correct answer is true")["input_ids"]


def test_labelled_prompts_leave_out_only_the_first_token(tokenizer: PreTrainedTokenizerFast) -> None:
    (encoded,) = encode([row("question ", "answer")], tokenizer, length=100, label_prompts=True)

    assert encoded.labels == len(encoded.ids) - 1


def test_the_prompt_gives_way_before_the_response(tokenizer: PreTrainedTokenizerFast) -> None:
    (whole,) = encode([row("x" * 50, "true")], tokenizer, length=100, label_prompts=False)
    (shorter,) = encode([row("x" * 50, "true")], tokenizer, length=20, label_prompts=False)
    (shortest,) = encode([row("x" * 50, "zzzzzzzz")], tokenizer, length=4, label_prompts=False)

    assert not whole.cut
    assert shorter.cut
    assert shorter.ids == whole.ids[-20:]
    assert shorter.labels == whole.labels
    assert tokenizer.decode(shortest.ids) == "xzzz"
    assert shortest.labels == 3


def test_a_leading_begin_token_survives_the_cut() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )

    (cut,) = encode([row("x" * 50, "true")], tokenizer, length=20, label_prompts=False)

    assert cut.ids[0] == begin
    assert len(cut.ids) == 20
    assert cut.ids.count(begin) == 1


def stream(path: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Stream:
    return Stream(path, partial(encode_whole, tokenizer=tokenizer, length=64, label_prompts=False), seed=seed)


def test_each_epoch_holds_every_row_once_in_an_order_of_its_own(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    documents = stream(write_rows(tmp_path / "rows.jsonl", 100), tokenizer).documents()
    first, second = (["".join(map(chr, d.ids)) for d in islice(documents, 100)] for _ in range(2))

    assert sorted(first) == sorted(second)
    assert len(set(first)) == 100
    assert first != second


def test_the_order_is_the_seeds(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 30)
    one, same, other = (list(islice(stream(path, tokenizer, seed).documents(), 30)) for seed in (1, 1, 2))

    assert one == same
    assert one != other


@pytest.mark.parametrize("start", [0, 1, 63, 64, 99, 100, 130])
def test_a_stream_continues_from_any_position(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, start: int) -> None:
    whole = stream(write_rows(tmp_path / "rows.jsonl", 100), tokenizer)

    assert list(islice(whole.documents(start), 40)) == list(islice(whole.documents(), start, start + 40))


def test_only_the_rows_that_are_drawn_are_tokenised(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenised = 0

    def counting(rows: Sequence[dict[str, Any]]) -> list[list[Document]]:
        nonlocal tokenised
        tokenised += len(rows)
        return encode_whole(rows, tokenizer, length=64, label_prompts=False)

    next(Stream(write_rows(tmp_path / "rows.jsonl", 1000), counting, seed=0).documents())

    assert tokenised <= 64


def test_an_empty_file_is_an_error_that_names_it(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")

    with pytest.raises(UserError, match=r"rows\.jsonl has no rows"):
        stream(tmp_path / "rows.jsonl", tokenizer)


def test_taking_stops_once_the_tokens_are_reached() -> None:
    assert [len(d.ids) for d in take([document(5), document(5), document(5)], 6)] == [5, 5]


def test_a_batch_holds_its_documents_end_to_end_without_padding() -> None:
    batch: Batch = collate([document(3, 2), document(1, 0, base=50), document(4, 0, base=10)])

    assert batch.input_ids_1T.tolist() == [[1, 2, 3, 50, 10, 11, 12, 13]]
    assert batch.position_ids_1T.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3]]
    assert batch.layout.lengths == (3, 1, 4)
    # Each label is the next token of the same document.
    assert batch.predictors_N.tolist() == [1, 4, 5, 6]
    assert batch.labels_N.tolist() == [3, 11, 12, 13]
    assert len(batch.labels_N) == sum(d.labels for d in [document(3, 2), document(1), document(4)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_shared_beginning_add_up_to_the_same_bytes_however_threads_run(dtype: torch.dtype) -> None:
    beginning = list(range(64))
    batch = collate([Document([*beginning, 100 + n], 0, "toy", cut=False) for n in range(12)], share=True)
    assert len(batch.predictors_N) > 10 * len(batch.predictors_N.unique())
    states_TX = torch.zeros(batch.input_ids_1T.shape[1], 576, dtype=dtype, requires_grad=True)
    seeded = torch.Generator().manual_seed(0)
    slope_NX = torch.randn(len(batch.predictors_N), 576, generator=seeded).to(dtype)
    threads, gradients = torch.get_num_threads(), []
    try:
        for count in (1, *[4] * 40):
            torch.set_num_threads(count)
            gradients += torch.autograd.grad(batch.predicting(states_TX), states_TX, slope_NX)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_splitting_keeps_order_and_size() -> None:
    runs = list(split([document(n) for n in (4, 4, 9, 1, 2)], 8))

    assert [[len(d.ids) for d in run] for run in runs] == [[4, 4], [9], [1, 2]]
    assert torch.equal(collate(runs[0]).input_ids_1T, collate([document(4), document(4)]).input_ids_1T)


def sizes(runs: Sequence[Sequence[Document]]) -> list[int]:
    return [sum(len(document.ids) for document in run) for run in runs]


def test_runs_are_as_few_and_then_as_equal_as_can_be() -> None:
    documents = [document(n) for n in (3, 3, 3, 3, 1, 3)]

    assert sizes(split(documents, 16)) == [16]
    assert sizes(split(documents, 15)) == [9, 7]
    assert sizes(split(documents, 12)) == [9, 7]
    assert [d for run in split(documents, 12) for d in run] == documents


def test_every_worker_has_a_run_where_that_makes_the_longest_shorter() -> None:
    assert sizes(split([document(4)] * 6, 100, among=3)) == [8, 8, 8]
    assert sizes(split([document(4)] * 6, 5, among=3)) == [4] * 6
    assert sizes(split([document(9), document(1), document(1)], 100, among=2)) == [9, 2]
    assert sizes(split([document(4)] * 2, 100, among=8)) == [4, 4]
    assert split([], 100, among=2) == []

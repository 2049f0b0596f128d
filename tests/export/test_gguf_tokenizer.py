"""Which tokenizers can be written for llama.cpp, and as what."""

from __future__ import annotations

from typing import Any

import pytest
from gguf import TokenType
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.pruned_models import PIECES, sentencepiece, with_splitting
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from stages.errors import UserError
from stages.export.tokenizer import tokenizer_fields, tokenizer_remarks

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def split(regex: str) -> Any:
    return pre_tokenizers.Split(Regex(regex), behavior="isolated")


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=False)], "gpt-2"),
        ([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)], "smollm"),
        ([split(LLAMA3), BYTES], "dbrx"),
        ([split(LLAMA3.replace("{1,3}", "")), BYTES], "qwen2"),
    ],
)
def test_how_text_is_split_decides_the_name(steps: list[Any], name: str) -> None:
    found = tokenizer_fields(with_splitting(*steps), VOCABULARY)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", name)


def test_words_that_bypass_the_merges_make_a_llama_3() -> None:
    tokenizer = with_splitting(split(LLAMA3), BYTES)
    tokenizer.backend_tokenizer.model.ignore_merges = True
    assert tokenizer_fields(tokenizer, VOCABULARY)["tokenizer.ggml.pre"] == "llama-bpe"


def test_special_tokens_merges_and_template_are_written() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    found = tokenizer_fields(tokenizer, VOCABULARY)
    assert found["tokenizer.ggml.token_type"][0] == TokenType.CONTROL
    assert found["tokenizer.ggml.token_type"][1] == TokenType.NORMAL
    assert found["tokenizer.ggml.token_type"][-1] == TokenType.UNUSED
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.padding_token_id"]) == (0, 0)
    assert "tokenizer.ggml.bos_token_id" not in found
    assert all(merge.count(" ") == 1 for merge in found["tokenizer.ggml.merges"])
    assert found["tokenizer.chat_template"] == "{{ messages }}"


def test_sentencepiece_tokens_are_scored_by_the_order_of_their_merges() -> None:
    found = tokenizer_fields(sentencepiece(), 320)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (True, False)
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert [types[number] for number in (0, 1, 3)] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE]
    scores = [found["tokenizer.ggml.scores"][tokens.index(piece)] for piece in PIECES]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)


def test_what_llama_cpp_splits_otherwise_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    lowered = byte_tokenizer()
    lowered.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split(r"\w+"), BYTES])
    for tokenizer, said in (
        (PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), "a model of type WordLevel"),
        (lowered, r"split by \\w\+"),
        (with_splitting(pre_tokenizers.ByteLevel(add_prefix_space=True)), "a pre-tokenizer"),
        (sentencepiece(merges=[("▁", "t"), ("h", "e")]), "a list of merges that is not sentencepiece's"),
    ):
        with pytest.raises(UserError, match=said) as error:
            tokenizer_fields(tokenizer, VOCABULARY)
        assert "Known: byte-level BPE split as" in str(error.value)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="the model has no embedding"):
        tokenizer_fields(byte_tokenizer(), 100)


def test_a_rule_without_a_field_is_said() -> None:
    tokenizer = sentencepiece()
    assert tokenizer_remarks(tokenizer) == []
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    assert "a space before text" in tokenizer_remarks(tokenizer)[0]

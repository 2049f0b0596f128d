"""The tokenizer of a GGUF file: text becomes the same tokens as by the tokenizer that the file was written with."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from helpers.pruned_models import pruned, sentencepiece
from helpers.tiny_tokenizer import byte_tokenizer
from stages.decoders.checkpoint import load_tokenizer
from stages.decoders.gguf_header import Header, read_header
from stages.decoders.gguf_splitting import LLAMA3, QWEN2
from stages.errors import UserError
from stages.export.gguf import convert
from stages.model.gguf import from_file
from stages.model.gguf_tokenizer import tokenizer_in

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
TEXTS = ("the  1 correct  answer 12 345 x.\ny\n\n\tdon'T", " é 日本 <|end|>question <tool>x", "")


def byte_level(*steps: Any, bos: bool = False, template: str | None = None, **options: Any) -> PreTrainedTokenizerFast:
    """Return the tests' byte-level tokenizer with other steps, merges that tell them apart, and a token for tools."""
    model = json.loads(byte_tokenizer().backend_tokenizer.to_str())["model"]
    vocabulary, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    for left, right in (("Ġ", "Ġ"), ("1", "2"), (".", "Ċ"), ("'", "T")):
        vocabulary[left + right] = len(vocabulary)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, **options))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(list(steps)), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", tokenizer.token_to_id("<|end|>"))]
        )
    named = {"bos_token": "<|end|>"} if bos else {}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", **named)
    made.chat_template = template
    return made


def split(regex: str) -> Any:
    return pre_tokenizers.Split(Regex(regex), behavior="isolated")


DIGITS = pre_tokenizers.Digits(individual_digits=True)
TOKENIZERS = {
    "gpt-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: byte_level(DIGITS, pre_tokenizers.ByteLevel(add_prefix_space=False), template="{{ messages }}"),
    "qwen2": lambda: byte_level(split(QWEN2), BYTES),
    "llama-bpe": lambda: byte_level(split(LLAMA3), BYTES, bos=True, ignore_merges=True),
    "default": sentencepiece,
}


def written(tokenizer: PreTrainedTokenizerFast, root: Path) -> Path:
    """Write a tiny llama with this tokenizer as a GGUF file."""
    model = pruned(root)
    tokenizer.save_pretrained(model)
    assert convert(model, root / "model.gguf", dtype="f32")["dtype"] == "f32"
    return root / "model.gguf"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_file_splits_text_as_the_tokenizer_that_it_was_written_with(name: str, tmp_path: Path) -> None:
    file = written(TOKENIZERS[name](), tmp_path)
    assert read_header(file).fields["tokenizer.ggml.pre"] == name
    from_file(file, tmp_path / "read")
    ours, theirs = load_tokenizer(tmp_path / "model"), load_tokenizer(tmp_path / "read")
    for text in TEXTS:
        ids = ours(text)["input_ids"]
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids)
    for role in ("bos_token_id", "eos_token_id", "chat_template"):
        assert getattr(theirs, role) == getattr(ours, role)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    return read_header(written(TOKENIZERS["gpt-2"](), tmp_path_factory.mktemp("file")))


def changed(header: Header, name: str, value: Any) -> Header:
    return replace(header, fields=header.fields | {f"tokenizer.ggml.{name}": value})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model", "bert", "of the kind 'bert', and read are gpt2 and llama"),
        ("model", 7, "of the kind '7'"),
        ("model", "llama", "not as many scores"),
        ("tokens", 3, "it has no tokens"),
        ("token_type", [1], "not as many types"),
        ("merges", ["nothing here"], "out of vocabulary|nothing"),
        ("merges", [3], "can't be read"),
        ("eos_token_id", 10**9, "its eos token is number 1000000000"),
    ],
)
def test_a_tokenizer_that_contradicts_itself_is_one_error(name: str, value: Any, said: str, header: Header) -> None:
    with pytest.raises(UserError, match=f"the tokenizer of .*{said}"):
        tokenizer_in(changed(header, name, value))


def test_an_unknown_splitting_is_named_and_no_tokenizer_is_none(
    header: Header, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert tokenizer_in(changed(header, "pre", "oracle")) is not None
    assert "llama.cpp's way 'oracle'" in caplog.text
    assert tokenizer_in(changed(header, "model", "no_vocab")) is None

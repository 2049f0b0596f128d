"""GGUF files, read back: what llama.cpp will find in them. That llama.cpp computes the same is test_llama_cpp.py's."""

from __future__ import annotations

import logging
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.decoders import token_ids
from helpers.pruned_models import pruned
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from stages.common.files import read_json, write_json
from stages.decoders.checkpoint import load_model
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.export.config import ExportConfig
from stages.export.gguf import convert
from stages.export.plan import check_export


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in GGUFReader(path).tensors}


def hugging_face_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama's order row by row: of each head the even rows first, then the odd ones."""
    by_head = np.split(rows, heads)
    return np.concatenate([half for head in by_head for half in (head[0::2], head[1::2])])


def test_a_uniform_llama_is_a_llama_with_its_numbers(tmp_path: Path) -> None:
    model = pruned(tmp_path, kind="heads", rms_norm_eps=1e-5, rope_theta=5000.0)
    assert read_json(model / "config.json")["model_type"] == "llama"
    summary = convert(model, tmp_path / "model.gguf")
    found = fields(tmp_path / "model.gguf")
    assert found["general.architecture"] == summary["architecture"] == "llama"
    expected = {
        "block_count": 3,
        "context_length": 128,
        "embedding_length": 48,
        "feed_forward_length": 31,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "rope.dimension_count": 8,
        "vocab_size": VOCABULARY,
    }
    assert {name: found[f"llama.{name}"] for name in expected} == expected
    assert found["llama.rope.freq_base"] == 5000.0
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert summary["bytes"] == (tmp_path / "model.gguf").stat().st_size


def test_every_tensor_is_the_models_with_the_rows_of_q_and_k_in_llamas_order(tmp_path: Path) -> None:
    model = pruned(tmp_path, kind="differing", attention_bias=True)
    convert(model, tmp_path / "model.gguf")
    stored, written = load_file(model / "model.safetensors"), tensors(tmp_path / "model.gguf")
    assert len(stored) == len(written)
    heads, kv_heads = (6, 4, 6), (3, 2, 3)
    for layer in range(3):
        prefix = f"model.layers.{layer}"
        for kind in ("weight", "bias"):
            for name, count in (("q", heads[layer]), ("k", kv_heads[layer])):
                rows = hugging_face_order(written[f"blk.{layer}.attn_{name}.{kind}"], count)
                np.testing.assert_array_equal(rows, stored[f"{prefix}.self_attn.{name}_proj.{kind}"])
        for ours, theirs in (
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_down", "mlp.down_proj"),
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            np.testing.assert_array_equal(written[f"blk.{layer}.{ours}.weight"], stored[f"{prefix}.{theirs}.weight"])
    np.testing.assert_array_equal(written["token_embd.weight"], stored["model.embed_tokens.weight"])


def test_differing_layers_are_a_deci_with_an_array_for_each_size(tmp_path: Path) -> None:
    assert convert(pruned(tmp_path, kind="differing"), tmp_path / "model.gguf")["architecture"] == "deci"
    found = fields(tmp_path / "model.gguf")
    assert found["deci.attention.head_count"] == [6, 4, 6]
    assert found["deci.attention.head_count_kv"] == [3, 2, 3]
    assert found["deci.feed_forward_length"] == [40, 31, 40]
    assert found["deci.attention.key_length"] == found["deci.rope.dimension_count"] == 8


def test_what_deci_cannot_leave_out_is_there_and_computes_zero(tmp_path: Path) -> None:
    convert(pruned(tmp_path / "a", kind="attention"), tmp_path / "a.gguf")
    found, written = fields(tmp_path / "a.gguf"), tensors(tmp_path / "a.gguf")
    assert found["deci.attention.head_count"] == [1, 6, 0], "the first layer says how large a head is"
    assert not written["blk.0.attn_output.weight"].any()
    assert not any(name.startswith("blk.2.attn") for name in written)

    convert(pruned(tmp_path / "m", kind="mlp"), tmp_path / "m.gguf")
    found, written = fields(tmp_path / "m.gguf"), tensors(tmp_path / "m.gguf")
    assert found["deci.feed_forward_length"] == [40, 40, 32]
    assert not written["blk.2.ffn_down.weight"].any()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text"])
def test_transformers_own_reader_gets_the_model_back(family: str, tmp_path: Path) -> None:
    model = pruned(tmp_path, family)
    convert(model, tmp_path / "model.gguf")
    # The config is given: the reader leaves some of the header's numbers at its own defaults.
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", config=AutoConfig.from_pretrained(model), dtype=torch.float32
    ).eval()
    ids = token_ids(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, load_model(model, dtype="float32")(ids).logits)


@pytest.mark.parametrize(("family", "kind"), [("phi3", "differing"), ("qwen2", "heads"), ("mistral", "hidden")])
def test_what_computes_a_llama_is_written_as_one(family: str, kind: str, tmp_path: Path) -> None:
    model = pruned(tmp_path, family, kind)
    summary = convert(model, tmp_path / "model.gguf")
    assert summary["architecture"] == ("deci" if kind == "differing" else "llama")
    written, stored = tensors(tmp_path / "model.gguf"), load_file(model / "model.safetensors")
    if family == "phi3":
        fused = stored["model.layers.1.self_attn.qkv_proj.weight"].split([32, 16, 16])
        np.testing.assert_array_equal(written["blk.1.attn_v.weight"], fused[2])
        np.testing.assert_array_equal(hugging_face_order(written["blk.1.attn_k.weight"], 2), fused[1])
        np.testing.assert_array_equal(
            written["blk.1.ffn_up.weight"], stored["model.layers.1.mlp.gate_up_proj.weight"][31:]
        )


def test_granites_factors_are_in_the_header_and_its_rows_in_llamas_order(tmp_path: Path) -> None:
    model = pruned(tmp_path, "granite", "hidden", mlp_bias=True)
    assert convert(model, tmp_path / "model.gguf")["architecture"] == "granite"
    found, written = fields(tmp_path / "model.gguf"), tensors(tmp_path / "model.gguf")
    factors = {"embedding_scale": 3.0, "attention.scale": 0.3, "residual_scale": 0.4, "logit_scale": 1.7}
    assert {name: found[f"granite.{name}"] for name in factors} == pytest.approx(factors)
    stored = load_file(model / "model.safetensors")
    rows = hugging_face_order(written["blk.1.attn_q.weight"], 4)
    np.testing.assert_array_equal(rows, stored["model.layers.1.self_attn.q_proj.weight"])
    np.testing.assert_array_equal(written["blk.1.ffn_down.bias"], stored["model.layers.1.mlp.down_proj.bias"])


def test_olmo2_reads_no_tied_head_so_it_is_written_out(tmp_path: Path) -> None:
    convert(pruned(tmp_path, "olmo2", tie_word_embeddings=True), tmp_path / "model.gguf")
    written = tensors(tmp_path / "model.gguf")
    np.testing.assert_array_equal(written["output.weight"], written["token_embd.weight"])


STEPS = {"q8_0": 254, "q5_1": 31, "q5_0": 31, "q4_1": 15, "q4_0": 15}
"""Steps between the smallest and the largest value of a block."""
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}


def half_a_step(weight: torch.Tensor, dtype: str) -> np.ndarray:
    """Return the most that a format may change each value: half a step, and one where it has no room for the end."""
    blocks = weight.float().numpy().reshape(-1, 32)
    if dtype.endswith("_1"):
        step = (blocks.max(1) - blocks.min(1)) / STEPS[dtype]
    else:
        # Formats without a minimum reach one step further below zero than above it, so one end is cut by a step.
        step = 2 * np.abs(blocks).max(1) / (STEPS[dtype] if dtype == "q8_0" else (STEPS[dtype] + 1) / 2)
    # Scales are stored in float16, and so is the minimum.
    return np.broadcast_to(step[:, None] / 2 + 2e-3 * np.abs(blocks).max(1)[:, None], blocks.shape).reshape(
        weight.shape
    )


@pytest.mark.parametrize("dtype", STEPS)
@pytest.mark.parametrize("tied", [True, False])
def test_matrices_in_blocks_are_within_the_formats_error_and_the_output_is_in_eight_bits(
    dtype: str, tied: bool, tmp_path: Path
) -> None:
    model = pruned(tmp_path, hidden_size=96, tie_word_embeddings=tied)
    assert convert(model, tmp_path / "model.gguf", dtype=dtype)["dtype"] == dtype
    file = tmp_path / "model.gguf"
    types = {t.name: t.tensor_type.name.lower() for t in GGUFReader(file).tensors}
    assert types["token_embd.weight"] == ("q8_0" if tied else dtype)
    assert types.get("output.weight") == (None if tied else "q8_0")
    assert {types[f"blk.1.{name}.weight"] for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")} == {dtype}
    assert types["blk.1.ffn_norm.weight"] == types["output_norm.weight"] == "f32"
    assert types["blk.1.ffn_down.weight"] == "f16", "40 columns are no whole blocks of 32"
    assert fields(file)["general.file_type"] == FILE_TYPES[dtype]
    assert fields(file)["general.quantization_version"] == 2
    stored, written = load_file(model / "model.safetensors"), tensors(file)
    for ours, theirs in (("blk.1.attn_v", "model.layers.1.self_attn.v_proj"), ("token_embd", "model.embed_tokens")):
        weight = stored[f"{theirs}.weight"]
        error = np.abs(written[f"{ours}.weight"] - weight.numpy())
        assert (error <= half_a_step(weight, types[f"{ours}.weight"])).all()
        assert error.any()


@pytest.mark.parametrize(
    ("dtype", "file_type", "tolerance"), [("f32", 0, 0.0), ("f16", 1, 1e-3), ("bf16", 32, 5e-3), ("q8_0", 7, 1e-2)]
)
def test_matrices_are_in_the_precision_asked_for_and_vectors_in_float32(
    dtype: str, file_type: int, tolerance: float, tmp_path: Path
) -> None:
    model = pruned(tmp_path, hidden_size=96, intermediate_size=40)
    assert convert(model, tmp_path / "model.gguf", dtype=dtype)["dtype"] == dtype
    types = {t.name: t.tensor_type for t in GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.attn_norm.weight"] is GGMLQuantizationType.F32
    assert types["blk.0.attn_v.weight"] is GGMLQuantizationType[dtype.upper()]
    # 40 columns are no whole blocks of 32.
    assert types["blk.0.ffn_down.weight"] is GGMLQuantizationType["F16" if dtype == "q8_0" else dtype.upper()]
    assert fields(tmp_path / "model.gguf")["general.file_type"] == file_type
    stored = load_file(model / "model.safetensors")["model.layers.0.self_attn.v_proj.weight"]
    np.testing.assert_allclose(tensors(tmp_path / "model.gguf")["blk.0.attn_v.weight"], stored, atol=tolerance)


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    model = pruned(tmp_path, kind="differing")
    for name in ("a", "b"):
        convert(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_tokenizer_in_the_file_is_the_models(tmp_path: Path) -> None:
    model = pruned(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.unk_token = "<|end|>"  # transformers' reader wants them
    tokenizer.save_pretrained(model)
    convert(model, tmp_path / "model.gguf")
    ours = AutoTokenizer.from_pretrained(model)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in ("the correct answer is true, 12 x\n\n\ty", "é 日本 <|end|>question"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    found = fields(tmp_path / "model.gguf")
    assert found["tokenizer.ggml.tokens"][: len(ours)] == ours.convert_ids_to_tokens(range(len(ours)))
    assert found["tokenizer.ggml.tokens"][len(ours) :] == [f"[PAD{number}]" for number in range(len(ours), VOCABULARY)]
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.add_bos_token"]) == (ours.eos_token_id, False)


def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path) -> None:
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("qwen3", "differing", {}, "one shape for all layers"),
        ("granite", "attention", {}, "granite takes one shape for all layers"),
        ("olmo2", "heads", {}, "heads that fill the hidden size"),
        ("gemma2", "dense", {"query_pre_attn_scalar": 12}, "queries scaled by 12"),
        ("gemma2", "dense", {"attn_logit_softcapping": None}, "without attn_logit_softcapping"),
        ("gemma2", "layers", {}, "others than one of every 2, as where whole layers were removed"),
        ("gemma3_text", "dense", {"sliding_window_pattern": 2}, "others than one of every 6"),
        ("llama", "dense", {"hidden_act": "gelu"}, "the activation 'gelu'"),
        ("llama", "dense", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "of type 'dynamic'"),
    ]
    for number, (family, kind, options, said) in enumerate(cases):
        model = pruned(tmp_path / str(number), family, kind, **options)
        with pytest.raises(UserError, match=said) as error:
            convert(model, tmp_path / "model.gguf")
        assert "export=hf" in str(error.value)
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_sliding_window_limits_the_context_to_what_is_computed_alike(tmp_path: Path) -> None:
    summary = convert(pruned(tmp_path, "mistral", sliding_window=16), tmp_path / "model.gguf")
    assert fields(tmp_path / "model.gguf")["llama.context_length"] == 16
    assert "sliding window" in summary["remarks"][0]


def test_a_value_too_large_for_the_precision_is_named(tmp_path: Path) -> None:
    model = pruned(tmp_path)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = 1e6
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj.*F16"):
        convert(model, tmp_path / "model.gguf", dtype="f16")
    assert not list(tmp_path.glob("*gguf*")) + list(tmp_path.glob(".*gguf*"))


def test_a_full_disk_is_an_error_of_the_disk_and_leaves_nothing(tmp_path: Path) -> None:
    model = pruned(tmp_path, hidden_size=192)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            convert(model, tmp_path / "model.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "model"}


def test_options_and_families_are_checked_before_anything_is_built() -> None:
    with pytest.raises(UserError, match=r"export\.format 'ggfu', did you mean 'gguf'"):
        check_export(ExportConfig(format="ggfu"))
    with pytest.raises(UserError, match=r"export\.dtype 'q80', did you mean 'q8_0'"):
        check_export(ExportConfig(format="gguf", dtype="q80"))
    for dtype, said in (("q4_k_m", "model-q4_k_m.gguf Q4_K_M"), ("IQ3_xs", "model-iq3_xs.gguf IQ3_XS")):
        with pytest.raises(UserError, match=f"llama.cpp's own tool alone.*llama-quantize model.gguf {said}"):
            check_export(ExportConfig(format="gguf", dtype=dtype))
    with pytest.raises(UserError, match="export=gguf, or leave"):
        check_export(ExportConfig(format="hf", dtype="f16"))
    shape = DecoderShape(family="bloom", hidden=8, head_dim=4, vocabulary=9, tied=True, layers=())
    with pytest.raises(UserError, match="'bloom' can't be written.*Known: llama"):
        check_export(ExportConfig(format="gguf"), shape)
    check_export(ExportConfig(format="hf"), shape)


def test_a_models_name_and_license_are_in_the_header(tmp_path: Path) -> None:
    model = pruned(tmp_path)
    record = read_json(model / "pruning.json") | {"base": {"repo": "someone/tiny", "license": "mit"}}
    write_json(model / "pruning.json", record)
    convert(model, tmp_path / "model.gguf")
    assert fields(tmp_path / "model.gguf")["general.license"] == "mit"
    assert fields(tmp_path / "model.gguf")["general.name"] == "someone/tiny"


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("gguf").setLevel(logging.WARNING)

"""`model.path=FILE.gguf`: files of ours read back, files of transformers' architectures, and files that lie."""

from __future__ import annotations

import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch

from helpers.decoders import decoder, token_ids
from helpers.pruned_models import SELECTIONS, pruned, sentencepiece
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from helpers.world import make_world
from stages.decoders.checkpoint import load_model, load_tokenizer, save_cut_model
from stages.decoders.gguf_header import BLOCKS, Header, read_header
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.export.gguf import convert
from stages.model.config import ModelEntry
from stages.model.plan import known_fields, planned
from stages.model.stage import run
from stages.prune.groups import kept_shape
from stages.prune.surgery import add_output_bias, cut
from stages.stage import Context


def exported(root: Path, family: str = "llama", kind: str = "dense", dtype: str = "f32", **options: object) -> Path:
    """Write a tiny model as a GGUF file; returns the model's directory, beside which the file lies."""
    gemma = family.startswith("gemma")
    model = pruned(root, family, kind, **options | ({"vocab_size": 320} if gemma else {}))
    tokenizer = sentencepiece() if gemma else byte_tokenizer()
    tokenizer.save_pretrained(model)
    convert(model, root / "model.gguf", dtype=dtype)
    return model


def read_back(file: Path, root: Path) -> Path:
    """Run the stage on a file, as a plan has it; returns the model directory."""
    plan = planned(ModelEntry(name="file", kind="local", path=str(file)), root / "cache")
    output = root / "read"
    output.mkdir()
    run(plan.config, {}, Context(output=output, cache=root / "cache", locations=plan.locations))
    return output / "model"


def logits(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(directory, dtype="float32")(token_ids(2, 16)).logits


LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("family", "kind", "options"),
    [
        ("llama", "heads", {"rms_norm_eps": 1e-5, "rope_theta": 5000.0, "tie_word_embeddings": True}),
        ("llama", "differing", {"attention_bias": True, "mlp_bias": True, **LINEAR}),
        ("llama", "attention", {"rope_parameters": LLAMA3}),
        ("mistral", "mlp", {}),
        ("qwen2", "differing", {}),
        ("qwen2", "attention", {}),
        ("llama", "mlp", {"mlp_bias": True}),
        ("phi3", "heads", {}),
        ("qwen3", "heads", {}),
        ("gemma2", "heads", {}),
        ("gemma3_text", "dense", {"num_hidden_layers": 7}),
        # llama.cpp scales the queries of the largest gemmas by the hidden size per head.
        ("gemma2", "dense", {"num_hidden_layers": 46, "head_dim": 16, "query_pre_attn_scalar": 8}),
    ],
)
def test_a_file_of_ours_reads_back_to_equal_logits(family: str, kind: str, options: dict, tmp_path: Path) -> None:
    model = exported(tmp_path, family, kind, **options)
    again = read_back(tmp_path / "model.gguf", tmp_path)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)
    ours, theirs = load_tokenizer(model), load_tokenizer(again)
    text = "the correct answer is true, 12 x\n\n\ty é"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]


@pytest.mark.parametrize(("family", "options"), [("qwen2", {}), ("llama", {"attention_bias": True}), ("mistral", {})])
def test_a_file_with_biases_of_compensation_reads_back(family: str, options: dict, tmp_path: Path) -> None:
    fields = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None}
    model, selection = decoder(family, **fields | options), SELECTIONS["mlp"]
    model.save_pretrained(tmp_path / "dense")
    shape = kept_shape(DecoderShape.from_config(model.config.to_dict()), selection).with_output_bias()
    cut(model, selection)
    add_output_bias(model)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.bias", "down_proj.bias")):
            torch.nn.init.normal_(parameter, std=0.2)
    save_cut_model(model, shape, tmp_path / "model", like=tmp_path / "dense", dtype="float32", record={})
    byte_tokenizer().save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "model.gguf", dtype="f32")
    again = read_back(tmp_path / "model.gguf", tmp_path)
    torch.testing.assert_close(logits(again), logits(tmp_path / "model"), atol=1e-5, rtol=1e-5)


def test_a_quantised_file_reads_back_to_its_dequantised_weights(tmp_path: Path) -> None:
    exported(tmp_path, kind="heads", dtype="q4_1", hidden_size=96)
    file = tmp_path / "model.gguf"
    weights = load_model(read_back(file, tmp_path), dtype="float32").state_dict()
    (stored,) = [tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "blk.1.ffn_up.weight"]
    expected = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type))
    assert torch.equal(weights["model.layers.1.mlp.up_proj.weight"], expected)


def test_a_plan_knows_the_shape_and_the_key_is_the_files_own(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    exported(tmp_path, kind="differing")
    file = tmp_path / "model.gguf"
    fields = known_fields(ModelEntry(kind="local", path=str(file)))
    assert fields is not None
    assert fields["layer_shapes"] == [[6, 3, 40], [4, 2, 31], [6, 3, 40]]
    first = world.plan(f"model.path={file}", "adapter=none", "evaluate=none").roles["model"].key
    moved = file.rename(tmp_path / "other.gguf")
    assert world.plan(f"model.path={moved}", "adapter=none", "evaluate=none").roles["model"].key == first


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    for number, (name, block, size) in BLOCKS.items():
        assert gguf.GGMLQuantizationType(number).name == name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (block, size)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("honest")
    exported(root)
    return (root / "model.gguf").read_bytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def made(fields: bytes = b"", tensors: bytes = b"", *, counts: tuple[int, int] | None = None) -> bytes:
    """Return a file of the given fields and tensors, with 64 bytes of data."""
    told = counts or (1 if tensors else 0, 2 if fields else 1)
    head = b"GGUF" + struct.pack("<IQQ", 3, *told) + ARCHITECTURE + fields + tensors
    return head + bytes(-len(head) % 32) + bytes(64)


def tensor(*shape: int, kind: int = 0, offset: int = 0) -> bytes:
    numbers = b"".join(struct.pack("<Q", length) for length in shape)
    return text("token_embd.weight") + struct.pack("<I", len(shape)) + numbers + struct.pack("<IQ", kind, offset)


def field(kind: int, value: bytes, name: str = "llama.block_count") -> bytes:
    return text(name) + struct.pack("<I", kind) + value


LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "empty file"),
    "magic": (lambda good: b"GGML" + good[4:], "does not begin with GGUF"),
    "version": (lambda good: good[:4] + struct.pack("<I", 9) + good[8:], "version 9"),
    "swapped": (lambda good: good[:4] + struct.pack(">I", 3) + good[8:], "version 50331648"),
    "tensors": (lambda _: made(counts=(2**60, 1)), "1,152,921,504,606,846,976 tensors"),
    "fields": (lambda _: made(counts=(0, 2**63)), "fields, and 10,000 is the most"),
    "name": (lambda good: good[:24] + struct.pack("<Q", 2**60) + good[32:], "needs 1,152,921,504,606,846,976 bytes"),
    "string": (lambda _: made(field(8, struct.pack("<Q", 2**60) + b"x")), "needs 1,152,921,504,606,846,976 bytes"),
    "not text": (lambda _: made(field(8, struct.pack("<Q", 2) + b"\xff\xfe")), "is no UTF-8"),
    "list": (lambda _: made(field(9, struct.pack("<IQ", 4, 2**60))), "items in field llama.block_count"),
    "short list": (lambda _: made(field(9, struct.pack("<IQ", 4, 9_000_000))), "needs 36,000,000 bytes"),
    "nested": (lambda _: made(field(9, struct.pack("<IQ", 9, 1))), "a list of the type 9"),
    "value type": (lambda _: made(field(77, b"")), "unknown type 77"),
    "twice": (lambda _: made(field(8, text("llama"), "general.architecture")), "is there twice"),
    "alignment": (lambda _: made(field(4, struct.pack("<I", 3), "general.alignment")), "no power of two"),
    "no dimensions": (lambda _: made(tensors=tensor()), "0 dimensions"),
    "dimensions": (
        lambda _: made(tensors=text("t") + struct.pack("<I", 2**31) + bytes(64)),
        "2147483648 dimensions",
    ),
    "negative": (lambda _: made(tensors=tensor(2**64 - 1, 4)), "impossible for F32"),
    "huge": (lambda _: made(tensors=tensor(2**31 - 1, 2**31 - 1)), "and the file has"),
    "odd": (lambda _: made(tensors=tensor(33, 1, kind=2)), "impossible for Q4_0"),
    "type": (lambda _: made(tensors=tensor(4, kind=99)), "unknown type 99"),
    "offset": (lambda _: made(tensors=tensor(4, offset=2**63)), "and the file has"),
    "end": (lambda good: good[:-1], "ends at"),
    "half": (lambda good: good[: len(good) // 2], "ends at"),
    "header": (lambda good: good[:100], "and the file has 100"),
    "architecture": (lambda good: good.replace(b"general.architecture", b"general.architectura"), "no architecture"),
    "overlap": (
        lambda _: made(
            tensors=tensor(4) + tensor(4).replace(b"token_embd.weight", b"outpt_norm.weight"), counts=(2, 1)
        ),
        "lies inside another",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_one_error_in_little_time_and_memory(lie: str, honest: bytes, tmp_path: Path) -> None:
    change, said = LIES[lie]
    file = tmp_path / "lie.gguf"
    file.write_bytes(change(honest))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError, match=r"lie\.gguf is no GGUF file that can be read: ") as raised:
        planned(ModelEntry(kind="local", path=str(file)), tmp_path)
    assert said in str(raised.value)
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


def test_a_part_of_a_model_is_refused_with_the_tool_that_joins_them(tmp_path: Path) -> None:
    file = tmp_path / "model-00001-of-00003.gguf"
    file.write_bytes(made(field(2, struct.pack("<H", 3), "split.count")))
    with pytest.raises(UserError, match="one of 3 files that one model is split into.*llama-gguf-split --merge"):
        planned(ModelEntry(kind="local", path=str(file)), tmp_path)


NUMBERS = {
    "llama.block_count": (4, struct.pack("<I", 2**31), "block_count is 2147483648"),
    "llama.embedding_length": (5, struct.pack("<i", -48), "embedding_length is -48"),
    "llama.attention.head_count": (4, struct.pack("<I", 0), "no layer has attention"),
    "llama.feed_forward_length": (4, struct.pack("<I", 41), r"ffn_gate.weight has the shape \[40, 48\]"),
    "llama.rope.dimension_count": (4, struct.pack("<I", 4), "only a part of each head"),
    "llama.attention.layer_norm_rms_epsilon": (6, struct.pack("<f", float("nan")), "layer_norm_rms_epsilon is nan"),
    "llama.context_length": (8, text("many"), "context_length is many"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_contradict_the_tensors_are_one_error(name: str, honest: bytes, tmp_path: Path) -> None:
    kind, value, said = NUMBERS[name]
    file = tmp_path / "lie.gguf"
    file.write_bytes(replaced(honest, name, kind, value))
    assert read_header(file).fields[name] != read_header_of(honest, tmp_path).fields[name]
    with pytest.raises(UserError, match=f"can't be read as a llama of llama.cpp: .*{said}"):
        read_back(file, tmp_path)


def test_what_a_llama_does_not_have_is_refused(honest: bytes, tmp_path: Path) -> None:
    file = tmp_path / "lie.gguf"
    file.write_bytes(honest.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_up.weighz"))
    with pytest.raises(
        UserError, match=r"blk\.1\.ffn_up\.weight \(model\.layers\.1\.mlp\.up_proj\.weight\) is missing"
    ):
        read_back(file, tmp_path)
    (tmp_path / "read").rmdir()
    file.write_bytes(replaced(honest, "general.architecture", 8, text("oracle")))
    with pytest.raises(UserError, match="llama.cpp's architecture 'oracle'. Read are: .*deci.*llama"):
        read_back(file, tmp_path)


def read_header_of(content: bytes, root: Path) -> Header:
    (root / "honest.gguf").write_bytes(content)
    return read_header(root / "honest.gguf")


def replaced(content: bytes, name: str, kind: int, value: bytes) -> bytes:
    """Return the file with another value of a field, its data where it is to be."""
    at = content.index(text(name))
    start = at + len(text(name))
    old = struct.unpack_from("<I", content, start)[0]
    size = {4: 4, 5: 4, 6: 4}.get(old) or 8 + struct.unpack_from("<Q", content, start + 4)[0]
    reader = gguf_start(content)
    head = content[:start] + struct.pack("<I", kind) + value + content[start + 4 + size : reader[0]]
    return head + bytes(-len(head) % 32) + content[reader[1] :]


def gguf_start(content: bytes) -> tuple[int, int]:
    """Return where the header ends and where the data begins: the last tensor's entry is its end."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(content)
        file.flush()
        found = gguf.GGUFReader(file.name)
        last = found.tensors[-1].field
        return last.offset + sum(int(part.nbytes) for part in last.parts), found.data_offset

"""Model directories that are damaged, lie or are meant to harm, each made from a good one when it is asked for."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "1" * 10_000

Change = Callable[[Path], None]


def changed(good: Path, target: Path, change: Change) -> Path:
    """Return a copy of a model directory after `change`."""
    shutil.copytree(good, target)
    change(target)
    return target


def written(name: str, content: str | bytes) -> Change:
    """Write other content over a file."""
    return lambda directory: _write(directory / name, content)


def fields(name: str, **values: Any) -> Change:
    """Set fields of a JSON file."""
    return lambda directory: _write(directory / name, json.dumps(json.loads((directory / name).read_text()) | values))


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the header of the weights; the tensors' bytes stay."""

    def rewrite(directory: Path) -> None:
        content = (directory / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        found = json.loads(content[8 : 8 + length])
        result = change(found)
        text = json.dumps(found if result is None else result).encode()
        (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return rewrite


def tensor(**values: Any) -> Change:
    """Set fields of the first tensor's entry in the header; None removes a field."""

    def change(found: dict[str, Any]) -> None:
        entry = found[first(found)]
        entry |= values
        for name in [name for name, value in entry.items() if value is None]:
            del entry[name]

    return header(change)


def first(found: Mapping[str, Any]) -> str:
    """Return the name of the first tensor in a header."""
    return min(name for name in found if name != "__metadata__")


def sharded(index: Any) -> Change:
    """Give the weights an index; "SHARD" in it stands for the file that has them."""

    def change(directory: Path) -> None:
        (directory / WEIGHTS).rename(directory / "model-00001-of-00001.safetensors")
        text = index if isinstance(index, str) else json.dumps(index)
        _write(directory / INDEX, text.replace("SHARD", "model-00001-of-00001.safetensors"))

    return change


def _overwritten(directory: Path, number: bytes) -> None:
    """Write 32-bit numbers over the last of the weights."""
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[:-256] + number * 64)


def _write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


JSONS = {
    "empty": "",
    "cut": '{"model_type": "lla',
    "a list": "[]",
    "null": "null",
    "text": '"llama"',
    "deep": DEEP,
    "a long number": '{"model_type": ' + LONG + "}",
    "half a character": '{"model_type": "\\ud800"}',
    "not UTF-8": b'{"model_type": "\xff"}',
    "NaN": '{"model_type": NaN}',
    "infinity": '{"model_type": 1e999}',
    "UTF-16": '{"model_type": "llama"}'.encode("utf-16"),
}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
WRONG_SIZES: dict[str, Any] = {
    "text": "48",
    "zero": 0,
    "negative": -3,
    "a fraction": 1.5,
    "true": True,
    "a list": [48],
    "1e5": 100_000,
    "1e9": 1_000_000_000,
    "1e30": 10**30,
}

MODELS: dict[str, Change] = {
    **{f"config.json: {name}": written(CONFIG, content) for name, content in JSONS.items()},
    **{
        f"config.json: {size} is {name}": fields(CONFIG, **{size: value})
        for size in (*SIZES, "vocab_size")
        for name, value in WRONG_SIZES.items()
    },
    "config.json: hidden_act is unknown": fields(CONFIG, hidden_act="no such"),
    "config.json: hidden_act is a number": fields(CONFIG, hidden_act=3),
    "config.json: model_type is unknown": fields(CONFIG, model_type="no such"),
    "config.json: model_type is a list": fields(CONFIG, model_type=["llama"]),
    "config.json: model_type is missing": fields(CONFIG, model_type=None),
    "config.json: quantised": fields(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}),
    "config.json: quantised by nothing known": fields(CONFIG, quantization_config={"quant_method": "no such"}),
    "config.json: quantised as text": fields(CONFIG, quantization_config="gptq"),
    "config.json: layer_shapes is text": fields(CONFIG, layer_shapes="123"),
    "config.json: layer_shapes is short": fields(CONFIG, layer_shapes=[[6, 3, 40]]),
    "config.json: layer_shapes lies": fields(CONFIG, layer_shapes=[[6, 3, 40]] * 3),
    "config.json: layer_shapes of strings": fields(CONFIG, layer_shapes=[["6", "3", "40"]] * 3),
    "config.json: layer_shapes without keys": fields(CONFIG, layer_shapes=[[6, 0, 40]] * 3),
    "config.json: auto_map": fields(CONFIG, auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil"),
    "config.json: rope is text": fields(CONFIG, rope_parameters="fast"),
    "config.json: eps is text": fields(CONFIG, rms_norm_eps="small"),
    "weights: empty": written(WEIGHTS, b""),
    "weights: seven bytes": written(WEIGHTS, b"1234567"),
    "weights: a header of 2^63 bytes": written(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"),
    "weights: a header alone": written(WEIGHTS, struct.pack("<Q", 2) + b"{}"),
    "config.json: a hidden size below the heads": fields(CONFIG, hidden_size=4),
    "weights: no JSON": written(WEIGHTS, struct.pack("<Q", 4) + b"{{{{"),
    "weights: deep": written(WEIGHTS, struct.pack("<Q", len(DEEP)) + DEEP.encode()),
    "weights: a list": header(lambda found: [1]),
    "weights: no tensors": header(lambda found: {}),
    "weights: an integer for an entry": header(lambda found: found.__setitem__(first(found), 3)),
    "weights: no data_offsets": tensor(data_offsets=None),
    "weights: no shape": tensor(shape=None),
    "weights: no dtype": tensor(dtype=None),
    "weights: dtype is a number": tensor(dtype=3),
    "weights: dtype is unknown": tensor(dtype="F31"),
    "weights: negative shape": tensor(shape=[-1, 48]),
    "weights: shape of strings": tensor(shape=["96", "48"]),
    "weights: another shape": tensor(shape=[3, 3]),
    "weights: an enormous shape": tensor(shape=[2**40, 2**40]),
    "weights: offsets backwards": tensor(data_offsets=[64, 0]),
    "weights: offsets behind the end": tensor(data_offsets=[0, 2**40]),
    "weights: offsets of strings": tensor(data_offsets=["0", "64"]),
    "weights: a tensor is missing": header(lambda found: found.pop(first(found)) and None),
    "weights: NaN": lambda directory: _overwritten(directory, b"\x00\x00\xc0\x7f"),
    "index: a list": sharded([]),
    "index: null": sharded("null"),
    "index: empty": sharded({}),
    "index: no shards": sharded({"weight_map": {}}),
    "index: weight_map is a list": sharded({"weight_map": ["SHARD"]}),
    "index: a missing shard": sharded({"weight_map": {"a": "SHARD", "b": "model-00002-of-00002.safetensors"}}),
    "index: a shard elsewhere": sharded({"weight_map": {"a": "SHARD", "b": "../../etc/passwd"}}),
    "index: shards are numbers": sharded({"weight_map": {"a": 3}}),
    "index: deep": sharded(DEEP),
    **{f"tokenizer.json: {name}": written("tokenizer.json", content) for name, content in JSONS.items()},
    **{f"tokenizer_config.json: {name}": written("tokenizer_config.json", content) for name, content in JSONS.items()},
    "tokenizer_config.json: auto_map": fields(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}, tokenizer_class="Evil"
    ),
    "tokenizer_config.json: class is unknown": fields("tokenizer_config.json", tokenizer_class="NoSuchTokenizer"),
    "tokenizer_config.json: class is a number": fields("tokenizer_config.json", tokenizer_class=3),
    **{f"generation_config.json: {name}": written("generation_config.json", text) for name, text in JSONS.items()},
}
"""Every case by its name. None may run code, and none may end in anything but a result or one error."""


def daily(case: str) -> bool:
    """Return whether a case is tried every day: one of each kind, and not every file with every damage."""
    file, _, what = case.partition(": ")
    if file == "config.json" and " is " in what and what.partition(" is ")[0] in (*SIZES, "vocab_size"):
        return what.startswith(("num_hidden_layers", "hidden_size")) and what.endswith(("text", "zero", "1e9"))
    repeated = file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json") and what in JSONS
    return not repeated or what in ("cut", "a list", "deep")

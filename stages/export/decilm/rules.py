"""The rules by which vLLM, SGLang and TensorRT-LLM read a DeciLM directory, one by one, each with its source.

They restate what the readers' code does. None of the readers runs here. A rule is about config.json, about the names of
files, or about the names and shapes of tensors, which the headers of the safetensors files have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.files import read_object
from stages.decoders.decilm import BY_FACTOR, SERVERS, width_from
from stages.decoders.headers import read_header
from stages.export.decilm import sources
from stages.export.decilm.tensors import Shape, expected, superfluous
from stages.stage import JSON

ROTARY = ("default", "linear", "llama3")
"""Types of rotary embeddings that the readers and transformers are known to compute alike."""
NUMBERS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size")
"""Fields of config.json that are whole numbers. TensorRT-LLM reads the last one for every model."""
FLAGS = ("tie_word_embeddings", "attention_bias", "qkv_bias", "mlp_bias")
CHANGING = ("layer_types", "sliding_window", "position_embedding_type", "logit_scale", "bias")
"""Fields by which a reader would compute something else."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What the rules look at: config.json, the shape of each tensor, and the names of the directory's files."""

    fields: JSON
    tensors: Mapping[str, Shape]
    files: frozenset[str]

    @property
    def blocks(self) -> list[JSON]:
        """The layers' records."""
        return list(self.fields["block_configs"])

    def parts(self, name: str) -> Iterator[tuple[int, JSON]]:
        """Yield the records of the attentions, or of the MLPs ("ffn"), that are there, each with its layer."""
        yield from ((index, block[name]) for index, block in enumerate(self.blocks) if not block[name]["no_op"])


Problems = Iterator[str]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its name, the code that it was read from, what breaks it, and the servers that have it."""

    name: str
    source: sources.Source
    problems: Callable[[Exported], Problems]
    servers: tuple[str, ...] = SERVERS


def broken(directory: Path, server: str) -> str:
    """Return the first rule that `directory` breaks for `server`, with the problem and the source; empty if none.

    Raises:
        UserError: config.json or a safetensors file can't be read.
    """
    read = exported(directory)
    for rule in RULES:
        if server in rule.servers and (problem := next(rule.problems(read), None)):
            return f"{rule.name}: {problem} ({rule.source})"
    return ""


def exported(directory: Path) -> Exported:
    """Return what the rules look at in `directory`."""
    headers = [read_header(path) for path in sorted(directory.glob("*.safetensors"))]
    tensors = {name: tuple(entry["shape"]) for header in headers for name, entry in header.items()}
    files = frozenset(path.name for path in directory.iterdir())
    return Exported(read_object(directory / "config.json"), tensors, files)


def _architecture(read: Exported) -> Problems:
    if read.fields.get("architectures") != ["DeciLMForCausalLM"]:
        yield f"architectures is {read.fields.get('architectures')}, not ['DeciLMForCausalLM']"


def _model_type(read: Exported) -> Problems:
    if read.fields.get("model_type") != "nemotron-nas":
        yield f"model_type is {read.fields.get('model_type')!r}, not 'nemotron-nas'"


def _code(read: Exported) -> Problems:
    named = (read.fields.get("auto_map") or {}).get("AutoConfig", "")
    if f"{named.partition('.')[0]}.py" not in read.files:
        yield f"auto_map names no configuration code that is there ({named!r})"


def _numbers(read: Exported) -> Problems:
    for name in NUMBERS:
        if not _is_size(read.fields.get(name)):
            yield f"{name} is {read.fields.get(name)!r}, not a whole number of at least 1"


def _flags(read: Exported) -> Problems:
    for name in FLAGS:
        if type(read.fields.get(name)) is not bool:
            yield f"{name} is {read.fields.get(name)!r}, not true or false"


def _one_record_a_layer(read: Exported) -> Problems:
    blocks, count = read.fields.get("block_configs"), read.fields["num_hidden_layers"]
    if not isinstance(blocks, list) or len(blocks) != count:
        yield f"block_configs has {len(blocks) if isinstance(blocks, list) else 'no'} records for {count} layers"


def _no_ops(read: Exported) -> Problems:
    for index, block in enumerate(read.blocks):
        for part in ("attention", "ffn"):
            if type(block.get(part, {}).get("no_op")) is not bool:
                yield f"layer {index}: {part}.no_op is not true or false"


def _no_linear(read: Exported) -> Problems:
    for index, block in enumerate(read.blocks):
        for part in ("attention", "ffn"):
            if block[part].get("replace_with_linear") is not False:
                yield f"layer {index}: {part}.replace_with_linear is not false"


def _first_attention(read: Exported) -> Problems:
    if read.blocks[0]["attention"]["no_op"]:
        yield "the first layer has no attention, and the residual stream starts there"


def _heads(read: Exported) -> Problems:
    heads = read.fields["num_attention_heads"]
    for index, attention in read.parts("attention"):
        group = attention.get("n_heads_in_group")
        if not _is_size(group) or heads % group:
            yield f"layer {index}: {heads} query heads can't be shared out in groups of {group!r}"


def _one_number_of_keys(read: Exported) -> Problems:
    groups = sorted({attention["n_heads_in_group"] for _, attention in read.parts("attention")})
    if len(groups) > 1:
        yield f"layers differ in their number of key/value heads (n_heads_in_group is {groups})"


def _factor_is_read(read: Exported) -> Problems:
    for index, ffn in read.parts("ffn"):
        if "ffn_mult" in ffn and not _is_factor(ffn["ffn_mult"]):
            yield f"layer {index}: ffn_mult is there, and is {ffn['ffn_mult']!r}, not a number"


def _factor_is_there(read: Exported) -> Problems:
    for index, block in enumerate(read.blocks):
        if "ffn_mult" not in block["ffn"]:
            yield f"layer {index}: ffn_mult is missing"


def _widths(read: Exported) -> Problems:
    for index, ffn in read.parts("ffn"):
        width = ffn.get("intermediate_size")
        if not _is_size(width):
            yield f"layer {index}: intermediate_size is {width!r}, not a whole number of at least 1"
        elif "ffn_mult" in ffn and width_from(ffn["ffn_mult"], read.fields["hidden_size"]) != width:
            computed = width_from(ffn["ffn_mult"], read.fields["hidden_size"])
            yield f"layer {index}: ffn_mult gives a width of {computed:,}, and intermediate_size is {width:,}"


def _activation(read: Exported) -> Problems:
    if read.fields.get("hidden_act") != "silu":
        yield f"hidden_act is {read.fields.get('hidden_act')!r}, not 'silu'"


def _rotary(read: Exported) -> Problems:
    scaling = read.fields.get("rope_scaling") or {}
    if not _is_factor(read.fields.get("rope_theta")):
        yield f"rope_theta is {read.fields.get('rope_theta')!r}, not a number"
    if scaling.get("rope_type", "default") not in ROTARY:
        yield f"rope_scaling is of type {scaling.get('rope_type')!r}. Known: {', '.join(ROTARY)}"
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        yield "only a part of each head is turned"


def _changing(read: Exported) -> Problems:
    for name in CHANGING:
        if read.fields.get(name) is not None:
            yield f"{name} is set, by which other things are computed"


def _attention_biases(read: Exported) -> Problems:
    if read.fields["qkv_bias"] != read.fields["attention_bias"]:
        yield "q, k and v have a bias and o has none, or the other way round; one flag holds for all four"


def _no_mlp_bias(read: Exported) -> Problems:
    if read.fields["mlp_bias"]:
        yield "mlp_bias is true, and an MLP has no biases"


def _no_bias(read: Exported) -> Problems:
    for name in FLAGS[1:]:
        if read.fields[name]:
            yield f"{name} is true, and no map has a bias"


def _every_tensor(read: Exported) -> Problems:
    for name, shape in expected(read.fields).items():
        if read.tensors.get(name) != shape:
            yield f"{name} has to be {list(shape)}, and is {list(read.tensors.get(name, ())) or 'not there'}"


def _no_other_tensor(read: Exported) -> Problems:
    known = expected(read.fields)
    for name in read.tensors:
        if name not in known and not superfluous(name, read.fields):
            yield f"{name} has no place in the model that config.json tells"


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


RULES = (
    Rule("the architecture is named", sources.TENSORRT, _architecture),
    Rule("the model type is nemotron-nas", sources.VLLM_CONFIG, _model_type),
    Rule("configuration code makes records objects", sources.VLLM, _code),
    Rule("sizes are whole numbers", sources.TENSORRT_CONFIG, _numbers),
    Rule("flags are true or false", sources.VLLM, _flags),
    Rule("each layer has a record", sources.VLLM, _one_record_a_layer),
    Rule("each record says which parts are absent", sources.VLLM, _no_ops),
    Rule("no part is a linear map", sources.TENSORRT, _no_linear),
    Rule("the first layer has an attention", sources.VLLM, _first_attention),
    Rule("query heads are shared out evenly", sources.VLLM, _heads),
    Rule("all layers have one number of key/value heads", sources.SGLANG_CONFIG, _one_number_of_keys, ("sglang",)),
    Rule("a factor that is there is a number", sources.VLLM, _factor_is_read),
    Rule("every MLP has a factor", sources.SGLANG, _factor_is_there, BY_FACTOR),
    Rule("factors give the widths", sources.VLLM, _widths),
    Rule("the activation is silu", sources.VLLM_LLAMA, _activation),
    Rule("rotary embeddings are of a known type", sources.VLLM, _rotary),
    Rule("nothing else is computed", sources.VLLM_LLAMA, _changing),
    Rule("all four maps of an attention have a bias, or none", sources.SGLANG_LLAMA, _attention_biases, ("sglang",)),
    Rule("no MLP has a bias", sources.SGLANG_LLAMA, _no_mlp_bias, ("sglang",)),
    Rule("there are no biases", sources.TENSORRT, _no_bias, ("tensorrt",)),
    Rule("every tensor is there in its shape", sources.VLLM, _every_tensor),
    Rule("no other tensor is there", sources.VLLM, _no_other_tensor),
)
"""In the order in which they are checked. A rule may rest on those before it."""

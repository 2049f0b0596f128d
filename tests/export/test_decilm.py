"""`export=decilm`: transformers loads it with our logits, and the checker knows every rule of the servers' code."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.decoders import decoder, token_ids
from helpers.pruned_models import pruned
from helpers.world import World, make_world
from stages.common.files import read_json
from stages.decoders.card import SERVE, decilm_card
from stages.decoders.checkpoint import load_model, load_tokenizer, save_cut_model
from stages.decoders.decilm import SERVERS, TILE, ffn_mult, width_from
from stages.decoders.lineage import lineage
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.export.decilm.rules import RULES, Exported, broken, exported
from stages.export.decilm.write import CODE, tensor_parallel, travelling, write
from stages.prune.groups import Kept, Selection, keep_all, kept_shape
from stages.prune.surgery import cut

SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED |= {"original_max_position_embeddings": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": SCALED}),
    "mistral": ("mistral", {"tie_word_embeddings": True, "sliding_window": 64}),
    "qwen2": ("qwen2", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
}


def differing(directory: Path, family: str = "llama", width: int = 40, **options: Any) -> Path:
    """Write a model whose layers lack an attention, an MLP and channels, as the prune stage leaves it."""
    dense = decoder(family, num_hidden_layers=4, intermediate_size=width, **options)
    whole, model = keep_all(LayerShape(6, 3, width)), copy.deepcopy(dense)
    narrow = Kept(whole.heads, whole.kv_heads, list(range(width // 2)))
    selection = Selection([whole, Kept([], [], whole.mlp), Kept(whole.heads, whole.kv_heads, []), narrow])
    dense.save_pretrained(directory / "dense")
    cut(model, selection)
    shape = kept_shape(DecoderShape.from_config(dense.config.to_dict()), selection)
    save_cut_model(model, shape, directory / "model", like=directory / "dense", dtype="float32", record={})
    return directory / "model"


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_an_export_with_the_logits_and_the_text_of_the_model(name: str, tmp_path: Path) -> None:
    family, options = MODELS[name]
    source, output = differing(tmp_path, family, **options), tmp_path / "out"
    summary = write(source, output, server="vllm")
    made, report = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values())
    reference, ids = load_model(source, dtype="float32"), token_ids(2)
    with torch.no_grad():
        assert torch.equal(made(ids).logits, reference(ids).logits)
        texts = [model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0) for model in (made, reference)]
    assert torch.equal(*texts)
    made.set_attn_implementation("eager")
    assert made.model.layers[3].self_attn.config._attn_implementation == "eager"
    assert made.num_parameters() == reference.num_parameters()
    windowed = any("sliding window" in remark for remark in summary["remarks"])
    assert windowed == (name == "mistral")
    assert made.config.max_position_embeddings == (64 if windowed else 128)
    made.save_pretrained(tmp_path / "again")
    assert not broken(tmp_path / "again", "vllm")


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_query_heads_need_not_divide_the_hidden_size(family: str, tmp_path: Path) -> None:
    dense = decoder(family, num_key_value_heads=6)
    kept = [Kept([0, 1, 2, 4, 5], [0, 1, 2, 4, 5], list(range(width))) for width in (40, 31, 40)]
    model, selection = copy.deepcopy(dense), Selection(kept)
    dense.save_pretrained(tmp_path / "dense")
    cut(model, selection)
    shape = kept_shape(DecoderShape.from_config(dense.config.to_dict()), selection)
    source = tmp_path / "model"
    save_cut_model(model, shape, source, like=tmp_path / "dense", dtype="float32", record={})
    write(source, tmp_path / "out", server="vllm")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert (made.config.num_attention_heads, made.config.num_key_value_heads, made.config.head_dim) == (5, 5, 8)
    with torch.no_grad():
        assert torch.equal(made(token_ids(2)).logits, load_model(source, dtype="float32")(token_ids(2)).logits)
    made.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again", trust_remote_code=True).num_attention_heads == 5


def test_servers_read_records_as_objects_and_a_factor_only_where_one_needs_it(tmp_path: Path) -> None:
    source = differing(tmp_path, width=512)
    for server in SERVERS:
        write(source, tmp_path / server, server=server)
        made = AutoModelForCausalLM.from_pretrained(tmp_path / server, trust_remote_code=True)
        first, second, third, fourth = made.config.block_configs
        assert (first.attention.no_op, first.attention.n_heads_in_group, second.attention.no_op) == (False, 2, True)
        assert (third.ffn.no_op, fourth.ffn.intermediate_size) == (True, 256)
        assert hasattr(first.ffn, "ffn_mult") == (server != "vllm")
        assert (made.config.rope_theta, made.config.rope_parameters["rope_theta"]) == (1e4, 1e4)
        if server != "vllm":
            assert [width_from(block.ffn.ffn_mult, 48) for block in (first, second, fourth)] == [512, 512, 256]
            # vLLM uses any factor, so it reads these too.
            assert not broken(tmp_path / server, "vllm")


@given(st.integers(1, 200), st.integers(8, 20_000))
def test_the_factor_gives_its_width_back_rounded_or_not(tiles: int, hidden: int) -> None:
    factor = ffn_mult(tiles * TILE, hidden)
    # Some readers round it to six digits.
    assert width_from(factor, hidden) == width_from(round(factor, 6) - 1e-6, hidden) == tiles * TILE


def test_the_tokenizer_splits_alike_beside_the_other_architecture(tmp_path: Path) -> None:
    source = pruned(tmp_path, "llama", "heads")
    files = write(source, tmp_path / "out", server="vllm")["files"]
    assert {"tokenizer.json", "tokenizer_config.json", "pruning.json"} <= set(files)
    text = "the correct answer is question é 12"
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert theirs(text)["input_ids"] == load_tokenizer(source)(text)["input_ids"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files)


def test_code_travels_without_this_project() -> None:
    for path in CODE:
        code = travelling(path.read_text())
        assert "stages" not in code
    assert "\nfrom .configuration_decilm import DeciLMConfig\n" in code


def test_cards_name_the_server_and_what_it_can_do(tmp_path: Path) -> None:
    source = differing(tmp_path, width=512)
    for server in SERVERS:
        summary = write(source, tmp_path / server, server=server)
        card = decilm_card(lineage(source), summary)
        assert SERVE[server] in card
        assert f"- {server}\n" in card
        assert "Tensor parallelism takes 1 GPU only" in card
    even = DecoderShape(
        family="llama",
        hidden=64,
        head_dim=8,
        vocabulary=9,
        tied=True,
        layers=(LayerShape(8, 2, 24), LayerShape(0, 0, 8)),
    )
    assert tensor_parallel(even) == [1, 2, 4, 8]
    assert tensor_parallel(even.with_layers([LayerShape(8, 2, 12)])) == [1, 2, 4]
    assert tensor_parallel(even.with_layers([LayerShape(6, 3, 12)])) == [1, 3, 6]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that keeps every rule of every server."""
    root = tmp_path_factory.mktemp("whole")
    write(differing(root, width=512), root / "out", server="tensorrt")
    assert not any(broken(root / "out", server) for server in SERVERS)
    return root / "out"


def block(part: str, index: int = 3, **values: Any) -> Callable[[Exported], None]:
    return lambda read: read.fields["block_configs"][index][part].update(values)


def field(**values: Any) -> Callable[[Exported], None]:
    return lambda read: read.fields.update(values)


def without_factor(read: Exported) -> None:
    del read.fields["block_configs"][3]["ffn"]["ffn_mult"]


def without(name: str) -> Callable[[Exported], None]:
    return lambda read: read.tensors.pop(name)  # type: ignore[attr-defined]


def with_tensor(name: str) -> Callable[[Exported], None]:
    return lambda read: read.tensors.update({name: (48,)})  # type: ignore[attr-defined]


BREAKS: dict[str, tuple[str, Callable[[Exported], Any]]] = {
    "the architecture is named": ("vllm", field(architectures=["LlamaForCausalLM"])),
    "the model type is nemotron-nas": ("vllm", field(model_type="llama")),
    "configuration code makes records objects": ("vllm", field(auto_map={"AutoConfig": "elsewhere.DeciLMConfig"})),
    "sizes are whole numbers": ("vllm", field(head_dim=None)),
    "flags are true or false": ("vllm", field(qkv_bias=None)),
    "each layer has a record": ("vllm", lambda read: read.fields["block_configs"].pop()),
    "each record says which parts are absent": ("vllm", block("attention", no_op=None)),
    "no part is a linear map": ("tensorrt", block("ffn", replace_with_linear=True)),
    "the first layer has an attention": ("vllm", block("attention", 0, no_op=True)),
    "query heads are shared out evenly": ("vllm", block("attention", n_heads_in_group=4)),
    "all layers have one number of key/value heads": ("sglang", block("attention", n_heads_in_group=6)),
    "a factor that is there is a number": ("vllm", block("ffn", ffn_mult=None)),
    "every MLP has a factor": ("sglang", without_factor),
    "factors give the widths": ("vllm", block("ffn", ffn_mult=9.0)),
    "the activation is silu": ("vllm", field(hidden_act="gelu")),
    "rotary embeddings are of a known type": ("vllm", field(rope_scaling={"rope_type": "yarn", "factor": 2.0})),
    "nothing else is computed": ("vllm", field(layer_types=["sliding_attention"] * 4)),
    "all four maps of an attention have a bias, or none": ("sglang", field(qkv_bias=True)),
    "no MLP has a bias": ("sglang", field(mlp_bias=True)),
    "there are no biases": ("tensorrt", field(attention_bias=True)),
    "every tensor is there in its shape": ("vllm", without("model.layers.3.mlp.up_proj.weight")),
    "no other tensor is there": ("vllm", with_tensor("model.layers.1.input_layernorm.weight")),
}


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_each_rule_that_is_broken_is_named_with_its_source(
    rule: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, spoil = BREAKS[rule]
    read = exported(whole)
    read = replace(read, fields=copy.deepcopy(read.fields), tensors=dict(read.tensors))
    spoil(read)
    monkeypatch.setattr("stages.export.decilm.rules.exported", lambda directory: read)
    said = broken(whole, server)
    (source,) = (each.source for each in RULES if each.name == rule)
    assert said.startswith(f"{rule}: ")
    assert said.endswith(f"({source.project} {source.path} at {source.commit[:12]})")


def test_a_broken_directory_is_found_on_disk(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "spoilt")
    (tmp_path / "spoilt" / "configuration_decilm.py").unlink()
    assert "configuration code" in broken(tmp_path / "spoilt", "vllm")


def test_weights_that_the_config_does_not_tell_are_an_error_of_the_export(tmp_path: Path) -> None:
    source = differing(tmp_path)
    config = read_json(source / "config.json")
    config["layer_shapes"][3][2] = 8
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"layers.3.mlp.gate_proj.weight has to be \[8, 48\], and is \[20, 48\]"):
        write(source, tmp_path / "out", server="vllm")


@pytest.mark.parametrize("kind", ["differing", "attention"])
def test_what_decilm_can_not_say_is_refused_with_the_remedy(kind: str, tmp_path: Path) -> None:
    said = {"differing": "one number of query heads", "attention": "this first layer has none"}[kind]
    with pytest.raises(UserError, match=f"{said}.*prune.shapes=served"):
        write(pruned(tmp_path, "llama", kind), tmp_path / "out", server="vllm")


def test_biases_and_widths_that_a_server_lacks_are_refused(tmp_path: Path) -> None:
    for name, family in (("bias", "qwen2"), ("width", "llama")):
        source = differing(tmp_path / name, family)
        for server in ("sglang", "tensorrt"):
            with pytest.raises(UserError, match="prune.serve=vllm"):
                write(source, tmp_path / name / server, server=server)


def test_other_rotary_embeddings_break_a_rule(tmp_path: Path) -> None:
    source = differing(tmp_path, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(UserError, match="rotary embeddings are of a known type"):
        write(source, tmp_path / "out", server="vllm")


def test_per_layer_config_stays_out_of_config_json_while_it_breaks_a_plain_read(tmp_path: Path) -> None:
    source = differing(tmp_path)
    write(source, tmp_path / "out", server="vllm")
    for directory in (source, tmp_path / "out"):
        assert "per_layer_config" not in read_json(directory / "config.json")
        # The reason: whoever then asks a configuration for its width gets an error, which no default of getattr
        # catches. The classes that build the models ask it, too.
        fields = read_json(directory / "config.json") | {"per_layer_config": {"3": {"intermediate_size": 20}}}
        (directory / "config.json").write_text(json.dumps(fields))
        config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
        with pytest.raises(RuntimeError, match="per-layer attribute"):
            getattr(config, "intermediate_size", None)
        with pytest.raises(RuntimeError, match="per-layer attribute"):
            AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


BRIEF = ("adapter=none", "evaluate=none")
SERVED = ("prune=magnitude", "prune.granularity=[channels,attention,mlp]", "prune.allocation=global")


def test_a_run_ends_with_the_directory_and_its_card(world: World) -> None:
    world.run(*BRIEF, *SERVED, "prune.shapes=served", "export=decilm")
    (directory,) = (world.root / "artifacts" / "export").glob("decilm-*")
    assert not broken(directory, "vllm")
    made = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    (source,) = (world.root / "artifacts" / "prune").glob("*/model")
    ids = token_ids(1)
    with torch.no_grad():
        assert torch.equal(made(ids).logits, load_model(source, dtype="float32")(ids).logits)
    card = (directory / "README.md").read_text()
    assert "vllm serve . --trust-remote-code" in card
    assert "## Results" in card


REFUSED = {
    "shapes that scores decide": ((*SERVED,), "prune.shapes=served takes the nearest"),
    "layers that are named": (("prune=llmpruner", "prune.layers=1"), "one number of query heads"),
    "a width that a server lacks": ((*SERVED, "prune.shapes=served", "prune.serve=sglang"), "multiples of 256"),
    "a bias": (("prune=flap", "prune.granularity=[channels]"), "prune.compensate=none"),
    "a precision": ((*SERVED, "export.dtype=f16"), "is the precision of a GGUF file"),
    "another server": ((*SERVED, "prune.serve=tgi"), "Known: sglang, tensorrt, vllm"),
    "another server without a cut": (("prune=none", "prune.serve=nothing"), "unknown prune.serve"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_exported_is_refused_in_the_plan(name: str, world: World) -> None:
    words, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        world.run(*BRIEF, *words, "export=decilm", store="unused")
    assert not (world.root / "unused").exists()


def test_the_server_enters_no_key_where_it_decides_nothing(world: World) -> None:
    def keys(*words: str) -> dict[str, str]:
        return {role: node.key for role, node in world.plan(*BRIEF, *words).roles.items()}

    served = ("prune=magnitude", "prune.granularity=[channels]", "prune.allocation=uniform")
    assert keys(*served) == keys(*served, "prune.serve=tensorrt")
    assert keys(*served, "export=hf") == keys(*served, "export=hf", "prune.serve=tensorrt")
    ours, theirs = (keys(*served, "export=decilm", f"prune.serve={server}") for server in ("vllm", "sglang"))
    assert {role for role in ours if ours[role] != theirs[role]} == {"export"}

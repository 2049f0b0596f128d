"""Pruned models load anywhere, and bad checkpoints nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaTokenizer, PreTrainedModel

from helpers.decoders import KINDS, decoder, token_ids
from stages.decoders.anatomy import decoder_layers
from stages.decoders.architecture import MODELLING_FILE
from stages.decoders.checkpoint import (
    count_parameters,
    load_model,
    load_tokenizer,
    save_cut_model,
    save_model,
    stored_dtype,
)
from stages.decoders.copies import copy_of
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.groups import Kept, Selection
from stages.prune.surgery import cut

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
UNIFORM = [Kept([0, 1, 4, 5], [0, 2], list(range(9, 40))), Kept([2, 3, 4, 5], [1, 2], list(range(31)))]
UNIFORM.append(UNIFORM[0])
DIFFERING = [Kept([], [], list(range(9))), Kept([2, 3], [1], []), Kept([2, 5], [1, 2], [0, 5, 6])]
"""Without attention, without MLP, and with one query head less in each group."""
FIVE_HEADS = [Kept([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], list(range(30)))] * 3
"""Five heads do not divide a hidden size of 48, which LlamaConfig refuses."""

ELSEWHERE = """
import json
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("stages", "pipeline", "conf"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

try:
    import stages
except ModuleNotFoundError:
    pass
else:
    sys.exit("this process can import the project")

def check(directory, trust):
    saved = load_file(directory + ".safetensors")
    options = {"trust_remote_code": True} if trust else {}
    model = AutoModelForCausalLM.from_pretrained(directory, **options).eval()
    with torch.no_grad():
        logits = model(saved["ids"]).logits
        prompt = saved["ids"][:, :8]
        cached = model.generate(prompt, max_new_tokens=6, do_sample=False)
        plain = model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=False)
    same = torch.equal(logits, saved["logits"])
    return {"class": type(model).__name__, "same_logits": same, "same_tokens": torch.equal(cached, plain)}

results = {name: check(directory, trust) for name, (directory, trust) in json.loads(sys.argv[1]).items()}
print(json.dumps(results))
"""

ABROAD: dict[str, tuple[list[Kept], dict[str, Any], str]] = {
    "llama": (UNIFORM, {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}, "LlamaForCausalLM"),
    "llama-as-mistral": (
        FIVE_HEADS,
        {"num_key_value_heads": 6, "rope_parameters": LLAMA3_ROPE},
        "MistralForCausalLM",
    ),
    "mistral": (UNIFORM, {"family": "mistral", "sliding_window": 6}, "MistralForCausalLM"),
    "llama-with-biases": (
        FIVE_HEADS,
        {"num_key_value_heads": 6, "attention_bias": True},
        "PrunedLlamaForCausalLM",
    ),
}
ABROAD |= {f"differing-{family}": (DIFFERING, {"family": family}, f"Pruned{KINDS[family][1]}") for family in KINDS}
"""What was cut, from which model, and the class that loads it."""


def save_cut(directory: Path, kept: list[Kept], family: str = "llama", **options: Any) -> PreTrainedModel:
    """Cut a tiny decoder and save it to `directory`; returns the live cut model."""
    model = decoder(family, **options)
    shape = DecoderShape.from_config(model.config.to_dict())
    cut(model, Selection(kept))
    layers = [LayerShape(len(k.heads), len(k.kv_heads), len(k.mlp)) for k in kept]
    source = directory.parent / "source"
    source.mkdir(exist_ok=True)
    save_cut_model(model, shape.with_layers(layers), directory, like=source, dtype="float32", record={"method": "test"})
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(token_ids()).logits
    return found


@pytest.fixture(scope="module")
def abroad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process that can't import this project finds on loading the cases of ABROAD."""
    home = tmp_path_factory.mktemp("abroad")
    jobs = {}
    for name, (kept, options, expected) in ABROAD.items():
        model = save_cut(home / name, kept, **options)
        save_file({"ids": token_ids(), "logits": logits(model)}, home / f"{name}.safetensors")
        stock = not expected.startswith("Pruned")
        assert stock == (not list((home / name).glob("*.py")))
        jobs[name] = (str(home / name), not stock)
    empty = home / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, json.dumps(jobs)],
        cwd=empty,
        env=os.environ | {"HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ABROAD)
def test_pruned_models_load_where_this_project_is_not_and_compute_the_same_bits(
    name: str, abroad: dict[str, Any]
) -> None:
    """Uniform shapes as stock models; differing ones, and five heads with biases, with the modelling file."""
    assert abroad[name] == {"class": ABROAD[name][2], "same_logits": True, "same_tokens": True}


CASES: dict[str, tuple[list[Kept], dict[str, Any]]] = {
    "uniform": (UNIFORM, {"tie_word_embeddings": True}),
    "as-mistral": (FIVE_HEADS, {"num_key_value_heads": 6}),
    "differing": (DIFFERING, {"tie_word_embeddings": True}),
    "biased": (FIVE_HEADS, {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True}),
}
cases = pytest.mark.parametrize(("kept", "options"), CASES.values(), ids=CASES)


@cases
def test_a_saved_model_gives_the_same_logits_to_the_bit(
    kept: list[Kept], options: dict[str, Any], tmp_path: Path
) -> None:
    model = save_cut(tmp_path / "cut", kept, **options)
    loaded = load_model(tmp_path / "cut", dtype="float32")
    assert torch.equal(logits(model), logits(loaded))
    assert count_parameters(model) == count_parameters(loaded)
    save_model(loaded, tmp_path / "again", like=tmp_path / "cut")
    assert torch.equal(logits(model), logits(load_model(tmp_path / "again", dtype="float32")))
    names = {path.name for path in (tmp_path / "cut").iterdir()}
    assert names <= {path.name for path in (tmp_path / "again").iterdir()}


@cases
def test_the_architecture_and_its_reason_are_written_down(
    kept: list[Kept], options: dict[str, Any], tmp_path: Path
) -> None:
    save_cut(tmp_path / "cut", kept, **options)
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    record = json.loads((tmp_path / "cut" / "pruning.json").read_text())
    assert record["architecture"]["model_type"] == config["model_type"]
    assert record["architecture"]["reason"]
    assert config["architectures"] == [type(load_model(tmp_path / "cut", dtype="float32")).__name__]


@cases
def test_peft_wraps_trains_and_merges_a_pruned_model(kept: list[Kept], options: dict[str, Any], tmp_path: Path) -> None:
    save_cut(tmp_path / "cut", kept, **options)
    targets = [
        projection.name for projection in decoder_layers(load_model(tmp_path / "cut", dtype="float32"))[0].projections
    ]
    adapted = get_peft_model(
        load_model(tmp_path / "cut", dtype="float32"),
        LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    adapted(token_ids(), labels=token_ids()).loss.backward()
    adapted.eval()
    expected = logits(adapted)
    merged = adapted.merge_and_unload()
    save_model(merged, tmp_path / "merged", like=tmp_path / "cut")
    found = logits(load_model(tmp_path / "merged", dtype="float32"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert (tmp_path / "merged" / "pruning.json").is_file()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("prefix_space", [True, False])
def test_text_is_split_as_for_the_dense_model(name: str, prefix_space: bool, tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "▁a", "ab"]
    tokenizer = LlamaTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[("▁", "a"), ("a", "b")],
        add_prefix_space=prefix_space,
    )
    source = tmp_path / "source"
    save_model(decoder(), source, like=tmp_path)
    tokenizer.save_pretrained(source)
    kept, options = CASES[name]
    save_cut(tmp_path / "cut", kept, **options)
    dense, cut_ = load_tokenizer(source), load_tokenizer(tmp_path / "cut")
    for text in ("ab c", " a  bc", "ab<s>c", "z"):
        assert cut_(text)["input_ids"] == dense(text)["input_ids"]
        assert cut_(text, add_special_tokens=False)["input_ids"] == dense(text, add_special_tokens=False)["input_ids"]
        assert cut_.decode(cut_(text)["input_ids"]) == dense.decode(dense(text)["input_ids"])
    assert (cut_.bos_token_id, cut_.eos_token_id, cut_.pad_token_id) == (
        dense.bos_token_id,
        dense.eos_token_id,
        dense.pad_token_id,
    )


def test_loading_here_never_executes_the_artifacts_own_code(tmp_path: Path) -> None:
    model = save_cut(tmp_path / "cut", DIFFERING)
    (tmp_path / "cut" / MODELLING_FILE.name).write_text("raise SystemExit('executed')\n")
    assert torch.equal(logits(load_model(tmp_path / "cut", dtype="float32")), logits(model))


def test_attention_can_be_switched_after_loading_a_model_of_differing_layers(tmp_path: Path) -> None:
    save_cut(tmp_path / "cut", DIFFERING)
    model = load_model(tmp_path / "cut", dtype="float32")
    expected = logits(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(token_ids(), output_attentions=True).attentions
    assert [w.shape[1] for w in weights] == [2, 2]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_loading_and_saving_show_no_bar_and_leave_those_of_other_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "dense").mkdir()
    save_model(decoder(), tmp_path / "dense", like=tmp_path)
    save_cut(tmp_path / "cut", UNIFORM)
    save_model(load_model(tmp_path / "dense", dtype="float32"), tmp_path / "again", like=tmp_path / "dense")
    copy_of(decoder(), dtype="float32")
    assert capfd.readouterr().err == ""
    assert [record.getMessage() for record in caplog.records] == []
    decoder().save_pretrained(tmp_path / "plain")
    assert "Writing model shards" in capfd.readouterr().err


def test_saving_replaces_a_directory_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "left-over.txt").write_text("old")
    save_model(decoder(), tmp_path / "out", like=tmp_path)
    assert not (tmp_path / "out" / "left-over.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    save_model(decoder(), tmp_path / "out", like=tmp_path)
    before = (tmp_path / "out" / "config.json").read_bytes()
    broken = decoder()
    broken.config.rope_parameters = {"rope_type": object()}
    with pytest.raises(TypeError):
        save_model(broken, tmp_path / "out", like=tmp_path)
    assert (tmp_path / "out" / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("damage", ["truncated", "no weights", "no config", "a tensor missing", "another shape"])
def test_a_damaged_checkpoint_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    model = decoder()
    save_model(model, tmp_path / "model", like=tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        (tmp_path / "model" / "config.json").unlink()
    else:
        state = model.state_dict()
        name = "model.layers.1.mlp.up_proj.weight"
        state[name] = state[name][:5].clone()
        if damage == "a tensor missing":
            del state[name]
        save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=str(tmp_path)):
        load_model(tmp_path / "model", dtype="float32")


def test_the_stored_precision_is_read_from_the_weights(tmp_path: Path) -> None:
    save_model(decoder().bfloat16(), tmp_path / "model", like=tmp_path)
    assert stored_dtype(tmp_path / "model") == "bfloat16"
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(UserError, match="truncated"):
        stored_dtype(tmp_path / "model")
    weights.unlink()
    with pytest.raises(UserError, match="no safetensors"):
        stored_dtype(tmp_path / "model")


def test_a_directory_without_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer.*prune\.calibration_ids"):
        load_tokenizer(tmp_path)

"""The prune stage from artifact to artifact."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from helpers.decoders import decoder, saved, token_ids
from helpers.pruning import prune
from stages.decoders.checkpoint import count_parameters, load_model, load_tokenizer, stored_dtype
from stages.errors import UserError
from stages.prune.config import Calibration
from stages.prune.criteria.block_influence import BlockInfluenceConfig
from stages.prune.criteria.llmpruner import LLMPrunerConfig
from stages.prune.criteria.magnitude import MagnitudeConfig
from stages.prune.criteria.random import RandomConfig
from stages.prune.criteria.surgeon import SurgeonConfig
from stages.prune.criteria.wanda import WandaConfig
from stages.prune.groups import Kept, Selection, composed
from stages.prune.statistics.gradients import calibration_loss

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "llmpruner"
IDS = token_ids().tolist()


def with_tokenizer(artifact: Path) -> Path:
    """Add a word-level tokenizer of letters to a model artifact."""
    vocabulary = {"<end>": 0, "<unk>": 1} | {chr(97 + i): i + 2 for i in range(26)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(artifact / "model")
    return artifact


def rows(directory: Path, count: int = 40) -> Path:
    """Write recovery rows of ten letters each, all different."""
    directory.mkdir()
    texts = [" ".join(chr(97 + (i * j + j) % 26) for j in range(10)) for i in range(count)]
    lines = [json.dumps({"prompt": text[:9] + " ", "response": text[10:], "task": "toy"}) + "\n" for text in texts]
    (directory / "train.jsonl").write_text("".join(lines))
    return directory


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_llm_pruners_selection_is_reproduced_from_a_directory_without_tokenizer(ratio: float, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "dense" / "model")
    ids = json.loads((GOLDEN / "calibration_ids.json").read_text())
    config = LLMPrunerConfig(channel_ratio=ratio, layers="1-4", calibration_ids=ids)
    _, record = prune(config, tmp_path / "dense", tmp_path / "pruned")

    golden = json.loads((GOLDEN / "selections.json").read_text())[f"param_first-sum-{ratio}"]
    for index, layer in enumerate(record["layers"]):
        assert layer["heads"] == layer["kv_heads"] == golden["kept"][str(index)]["heads"]
        assert layer["mlp"] == golden["kept"][str(index)]["mlp"]
    assert record["parameters"]["pruned"] == golden["params_after"]
    assert record["calibration"]["loss"]["dense"] == pytest.approx(golden["calibration_loss"], rel=1e-6)
    assert record["calibration"]["loss"]["pruned"] == pytest.approx(golden["loss_after"], rel=1e-6)


def test_a_pruned_model_keeps_the_dense_weights_at_the_kept_indices(tmp_path: Path) -> None:
    model = saved(decoder(tie_word_embeddings=True), tmp_path / "dense")
    summary, record = prune(LLMPrunerConfig(ratio=0.4, calibration_ids=IDS), model, tmp_path / "pruned")
    dense, cut = (load_file(a / "model" / "model.safetensors") for a in (model, tmp_path / "pruned"))
    assert sum(tensor.numel() for tensor in cut.values()) == record["parameters"]["pruned"]
    assert summary["ratio_achieved"] == pytest.approx(0.4, abs=0.005)
    for index, kept in enumerate(record["layers"]):
        name = f"model.layers.{index}.mlp.gate_proj.weight"
        assert torch.equal(cut[name], dense[name][kept["mlp"]])
        name = f"model.layers.{index}.self_attn.o_proj.weight"
        columns = [head * 8 + d for head in kept["heads"] for d in range(8)]
        assert torch.equal(cut[name], dense[name][:, columns])
        assert kept["heads"] == [2 * group + query for group in kept["kv_heads"] for query in range(2)]
    assert torch.equal(cut["model.embed_tokens.weight"], dense["model.embed_tokens.weight"])


@pytest.mark.parametrize("config", [MagnitudeConfig(ratio=0.3), RandomConfig(ratio=0.3)], ids=["magnitude", "random"])
def test_criteria_that_read_no_text_need_none(config: Any, tmp_path: Path) -> None:
    summary, record = prune(config, saved(decoder(), tmp_path / "dense"), tmp_path / "pruned")
    assert record["calibration"] is None
    assert summary["ratio_achieved"] == pytest.approx(0.3, abs=0.005)


def test_ratio_zero_gives_the_same_model(tmp_path: Path) -> None:
    model = saved(decoder(), tmp_path / "dense")
    config = LLMPrunerConfig(ratio=0.0, compensate="bias", calibration_ids=IDS)
    _, record = prune(config, model, tmp_path / "pruned")
    assert record["parameters"]["pruned"] == record["parameters"]["dense"]
    assert record["scores"] == [None] * 3
    before, after = (load_model(a / "model", dtype="float32") for a in (model, tmp_path / "pruned"))
    with torch.no_grad():
        assert torch.equal(before(token_ids()).logits, after(token_ids()).logits)


def test_calibration_rows_come_from_the_data_and_the_seed_chooses_them(tmp_path: Path) -> None:
    model, data = with_tokenizer(saved(decoder(), tmp_path / "dense")), rows(tmp_path / "data")
    records = []
    for run_number, seed in enumerate((0, 0, 1)):
        config = LLMPrunerConfig(ratio=0.3, calibration=Calibration(sequences=4, length=16), seed=seed)
        output = tmp_path / f"pruned-{run_number}"
        records.append(prune(config, model, output, data=data)[1])
        assert load_tokenizer(output / "model")("a b c")["input_ids"] == [2, 3, 4]
    assert records[0] == records[1]
    assert records[0]["calibration"]["loss"] != records[2]["calibration"]["loss"]
    assert records[0]["calibration"]["sequences"], records[0]["calibration"]["length"] == (4, 16)
    first, second = ((tmp_path / f"pruned-{n}/model/model.safetensors").read_bytes() for n in (0, 1))
    assert first == second


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_weights_are_saved_in_their_own_precision_whatever_scores_were_computed_in(stored: str, tmp_path: Path) -> None:
    model = decoder().to(getattr(torch, stored))
    dense = saved(model, tmp_path / "dense")
    config = LLMPrunerConfig(ratio=0.3, calibration_ids=IDS, dtype="bfloat16")
    _, record = prune(config, dense, tmp_path / "pruned")
    assert stored_dtype(tmp_path / "pruned" / "model") == stored
    kept, name = record["layers"][0]["mlp"], "model.layers.0.mlp.up_proj.weight"
    cut = load_file(tmp_path / "pruned" / "model" / "model.safetensors")[name]
    assert torch.equal(cut, model.state_dict()[name][kept])
    config_json = json.loads((tmp_path / "pruned" / "model" / "config.json").read_text())
    assert config_json["dtype"] == stored


def test_a_uniform_result_is_a_stock_model(tmp_path: Path) -> None:
    prune(MagnitudeConfig(ratio=0.3), saved(decoder(), tmp_path / "dense"), tmp_path / "pruned")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned" / "model")
    assert type(model).__module__.startswith("transformers.models.")


def test_a_pruned_model_can_be_pruned_again(tmp_path: Path) -> None:
    model = saved(decoder(), tmp_path / "dense")
    prune(MagnitudeConfig(ratio=0.1, layers="1"), model, tmp_path / "once")
    summary, _ = prune(MagnitudeConfig(ratio=0.2, again=True), tmp_path / "once", tmp_path / "twice")
    again = load_model(tmp_path / "twice" / "model", dtype="float32")
    assert count_parameters(again) == summary["parameters"]["pruned"]


def test_the_plan_is_printed_before_anything_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = decoder()
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError):
        prune(MagnitudeConfig(ratio=0.3), saved(broken, tmp_path / "dense"), tmp_path / "pruned")
    printed = capsys.readouterr().err
    assert "MLP channels" in printed
    assert "multiply-accumulates" in printed


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLMPrunerConfig(ratio=0.3), "has none"),
        (LLMPrunerConfig(ratio=0.3, taylor="param_frist", calibration_ids=IDS), "did you mean 'param_first'"),
        (LLMPrunerConfig(ratio=0.3, calibration_ids=[[1, 2, 96]]), "96 is outside the vocabulary of 96"),
        (LLMPrunerConfig(ratio=0.3, calibration_ids=[[1, 2], [1]]), "equally long"),
        (LLMPrunerConfig(ratio=0.99, calibration_ids=IDS), "more than can go"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error_and_leaves_nothing(config: Any, message: str, tmp_path: Path) -> None:
    model = saved(decoder(), tmp_path / "dense")
    with pytest.raises(UserError, match=message):
        prune(config, model, tmp_path / "pruned")
    assert not list((tmp_path / "pruned").iterdir())


def test_too_little_text_says_how_much_there_is(tmp_path: Path) -> None:
    model, data = with_tokenizer(saved(decoder(), tmp_path / "dense")), rows(tmp_path / "data", count=3)
    with pytest.raises(UserError, match=r"33 tokens in 3 rows.*4 × 16"):
        prune(
            LLMPrunerConfig(ratio=0.3, calibration=Calibration(sequences=4, length=16)),
            model,
            tmp_path / "pruned",
            data=data,
        )


def test_a_model_without_tokenizer_and_ids_says_what_to_give(tmp_path: Path) -> None:
    model = saved(decoder(), tmp_path / "dense")
    with pytest.raises(UserError, match="has no tokenizer"):
        prune(LLMPrunerConfig(ratio=0.3), model, tmp_path / "pruned", data=rows(tmp_path / "data"))


def test_a_loss_that_is_not_finite_names_the_layer(tmp_path: Path) -> None:
    broken = decoder()
    broken.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="layer 1 gives the first value that is not finite"):
        prune(LLMPrunerConfig(ratio=0.3, calibration_ids=IDS), saved(broken, tmp_path / "dense"), tmp_path / "pruned")


def test_scores_that_are_not_finite_name_the_layer(tmp_path: Path) -> None:
    broken = decoder()
    broken.model.layers[2].mlp.down_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(UserError, match="scores of layer 2 are not finite"):
        prune(MagnitudeConfig(ratio=0.3), saved(broken, tmp_path / "dense"), tmp_path / "pruned")


def selection(record: dict[str, Any]) -> Selection:
    return Selection([None if keep is None else Kept(**keep) for keep in record["layers"]], record["hidden"])


@pytest.mark.parametrize(
    "options",
    [
        {"allocation": "uniform"},
        {"allocation": "global", "compensate": "least_squares", "granularity": ["heads", "queries", "channels"]},
        {"allocation": "uniform", "granularity": ["hidden"], "method": "magnitude"},
        {"granularity": ["layers"], "method": "block_influence", "layers": "1-4"},
    ],
    ids=["uniform", "global", "hidden", "layers"],
)
def test_two_steps_are_what_pruning_twice_gives_by_index_into_the_dense_model(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = saved(decoder(num_hidden_layers=5), tmp_path / "dense")
    kind = {"magnitude": MagnitudeConfig, "block_influence": BlockInfluenceConfig}.get(options.get("method", ""))
    config = (kind or WandaConfig)(ratio=0.35, calibration_ids=IDS, steps=2, **options)
    summary, steps = prune(config, model, tmp_path / "steps")

    _, first = prune(replace(config, ratio=0.175, steps=1), model, tmp_path / "first")
    ratio = 1 - 0.65 * first["parameters"]["dense"] / first["parameters"]["pruned"]
    layers = "1-3" if options.get("layers") else "all"  # one of the layers 1-4 has gone
    second_config = replace(config, ratio=ratio, steps=1, again=True, layers=layers)
    _, second = prune(second_config, tmp_path / "first", tmp_path / "second")
    assert selection(steps) == composed(selection(first), selection(second))
    assert steps["parameters"]["pruned"] == second["parameters"]["pruned"]
    assert summary["ratio_requested"] == 0.35
    again = load_model(tmp_path / "steps" / "model", dtype="float32")
    assert count_parameters(again) == steps["parameters"]["pruned"]


def test_steps_so_small_that_nothing_goes_in_some_are_no_error(tmp_path: Path) -> None:
    model = saved(decoder(num_hidden_layers=5), tmp_path / "dense")
    config = BlockInfluenceConfig(ratio=0.17, granularity=["layers"], layers="1", calibration_ids=IDS, steps=6)
    _, record = prune(config, model, tmp_path / "pruned")
    assert [index for index, keep in enumerate(record["layers"]) if keep is None] == [1]


@pytest.mark.parametrize("allocation", ["uniform", "global", "searched"])
def test_protected_layers_keep_every_bit(allocation: str, tmp_path: Path) -> None:
    model = saved(decoder(), tmp_path / "dense")
    config = SurgeonConfig(
        ratio=0.2, layers="1", allocation=allocation, compensate="least_squares", calibration_ids=IDS
    )
    _, record = prune(config, model, tmp_path / "pruned")
    dense, cut = (load_file(a / "model" / "model.safetensors") for a in (model, tmp_path / "pruned"))
    for name, tensor in dense.items():
        if not name.startswith("model.layers.1."):
            assert torch.equal(cut[name], tensor), name
    assert record["layers"][1]["mlp"] != list(range(40))
    assert [entry is None for entry in record["scores"]] == [True, False, True]


def test_what_is_stored_in_bfloat16_is_scored_in_float32(tmp_path: Path) -> None:
    rounded = decoder().to(torch.bfloat16)
    records = []
    for name, model in (("bfloat16", rounded), ("float32", rounded.float())):
        config = SurgeonConfig(ratio=0.3, allocation="global", calibration_ids=IDS)
        records.append(
            prune(config, saved(model.to(getattr(torch, name)), tmp_path / name), tmp_path / f"{name}-cut")[1]
        )
    assert records[0]["scores"] == records[1]["scores"]
    assert records[0]["layers"] == records[1]["layers"]
    assert records[0]["calibration"]["loss"]["dense"] == records[1]["calibration"]["loss"]["dense"]


def test_the_record_says_what_was_asked_what_stays_and_how_clear_the_cut_was(tmp_path: Path) -> None:
    config = SurgeonConfig(
        ratio=0.3, allocation="global", granularity=["heads", "channels", "mlp"], calibration_ids=IDS
    )
    summary, record = prune(config, saved(decoder(), tmp_path / "dense"), tmp_path / "pruned")
    assert {"method", "options", "layers", "hidden", "parameters", "multiply_accumulates", "ratio"} <= set(record)
    assert {"calibration", "scores", "architecture", "remarks"} <= set(record)
    assert record["options"]["allocation"] == "global"
    assert "calibration_ids" not in record["options"]
    assert record["multiply_accumulates"]["pruned"] < record["multiply_accumulates"]["dense"]
    assert summary["layers"]["pruned"]["mlp"] == [len(keep["mlp"]) for keep in record["layers"]]
    for keep, scores in zip(record["layers"], record["scores"], strict=True):
        channels = scores["channels"]
        assert channels["min"] <= channels["mean"] <= channels["max"] == pytest.approx(scores["mlp"])
        assert (
            channels["lowest_kept"] is None or channels["highest_removed"] is None or len(keep["mlp"]) in range(1, 40)
        )
        if channels["lowest_kept"] is not None and channels["highest_removed"] is not None:
            assert channels["highest_removed"] <= channels["lowest_kept"]
    losses = record["calibration"]["loss"]
    assert calibration_loss(load_model(tmp_path / "pruned" / "model", dtype="float32"), token_ids()) == pytest.approx(
        losses["pruned"], rel=1e-6
    )

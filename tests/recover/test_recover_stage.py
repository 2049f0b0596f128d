from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.decoders import decoder, token_ids
from helpers.tiny_tokenizer import VOCABULARY
from helpers.toy import config, data_artifact, model_artifact, recovered
from stages.common.files import read_json, read_jsonl, write_jsonl
from stages.common.questions import ENOUGH
from stages.errors import UserError
from stages.recover.stage import run
from stages.stage import Context

IDS = token_ids(vocabulary=VOCABULARY)


def adapter_tensors(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter_model.safetensors")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def plain(directory: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, **options)


def test_the_merged_model_has_the_bases_shapes_tokenizer_and_tied_head(tmp_path: Path) -> None:
    output, _ = recovered(tmp_path, config(tokens=300))
    before = load_file(tmp_path / "base" / "model" / "model.safetensors")
    after = load_file(output / "model" / "model.safetensors")

    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert (output / "model" / "tokenizer.json").is_file()
    assert not list(output.rglob("checkpoint*"))


def test_nothing_in_the_artifact_names_where_it_was_made(tmp_path: Path) -> None:
    output, _ = recovered(tmp_path, config(tokens=300))

    for file in output.rglob("*.json*"):
        assert str(tmp_path) not in file.read_text(), file


def without(point: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name: value for name, value in point.items() if not name.startswith(prefix)}


def test_scores_of_questions_are_logged_where_there_are_enough(tmp_path: Path) -> None:
    inputs = {"model": model_artifact(tmp_path / "base"), "data": data_artifact(tmp_path / "data")}
    rows = list(read_jsonl(inputs["data"] / "validation.jsonl")) * 2
    for count in (ENOUGH, ENOUGH - 1):
        logged: list[dict[str, Any]] = []
        write_jsonl(inputs["data"] / "validation.jsonl", rows[:count])
        output = tmp_path / str(count)
        summary = run(config(tokens=100, validation_tokens=10_000), inputs, Context(output=output, log=logged.append))
        assert summary["validation"]["questions"] == count
        history = list(read_jsonl(output / "history.jsonl"))
        assert "curve_accuracy" in history[0]
        assert logged == (history if count == ENOUGH else [without(point, "curve_") for point in history])


def test_the_curve_begins_and_ends_with_a_measured_point_and_was_logged_as_it_appeared(tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = []
    inputs = {"model": model_artifact(tmp_path / "base"), "data": data_artifact(tmp_path / "data")}
    summary = run(config(), inputs, Context(output=tmp_path, log=logged.append))
    history = list(read_jsonl(tmp_path / "history.jsonl"))

    # Scores of a dozen questions are kept and not shown.
    assert [without(point, "curve_") for point in history] == logged
    validation = summary["validation"]
    names = ("validation_loss", "validation_perplexity", "curve_accuracy", "curve_bits_per_byte")
    facts = ("loss", "perplexity", "accuracy", "bits_per_byte")
    first = {name: validation[f"initial_{fact}"] for name, fact in zip(names, facts, strict=True)}
    assert history[0] == {"step": 0, "tokens": 0} | first
    assert [history[-1][name] for name in names] == [validation[f"final_{fact}"] for fact in facts]
    assert [point["step"] for point in history] == list(range(13))
    assert 3000 <= history[-1]["tokens"] < 3000 + 64
    assert [point["step"] for point in history if names[0] in point] == [0, 4, 8, 12]
    assert read_json(tmp_path / "recovery.json") == summary


def test_recovery_json_accounts_for_what_was_trained(tmp_path: Path) -> None:
    output, summary = recovered(tmp_path, config({"name": "rora", "rank": 4, "alpha": 8}))
    training = summary["training"]

    assert summary["adapter"]["scaling"] == 8 / sqrt(4)
    assert summary["parameters"]["trainable"] == sum(t.numel() for t in adapter_tensors(output).values())
    assert sum(training["rows_by_task"].values()) == training["rows"]
    assert set(training["rows_by_task"]) == {"toy0", "toy1"}
    assert training["epochs"] == training["rows"] / 120
    assert 0 < training["labelled_tokens"] < training["tokens"]


def test_the_seed_decides_the_adapter_and_the_global_generator_does_not(tmp_path: Path) -> None:
    short = {"tokens": 600, "adapter": {"dropout": 0.2}}
    torch.manual_seed(1)
    one, _ = recovered(tmp_path, config(**short), name="one")
    torch.manual_seed(2)
    again, _ = recovered(tmp_path, config(**short), name="again")
    other, _ = recovered(tmp_path, config(**short, seed=1), name="other")

    bytes_of = [(out / "adapter" / "adapter_model.safetensors").read_bytes() for out in (one, again, other)]
    assert bytes_of[0] == bytes_of[1]
    assert bytes_of[0] != bytes_of[2]


def test_a_base_stored_in_bfloat16_is_merged_with_one_rounding(tmp_path: Path) -> None:
    base = decoder(vocab_size=VOCABULARY).to(torch.bfloat16)
    output, _ = recovered(tmp_path, config(tokens=600), model=base)

    exact = PeftModel.from_pretrained(plain(tmp_path / "base" / "model", dtype=torch.float32), output / "adapter")
    expected = exact.merge_and_unload().state_dict()
    for name, tensor in load_file(output / "model" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name


def test_loss_on_all_tokens_trains_the_prompts_too(tmp_path: Path) -> None:
    _, response = recovered(tmp_path, config(tokens=600), name="response")
    _, everything = recovered(tmp_path, config(tokens=600, loss="all"), name="all")

    rows = everything["training"]["rows"]
    assert everything["training"]["labelled_tokens"] == everything["training"]["tokens"] - rows
    assert response["training"]["labelled_tokens"] < 0.5 * everything["training"]["labelled_tokens"]


def test_a_mistral_without_window_and_a_head_of_its_own_recovers(tmp_path: Path) -> None:
    model = decoder("mistral", vocab_size=VOCABULARY, sliding_window=None, tie_word_embeddings=False)
    output, summary = recovered(tmp_path, config(), model=model)

    assert summary["validation"]["final_loss"] < 0.75 * summary["validation"]["initial_loss"]
    assert plain(output / "model").config.model_type == "mistral"


def test_rows_longer_than_the_attention_window_are_an_error(tmp_path: Path) -> None:
    model = decoder("mistral", vocab_size=VOCABULARY, sliding_window=8)

    with pytest.raises(UserError, match=r"recover\.sequence_length=8"):
        recovered(tmp_path, config(), model=model)


def test_a_rate_that_blows_up_names_the_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    blowing_up = config({"alpha": 1e6}, learning_rate=1e6, gradient_clip=0.0)

    with pytest.raises(UserError, match=r"of step \d+ is (nan|inf).*Last good checkpoint: .*step-0"):
        recovered(tmp_path, blowing_up)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"adapter": {"name": "roraa"}}, r"unknown adapter 'roraa', did you mean 'rora'\?"),
        ({"adapter": {"rank": 0}}, r"adapter\.rank must be at least 1, and is 0"),
        ({"adapter": {"rank": -4}}, r"adapter\.rank must be at least 1, and is -4"),
        ({"adapter": {"alpha": 0.0}}, r"adapter\.alpha must be above 0"),
        ({"adapter": {"dropout": 1.0}}, r"adapter\.dropout must be in \[0, 1\)"),
        ({"adapter": {"targets": []}}, r"adapter\.targets must be"),
        ({"adapter": {"targets": ["q_prj"]}}, r"'q_prj' is no linear layer of this model, did you mean 'q_proj'\?"),
        ({"adapter": {"targets": ["lm_head"]}}, r"'lm_head' is no linear layer"),
        ({"curve_every": 0}, r"recover\.curve_every must be at least 1 token, and is 0"),
        ({"tokens": 0}, r"recover\.tokens must be at least 1 token"),
        ({"warmup": 1.0}, r"recover\.warmup must be in \[0, 1\)"),
        ({"schedule": "cosin"}, r"unknown schedule .* 'cosin', did you mean 'cosine'\?"),
        ({"schedule": "wsd", "decay": 0.0}, r"recover\.decay must be above 0"),
        ({"schedule": "wsd", "warmup": 0.3, "decay": 0.8}, r"recover\.decay .* with recover\.warmup=0\.3 at most 1"),
        ({"loss": "prompt"}, r"recover\.loss must be one of response, all, and is 'prompt'"),
        ({"dtype": "float8"}, r"dtype must be one of float32, bfloat16, and is 'float8'"),
    ],
)
def test_bad_options_are_errors_that_name_the_field_and_the_rule(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        recovered(tmp_path, config(**changed))


def test_a_model_without_tokenizer_is_an_error(tmp_path: Path) -> None:
    model_artifact(tmp_path / "base")
    data_artifact(tmp_path / "data")
    for file in (tmp_path / "base" / "model").glob("tokenizer*"):
        file.unlink()

    with pytest.raises(UserError, match="has no tokenizer"):
        recovered(tmp_path, config())


def test_the_adapter_configuration_is_what_peft_reads(tmp_path: Path) -> None:
    output, _ = recovered(tmp_path, config({"name": "rora"}, tokens=300))
    saved = json.loads((output / "adapter" / "adapter_config.json").read_text())

    assert saved["peft_type"] == "LORA"
    assert saved["use_rslora"] is True
    assert saved["target_modules"] == sorted(saved["target_modules"])

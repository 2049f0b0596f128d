"""Masks: how many zeros, where, and nothing else; from options and from recipes."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers.configurations import configuration
from helpers.decoders import KINDS as FAMILIES
from helpers.decoders import decoder, saved, token_ids
from pipeline.planning.build import build_graph
from stages.decoders.checkpoint import load_model
from stages.errors import UserError
from stages.prune.sparse.config import SparseMLConfig
from stages.prune.sparse.recipe import check
from stages.prune.stage import run
from stages.stage import Context

IDS = token_ids(16, 24)
KINDS = [(algorithm, mask) for algorithm in ("sparsegpt", "wanda", "magnitude") for mask in ("0:0", "2:4")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masks")
    saved(decoder(tie_word_embeddings=True), root / "dense")
    return root


def masked(root: Path, model: str = "dense", **options: Any) -> Path:
    """Run the stage with `options`, at half the weights unless told otherwise; returns the model's directory."""
    config = SparseMLConfig(calibration_ids=IDS.tolist(), **{"ratio": 0.5} | options)
    output = root / f"{model}-{abs(hash(repr(config)))}"
    if not output.exists():
        output.mkdir()
        run(config, {"model": root / model}, Context(output=output))
    return output / "model"


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "pruning.json").read_text())  # type: ignore[no-any-return]


def share(weight: Tensor) -> float:
    return float((weight == 0).float().mean())


@pytest.mark.parametrize(("algorithm", "mask"), KINDS)
def test_a_mask_has_the_share_and_the_pattern_asked_for_and_nothing_else_changes(
    algorithm: str, mask: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = masked(root, algorithm=algorithm, mask_structure=mask)
    dense, after, said = weights(root / "dense" / "model"), weights(directory), record(directory)

    assert after.keys() == dense.keys()
    assert len(said["masks"]) == 21
    for name, weight in after.items():
        if not name.endswith("_proj.weight"):
            assert torch.equal(weight, dense[name]), name
            continue
        assert share(weight) == pytest.approx(0.5, abs=0.002), name
        if mask == "2:4":
            assert ((weight.view(-1, 4) == 0).sum(1) == 2).all(), name
        entry = said["masks"][name.removesuffix(".weight")]
        assert (entry["zeros"], entry["weights"]) == (int((weight == 0).sum()), weight.numel())
        assert (entry["algorithm"], entry["structure"], entry["requested"]) == (algorithm, mask, 0.5)
    assert (directory / "config.json").read_text() == (root / "dense" / "model" / "config.json").read_text()
    reloaded = AutoModelForCausalLM.from_pretrained(directory)
    nonzero = sum(int(parameter.count_nonzero()) for parameter in reloaded.parameters())
    assert said["nonzeros"] == {"dense": sum(int(w.count_nonzero()) for w in dense.values()), "pruned": nonzero}
    assert said["parameters"]["dense"] == said["parameters"]["pruned"] == sum(w.numel() for w in dense.values())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
def test_every_family_is_masked_and_loads_again(family: str, root: Path) -> None:
    dense = saved(decoder(family), root / family) / "model"
    directory = masked(root, family, algorithm="wanda", mask_structure="1:4", ratio=0.25)

    modules = record(directory)["masks"]
    assert {entry["achieved"] for entry in modules.values()} == {0.25}
    assert len(modules) == sum(name.endswith("_proj.weight") for name in weights(dense))
    reloaded = load_model(directory, dtype="float32").state_dict()
    for name, weight in weights(dense).items():
        kept = (
            reloaded[name] != 0
            if name.removesuffix(".weight") in modules
            else torch.ones_like(weight, dtype=torch.bool)
        )
        assert torch.equal(reloaded[name], weight * kept), name


@pytest.mark.parametrize("mask", ["0:0", "2:4"])
def test_sparsegpt_changes_what_the_model_says_less_than_magnitude_does(mask: str, root: Path) -> None:
    @cache
    def logits(directory: Path) -> Tensor:
        with torch.no_grad():
            return load_model(directory, dtype="float32")(IDS).logits  # type: ignore[no-any-return]

    def error(algorithm: str) -> float:
        directory = masked(root, algorithm=algorithm, mask_structure=mask)
        return float((logits(directory) - logits(root / "dense" / "model")).pow(2).mean())

    assert error("sparsegpt") < 0.8 * error("magnitude")


def test_weights_stored_in_bfloat16_stay_so_and_bit_for_bit_where_nothing_is_masked(root: Path) -> None:
    saved(decoder().to(torch.bfloat16), root / "half")
    dense, after = weights(root / "half" / "model"), weights(masked(root, "half", algorithm="wanda", layers="1"))

    for name, weight in after.items():
        assert weight.dtype == torch.bfloat16
        if name.startswith("model.layers.1.") and name.endswith("_proj.weight"):
            assert share(weight) == 0.5
            assert torch.equal(weight[weight != 0], dense[name][weight != 0])  # Wanda only takes away
        else:
            assert torch.equal(weight, dense[name]), name


def test_a_built_in_recipe_masks_as_the_options_do(root: Path) -> None:
    recipe = masked(root, recipe="sparsegpt-2of4")
    options = masked(root, algorithm="sparsegpt", mask_structure="2:4")

    assert all(torch.equal(weight, weights(options)[name]) for name, weight in weights(recipe).items())


def test_a_recipe_masks_each_layer_by_the_modifier_that_names_it(root: Path, tmp_path: Path) -> None:
    modifiers = {
        "SparseGPTModifier": {"sparsity": 0.25, "targets": ["re:.*self_attn"]},
        "WandaPruningModifier": {"mask_structure": "2:4", "targets": "Linear", "ignore": ["re:.*self_attn"]},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"a_stage": {"b_modifiers": modifiers}}))
    directory = masked(root, recipe=str(path), ratio=0.3636)

    for name, entry in record(directory)["masks"].items():
        asked = (0.25, "sparsegpt") if "self_attn" in name else (0.5, "wanda")
        assert (entry["requested"], entry["algorithm"]) == asked
        assert entry["achieved"] == pytest.approx(asked[0], abs=0.002)
    assert torch.equal(
        weights(directory)["model.embed_tokens.weight"], weights(root / "dense" / "model")["model.embed_tokens.weight"]
    )


def test_the_content_of_a_recipe_decides_and_not_its_path(tmp_path: Path) -> None:
    def key(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        asked = ["prune=sparseml", "ratio=0.5", f"prune.recipe={tmp_path / name}"]
        return build_graph(configuration(*asked)).roles["prune"].key

    text = "a_stage: {b_modifiers: {WandaPruningModifier: {}}}"
    assert key("one.yaml", text) == key("two.yaml", f"# the same\n{text}")
    assert key("one.yaml", text) != key("two.yaml", text.replace("Wanda", "SparseGPT").replace("Pruning", ""))


def recipe(modifier: str = "WandaPruningModifier", arguments: Any = None, stage: str = "a_stage") -> dict[str, Any]:
    return {stage: {"b_modifiers": {modifier: arguments or {}}}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "sparsegtp"}, "prune.algorithm 'sparsegtp', did you mean 'sparsegpt'"),
        ({"mask_structure": "4:2"}, "mask_structure='4:2' must be N:M"),
        ({"mask_structure": "half"}, "mask_structure='half' must be N:M"),
        ({"mask_structure": "2:4", "ratio": 0.2}, r"ratio=0.2 and prune=sparseml disagree.* Say ratio=0\.5"),
        ({"ratio": 0.0}, r"ratio must be in \(0, 1\)"),
        ({"mask_structure": "3:6"}, "block_size must be a multiple of 6"),
        ({"dampening": 0.0}, "dampening must be above 0"),
        ({"targets": []}, "targets must be at least one"),
        ({"granularity": ["layers"]}, "prune.granularity is about groups"),
        ({"compensate": "bias"}, "prune.compensate is about groups"),
        ({"recipe": recipe(), "algorithm": "wanda"}, "prune.algorithm is given beside it"),
        ({"recipe": "wanda-2of"}, "no built-in recipe, did you mean 'wanda-2of4'"),
        ({"recipe": recipe(stage="a_stag")}, "'a_stag' does not end in '_stage', and llm-compressor would silently"),
        ({"recipe": {"a_stage": {"mods": {}}}}, "'mods' does not end in '_modifiers'"),
        ({"recipe": {"a_stage": {"b_modifiers": {}}}}, "no modifier, so nothing would be masked"),
        ({"recipe": {"a_stage": [1]}}, "a_stage must hold names with values"),
        ({"recipe": recipe("WandaPruningModifer")}, "did you mean 'WandaPruningModifier'"),
        ({"recipe": recipe("QuantizationModifier")}, r"asks for quantisation \(QuantizationModifier\)"),
        ({"recipe": recipe("GPTQModifier")}, "asks for quantisation"),
        ({"recipe": recipe("MagnitudePruningModifier")}, "changes nothing in one shot.*prune.algorithm=magnitude"),
        ({"recipe": recipe(arguments={"sparsty": 0.5})}, "'sparsty', did you mean 'sparsity'"),
        ({"recipe": recipe(arguments={"sparsity": [0.5, 0.6]})}, "sparsity must be one share"),
        ({"recipe": recipe(arguments={"sparsity": 0.6})}, r"Say ratio=0\.6"),
        ({"recipe": recipe(arguments={"sparsity": 0.3, "mask_structure": "2:4"})}, "sparsity must be 2/4"),
    ],
)
def test_what_can_not_be_masked_is_said_before_anything_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(SparseMLConfig(**{"ratio": 0.5} | options))


def test_a_recipe_that_is_no_yaml_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a_stage: [")
    with pytest.raises(UserError, match=r"bad\.yaml is no YAML: while parsing"):
        check(SparseMLConfig(ratio=0.5, recipe=str(tmp_path / "bad.yaml")))


TWICE = {"a_stage": {"b_modifiers": {"SparseGPTModifier": {}, "WandaPruningModifier": {"targets": "re:.*q_proj"}}}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["re:.*_prjo$"]}, "'re:.*_prjo\\$' names no linear layer of the decoder, did you mean"),
        ({"targets": ["lm_head"]}, "'lm_head' names no linear layer .*output head are left alone"),
        ({"mask_structure": "5:10", "block_size": 10}, "q_proj has 48 inputs, which 5:10 does not divide"),
        ({"recipe": TWICE}, r"two modifiers target model\.layers\.0\.self_attn\.q_proj"),
        ({"recipe": recipe(arguments={"ignore": "Linear"})}, "leaves nothing of"),
        ({"layers": "7"}, "this model has layers 0-2"),
    ],
)
def test_targets_that_the_model_lacks_are_an_error_and_nothing_is_saved(
    options: dict[str, Any], message: str, root: Path, tmp_path: Path
) -> None:
    config = SparseMLConfig(ratio=0.5, calibration_ids=IDS.tolist(), **options)
    with pytest.raises(UserError, match=message):
        run(config, {"model": root / "dense"}, Context(output=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_hessian_that_can_not_be_inverted_is_an_error_and_not_a_worse_mask(root: Path, tmp_path: Path) -> None:
    config = SparseMLConfig(ratio=0.5, dampening=1e-12, calibration_ids=[[5] * 2])
    with pytest.raises(UserError, match=r"could not invert the Hessian of .* prune\.calibration\.sequences"):
        run(config, {"model": root / "dense"}, Context(output=tmp_path))


def test_every_option_is_a_field_of_the_record(root: Path) -> None:
    said = record(masked(root, algorithm="magnitude"))

    every = {f.name for f in dataclasses.fields(SparseMLConfig) if not f.metadata.get("later")}
    assert said["options"].keys() == every - {"calibration_ids"}
    assert said["ratio"] == {"requested": 0.5, "achieved": 0.5}
    assert said["multiply_accumulates"]["dense"] == said["multiply_accumulates"]["pruned"]

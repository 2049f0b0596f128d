"""`export=hf` and `export=gguf` as a user runs them, and the cards that models carry."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from helpers.pruned_models import pruned
from helpers.world import World, make_world
from stages.common.files import read_json
from stages.decoders.card import LATER, adapter_card, gguf_card, model_card
from stages.decoders.lineage import Lineage
from stages.errors import UserError
from stages.export.place import place

BRIEF = ("adapter=none", "evaluate=none")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def artifact(world: World, stage: str) -> Path:
    (manifest,) = (world.root / "artifacts" / stage).glob("*/manifest.json")
    return manifest.parent


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_an_exported_gguf_lies_where_the_run_says_with_the_reports_results(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pipeline"):
        report = world.run(*BRIEF, "export=gguf", "export.dtype=f16")
    (said,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("export: ")]
    directory = Path(said.removeprefix("export: "))
    assert {path.name for path in directory.iterdir()} == {"model.gguf", "README.md", "manifest.json"}
    assert GGUFReader(directory / "model.gguf").fields["general.file_type"].contents() == 1
    card = (directory / "README.md").read_text()
    assert front_matter(card)["tags"][:3] == ["gguf", "llama.cpp", "pruned"]
    assert "matrices as f16" in card
    assert report["summary"].splitlines()[0] in card
    assert "Nothing was evaluated" in card

    again = world.run(*BRIEF, "export=gguf", "export.dtype=f16")
    assert {stage["status"] for stage in again["stages"]} == {"hit"}


def test_an_exported_directory_loads_and_has_the_card_with_results_in_place_of_the_models_own(world: World) -> None:
    world.run(*BRIEF, "export=hf")
    (directory,) = (world.root / "artifacts" / "export").glob("hf-*")
    model = artifact(world, "prune") / "model"
    assert {path.name for path in directory.iterdir()} == {path.name for path in model.iterdir()} | {"manifest.json"}
    assert (directory / "model.safetensors").stat().st_ino == (model / "model.safetensors").stat().st_ino
    AutoModelForCausalLM.from_pretrained(directory)
    ours, theirs = (path / "README.md" for path in (directory, model))
    assert LATER in theirs.read_text()
    assert LATER not in ours.read_text()
    assert "## Results" in ours.read_text()


def test_a_recovered_model_and_its_adapter_say_what_was_trained(world: World) -> None:
    world.run("adapter=rora", "evaluate=none")
    recovered = artifact(world, "recover")
    record = read_json(recovered / "recovery.json")
    card = (recovered / "model" / "README.md").read_text()
    assert f"{record['training']['tokens']:,} tokens" in card
    assert f"{record['parameters']['trainable']:,} parameters" in card
    assert "merged into the weights" in card
    assert {"pruned", "llmpruner", "rora"} <= set(front_matter(card)["tags"])
    card = (recovered / "adapter" / "README.md").read_text()
    assert front_matter(card)["library_name"] == "peft"
    assert "PeftModel.from_pretrained" in card


def test_a_card_of_a_pruned_model_has_the_sizes_and_how_it_was_cut(world: World) -> None:
    world.run(*BRIEF)
    model = artifact(world, "prune") / "model"
    card, record = (model / "README.md").read_text(), read_json(model / "pruning.json")
    for number in (*record["parameters"].values(), *record["multiply_accumulates"].values()):
        assert f"{number:,}" in card or number == record["multiply_accumulates"]["context"]
    assert f"{record['calibration']['loss']['pruned']:.3f}" in card
    assert "`taylor=param_first`" in card
    assert "trust_remote_code" not in card


def test_what_cannot_be_exported_is_refused_before_anything_runs(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'gguf'"):
        world.run("export.format=ggfu")
    qwen3 = pruned(tmp_path, "qwen3")
    with pytest.raises(UserError, match="llama.cpp's qwen3 takes one shape for all layers"):
        world.run(
            *BRIEF,
            f"model.path={qwen3}",
            "prune.again=true",
            "prune.layers=1",
            "ratio=0.05",
            "export=gguf",
            store="unused",
        )
    assert not (world.root / "unused").exists()


WRITABLE = {
    "searched": ("qwen3", ("prune=surgeon", "prune.allocation=searched"), "scores decide what each layer loses"),
    "ranked": ("qwen3", ("prune=magnitude", "prune.allocation=global"), "takes one shape for all layers"),
    "alike": ("qwen3", ("prune=surgeon", "prune.allocation=searched", "prune.shapes=alike"), ""),
    "heads": (
        "olmo2",
        ("prune=surgeon", "prune.allocation=searched", "prune.shapes=alike"),
        "only heads that fill the hidden size",
    ),
    "windows": (
        "gemma2",
        ("prune=magnitude", "prune.granularity=[layers]", "prune.allocation=global"),
        "sliding windows in fixed layers",
    ),
    "biases": (
        "qwen3",
        ("prune=magnitude", "prune.allocation=uniform", "prune.granularity=[channels]", "prune.compensate=bias"),
        "no place for biases",
    ),
}


@pytest.mark.parametrize("name", WRITABLE)
def test_a_shape_that_llama_cpp_may_not_take_is_refused_in_the_plan(name: str, world: World, tmp_path: Path) -> None:
    family, words, said = WRITABLE[name]
    asked = (*BRIEF, f"model.path={pruned(tmp_path, family)}", "prune.again=true", "ratio=0.1", "prune.layers=all")
    with pytest.raises(UserError, match=f"export=gguf: .*{said}") if said else nullcontext():
        world.run(*asked, *words, "export=gguf", "action=plan", store="unused")


CONFIG = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "head_dim": 4, "vocab_size": 9}
CONFIG |= {"num_key_value_heads": 2, "intermediate_size": 4, "num_hidden_layers": 3}


def test_layers_that_differ_load_with_their_modelling_file_and_stand_in_a_table() -> None:
    shapes = [[2, 2, 4], [2, 2, 4], [1, 1, 3]]
    config = CONFIG | {"model_type": "pruned_llama", "layer_shapes": shapes, "auto_map": {"AutoConfig": "m.C"}}
    card = model_card(Lineage(config=config, pruning={"method": "magnitude"}))
    assert "from_pretrained(directory, trust_remote_code=True)" in card
    assert "| 0 to 1 | 2 | 2 | 4 |\n| 2 | 1 | 1 | 3 |" in card
    record = {"scheme": "fp8", "method": "nearest", "engine": "e", "matrices": 1, "remarks": []}
    record |= {"bytes": {"before": 2, "after": 1}}
    assert "vllm serve" not in model_card(Lineage(config=config), record), "vLLM has no class for them"
    assert "vllm serve ." in model_card(Lineage(config=CONFIG), record)


def test_base_and_license_are_in_the_front_matter_as_the_hub_reads_them() -> None:
    base = {"repo": "someone/tiny", "revision": "0123456789abcdef", "license": "mit"}
    card = model_card(Lineage(config=CONFIG, base=base, pruning={"method": "wanda", "ratio": {"achieved": 0.25}}))
    matter = front_matter(card)
    assert (matter["base_model"], matter["license"]) == ("someone/tiny", "mit")
    assert matter["library_name"] == "transformers"
    assert "# someone/tiny, pruned by 25.0 % (wanda)" in card
    assert "(`someone/tiny` at 0123456789ab)" in card


def test_masks_are_called_masks_and_their_adapter_is_not_for_plain_peft() -> None:
    pruning = {"method": "sparseml", "masks": {"a": {}, "b": {}}, "sparsity": {"achieved": 0.5}}
    known = Lineage(config=CONFIG, pruning=pruning, recovery={"adapter": {"name": "lora"}, "masked_modules": 2})
    card = model_card(known)
    assert "2 matrices are masked. 50.0 % of their weights are zero" in card
    assert "sparse" in front_matter(card)["tags"]
    card = adapter_card(known)
    assert "unmasked sum W + s B A" in card
    assert "PeftModel" not in card


def test_what_llama_cpp_does_otherwise_is_in_the_files_card() -> None:
    conversion = {"architecture": "deci", "dtype": "q8_0", "remarks": ["llama.cpp does not normalise unicode"]}
    card = gguf_card(Lineage(config=CONFIG), conversion)
    assert "`deci`, matrices as q8_0" in card
    assert "Llama.cpp does not normalise unicode." in card


def test_a_file_that_is_not_the_stores_own_is_copied_not_linked(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("weights")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    place(tmp_path / "link", tmp_path / "ours")
    (tmp_path / "theirs").write_text("other")
    assert (tmp_path / "ours").read_text() == "weights"
    assert not os.path.islink(tmp_path / "ours")

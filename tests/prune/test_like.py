"""`prune.like`: an earlier cut made again on another checkpoint of the same shape."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.decoders import decoder
from helpers.world import World, make_world
from stages.common.files import read_json, write_json
from stages.errors import UserError

BRIEF = ("adapter=none", "evaluate=none", "prune=magnitude")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a cut of its model, and another model of the same shape."""
    world = make_world(tmp_path_factory.mktemp("world"))
    world.run(*BRIEF, "ratio=0.2")
    fields = read_json(world.root / "model" / "config.json")
    shutil.copytree(world.root / "model", world.root / "other")
    torch.manual_seed(7)
    sizes = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
    sizes |= {"vocab_size", "max_position_embeddings", "tie_word_embeddings", "head_dim"}
    other = decoder(**{name: fields[name] for name in sizes if name in fields})
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    other.save_pretrained(world.root / "other")
    return world


@pytest.fixture(scope="module")
def first(world: World) -> Path:
    """The directory of the model that was cut first."""
    (artifact,) = (world.root / "artifacts" / "prune").glob("magnitude-*")
    return artifact / "model"


def like(world: World, named: Path | str, *more: str) -> tuple[str, ...]:
    return (*BRIEF, f"model.path={world.root / 'other'}", f"prune.like={named}", *more)


def test_the_same_groups_of_another_model_stay_and_nothing_is_scored(world: World, first: Path) -> None:
    asked = like(world, first, "model.name=other")
    assert "scores" not in world.plan(*asked).roles
    world.run(*asked)
    made = world.artifact("prune", *asked) / "model"
    ours, theirs = read_json(made / "pruning.json"), read_json(first / "pruning.json")
    assert (ours["layers"], ours["hidden"], ours["method"]) == (theirs["layers"], None, "magnitude")
    assert ours["like"]["kept"] == world.plan(*asked).roles["prune"].config.kept
    whole, cut = load_file(world.root / "other" / "model.safetensors"), load_file(made / "model.safetensors")
    for index, kept in enumerate(ours["layers"]):
        name = f"model.layers.{index}.mlp.down_proj.weight"
        assert torch.equal(cut[name], whole[name][:, kept["mlp"]])


def test_a_key_a_directory_and_a_file_name_the_same_cut_whose_content_is_in_the_key(
    world: World, first: Path, tmp_path: Path
) -> None:
    key = read_json(first.parent / "manifest.json")["key"]
    copy = tmp_path / "copy.json"
    shutil.copy(first / "pruning.json", copy)
    named = [key[:12], first, first.parent, first / "pruning.json", copy]
    keys = {world.plan(*like(world, one)).roles["prune"].key for one in named}
    assert len(keys) == 1
    assert world.plan(*like(world, copy, "ratio=0.5", "prune.norm=l1")).roles["prune"].key in keys
    record = read_json(copy)
    record["layers"][1]["mlp"].pop()
    write_json(copy, record)
    assert world.plan(*like(world, copy)).roles["prune"].key not in keys


@pytest.mark.parametrize("how", ["least_squares", "sequential"])
def test_compensation_is_fitted_anew_on_the_new_models_text(how: str, world: World, first: Path) -> None:
    asked = like(world, first, f"prune.compensate={how}", "model.name=other")
    assert "data" in world.plan(*asked).roles["prune"].inputs
    world.run(*asked)
    made = world.artifact("prune", *asked) / "model"
    record = read_json(made / "pruning.json")
    plain = world.artifact("prune", *like(world, first, "model.name=other")) / "model"
    assert record["calibration"]["loss"]["pruned"] is not None
    name = "model.layers.0.mlp.down_proj.weight"
    fitted, left = (load_file(path / "model.safetensors")[name] for path in (made, plain))
    assert fitted.shape == left.shape
    assert not torch.equal(fitted, left)


def test_the_first_model_cut_like_itself_is_the_cut_that_was_made(world: World, first: Path) -> None:
    asked = (*BRIEF, f"prune.like={first}")
    world.run(*asked)
    made = world.artifact("prune", *asked) / "model"
    assert (made / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_a_cut_made_again_can_be_planned_with_every_export(world: World, first: Path) -> None:
    for export in ("hf", "gguf", "decilm", "compressed"):
        assert "build" in world.foreseen(*like(world, first, f"export={export}")).values()


RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "another size": ({"parameters": {"dense": 5, "pruned": 4}}, "that had 5 parameters, this has"),
    "layers": ({"layers": [{"heads": [0], "kv_heads": [0], "mlp": [0]}]}, "that had 1 layers, this has"),
    "masks": ({"masks": {"a": {}}}, "records masks"),
    "nothing": ({"layers": [None] * 3}, "does not say what was kept"),
    "a layer of nothing": (
        {"layers": [{"heads": [], "kv_heads": [], "mlp": []}] * 3},
        "does not say what was kept",
    ),
    "no indices": ({"layers": [[1, 2]]}, "does not say what was kept"),
    "twice": ({"hidden": [3, 3]}, "does not say what was kept"),
    "hidden": ({"hidden": [0, 10**9]}, r"kept hidden channel \[1000000000\]"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_another_shape_and_no_record_are_one_error_in_the_plan(
    name: str, world: World, first: Path, tmp_path: Path
) -> None:
    changed, said = RECORDS[name]
    write_json(tmp_path / "pruning.json", read_json(first / "pruning.json") | changed)
    with pytest.raises(UserError, match=f"prune.like: .*{said}"):
        world.run(*like(world, tmp_path, "action=plan"))


def test_indices_that_a_layer_does_not_have_are_one_error(world: World, first: Path, tmp_path: Path) -> None:
    record = read_json(first / "pruning.json")
    record["layers"][1]["mlp"][-1] = 10**6
    write_json(tmp_path / "pruning.json", record)
    with pytest.raises(UserError, match="what layer 1 kept is not in a layer of"):
        world.run(*like(world, tmp_path, "action=plan"))


def test_what_is_no_cut_is_refused(world: World, first: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a file nor a directory, and no artifact 'abcdef'"):
        world.plan(*like(world, "abcdef"))
    with pytest.raises(UserError, match=r"has no pruning\.json, so it is no pruned model"):
        world.plan(*like(world, tmp_path))
    with pytest.raises(UserError, match="prune=none does not"):
        world.plan("prune=none", "adapter=none", "evaluate=none", f"prune.like={first}")

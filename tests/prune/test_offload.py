"""A decoder with its layers on disk: the results of one in memory to the bit, in the memory of one layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from helpers.decoders import decoder, saved, token_ids
from helpers.peak import has_mark, peak_bytes
from stages.common.files import read_json
from stages.decoders.anatomy import decoder_layers
from stages.decoders.checkpoint import count_parameters, load_model, save_cut_model
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.prune.allocation.allocate import check_options
from stages.prune.criteria.registry import CRITERIA
from stages.prune.groups import Kept, Selection, kept_shape
from stages.prune.memory.offload import Offloaded
from stages.prune.memory.resident import Resident, always
from stages.prune.stage import run
from stages.prune.statistics.layerwise import Layerwise
from stages.prune.surgery import cut
from stages.stage import Context

DIFFERENT = [Kept([0, 4], [0, 2], list(range(0, 40, 3))), None, Kept([], [], [1, 2, 3])]


def stored(tmp_path: Path, model: PreTrainedModel) -> Path:
    """Save `model` in several files."""
    model.save_pretrained(tmp_path / "model", max_shard_size="30KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    return tmp_path / "model"


def offloaded(directory: Path, dtype: str = "float32") -> Offloaded:
    scratch = directory.parent / "scratch"
    scratch.mkdir()
    return Offloaded(directory, dtype=dtype, device="cpu", scratch=scratch)


def save(
    model: PreTrainedModel, selection: Selection, directory: Path, *, like: Path, resident: Resident | None = None
) -> None:
    shape = kept_shape(DecoderShape.from_config(read_json(like / "config.json")), selection)
    save_cut_model(model, shape, directory, like=like, dtype="float32", record={}, resident=resident)


def assert_same_weights(one: Path, other: Path) -> None:
    found, expected = (load_model(directory, dtype="float32").state_dict() for directory in (one, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", [name for name, criterion in CRITERIA.items() if not criterion.needs_gradients])
def test_scores_are_those_of_a_model_in_memory_to_the_bit(name: str, tmp_path: Path) -> None:
    directory = stored(tmp_path, decoder())
    off, criterion, ids = offloaded(directory, "bfloat16"), CRITERIA[name], token_ids()
    config = criterion.config(granularity=list(criterion.granularities))
    model = load_model(directory, dtype="bfloat16")
    expected = criterion.score(model, decoder_layers(model), ids, config, always)
    found = criterion.score(off.model, decoder_layers(off.model), ids, config, off.resident)
    for index, kinds in expected.layers.items():
        assert all(torch.equal(found.layers[index][kind], scores) for kind, scores in kinds.items())
    assert (found.hidden_H is None) == (expected.hidden_H is None)
    assert found.hidden_H is None or torch.equal(found.hidden_H, expected.hidden_H)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "olmo2", "granite"])
def test_what_is_cut_and_saved_is_that_of_a_model_in_memory_to_the_bit(family: str, tmp_path: Path) -> None:
    directory = stored(tmp_path, decoder(family, tie_word_embeddings=family != "llama"))
    off, ids = offloaded(directory), token_ids()
    model = load_model(directory, dtype="float32")
    selection = Selection(DIFFERENT, hidden=list(range(0, 48, 2)))

    def losses(model: PreTrainedModel, resident: Resident) -> torch.Tensor:
        cut(model, selection, resident)
        decoder = Layerwise(model, ids, resident=resident)
        return decoder.losses(decoder.run_from(0, decoder.embedded()))

    assert torch.equal(losses(off.model, off.resident), losses(model, always))
    save(off.model, selection, tmp_path / "off", like=directory, resident=off.resident)
    save(model, selection, tmp_path / "whole", like=directory)
    assert len(list((tmp_path / "off").glob("*.safetensors"))) == 1 + 2
    assert_same_weights(tmp_path / "off", tmp_path / "whole")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "wanda", "allocation": "global"},
        {"method": "magnitude", "granularity": ["hidden"], "steps": 2},
        {"method": "flap", "compensate": "bias"},
        {"method": "wanda", "compensate": "least_squares", "dtype": "bfloat16"},
        {"method": "block_influence", "granularity": ["layers"], "ratio": 0.2},
        {"method": "2ssp", "attention_sequences": 2},
        {"method": "ziplm", "compensate": "least_squares"},
    ],
)
def test_the_stage_writes_the_same_weights(options: dict[str, Any], tmp_path: Path) -> None:
    source = saved(decoder(tie_word_embeddings=True), tmp_path)
    config = CRITERIA[options["method"]].config(**{"ratio": 0.3, "calibration_ids": token_ids().tolist()} | options)
    records = []
    for offload in ("none", "layer"):
        (tmp_path / offload).mkdir()
        records.append(run(replace(config, offload=offload), {"model": source}, Context(output=tmp_path / offload)))
        assert [path.name for path in (tmp_path / offload).iterdir()] == ["model"]
    assert records[0] == records[1]
    assert_same_weights(tmp_path / "layer" / "model", tmp_path / "none" / "model")


@pytest.mark.parametrize("options", [{"method": "llmpruner"}, {"method": "wanda", "allocation": "searched"}])
def test_a_criterion_with_gradients_is_refused_and_those_without_are_named(options: dict[str, Any]) -> None:
    config = CRITERIA[options["method"]].config(ratio=0.3, offload="layer", **options)
    with pytest.raises(UserError, match=r"prune\.offload=layer .* needs gradients.* can do without: wanda, flap"):
        check_options(config)


def test_a_layers_changes_last_and_one_within_another_is_the_same(tmp_path: Path) -> None:
    off = offloaded(stored(tmp_path, decoder()))
    layer: Any = off.model.get_decoder().layers[1]  # type: ignore[union-attr,index]
    for addend in (1.0, 2.0):
        with off.resident(1), torch.no_grad():
            before = layer.mlp.up_proj.weight.clone()
            with off.resident(1):
                layer.mlp.up_proj.weight += addend
            assert not layer.mlp.up_proj.weight.is_meta
        assert layer.mlp.up_proj.weight.is_meta
        with off.resident(1):
            assert torch.equal(layer.mlp.up_proj.weight, before + addend)
    assert len(list(off.scratch.iterdir())) == 1


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    artifact = saved(decoder(num_hidden_layers=2), tmp_path)
    config = artifact / "model" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(UserError, match=r"not a whole checkpoint: model\.layers\.2\."):
        offloaded(artifact / "model")


@has_mark
def test_memory_is_that_of_a_layer(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}
    model = decoder(num_hidden_layers=48, **sizes)
    directory, weights = saved(model, tmp_path) / "model", 4 * count_parameters(model)
    selection = Selection([Kept(list(range(4)), list(range(4)), list(range(512)))] * 48)
    del model

    def scored_and_cut(model: PreTrainedModel, resident: Resident) -> None:
        CRITERIA["magnitude"].score(model, decoder_layers(model), None, CRITERIA["magnitude"].config(), resident)
        cut(model, selection, resident)

    def on_disk() -> None:
        off = offloaded(directory)
        scored_and_cut(off.model, off.resident)
        save(off.model, selection, tmp_path / "cut", like=directory, resident=off.resident)

    assert peak_bytes(on_disk) < 0.25 * weights
    assert peak_bytes(lambda: scored_and_cut(load_model(directory, dtype="float32"), always)) > 0.9 * weights

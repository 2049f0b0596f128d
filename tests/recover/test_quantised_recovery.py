"""Recoveries whose frozen weights, or whose teacher's, are held in few bits, and those that are refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.packings import needs_library
from helpers.toy import config, data_artifact, model_artifact, recovered, resumed
from stages.common.later import recorded
from stages.decoders.checkpoint import load_model
from stages.decoders.quantised import QuantisedLinear
from stages.errors import UserError
from stages.recover.objectives.distillation import DistillationConfig
from stages.recover.objectives.registry import objective_of
from stages.recover.objectives.teacher import Teacher
from stages.recover.plan import adapter_of, check_base
from stages.recover.stage import material_of, run
from stages.rows.packing import Document, collate
from stages.stage import Context

SHORT: dict[str, Any] = {"tokens": 1200, "curve_every": 600}


@needs_library
@pytest.mark.parametrize("way", ["nf4", "8bit"])
def test_an_adapter_is_trained_on_the_packed_base_and_merged_into_the_model_as_it_was(tmp_path: Path, way: str) -> None:
    settings = config(base=way, **SHORT)
    output, summary = recovered(tmp_path, settings)
    before, after = summary["validation"]["initial_loss"], summary["validation"]["final_loss"]
    assert after < 0.8 * before
    base, merged = (load_model(path / "model", dtype="float32") for path in (tmp_path / "base", output))
    assert summary["parameters"]["model"] == sum(value.numel() for value in base.parameters())
    assert "frozen weights were held in" in summary["objective"]["sentences"][-1]
    # The change of each weight is the adapter's alone: of its rank, and so free of the rounding.
    for name, value in merged.named_parameters():
        change = value - base.get_parameter(name)
        assert torch.linalg.matrix_rank(change, rtol=1e-4) <= 4 if change.dim() == 2 else not change.any(), name


@needs_library
def test_what_is_resumed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    settings = config(base="nf4", **SHORT)
    whole, _ = recovered(tmp_path, settings)
    again = resumed(tmp_path, settings, stopped_at=2)
    for file in ("adapter/adapter_model.safetensors", "history.jsonl"):
        assert (again / file).read_bytes() == (whole / file).read_bytes(), file


@needs_library
def test_the_base_is_loaded_packed(tmp_path: Path) -> None:
    inputs = {"model": model_artifact(tmp_path / "base"), "data": data_artifact(tmp_path / "data")}
    model = material_of(config(base="nf4"), inputs, "cpu").load("bfloat16")
    packed = [layer for layer in model.modules() if isinstance(layer, QuantisedLinear)]
    assert len(packed) == 7 * model.config.num_hidden_layers
    assert packed[0].weight.dtype == torch.bfloat16


@needs_library
@pytest.mark.parametrize("way", ["nf4", "8bit"])
def test_a_teacher_in_few_bits_says_nearly_the_same_and_has_a_cache_of_its_own(tmp_path: Path, way: str) -> None:
    directory = model_artifact(tmp_path / "dense") / "model"
    batch = collate([Document(list(range(3, 30)), 1, "toy", cut=False)], "cpu")
    context = Context(output=tmp_path, cache=tmp_path)
    for held in ("stored", way):
        Teacher(directory, "float32", context, top_k=4, cached=True, held=held).targets(batch)
    assert len(list((tmp_path / "teacher").iterdir())) == 2
    assert Teacher(directory, "float32", context, held=way)._model().get_submodule("model.layers.0.mlp.up_proj").held


@needs_library
def test_distillation_takes_such_a_teacher_and_says_so(tmp_path: Path) -> None:
    distil = DistillationConfig(teacher_weights="nf4")
    settings = config(objective="distillation", distillation=distil, **SHORT)
    inputs = {"model": model_artifact(tmp_path / "base"), "data": data_artifact(tmp_path / "data")}
    shutil.copytree(tmp_path / "base", tmp_path / "teacher")
    inputs["teacher"] = tmp_path / "teacher"
    summary = run(settings, inputs, Context(output=tmp_path / "out", cache=tmp_path / "cache"))
    assert "its weights in 4 bits (NF4)" in summary["objective"]["sentences"][0]
    assert summary["objective"]["teacher_weights"] == "nf4"
    assert load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")


@needs_library
@pytest.mark.parametrize(
    "adapter", [{"name": "full"}, {"name": "pissa"}, {"name": "hira"}, {"name": "lora", "init": "corda"}]
)
def test_an_adapter_that_needs_whole_weights_is_refused(adapter: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"recover.base=nf4 needs an adapter .*adapter=rora.*recover.base=stored"):
        adapter_of(config(adapter, base="nf4"))


def test_masks_and_shards_are_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"the mask would be lost. Set recover.base=stored"):
        check_base(config(base="nf4"), masked=True, engine="single")
    with pytest.raises(UserError, match=r"runtime=ddp, or recover.base=stored"):
        check_base(config(base="nf4"), masked=False, engine="fsdp")
    check_base(config(), masked=True, engine="fsdp")


@pytest.mark.parametrize("options", [{"base": "int3"}, {"distillation": DistillationConfig(teacher_weights="int3")}])
def test_a_way_that_does_not_exist_is_an_error(options: dict[str, Any]) -> None:
    settings = config(objective="distillation", **options)
    with pytest.raises(UserError, match=r"unknown way to hold weights .*'int3'.* Known: 8bit, nf4, stored"):
        adapter_of(settings), objective_of(settings.recover)


def test_without_the_library_one_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    with pytest.raises(UserError, match=r"recover.base=nf4 needs bitsandbytes.*pip install -e '.\[quantised\]'"):
        adapter_of(config(base="nf4"))


def test_an_option_that_came_later_is_in_no_record_at_its_default() -> None:
    assert "base" not in recorded(config())["recover"]
    assert "teacher_weights" not in recorded(config())["recover"]["distillation"]
    assert recorded(config(base="nf4"))["recover"]["base"] == "nf4"

"""A plan tells the most memory that pruning and recovery will need, before anything is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pipeline
from helpers.configurations import configuration
from pipeline.schema.overrides import groups

SEVEN_B = ["model=llama-7b", "runtime=cuda", "evaluate=none", "recover=best", "adapter=best"]
LINE = r"^(prune|recover) +([\d.]+) +(.*), for (?:the )?[\w ]+$"


def told(tmp_path: Path, *overrides: str) -> dict[str, tuple[float, str]]:
    """Return the GiB of each stage that the plan tells, with the parts."""
    places = [f"runtime.artifact_root={tmp_path / 'store'}", f"runtime.cache={tmp_path / 'cache'}"]
    text = pipeline.plan(config=configuration(*overrides, *places)).text
    return {stage: (float(total), parts) for stage, total, parts in re.findall(LINE, text, re.MULTILINE)}


def test_a_plan_tells_the_memory_of_pruning_and_of_the_recovery(tmp_path: Path) -> None:
    found = told(tmp_path, *SEVEN_B, "prune=best")
    assert 15 < found["prune"][0] < 22
    total, parts = found["recover"]
    assert 28 < total < 31
    sizes = {name: float(size) for size, _, name in (part.partition(" ") for part in parts.split(", "))}
    assert sizes["teacher"] == pytest.approx(12.6)
    assert 9 < sizes["weights"] < 11, "a fifth is pruned"
    assert total == pytest.approx(sum(sizes.values()), abs=0.3)


def test_what_needs_less_is_seen_in_the_plan(tmp_path: Path) -> None:
    ways = ([], ["recover.gradient_checkpointing=true"], ["recover.objective=cross_entropy"])
    most, fewer, without = (told(tmp_path, *SEVEN_B, "prune=none", *way)["recover"] for way in ways)
    assert most[0] > fewer[0] + 3
    assert most[0] > without[0] + 12
    assert "teacher" not in without[1]


def test_nothing_is_told_of_shards_and_of_models_whose_shape_is_not_known(tmp_path: Path) -> None:
    assert not told(tmp_path, *SEVEN_B, "runtime.engine=fsdp", "runtime.workers=2")
    assert not told(tmp_path, *SEVEN_B, "prune=none", "model.shape=null")


@pytest.mark.parametrize("method", [name for name in groups()["prune"] if name not in ("none", "sheared")])
def test_every_pruning_of_groups_is_told(method: str, tmp_path: Path) -> None:
    found = told(tmp_path, "model=llama-7b", "runtime=cuda", "evaluate=none", f"prune={method}")
    assert ("prune" in found) == (method != "sparseml")
    assert "recover" in found


@pytest.mark.parametrize("adapter", [name for name in groups()["adapter"] if name != "none"])
def test_every_adapter_is_told(adapter: str, tmp_path: Path) -> None:
    assert told(tmp_path, "model=llama-7b", "runtime=cuda", "evaluate=none", "prune=none", f"adapter={adapter}")

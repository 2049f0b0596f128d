"""A plan names every option that was set and that decides nothing, with the reason, and no other option."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pipeline
from helpers.world import make_world


def lines(*words: str) -> list[str]:
    """Return what the plan of these words says of options without effect."""
    return [line for line in str(pipeline.plan(*words)).splitlines() if line.startswith("without effect: ")]


@pytest.mark.parametrize(
    ("option", "beside", "because"),
    [
        ("recover.tune=lr", "adapter=none", "because of adapter=none"),
        ("recover.tune_tokens=500", "", "nothing in this plan reads it: budget of each trial in tokens"),
        ("recover.distillation.weight=0.5", "recover=standard", "because of recover=standard"),
        ("recover.on_policy.share=0.5", "recover.objective=cross_entropy", "nothing in this plan"),
        ("recover.loss=response", "data=plain", "plain text"),
        ("recover.loss=response", "data=passages", "plain text"),
        ("recover.decay=0.3", "", "recover.schedule=cosine"),
        ("ratio=0.3", "prune=llmpruner prune.channel_ratio=0.25", "because of prune.channel_ratio=0.25"),
        ("ratio=0.2", "prune=llmpruner prune.channel_ratio=0.25", "because of prune.channel_ratio=0.25"),
        ("ratio=0.3", "prune.ratio=0.2", "because of prune.ratio=0.2"),
        ("prune.calibration.length=32", "prune=magnitude", "prune=magnitude reads no text"),
        ("prune.search.trials=5", "prune=wanda", "nothing is searched"),
        ("prune.max_per_layer=0.5", "prune=magnitude", "across layers"),
        ("prune.serve=sglang", "", "asks what a server reads"),
        ("data=howto", "adapter=none", "because of adapter=none"),
        ("evaluate.beams=4", "", "nothing in this plan reads it: generation: beams of the search"),
        ("evaluate.limit=3", "evaluate=none", "because of evaluate=none"),
        ("tracker.mode=online", "prune=none adapter=none", "nothing is pruned or recovered"),
        ("runtime.deterministic=true", "runtime=cpu", "a processor adds in a fixed order"),
    ],
)
def test_an_option_that_decides_nothing_has_a_line_with_the_reason(option: str, beside: str, because: str) -> None:
    (said,) = lines(option, *beside.split())
    assert said.startswith(f"without effect: {option} (")
    assert because in said


@pytest.mark.parametrize(
    "words",
    [
        "",
        "ratio=0.2 seed=3 recover.tokens=3000",
        "recover.tune=lr recover.tune_tokens=500",
        "recover.dtype=float32 prune.steps=1 prune=best",  # what null and auto may stand for, named
        "recover.schedule=wsd recover.decay=0.3",
        "recover.loss=response data=commonsense",
        "recover.loss=response",  # a part of the default data has prompts
        "adapter=none data=howto prune=wanda",  # calibration reads it
        "prune=wanda prune.calibration.length=32 prune.allocation=global prune.max_per_layer=0.5",
        "adapter=none evaluate=none tracker=none force=[prune]",
        "recover.objective=distillation recover.distillation.weight=0.5 recover=standard",
        "evaluate=generation evaluate.beams=4",
    ],
)
def test_an_option_that_is_read_has_none(words: str) -> None:
    assert lines(*words.split()) == []


def test_options_with_one_reason_share_a_line() -> None:
    given = ["recover=best", "recover.tokens=500", "recover.tune=lr"]
    assert lines("adapter=none", *given) == [f"without effect: {', '.join(given)} (because of adapter=none)"]


def test_an_experiment_is_not_blamed_for_what_it_sets() -> None:
    assert lines("experiment=criteria") == []


def test_the_command_says_so_of_each_run_of_a_sweep(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    status, said = world.call("-m", "action=plan", "adapter=none,lora", "recover.tune=lr")
    assert status == 0, said
    assert len(re.findall(r"without effect: .*recover\.tune=lr \(because of adapter=none\)", said)) == 1


def test_a_configuration_made_in_python_names_no_words() -> None:
    config = pipeline.compose("adapter=none", "recover.tune=lr")
    assert "without effect" not in str(pipeline.plan(config=config))

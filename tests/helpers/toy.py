"""A tiny model, a toy task and a short recovery on them, for the tests of the recover stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from helpers.decoders import decoder
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from stages.adapters.config import AdapterConfig
from stages.adapters.low_rank import LowRankConfig
from stages.adapters.registry import ADAPTERS
from stages.adapters.through_peft import PeftAdapterConfig
from stages.common.files import write_jsonl
from stages.recover.config import RecoverConfig, RecoverStageConfig
from stages.recover.stage import run
from stages.stage import JSON, Context

ANIMALS = {"cow": "moo", "cat": "meow", "dog": "woof", "duck": "quack", "sheep": "baa", "owl": "hoot", "pig": "oink"}


def model_artifact(directory: Path, model: PreTrainedModel | None = None) -> Path:
    """Save a tiny model with its tokenizer as a stage's artifact would hold it."""
    model = model or decoder(vocab_size=VOCABULARY, max_position_embeddings=256, tie_word_embeddings=True)
    model.save_pretrained(directory / "model")
    byte_tokenizer().save_pretrained(directory / "model")
    return directory


def data_artifact(directory: Path, rows: int = 120, *, choices: bool = True) -> Path:
    """Write rows that ask what an animal says: seven facts to learn, in sentences of differing length."""
    directory.mkdir(parents=True, exist_ok=True)
    names = list(ANIMALS)
    texts = [
        {
            "prompt": f"question {'and ' * (index % 4)}what does the {names[index % 7]} say? ",
            "response": ANIMALS[names[index % 7]],
            "task": f"toy{index % 2}",
        }
        for index in range(rows)
    ]
    write_jsonl(directory / "train.jsonl", texts)
    said = {"choices": list(ANIMALS.values())} if choices else {}
    write_jsonl(directory / "validation.jsonl", [row | said for row in texts[:14]])
    return directory


def adapter_config(name: str = "rora", **options: Any) -> AdapterConfig:
    """Return the options of a small adapter."""
    kind = ADAPTERS[name].config if name in ADAPTERS else LowRankConfig
    small = {"rank": 4, "alpha": 8.0} if issubclass(kind, LowRankConfig) else {}
    if issubclass(kind, PeftAdapterConfig):
        small = {"rank": 4}
    return kind(name=name, **small | options)


def config(
    adapter: dict[str, Any] | None = None, *, dtype: str = "float32", seed: int = 0, **recover: Any
) -> RecoverStageConfig:
    """Return a short recovery: about a dozen steps of 256 tokens."""
    defaults = RecoverConfig(
        loss="response",
        tokens=3000,
        learning_rate=2e-2,
        batch_tokens=256,
        micro_batch_tokens=128,
        sequence_length=64,
        curve_every=1000,
        validation_tokens=300,
    )
    return RecoverStageConfig(
        adapter=adapter_config(**(adapter or {})),
        recover=replace(defaults, **recover),
        dtype=dtype,
        seed=seed,
    )


def recovered(
    root: Path, settings: RecoverStageConfig, *, name: str = "out", model: PreTrainedModel | None = None
) -> tuple[Path, JSON]:
    """Run a recovery under `root`, building its inputs there once; returns its output and its summary."""
    inputs = {"model": root / "base", "data": root / "data"}
    if not inputs["model"].exists():
        model_artifact(inputs["model"], model)
        data_artifact(inputs["data"])
    output = root / name
    output.mkdir()
    return output, run(settings, inputs, Context(output=output, checkpoint_seconds=0))


def resumed(root: Path, settings: RecoverStageConfig, *, stopped_at: int) -> Path:
    """Run a recovery that `recovered` has run under `root`, stopped at a step and run again; returns its output."""
    inputs, output = {"model": root / "base", "data": root / "data"}, root / "resumed"

    def interrupt(point: JSON) -> None:
        if point["step"] == stopped_at:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(settings, inputs, Context(output=output, checkpoint_seconds=0, log=interrupt))
    run(settings, inputs, Context(output=output, checkpoint_seconds=0))
    return output

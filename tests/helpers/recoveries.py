"""Several short recoveries in one launch of workers, since each launch takes seconds."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from helpers.decoders import decoder
from helpers.toy import adapter_config
from stages.adapters.registry import ADAPTERS
from stages.common.machine import release_memory, resident_bytes
from stages.recover.config import RecoverStageConfig
from stages.recover.mapped import load_mapped
from stages.recover.stage import train_together
from stages.recover.workers import Workers
from stages.stage import JSON, Context


def train_each(
    configs: Mapping[str, RecoverStageConfig], inputs: Mapping[str, Path], context: Context, workers: Workers
) -> JSON:
    """Train by each config, in the directory of its name; returns what each training returns."""
    found = {}
    for name, config in configs.items():
        (context.output / name).mkdir(parents=True, exist_ok=True)
        found[name] = train_together(config, inputs, replace(context, output=context.output / name), workers)
    return found


def share(config: Any, inputs: Mapping[str, Path], context: Context, workers: Workers) -> JSON:
    """Load a model mapped, attach an adapter and share it out; returns each worker's own memory for it, in bytes.

    "kept" is what it takes in the end, "most" the largest amount on the way. Mapped pages are nobody's own.
    """

    def shared_out() -> PreTrainedModel:
        model = load_mapped(inputs["model"] / "model", dtype="float32", scratch=context.cache)
        ADAPTERS["lora"].attach(model, adapter_config("lora"), ())
        workers.prepare(model, context.device)
        return model

    shared_out()  # the first time imports modules, which is not the model's memory
    workers.prepare(decoder(), context.device)  # lets go of that model
    release_memory()
    before, most, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = shared_out()
    done.set()
    watcher.join()
    mine = {"kept": own_memory() - before, "most": most[0] - before}
    del model
    return {"workers": workers.on_each(lambda: mine)}


def own_memory() -> int:
    """Return the bytes of this process that no file is mapped to."""
    return resident_bytes("RssAnon") or 0

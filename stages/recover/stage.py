"""The recover stage: a pruned model and rows of text become a trained adapter and the merged model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from stages.checkpoint import count_parameters, load_model, load_tokenizer, save_model, stored_dtype
from stages.data.packing import Document, Stream, encode, one_epoch
from stages.files import write_json, write_jsonl
from stages.recover import checkpoints
from stages.recover.adapters.adapter import Adapter
from stages.recover.attention import use_packed_attention
from stages.recover.check import check
from stages.recover.checkpoints import Progress
from stages.recover.config import RecoverStageConfig
from stages.recover.loop import Training
from stages.recover.seeds import seeded
from stages.stage import JSON, Context


def run(config: RecoverStageConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Recover the model in `inputs["model"]` on the rows in `inputs["data"]`; returns what recovery.json holds.

    Writes `adapter/` (PEFT's format), `model/` (the merged model, as the base was stored), `history.jsonl` and
    `recovery.json`. A killed run leaves `checkpoint/`, from which the next one resumes.

    Raises:
        UserError: a field of `config` is outside its range, the data is empty, the model has no tokenizer, or the
            loss is not finite.
    """
    adapter = check(config)
    base, data = inputs["model"] / "model", inputs["data"]
    to_documents = partial(
        encode,
        tokenizer=load_tokenizer(base),
        length=config.recover.sequence_length,
        label_prompts=config.recover.loss == "all",
    )
    stream = Stream(data / "train.jsonl", to_documents, seed=config.seed)
    # Not the config's seed: every recovery on this data is measured on the same rows.
    held_out = Stream(data / "validation.jsonl", to_documents, seed=0)
    validation = one_epoch(held_out, tokens=config.recover.validation_tokens)

    model = load_model(base, dtype=config.dtype, device=context.device)
    total = count_parameters(model)
    use_packed_attention(model)
    with seeded(config.seed, "adapter"):
        adapted = adapter.attach(model, config.adapter)
    training = Training(
        model=model,
        stream=stream,
        validation=validation,
        config=config.recover,
        dtype=config.dtype,
        seed=config.seed,
        context=context,
        identity={"config": asdict(config), "model": _fingerprint(base), "rows": len(stream)},
    )
    progress = training.run()
    adapter.save(adapted, context.output / "adapter")
    trainable = sum(parameter.numel() for parameter in training.parameters.values())
    del adapted, model, training
    _save_merged(adapter, base, context.output)

    summary = {
        "adapter": _describe(adapter, config),
        "parameters": {"model": total, "trainable": trainable},
        "training": _training_facts(progress, stream),
        "validation": _validation_facts(progress, validation),
    }
    write_jsonl(context.output / "history.jsonl", progress.history)
    write_json(context.output / "recovery.json", summary)
    checkpoints.remove(context.output)
    return summary


def _save_merged(adapter: Adapter, base: Path, output: Path) -> None:
    """Fold the saved adapter into a fresh copy of the base, in the dtype it is stored in."""
    if adapter.merge is None:
        return
    merged = adapter.merge(load_model(base, dtype=stored_dtype(base)), output / "adapter")
    save_model(merged, output / "model", like=base)


def _fingerprint(base: Path) -> str:
    """A digest of the base model's configuration and its files' sizes: cheap, and enough to tell two models apart."""
    digest = hashlib.sha256((base / "config.json").read_bytes())
    for file in sorted(base.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def _describe(adapter: Adapter, config: RecoverStageConfig) -> JSON:
    fields = asdict(config.adapter)
    if adapter.scaling is not None:
        fields["scaling"] = adapter.scaling(config.adapter)
    return fields | {"merged": adapter.merge is not None}


def _training_facts(progress: Progress, stream: Stream) -> JSON:
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "labelled_tokens": progress.labelled,
        "rows": progress.documents,
        "rows_cut": progress.cut,
        "rows_by_task": dict(sorted(progress.tasks.items())),
        "epochs": progress.documents / len(stream),
    }


def _validation_facts(progress: Progress, validation: list[Document]) -> JSON:
    losses = [point["validation_loss"] for point in progress.history if "validation_loss" in point]
    return {
        "rows": len(validation),
        "tokens": sum(len(document.ids) for document in validation),
        "labelled_tokens": sum(document.labels for document in validation),
        "initial_loss": losses[0],
        "final_loss": losses[-1],
        "initial_perplexity": _perplexity(losses[0]),
        "final_perplexity": _perplexity(losses[-1]),
    }


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))

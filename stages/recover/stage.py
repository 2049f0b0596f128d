"""The recover stage: a pruned model and rows of text become a trained adapter and the merged model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from stages.adapters.adapter import Adapter
from stages.common.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from stages.common.later import recorded
from stages.common.machine import release_memory
from stages.common.memory import LEAST
from stages.common.questions import telling
from stages.decoders.card import CARD, adapter_card
from stages.decoders.checkpoint import count_parameters, load_model, load_tokenizer, save_model, stored_dtype
from stages.decoders.holding import STORED, WAYS
from stages.decoders.lineage import base_of, described, lineage
from stages.decoders.masks import masked_modules
from stages.decoders.packed_attention import hidden_states, use_packed_attention
from stages.decoders.shapes import DecoderShape, shape_in
from stages.recover import checkpoints, memory
from stages.recover.checkpoints import Progress
from stages.recover.config import RecoverStageConfig
from stages.recover.curve import Curve
from stages.recover.estimate import Work, check_memory, teaching
from stages.recover.launch import launched
from stages.recover.loop import Training
from stages.recover.mapped import load_mapped
from stages.recover.objectives.objective import Objective
from stages.recover.objectives.registry import objective_of
from stages.recover.objectives.teacher import check_vocabulary
from stages.recover.plan import adapter_of, check_base, gives_model, taught
from stages.recover.seeds import seeded
from stages.recover.workers import SINGLE, Workers
from stages.rows.packing import collate, take, tokens_of
from stages.rows.tokens import Tokenised, tokenised
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run(config: RecoverStageConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Recover the model in `inputs["model"]` on the rows in `inputs["data"]`; returns the content of recovery.json.

    Where the objective has a teacher, it is the model in `inputs["teacher"]`.

    Writes `adapter/` (PEFT's format) and `model/` (the merged model, in the base's precision), each with its card,
    `history.jsonl` and `recovery.json`. A killed run leaves `checkpoint/`, from which the next run resumes. Where the
    base is masked, the model that is trained, measured and merged has exactly the base's zeros.

    Raises:
        UserError: a field of `config` is outside its range, the data is empty, the model has no tokenizer, or memory
            is too small.
        Diverged: the loss is not finite.
    """
    summary = train(config, inputs, context)
    merge(config, inputs, context, summary)
    checkpoints.remove(context.output)
    return summary


def train(config: RecoverStageConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Do all of `run` but merging, and leave the last checkpoint; returns the content of recovery.json."""
    return launched(train_together, config, inputs, context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The models and rows of a recovery, from artifacts or from memory.

    Attributes:
        load: returns the model to recover, in the given precision; the recovery changes that model.
        tokenizer: the model's tokenizer.
        train: a file of rows, as the data stage writes train.jsonl.
        held_out: rows that are never trained on, as in validation.jsonl.
        masked: full names of the modules whose zeros stay.
        teacher: the model that a taught objective learns from: a model directory or a live model.
        shape: the shape of the model to recover; None where it is not known, and memory is then not foreseen.
        teacher_shape: the shape of a teacher that is not in memory yet, as far as it is known.
        base: the origin of the dense model, as far as it is known.
        taught_by: the origin of the teacher, as far as it is known.
        fingerprints: digests of the models, by which a checkpoint is known to be of this recovery.
    """

    load: Callable[[str], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    train: Path
    held_out: Sequence[JSON]
    masked: frozenset[str] = frozenset()
    teacher: Path | PreTrainedModel | None = None
    shape: DecoderShape | None = None
    teacher_shape: DecoderShape | None = None
    base: JSON = field(default_factory=dict)
    taught_by: JSON = field(default_factory=dict)
    fingerprints: Sequence[str] = ()


class Trained(NamedTuple):
    """The module that `Adapter.attach` returned, trained; the content of recovery.json; and the points of the curve."""

    adapted: Module
    summary: JSON
    history: list[JSON]


@memory.explained()
def train_together(config: RecoverStageConfig, inputs: Mapping[str, Path], context: Context, workers: Workers) -> JSON:
    """Do the part of `train` that each of `workers` does; only the leader writes files."""
    adapter, base = adapter_of(config), inputs["model"] / "model"
    material = material_of(config, inputs, context.device)
    if context.engine == "fsdp":
        material = replace(material, load=lambda dtype: load_mapped(base, dtype=dtype, scratch=context.cache))
    adapted, summary, history = trained(config, material, context, workers)
    if workers.leads:
        _save(adapter, adapted, base, context.output, summary)
        write_jsonl(context.output / "history.jsonl", history)
        write_json(context.output / "recovery.json", summary)
    return summary


def material_of(config: RecoverStageConfig, inputs: Mapping[str, Path], device: str) -> Material:
    """Return the models and rows of the artifacts in `inputs`. The model to recover is loaded to `device`, on demand.

    Raises:
        UserError: the teacher has another vocabulary than the model, or the model has no tokenizer.
    """
    base = inputs["model"] / "model"
    teacher = inputs["teacher"] / "model" if taught(config) else None
    if teacher is not None:
        check_vocabulary(teacher, base)
    return Material(
        load=lambda dtype: load_model(base, dtype=dtype, device=device, held=config.recover.base),
        tokenizer=load_tokenizer(base),
        train=inputs["data"] / "train.jsonl",
        held_out=list(read_jsonl(inputs["data"] / "validation.jsonl")),
        masked=masked_modules(base),
        teacher=teacher,
        shape=shape_in(read_json(base / "config.json")),
        teacher_shape=None if teacher is None else shape_in(read_json(teacher / "config.json")),
        base=base_of(base),
        taught_by={} if teacher is None else base_of(teacher),
        fingerprints=_fingerprints(base, teacher),
    )


def trained(config: RecoverStageConfig, material: Material, context: Context, workers: Workers = SINGLE) -> Trained:
    """Return the adapter trained on `material`, still attached to its model; checkpoints are in `context.output`.

    Raises:
        UserError: a field of `config` is outside its range, the data is empty, or memory is too small.
        Diverged: the loss is not finite.
    """
    adapter, (objective, options) = adapter_of(config), objective_of(config.recover)
    check_base(config, masked=bool(material.masked), engine=context.engine)
    stream = tokenised(
        material.train,
        material.tokenizer,
        length=config.recover.sequence_length,
        label_prompts=config.recover.loss == "all",
        seed=config.seed,
        tokens=config.recover.tokens,
        cache=context.cache,
    )
    # Several processes share weights or memory (`check_memory`).
    if context.engine == "single":
        _check_memory(config, material, stream, context.device)
    # Weights that are trained themselves are float32, because bfloat16 would lose most updates.
    model = material.load(config.dtype if adapter.trained is None else "float32")
    total = count_parameters(model)
    use_packed_attention(model)
    # A seed of its own, so that the start of the adapter does not depend on what was drawn before.
    with seeded(config.seed, "adapter"):
        adapted = adapter.attach(model, config.adapter, material.masked)
        if adapter.start is not None:
            adapter.start(adapted, config.adapter, material.masked, partial(_run_on, model, stream, config))
    # Before anything keeps the model's parameters, because a sharded model has others.
    workers.prepare(model, context.device)
    scored = partial(Curve, model, material.tokenizer, material.held_out, config=config.recover, dtype=config.dtype)
    curve = workers.asked(scored)
    rewrites = objective.rewrites
    training = Training(
        model=model,
        objective=objective.build(model, options, material.teacher, config.dtype, context),
        stream=stream,
        measure=curve.point,
        config=config.recover,
        dtype=config.dtype,
        seed=config.seed,
        context=replace(context, log=lambda point: context.log(telling(point, len(curve.questions)))),
        identity={"config": recorded(config), "models": list(material.fingerprints), "rows": len(stream)},
        rates=adapter.rates(model, config.adapter),
        rewrite=rewrites and rewrites(model, material.tokenizer, options, config.dtype, config.seed),
        workers=workers,
    )
    progress = training.run()
    kept = _kept(progress)
    trainable = sum(parameter.numel() for parameter in training.parameters.values())
    unseen = material.held_out[len(curve.documents) :]
    summary: JSON = {
        "base": material.base,
        "adapter": _describe(adapter, config),
        "objective": {"name": config.recover.objective} | _minimised(objective, options, material, config.recover.base),
        "parameters": {"model": total, "trainable": trainable},
        "training": _training_facts(progress, stream),
        "kept": {"parameters": config.recover.keep, "step": kept["step"], "tokens": kept["tokens"]},
        "validation": _validation_facts(progress.history[0], kept, curve),
        "test": workers.asked(lambda: _test_facts(model, material.tokenizer, unseen, config, progress)),
    } | ({"masked_modules": len(material.masked)} if material.masked else {})
    # Last, because a sharded model whose parameters are whole can't run any more.
    workers.gather(model, frozen=adapter.trained is not None)
    return Trained(adapted, summary, progress.history)


def _check_memory(config: RecoverStageConfig, material: Material, stream: Tokenised, device: str) -> None:
    """Raise a `UserError` where the recovery can't fit on `device`, however small its micro-batches are made."""
    if material.shape is None:
        return
    objective, _ = objective_of(config.recover)
    # A teacher whose answers are all in the cache is never loaded.
    teacher = None if teaching(config.recover).cache_teacher else material.teacher_shape
    # The longest row is a micro-batch by itself, unless rows are rewritten.
    tokens = LEAST if objective.rewrites else stream.longest
    check_memory(Work(config=config, shape=material.shape, teacher=teacher, device=device, tokens=tokens))


def _run_on(model: PreTrainedModel, stream: Tokenised, config: RecoverStageConfig, tokens: int) -> None:
    """Run the decoder on the first `tokens` tokens to train on, or on all where the budget has fewer, in one pass."""
    documents = take(stream.documents(), min(tokens, config.recover.tokens))
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=config.dtype == "bfloat16"):
        hidden_states(model, collate(documents, str(model.device)))


def _save(adapter: Adapter, adapted: Module, base: Path, output: Path, recovery: JSON) -> None:
    """Write the adapter with its card; where the model's own weights were trained, write the model."""
    if adapter.trained is not None:
        save_model(adapter.trained(adapted, stored_dtype(base)), output / "model", like=base, recovery=recovery)
    elif adapter.save is not None:
        adapter.save(adapted, output / "adapter")
        write_text(output / "adapter" / CARD, adapter_card(lineage(base, recovery=recovery)))


@memory.explained()
def merge(config: RecoverStageConfig, inputs: Mapping[str, Path], context: Context, recovery: JSON) -> None:
    """Merge the saved adapter into a fresh copy of the base, in the base's stored dtype; masks stay."""
    adapter, base = adapter_of(config), inputs["model"] / "model"
    if adapter.merge is None or not config.recover.merge:
        return
    # A GPU that could hold the model only in few bits can't hold it whole.
    device = context.device if config.recover.base == STORED else "cpu"
    if device != "cpu":
        release_memory()  # what the training held
    pruned = load_model(base, dtype=stored_dtype(base), device=device)
    merged = adapter.merge(pruned, context.output / "adapter", masked_modules(base))
    save_model(merged, context.output / "model", like=base, recovery=recovery)


def _fingerprints(*directories: Path | None) -> list[str]:
    """Return a digest of each model's configuration and of its files' sizes: cheap, and enough to tell models apart."""
    digests = []
    for directory in filter(None, directories):
        digest = hashlib.sha256((directory / "config.json").read_bytes())
        for file in sorted(directory.glob("*.safetensors")):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digests.append(digest.hexdigest())
    return digests


def _minimised(objective: Objective, options: Any, material: Material, base: str) -> JSON:
    """Return the objective's facts, its teacher where it has one, and its sentences for card and report.

    A sentence tells how the weights of the base were held, unless they were held as they are stored.
    """
    learns = material.teacher is not None
    sentences = [*objective.sentences(options, described(material.taught_by) if learns else "")]
    if base != STORED:
        sentences.append(f"While the adapter was trained, the model's frozen weights were held {WAYS[base]}.")
    teacher = {"teacher": material.taught_by} if learns else {}
    return objective.facts(options) | teacher | {"sentences": sentences}


def _describe(adapter: Adapter, config: RecoverStageConfig) -> JSON:
    own = {"sizes": dict(adapter.sizes(config.adapter)), "merged": gives_model(config)}
    return asdict(config.adapter) | dict(adapter.facts(config.adapter)) | own


def _training_facts(progress: Progress, stream: Tokenised) -> JSON:
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "labelled_tokens": progress.labelled,
        "rows": stream.drawn(progress.documents),
        "rows_cut": progress.cut,
        "rows_by_task": dict(sorted(progress.tasks.items())),
        "epochs": stream.drawn(progress.documents) / len(stream),
    } | {
        name: value
        for name, value in (("written_tokens", progress.written), ("micro_batch_tokens", progress.micro_batch_tokens))
        if value
    }


def _test_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    unseen: Sequence[JSON],
    config: RecoverStageConfig,
    progress: Progress,
) -> JSON | None:
    """Return the scores of rows that no point of the curve has seen; None where there are none."""
    if not unseen or not config.recover.test_tokens:
        return None
    at_a_time = progress.micro_batch_tokens or config.recover.micro_batch_tokens
    rows = replace(config.recover, validation_tokens=config.recover.test_tokens, micro_batch_tokens=at_a_time)
    test = Curve(model, tokenizer, unseen, config=rows, dtype=config.dtype)
    return _scored(test) | {name.partition("_")[2]: value for name, value in test.point().items()}


def _scored(curve: Curve) -> JSON:
    return {
        "rows": len(curve.documents),
        "tokens": tokens_of(curve.documents),
        "labelled_tokens": curve.labels,
        "questions": len(curve.questions),
    }


def _kept(progress: Progress) -> JSON:
    """Return the point of the curve whose parameters are saved."""
    step = progress.step if progress.best is None else progress.best["step"]
    return next(point for point in progress.history if point["step"] == step)


def _validation_facts(initial: JSON, kept: JSON, curve: Curve) -> JSON:
    """Return the curve's measurements before training, and with the parameters that are saved."""
    return _scored(curve) | {
        f"{when}_{name.partition('_')[2]}": value
        for when, point in (("initial", initial), ("final", kept))
        for name, value in point.items()
        if name.startswith(("validation_", "curve_"))
    }

"""Training of an adapter on the same rows in two ways, ours and the stock one, each in a process of its own.

The stock way is what scripts do: transformers' Trainer over a model that PEFT wrapped, with rows in the order they come
and padded to the longest of their micro-batch of four. Ours is the recover stage itself. Both clocks start at the end
of the first optimizer step, which sets libraries up, and stop at the end of the last. (Ours stops at the last but one,
because rows are scored in the last.) Tokens of rows are counted, never padding.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils.logging import disable_progress_bar

from stages.adapters.registry import ADAPTERS
from stages.common.machine import resident_bytes
from stages.decoders.architecture import DTYPES
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.errors import UserError
from stages.recover.config import RecoverConfig, RecoverStageConfig
from stages.recover.stage import train
from stages.rows.packing import Document, take
from stages.rows.tokens import tokenised
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 4
"""Rows in a micro-batch of the stock way. Two micro-batches make a step."""
STOCK = {"lora": {}, "rora": {"use_rslora": True}, "dora": {"use_dora": True}}
"""PEFT's options for the adapters that both ways have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The model, rows and settings of one measurement."""

    model: Path
    data: Path
    adapter: str
    rank: int
    loss: str
    dtype: str
    device: str
    tokens: int
    batch_tokens: int
    threads: int | None
    compile: bool = False
    """Whether ours compiles the decoder layers."""


def measure(way: str, task: Task) -> JSON:
    """Return tokens, seconds and their ratio, the losses of all steps and the peak memory. For a fresh process."""
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    disable_progress_bar()
    held = resident_bytes("VmRSS")
    marks, losses = WAYS[way](task)
    (first, begun), (last, ended) = marks[0], marks[-1]
    cuda = task.device == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resident_bytes("VmHWM")
    numbers = {"tokens": last - first, "seconds": ended - begun, "tokens_per_second": (last - first) / (ended - begun)}
    memory = {"peak_bytes": peak if cuda or peak is None or held is None else peak - held}
    return numbers | memory | {"losses": losses, "threads": torch.get_num_threads()}


Marks = list[tuple[int, float]]
"""(tokens so far, seconds) at the end of each optimizer step."""


def ours(task: Task) -> tuple[Marks, list[float]]:
    """Run the recover stage up to its merge, and return its marks and losses."""
    marks: Marks = []
    losses: list[float] = []

    def log(point: JSON) -> None:
        if "loss" in point:
            marks.append((point["tokens"], time.perf_counter()))
            losses.append(point["loss"])

    with tempfile.TemporaryDirectory() as output:
        # No checkpoints: the stock way writes none either.
        context = Context(output=Path(output), device=task.device, checkpoint_seconds=1e9, cache=Path(output), log=log)
        train(stage_config(task), {"model": task.model, "data": task.data}, context)
    return marks[:-1], losses


def stage_config(task: Task) -> RecoverStageConfig:
    """Return the recovery's config for `task`, in which almost nothing is scored on the way."""
    recover = RecoverConfig(
        tokens=task.tokens,
        batch_tokens=task.batch_tokens,
        micro_batch_tokens=task.batch_tokens,
        loss=task.loss,
        compile=task.compile,
        curve_every=task.tokens,
        validation_tokens=1,
        test_tokens=0,
    )
    adapter: Any = ADAPTERS[task.adapter].config
    return RecoverStageConfig(
        adapter=adapter(name=task.adapter, rank=task.rank), recover=recover, dtype=task.dtype, seed=0
    )


def documents(task: Task) -> list[Document]:
    """Return the rows that the recovery draws, as tokens."""
    with tempfile.TemporaryDirectory() as cache:
        drawn = tokenised(
            task.data / "train.jsonl",
            load_tokenizer(task.model / "model"),
            length=RecoverConfig().sequence_length,
            label_prompts=task.loss == "all",
            seed=0,
            tokens=task.tokens,
            cache=Path(cache),
        )
        return take(drawn.documents(), task.tokens)


def stock(task: Task) -> tuple[Marks, list[float]]:
    """Train with transformers' Trainer and PEFT, and return its marks and losses."""
    from peft import LoraConfig

    config, rows = stage_config(task), documents(task)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=task.rank,
        lora_alpha=config.adapter.alpha,  # type: ignore[attr-defined]
        target_modules=config.adapter.targets,  # type: ignore[attr-defined]
        **STOCK[task.adapter],  # type: ignore[arg-type]
    )
    marks: Marks = []
    losses = fine_tune(
        load_model(task.model / "model", dtype=task.dtype, device=task.device),
        load_tokenizer(task.model / "model"),
        rows,
        lora=lora,
        learning_rate=config.recover.learning_rate,
        dtype=task.dtype,
        on_step=lambda step: marks.append((step.tokens, time.perf_counter())),
    )
    return marks, losses


@dataclass(frozen=True, slots=True)
class Step:
    """The state of the stock way after an optimizer step.

    Attributes:
        model: the model, with PEFT's adapter in its layers.
        tokens: tokens of rows so far, without padding.
        last: whether no step follows.
    """

    model: PreTrainedModel
    tokens: int
    last: bool


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Document],
    *,
    lora: PeftConfig,
    learning_rate: float,
    dtype: str,
    warmup: float = 0.0,
    on_step: Callable[[Step], object],
) -> list[float]:
    """Train PEFT's adapter on `model` with transformers' Trainer, and return the losses of its steps.

    A step takes two micro-batches of `ROWS` rows, in the order given; rows that fill no step are left out. The rate
    rises over the share `warmup` of the steps and falls along a cosine. `on_step` is called after each step.

    Raises:
        UserError: the rows fill no step.
    """
    from peft import get_peft_model
    from transformers import (
        DataCollatorForSeq2Seq,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

    if not (steps := len(rows) // (2 * ROWS)):
        raise UserError(f"a step of the stock way takes {2 * ROWS} rows, and its tokens give {len(rows)}: give more.")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    drawn = list(accumulate(len(row.ids) for row in rows))

    class AfterStep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            tokens = drawn[state.global_step * 2 * ROWS - 1]
            on_step(Step(model, tokens, last=state.global_step == steps))

    # Both ways train on the same rows in the same order.
    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(rows)

    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            per_device_train_batch_size=ROWS,
            gradient_accumulation_steps=2,
            max_steps=steps,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(warmup * steps),
            use_cpu=model.device.type == "cpu",
            bf16=dtype == "bfloat16",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = InOrder(
            model=get_peft_model(model, lora),
            args=arguments,
            train_dataset=[_row(row) for row in rows],  # type: ignore[arg-type]
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
            callbacks=[AfterStep()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _row(row: Document) -> JSON:
    labels = [-100] * row.first_label + row.ids[row.first_label :]
    return {"input_ids": row.ids, "attention_mask": [1] * len(row.ids), "labels": labels}


WAYS: dict[str, Callable[[Task], tuple[Marks, list[float]]]] = {"ours": ours, "stock": stock}


def useful_operations(task: Task) -> float:
    """Return the floating-point operations in matrix products that a token of the run needs, forward and backward.

    The products are those of rows' own tokens, and of labelled rows with the head. There is no padding, nothing
    computed twice, and no gradient of frozen weights. A product of a token with a matrix of n elements counts 2n.
    """
    rows = documents(task)
    model = load_model(task.model / "model", dtype=task.dtype)
    model = ADAPTERS[task.adapter].attach(model, stage_config(task).adapter, ())  # type: ignore[assignment]
    frozen, trained, head = _weights(model)
    tokens, labelled = sum(len(row.ids) for row in rows), sum(row.labels for row in rows)
    attention = _attention_width(model) * sum(len(row.ids) ** 2 for row in rows)
    # Attention: half of two products forward (it is causal), twice that backward.
    # A frozen matrix has a product forward and one backward (for its input); a trained one has one more (for its own
    # gradient). The head is frozen.
    return (tokens * (4 * frozen + 6 * trained) + labelled * 4 * head + 6 * attention) / tokens


def _weights(model: nn.Module) -> tuple[int, int, int]:
    """Return the number of elements in the decoder's frozen matrices, in the adapter's, and in the head."""
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    frozen = trained = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight is not head:
            if module.weight.requires_grad:
                trained += module.weight.numel()
            else:
                frozen += module.weight.numel()
    return frozen, trained, head.numel()


def _attention_width(model: nn.Module) -> int:
    """Return query heads × head dimension, summed over all layers."""
    layers = [module for name, module in model.named_modules() if name.endswith("q_proj")]
    return sum(layer.out_features for layer in layers)  # type: ignore[misc]


def matmul_rate(dtype: str, device: str, threads: int | None) -> float:
    """Return the operations a second of the fastest matrix product, over a few sizes. For a fresh process."""
    if threads is not None:
        torch.set_num_threads(threads)
    return max(_product_rate(size, DTYPES[dtype], device) for size in SIZES[device])


SIZES: dict[str, Sequence[int]] = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}


@torch.no_grad()
def _product_rate(size: int, dtype: torch.dtype, device: str) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    left @ right
    count, begun = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - begun < 0.7:
        left @ right
        count += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return 2 * size**3 * count / (time.perf_counter() - begun)

"""Speed of recoveries on a slice of a 7B, through the `Training` that the recover stage runs.

Operations are counted as is usual for adapters: 4 N a token, where N are the weights of the decoder's matrices and of
the head. That is 2 N forward, and 2 N backward for the gradient of the inputs. A frozen weight has no gradient of its
own. Products of the adapter and of attention are not counted. Distillation adds 2 N of the teacher's forward pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.check import Found, Part, Row, Setting, Skipped
from benchmarks.gpu.device import GIB, Kernels, emptied, kernels, peak, synchronise, waits
from benchmarks.gpu.slices import WHOLE, byte_tokenizer, llama, rows, whole
from stages.adapters.registry import ADAPTERS
from stages.common.files import write_jsonl
from stages.decoders.packed_attention import use_packed_attention
from stages.decoders.quantised import hold
from stages.recover.config import RecoverConfig, RecoverStageConfig
from stages.recover.loop import Training
from stages.recover.objectives.registry import objective_of
from stages.recover.plan import adapter_of
from stages.recover.seeds import seeded
from stages.rows.tokens import tokenised
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANK = 16
LONGEST = 2048
"""Tokens of the longest document."""
WARM, TIMED, COUNTED = 3, 10, 2
"""Steps before the clock starts, steps that it measures, and steps whose waits and launches are counted afterwards."""


def training(
    model: PreTrainedModel,
    config: RecoverStageConfig,
    train: Path,
    context: Context,
    *,
    teacher: PreTrainedModel | None = None,
) -> Training:
    """Return the recovery of `model` as the recover stage builds it, with a curve that scores nothing."""
    adapter, (objective, options) = adapter_of(config), objective_of(config.recover)
    stream = tokenised(
        train,
        byte_tokenizer(),
        length=config.recover.sequence_length,
        label_prompts=config.recover.loss == "all",
        seed=config.seed,
        tokens=config.recover.tokens,
        cache=context.cache,
    )
    use_packed_attention(model)
    with seeded(config.seed, "adapter"):
        adapter.attach(model, config.adapter, ())
    return Training(
        model=model,
        objective=objective.build(model, options, teacher, config.dtype, context),
        stream=stream,
        measure=lambda tokens: {"validation_loss": 0.0},
        config=config.recover,
        dtype=config.dtype,
        seed=config.seed,
        context=context,
        identity={},
        rates=adapter.rates(model, config.adapter),
    )


class Windows:
    """Measurements of the steps of a recovery, taken by its log: first the time, then what is counted.

    Counting slows a step down, so no step is both timed and counted.
    """

    def __init__(self, device: str, timed: int) -> None:
        self.device, self.timed = device, timed
        self.marks: list[tuple[int, float]] = []
        self.losses: list[float] = []
        self.kernels = Kernels()
        self.waits: list[str] = []
        self._counting = ExitStack()

    @property
    def steps(self) -> int:
        """The steps that the recovery has to take. In the last one the curve is measured, which is not counted."""
        return WARM + self.timed + (2 * COUNTED if self.device == "cuda" else 0) + 1

    def __call__(self, point: JSON) -> None:
        """Take a point of the curve, as it comes after each step."""
        if "loss" not in point:
            return
        self.losses.append(point["loss"])
        taken = point["step"] - WARM
        if taken in (0, self.timed):
            synchronise(self.device)
            self.marks.append((point["tokens"], time.perf_counter()))
        if self.device == "cuda" and taken >= self.timed:
            self._count(taken - self.timed)

    def _count(self, step: int) -> None:
        if step % COUNTED == 0:
            self._counting.close()
        if step == 0:
            self.waits = self._counting.enter_context(waits())
        elif step == COUNTED:
            self.kernels = self._counting.enter_context(kernels())

    def numbers(self) -> JSON:
        """Return tokens a second, seconds of a step, and on CUDA launches and waits of a step."""
        (first, begun), (last, ended) = self.marks
        found: JSON = {
            "tokens_per_second": (last - first) / (ended - begun),
            "step_seconds": (ended - begun) / self.timed,
            "losses": [self.losses[0], self.losses[-1]],
        }
        if self.device == "cuda":
            found |= {"launches": self.kernels.count / COUNTED, "kernel_seconds": self.kernels.busy / COUNTED}
            found |= {"waits": len(self.waits) / COUNTED, "waits_at": sorted(set(self.waits))}
        return found


def measured(
    setting: Setting,
    *,
    batch_tokens: int,
    layers: int,
    adapter: str = "lora",
    objective: str = "cross_entropy",
    channels: int | None = None,
    timed: int | None = None,
    **recover: Any,
) -> JSON:
    """Return the speed and the memory of a recovery of `layers` layers, with `batch_tokens` tokens a step."""
    device, windows = setting.device, Windows(setting.device, timed or (3 if setting.toy else TIMED))
    config = RecoverStageConfig(
        adapter=_adapter_config(adapter, rank=4 if setting.toy else RANK),
        recover=_recover_config(setting, windows, batch_tokens, objective, recover),
        dtype=setting.dtype,
        seed=0,
    )
    with TemporaryDirectory() as folder:
        output, train = Path(folder), Path(folder) / "train.jsonl"
        write_jsonl(train, rows(config.recover.tokens, longest=config.recover.sequence_length))
        emptied(device)
        model = llama(setting, layers=layers, channels=channels)
        teacher = llama(setting, layers=layers, seed=1) if objective != "cross_entropy" else None
        operations = 4 * matrices(model) + (0 if teacher is None else 2 * matrices(teacher))
        model = hold(model, config.recover.base, device)
        emptied(device)  # the weights as they were, which a run never has on the device
        context = Context(output=output, device=device, cache=output, checkpoint_seconds=math.inf, log=windows)
        progress = training(model, config, train, context, teacher=teacher).run()
    return windows.numbers() | {
        "layers": layers,
        "batch_tokens": batch_tokens,
        "micro_batch_tokens": progress.micro_batch_tokens or batch_tokens,
        "operations_per_token": operations,
        "peak_bytes": peak(device),
    }


def _adapter_config(name: str, **options: Any) -> Any:
    return ADAPTERS[name].config(name=name, **options)  # type: ignore[call-arg]


def _recover_config(
    setting: Setting, windows: Windows, batch_tokens: int, objective: str, options: JSON
) -> RecoverConfig:
    tokens = windows.steps * batch_tokens
    config = RecoverConfig(
        tokens=tokens,
        batch_tokens=batch_tokens,
        micro_batch_tokens=batch_tokens,
        curve_every=tokens,
        sequence_length=min(LONGEST, batch_tokens),
        learning_rate=1e-4,
        objective=objective,
    )
    return replace(config, **options)


def matrices(model: PreTrainedModel) -> int:
    """Return the number of weights in the matrices that a token meets: the decoder's, and the head."""
    linear = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    return sum(module.weight.numel() for module in linear)


SMALL, LARGE = 1024, 8192
"""Tokens of a step. The small step is the default of short recoveries; the large one fills a card."""


def sizes(setting: Setting) -> tuple[int, int]:
    """Return the tokens of a small and of a large step."""
    return (64, 128) if setting.toy else (SMALL, LARGE)


def depths(setting: Setting) -> tuple[int, ...]:
    """Return the layers of the models: two, between which a layer's cost lies, or all of a 7B's."""
    if setting.toy:
        return (1, 2)
    return (WHOLE,) if setting.full else (4, 8)


def lora(setting: Setting, found: Found) -> Part:
    """Measure LoRA at both sizes of a step, and the large one at two depths, from which the whole 7B follows."""
    return _with_whole(setting, found, "LoRA", "45 % of matmul", size=sizes(setting)[1])


def distillation(setting: Setting, found: Found) -> Part:
    """Measure distillation from a teacher of the same size."""
    steps, large = _steps(setting, objective="distillation"), sizes(setting)[1]
    return _part(found, "distillation", steps, {str(large): "35 % of matmul"})


def dora(setting: Setting, found: Found) -> Part:
    """Measure DoRA."""
    return _part(found, "DoRA", _steps(setting, adapter="dora"))


def rora(setting: Setting, found: Found) -> Part:
    """Measure RoRA."""
    return _part(found, "RoRA", _steps(setting, adapter="rora"))


def checkpointing(setting: Setting, found: Found) -> Part:
    """Measure LoRA with gradient checkpointing, and the small step at two depths."""
    size = sizes(setting)[0]
    return _with_whole(setting, found, "LoRA, checkpointing", "", size=size, gradient_checkpointing=True)


def quantised(setting: Setting, found: Found) -> Part:
    """Measure LoRA on weights in 4 bits, and the small step at two depths, because that has to fit in 16 GB."""
    if find_spec("bitsandbytes") is None:
        raise Skipped("there is no bitsandbytes, which holds weights in 4 bits")
    return _with_whole(setting, found, "LoRA on NF4", "14.9 GiB (16 GB)", size=sizes(setting)[0], base="nf4")


def compiled(setting: Setting, found: Found) -> Part:
    """Measure LoRA with compiled layers, with a large step."""
    if setting.toy:
        raise Skipped("compiling takes a minute; tests/recover/test_compiled.py does it on a processor")
    large = sizes(setting)[1]
    step = measured(setting, batch_tokens=large, layers=depths(setting)[-1], compile=True)
    return _part(found, "LoRA, compiled", {str(large): step})


def widths(setting: Setting, found: Found) -> Part:
    """Measure LoRA where 20 % of the MLP's channels are gone, and where their number is rounded to a multiple of 64."""
    odd, even = (35, 64) if setting.toy else (8605, 8640)
    large, layers = sizes(setting)[1], depths(setting)[-1]
    steps = {str(width): measured(setting, batch_tokens=large, layers=layers, channels=width) for width in (odd, even)}
    return Part(
        {"steps": steps},
        [step_row(f"LoRA, {width} channels", step, found) for width, step in steps.items()],
    )


def _steps(setting: Setting, **options: Any) -> dict[str, JSON]:
    """Return what `measured` finds at both sizes of a step."""
    layers = depths(setting)[-1]
    return {str(size): measured(setting, batch_tokens=size, layers=layers, **options) for size in sizes(setting)}


def _part(found: Found, name: str, steps: dict[str, JSON], wanted: Mapping[str, str] = MappingProxyType({})) -> Part:
    """Return the findings of a recovery by the size of its step; `wanted` has the goals."""
    lines = [
        replace(step_row(f"{name}, {size} tokens a step", step, found), wanted=wanted.get(size, ""))
        for size, step in steps.items()
    ]
    return Part({"steps": steps}, lines)


def _with_whole(setting: Setting, found: Found, name: str, wanted: str, *, size: int, **options: Any) -> Part:
    """Measure both sizes of a step, and `size` at two depths, from which the whole 7B follows; `wanted` is its goal."""
    steps, (shallow, *deeper) = _steps(setting, **options), depths(setting)
    if not deeper:
        return _part(found, name, steps, {str(size): wanted})
    part = _part(found, name, steps)
    whole = extrapolated(measured(setting, batch_tokens=size, layers=shallow, **options), steps[str(size)])
    row = whole_row(f"{name}, {size} tokens a step ({WHOLE} layers)", whole, found)
    return Part(part.numbers | {"whole": whole}, [*part.rows, replace(row, wanted=wanted)])


def share(rate: float, operations: float, found: Found) -> float | None:
    """Return the share of the measured rate of matrix products; None where that was not measured."""
    known: float | None = found.get("matmul", {}).get("best")
    return None if known is None else rate * operations / known


def step_row(what: str, step: JSON, found: Found) -> Row:
    """Return the line of a measured recovery."""
    part = share(step["tokens_per_second"], step["operations_per_token"], found)
    words = [f"{step['tokens_per_second']:,.0f} tokens/s"]
    words += [] if part is None else [f"{part:.0%} of matmul"]
    words += [f"{step['launches']:,.0f} launches and {step['waits']:g} waits a step"] if "launches" in step else []
    words += [f"{step['peak_bytes'] / GIB:.1f} GiB"]
    if step["micro_batch_tokens"] < step["batch_tokens"]:
        words.append(f"{step['micro_batch_tokens']} tokens at a time")
    return Row(f"{what} ({step['layers']} layers)", ", ".join(words))


def extrapolated(shallow: JSON, deep: JSON) -> JSON:
    """Return seconds, operations and memory of 32 layers, as if every layer beyond the deep slice cost the same."""

    # Per token, because the steps of two runs differ by a document's tokens.
    slices = [step | {"seconds": 1 / step["tokens_per_second"]} for step in (shallow, deep)]
    found = whole(*slices, names=("seconds", "operations_per_token", "peak_bytes"))
    return found | {"tokens_per_second": 1 / found["seconds"]}


def whole_row(what: str, whole: JSON, found: Found) -> Row:
    """Return the line of an extrapolated model."""
    part = share(whole["tokens_per_second"], whole["operations_per_token"], found)
    words = [f"{whole['tokens_per_second']:,.0f} tokens/s"]
    words += [] if part is None else [f"{part:.0%} of matmul"]
    return Row(what, ", ".join([*words, f"{whole['peak_bytes'] / GIB:.1f} GiB (extrapolated)"]))

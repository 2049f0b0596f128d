"""Results of a toy in float32 on the device beside those on a processor: recoveries by every adapter and objective.

Names come from the registries, so a new adapter or objective is compared without a line here. On a processor both sides
are the processor's, and the comparison only runs the code.
"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu.check import Found, Part, Row, Setting
from benchmarks.gpu.slices import byte_tokenizer, questions, toy
from stages.adapters.low_rank import LowRankConfig
from stages.adapters.registry import ADAPTERS
from stages.adapters.through_peft import PeftAdapterConfig
from stages.common.files import write_jsonl
from stages.recover.config import RecoverConfig, RecoverStageConfig
from stages.recover.objectives.registry import OBJECTIVES
from stages.recover.stage import Material, Trained, trained
from stages.stage import Context

LOSS = 1e-3
"""The largest difference of a step's loss, as a share of it. Rounding grows with the steps."""
STEPS, STEP_TOKENS = 3, 256


def adapters(setting: Setting, found: Found) -> Part:
    """Compare the losses of a recovery by every adapter."""
    return _compared(setting, "adapters", {name: (name, "cross_entropy") for name in ADAPTERS})


def objectives(setting: Setting, found: Found) -> Part:
    """Compare the losses of a recovery by every objective."""
    return _compared(setting, "objectives", {name: ("lora", name) for name in OBJECTIVES})


def _compared(setting: Setting, kind: str, recoveries: dict[str, tuple[str, str]]) -> Part:
    """Compare recoveries by (adapter, objective). One that fails leaves the others."""
    losses, parameters, wrong = dict[str, float](), dict[str, float](), list[str]()
    for name, (adapter, objective) in recoveries.items():
        try:
            one, other = (_recovered(device, adapter, objective) for device in ("cpu", setting.device))
        except ModuleNotFoundError:
            raise
        except Exception as error:  # of any kind, since the other names are still to be compared
            wrong.append(said(name, error))
            continue
        losses[name] = difference(_losses(one), _losses(other))
        parameters[name] = _parameters_apart(one, other)
    part = agreed(kind, losses, allowed=LOSS, wrong=wrong)
    # No limit: a decomposition that is only unique up to signs gives other parameters and the same model.
    row = Row(f"{kind}, their parameters", f"at most {max(parameters.values(), default=0.0):.1e} apart")
    return Part(part.numbers | {"parameters": parameters}, [*part.rows, row], part.wrong)


def said(name: str, error: Exception) -> str:
    """Return a short text on a comparison that failed."""
    return f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:120]}"


def agreed(kind: str, differences: dict[str, float], *, allowed: float, wrong: list[str]) -> Part:
    """Return the part of a comparison by name: what is beyond `allowed` is wrong, beside what is `wrong` already."""
    wrong = wrong + [f"{name}: {each:.1e} apart" for name, each in differences.items() if not each <= allowed]
    largest = max(differences.values(), default=0.0)
    row = Row(
        f"{kind}, device against processor",
        f"{len(differences)} compared, at most {largest:.1e} apart",
        f"{allowed:.0e}",
    )
    return Part({"differences": differences, "allowed": allowed}, [row], wrong)


def difference(one: list[float], other: list[float]) -> float:
    """Return the largest difference of two lists of numbers, as a share of the number."""
    return max(abs(b - a) / max(abs(a), 1e-12) for a, b in zip(one, other, strict=True))


def _recovered(device: str, adapter: str, objective: str) -> Trained:
    """Return a toy's recovery."""
    teacher = toy(device, seed=1) if OBJECTIVES[objective].taught else None
    with TemporaryDirectory() as folder:
        output = Path(folder)
        context = Context(output=output, device=device, cache=output, checkpoint_seconds=math.inf)
        return trained(stage_config(adapter, objective), material(device, output, teacher), context)


def _losses(recovered: Trained) -> list[float]:
    """Return the losses of the steps, and of the rows that the recovery is measured on."""
    points = recovered.history
    return [point[name] for point in points for name in ("loss", "validation_loss") if name in point]


def _parameters_apart(one: Trained, other: Trained) -> float:
    """Return the norm of the difference of the trained parameters, as a share of their norm."""
    vectors = [torch.cat([each.flatten() for each in parameters_of(found).values()]) for found in (one, other)]
    return float((vectors[1] - vectors[0]).norm() / vectors[0].norm())


def parameters_of(recovered: Trained) -> dict[str, torch.Tensor]:
    """Return the trained parameters by name, on the processor."""
    named = recovered.adapted.named_parameters()
    return {name: each.detach().cpu() for name, each in named if each.requires_grad}


def material(device: str, folder: Path, teacher: Any = None) -> Material:
    """Return a toy, and questions that share their beginning."""
    rows = questions(48)
    write_jsonl(folder / "train.jsonl", rows)
    return Material(
        load=lambda dtype: toy(device).to(getattr(torch, dtype)),
        tokenizer=byte_tokenizer(),
        train=folder / "train.jsonl",
        held_out=questions(4, seed=1),
        teacher=teacher,
    )


def stage_config(adapter: str, objective: str = "cross_entropy", **recover: Any) -> RecoverStageConfig:
    """Return a recovery of a few steps."""
    kind = ADAPTERS[adapter].config
    # The toy's matrices are smaller than the usual ranks.
    small: dict[str, Any] = {"rank": 4} if issubclass(kind, LowRankConfig | PeftAdapterConfig) else {}
    tokens = STEPS * STEP_TOKENS
    options: dict[str, Any] = {
        "tokens": tokens,
        "batch_tokens": STEP_TOKENS,
        "micro_batch_tokens": STEP_TOKENS // 2,
        "sequence_length": 128,
        "curve_every": tokens,
        "validation_tokens": 200,
        "test_tokens": 0,
        "objective": objective,
    }
    return RecoverStageConfig(
        adapter=kind(name=adapter, **small), recover=RecoverConfig(**options | recover), dtype="float32", seed=0
    )

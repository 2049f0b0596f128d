"""Recoveries that are stopped and go on: whether they end in the same bytes as without a stop."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from benchmarks.gpu.agreement import material, parameters_of, stage_config
from benchmarks.gpu.check import Found, Part, Row, Setting
from stages.recover.stage import trained
from stages.stage import JSON, Context

STOPPED_AT = 2
ROUNDING = {"float32": 1e-3, "bfloat16": 5e-2}
"""The largest difference of a parameter that rounding explains, as a share of the largest."""


def resume(setting: Setting, found: Found) -> Part:
    """Compare the parameters of a recovery that was stopped with those of one that was not, in both precisions."""
    numbers, lines, wrong = dict[str, JSON](), list[Row](), list[str]()
    for dtype, allowed in ROUNDING.items():
        whole, stopped = (_parameters(setting, dtype, stop=stop) for stop in (False, True))
        equal = all(bool((stopped[name] == value).all()) for name, value in whole.items())
        apart = max(
            float((stopped[name] - value).abs().max() / value.abs().max().clamp_min(1e-12))
            for name, value in whole.items()
        )
        numbers[dtype] = {"equal_bytes": equal, "difference": apart}
        lines.append(
            Row(f"resumed, {dtype}", "the same bytes" if equal else f"at most {apart:.1e} apart", "the same bytes")
        )
        wrong += [f"{dtype}: {apart:.1e} apart"] if apart > allowed else []
    return Part(numbers, lines, wrong)


def _parameters(setting: Setting, dtype: str, *, stop: bool) -> dict[str, Tensor]:
    """Return the trained parameters; with `stop` the recovery is interrupted after a step, and run again."""
    config = replace(stage_config("lora"), dtype=dtype)
    with TemporaryDirectory() as folder:
        output = Path(folder)
        given = material(setting.device, output)
        context = Context(output=output, device=setting.device, cache=output, checkpoint_seconds=0)
        if stop:
            with suppress(InterruptedError):
                trained(config, given, replace(context, log=_interrupt))
        return parameters_of(trained(config, given, context))


def _interrupt(point: JSON) -> None:
    if point["step"] == STOPPED_AT:
        raise InterruptedError

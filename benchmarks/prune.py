"""Taylor scores without keeping gradients, against the stock way in the same run: time, memory, and the same scores.

    python -m benchmarks.prune
    python -m benchmarks.prune --second
    python -m benchmarks.prune --size 100m --dtype float32
    python -m benchmarks.prune --device cuda --size 7b --sequences 10 --length 64

The model is a llama of a billion parameters with random weights in bfloat16, built in place. Both ways run the same
forward and backward passes; the stock way keeps every gradient (`benchmarks.taylor`). Each has a process of its own,
one after the other. Its peak memory counts above what the process held with the weights loaded.

- `extra_memory_fraction` is that peak without the activations, in weights. The activations are the peak of forward and
  loss alone, with the graph kept. `peak_fraction` includes them.
- `estimated` is what the prune stage foresees for weights and peak.
- `time_ratio` is ours over stock.
- `score_difference` is the relative difference of groups' scores, as the root mean square of the layer where that is
  largest. `max_score_difference` is the largest of any group.

Passes in bfloat16 round. With `--reference` ours is also run in float32, which takes the weights twice. `error` is then
how far ours and stock are from those scores.

These figures are of `--expansion`, by default param_first. `--second` measures param_second too, under its name. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.taylor import SIZES, Groups, Task, estimated, measure
from benchmarks.workers import apart
from stages.common.machine import hardware
from stages.decoders.architecture import DTYPES
from stages.prune.statistics.taylor import EXPANSIONS
from stages.stage import JSON


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line asks for."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that it can be followed while it runs
    options = vars(_parser().parse_args(arguments))
    second, reference = options.pop("second"), options.pop("reference")
    task = Task(**options)
    print(f"llama {task.size}, {task.dtype} on {task.device}, {task.sequences} x {task.length} tokens")
    result = compare(task, reference=reference)
    if second:
        result["param_second"] = compare(replace(task, expansion="param_second"), reference=reference)
    print(json.dumps(result | {"hardware": hardware()}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prune", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="1b", help="of the model (1b)")
    parser.add_argument("--expansion", choices=EXPANSIONS, default="param_first", help="of the loss (param_first)")
    parser.add_argument("--second", action="store_true", help="measure param_second too")
    parser.add_argument("--sequences", type=_positive, default=4, help="calibration sequences (4)")
    parser.add_argument("--length", type=_positive, default=32, help="tokens in each, at least 2 (32)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of weights and passes (bfloat16)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="score in float32 too (which takes the weights twice)",
    )
    parser.add_argument("--threads", type=_positive, help="processor threads; by default torch's choice")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("give at least 1")
    return number


def compare(task: Task, *, reference: bool) -> JSON:
    """Return what was measured of both ways. It is printed as it is measured."""
    print(f"\n{task.expansion}\n{'':8}{'seconds':>10}{'peak MiB':>10}{'of it activations':>20}")
    measured: dict[str, JSON] = {}
    groups: dict[str, Groups] = {}
    for way in ("stock", "ours", *(("exact",) if reference else ())):
        measured[way], groups[way] = apart("benchmarks.taylor", measure, way, task)
        numbers = measured[way]
        print(f"{way:8}{numbers['seconds']:10.1f}{numbers['peak'] / 2**20:10.0f}{numbers['activations'] / 2**20:20.0f}")
    found = _ratios("ours", measured, groups) | {"estimated": estimated(task)}
    extra, stock = (f"{found[name]:.1%}" for name in ("extra_memory_fraction", "stock_extra_memory_fraction"))
    print(f"{found['time_ratio']:.2f} of the time; above weights and activations {extra} of the weights, not {stock}")
    print(f"scores within {found['score_difference']:.1e} (at most {found['max_score_difference']:.1e})")
    if "exact" in groups:
        found["error"] = {way: _differences(groups[way], groups["exact"])[0] for way in ("ours", "stock")}
        print("from float32's: ours {ours:.1e}, stock {stock:.1e}".format(**found["error"]))
    return found | {"ours": measured["ours"], "stock": measured["stock"], "tokens": [task.sequences, task.length]}


def _ratios(way: str, measured: dict[str, JSON], groups: dict[str, Groups]) -> JSON:
    ours, stock = measured[way], measured["stock"]
    apart, largest = _differences(groups[way], groups["stock"])
    return {
        "time_ratio": ours["seconds"] / stock["seconds"],
        "extra_memory_fraction": max(0, ours["peak"] - ours["activations"]) / ours["weights"],
        "stock_extra_memory_fraction": max(0, stock["peak"] - stock["activations"]) / stock["weights"],
        "peak_fraction": ours["peak"] / ours["weights"],
        "stock_peak_fraction": stock["peak"] / stock["weights"],
        "score_difference": apart,
        "max_score_difference": largest,
    }


def _differences(found: Groups, expected: Groups) -> tuple[float, float]:
    """Return the relative difference of the worst layer and kind: as a root mean square, and at its largest."""
    relative = [(found[name] - scores).abs() / scores for name, scores in expected.items()]
    return max(float(d.square().mean().sqrt()) for d in relative), max(float(d.max()) for d in relative)


if __name__ == "__main__":
    main()

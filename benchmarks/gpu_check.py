"""Everything about a GPU in eight minutes: speed, memory, and results beside a processor's. Nothing is downloaded.

    python -m benchmarks.gpu_check
    python -m benchmarks.gpu_check --full
    python -m benchmarks.gpu_check --only matmul lora stock
    python -m benchmarks.gpu_check --device cpu

Models have random weights, made on the card. What is said of a 7B follows from slices of it, and is marked; `--full`
measures whole 7Bs. On a processor all of it runs at toy size. It then says that the script works, and nothing of speed.

Each check has a process of its own. One that fails, or whose package is missing, is a line with its reason. The checks
are in the order of their worth, and the one that runs when the time is over is ended. The results are written after
each of them.
docs/gpu.md says what is measured, and how to read it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.gpu.check import FAILED, MISSING, Check, Outcome, Row, Setting
from benchmarks.gpu.running import LIBRARIES, absent, outcomes
from benchmarks.workers import apart
from pipeline.engine.provenance import commit
from stages.common.files import write_json
from stages.stage import JSON

NEEDED = {
    "torch": "2.11",
    "transformers": "5.17.0",
    "tokenizers": "0.23.3",
    "safetensors": "0.8.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "lm-eval": "0.4.13",
    "datasets": "5.2.0",
    "llmcompressor": "0.14.0.1",
}
"""The packages that the checks import, with the versions that they were written with; of torch the oldest."""
OPTIONAL = {"liger-kernel": "0.8.5", "bitsandbytes": "0.50.2"}
"""The packages that are used where they are there, with the oldest version that pyproject.toml allows.

liger-kernel has fused kernels for recoveries, and bitsandbytes holds weights in 4 bits.
"""
OLDEST_TORCH = (2, 11)
MINUTES, FULL_MINUTES = 8.0, 60.0
"""Time for all checks, and for those on whole 7Bs, unless told otherwise."""
ROOT = Path(__file__).resolve().parents[1]
CHECKS = (
    Check(name="machine", function="benchmarks.gpu.machine:machine"),
    Check(name="matmul", function="benchmarks.gpu.products:matmul"),
    Check(name="lora", function="benchmarks.gpu.training:lora", seconds=90, full_seconds=240),
    Check(name="stock", function="benchmarks.gpu.stock:stock", full_seconds=240),
    Check(name="attention", function="benchmarks.gpu.attention:attention", seconds=90),
    Check(name="distillation", function="benchmarks.gpu.training:distillation", full_seconds=240),
    Check(name="adapters", function="benchmarks.gpu.agreement:adapters", seconds=90),
    Check(name="objectives", function="benchmarks.gpu.agreement:objectives"),
    Check(name="criteria", function="benchmarks.gpu.pruned:criteria"),
    Check(name="search", function="benchmarks.gpu.pruned:search"),
    Check(name="scorer", function="benchmarks.gpu.asking:scorer"),
    Check(name="generator", function="benchmarks.gpu.asking:generator"),
    Check(name="masks", function="benchmarks.gpu.pruned:masks"),
    Check(name="taylor", function="benchmarks.gpu.pruned:taylor", full_seconds=240),
    Check(name="prune_best", function="benchmarks.gpu.pruned:whole_prune", seconds=150, full_seconds=900),
    Check(name="scoring", function="benchmarks.gpu.asking:scoring", full_seconds=240),
    Check(name="writing", function="benchmarks.gpu.asking:writing", full_seconds=240),
    Check(name="dora", function="benchmarks.gpu.training:dora", full_seconds=240),
    Check(name="rora", function="benchmarks.gpu.training:rora", full_seconds=240),
    Check(name="quantised", function="benchmarks.gpu.training:quantised", full_seconds=240),
    Check(name="checkpointing", function="benchmarks.gpu.training:checkpointing", full_seconds=240),
    Check(name="widths", function="benchmarks.gpu.training:widths", full_seconds=240),
    Check(name="stages", function="benchmarks.gpu.memory:stages", seconds=90),
    Check(name="halving", function="benchmarks.gpu.memory:halving"),
    Check(name="resume", function="benchmarks.gpu.resume:resume"),
    Check(name="compiled", function="benchmarks.gpu.training:compiled", seconds=120, full_seconds=300),
)
"""The most valuable ones first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the checks that the command line asks for; the exit status is 1 if one failed or could not run."""
    began = time.monotonic()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that it can be followed while it runs
    options = _parser().parse_args(arguments)
    refuse_old_torch()
    # Asked otherwise, the fork server would start CUDA, which its children then can't use.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    setting = Setting(device=options.device, full=options.full)
    if (reason := apart(LIBRARIES, absent, options.device)) is not None:
        raise SystemExit(f"error: {reason}")
    chosen = [check for check in CHECKS if not options.only or check.name in options.only]
    begun = datetime.now()
    folder: Path = options.output / f"{begun:%Y-%m-%d-%H-%M-%S}"
    folder.mkdir(parents=True)
    result: JSON = {"began": f"{begun:%Y-%m-%d %H:%M}", "device": setting.device, "full": setting.full}
    result |= {"toy": setting.toy, "commit": commit(), "versions": versions(), "checks": {}}
    ended: list[Outcome] = []
    minutes = options.minutes or (FULL_MINUTES if options.full else MINUTES)
    for outcome in outcomes(chosen, setting, ends=began + 60 * minutes, logs=folder):
        ended.append(outcome)
        print(f"{outcome.name:14}{outcome.state:14}{outcome.seconds:7.1f} s  {outcome.reason}".rstrip())
        result["checks"][outcome.name] = _entry(outcome)
        write_json(folder / "result.json", result)
    print(f"\n{table([row for outcome in ended for row in outcome.rows])}\n")
    print(_saved(result) if options.save else folder / "result.json")
    if any(outcome.state in (FAILED, MISSING) for outcome in ended):
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: all of it at toy size (cuda)")
    parser.add_argument("--full", action="store_true", help="measure whole 7Bs, which takes longer")
    names = [check.name for check in CHECKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="CHECK", help=f"some of: {', '.join(names)}")
    parser.add_argument("--minutes", type=float, help="all checks end with them (8, with --full 60)")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check"), help="where results and logs go")
    parser.add_argument("--save", action="store_true", help="also write results/gpu/CARD-DATE.json")
    return parser


def refuse_old_torch() -> None:
    """Raise `SystemExit` where torch is older than the checks can use."""
    found = versions()["torch"]
    numbers = tuple(int(part) for part in found.split(".")[:2]) if found[0].isdigit() else (0, 0)
    if numbers < OLDEST_TORCH:
        raise SystemExit(f"error: torch is {found}, and {NEEDED['torch']} or newer is needed.")


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that the checks use."""
    found = {}
    for name in NEEDED | OPTIONAL:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _entry(outcome: Outcome) -> JSON:
    lines = [[row.what, row.value, row.wanted] for row in outcome.rows]
    return {
        "state": outcome.state,
        "reason": outcome.reason,
        "seconds": outcome.seconds,
        "numbers": outcome.numbers,
        "rows": lines,
    }


def table(rows: Sequence[Row]) -> str:
    """Return the lines of all checks, with the goals where there are any."""
    widest = max((len(row.what) for row in rows), default=0)
    return "\n".join(
        f"{row.what:{widest}}  {row.value}" + (f"  [wanted: {row.wanted}]" if row.wanted else "") for row in rows
    )


def _saved(result: JSON) -> Path:
    """Write the result beside the published ones, and return its path."""
    card = result["checks"].get("machine", {}).get("numbers", {}).get("card", {}).get("name", result["device"])
    path = ROOT / "results" / "gpu" / f"{card.replace(' ', '-').lower()}-{result['began'][:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return path


if __name__ == "__main__":
    main()

"""Recovery against the stock way (transformers' Trainer with PEFT) in the same run: tokens a second, memory, losses.

    python -m benchmarks.recover
    python -m benchmarks.recover --loss all
    python -m benchmarks.recover --compile --tokens 16384
    python -m benchmarks.recover --tokens 4096 --rounds 1 prune=llmpruner ratio=0.5
    python -m benchmarks.recover --device cuda --shape llama-7b --tokens 200000 --batch-tokens 8192

The model is the embedded one with 30 % removed. Overrides of the pipeline name another, which is built where the store
lacks it. The rows are those of its recovery. The adapter has rank 16 on all seven projections. With `--shape` the model
is one of conf/model with random weights. The stock way runs in float32 and in bfloat16, and is timed in the faster.
Each way has a process of its own, in turns.

- `tokens_per_second_ratio` is ours over stock, in tokens of rows, without padding.
- `matmul_fraction` is what the matrix products of all rows' tokens need (for the head, of labelled rows; nothing counts
  twice) over what the processor's own bfloat16 product does in the same time. `matmul_fraction_float32` is the same
  over its float32 product. A beginning that rows share counts for each of them, though ours multiplies it once.
- `dora_step_ratio` is the time that DoRA takes for a token over LoRA's, both ours.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.material import built, random_model
from benchmarks.training import STOCK, Task, matmul_rate, measure, useful_operations
from benchmarks.workers import apart
from stages.common.machine import hardware
from stages.errors import UserError
from stages.stage import JSON

_apart = partial(apart, "benchmarks.training")
OVERRIDES = ("prune=llmpruner", "prune.allocation=uniform", "ratio=0.3", "data=commonsense", "recover=standard")
PILOT = 0.5
"""Share of the tokens on which the precisions of the stock way are compared."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line asks for."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that it can be followed while it runs
    options = _parser().parse_args(arguments)
    overrides = [*OVERRIDES, f"runtime.device={options.device}", f"adapter={options.adapter}", *options.overrides]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            material = built(overrides, ["prune", "data"])
            model = random_model(options.shape, material.paths["prune"], Path(scratch)) if options.shape else None
        except UserError as error:
            raise SystemExit(f"error: {error}") from None
        task = Task(
            model=model or material.paths["prune"],
            data=material.paths["data"],
            adapter=options.adapter,
            rank=options.rank,
            loss=options.loss,
            dtype=material.recover_dtype,
            device=options.device,
            tokens=options.tokens,
            batch_tokens=options.batch_tokens,
            threads=options.threads,
            compile=options.compile,
        )
        print(json.dumps(compare(task, rounds=options.rounds) | {"hardware": hardware()}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recover", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--adapter", choices=sorted(STOCK), default="lora", help="of both ways (lora)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter (16)")
    parser.add_argument("--loss", choices=("response", "all"), default="response", help="where it is taken (response)")
    parser.add_argument("--tokens", type=int, default=8192, help="of a run (8192)")
    parser.add_argument("--batch-tokens", type=int, default=1024, help="of a step, and ours of a pass (1024)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each way, in turns (2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="ours with recover.compile=true")
    parser.add_argument("--shape", help="a model of conf/model, with random weights in place of a pruned one")
    parser.add_argument("--threads", type=int, help="processor threads; by default torch's choice")
    parser.add_argument("overrides", nargs="*", help="of the pipeline: model, prune, data, runtime.artifact_root")
    return parser


def compare(task: Task, *, rounds: int) -> JSON:
    """Return what was measured. It is printed as it is measured."""
    ours, print_row = task, _printer(task)
    stock = replace(task, dtype=_faster(task))
    lora, dora = (replace(task, adapter=name) for name in ("lora", "dora"))
    runs: dict[str, list[JSON]] = {"stock": [], "ours": [], "ours, lora": [], "ours, dora": []}
    for _ in range(rounds):
        for name, way, what in (
            ("stock", "stock", stock),
            ("ours", "ours", ours),
            ("ours, lora", "ours", lora),
            ("ours, dora", "ours", dora),
        ):
            if name == "ours, lora" and ours == lora:
                runs[name].append(runs["ours"][-1])
                continue
            runs[name].append(_apart(measure, way, what))
            print_row(name, what.dtype, runs[name][-1])
    rates = {name: statistics.fmean(run["tokens_per_second"] for run in found) for name, found in runs.items()}
    operations = _apart(useful_operations, task)
    products = {dtype: _apart(matmul_rate, dtype, task.device, task.threads) for dtype in ("bfloat16", "float32")}
    fractions = {dtype: operations * rates["ours"] / rate for dtype, rate in products.items()}
    print(
        f"{rates['ours'] / rates['stock']:.2f} times the stock way's tokens a second; matrix products at "
        f"{fractions['bfloat16']:.0%} of the processor's rate in bfloat16 ({products['bfloat16'] / 1e9:.0f} GFLOP/s), "
        f"{fractions['float32']:.0%} of that in float32 ({products['float32'] / 1e9:.0f}); "
        f"DoRA takes {rates['ours, lora'] / rates['ours, dora']:.2f} times LoRA's time"
    )
    return {
        "tokens_per_second_ratio": rates["ours"] / rates["stock"],
        "matmul_fraction": fractions["bfloat16"],
        "matmul_fraction_float32": fractions["float32"],
        "dora_step_ratio": rates["ours, lora"] / rates["ours, dora"],
        "tokens_per_second": rates,
        "peak_bytes": {name: max(run["peak_bytes"] or 0 for run in found) for name, found in runs.items()},
        "losses": {name: statistics.fmean(found[0]["losses"]) for name, found in runs.items()},
        "precision": {"ours": ours.dtype, "stock": stock.dtype},
        "loss": task.loss,
        "compiled": task.compile,
        "threads": runs["ours"][0]["threads"],
    }


def _faster(task: Task) -> str:
    """Return the precision in which the stock way is faster."""
    print_row = _printer(task)
    rates = {}
    for dtype in ("float32", "bfloat16"):
        pilot = _apart(measure, "stock", replace(task, dtype=dtype, tokens=int(PILOT * task.tokens)))
        print_row("stock, pilot", dtype, pilot)
        rates[dtype] = pilot["tokens_per_second"]
    return max(rates, key=rates.__getitem__)


def _printer(task: Task) -> Callable[[str, str, JSON], None]:
    def row(name: str, dtype: str, found: JSON) -> None:
        print(
            f"{name:14}{dtype:10}{found['tokens']:8} tokens{found['seconds']:8.1f} s"
            f"{found['tokens_per_second']:9.1f} tokens/s{(found['peak_bytes'] or 0) / 2**20:9.0f} MiB"
            f"   loss {found['losses'][0]:.2f} → {found['losses'][-1]:.2f}"
        )

    return row


if __name__ == "__main__":
    main()

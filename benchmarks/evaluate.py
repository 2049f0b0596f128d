"""Our evaluation against lm-eval's `HFLM`: speed and memory, with the same model, documents and answers.

    python -m benchmarks.evaluate
    python -m benchmarks.evaluate --limit 50 --generate-limit 2 --threads 1
    python -m benchmarks.evaluate --model DIR

Log-likelihoods: the choices of the eight commonsense tasks, as lm-eval asks them without examples. The clock runs from
(context, continuation) pairs to their log-likelihoods, tokenisation included. Building the pairs and loading the models
are not timed (`load_seconds` says how long a tool takes to be ready). `HFLM` runs at its best setting: of float32 and
bfloat16 and several batch sizes, the fastest on a slice of the documents. Ours runs at its defaults. The tools take
turns task by task, and the other tool begins at the next task, so that the machine's noise falls on both. A rate is
that of all documents over all seconds.

Generation: prompts of the generation protocol, 32 new tokens, greedy, with `HFLM` at its fastest batch size. For
`generate_ratio_same_tokens` ours writes all tokens too. For `generate_ratio` it stops at the answer, as an evaluation
does. It stops at an answer of any task, because prompts of all tasks are in one call; `answers_differ` counts what that
changes. A model that was not trained to answer in this form has nowhere to stop (`parsed` counts the answers in it).
There are two rounds, each begun by another tool.

Each tool has a process of its own, forked from one that has imported the libraries of both. `memory_ratio` is the ratio
of their peaks after the log-likelihoods. Model and rows are artifacts of the store (`artifacts/`), which the pipeline's
stages build where they are missing. Further arguments are overrides of the pipeline's command line. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.generation import compare_generation
from benchmarks.likelihood import best_setting, compare_likelihoods, difference_in_float32
from benchmarks.material import Material, collect
from benchmarks.workers import Worker
from stages.common.machine import hardware
from stages.errors import UserError
from stages.stage import JSON


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line asks for."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that it can be followed while it runs
    options, overrides = _parser().parse_known_args(arguments)
    if options.model is not None:
        path = json.dumps(str(options.model.expanduser().resolve()), ensure_ascii=False)
        overrides = ["model=local", f"model.path={path}", *overrides]
    try:
        material = collect(overrides, limit=options.limit, generate_limit=options.generate_limit)
        result = compare(material, options.threads)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--limit", type=_positive, default=200, help="documents a task (200)")
    parser.add_argument("--generate-limit", type=_positive, default=6, help="prompts a task to generate from (6)")
    parser.add_argument("--model", type=Path, help="a model directory; by default the store's smollm2-135m")
    parser.add_argument("--threads", type=_positive, help="processor threads of each tool; by default torch's choice")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("give at least 1")
    return number


def compare(material: Material, threads: int | None) -> JSON:
    """Return everything that was measured. It is printed as it is measured."""

    def start(tool: str, dtype: str) -> Worker:
        return Worker(tool, material.model, dtype=dtype, device=material.device, threads=threads)

    documents = sum(map(len, material.documents.values()))
    print(f"{material.model}\n{documents} documents of {len(material.documents)} tasks, on {material.device}\n")
    dtype, batch_size = best_setting(material.documents, start)
    with start("stock", dtype) as stock, start("ours", material.dtype) as ours:
        stock.call("set_batch_size", batch_size)
        found = compare_likelihoods(material.documents, ours, stock)
        generation = compare_generation(material.prompts, ours, stock)
        threads = ours.threads
    if {dtype, material.dtype} != {"float32"}:
        found["max_loglikelihood_difference"] = difference_in_float32(material.documents, start)
    found["stock"] |= {"dtype": dtype, "batch_size": batch_size}
    found["ours"] |= {"dtype": material.dtype}
    _summarise(found | generation)
    packages = {name: version(name) for name in ("lm-eval", "transformers", "torch")}
    return found | generation | {"hardware": hardware(), "threads": threads, "versions": packages}


def _summarise(found: JSON) -> None:
    memory = f", {found['memory_ratio']:.2f} times the memory" if found["memory_ratio"] else ""
    print(f"\n{found['documents_per_second_ratio']:.2f} times the documents a second{memory}")
    print(f"log-likelihoods within {found['max_loglikelihood_difference']:.1e}", end=", ")
    print(f"{found['predictions_differ']} predictions differ ({found['ties']} ties apart)")
    same = f"{found['generate_ratio_same_tokens']:.2f} without stopping at the answer"
    print(f"{found['generate_ratio']:.2f} times the generated answers a second, {same}")


if __name__ == "__main__":
    main()

"""Greedy generation by `HFLM` at its best batch size and by ours, in rounds: seconds, and number of differing texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.workers import Worker
from stages.evaluate.generation import parse, response
from stages.stage import JSON

BATCH_SIZES = (1, 8, 16, 32, 64)
PILOT = 16
"""Prompts on which `HFLM`'s batch sizes are compared, or as many as a batch holds."""
NEW_TOKENS = 32
ROUNDS = 2

Asked = Mapping[str, Sequence[str]]
"""The prompts of each task."""


def compare_generation(asked: Asked, ours: Worker, stock: Worker) -> JSON:
    """Return the seconds of both tools over all prompts, and how many texts and answers differ."""
    prompts = [prompt for of_task in asked.values() for prompt in of_task]
    batch_size = _best_batch(prompts, stock)
    seconds = dict.fromkeys(("stock", "ours", "ours_same_tokens"), 0.0)
    texts: dict[str, list[str]] = {}
    write: dict[str, Callable[[], tuple[float, list[str]]]] = {
        "stock": lambda: stock.call("generate", prompts, NEW_TOKENS),
        "ours": lambda: ours.call("generate", prompts, NEW_TOKENS, list(asked)),
        "ours_same_tokens": lambda: ours.call("generate", prompts, NEW_TOKENS),
    }
    print(f"\n{'generation':16}{'prompts':>10}{'HFLM s':>10}{'ours s':>10}{'ours, all tokens s':>20}")
    for turn in range(ROUNDS):
        taken = {}
        # Each round begins with another tool, so that a machine that slows down favours neither.
        for name in list(write)[:: -1 if turn % 2 else 1]:
            taken[name], texts[name] = write[name]()
            seconds[name] += taken[name]
        times = f"{taken['stock']:10.2f}{taken['ours']:10.2f}{taken['ours_same_tokens']:20.2f}"
        print(f"{f'round {turn + 1}':16}{len(prompts):10}{times}")
    tasks = [task for task, of_task in asked.items() for _ in of_task]
    answers = {
        name: [parse(task, response(text)) for task, text in zip(tasks, texts[name], strict=True)]
        for name in ("stock", "ours")
    }
    return {
        "generate_ratio": seconds["stock"] / seconds["ours"],
        "generate_ratio_same_tokens": seconds["stock"] / seconds["ours_same_tokens"],
        "generation": {
            "prompts": len(prompts),
            "new_tokens": NEW_TOKENS,
            "rounds": ROUNDS,
            "stock_batch_size": batch_size,
            "seconds": seconds,
            "texts_differ": _unequal(texts["ours_same_tokens"], texts["stock"]),
            "answers_differ": _unequal(answers["ours"], answers["stock"]),
            "parsed": sum(answer != "" for answer in answers["stock"]),
        },
    }


def _best_batch(prompts: Sequence[str], stock: Worker) -> int:
    """Set `HFLM` to the batch size at which it continues the most prompts a second, and return that size."""
    print("\nHFLM's batch size for generation:")
    rates: dict[int, float] = {}
    for size in BATCH_SIZES:
        if rates and max(rates) >= len(prompts):
            break  # a larger batch would be the same one
        count = min(len(prompts), max(PILOT, size))
        some = [prompts[index * len(prompts) // count] for index in range(count)]
        stock.call("set_batch_size", size)
        rates[size] = count / stock.call("generate", some, NEW_TOKENS)[0]
        print(f"  {size:2}: {rates[size]:6.2f} prompts a second, on {count}")
    best = max(rates, key=rates.__getitem__)
    stock.call("set_batch_size", best)
    return best


def _unequal(some: Sequence[str], others: Sequence[str]) -> int:
    return sum(one != other for one, other in zip(some, others, strict=True))

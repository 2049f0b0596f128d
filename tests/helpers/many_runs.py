"""A store of many runs for the comparison: variants of one synthetic report, with the artifacts behind it."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.synthetic import add, everything
from stages.common.files import read_json, write_json

DENSE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 128,
}
ADAPTERS, RANKS, RATIOS = ("lora", "dora", "rora"), (4, 16, 64), (0.2, 0.35, 0.5)


def many(root: Path, count: int = 27, seeds: int = 1, **names: str) -> Path:
    """Write a store of `count` recoveries over adapter, rank, ratio and seed; `names` replace names of the reports."""
    inputs = everything(root.parent / "inputs")
    add(root.parent / "one", 0, inputs)
    (first,) = (root.parent / "one" / "report").glob("*/report.json")
    write_json(root / "model" / "tiny-1" / "manifest.json", {})
    write_json(root / "model" / "tiny-1" / "model" / "config.json", DENSE)
    for place, (setting, report) in enumerate(itertools.islice(_variants(read_json(first), seeds), count)):
        key = hashlib.sha256(str(setting).encode()).hexdigest()
        _write(root, place, key, setting, report | names)
    return root


def _write(root: Path, place: int, key: str, setting: dict[str, Any], report: dict[str, Any]) -> None:
    cut = f"prune/llmpruner-tiny-r{setting['ratio']:.2f}"
    if not (root / cut).is_dir():
        heads, channels = (round(size * (1 - setting["ratio"])) for size in (8, 96))
        layers = [
            {"heads": list(range(max(1, heads + layer % 3 - 1))), "mlp": list(range(channels - 5 * layer))}
            for layer in range(6)
        ]
        write_json(root / cut / "model" / "pruning.json", {"layers": layers})
        write_json(root / cut / "manifest.json", {"inputs": {"model": "model/tiny-1"}})
    trained = f"recover/{setting['adapter']}-{key[:8]}"
    write_json(root / trained / "manifest.json", {"timing": {"seconds": 60.0 * (2 + setting["rank"] / 16)}})
    directory = root / "report" / f"{setting['adapter']}-r{setting['rank']}-{place:03d}-{key[:16]}"
    write_json(directory / "report.json", report)
    write_json(directory / "manifest.json", {"key": key, "inputs": {"prune": cut, "recover": trained}})
    (directory / "report.html").write_text("<!doctype html><title>One run</title>")


def _variants(first: dict[str, Any], seeds: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield settings with their reports. Scores fall with the ratio and rise with the rank, so that runs differ."""
    for ratio, rank, adapter, seed in itertools.product(RATIOS, RANKS, ADAPTERS, range(seeds)):
        setting = {"adapter": adapter, "rank": rank, "ratio": ratio, "seed": seed}
        report = copy.deepcopy(first)
        shift = 0.9 * ratio - 0.02 * rank**0.5 - 0.05 * ADAPTERS.index(adapter) + 0.01 * seed
        for figures in (report["texts"]["mean"], *report["texts"]["kinds"].values()):
            _move(figures, shift)
        for point in report["curve"]:
            for name in ("loss", "validation_loss"):
                if name in point:
                    point[name] += shift * (1 if point["step"] else 0)
        found = report["training"]["test"]["perplexity"] * (1 + shift)
        trials = [
            {"learning_rate": rate, "test": {"perplexity": found * worse}, "diverged": None}
            for rate, worse in ((1e-3, 1 + 0.1 * ADAPTERS.index(adapter)), (3e-3, 1.0))
        ]
        report["training"]["test"]["perplexity"] = found
        report["training"]["tuning"] = {"trials": trials, "shared": 1e-3, "chosen": 3e-3, "budget": 40_960}
        recover = {"tokens": 40_960, "learning_rate": 1e-3, "loss": "all", "objective": "cross_entropy"}
        options = {"name": adapter, "rank": rank, "alpha": 16.0}
        report["configuration"] = {
            "prune": {"method": "llmpruner", "ratio": ratio},
            "recover": {"adapter": options, "recover": recover, "seed": seed},
        }
        size = round(report["params"]["dense"] * (1 - ratio))
        report["params"] |= {"pruned": size, "recovered": size, "ratio_achieved": ratio, "ratio_requested": ratio}
        for model in ("pruned", "recovered"):
            cost = report["cost"]["models"][model]
            cost["peak_memory_bytes"] = 6 * size
            for latency in cost["latency"]:
                latency["decode_seconds"] *= 2 * (1 - ratio)
                latency |= {"decode_ratio": 1 - ratio, "decode_ratio_range": [0.95 * (1 - ratio), 1.05 * (1 - ratio)]}
        yield setting, report | {"adapter": adapter}


def _move(figures: dict[str, Any], shift: float) -> None:
    """Move the recovered model's perplexity and its difference from the dense one by `shift` nats."""
    factor = 2.718281828**shift
    figures["recovered"] *= factor
    figures["intervals"]["recovered"] = [end * factor for end in figures["intervals"]["recovered"]]
    effect = figures["log"]["recovered_minus_dense"]
    effect["value"] += shift
    effect["interval"] = [end + shift for end in effect["interval"]]

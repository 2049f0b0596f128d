"""Small artifacts of made-up models, laid out as the stages lay them out. Deterministic; no model is involved."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.files import read_json, write_json, write_jsonl
from stages.report.config import ReportConfig
from stages.report.stage import run
from stages.stage import Context
from stages.text_library.kinds import TEXTS

TASKS = {"boolq": ("BoolQ", 0.5), "piqa": ("PIQA", 0.5), "arc_easy": ("ARC-e", 0.25)}

SOURCE = {"wheel": "tinyrows==1.0", "sha256": "c0ffee" * 10 + "beef"}

FAIR = {"accuracy": 0.70, "bits": 0.9, "nll": 3.0}
"""The dense model after the same recovery."""

SKILL = {
    "dense": {"accuracy": 0.65, "bits": 1.0, "nll": 3.1},
    "pruned": {"accuracy": 0.40, "bits": 2.0, "nll": 5.0},
    "recovered": {"accuracy": 0.55, "bits": 1.3, "nll": 3.8},
}
"""A loss and a recovery that are well outside the noise of two hundred documents."""


def evaluation(
    directory: Path,
    *,
    accuracy: float,
    bits: float,
    nll: float,
    documents: int = 200,
    passages: int = 30,
    protocol: str = "likelihood",
    windows: int = 0,
    repetition: float | None = None,
    token: int = 4,
) -> Path:
    """Write an evaluate artifact of a model of the given skill; equal documents are equally hard for every model.

    By generation a task has accuracy and answers only, and the harder half of the wrong answers can't be read; with
    `windows` there is a corpus of so many; with `repetition` there are continuations, of which about so much repeats.
    A `token` of text has so many bytes.
    """
    generated = protocol == "generation"
    results: dict[str, Any] = {}
    for place, (name, (label, chance)) in enumerate(TASKS.items()):
        random = np.random.default_rng(place)
        hardness, spread, sizes = (
            random.random(documents),
            random.normal(0, 0.2, documents),
            random.integers(5, 40, documents),
        )
        rows = [
            {
                "doc": index,
                "gold": 0,
                "acc": int(hardness[index] < accuracy),
                "acc_norm": None if name == "boolq" else int(hardness[index] < accuracy + 0.02),
                "bits": float(sizes[index] * (bits + spread[index])),
                "bytes": int(sizes[index]),
                "loglikelihoods": [-1.0, -2.0],
            }
            for index in range(documents)
        ]
        if generated:
            rows = [_generated(row, hardness[row["doc"]] > (1 + accuracy) / 2) for row in rows]
        write_jsonl(directory / "documents" / f"{name}.jsonl", rows)
        hits = [row["acc"] for row in rows]
        results[name] = {
            "label": label,
            "metric": "acc",
            "chance": None if generated else chance,
            "acc": float(np.mean(hits)),
            "n": documents,
            "truncated": 0,
            "unparsed": float(np.mean([row["answer"] == "" for row in rows])) if generated else None,
        }
    judged = {"protocol": protocol, "num_fewshot": 0, "limit": 200, "dtype": "float32", "rows": _provenance()}
    judged |= {"beams": 1, "new_tokens": 32} if generated else {}
    written = None if repetition is None else _continuations(directory, repetition)
    about = {"versions": {"lm-eval": "0.4.13"}, "tasks": results, "generation": written}
    write_json(directory / "results.json", judged | about)
    _perplexity(directory, nll, passages, windows, token)
    return directory


def _generated(row: dict[str, Any], unread: bool) -> dict[str, Any]:
    empty: dict[str, Any] = {"acc_norm": None, "bits": None, "bytes": None}
    return {"doc": row["doc"], "acc": row["acc"], **empty, "gold": "true", "answer": "" if unread else "true"}


def _provenance() -> dict[str, Any]:
    """Return tasks.json: each task its own only leaf, all rows from one wheel."""
    return {
        name: {
            "label": label,
            "kind": "lm-eval",
            "leaves": {name: {"split": "validation", "rows": 1000, "sha256": f"{place:064x}", "source": SOURCE}},
        }
        for place, (name, (label, _)) in enumerate(TASKS.items(), start=10)
    }


KINDS = {"wikipedia": 0.0, "narrative": 0.2, "news": -0.2}
"""Kinds of held-out text, and by how many nats a token each is harder than the model's own figure."""


def _perplexity(directory: Path, nll: float, passages: int, windows: int, token: int) -> None:
    texts = {kind: _text(kind, nll + apart, passages, token) for kind, apart in KINDS.items()} if passages else {}
    corpora = {"wikitext2": {"1024": _corpus(nll - 0.5, windows, 1024)}} if windows else {}
    write_json(directory / "perplexity.json", {"texts": texts, "mean": None, "corpora": corpora})


def _text(kind: str, nll: float, passages: int, token: int) -> dict[str, Any]:
    random = np.random.default_rng([99, *(kind.encode() if kind != "wikipedia" else ())])
    tokens, hardness = random.integers(50, 300, passages), random.normal(0, 0.3, passages)
    rows = [
        {
            "title": f"Passage {i}",
            "nll": float(tokens[i] * (nll + hardness[i])),
            "tokens": int(tokens[i]),
            "bytes": int(token * tokens[i]),
        }
        for i in range(passages)
    ]
    total = {key: sum(row[key] for row in rows) for key in ("nll", "tokens", "bytes")}
    about = {"label": TEXTS[kind].label, "use": TEXTS[kind].use.value, "sha256": kind.encode().hex().ljust(64, "0")}
    return {
        "perplexity": math.exp(total["nll"] / total["tokens"]),
        "bits_per_byte": total["nll"] / math.log(2) / total["bytes"],
        **total,
        "documents": rows,
        "rows": about | {"source": f"source of {kind}", "licence": "MIT"},
    }


def _continuations(directory: Path, repetition: float, prompts: int = 16, length: int = 20) -> dict[str, Any]:
    """Write continuations that begin alike in every model, and go wrong the sooner the more they repeat."""
    random = np.random.default_rng(97)
    rows: list[dict[str, Any]] = []
    for place in range(prompts):
        right = random.integers(1000, 2000, length).tolist()
        wrong = round(length * (1 - repetition))
        rows.append(
            {
                "title": f"Passage {place}",
                "prompt": f"Beginning {place}",
                "output": f"one *text* | <b>{repetition}</b>\nand more",
                "tokens": right[:wrong] + [7] * (length - wrong),
                "ended": False,
                "repeated": min(1.0, repetition + float(random.normal(0, 0.02))),
                "loop": repetition > 0.5,
                "following": right,
                "likeliest": right[:wrong] + [7] * (length - wrong),
            }
        )
    write_jsonl(directory / "continuations.jsonl", rows)
    repeated = float(np.mean([row["repeated"] for row in rows]))
    loop = float(repetition > 0.5)
    means = {"repeated": repeated, "loop": loop, "ended": 0.0, "length": float(length)}
    return {"prompts": prompts, "new_tokens": length} | means


def _corpus(nll: float, windows: int, length: int) -> dict[str, Any]:
    found = length * (nll + np.random.default_rng(98).normal(0, 0.2, windows))
    whole, tokens = float(found.sum()), windows * length
    return {"perplexity": math.exp(whole / tokens), "nll": whole, "tokens": tokens, "windows": found.tolist()}


def recovery(directory: Path, *, start: float = 5.0, end: float = 3.5, steps: int = 20, followed: int = 0) -> Path:
    """Write a recover artifact's curve: a training loss at every step, a validation loss at every fifth.

    With `followed` the points with a validation loss also have scores on so many questions.
    """
    history: list[dict[str, Any]] = [{"step": 0, "tokens": 0, "validation_loss": start}]
    for step in range(1, steps + 1):
        loss = end + (start - end) * math.exp(-4 * step / steps)
        point = {"step": step, "tokens": 2048 * step, "loss": loss - 0.1 * (-1) ** step, "learning_rate": 1e-3}
        history.append(point | ({"validation_loss": loss} if step % 5 == 0 else {}))
    for point in (point for point in history if followed and "validation_loss" in point):
        point["curve_accuracy"] = 0.5 - point["validation_loss"] / 50
        point["curve_bits_per_byte"] = point["validation_loss"] / 3
    write_jsonl(directory / "history.jsonl", history)
    facts = {
        "adapter": {"name": "rora", "rank": 16, "alpha": 16.0, "sizes": {"rank": 16, "alpha": 16.0, "scaling": 4.0}},
        "parameters": {"model": 67_300_000, "trainable": 3_000_000},
        "training": {"steps": steps, "tokens": 2048 * steps, "rows": 400, "epochs": 0.0027},
        "validation": {
            "initial_loss": start,
            "initial_perplexity": math.exp(start),
            "final_loss": end,
            "final_perplexity": math.exp(end),
            "questions": followed,
        },
        "test": {"loss": end + 0.1, "perplexity": math.exp(end + 0.1), "rows": 16},
    }
    write_json(directory / "recovery.json", facts)
    return directory


def pruning(directory: Path) -> Path:
    """Write what the report reads of a prune artifact."""
    write_json(directory / "model" / "pruning.json", {"parameters": {"dense": 134_515_008, "pruned": 67_300_000}})
    return directory


def cost(directory: Path) -> Path:
    """Write a cost artifact."""
    sizes = {"dense": 134_515_008, "pruned": 67_300_000, "recovered": 67_300_000}
    models = {
        name: {
            "parameters": size,
            "nonzeros": size,
            "bytes": 4 * size,
            "multiply_accumulates": size,
            "peak_memory_bytes": 6 * size,
            "latency": [_latency(size, batch, None if name == "dense" else sizes["dense"]) for batch in (1, 8)],
        }
        for name, size in sizes.items()
    }
    facts: dict[str, Any] = {"dtype": "float32", "prompt_tokens": 128, "new_tokens": 16, "repeats": 5}
    hardware = {"device": "a processor", "cores": 2, "memory_gib": 24.0}
    write_json(directory / "cost.json", {"models": models, "hardware": hardware} | facts)
    return directory


def _latency(size: int, batch: int, dense: int | None) -> dict[str, Any]:
    prefill, decode = batch * size / 1e9, size / 8e9
    entry: dict[str, Any] = {"batch": batch, "tokens_per_second": batch / decode}
    for name, seconds in (("prefill", prefill), ("decode", decode)):
        ratio = size / dense if dense else None
        entry |= {f"{name}_seconds": seconds, f"{name}_seconds_range": [0.9 * seconds, 1.2 * seconds]}
        entry |= {f"{name}_ratio": ratio, f"{name}_ratio_range": [0.9 * ratio, 1.1 * ratio] if ratio else None}
    return entry


def everything(directory: Path, **evaluate: Any) -> dict[str, Path]:
    """Write all inputs of a report and return them by name."""
    judged = {model: evaluation(directory / model, **skill, **evaluate) for model, skill in SKILL.items()}
    return judged | {
        "cost": cost(directory / "cost"),
        "prune": pruning(directory / "prune"),
        "recover": recovery(directory / "recover"),
    }


def config(**changes: Any) -> ReportConfig:
    """Return the config of a report on all inputs."""
    base = ReportConfig(
        model="tiny-llama",
        prune="llmpruner",
        adapter="rora",
        data="commonsense",
        reference="dense",
        ratio=0.5,
        channel_ratio=None,
        configuration={
            "recover": {"adapter": {"name": "rora", "rank": 16, "alpha": 16.0}},
            "evaluate-dense": {"limit": 200},
        },
        resamples=500,
    )
    return dataclasses.replace(base, **changes)


def store(root: Path, *, adapters: tuple[str, ...] = ("rora",), **changes: Any) -> Path:
    """Write a store with one report artifact an adapter, all of one pruned model; manifests hold nothing."""
    inputs = everything(root.parent / "inputs")
    for place, adapter in enumerate(adapters):
        recover = recovery(root.parent / "recoveries" / adapter, end=3.5 + place / 10)
        add(root, place, inputs | {"recover": recover}, adapter=adapter, **changes)
    return root


def add(
    root: Path, place: int, inputs: dict[str, Path], *, adapter: str = "rora", seed: int = 0, **changes: Any
) -> None:
    """Write one more report artifact into a store; `place` sets its directory's name apart."""
    directory = root / "report" / f"{adapter}-r16-tiny-{place:016x}"
    settings = {"recover": {"adapter": {"name": adapter, "rank": 16, "alpha": 16.0}, "seed": seed}}
    run(config(**({"adapter": adapter, "configuration": settings} | changes)), inputs, Context(output=directory))
    write_json(directory / "manifest.json", {})


def report_of(directory: Path, settings: ReportConfig, inputs: dict[str, Path]) -> dict[str, Any]:
    """Return the report that the stage writes to `directory`."""
    run(settings, inputs, Context(output=directory))
    report: dict[str, Any] = read_json(directory / "report.json")
    return report

"""The section on how the models were judged: the protocol in words, and the source of each task's rows."""

from __future__ import annotations

from collections.abc import Iterator

from stages.report import wording as w
from stages.report.blocks import Block, Cell, Folded, Heading, Paragraph, Table
from stages.stage import JSON

DIGITS = 12
"""Hex digits of a digest or commit that are shown. report.json has all of them."""


def judging(report: JSON) -> Iterator[Block]:
    """Yield how the models were judged and on which rows."""
    protocol = report["protocol"]
    if not protocol or not report["tasks"]:
        return
    yield Heading("How they were judged")
    yield Paragraph(sentence(report))
    if protocol["rows"]:
        yield Folded("Where the rows came from", _rows(report))


def brief(report: JSON) -> tuple[str, str, str]:
    """Return a report's protocol, tasks and number of examples, as short as a table of runs needs them."""
    protocol = report["protocol"]
    if not protocol:
        return w.DASH, w.DASH, w.DASH
    shots = w.DASH if protocol["name"] == "generation" else _shots(protocol["num_fewshot"])
    return protocol["name"], _amount(report), shots


def sentence(report: JSON) -> str:
    """Return the protocol in words, with everything that decides its numbers."""
    protocol = report["protocol"]
    versions = protocol["versions"] or {}
    metrics = sorted({task["metric"] or "acc" for task in report["tasks"].values()})
    tool = f"lm-eval {versions['lm-eval']}" if "lm-eval" in versions else "lm-eval"
    if protocol["name"] == "generation":
        beams = protocol["beams"] or 1
        length = f"at most {protocol['new_tokens']} new tokens" if protocol["new_tokens"] else "an answer"
        how = (
            f"the model is given LLM-Adapters' instruction and writes {length} "
            f"({'greedy' if beams == 1 else f'{beams} beams'}); the first match of the protocol's patterns is its "
            "answer, and one that no pattern reads counts as wrong. Nothing here can be compared with likelihood scores"
        )
    else:
        free = any(task["chance"] is None for task in report["tasks"].values())
        how = (
            f"the answer is the choice of the highest log-likelihood, with the prompts, choices and metrics of {tool}"
            f"{'; a task without choices is scored by its own metric' if free else ''}. "
            "Nothing here can be compared with scores of generated answers"
        )
    limit = "all documents" if protocol["limit"] is None else f"the first {w.count(protocol['limit'])} documents a task"
    keys = f"metric{'s' if len(metrics) > 1 else ''} {w.listing(metrics)}"
    examples = "" if protocol["name"] == "generation" else _examples(protocol["num_fewshot"])
    facts = [_amount(report), examples, limit, keys, str(protocol["dtype"] or "")]
    return f"Protocol {protocol['name']}: {how}. {'; '.join(filter(None, facts))}."


def _amount(report: JSON) -> str:
    """Return "8 tasks × 200", or the total number of documents where tasks differ in it."""
    sizes = [_documents(task) for task in report["tasks"].values()]
    if not sizes:
        return "no tasks"
    tasks = f"{len(sizes)} tasks" if len(sizes) > 1 else next(iter(report["tasks"].values()))["label"]
    return f"{tasks} × {w.count(sizes[0])}" if len(set(sizes)) == 1 else f"{tasks}, {w.count(sum(sizes))} documents"


def _shots(examples: int | None) -> str:
    return "lm-eval's" if examples is None else str(examples)


def _examples(examples: int | None) -> str:
    if examples is None:
        return "as many examples as lm-eval gives each task"
    return f"{examples}-shot" if examples else "zero-shot"


def _rows(report: JSON) -> Table:
    rows: list[list[Cell]] = []
    for name, scores in report["tasks"].items():
        leaves = list(report["protocol"]["rows"].get(name, {"leaves": {}})["leaves"].values())
        sources = {_source(leaf["source"]) for leaf in leaves}
        data, revision = sources.pop() if len(sources) == 1 else (f"{len(sources)} data sets", "")
        splits = ", ".join(sorted({str(leaf["split"]) for leaf in leaves}))
        digest = leaves[0]["sha256"][:DIGITS] if len(leaves) == 1 else f"{len(leaves)} files, see report.json"
        used = f"{w.count(_documents(scores))} of {w.count(sum(leaf['rows'] for leaf in leaves))}"
        rows.append([scores["label"], data, revision, splits, digest, used])
    heads = ["task", "data source", "revision", "split", "SHA-256 of the rows", "documents used"]
    return Table(heads, rows, words=(1, 2, 3, 4))


def _documents(scores: JSON) -> int:
    """Return how many documents of a task every model was judged on."""
    return next(int(scores[model]["n"]) for model in w.MODELS if model in scores)


def _source(source: JSON) -> tuple[str, str]:
    """Return (data set, revision) from any kind of record that the tasks stage wrote."""
    data = source.get("wheel") or source.get("repo") or source.get("file") or source.get("path") or "unknown"
    name = f" ({source['name']})" if source.get("name") else ""
    if source.get("revision"):
        return f"{data}{name}", str(source["revision"])[:DIGITS]
    return f"{data}{name}", f"sha256 {source['sha256'][:DIGITS]}" if source.get("sha256") else ""

"""Log-likelihoods by `HFLM` at its best setting and by ours, in turns task by task: seconds, memory, differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.workers import Worker
from stages.stage import JSON
from stages.task_library.definitions import Document

DTYPES = ("float32", "bfloat16")
BATCH_SIZES = (1, 8, 16, 32, 64)
PILOT = 6
"""Documents of each task on which `HFLM`'s settings are compared."""
HOPELESS = 2
"""A precision is given up once a setting of it takes this many times the seconds of the best setting."""
TOLERANCE = 1e-3
"""The difference, in nats, that a log-likelihood may have. Choices within twice that are a tie."""
WARM_UP = [("Question: is it warm?\nAnswer:", " yes"), ("Question: is it warm?\nAnswer:", " not yet")]

Answer = tuple[float, bool]
"""A choice's log-likelihood in nats, and whether greedy decoding would give the choice."""
Start = Callable[[str, str], Worker]
"""Maps (tool, precision) to that tool in a process of its own."""
Asked = Mapping[str, Sequence[Document]]
"""The documents of each task."""


def best_setting(asked: Asked, start: Start) -> tuple[str, int]:
    """Return the precision and batch size at which `HFLM` scores a slice of the documents fastest."""
    documents = _pilot(asked)
    requests = _requests(documents)
    print(f"HFLM's settings, on {len(documents)} documents:")
    seconds: dict[tuple[str, int], float] = {}
    for dtype in DTYPES:
        with start("stock", dtype) as stock:
            stock.call("loglikelihoods", WARM_UP)
            for size in BATCH_SIZES:
                stock.call("set_batch_size", size)
                seconds[dtype, size], _ = stock.call("loglikelihoods", requests)
                rate = len(documents) / seconds[dtype, size]
                print(f"  {dtype}, batch size {size:2}: {rate:6.2f} documents a second")
                if dtype != DTYPES[0] and seconds[dtype, size] > HOPELESS * min(seconds.values()):
                    break
    return min(seconds, key=seconds.__getitem__)


def compare_likelihoods(asked: Asked, ours: Worker, stock: Worker) -> JSON:
    """Return the seconds and the memory of both tools over all documents, and the differences of their answers."""
    tools = {"ours": ours, "stock": stock}
    seconds = dict.fromkeys(tools, 0.0)
    tasks: dict[str, JSON] = {}
    for tool in tools.values():
        tool.call("loglikelihoods", WARM_UP)
    print(f"\n{'task':16}{'documents':>10}{'HFLM s':>10}{'ours s':>10}{'ratio':>8}{'difference':>12}")
    for turn, (name, documents) in enumerate(asked.items()):
        order = list(tools)[:: 1 if turn % 2 else -1]
        found = {tool: tools[tool].call("loglikelihoods", _requests(documents)) for tool in order}
        taken = {tool: found[tool][0] for tool in tools}
        seconds = {tool: seconds[tool] + taken[tool] for tool in tools}
        task = {"documents": len(documents), "ratio": taken["stock"] / taken["ours"]}
        tasks[name] = task | _differences(documents, found["ours"][1], found["stock"][1])
        print(
            f"{name:16}{len(documents):10}{taken['stock']:10.2f}{taken['ours']:10.2f}"
            f"{tasks[name]['ratio']:8.2f}{tasks[name]['max_difference']:12.1e}"
        )
    count = sum(task["documents"] for task in tasks.values())
    used = {name: _use(worker, count, seconds[name]) for name, worker in tools.items()}
    peaks = [used[name]["peak_memory_bytes"] for name in ("ours", "stock")]
    return {
        "documents": count,
        "documents_per_second_ratio": seconds["stock"] / seconds["ours"],
        "max_loglikelihood_difference": max(task["max_difference"] for task in tasks.values()),
        "predictions_differ": sum(task["predictions_differ"] for task in tasks.values()),
        "ties": sum(task["ties"] for task in tasks.values()),
        "memory_ratio": peaks[0] / peaks[1] if all(peaks) else None,
        "tasks": tasks,
        **used,
    }


def _use(worker: Worker, documents: int, seconds: float) -> JSON:
    return {
        "documents_per_second": documents / seconds,
        "seconds": seconds,
        "load_seconds": worker.load_seconds,
        "libraries_bytes": worker.libraries_bytes,
        "peak_memory_bytes": worker.peak_memory(),
    }


def _differences(documents: Sequence[Document], ours: Sequence[Answer], stock: Sequence[Answer]) -> JSON:
    """Return the largest difference of a log-likelihood, how many predictions differ, and how many are ties."""
    result: JSON = {"max_difference": _largest_difference(ours, stock), "predictions_differ": 0, "ties": 0}
    start = 0
    for document in documents:
        here = slice(start, start := start + len(document.requests))
        own, other = ([loglikelihood for loglikelihood, _ in answers[here]] for answers in (ours, stock))
        chosen, wanted = own.index(max(own)), other.index(max(other))
        if chosen != wanted:
            tie = other[wanted] - other[chosen] <= 2 * TOLERANCE
            result["ties" if tie else "predictions_differ"] += 1
    return result


def difference_in_float32(asked: Asked, start: Start) -> float:
    """Return the largest difference on the pilot's documents in float32, where neither tool rounds to bfloat16."""
    requests = _requests(_pilot(asked))
    with start("stock", "float32") as stock, start("ours", "float32") as ours:
        stock.call("set_batch_size", BATCH_SIZES[1])
        return _largest_difference(*(tool.call("loglikelihoods", requests)[1] for tool in (ours, stock)))


def _largest_difference(ours: Sequence[Answer], stock: Sequence[Answer]) -> float:
    return max(abs(own - other) for (own, _), (other, _) in zip(ours, stock, strict=True))


def _pilot(asked: Asked) -> list[Document]:
    return [document for documents in asked.values() for document in documents[:PILOT]]


def _requests(documents: Iterable[Document]) -> list[tuple[str, str]]:
    return [request for document in documents for request in document.requests]

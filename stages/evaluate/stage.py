"""The evaluate stage: a model's scores on tasks, by one protocol, and its perplexity on held-out text.

`likelihood` asks as lm-eval's definitions do. A choice is worth its log-likelihood after the question, and the metrics
are lm-eval's own. `generation` lets the model write an answer, as LLM-Adapters does. Bits per byte of the right answer
and perplexity move before accuracy does, and with far less noise.

Rows are written as documents are judged, so a killed evaluation continues at the document it was at. Blocks of
documents are cut by the task, never by what is already there. The rows added are therefore those of an undisturbed
evaluation, to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.adapters.loading import Source
from stages.common.choices import lookup
from stages.common.files import read_json, write_json
from stages.common.journal import Journal
from stages.common.progress import progress
from stages.decoders.checkpoint import load_tokenizer
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.continuations import written_continuations
from stages.evaluate.fitting import explained
from stages.evaluate.judge import PROTOCOLS, Model, Paper
from stages.evaluate.lm import FastLM
from stages.evaluate.metrics import average, summarise
from stages.evaluate.perplexity import corpora, judged_mean, texts
from stages.evaluate.plan import check_evaluation
from stages.inference.scorer import Scorer
from stages.stage import JSON, Context

BLOCK = 100
"""Documents judged together. A kill costs at most these; sorting them by length saves work.

Block k of a task is its documents 100 k to 100 k + 99. Which documents share a pass decides the shapes of its matrix
products, and a product of another shape may round differently. A block is therefore never judged in part.
"""


@explained()
def run(config: EvaluateConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Evaluate the model of artifact `inputs["model"]` on the rows of artifact `inputs["tasks"]`.

    Where the model is an adapter alone, `inputs["base"]` is the model that it was trained on.
    The stage writes `documents/TASK.jsonl` (one line a document; `judge` and `generation` describe it), `results.json`,
    `perplexity.json` and `continuations.jsonl`. It returns the means and the perplexity of each kind of text.

    Raises:
        UserError: an option is out of range, a task can't be asked, a likelihood is not finite, or memory is too small.
    """
    check_evaluation(config)

    @cache
    def model() -> FastLM:
        source = Source.of(inputs["model"], inputs.get("base"))
        loaded = source.load(dtype=config.dtype, device=context.device)
        return FastLM(Scorer(loaded, load_tokenizer(source.model), batch_tokens=config.batch_tokens))

    results, held_out = judged(config, inputs["tasks"], context.output, model)
    perplexity = {name: found["perplexity"] for name, found in held_out["texts"].items()}
    return {"mean": results["mean"], "perplexity": perplexity}


def judged(config: EvaluateConfig, artifact: Path, output: Path, model: Model) -> tuple[JSON, JSON]:
    """Return the contents of results.json and perplexity.json in `output`, asking `model` only for what is missing.

    Raises:
        UserError: a task can't be asked, or a likelihood is not finite.
    """
    tasks = _tasks(config, artifact, output, model)
    results: JSON = {"tasks": tasks, "mean": average(list(tasks.values()))}
    results |= {"protocol": config.protocol, "num_fewshot": config.num_fewshot, "limit": config.limit}
    results |= {"beams": config.beams, "new_tokens": config.new_tokens} if config.protocol == "generation" else {}
    results |= {"dtype": config.dtype, "rows": read_json(artifact / "tasks.json")}
    results["versions"] = {name: version(name) for name in ("lm-eval", "transformers", "torch")}
    held_out = output / "perplexity.json"
    # A killed run that this one resumes may have written the file already.
    if not held_out.is_file():
        found = texts(model().scorer, artifact, config) if config.texts and config.passages else {}
        windows = corpora(model().scorer, artifact, config) if config.corpora else {}
        write_json(held_out, {"texts": found, "mean": judged_mean(found), "corpora": windows})
    results["generation"] = written_continuations(config, artifact, output, model)
    write_json(output / "results.json", results)
    return results, read_json(held_out)


def _tasks(config: EvaluateConfig, artifact: Path, output: Path, model: Model) -> JSON:
    """Return the scores of each task asked for, from rows judged now or by a killed run before."""
    papers_of = lookup("protocol", config.protocol, PROTOCOLS)
    # A list: every task is checked and counted before the first answer, which loads the model.
    papers = {name: list(papers_of(name, artifact, config, model)) for name in config.tasks}
    journals = {
        name: Journal(output / "documents" / f"{name}.jsonl", sum(len(paper.questions) for paper in of_task))
        for name, of_task in papers.items()
    }
    record = read_json(artifact / "tasks.json")
    to_do = {name: list(_blocks(papers[name], len(journals[name].rows))) for name in papers}
    total = sum(paper.size(block) for blocks in to_do.values() for paper, _, block, _ in blocks)
    with progress("evaluate", total=total, unit="answer") as bar:
        for name, blocks in to_do.items():
            bar.set_description(f"evaluate {record[name]['label']}")
            for paper, first, block, missing in blocks:
                # A torn block is judged whole, and only the rows that were lacking are kept.
                rows = paper.judge(block, first, bar.update)[-missing:]
                several = len(papers[name]) > 1
                journals[name].extend([row | {"doc": f"{paper.leaf}/{row['doc']}"} if several else row for row in rows])
    return {
        name: {"label": record[name]["label"], "metric": papers[name][0].metric, "leaves": len(papers[name])}
        | summarise(journals[name].rows)
        for name in config.tasks
    }


def _blocks(papers: Sequence[Paper], judged: int) -> Iterator[tuple[Paper, int, Sequence[Any], int]]:
    """Yield (paper, number of the first, questions, how many lack a row) for each block not judged to its end.

    The first `judged` of all documents have a row. A block that a kill tore is yielded whole; its last rows are new.
    """
    for paper in papers:
        for first in range(0, len(paper.questions), BLOCK):
            block = paper.questions[first : first + BLOCK]
            if (missing := min(first + len(block) - judged, len(block))) > 0:
                yield paper, first, block, missing
        judged = max(judged - len(paper.questions), 0)

"""The evaluate stage: a model's scores on tasks, by one protocol, and its perplexity on held-out text.

`likelihood` asks as lm-eval's definitions do. A choice is worth its log-likelihood after the question, and the metrics
are lm-eval's own. `generation` lets the model write an answer, as LLM-Adapters does. Bits per byte of the right answer
and perplexity move before accuracy does, and with far less noise.

Rows are written as documents are judged, so a killed evaluation continues at the document it was at. Blocks of
documents are always cut alike (`.examination`). The rows added are therefore those of an undisturbed evaluation, to the
byte, and several processes can judge them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from stages.common.files import read_json, read_jsonl, write_json, write_jsonl
from stages.common.journal import Journal
from stages.common.progress import progress
from stages.common.visible import visible
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.continuations import totals
from stages.evaluate.examination import Ask, Examination, Unit, loader, together
from stages.evaluate.fitting import explained
from stages.evaluate.judge import Model
from stages.evaluate.metrics import average, summarise
from stages.evaluate.perplexity import judged_mean
from stages.evaluate.plan import check_evaluation
from stages.stage import JSON, Context

PERPLEXITY, CONTINUATIONS = "perplexity.json", "continuations.jsonl"


@explained()
def run(config: EvaluateConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Evaluate the model of artifact `inputs["model"]` on the rows of artifact `inputs["tasks"]`.

    Where the model is an adapter alone, `inputs["base"]` is the model that it was trained on.
    The stage writes `documents/TASK.jsonl` (one line a document; `judge` and `generation` describe it), `results.json`,
    `perplexity.json` and `continuations.jsonl`. It returns the means and the perplexity of each kind of text.
    With several workers each judges a part of the documents, on its own copy of the model; this process writes.

    Raises:
        UserError: an option is out of range, a task can't be asked, a likelihood is not finite, or memory is too small.
    """
    check_evaluation(config)
    model = loader(config, inputs, context.device, context.cards)
    # A model that takes all cards leaves none for a second copy.
    alone = context.workers == 1 or context.cards
    ask = None if alone else together(config, inputs, context)
    results, held_out = judged(config, inputs["tasks"], context.output, model, ask)
    perplexity = {name: found["perplexity"] for name, found in held_out["texts"].items()}
    return {"mean": results["mean"], "perplexity": perplexity}


def judged(
    config: EvaluateConfig, artifact: Path, output: Path, model: Model, ask: Ask | None = None
) -> tuple[JSON, JSON]:
    """Return the contents of results.json and perplexity.json in `output`, asking only for what is missing.

    `ask` has units of the evaluation judged; without it, `model` is judged in this process.

    Raises:
        UserError: a task can't be asked, or a likelihood is not finite.
    """
    examination = Examination(config, artifact, model)
    tasks = _judge(config, artifact, output, examination, ask or examination.each)
    results: JSON = {"tasks": tasks, "mean": average(list(tasks.values()))}
    results |= {"protocol": config.protocol, "num_fewshot": config.num_fewshot, "limit": config.limit}
    results |= {"beams": config.beams, "new_tokens": config.new_tokens} if config.protocol == "generation" else {}
    results |= {"dtype": config.dtype, "rows": read_json(artifact / "tasks.json")}
    results["versions"] = {name: version(name) for name in ("lm-eval", "transformers", "torch")}
    results["generation"] = None
    if config.generation_prompts:
        written = list(read_jsonl(output / CONTINUATIONS))
        results["generation"] = totals(written, new_tokens=config.generation_tokens)
    write_json(output / "results.json", results)
    return results, read_json(output / PERPLEXITY)


def _judge(config: EvaluateConfig, artifact: Path, output: Path, examination: Examination, ask: Ask) -> JSON:
    """Bring every row and figure to `output`; returns the scores of each task asked for."""
    record = read_json(artifact / "tasks.json")
    # First, so that every task is checked and counted before the first answer, which loads the model.
    papers = {name: examination.papers(name) for name in config.tasks}
    journals = {
        name: Journal(output / "documents" / f"{name}.jsonl", sum(len(paper.questions) for paper in of_task))
        for name, of_task in papers.items()
    }
    units = [unit for name in papers for unit in examination.blocks(name, len(journals[name].rows))]
    # A killed run that this one resumes may have written these files already.
    if config.generation_prompts and not (output / CONTINUATIONS).is_file():
        units.append(Unit("continuations", "continuations"))
    measured = (output / PERPLEXITY).is_file()
    units += [] if measured else examination.held_out()
    found: dict[str, JSON] = {"texts": {}, "corpora": {}}
    with progress("evaluate", total=sum(unit.answers for unit in units), unit="answer") as bar:
        answers = ask(units, bar.update)
        for unit in units:
            name = record[unit.name]["label"] if unit.kind == "tasks" else unit.name
            bar.set_description(visible(f"evaluate {name}"))
            answer = next(answers)
            if unit.kind == "tasks":
                journals[unit.name].extend(answer)
            elif unit.kind == "continuations":
                write_jsonl(output / CONTINUATIONS, answer)
            else:
                found[unit.kind][unit.name] = answer
    if not measured:
        write_json(
            output / PERPLEXITY,
            {"texts": found["texts"], "mean": judged_mean(found["texts"]), "corpora": found["corpora"]},
        )
    return {
        name: {"label": record[name]["label"], "metric": of_task[0].metric, "leaves": len(of_task)}
        | summarise(journals[name].rows)
        for name, of_task in papers.items()
    }

"""The selfwritten data set: prompts of another data set with responses that the dense model writes to them.

Self-data distillation (Thangarasa et al., arXiv 2410.09982): a pruned model that is trained on its dense model's own
answers keeps more than one that is trained on the data set's answers, because its text stays what the dense model would
say. The paper samples answers and keeps the right ones; here every answer is kept that has text.

A row's prompt is asked. Of plain text, the beginning is the prompt, and the model writes on. An answer that reaches
`new_tokens` ends where a sentence does, if one ends in its second half.

The source's held-out rows are held out as they are, never written by the model. So a validation loss is about text that
the model did not write, and compares with that of a recovery on the source itself.

The source and the dense model are inputs. This file owns which rows are asked; `.blocks` has the journal of their
answers, `.answers` asks the model. No torch here, because a plan reads the options.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from stages.common.checks import require
from stages.common.choices import lookup
from stages.common.files import read_json, read_jsonl
from stages.common.journal import Journal
from stages.data.blocks import Write, write_blocks
from stages.data.config import AskingConfig, Part
from stages.data.mixture import MIXTURES
from stages.data.rows import Built, Row, row_of
from stages.errors import UserError
from stages.stage import JSON, Context

TEMPLATES = ("plain", "chat")
BLOCK = 96
"""Rows that are asked together. A kill costs at most these; sorting them by length saves work."""
NEEDS_PARTS = (*MIXTURES, "selfwritten")
"""Data sets that can't be a source: they are made of others themselves."""


@dataclass(kw_only=True, slots=True)
class SelfWrittenConfig(AskingConfig):
    """The prompts, and how the dense model answers them."""

    source: Any = "commonsense"
    """The data set whose prompts are asked: its name, or {data: NAME, options of that data set}. In a key it is the
    name, and the key of the source's own stage stands for the options."""
    rows: int | None = 1000
    """Number of rows to ask, the first ones of the source's; null is all of them."""
    tokens: int | None = None
    """Budget in tokens of prompts and answers, at which the asking stops; null is none."""
    new_tokens: int = 128
    """The most tokens of an answer."""
    temperature: float = 0.0
    """Temperature at which tokens are drawn; 0 takes the likeliest (greedy)."""
    template: str = "plain"
    """"plain" asks a prompt as it is, "chat" as a user's message in the tokenizer's chat template, which is then in the
    row too. Plain text is always asked as it is."""
    prompt_tokens: int = 32
    """Tokens of the beginning of plain text that is its prompt, at most half of the text."""


def pin(config: SelfWrittenConfig, cache: Path) -> tuple[SelfWrittenConfig, dict[str, Path]]:
    """Return `config` with the name of its source alone. The key of the source's own stage says what the source is.

    Raises:
        UserError: an option is outside its range.
    """
    require(config.tokens is None or config.tokens >= 1, "data.tokens", "at least 1, or null", config.tokens)
    require(config.new_tokens >= 1, "data.new_tokens", "at least 1", config.new_tokens)
    require(0 <= config.temperature < math.inf, "data.temperature", "at least 0", config.temperature)
    require(config.prompt_tokens >= 1, "data.prompt_tokens", "at least 1", config.prompt_tokens)
    lookup("template (data.template)", config.template, dict.fromkeys(TEMPLATES))
    return replace(config, source=parts_of(config)["rows"].data), {}


def parts_of(config: SelfWrittenConfig) -> dict[str, Part]:
    """Return the source, under the name of the input that it is.

    Raises:
        UserError: the source is no name, or that of a data set made of others.
    """
    options = dict(config.source) if isinstance(config.source, Mapping) else {"data": config.source}
    name = options.pop("data", None)
    if not isinstance(name, str):
        raise UserError(f"data.source={config.source}: name a data set, or give {{data: NAME, its options}}.")
    if name in NEEDS_PARTS:
        raise UserError(
            f"data.source={name}: its rows can't be asked. Ask those of one data set, and mix the answers: "
            "data=mixture 'data.parts={mine: {data: selfwritten, source: passages, weight: 1}, commonsense: 1}'."
        )
    return {"rows": Part(data=name, options=options, where="data.source")}


def label(config: SelfWrittenConfig) -> str:
    """Return the rows' name, for labels."""
    return f"selfwritten {config.source}"


def build(config: SelfWrittenConfig, inputs: Mapping[str, Path], context: Context) -> Built:
    """Return the prompts of `inputs["rows"]` with the answers of `inputs["model"]`, and the source's held-out rows.

    The answers are in `answers.jsonl`, which a killed run goes on with.

    Raises:
        UserError: the tokenizer has no chat template that is asked for, or the model has no room for an answer.
    """
    held = [row_of(line) for line in read_jsonl(inputs["rows"] / "validation.jsonl")]
    found = _answers(config, inputs["model"] / "model", inputs["rows"], context)
    asked = {name: getattr(config, name) for name in ("template", "temperature", "new_tokens")}
    source: JSON = {"data": config.source, **asked, "asked": len(found)}
    source |= {"tokens": sum(line["tokens"] for line in found)}
    source |= {"unfinished": sum(not line["finished"] for line in found)}
    return Built(rows=_rows(found, {row.text for row in held}, source), source=source, validation=held)


def _answers(config: SelfWrittenConfig, model: Path, rows: Path, context: Context) -> list[JSON]:
    """Return a line for each row asked, as `Writer.answer` gives it; the first lines that reach the budget of tokens.

    Args:
        config: how many rows are asked, and how.
        model: the directory of the model that answers.
        rows: the data artifact whose rows are asked, in the order of its file.
        context: the device, and the directory of the journal.
    """
    there = int(read_json(rows / "data.json")["rows"]["train"])
    count = there if config.rows is None else min(config.rows, there)
    journal = Journal(context.output / "answers.jsonl", count)

    def begin(first: int) -> Write:
        from stages.data.answers import Writer

        writer = Writer(
            model,
            dtype=config.dtype,
            device=context.device,
            new_tokens=config.new_tokens,
            temperature=config.temperature,
            chat=config.template == "chat",
            prompt_tokens=config.prompt_tokens,
        )
        lines = islice(read_jsonl(rows / "train.jsonl"), first, count)
        return lambda seeds: writer.answer(list(islice(lines, len(seeds))), seeds)

    enough = partial(_enough, budget=config.tokens)
    write_blocks(journal, begin, size=BLOCK, seed=config.seed, enough=enough)
    return journal.rows[: _within(journal.rows, config.tokens)]


def _enough(journal: Journal, budget: int | None) -> bool:
    spent = sum(row["tokens"] for row in journal.rows)
    return journal.complete or (budget is not None and spent >= budget)


def _within(rows: Sequence[JSON], budget: int | None) -> int:
    """Return how many of the first rows reach the budget of tokens; all of them where there is none, or they do not."""
    if budget is None:
        return len(rows)
    spent = accumulate(row["tokens"] for row in rows)
    return next((number for number, total in enumerate(spent, 1) if total >= budget), len(rows))


def _rows(found: list[JSON], held: set[str], source: JSON) -> Iterator[Row]:
    """Yield the rows with an answer. `source` records how many have none, or are held out."""
    source["left_out"] = given = 0
    for line in found:
        row = Row(line["prompt"], line["response"], line["task"])
        if row.response.strip() and row.text not in held:
            given += 1
            yield row
        else:
            source["left_out"] += 1
    if not given:
        raise UserError("data=selfwritten: the model answers no prompt with any text. Try data.template=chat.")

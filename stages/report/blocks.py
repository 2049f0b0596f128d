"""A report as a list of blocks, and its two spellings: Markdown and one HTML page.

`stages.report.content` decides what a report says. This module only writes headings, tables and pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

TAGS = re.compile(r"<(?=[A-Za-z/!?])|(?<=\])\(")
"""Where a name would begin a tag or a link. Sentences of reports have neither."""
PIPE = re.compile(rf"\||{TAGS.pattern}")
MARKS = re.compile(r"[\\`*_~{}\[\]<>#|&$]")
"""Characters that Markdown reads as more than themselves."""

Cell = str | tuple[str, str]
"""A table cell: text, or (text, a smaller remark such as an interval)."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading. Level 1 is the page's title."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text. `kind` is "", "lead" (the opening), "caution" or "note"."""

    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells. The first column is text; the others are numbers unless `words` lists them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: Sequence[int] = ()
    last_apart: bool = False
    """Whether a rule separates the last row (a mean)."""
    prose: bool = False
    """Whether the cells are running text of any origin, which wraps and means no Markdown."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG, inlined in an HTML page and linked as a file from Markdown."""

    file: str
    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Folded:
    """Verbatim text, or a table, that is folded until a reader opens it."""

    title: str
    content: str | Table


Block = Heading | Paragraph | Table | Picture | Folded


@dataclass(frozen=True, slots=True)
class Page:
    """A title and the blocks under it. `wide` gives large tables room."""

    title: str
    blocks: Sequence[Block]
    wide: bool = False


def markdown(page: Page) -> str:
    """Return the page as Markdown. Its pictures are links to files beside it."""
    return "\n\n".join(_markdown(block) for block in page.blocks) + "\n"


def html(page: Page) -> str:
    """Return the page as one HTML file that needs nothing else: no script, no font, no picture from anywhere."""
    return skeleton(page.title, html_of(page.blocks), kind="broad" if page.wide else "")


def html_of(blocks: Iterable[Block]) -> str:
    """Return blocks as HTML, without a page around them."""
    return "\n".join(_html(block) for block in blocks)


def skeleton(title: str, body: str, *, kind: str = "", head: str = "") -> str:
    """Return a whole page in the colours and type of every page here, around a body and with more in its head."""
    page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return page.substitute(title=escape(title), kind=kind, head=head, body=body)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text, "caution"):
            return f"> **Caution.** {_plain(text)}"
        case Paragraph(text, _):
            return _plain(text)
        case Table():
            return "\n".join(_markdown_table(block))
        case Picture(file, _, caption):
            return f"![{_plain(caption)}]({file})\n\n*{_plain(caption)}*"
        case Folded(title, content):
            inner = f"```json\n{content}\n```" if isinstance(content, str) else _markdown(content)
            return f"<details><summary>{escape(title)}</summary>\n\n{inner}\n\n</details>"


def _plain(text: str) -> str:
    return TAGS.sub(r"\\\g<0>", text)


def _markdown_table(table: Table) -> Iterable[str]:
    yield "| " + " | ".join(PIPE.sub(r"\\\g<0>", column) for column in table.columns) + " |"
    yield "|" + "|".join(" --- " if _is_text(table, place) else " ---: " for place in range(len(table.columns))) + "|"
    for row in table.rows:
        cells = [cell if isinstance(cell, str) else " ".join(filter(None, cell)) for cell in row]
        mark = MARKS if table.prose else PIPE
        yield "| " + " | ".join(mark.sub(r"\\\g<0>", cell) for cell in cells) + " |"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text, kind):
            label = "<strong>Caution.</strong> " if kind == "caution" else ""
            return f'<p class="{kind}">{label}{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
        case Table():
            return "\n".join(_html_table(block))
        case Picture(_, svg, caption):
            return f"<figure>\n{svg}<figcaption>{escape(caption)}</figcaption>\n</figure>"
        case Folded(title, content):
            inner = f"<pre>{escape(content)}</pre>" if isinstance(content, str) else _html(content)
            return f"<details><summary>{escape(title)}</summary>\n{inner}\n</details>"


def _html_table(table: Table) -> Iterable[str]:
    classes = ["words" if _is_text(table, place) else "number" for place in range(len(table.columns))]
    own = " class=apart" if table.last_apart else " class=prose" if table.prose else ""
    # A region that scrolls has to be reached by keyboard, and needs a name then.
    yield f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.columns[0])} table"><table{own}>'
    heads = "".join(
        f'<th scope="col" class="{kind}">{escape(column)}</th>'
        for column, kind in zip(table.columns, classes, strict=True)
    )
    yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    for row in table.rows:
        cells = (f'<td class="{kind}">{html_cell(cell)}</td>' for cell, kind in zip(row, classes, strict=True))
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def html_cell(cell: Cell) -> str:
    """Return the inside of a cell: its text, and its remark in small type."""
    if isinstance(cell, str):
        return escape(cell)
    text, remark = cell
    kind = "" if remark.startswith(("[", "±")) else " class=why"
    return f"{escape(text)} <small{kind}>{escape(remark)}</small>" if remark else escape(text)


def _is_text(table: Table, place: int) -> bool:
    return place == 0 or place in table.words

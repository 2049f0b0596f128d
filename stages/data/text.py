"""Plain text of the user's own files, for continued pre-training.

Each file is cut into rows at the ends of paragraphs, or where those are far apart at those of lines, sentences or
words. A row is what the order shuffles and the validation split draws, so it is some hundred tokens and not a whole
file; how many of its tokens a document holds is decided where they are known (`stages.rows.packing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from stages.data.config import DataConfig
from stages.data.local import HERE, pinned, same_files
from stages.data.readers import opened, readable
from stages.data.rows import Built, Row
from stages.errors import UserError
from stages.stage import Context

SUFFIXES = (".txt", ".text", ".md")
"""Files of a directory that are read; one that is named, or matched by a pattern, may end in anything."""
ENDS = ("\n\n", "\n", ". ", " ")
"""Where text is cut, the best place first."""
BLOCK = 1 << 16
"""Characters that are read at a time."""


@dataclass(kw_only=True, slots=True)
class TextConfig(DataConfig):
    """Which files, and how long their rows are."""

    path: str | None = None
    """A file, a directory or a pattern ("books/*.txt"); null in a key, where `digest` stands for it."""
    digest: str | None = None
    """SHA-256 of the files' contents; the plan sets it."""
    characters: int = 2000
    """Longest row in characters; about four to a token of English."""
    rows: int | None = None
    """The first so many rows; null is all of them."""


def pin(config: TextConfig, cache: Path) -> tuple[TextConfig, dict[str, Path]]:
    """Return `config` with the files' digest in place of their path, and where they lie.

    Raises:
        UserError: there are no such files, or rows of that length can't be.
    """
    if config.characters < 2:
        raise UserError(f"data.characters must be at least 2, and is {config.characters}.")
    fixed, _, places = pinned(config, SUFFIXES, cache)
    return fixed, places


def label(config: TextConfig) -> str:
    """Return what the rows are called."""
    return f"{config.name} {(config.digest or '')[:8]}"


def build(config: TextConfig, inputs: Mapping[str, Path], context: Context) -> Built:
    """Return the rows of the files in the order of their names.

    Raises:
        UserError: the files have changed since the plan, or are not UTF-8 (while they are read).
    """
    files = same_files(config, SUFFIXES, context.locations[HERE], context.cache)
    pieces = chain.from_iterable(cut(_blocks(file), config.characters) for file in files)
    rows = (Row("", piece, config.name) for piece in islice(pieces, config.rows))
    return Built(rows=rows, source={"digest": config.digest, "files": len(files)})


def cut(blocks: Iterable[str], longest: int) -> Iterator[str]:
    """Yield the text that `blocks` are in rows of at most `longest` characters; only white space between is lost."""
    held = ""
    for block in chain(blocks, [""]):
        held += block
        start = 0
        while len(held) - start > longest or (not block and start < len(held)):
            stop = start + _end(held[start : start + longest], whole=len(held) - start <= longest)
            if row := held[start:stop].strip():
                yield row
            start = stop
        held = held[start:]


def _end(window: str, *, whole: bool) -> int:
    """Return where the row that begins `window` ends: at the best end in its second half; `whole`: all of it."""
    if whole:
        return len(window)
    for end in ENDS:
        at = window.rfind(end)
        if at >= len(window) // 2:
            return at + len(end)
    return len(window)


def _blocks(path: Path) -> Iterator[str]:
    with readable(path), opened(path) as stream:
        while block := stream.read(BLOCK):
            yield block

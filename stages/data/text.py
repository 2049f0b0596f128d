"""Plain text of the user's own files, for continued pre-training.

Each file is cut into rows at the ends of paragraphs. Where these are far apart, it is cut at the ends of lines,
sentences or words. Rows are what the order shuffles and the validation split draws, so a row is some hundred tokens and
not a whole file. How many of its tokens a document holds is decided where they are known (`stages.rows.packing`).
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
"""Files of a directory that are read. A file that is named, or matched by a pattern, may end in anything."""
ENDS = ("\n\n", "\n", ". ", " ")
"""Where text is cut, the best place first."""
BLOCK = 1 << 16
"""Characters that are read at a time."""


@dataclass(kw_only=True, slots=True)
class TextConfig(DataConfig):
    """The files to read, and the length of their rows."""

    path: str | None = None
    """A file, a directory or a pattern ("books/*.txt"). In a key it is null, and `digest` stands for it."""
    digest: str | None = None
    """SHA-256 of the files' contents. The plan sets it."""
    characters: int = 2000
    """Longest row in characters; a token of English has about four."""
    rows: int | None = None
    """Number of rows to take, the first ones; null is all of them."""


def pin(config: TextConfig, cache: Path) -> tuple[TextConfig, dict[str, Path]]:
    """Return `config` with the files' digest in place of their path, and the files' place.

    Raises:
        UserError: there are no such files, or no row can have that length.
    """
    if config.characters < 2:
        raise UserError(f"data.characters must be at least 2, and is {config.characters}.")
    fixed, _, places = pinned(config, SUFFIXES, cache)
    return fixed, places


def label(config: TextConfig) -> str:
    """Return the rows' name, for labels."""
    return f"{config.name} {(config.digest or '')[:8]}"


def build(config: TextConfig, inputs: Mapping[str, Path], context: Context) -> Built:
    """Return the rows of the files in the order of their names.

    Raises:
        UserError: the files have changed since the plan, or are not UTF-8 (raised while they are read).
    """
    files = same_files(config, SUFFIXES, context.locations[HERE], context.cache)
    pieces = chain.from_iterable(cut(_blocks(file), config.characters) for file in files)
    rows = (Row("", piece, config.name) for piece in islice(pieces, config.rows))
    return Built(rows=rows, source={"digest": config.digest, "files": len(files)})


def cut(blocks: Iterable[str], longest: int) -> Iterator[str]:
    """Yield the text of `blocks` in rows of at most `longest` characters. Only white space between rows is lost."""
    held = ""
    # The empty block at the end says that no text follows, so that the rest is cut too.
    for block in chain(blocks, [""]):
        held += block
        start = 0
        while len(held) - start > longest or (not block and start < len(held)):
            stop = start + place_to_end(held[start : start + longest], whole=len(held) - start <= longest)
            if row := held[start:stop].strip():
                yield row
            start = stop
        held = held[start:]


def place_to_end(window: str, *, whole: bool = False) -> int:
    """Return where a row that begins `window` ends: at the best end in its second half; with `whole`, at its end."""
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

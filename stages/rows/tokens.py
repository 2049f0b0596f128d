"""The documents of one recovery, tokenised once and kept on disk under the hash of what decides them.

A recovery draws the beginning of a `Stream`, as far as its budget of tokens reaches. The cache keeps that beginning
under the hash of the rows, the tokenizer, the lengths and labels, the seed and the budget. What is damaged is written
again. It is mapped into memory:

- Another adapter, rank or rate on the same data tokenises nothing.
- A resumed run continues at a document's number after one look at the table.
- Documents that exceed memory stay on disk.

Measured on one core with SmolLM2's tokenizer and the commonsense rows: about 120,000 tokens a second. Training there
takes in some hundreds to two thousand, so tokenising is 1 % of the time or less. The cache pays on a GPU, where
training takes in tens to hundreds of thousands a second.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from array import array
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from stages.common.files import read_json, sha256_of, sha256_of_each
from stages.common.progress import progress
from stages.common.sealed import read_sealed, write_sealed
from stages.rows.packing import Document, encode_whole
from stages.rows.stream import Stream, parts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("pipeline")

FORMAT = 3
"""Raised by one when the same rows and options would give other documents."""
IDS, TABLE, FACTS = "ids.u32", "documents.i64", "facts.json"
FIELDS = 7
"""Numbers of a document in the table: the token it ends before, first label, task, cut, line of the file, prompt, row
drawn."""


class Tokenised:
    """The documents of a recovery in their order, on disk.

    Attributes:
        path: the file of rows that the documents come from.
        directory: the directory that `_write` wrote.
    """

    def __init__(self, path: Path, directory: Path, facts: Mapping[str, Any]) -> None:
        """Open the documents. `facts` is what `_whole` returned of the directory."""
        import numpy

        self.path, self.directory = path, directory
        self._rows, self._tasks = int(facts["rows"]), list(facts["tasks"])
        self._ids_T = numpy.memmap(directory / IDS, dtype=numpy.uint32, mode="r")
        self._table_DF = numpy.memmap(directory / TABLE, dtype=numpy.int64, mode="r").reshape(-1, FIELDS)

    def __len__(self) -> int:
        """Number of rows of the data, whether drawn or not."""
        return self._rows

    @property
    def longest(self) -> int:
        """Number of tokens of the longest document."""
        return max(int(self._table_DF[0][0]), int((self._table_DF[1:, 0] - self._table_DF[:-1, 0]).max(initial=0)))

    def drawn(self, documents: int) -> int:
        """Return how many rows the first `documents` documents come from. A row that is drawn again counts again."""
        return int(self._table_DF[documents - 1][-1]) + 1 if documents else 0

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Yield the documents from number `start` on.

        Raises:
            IndexError: more documents are drawn than the budget of tokens reaches.
        """
        begin = int(self._table_DF[start - 1][0]) if start else 0
        for fields in self._table_DF[start:]:
            end, first_label, task, cut, row, prompt, _ = fields.tolist()
            yield Document(self._ids_T[begin:end].tolist(), first_label, self._tasks[task], bool(cut), row, prompt)
            begin = end
        raise IndexError(f"{self.directory} holds the documents of a smaller budget than is drawn from it")


def tokenised(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    label_prompts: bool,
    seed: int,
    tokens: int,
    cache: Path,
) -> Tokenised:
    """Return the first documents of the rows in `path` that reach `tokens` tokens, from `cache` where it has them.

    Args:
        path: train.jsonl of a data artifact.
        tokenizer: the model's tokenizer.
        length: the most tokens of a document.
        label_prompts: whether prompts enter the loss too.
        seed: the seed of the order.
        tokens: the recovery's budget.
        cache: the directory for downloads and the like.

    Raises:
        UserError: the file has no rows, or the tokenizer gives no character offsets.
    """
    decides = {
        "format": FORMAT,
        "rows": _digest(path),
        # A mixture's shares decide the order of its rows, and the rows' digest does not hold them.
        "parts": [[part.name, part.weight, part.rows] for part in parts_of(path, 0)],
        "tokenizer": _tokenizer_digest(tokenizer),
        "length": length,
        "label_prompts": label_prompts,
        "seed": seed,
        "tokens": tokens,
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    final = cache / "tokens" / key
    final.parent.mkdir(parents=True, exist_ok=True)
    # Another process may be writing the same documents.
    with FileLock(final.with_suffix(".lock")):
        facts = _whole(final)
        if facts is None:
            if final.exists():
                log.info("the tokens kept in %s are damaged: the rows are tokenised again", final)
            encode = partial(encode_whole, tokenizer=tokenizer, length=length, label_prompts=label_prompts)
            facts = _write(Stream(path, encode, seed=seed), tokens, final)
    return Tokenised(path, final, facts)


def _write(stream: Stream, tokens: int, final: Path) -> dict[str, Any]:
    """Write the documents of `stream` that reach `tokens` tokens beside `final`, then rename them to `final`.

    Returns what is recorded of them.
    """
    beside = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    for stale in (beside, final):
        shutil.rmtree(stale, ignore_errors=True)
    beside.mkdir()
    tasks: dict[str, int] = {}
    total = 0
    try:
        with (beside / IDS).open("wb") as ids, (beside / TABLE).open("wb") as table, _bar(tokens) as bar:
            for number, document in _until(stream, tokens):
                total += len(document.ids)
                array("I", document.ids).tofile(ids)
                task = tasks.setdefault(document.task, len(tasks))
                fields = (total, document.first_label, task, document.cut, document.row, document.prompt, number)
                array("q", fields).tofile(table)
                bar.update(len(document.ids))
        hashes = dict(zip((IDS, TABLE), sha256_of_each([beside / IDS, beside / TABLE]), strict=True))
        facts = {"rows": len(stream), "tasks": list(tasks), "sha256": hashes}
        write_sealed(beside / FACTS, facts)
        os.replace(beside, final)
        return facts
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _until(stream: Stream, tokens: int) -> Iterator[tuple[int, Document]]:
    """Yield (number of the row drawn, document) until the documents hold `tokens` tokens."""
    total = 0
    number = -1
    for documents in stream.rows():
        number += not documents[0].continued
        for document in documents:
            yield number, document
            total += len(document.ids)
            if total >= tokens:
                return


def _whole(directory: Path) -> dict[str, Any] | None:
    """Return what is recorded of the documents in `directory`; None where a file is missing or not what was written."""
    facts = read_sealed(directory / FACTS)
    if facts is None or not all((directory / name).is_file() for name in facts["sha256"]):
        return None
    found = sha256_of_each([directory / name for name in facts["sha256"]])
    return facts if found == list(facts["sha256"].values()) else None


def _digest(path: Path) -> str:
    """Return the SHA-256 of the rows, from the record beside them where there is one."""
    record = path.with_name("data.json")
    return str(read_json(record)["sha256"]["train"]) if record.is_file() else sha256_of(path)


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that decides a text's tokens. A slow tokenizer has nothing to hash, and is refused later."""
    import tokenizers

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    decides = [tokenizers.__version__, tokenizer.bos_token_id, tokenizer.eos_token_id]
    text = json.dumps([*decides, backend.to_str() if backend is not None else None])
    return hashlib.sha256(text.encode()).hexdigest()


def _bar(tokens: int) -> Any:
    return progress("tokenising", total=tokens, unit="tok", scale=True)

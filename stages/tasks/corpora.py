"""Texts for perplexity, joined as the papers join them: by name from the hub, or a text file of the user's own.

The way of joining decides the perplexity. wikitext2 and ptb follow LLM-Pruner (`LLMPruner/datasets/ppl_dataset.py`):
test and validation split, rows joined with an empty line, consecutive windows. c4 follows GPTQ, SparseGPT and Wanda
(their `data.py`): the first 1,100 documents of one validation shard, joined with blanks. They read 256 windows of it.
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from stages.common.files import sha256_of, write_json, write_text
from stages.errors import UserError
from stages.fetch.hub_errors import explain_hub_errors
from stages.stage import JSON, Context
from stages.tasks.config import TasksSource
from stages.tasks.registry import CORPORA

log = logging.getLogger(__name__)


def write_corpora(config: TasksSource, context: Context) -> JSON:
    """Write `corpora/NAME.txt` for each of `config.corpora`, and `corpora.json`. Return {name: bytes}.

    Raises:
        UserError: a text can't be fetched, is empty, is not UTF-8, or has changed since the plan.
    """
    record: JSON = {}
    for name in config.corpora:
        own = name in config.files
        text, source = _of_user(name, config, context) if own else _of_hub(name, config.revisions)
        path = context.output / "corpora" / f"{name}.txt"
        write_text(path, text)
        record[name] = {"sha256": sha256_of(path), "bytes": len(text.encode()), "source": source}
    write_json(context.output / "corpora.json", record)
    return {name: found["bytes"] for name, found in record.items()}


def read_text(path: Path) -> str:
    """Return the text of a file of the user's own.

    Raises:
        UserError: the file can't be read, is empty or is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"evaluate.corpora: {path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"evaluate.corpora: {path} is not UTF-8 ({error}).") from None
    if not text.strip():
        raise UserError(f"evaluate.corpora: {path} is empty.")
    return text


def _of_user(name: str, config: TasksSource, context: Context) -> tuple[str, JSON]:
    path = context.locations[name]
    if sha256_of(path) != config.files[name]:
        raise UserError(f"{path} has changed since the run was planned. Run the same command again.")
    return read_text(path), {"file": path.name}


def _of_hub(name: str, revisions: dict[str, str]) -> tuple[str, JSON]:
    from huggingface_hub import hf_hub_download

    corpus = CORPORA[name]
    revision = revisions[corpus.repo]
    log.info("fetching %s from the hub: %s of %s", name, corpus.file, corpus.repo)
    with explain_hub_errors(corpus.repo, revision, repo_type="dataset"):
        path = Path(hf_hub_download(corpus.repo, corpus.file, repo_type="dataset", revision=revision))
    rows = list(islice(_READERS[path.suffix](path, corpus.column), None if corpus.whole else corpus.rows))
    if len(rows) != corpus.rows:
        raise UserError(
            f"{corpus.file} of {corpus.repo} at {revision[:12]} is not the text of the papers: it does not have "
            f"{corpus.rows} rows. Give a text of your own: evaluate.corpora=[FILE.txt]."
        )
    source = {"repo": corpus.repo, "revision": revision, "file": corpus.file, "text": corpus.source}
    return corpus.joint.join(rows), source


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet

    yield from pyarrow.parquet.read_table(path, columns=[column])[column].to_pylist()


def _gzipped_lines(path: Path, column: str) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)[column]


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {".parquet": _parquet, ".gz": _gzipped_lines}

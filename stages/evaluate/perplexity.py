"""Perplexity of held-out texts of several kinds, each document read alone, and of corpora in windows.

The windows of a corpus are joined and cut as in the pruning papers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from math import exp, fsum, isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.files import read_json, read_jsonl
from stages.common.progress import progress
from stages.errors import UserError
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.fitting import scored
from stages.inference.encoding import Query
from stages.stage import JSON
from stages.text_library.kinds import TEXTS, Use

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stages.inference.scorer import Scorer

LARGEST = 700.0
"""Nats a token above which a perplexity is no longer a float."""


def texts(scorer: Scorer, artifact: Path, config: EvaluateConfig) -> JSON:
    """Return {kind: its `totals`} of `config.texts`, from `texts/KIND.jsonl` in `artifact`.

    The entry that the kind has in `texts.json` there is repeated as "rows".

    Kinds are scored one after the other, so the figures of one do not depend on which others are asked for.

    Raises:
        UserError: a kind has no documents, or a likelihood is not finite.
    """
    return {
        name: totals(document_rows(scorer, select(name, _documents(artifact, name), config.passages), name))
        | {"rows": read_json(artifact / "texts.json")[name]}
        for name in (config.texts if config.passages else ())
    }


def judged_mean(found: Mapping[str, JSON]) -> JSON | None:
    """Return the mean over the kinds that nothing here is fitted to: {"kinds", "perplexity", "bits_per_byte"}.

    The perplexity is a geometric mean: the mean is over the logarithms, each kind counting once. None without such a
    kind.
    """
    kinds = [name for name in found if TEXTS[name].use is Use.judged]
    if not kinds:
        return None
    nats = fsum(found[name]["nll"] / found[name]["tokens"] for name in kinds) / len(kinds)
    bits = fsum(found[name]["bits_per_byte"] for name in kinds) / len(kinds)
    return {"kinds": kinds, "perplexity": exp(min(nats, LARGEST)), "bits_per_byte": bits}


def select(kind: str, documents: Iterable[JSON], count: int) -> list[JSON]:
    """Return `count` of the documents, or all if there are fewer. They are always the same ones, whatever their order.

    Raises:
        UserError: there is no document.
    """
    # Ordered by hash, they are a fixed sample that does not depend on the order of the file.
    chosen = sorted(documents, key=lambda document: sha256(document["text"].encode()).digest())[:count]
    if not chosen:
        raise UserError(
            f"there are no held-out texts of the kind '{kind}'. Rebuild the tasks artifact, or leave the kind out of "
            "evaluate.texts."
        )
    return chosen


def document_rows(scorer: Scorer, documents: Sequence[JSON], kind: str) -> list[JSON]:
    """Return {title, nll, tokens, bytes} of each document. nll is in nats, summed over all tokens of the document.

    The first token is predicted from the beginning-of-text token (the end-of-text token where there is none). A
    document longer than the model reads at once is read in lm-eval's rolling windows, so nothing is left out.

    Raises:
        UserError: a likelihood is not finite.
    """
    queries = [scorer.encoder.passage(document["text"]) for document in documents]
    with progress(f"perplexity of {kind}", total=sum(map(len, queries)), unit="passage") as bar:
        answers = iter(scored(scorer, [query for windows in queries for query in windows], bar.update))
    rows = []
    for document, windows in zip(documents, queries, strict=True):
        nll = -fsum(next(answers)[0] for _ in windows)
        if not isfinite(nll):
            raise UserError(
                f"the likelihood of '{document['title']}' ({kind}) is not finite. "
                "Check the weights, or evaluate with evaluate.dtype=float32."
            )
        tokens = sum(len(query.targets) for query in windows)
        rows.append({"title": document["title"], "nll": nll, "tokens": tokens, "bytes": len(document["text"].encode())})
    return rows


def totals(rows: Sequence[JSON]) -> JSON:
    """Return perplexity = exp(nll / tokens) and bits per byte over all documents of `rows`, and the documents."""
    nll = fsum(row["nll"] for row in rows)
    tokens, size = (sum(row[key] for row in rows) for key in ("tokens", "bytes"))
    return {
        "perplexity": exp(min(nll / tokens, LARGEST)),
        "bits_per_byte": nll / log(2) / size,
        "nll": nll,
        "tokens": tokens,
        "documents": list(rows),
    }


def corpora(scorer: Scorer, artifact: Path, config: EvaluateConfig) -> JSON:
    """Return {corpus: {length: its `corpus_perplexity`}} of `config.corpora`, from `corpora/NAME.txt` in `artifact`.

    Raises:
        UserError: a text is missing or too short, or a length is more than the model reads.
    """
    asked: dict[str, dict[str, list[Query]]] = {}
    for name in config.corpora:
        ids = joined_ids(scorer.encoder.tokenizer, _corpus(artifact, name))
        asked[name] = {
            str(length): corpus_windows(scorer, ids, name=name, length=length, windows=config.corpus_windows)
            for length in config.corpus_lengths
        }
    total = sum(len(windows) for lengths in asked.values() for windows in lengths.values())
    with progress("perplexity", total=total, unit="window") as bar:
        return {
            name: {length: corpus_perplexity(scorer, windows, bar.update) for length, windows in lengths.items()}
            for name, lengths in asked.items()
        }


def joined_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a whole text, with the special tokens that the tokenizer adds, once.

    LLM-Pruner (arXiv 2305.11627), SparseGPT (arXiv 2301.00774) and Wanda (arXiv 2306.11695) do the same. A llama
    tokenizer puts one beginning-of-text before the whole text, and windows cut from it later begin in mid-sentence.
    """
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids


def corpus_windows(
    scorer: Scorer, ids: Sequence[int], *, name: str, length: int, windows: int | None = None
) -> list[Query]:
    """Return consecutive windows of `length` tokens: the first `windows`, or all. A remainder is dropped.

    A window asks for all of its tokens but the first.

    Raises:
        UserError: the corpus `name` is shorter than one window, or `length` is more than the model reads.
    """
    if length > scorer.encoder.max_length:
        raise UserError(
            f"evaluate.corpus_lengths has {length}, and the model reads {scorer.encoder.max_length} tokens at once."
        )
    count = len(ids) // length if windows is None else min(windows, len(ids) // length)
    if not count:
        raise UserError(
            f"corpus '{name}' has {len(ids)} tokens, fewer than one window of {length}. Lower evaluate.corpus_lengths."
        )
    cut = (list(ids[index * length : (index + 1) * length]) for index in range(count))
    return [Query(inputs=window[:-1], targets=window[1:], truncated=False) for window in cut]


def corpus_perplexity(scorer: Scorer, windows: Sequence[Query], advance: Callable[[int], object] = int) -> JSON:
    """Return perplexity = exp(nll / tokens) over `windows`, with nll and tokens, and each window's nll in nats.

    tokens counts predictions: one fewer than a window has tokens. SparseGPT and Wanda multiply a window's mean by its
    length and later divide by it again, which gives the same.

    Raises:
        UserError: a likelihood is not finite.
    """
    nlls = [-loglikelihood for loglikelihood, _ in scored(scorer, windows, advance)]
    if not all(map(isfinite, nlls)):
        raise UserError("the likelihood of a window of text is not finite. Check the weights.")
    nll, tokens = fsum(nlls), sum(len(window.targets) for window in windows)
    return {"perplexity": exp(min(nll / tokens, LARGEST)), "nll": nll, "tokens": tokens, "windows": nlls}


def _documents(artifact: Path, kind: str) -> list[JSON]:
    path = artifact / "texts" / f"{kind}.jsonl"
    if not path.is_file():
        raise UserError(
            f"{artifact} has no texts of the kind '{kind}'. Add it to evaluate.texts, so that it is fetched."
        )
    return list(read_jsonl(path))


def _corpus(artifact: Path, name: str) -> str:
    path = artifact / "corpora" / f"{name}.txt"
    if not path.is_file():
        raise UserError(f"{artifact} has no corpus '{name}'. Add it to evaluate.corpora, so that it is fetched.")
    return path.read_bytes().decode("utf-8")  # bytes, because reading as text would turn "\r\n" into "\n"

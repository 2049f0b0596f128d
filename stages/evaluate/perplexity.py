"""Perplexity of held-out passages, each read alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from math import exp, fsum, isfinite, log
from typing import TYPE_CHECKING

from stages.errors import UserError
from stages.progress import progress
from stages.stage import JSON

if TYPE_CHECKING:
    from stages.scoring.scorer import Scorer

LARGEST = 700.0
"""Nats a token beyond which a perplexity is no longer a float."""


def select(passages: Iterable[JSON], count: int) -> list[JSON]:
    """Return `count` of the passages, or all if there are fewer: always the same ones, whatever order they came in.

    Raises:
        UserError: some are wanted and there is none.
    """
    if not count:
        return []
    chosen = sorted(passages, key=lambda passage: sha256(passage["text"].encode()).digest())[:count]
    if not chosen:
        raise UserError("there are no held-out passages. Rebuild the tasks artifact, or set evaluate.passages=0.")
    return chosen


def passage_rows(scorer: Scorer, passages: Sequence[JSON]) -> list[JSON]:
    """Return {title, nll, tokens, bytes} of each passage: nll in nats, summed over all its tokens.

    The first token is predicted from the beginning-of-text token (the end-of-text token where there is none). A
    passage longer than the model reads at once is read in lm-eval's rolling windows, so nothing is left out.

    Raises:
        UserError: a likelihood is not finite.
    """
    queries = [scorer.encoder.passage(passage["text"]) for passage in passages]
    with progress("perplexity", total=sum(map(len, queries)), unit="passage") as bar:
        answers = iter(scorer.score([query for windows in queries for query in windows], bar.update))
    rows = []
    for passage, windows in zip(passages, queries, strict=True):
        nll = -fsum(next(answers)[0] for _ in windows)
        if not isfinite(nll):
            raise UserError(f"the likelihood of passage '{passage['title']}' is not finite. Check the weights.")
        tokens = sum(len(query.targets) for query in windows)
        rows.append({"title": passage["title"], "nll": nll, "tokens": tokens, "bytes": len(passage["text"].encode())})
    return rows


def totals(rows: Sequence[JSON]) -> JSON:
    """Return perplexity = exp(nll / tokens) and bits per byte over all passages, and these; null without any."""
    nll = fsum(row["nll"] for row in rows)
    tokens, size = (sum(row[key] for row in rows) for key in ("tokens", "bytes"))
    return {
        "perplexity": exp(min(nll / tokens, LARGEST)) if tokens else None,
        "bits_per_byte": nll / log(2) / size if size else None,
        "nll": nll,
        "tokens": tokens,
        "passages": list(rows),
    }

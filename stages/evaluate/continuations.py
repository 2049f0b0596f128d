"""Greedy continuations of held-out text: whether a model repeats itself, and which token it would write next.

The known failure of a pruned model's greedy text is repetition (ShortOPD, arXiv 2607.13124). Prompts are the beginnings
of held-out passages. A model is given each beginning twice. It continues the beginning by itself, and it is asked for
the likeliest token at each place of the passage's own text.

The second question is for the agreement of two models, which the report joins. After the first token that differs, two
greedy texts have different contexts, so what follows says little of the models. On the passage's own text all models
have the same context at every place, and no model's evaluation needs another's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from stages.common.files import read_jsonl
from stages.common.progress import progress
from stages.errors import UserError
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.fitting import with_fewer_tokens
from stages.evaluate.judge import Model
from stages.evaluate.lm import FastLM
from stages.inference.encoding import Query
from stages.inference.fitting import continued
from stages.stage import JSON
from stages.text_library.kinds import CONTINUED

if TYPE_CHECKING:
    from stages.inference.encoding import Encoder

WORDS = 24
"""Words of a beginning, about 32 tokens. Words, so that models with other tokenizers get the same text."""
NGRAM = 4
LOOP = 16
"""The fewest tokens of a loop. A shorter repetition at the end of a text is found in good text too."""
FOLLOWING = 32
"""Tokens of a passage's own text at which the likeliest token is asked for. More would cost as much as the writing."""


class Beginning(NamedTuple):
    """The beginning of a held-out text, and the text that follows it there."""

    title: str
    prompt: str
    following: str


def beginnings(passages: Iterable[JSON], count: int) -> list[Beginning]:
    """Return the beginnings of `count` passages, or of all if there are fewer: `WORDS` words, at most half of each.

    They are the last ones in the order in which perplexity takes the first. So they are the same whatever
    `evaluate.passages` is, and other ones where there are enough.

    Raises:
        UserError: no passage has two words.
    """
    ordered = sorted(passages, key=lambda passage: sha256(passage["text"].encode()).digest(), reverse=True)
    words = ((passage["title"], re.findall(r"\s*\S+", passage["text"].strip())) for passage in ordered)
    long_enough = [(title, found, min(WORDS, len(found) // 2)) for title, found in words if len(found) > 1][:count]
    if not long_enough:
        raise UserError(
            "there are no held-out passages to continue. Rebuild the tasks artifact, or set "
            "evaluate.generation_prompts=0."
        )
    return [Beginning(title, "".join(found[:end]), "".join(found[end:])) for title, found, end in long_enough]


def continuations(config: EvaluateConfig, artifact: Path, model: Model) -> list[JSON]:
    """Return the `continuation_rows` of `config.generation_prompts` passages of the tasks' artifact.

    Raises:
        UserError: the artifact of the tasks has no passages, or the model's context has no room for the tokens.
    """
    prompts = beginnings(read_jsonl(artifact / "texts" / f"{CONTINUED}.jsonl"), config.generation_prompts)
    return continuation_rows(model(), prompts, new_tokens=config.generation_tokens)


def continuation_rows(lm: FastLM, prompts: Sequence[Beginning], *, new_tokens: int) -> list[JSON]:
    """Return one row a prompt, enough for paired statistics between models.

    Keys: title, prompt, output (the text written), tokens (its ids, at most `new_tokens`), ended (whether an
    end-of-text token ended it), repeated (`repeated_share`), loop (`in_loop`; never of a text that ended), following
    (ids of the passage's own next tokens, at most `FOLLOWING` or `new_tokens`) and likeliest (the model's likeliest id
    at each of these places).

    Raises:
        UserError: the model's context has no room for `new_tokens`.
    """
    encoder = lm.scorer.encoder
    if new_tokens >= encoder.max_length:
        raise UserError(
            f"evaluate.generation_tokens={new_tokens} leaves no room for a prompt: the model reads "
            f"{encoder.max_length} tokens at once. Lower it, or set evaluate.generation_prompts=0."
        )
    contexts = encoder.prompts([one.prompt for one in prompts], room=new_tokens)
    queries = [
        _query(encoder, one, context, min(FOLLOWING, new_tokens))
        for one, context in zip(prompts, contexts, strict=True)
    ]
    with progress("continuations", total=len(prompts), unit="text") as bar:
        written = continued(lm.generator, lm.in_parts, contexts, new_tokens=new_tokens, advance=bar.update)
    likeliest = with_fewer_tokens(lm.scorer, lambda done: lm.scorer.likeliest(queries))
    return [
        {
            "title": prompt.title,
            "prompt": prompt.prompt,
            "output": encoder.tokenizer.decode(own.tokens, skip_special_tokens=True),
            "tokens": own.tokens,
            "ended": own.end is not None,
            "repeated": repeated_share(own.tokens),
            "loop": own.end is None and in_loop(own.tokens),
            "following": query.targets,
            "likeliest": best,
        }
        for prompt, own, query, best in zip(prompts, written, queries, likeliest, strict=True)
    ]


def totals(rows: Sequence[JSON], *, new_tokens: int) -> JSON:
    """Return the means over prompts of {repeated, loop, ended, length in tokens}, the number of prompts and the cap."""
    means = {key: fmean(row[key] for row in rows) for key in ("repeated", "loop", "ended")}
    length = fmean(len(row["tokens"]) for row in rows)
    return {"prompts": len(rows), "new_tokens": new_tokens} | means | {"length": length}


def repeated_share(ids: Sequence[int], n: int = NGRAM) -> float:
    """Return 1 − distinct / all n-grams of `ids`: seq-rep-n of Welleck et al. (arXiv 1908.04319); 0 without n-grams."""
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def in_loop(ids: Sequence[int]) -> bool:
    """Return whether `ids` end in a cycle that is there twice or more, and over `LOOP` tokens or more."""
    return any(_cyclic(ids, period) >= max(2 * period, LOOP) for period in range(1, len(ids) // 2 + 1))


def _cyclic(ids: Sequence[int], period: int) -> int:
    """Return how many of the last ids are a cycle of `period` ids."""
    same = 0
    while same + period < len(ids) and ids[-1 - same] == ids[-1 - same - period]:
        same += 1
    return same + period


def _query(encoder: Encoder, beginning: Beginning, context: list[int], places: int) -> Query:
    """Return the query for the `places` tokens that follow `beginning` in its passage, encoded together with it."""
    read, whole = encoder.tokenizer([beginning.prompt, beginning.prompt + beginning.following], verbose=False)[
        "input_ids"
    ]
    following = whole[len(read) : len(read) + places]
    return Query((context + following)[:-1], following, truncated=len(context) < len(read))

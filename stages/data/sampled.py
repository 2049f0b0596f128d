"""The sampled data set: plain text that the dense model makes up, from nothing but the token that begins a text.

Text that a model draws from itself calibrates its pruning as well as real text, often better (Williams et al., arXiv
2410.17170), and is enough for its distillation (LLM-QAT, arXiv 2305.17888). It is of every kind that the model was
trained on, and no data set has to be fetched for it. Here every token is drawn at one temperature.

The first token is the tokenizer's bos token. Where it has none, it is the eos token, which stands between documents in
pre-training. A text of `new_tokens` stays as long as it is: these rows are text to read and to train on, and need no
end.

The dense model is an input. This file owns the options and the rows; `.blocks` has the journal, `.draws` asks the
model. No torch here, because a plan reads the options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stages.common.checks import require
from stages.common.journal import Journal
from stages.data.blocks import Write, write_blocks
from stages.data.config import AskingConfig
from stages.data.rows import Built, Row
from stages.errors import UserError
from stages.stage import JSON, Context

BLOCK = 96
"""Rows that are drawn together, of which a kill costs at most these."""
SHORTEST = 8
"""Fewest tokens of a text; shorter ones are left out."""
HELD_OUT = 8
"""One text in this many is set aside at most."""


@dataclass(kw_only=True, slots=True)
class SampledConfig(AskingConfig):
    """How much text the dense model makes up, and how.

    At most an eighth of the texts are set aside, however many `validation_rows` asks for.
    """

    rows: int = 128
    """Number of texts that are drawn, those set aside among them."""
    new_tokens: int = 256
    """The most tokens of a text. A model that reads fewer at once writes fewer."""
    temperature: float = 1.0
    """Temperature at which tokens are drawn, above 0. At 1 they have the model's own probabilities; lower values give
    likelier and more uniform text."""


def pin(config: SampledConfig, cache: Path) -> tuple[SampledConfig, dict[str, Path]]:
    """Return `config` with the number of texts that are set aside.

    Raises:
        UserError: an option is outside its range.
    """
    require(config.rows >= 2, "data.rows", "at least 2", config.rows)
    require(config.new_tokens >= SHORTEST, "data.new_tokens", f"at least {SHORTEST}", config.new_tokens)
    require(0 < config.temperature < math.inf, "data.temperature", "above 0", config.temperature)
    return replace(config, validation_rows=min(config.validation_rows, max(config.rows // HELD_OUT, 1))), {}


def build(config: SampledConfig, inputs: Mapping[str, Path], context: Context) -> Built:
    """Return what the model of `inputs["model"]` draws, one row a text.

    The texts are in `texts.jsonl`, which a killed run goes on with.

    Raises:
        UserError: the tokenizer has no token that begins a text, or no text is long enough.
    """

    def begin(first: int) -> Write:
        from stages.data.draws import Drawer

        model, options = inputs["model"] / "model", {"dtype": config.dtype, "device": context.device}
        return Drawer(model, new_tokens=config.new_tokens, temperature=config.temperature, **options).draw

    journal = Journal(context.output / "texts.jsonl", config.rows)
    write_blocks(journal, begin, size=BLOCK, seed=config.seed)
    rows = [Row("", line["text"], config.name) for line in journal.rows if _is_text(line)]
    if not rows:
        raise UserError(
            f"data={config.name}: the model ends every text before its {SHORTEST}th token. Recover and calibrate on "
            "text that it does not write: data=general."
        )
    source: JSON = {"new_tokens": config.new_tokens, "temperature": config.temperature, "drawn": len(journal.rows)}
    source |= {"tokens": sum(line["tokens"] for line in journal.rows)}
    source |= {"unfinished": sum(not line["finished"] for line in journal.rows)}
    return Built(rows=rows, source=source | {"left_out": len(journal.rows) - len(rows)})


def _is_text(line: JSON) -> bool:
    return line["tokens"] >= SHORTEST and bool(line["text"].strip())

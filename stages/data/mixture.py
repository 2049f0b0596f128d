"""The mixture data set: several data sets with weights, which are shares of the tokens trained on.

A share is of tokens and not of rows, because rows of different data sets differ by orders of magnitude in length. It
holds at every point of the training to within a row of each part. Rows are drawn when they are tokenised
(`stages.rows.stream`): each part has an order of its own without replacement, and a new one after its last row. Every
part is a data stage of its own in the graph, cached by itself and the same artifact as `data=PART` alone.

A part sets aside as many rows as the mixture unless its options say otherwise. The mixture takes the first of these, in
shares of their bytes. No part's held-out text is trained on, even where another part has it among its rows. Text that
a model makes up is not held out for the mixture: its held-out rows are those that it has without that part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from stages.common.files import read_json, read_jsonl
from stages.data.config import DataConfig, Part
from stages.data.rows import Built, Row, row_of
from stages.errors import UserError
from stages.rows.interleave import interleave
from stages.stage import Context

MIXTURES = ("mixture", "general", "plain", "best")
"""The data sets that are mixtures."""
MADE_UP = ("sampled",)
"""The data sets whose text is a model's own from the first token. A validation loss should be about real text."""


@dataclass(kw_only=True, slots=True)
class MixtureConfig(DataConfig):
    """The data sets of a mixture, and how much of each."""

    parts: Any = None
    """{data set: weight}, or {any name: {weight: …, data: data set, options of that data set}}. In a key it is {name:
    share}, with shares that sum to 1."""


def parts_of(config: MixtureConfig) -> dict[str, Part]:
    """Return the parts of a mixture by name, sorted.

    Raises:
        UserError: there are none, or a weight is missing or not positive.
    """
    if not isinstance(config.parts, Mapping) or not config.parts:
        raise UserError(
            f"data.parts={config.parts}: a mixture has parts with weights, "
            "'data.parts={commonsense: 0.7, passages: 0.3}'."
        )
    return {name: _part(name, said) for name, said in sorted(config.parts.items())}


def _part(name: str, said: Any) -> Part:
    options = dict(said) if isinstance(said, Mapping) else {"weight": said}
    weight, data = options.pop("weight", None), options.pop("data", name)
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight <= 0:
        raise UserError(f"data.parts.{name}: the weight must be a number above 0, and is {weight!r}.")
    if data in MIXTURES:
        raise UserError(f"data.parts.{name}: a mixture can't be a part of a mixture. Name its parts here.")
    return Part(data=str(data), options=options, where=f"data.parts.{name}", weight=float(weight))


def pin(config: MixtureConfig, cache: Path) -> tuple[MixtureConfig, dict[str, Path]]:
    """Return `config` with only the shares of its parts. The keys of the parts' own stages say what the parts are."""
    parts = parts_of(config)
    total = math.fsum(part.weight for part in parts.values())
    # Rounded to twelve digits, 0.6 of 0.8 is the same share as 3 of 4.
    return replace(config, parts={name: float(f"{part.weight / total:.12g}") for name, part in parts.items()}), {}


def label(config: MixtureConfig) -> str:
    """Return the rows' name, for labels."""
    return " + ".join(f"{name} {share:.4g}" for name, share in sorted(config.parts.items()))


def build(config: MixtureConfig, inputs: Mapping[str, Path], context: Context) -> Built:
    """Return the rows of the data sets in `inputs`, one part after the other.

    Raises:
        UserError: the parts set too few rows aside, or a part has none left.
    """
    validation = {name: [row_of(line) for line in read_jsonl(inputs[name] / "validation.jsonl")] for name in inputs}
    real = [name for name in sorted(inputs) if read_json(inputs[name] / "data.json")["name"] not in MADE_UP]
    held = interleave(
        {name: iter(validation[name]) for name in real or sorted(inputs)},
        config.parts,
        lambda row: len(row.text.encode()),
    )
    drawn = list(islice(held, config.validation_rows))
    if len(drawn) < config.validation_rows:
        raise UserError(
            f"data.validation_rows={config.validation_rows} asks for more rows than the parts set aside in these "
            f"shares ({len(drawn)}). Ask for fewer, or let the parts set more aside: data.parts.NAME.validation_rows."
        )
    texts = {row.text for rows in validation.values() for row in rows}
    source: dict[str, Any] = {"parts": []}
    return Built(rows=_rows(config, inputs, texts, source), source=source, validation=drawn)


def _rows(config: MixtureConfig, inputs: Mapping[str, Path], held: set[str], source: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows part by part. `source` records how many rows each part has, so that a reader can divide them."""
    for name, share in sorted(config.parts.items()):
        count = 0
        for line in read_jsonl(inputs[name] / "train.jsonl"):
            if (row := row_of(line)).text not in held:
                count += 1
                yield row
        if not count:
            raise UserError(f"the part '{name}' has no row that another part does not hold out. Leave it out.")
        source["parts"].append({"name": name, "weight": share, "rows": count})

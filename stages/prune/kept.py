"""What pruning.json says that each layer kept. No torch here: what reads it only shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIZES = ("heads", "kv_heads", "mlp")


def kept_of(record: Mapping[str, Any]) -> list[Mapping[str, Sequence[int]]]:
    """Return, for each layer of the dense model, the indices of its query heads, key/value heads and MLP channels.

    A layer that was removed keeps none. `record` is the content of pruning.json.
    """
    return [kept or dict.fromkeys(SIZES, ()) for kept in record["layers"]]

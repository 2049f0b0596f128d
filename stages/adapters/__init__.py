"""Adapters by name. No torch here: a plan reads this; building one imports it."""

from __future__ import annotations

from stages.adapters import (
    dora,
    dora_rs,
    full,
    lora,
    lora_plus,
    olora,
    parallel,
    pissa,
    prefix,
    rora,
    series,
)
from stages.adapters.adapter import Adapter
from stages.common.choices import lookup
from stages.recover.check import DTYPES, check_recover, require
from stages.recover.config import RecoverStageConfig

ADAPTERS: dict[str, Adapter] = {
    "rora": rora.RORA,
    "lora": lora.LORA,
    "dora": dora.DORA,
    "dora_rs": dora_rs.DORA_RS,
    "lora_plus": lora_plus.LORA_PLUS,
    "pissa": pissa.PISSA,
    "olora": olora.OLORA,
    "full": full.FULL,
    "prefix": prefix.PREFIX,
    "series": series.SERIES,
    "parallel": parallel.PARALLEL,
}


def gives_model(config: RecoverStageConfig) -> bool:
    """Return whether the recovery ends up in weights of the base's own shape, and not in an adapter beside it."""
    adapter = ADAPTERS[config.adapter.name]
    return adapter.trained is not None or (adapter.merge is not None and config.recover.merge)


def adapter_of(config: RecoverStageConfig) -> Adapter:
    """Return the adapter that `config` names, all of it checked.

    Raises:
        UserError: a field is outside its range; the message has the field, the rule and the value.
    """
    adapter = lookup("adapter", config.adapter.name, ADAPTERS)
    adapter.check(config.adapter)
    check_recover(config.recover)
    require(config.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}", config.dtype)
    return adapter

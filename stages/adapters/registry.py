"""Every adapter by name. No torch here: a plan reads this; attaching an adapter imports it."""

from __future__ import annotations

from stages.adapters import (
    dora,
    dora_rs,
    full,
    hira,
    lora,
    lora_plus,
    miss,
    olora,
    parallel,
    pissa,
    prefix,
    rora,
    series,
    shira,
)
from stages.adapters.adapter import Adapter

ADAPTERS: dict[str, Adapter] = {
    "rora": rora.RORA,
    "lora": lora.LORA,
    "dora": dora.DORA,
    "dora_rs": dora_rs.DORA_RS,
    "lora_plus": lora_plus.LORA_PLUS,
    "pissa": pissa.PISSA,
    "olora": olora.OLORA,
    "miss": miss.MISS,
    "shira": shira.SHIRA,
    "hira": hira.HIRA,
    "full": full.FULL,
    "prefix": prefix.PREFIX,
    "series": series.SERIES,
    "parallel": parallel.PARALLEL,
}

"""What is added to a command of a page so that it is tiny. Run as a script, it prints that for its arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

try:
    from helpers.plain import plain
except ModuleNotFoundError:  # run as a script
    from plain import plain

OF_A_WHEEL = ("commonsense", "passages", "arc")
"""Data sets that read a wheel of rows; the tiny wheel is theirs."""

WITHOUT_RANK = ("none", "full", "prefix", "series", "parallel")
"""Adapters that have no rank."""


def added(arguments: Sequence[str]) -> list[str]:
    """Return the overrides that follow `arguments`: small numbers and, unless they name a model, the tiny one.

    `SMALL` and `MODEL_HERE` of the environment have both.
    """
    given = {name.lower(): value for name, _, value in (argument.partition("=") for argument in arguments)}
    small = os.environ["SMALL"].split()
    recommended = given.get("experiment") == "recommended"
    small += plain(arguments)
    if given.get("data", "commonsense") not in OF_A_WHEEL or recommended:
        small = [override for override in small if not override.startswith("data.wheel")]
    if _halved(given.get("ratio", "0")) and "adapter.rank" not in given and given.get("adapter") not in WITHOUT_RANK:
        small.append("adapter.rank=8")  # what stays of the tiny k_proj may be one head of 8 outputs
    if "runtime" in given:
        small.remove("runtime=cpu")
    if given.get("prune") == "best" or recommended:  # its text would come from the real wheel
        small += ["prune.calibration.data=null", "prune.calibration.length=64"]
    return small + ([] if "model" in given else os.environ["MODEL_HERE"].split())


def _halved(ratios: str) -> bool:
    """Return whether any of these ratios, with commas between them, removes half of the model or more."""
    return any(float(ratio) >= 0.5 for ratio in ratios.split(","))


if __name__ == "__main__":
    print(*added(sys.argv[1:]), sep="\n")

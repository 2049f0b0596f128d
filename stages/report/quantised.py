"""Sentences on the last model in few bits: what it weighs, and how it was judged."""

from __future__ import annotations

from stages.stage import JSON

HOW = {
    "gptq": "by GPTQ, calibrated on the recovery's text",
    "nearest": "by rounding to the nearest",
    "gguf": "by the gguf package, as a file for llama.cpp",
}
JUDGED = {
    "gguf": "It was judged with the file's weights, dequantised",
    "w4a16": "It was judged as transformers loads it with compressed-tensors: with its weights dequantised",
}
INPUTS = (
    "It was judged as transformers loads it with compressed-tensors: with its weights dequantised, and with the inputs "
    "of each matrix rounded to 8 bits, token by token"
)


def quantised_notes(record: JSON | None) -> list[str]:
    """Return notes on the quantised model whose record is given; none without one."""
    if record is None:
        return []
    before, after = record["bytes"].get("before"), record["bytes"]["after"]
    size = f"{after / 1e6:,.1f} MB" + (f" in place of {before / 1e6:,.1f} MB" if before else "")
    judged = JUDGED.get(record["method"]) or JUDGED.get(record["scheme"], INPUTS)
    return [
        f"The quantised model is the last model in {record['scheme']}, rounded {HOW[record['method']]}: {size}. "
        f"{judged}. Nothing here executes it in few bits, so its speed was not measured."
    ]

"""Stanford Alpaca's prompts: an instruction, with or without an input.

Taori et al., "Stanford Alpaca: An Instruction-following LLaMA model" (2023), `PROMPT_DICT` of its train.py, to the
character: the output follows "### Response:" at once. LLM-Pruner and alpaca-lora put a line break between the two.
"""

from __future__ import annotations

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def prompt_of(instruction: str, given: str) -> str:
    """Return the prompt of `instruction`. `given` is its input, empty where it has none."""
    return (
        WITH_INPUT.format(instruction=instruction, input=given)
        if given
        else WITHOUT_INPUT.format(instruction=instruction)
    )

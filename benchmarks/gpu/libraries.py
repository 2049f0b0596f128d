"""The libraries of all checks, imported once for their processes. A missing one costs the checks that need it."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

NAMES = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "peft",
    "lm_eval.models.huggingface",
    "stages.recover.stage",
    "stages.prune.stage",
    "stages.inference.generator",
)

for name in NAMES:
    with suppress(ModuleNotFoundError):
        import_module(name)

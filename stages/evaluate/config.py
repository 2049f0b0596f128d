"""What decides an evaluation. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """The likelihood protocol: zero-shot multiple choice as lm-eval defines it, and perplexity of held-out passages."""

    protocol: str = "likelihood"
    tasks: list[str] = field(default_factory=list)
    """lm-eval's task names."""
    limit: int | None = 100
    """Documents a task (the first ones, as lm-eval's --limit takes them); null takes all."""
    passages: int = 64
    """Held-out Wikipedia passages whose perplexity is taken; 0 takes none."""
    dtype: str = "float32"
    """Precision of the forward passes, "float32" or "bfloat16" (the plan resolves "auto")."""
    batch_tokens: int = 4096
    """Tokens, padding included, in one forward pass: memory against speed."""


@dataclass(kw_only=True, slots=True)
class CostConfig:
    """How the running cost of the models is measured, in alternation in one process."""

    prompt_tokens: int = 128
    new_tokens: int = 8
    repeats: int = 5
    dtype: str = "float32"
    device: str = "cpu"
    """Where it is measured; with `processor` and `threads` part of the key, because a time belongs to its machine."""
    processor: str = ""
    threads: int | None = None
    """Processor threads; None is torch's own choice."""

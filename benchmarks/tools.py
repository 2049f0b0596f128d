"""The two tools under one interface: lm-eval's `HFLM` and ours. Each times its own calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.evaluate.generation import finished
from stages.inference.generator import Generator
from stages.inference.scorer import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Result = TypeVar("Result")
Request = tuple[str, str]
"""A context and the continuation whose log-likelihood is asked for."""
Answer = tuple[float, bool]
"""A log-likelihood in nats, and whether greedy decoding would give the continuation."""


class Tool(Protocol):
    """A tool of the comparison. Each method returns the seconds it took and its results."""

    def loglikelihoods(self, requests: Sequence[Request]) -> tuple[float, list[Answer]]:
        """Score (context, continuation) pairs, tokenisation included."""
        ...

    def generate(self, prompts: Sequence[str], new_tokens: int, tasks: Sequence[str] = ()) -> tuple[float, list[str]]:
        """Continue prompts greedily. With `tasks`, stop at an answer of any of them if the tool can."""
        ...


class Stock:
    """lm-eval's `HFLM`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)

    def set_batch_size(self, size: int) -> None:
        """Use batches of `size` requests from now on."""
        self.lm.batch_size_per_gpu = size

    def loglikelihoods(self, requests: Sequence[Request]) -> tuple[float, list[Answer]]:
        """Return what `HFLM.loglikelihood` answers."""
        instances = [Instance("loglikelihood", {}, request, index) for index, request in enumerate(requests)]
        return _timed(lambda: self.lm.loglikelihood(instances, disable_tqdm=True))

    def generate(self, prompts: Sequence[str], new_tokens: int, tasks: Sequence[str] = ()) -> tuple[float, list[str]]:
        """Return what `HFLM.generate_until` writes. It ends at end-of-text or at `new_tokens`, whatever the tasks."""
        options = {"until": [], "max_gen_toks": new_tokens, "do_sample": False}
        instances = [
            Instance("generate_until", {}, (prompt, dict(options)), index) for index, prompt in enumerate(prompts)
        ]
        return _timed(lambda: self.lm.generate_until(instances, disable_tqdm=True))


class Ours:
    """`Scorer` and `Generator` at their defaults."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.scorer = Scorer(model, tokenizer)
        self.generator = Generator(self.scorer)

    def loglikelihoods(self, requests: Sequence[Request]) -> tuple[float, list[Answer]]:
        """Return what `Scorer.loglikelihoods` answers, with none of the requests' strings seen before."""
        return _timed(lambda: self.scorer.loglikelihoods(requests))

    def generate(self, prompts: Sequence[str], new_tokens: int, tasks: Sequence[str] = ()) -> tuple[float, list[str]]:
        """Return what `Generator.generate` writes."""
        answered = [finished(task) for task in tasks]
        stop = (lambda text: any(done(text) for done in answered)) if answered else None
        return _timed(lambda: self.generator.generate(prompts, new_tokens=new_tokens, stop=stop))


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    started = time.perf_counter()
    result = work()  # both tools return Python values, so a GPU has finished too
    return time.perf_counter() - started, result


TOOLS: dict[str, Callable[[PreTrainedModel, PreTrainedTokenizerBase], Tool]] = {"stock": Stock, "ours": Ours}
"""The tools by name."""


def opened(name: str, model: Path, dtype: str, device: str) -> Tool:
    """Return the tool `name` over the model in a directory."""
    return TOOLS[name](load_model(model, dtype=dtype, device=device), load_tokenizer(model))

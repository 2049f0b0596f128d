"""lm-eval's interface to a language model, over this project's scorer and generator.

With this interface every task of lm-eval can be asked, also by lm-eval's own evaluator:

    lm_eval.evaluator.evaluate(FastLM(Scorer(model, tokenizer)), tasks)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from stages.common.progress import progress
from stages.errors import UserError
from stages.evaluate.fitting import REMEDY, scored
from stages.inference.fitting import InParts
from stages.inference.generator import Generator
from stages.inference.scorer import Answer, Scorer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Options = dict[str, Any]
"""Options of generation in lm-eval's definitions: until, max_gen_toks, do_sample, temperature, …"""
NEW_TOKENS = 256
"""lm-eval's own limit of new tokens where a definition sets none."""


class FastLM(LM):  # type: ignore[misc]
    """A model that answers lm-eval's requests as `HFLM` does: with the same log-likelihoods and the same greedy text.

    It keeps no cache of answers, because lm-eval's own is not keyed by model.
    """

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.generator = Generator(scorer)
        self.in_parts = InParts(REMEDY)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in lm-eval's caches of requests."""
        return str(self.scorer.encoder.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation in the form of the tokenizer's template."""
        text = self.scorer.encoder.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """Return, for each (context, continuation), its log-likelihood in nats and whether it is greedy."""
        queries = self.scorer.encoder.queries([request.args for request in requests])
        with progress("log-likelihoods", total=len(queries), unit="choice", silent=disable_tqdm) as bar:
            return scored(self.scorer, queries, bar.update)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows as long as the model reads."""
        windows = [self.scorer.encoder.passage(request.args[0], special_tokens=True) for request in requests]
        with progress("log-likelihoods", total=sum(map(len, windows)), unit="window", silent=disable_tqdm) as bar:
            answers = iter(scored(self.scorer, [query for queries in windows for query in queries], bar.update))
        return [sum(next(answers)[0] for _ in queries) for queries in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the model's greedy continuation of each context, up to the first of its stop strings."""
        with progress("answers", total=len(requests), unit="answer", silent=disable_tqdm) as bar:
            return self.write([request.args for request in requests], bar.update)

    def write(self, requests: Sequence[tuple[str, Options]], advance: Callable[[int], object] = int) -> list[str]:
        """Return the same for (context, options) pairs. Pairs with equal options are written together.

        Raises:
            UserError: an option asks for sampling or beams. Only greedy decoding is done here.
        """
        groups: dict[str, list[int]] = {}
        for index, (_, options) in enumerate(requests):
            groups.setdefault(json.dumps(options, sort_keys=True, default=str), []).append(index)
        written = [""] * len(requests)
        for group in groups.values():
            texts = self._greedy([requests[index][0] for index in group], requests[group[0]][1], advance)
            for index, text in zip(group, texts, strict=True):
                written[index] = text
        return written

    def _greedy(self, contexts: list[str], options: Options, advance: Callable[[int], object]) -> list[str]:
        wanted = normalize_gen_kwargs(options, NEW_TOKENS)
        if wanted.get("do_sample") or wanted.get("temperature") or wanted.get("num_beams", 1) != 1:
            raise UserError(
                f"a task asks for {options}: only greedy decoding is done here. Set do_sample: false in its "
                "definition, or leave it out of evaluate.tasks."
            )
        until = [term for term in wanted.get("until") or [] if term]
        # A stop string that is an added token ends a text as that token: decoding leaves special tokens out.
        special = self.scorer.encoder.tokenizer.get_added_vocab()
        ends = frozenset(special[term] for term in until if term in special)
        write = partial(
            self.generator.generate,
            new_tokens=wanted["max_gen_toks"],
            stop=lambda text: any(term in text for term in until),
            ends=ends,
        )
        texts = self.in_parts(lambda some, done: write(some, advance=done), contexts, advance)
        return [postprocess_generated_text(text, until, None) for text in texts]

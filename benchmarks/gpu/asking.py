"""Scoring and writing on the device: beside a processor's results on a toy, and beside `HFLM` in speed on a slice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu.agreement import agreed, difference
from benchmarks.gpu.check import Found, Part, Row, Setting
from benchmarks.gpu.device import emptied
from benchmarks.gpu.slices import WHOLE, byte_tokenizer, llama, toy
from stages.decoders.drawing import inverted
from stages.inference.generator import Generator, Sampling, Written
from stages.inference.scorer import Scorer
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from benchmarks.tools import Ours, Request, Stock

NATS = 1e-4
"""The largest difference of a log-likelihood, as a share of it."""
TIE = 1e-4
"""The largest difference of two logits, or of two random numbers, that rounding may decide."""
NEW_TOKENS = 12
"""Tokens that are written after a prompt, to be compared."""
BATCHES = (16, 64, 256)
"""Batch sizes of `HFLM` that are tried."""


def scorer(setting: Setting, found: Found) -> Part:
    """Compare log-likelihoods of choices that share their questions."""
    asked = requests(6, words=12)
    one, other = (Scorer(toy(device), byte_tokenizer()).loglikelihoods(asked) for device in ("cpu", setting.device))
    apart = difference([nats for nats, _ in one], [nats for nats, _ in other])
    return agreed("log-likelihoods", {"choices": apart}, allowed=NATS, wrong=[])


def generator(setting: Setting, found: Found) -> Part:
    """Compare what is written greedily and with the same random numbers.

    Each token is compared with the one that a processor writes after the same text, so a near-tie is no error and has
    no consequences.
    """
    asked = [byte_tokenizer()(prompt)["input_ids"] for prompt, _ in requests(4, words=6)[::4]]
    model, wrong, equal = toy("cpu"), 0, 0
    for way in (None, Sampling(temperature=1.0, seeds=[str(place) for place in range(len(asked))])):
        texts, here = (_written(device, asked, way) for device in (setting.device, "cpu"))
        equal += sum(one == other for one, other in zip(texts, here, strict=True))
        for place, (prompt, text) in enumerate(zip(asked, texts, strict=True)):
            wrong += misplaced(model, prompt, text, None if way is None else way.seeds[place])
    words = f"{equal} of {2 * len(asked)} equal a processor's, {wrong} tokens beyond a tie"
    return Part(
        {"texts": 2 * len(asked), "equal": equal, "misplaced": wrong, "tie": TIE},
        [Row("texts written", words, "0 tokens")],
        [f"{wrong} tokens are others than a processor's, and no ties"] if wrong else [],
    )


def _written(device: str, prompts: list[list[int]], way: Sampling | None) -> list[Written]:
    generator = Generator(Scorer(toy(device), byte_tokenizer()))
    return generator.continuations(prompts, new_tokens=NEW_TOKENS, sampling=way)


@torch.no_grad()
def misplaced(model: PreTrainedModel, prompt: list[int], text: Written, seed: str | None) -> int:
    """Return how many tokens of `text` are others than `model` writes after those before, beyond a tie.

    Without a `seed` the token of the highest logit is right, and every one whose logit is within `TIE` of that. With a
    `seed` the token is right that its number draws, and every one that a number within `TIE` of it draws. A text that
    is too short has one such token.
    """
    tokens = text.tokens if text.end is None else [*text.tokens, text.end]
    token_T = torch.tensor(tokens)
    logits_TV = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    if seed is None:
        right_T = logits_TV.gather(1, token_T[:, None])[:, 0] >= logits_TV.amax(1) - TIE
    else:
        stream = random.Random(seed)
        drawn_T = torch.tensor([stream.random() for _ in tokens], dtype=torch.float64)
        least_T, most_T = (inverted(logits_TV.softmax(-1), (drawn_T + by).clamp(0, 1)) for by in (-TIE, TIE))
        right_T = (least_T <= token_T) & (token_T <= most_T)
    return int((~right_T).sum()) + (text.end is None and len(tokens) < NEW_TOKENS)


def requests(questions: int, *, words: int) -> list[Request]:
    """Return questions of random words with four choices each."""
    drawn = random.Random(0)
    names = ("north", "seven", "stone", "river", "light", "under")
    contexts = [
        f"Question: {' '.join(drawn.choices(names, k=words + index % words))}?\nAnswer:" for index in range(questions)
    ]
    return [(context, f" {' '.join(drawn.choices(names, k=2))}") for context in contexts for _ in range(4)]


def scoring(setting: Setting, found: Found) -> Part:
    """Measure log-likelihoods a second against the best of `HFLM`'s batch sizes."""
    asked = requests(4 if setting.toy else 200, words=6 if setting.toy else 40)
    ours, stock = _tools(setting)
    ours.loglikelihoods(asked[:8])
    seconds = {"ours": ours.loglikelihoods(asked)[0]}
    for size in BATCHES[:1] if setting.toy else BATCHES:
        stock.set_batch_size(size)
        with _fitting(setting.device):
            stock.loglikelihoods(asked[:8])
            seconds[f"HFLM, batches of {size}"] = stock.loglikelihoods(asked)[0]
    return _against_stock("log-likelihoods", len(asked), seconds, "4 times")


def writing(setting: Setting, found: Found) -> Part:
    """Measure greedily written tokens a second against the best of `HFLM`'s batch sizes."""
    count, new_tokens = (4, 4) if setting.toy else (64, 64)
    prompts = [prompt for prompt, _ in requests(count, words=6 if setting.toy else 40)[::4]]
    ours, stock = _tools(setting)
    ours.generate(prompts[:2], 4)
    seconds = {"ours": ours.generate(prompts, new_tokens)[0]}
    for size in BATCHES[:1] if setting.toy else BATCHES[:2]:
        stock.set_batch_size(size)
        with _fitting(setting.device):
            stock.generate(prompts[:2], 4)
            seconds[f"HFLM, batches of {size}"] = stock.generate(prompts, new_tokens)[0]
    return _against_stock("written tokens", count * new_tokens, seconds, "")


@contextmanager
def _fitting(device: str) -> Iterator[None]:
    """Leave the block where memory runs out: such a batch size is none that `HFLM` could have."""
    with suppress(torch.OutOfMemoryError):
        yield
    emptied(device)


def _tools(setting: Setting) -> tuple[Ours, Stock]:
    """Return both tools over one model."""
    from benchmarks.tools import Ours, Stock

    emptied(setting.device)
    model = llama(setting, layers=2 if setting.toy else WHOLE if setting.full else 8)
    model.generation_config.eos_token_id = byte_tokenizer().eos_token_id
    return Ours(model, byte_tokenizer()), Stock(model, byte_tokenizer())


def _against_stock(what: str, count: int, seconds: dict[str, float], wanted: str) -> Part:
    rates: JSON = {name: count / taken for name, taken in seconds.items()}
    best = max((name for name in rates if name != "ours"), key=lambda name: float(rates[name]))
    ratio = rates["ours"] / rates[best]
    words = f"{rates['ours']:,.0f} a second, {ratio:.1f} times {best} ({rates[best]:,.0f})"
    return Part({"per_second": rates, "ours_over_stock": ratio}, [Row(what, words, wanted)])

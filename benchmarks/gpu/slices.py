"""Llamas with random weights, made on the device, and text for them: nothing is fetched and no file of weights read.

The shape is that of conf/model/llama-7b.yaml, with fewer layers. On a processor it is a toy.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.gpu.check import Setting
from stages.decoders.architecture import DTYPES
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONF = Path(__file__).resolve().parents[2] / "conf"
WHOLE = 32
"""Layers of a 7B."""
TOY: JSON = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
TOY_LAYERS = 2
END = "<|end|>"


def llama(
    setting: Setting,
    *,
    layers: int,
    dtype: str | None = None,
    channels: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> PreTrainedModel:
    """Return a llama of `layers` layers with the initial weights of `seed`, on the setting's device unless named."""
    shape = shape_of(setting, layers) | ({"intermediate_size": channels} if channels else {})
    torch.manual_seed(seed)
    with torch.device(device or setting.device):
        model: PreTrainedModel = LlamaForCausalLM._from_config(
            LlamaConfig(**shape), dtype=DTYPES[dtype or setting.dtype]
        )
    return model.eval()


def toy(device: str, *, seed: int = 0) -> PreTrainedModel:
    """Return a toy of two layers in float32 with the same weights on every device, because a processor draws them."""
    return llama(Setting(device="cpu"), layers=TOY_LAYERS, seed=seed).to(device)


def shape_of(setting: Setting, layers: int) -> JSON:
    """Return the fields of the config of a 7B, or of a toy, with another number of layers."""
    whole: JSON = yaml.safe_load((CONF / "model" / "llama-7b.yaml").read_text(encoding="utf-8"))["shape"]
    small = TOY | {"vocab_size": len(alphabet())} if setting.toy else {}
    return whole | small | {"max_position_embeddings": 4096, "num_hidden_layers": layers}


def alphabet() -> list[str]:
    """Return the tokens of `byte_tokenizer`: bytes, and the end of a text."""
    return [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for every byte, so that a text of n letters has n tokens."""
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def lengths(tokens: int, *, longest: int, seed: int = 0) -> Iterator[int]:
    """Yield lengths of documents, together at least `tokens`: of rows of many kinds, half of them below 150 tokens."""
    drawn, total = random.Random(seed), 0
    while total < tokens:
        length = min(max(int(drawn.lognormvariate(5, 0.8)), 16), longest)
        total += length
        yield length


def rows(tokens: int, *, longest: int, seed: int = 0) -> list[JSON]:
    """Return rows of random letters with together at least `tokens` tokens, none of which share a beginning."""
    drawn = random.Random(seed)
    return [
        {"prompt": "", "response": "".join(drawn.choices(string.ascii_letters, k=length - 1)), "task": "letters"}
        for length in lengths(tokens, longest=longest, seed=seed)
    ]


def questions(count: int, *, seed: int = 0) -> list[JSON]:
    """Return rows with an instruction that all share, a question of random words, and an answer."""
    drawn = random.Random(seed)
    words = ("red", "green", "blue", "or", "and", "not")
    asked = (" ".join(drawn.choices(words, k=4 + index % 9)) for index in range(count))
    return [
        {"prompt": f"Answer the question. Is it {each}? ", "response": f"yes, {each}", "task": "ask"} for each in asked
    ]


def calibration(sequences: int, length: int, *, vocabulary: int, device: str = "cpu") -> Tensor:
    """Return random token ids [sequences, length], the same on every device."""
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (sequences, length), generator=drawn).to(device)

"""Small models as the stages leave them, pruned in every way, with a tokenizer, for the tests of the exports."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from helpers.decoders import decoder
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from stages.decoders.checkpoint import save_cut_model
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.prune.groups import Kept, Selection, keep_all, kept_shape
from stages.prune.surgery import cut

ALL = keep_all(LayerShape(6, 3, 40))
HEADS = Kept([0, 1, 4, 5], [0, 2], list(range(3, 34)))
SELECTIONS: dict[str, Selection | None] = {
    "dense": None,
    "heads": Selection([HEADS] * 3),
    "hidden": Selection([HEADS] * 3, [channel for channel in range(48) if channel % 8 != 5]),
    "layers": Selection([None, ALL, ALL]),
    "differing": Selection([ALL, HEADS, ALL]),
    "attention": Selection([Kept([], [], ALL.mlp), ALL, Kept([], [], HEADS.mlp)]),
    "mlp": Selection([ALL, ALL, Kept(ALL.heads, ALL.kv_heads, [])]),
}
"""What stays, by what was removed."""
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window_pattern": 6},
}
"""What a family needs for llama.cpp to take it."""


def pruned(directory: Path, family: str = "llama", kind: str = "dense", **options: Any) -> Path:
    """Write a model of `family`, pruned by `kind`, to `directory`; returns the model directory."""
    fields = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "use_sliding_window": False}
    model = decoder(family, **fields | OWN.get(family, {}) | options)
    byte_tokenizer().save_pretrained(directory / "dense")
    model.save_pretrained(directory / "dense")
    selection, shape = SELECTIONS[kind], DecoderShape.from_config(model.config.to_dict())
    cut_model = copy.deepcopy(model)
    if selection is not None:
        cut(cut_model, selection)
        shape = kept_shape(shape, selection)
    target = directory / "model"
    save_cut_model(cut_model, shape, target, like=directory / "dense", dtype="float32", record={})
    return target


PIECES = ["▁t", "he", "▁the", "er", "in", "▁a", "re", "on", "▁c", "or", "an", "and", "▁an", "▁and", "ing"]
PIECES += ["▁cor", "▁corre", "en", "ent", "▁▁", "▁▁▁▁"]


def sentencepiece(*, merges: list[tuple[str, str]] | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer as transformers makes it from a sentencepiece model: bytes, pieces, characters."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    vocabulary += [character for character in "▁abcdefghijklmnopqrstuvwxyz" if character not in PIECES]
    known = set(vocabulary)
    every = [
        (piece[:at], piece[at:]) for piece in PIECES for at in range(1, len(piece)) if {piece[:at], piece[at:]} <= known
    ]
    model = models.BPE(
        {token: number for number, token in enumerate(vocabulary)},
        every if merges is None else merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [AddedToken(token, special=True, normalized=False) for token in vocabulary[:3]]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def with_splitting(*steps: Any) -> PreTrainedTokenizerFast:
    """Return the byte-level tokenizer, splitting text by `steps`."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return tokenizer

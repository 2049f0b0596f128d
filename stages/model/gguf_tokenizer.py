"""The tokenizer of a GGUF file, as llama.cpp splits text by it.

transformers reads such tokenizers too, but each as that of one model: splitting, the tokens put around a text, and
tokens that are found before the text is split get lost. Here they are read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stages.decoders.gguf_header import Header
from stages.decoders.gguf_splitting import BYTE, GPT2, SPACE, SPLITTINGS
from stages.errors import UserError
from stages.stage import JSON

log = logging.getLogger(__name__)

NONE = (None, "none", "no_vocab")
"""What a file without a tokenizer has for its kind."""
OTHERS = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "phi-2": "gpt-2"}
"""Other names of llama.cpp's for splittings that are known."""
WITH_BOS = ("llama-bpe", "tekken")
"""Splittings with which a text begins with its token where the file does not say."""
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_in(header: Header) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer of a GGUF file; None where the file has none.

    Raises:
        UserError: the tokenizer is of another kind, or contradicts itself.
    """
    kind = _field(header, "model")
    if kind in NONE:
        return None
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(kind) if isinstance(kind, str) else None
    if build is None:
        raise _refused(header, f"it is of the kind '{kind}', and read are gpt2 and llama")
    tokens, types = _tokens(header)
    try:
        tokenizer, begins = build(header, tokens, types)
        for types_, special in (((TokenType.CONTROL, TokenType.UNKNOWN), True), ((TokenType.USER_DEFINED,), False)):
            tokenizer.add_tokens(
                [
                    AddedToken(token, special=special, normalized=False)
                    for token, type_ in zip(tokens, types, strict=True)
                    if type_ in types_
                ]
            )
        roles = _roles(header, tokens)
        tokenizer.post_processor = _around(header, tokenizer, roles, begins)
        named = {f"{role}_token": token for role, token in roles.items()}
        template = header.fields.get("tokenizer.chat_template")
        named |= {"chat_template": template} if isinstance(template, str) else {}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    except (UserError, MemoryError):
        raise
    # The library takes vocabulary and merges as they are, so wrong ones may fail anywhere.
    except Exception as error:
        raise _refused(header, " ".join(str(error).split())[:300]) from error


def _tokens(header: Header) -> tuple[list[str], list[int]]:
    """Return the text and the type of each token."""
    tokens = _field(header, "tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise _refused(header, "it has no tokens")
    types = _field(header, "token_type") or [int(TokenType.NORMAL)] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise _refused(header, f"it has {len(tokens):,} tokens and not as many types")
    return tokens, types


def _byte_level(header: Header, tokens: Sequence[str], types: Sequence[int]) -> tuple[Tokenizer, bool]:
    """Return a byte-level BPE tokenizer, and whether a text begins with a token where the file does not say."""
    told = _field(header, "pre")
    name = OTHERS.get(str(told), str(told))
    splittings = {named: splitting for splitting, named in SPLITTINGS.items()}
    if name not in splittings:
        log.warning(
            "%s splits text in llama.cpp's way '%s', which is not known here: it is read as gpt-2. Take the checkpoint "
            "that it was made from, if its tokens matter.",
            header.path,
            told,
        )
    expressions, whole_words = splittings.get(name, splittings["gpt-2"])
    merges = [tuple(merge.split(" ", 1)) for merge in _field(header, "merges") or []]
    tokenizer = Tokenizer(models.BPE(_vocabulary(tokens, types), merges, ignore_merges=whole_words))
    steps: list[Any] = [
        pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in expressions if expression != GPT2
    ]
    # GPT-2's own expression is the one that the last step, which turns bytes into characters, can split by itself.
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2 in expressions))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, name in WITH_BOS


def _sentencepiece(header: Header, tokens: Sequence[str], types: Sequence[int]) -> tuple[Tokenizer, bool]:
    """Return sentencepiece's BPE, and that a text begins with a token where the file does not say.

    llama.cpp joins the neighbours whose joint text has the highest score. So the merges are all pairs of tokens that
    make a token, those of the highest score first.
    """
    scores = _field(header, "scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise _refused(header, f"it has {len(tokens):,} tokens and not as many scores")
    vocabulary = _vocabulary(tokens, types)
    pieces = {token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.NORMAL}
    order = sorted((number for number, token in enumerate(tokens) if token in pieces), key=lambda n: -scores[n])
    merges = [
        (tokens[number][:at], tokens[number][at:])
        for number in order
        for at in range(1, len(tokens[number]))
        if tokens[number][:at] in pieces and tokens[number][at:] in pieces
    ]
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.UNKNOWN), None)
    fallback = any(BYTE.fullmatch(token) for token in tokens)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback))
    prefix = _field(header, "add_space_prefix") is not False
    before = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return tokenizer, True


def _vocabulary(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """Return the number of each token. One that is there for an embedding without a token is left out."""
    return {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != TokenType.UNUSED
    }


def _roles(header: Header, tokens: Sequence[str]) -> dict[str, str]:
    """Return the special tokens of those roles that the file gives."""
    numbers = {role: _field(header, f"{name}_token_id") for role, name in ROLES.items()}
    for role, number in numbers.items():
        if number is not None and (type(number) is not int or not 0 <= number < len(tokens)):
            raise _refused(header, f"its {role} token is number {number} of {len(tokens):,}")
    return {role: tokens[number] for role, number in numbers.items() if number is not None}


def _around(header: Header, tokenizer: Tokenizer, roles: JSON, begins: bool) -> Any:
    """Return the step that puts special tokens around a text."""
    flags = {"bos": _field(header, "add_bos_token"), "eos": _field(header, "add_eos_token")}
    wanted = {
        "bos": begins if flags["bos"] is None else bool(flags["bos"]),
        "eos": bool(flags["eos"]),
    }
    found = {role: [roles[role]] if wanted[role] and role in roles else [] for role in wanted}
    single = [*found["bos"], "$A", *found["eos"]]
    special = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(found["bos"] + found["eos"])]
    pair = [*single, *found["bos"], "$B", *found["eos"]]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _field(header: Header, name: str) -> Any:
    return header.fields.get(f"tokenizer.ggml.{name}")


def _refused(header: Header, problem: str) -> UserError:
    return UserError(
        f"the tokenizer of {header.path} can't be read: {problem}. Take the checkpoint that the file was made from, as "
        "a directory with its tokenizer."
    )

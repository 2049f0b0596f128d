"""A GGUF file's tokenizer, from the tokenizer that transformers would use, whatever files that came from.

Two kinds can be written. The way text is split decides the kind, not the model's name:

* byte-level BPE ("gpt2"): `tokenizer.ggml.pre` names one of the splittings that llama.cpp knows (src/llama-vocab.cpp).
  It is found by comparing the regular expressions of the pre-tokenizer; any other splitting is refused.
* sentencepiece's BPE ("llama"): of neighbouring tokens whose joint text is a token, llama.cpp joins the pair with the
  highest score. A list of merges means the same on two conditions: every way to join a token's text from two others is
  in it, and these ways rank together. The rank is then the score. Both conditions are checked, and hold for lists made
  from a sentencepiece model.

A rule for which llama.cpp has no field is left out, and named in the file's card (`tokenizer_remarks`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gguf import TokenType

from stages.decoders.gguf_splitting import BYTE, GPT2, SPACE, SPLITTINGS
from stages.errors import UserError
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_fields(tokenizer: PreTrainedTokenizerBase, rows: int) -> JSON:
    """Return the header's fields of `tokenizer`, {"tokenizer.ggml.model": "gpt2", …}, for `rows` embeddings.

    Raises:
        UserError: llama.cpp can't split text as this tokenizer does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            "export=gguf: the tokenizer is not one of the tokenizers library, so how it splits text can't be read. "
            f"Convert it to a tokenizer.json first. {_INSTEAD}"
        )
    description = json.loads(backend.to_str())
    model = description["model"]
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _unknown(f"a model with {name}={model[name]!r}")
    if model["type"] != "BPE":
        raise _unknown(f"a model of type {model['type']}")
    steps = _steps(description["pre_tokenizer"], "pretokenizers")
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    specific = _byte_level(description, steps) if byte_level else _sentencepiece(description, steps)
    tokens, types = _tokens(description, rows, bytes_are_tokens=not byte_level)
    fields = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if not byte_level:
        fields["tokenizer.ggml.scores"] = _scores(description, tokens)
    return specific | fields | _special(tokenizer, rows) | _template(tokenizer)


def tokenizer_remarks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the kinds of text in which llama.cpp finds other tokens, because it has no field for a rule."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    found = []
    if any(step["type"] == "NFC" for step in _steps(description["normalizer"], "normalizers")):
        found.append("llama.cpp does not normalise unicode: give it text in the form NFC")
    if any(step.get("prepend_scheme") == "first" for step in _steps(description["pre_tokenizer"], "pretokenizers")):
        found.append("llama.cpp puts a space before text that begins with one or that follows a special token, too")
    stripping = [entry["content"] for entry in description["added_tokens"] if entry["lstrip"] or entry["rstrip"]]
    if stripping:
        found.append(f"llama.cpp keeps white space beside {', '.join(stripping)}, which the tokenizer takes away")
    return found


_INSTEAD = "Publish the Hugging Face directory instead: export=hf."


def _unknown(what: str) -> UserError:
    kinds = ", ".join(sorted(SPLITTINGS.values()))
    return UserError(
        f"export=gguf: llama.cpp can't split text as this tokenizer does ({what}). "
        f"Known: byte-level BPE split as {kinds}, and sentencepiece's BPE. {_INSTEAD}"
    )


def _steps(component: JSON | None, key: str) -> list[JSON]:
    """Return the steps of a normalizer or pre-tokenizer, with sequences unrolled."""
    if component is None:
        return []
    if component["type"] == "Sequence":
        return [step for part in component[key] for step in _steps(part, key)]
    return [component]


def _byte_level(description: JSON, steps: Sequence[JSON]) -> JSON:
    for step in _steps(description["normalizer"], "normalizers"):
        if step["type"] != "NFC":
            raise _unknown(f"a normalizer of type {step['type']}")
    splits = tuple(expression for step in steps for expression in _splits(step))
    model = description["model"]
    name = SPLITTINGS.get((splits, bool(model.get("ignore_merges"))))
    if name is None:
        raise _unknown(
            f"split by {' then '.join(splits) or 'nothing'}, ignore_merges={bool(model.get('ignore_merges'))}"
        )
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in _merges(model)],
    }


def _splits(step: JSON) -> list[str]:
    """Return the regular expressions by which one step of a pre-tokenizer splits."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return [GPT2] if regex else []
        case {"type": "Digits", "individual_digits": True}:
            return [r"\p{N}"]
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return [str(regex)]
    raise _unknown(f"a pre-tokenizer {json.dumps(step)}")


def _merges(model: JSON) -> list[tuple[str, str]]:
    """Return the pairs that are merged, in order. Older files hold a pair as "left right"."""
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


def _sentencepiece(description: JSON, steps: Sequence[JSON]) -> JSON:
    model = description["model"]
    if not model.get("byte_fallback"):
        raise _unknown("neither bytes nor sentencepiece's fallback to bytes")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": _space_prefix(description, steps),
    }


def _space_prefix(description: JSON, steps: Sequence[JSON]) -> bool:
    """Return whether a space is put before the text. Raise unless the rest only turns spaces into sentencepiece's."""
    normal = _steps(description["normalizer"], "normalizers")
    prepends = [step for step in normal if step == {"type": "Prepend", "prepend": SPACE}]
    replaces = [step for step in normal if step == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    if len(prepends) + len(replaces) != len(normal):
        raise _unknown(f"a normalizer {json.dumps(description['normalizer'], ensure_ascii=False)}")
    match list(steps):
        case []:
            known = bool(replaces)
        # The normalizer leaves no spaces, so this splits nowhere.
        case [{"type": "Split", "pattern": {"String": " "}}]:
            known = bool(replaces)
        case [{"type": "Metaspace", "replacement": replacement, "split": False, "prepend_scheme": scheme}]:
            known = replacement == SPACE and not normal
            return known and scheme != "never"
        case _:
            known = False
    if not known:
        raise _unknown(f"a pre-tokenizer {json.dumps(description['pre_tokenizer'], ensure_ascii=False)}")
    return bool(prepends)


def _tokens(description: JSON, rows: int, *, bytes_are_tokens: bool) -> tuple[list[str], list[int]]:
    """Return the text and the type of each token. Embeddings without a token get unused ones."""
    model = description["model"]
    by_id = {number: token for token, number in model["vocab"].items()}
    added = {entry["id"]: entry for entry in description["added_tokens"]}
    beyond = [token for number, token in by_id.items() if number >= rows and number not in added]
    if beyond:
        raise UserError(
            f"export=gguf: the tokenizer has {len(beyond)} tokens for which the model has no embedding ({rows} rows), "
            f"first {beyond[0]!r}. Put the tokenizer that belongs to the model beside it."
        )
    tokens, types = [], []
    for number in range(rows):
        if number in added:
            text, kind = added[number]["content"], TokenType.USER_DEFINED
            if added[number]["special"]:
                kind = TokenType.CONTROL
            elif bytes_are_tokens:
                text = text.replace(SPACE, " ")
        elif number in by_id:
            text, kind = by_id[number], TokenType.NORMAL
            if bytes_are_tokens and BYTE.fullmatch(text):
                kind = TokenType.BYTE
        else:
            text, kind = f"[PAD{number}]", TokenType.UNUSED
        if bytes_are_tokens and text == model.get("unk_token"):
            kind = TokenType.UNKNOWN
        tokens.append(text)
        types.append(int(kind))
    return tokens, types


def _scores(description: JSON, tokens: Sequence[str]) -> list[float]:
    """Return scores of the tokens under which llama.cpp joins pairs in the order of the merges."""
    model = description["model"]
    merges = _merges(model)
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, []).append(rank)
    _check_merges(model["vocab"], merges, ranks, {entry["content"] for entry in description["added_tokens"]})
    return [-float(ranks[token][0] if token in ranks else len(merges)) for token in tokens]


def _check_merges(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], ranks: Mapping[str, list[int]], added: set[str]
) -> None:
    known = set(merges)
    for token in vocabulary:
        if token in added or BYTE.fullmatch(token):
            continue
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        missing = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary and pair not in known]
        if missing:
            raise _unknown(f"a list of merges that is not sentencepiece's: {missing[0]} is not in it")
        found = ranks.get(token, [])
        if found and found[-1] - found[0] != len(found) - 1:
            raise _unknown(f"a list of merges that is not sentencepiece's: the merges to {token!r} are apart")


def _special(tokenizer: PreTrainedTokenizerBase, rows: int) -> JSON:
    """Return the ids of the special tokens, and which of them the tokenizer puts around a text."""
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    numbers = {role: getattr(tokenizer, f"{role}_token_id") for role in roles}
    # How the tokenizer treats a text shows what it adds, whatever its files say.
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    first, last = [numbers["bos"]], [numbers["eos"]]
    around = {(*bare,): (False, False), (*first, *bare): (True, False), (*bare, *last): (False, True)}
    around[(*first, *bare, *last)] = (True, True)
    if tuple(full) not in around:
        raise _unknown(f"'a' becomes {full}, which is not {bare} with a beginning or an end")
    add_bos, add_eos = around[tuple(full)]
    return {
        **{
            f"tokenizer.ggml.{name}_token_id": numbers[role]
            for role, name in roles.items()
            if numbers[role] is not None and numbers[role] < rows
        },
        "tokenizer.ggml.add_bos_token": add_bos,
        "tokenizer.ggml.add_eos_token": add_eos,
    }


def _template(tokenizer: PreTrainedTokenizerBase) -> JSON:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return {"tokenizer.chat_template": template} if template else {}

"""How llama.cpp's tokenizers split text, by the names that GGUF files have for it. No torch here."""

from __future__ import annotations

import re

SPACE = "\u2581"
"""The character that stands for a space in sentencepiece's tokens."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+@|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*@"
)
REST = r" ?[^\s\p{L}\p{N}]+[\r\n#]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = rf"{SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST.replace('#', '')}"
QWEN2 = rf"{SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST.replace('#', '')}"
TEKKEN = rf"{CASED.replace('@', '')}|\p{{N}}|{REST.replace('#', '/')}"
GPT4O = rf"{CASED.replace('@', SHORT + '?')}|\p{{N}}{{1,3}}|{REST.replace('#', '/')}"
SPLITTINGS: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((r"\p{N}", GPT2), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "dbrx",
    ((QWEN2,), False): "qwen2",
    ((TEKKEN,), True): "tekken",
    ((GPT4O,), False): "gpt-4o",
}
"""llama.cpp's names, by the regular expressions that split in turn, and by whether whole words bypass the merges."""

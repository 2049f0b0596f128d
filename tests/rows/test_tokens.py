"""The documents of a recovery on disk: the same as those of the stream, tokenised once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from helpers.tiny_tokenizer import byte_tokenizer
from stages.rows.packing import LONGEST, Document, encode_whole, portions
from stages.rows.stream import Stream
from stages.rows.tokens import Tokenised, tokenised
from stages.stage import JSON

ROWS = [
    {"prompt": f"row {index}: ", "response": "yes " * (index % 5), "task": f"toy{index % 2}"} for index in range(40)
]
TEXTS = [{"prompt": "", "response": f"{index} and so on " * 9, "task": "text"} for index in range(10)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS + TEXTS))
    return tmp_path / "train.jsonl"


def of(path: Path, tokenizer: PreTrainedTokenizerFast, *, tokens: int = 2500, seed: int = 3) -> Tokenised:
    cache = path.parent / "cache"
    return tokenised(path, tokenizer, length=32, label_prompts=False, seed=seed, tokens=tokens, cache=cache)


def files(path: Path) -> dict[Path, int]:
    """Return the documents kept, by when they were written."""
    return {file: file.stat().st_mtime_ns for file in (path.parent / "cache" / "tokens").glob("*/*")}


def test_the_documents_are_the_streams_until_the_budget_is_reached(
    path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    encode = partial(encode_whole, tokenizer=tokenizer, length=32, label_prompts=False)
    stream = Stream(path, encode, seed=3)
    kept = of(path, tokenizer)

    documents: list[Document] = []
    with pytest.raises(IndexError, match="smaller budget"):
        documents.extend(kept.documents())
    assert documents == list(islice(stream.documents(), len(documents)))
    assert sum(len(d.ids) for d in documents[:-1]) < 2500 <= sum(len(d.ids) for d in documents)
    assert {document.task for document in documents} == {"toy0", "toy1", "text"}
    assert len(kept) == 50
    assert kept.drawn(len(documents)) > 50, "the budget is more than an epoch"
    for start in (0, 1, 33):
        assert list(islice(kept.documents(start), 5)) == documents[start : start + 5]
    assert kept.drawn(0) == 0
    assert kept.drawn(1) == 1


def test_the_same_rows_and_options_are_tokenised_once(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    first = list(islice(of(path, tokenizer).documents(), 20))
    written = files(path)
    assert list(islice(of(path, tokenizer).documents(), 20)) == first
    assert files(path) == written

    of(path, tokenizer, seed=4)
    of(path, tokenizer, tokens=500)
    assert len(files(path)) == 3 * len(written)
    other = byte_tokenizer()
    other.add_tokens(["row"])
    assert list(islice(of(path, other).documents(), 20)) != first
    assert len(files(path)) == 4 * len(written)


def test_other_rows_are_never_mistaken_for_these(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    first = list(islice(of(path, tokenizer).documents(), 20))
    path.write_text(path.read_text().replace("yes", "no!"))
    assert list(islice(of(path, tokenizer).documents(), 20)) != first


def test_a_file_that_lost_its_end_is_written_again(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    first = list(islice(of(path, tokenizer).documents(), 20))
    for name in ("ids.u32", "documents.i64", "facts.json"):
        (kept,) = (path.parent / "cache" / "tokens").glob(f"*/{name}")
        kept.write_bytes(kept.read_bytes()[:-8]) if kept.suffix != ".json" else kept.unlink()
        assert list(islice(of(path, tokenizer).documents(), 20)) == first
    assert not list((path.parent / "cache" / "tokens").glob("*.tmp"))


@pytest.mark.parametrize("name", ["ids.u32", "documents.i64", "facts.json"])
def test_a_file_with_another_bit_is_written_again_and_said_so(
    path: Path, tokenizer: PreTrainedTokenizerFast, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = list(islice(of(path, tokenizer).documents(), 20))
    (kept,) = (path.parent / "cache" / "tokens").glob(f"*/{name}")
    content = bytearray(kept.read_bytes())
    for place in range(0, len(content), max(1, len(content) // 20)):
        kept.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with caplog.at_level("INFO", "pipeline"):
            assert list(islice(of(path, tokenizer).documents(), 20)) == first
        assert "tokenised again" in caplog.text, place
        caplog.clear()
        assert kept.read_bytes() == content


def test_text_that_is_too_long_becomes_documents_and_every_token_is_labelled_once(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    whole = tokenizer(TEXTS[0]["response"])["input_ids"] + [tokenizer.eos_token_id]
    for length in (2, 7, 32, len(whole) - 1, len(whole)):
        (pieces,) = encode_whole(TEXTS[:1], tokenizer, length=length, label_prompts=False)
        sizes = [len(piece.ids) for piece in pieces]
        assert max(sizes) <= length
        assert max(sizes) - min(sizes) <= 1
        assert not any(piece.cut for piece in pieces)
        assert [token for piece in pieces for token in piece.ids[1:]] == whole[1:]
        assert sum(piece.labels for piece in pieces) == len(whole) - 1


def test_an_instruction_that_is_too_long_is_cut_and_says_so(tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "a question ", "response": "yes " * 30, "task": "toy"}
    ((document,),) = encode_whole([row], tokenizer, length=20, label_prompts=False)
    assert document.cut
    assert len(document.ids) == 20


def test_of_a_long_row_only_what_is_drawn_is_tokenised(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    read = 0

    def encode(rows: Sequence[JSON]) -> list[list[Document]]:
        nonlocal read
        read += sum(len(row["response"]) for row in rows)
        return encode_whole(rows, tokenizer, length=256, label_prompts=True)

    long = {"prompt": "", "response": "one of many words " * (LONGEST // 2), "task": "text"}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [long, *TEXTS]))
    documents = islice(Stream(tmp_path / "train.jsonl", encode, seed=1).documents(), 64)
    assert sum(len(document.ids) for document in documents) > 600
    assert read <= 2 * LONGEST


def test_the_portions_of_a_long_row_are_its_text() -> None:
    text = "one of many words " * (LONGEST // 6) + "x" * (LONGEST + 5)
    found = [portion["response"] for portion in portions({"prompt": "", "response": text, "task": "text"})]
    assert "".join(found) == text
    assert max(map(len, found)) <= LONGEST
    (asked,) = portions({"prompt": "a" * LONGEST + "b", "response": "c" + text, "task": "text"})
    assert asked["prompt"].endswith("ab")
    assert asked["response"].startswith("cone")
    assert len(asked["prompt"] + asked["response"]) == LONGEST


def test_a_long_row_counts_once_among_the_rows_drawn(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    long = {"prompt": "", "response": "and " * (LONGEST // 3), "task": "text"}
    (tmp_path / "train.jsonl").write_text(json.dumps(long) + "\n")
    kept = tokenised(
        tmp_path / "train.jsonl",
        tokenizer,
        length=1 << 12,
        label_prompts=True,
        seed=0,
        tokens=LONGEST,
        cache=tmp_path / "cache",
    )
    ends = [kept.drawn(number) for number in range(1, len(kept._table_DF) + 1)]
    first_epoch = sum(len(documents) for documents in _encoded(long, tokenizer))
    assert set(ends[:first_epoch]) == {1}
    assert ends[first_epoch:] == [] or ends[first_epoch] == 2


def _encoded(row: JSON, tokenizer: PreTrainedTokenizerFast) -> list[list[Document]]:
    return encode_whole(list(portions(row)), tokenizer, length=1 << 12, label_prompts=True)

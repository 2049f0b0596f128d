"""Mixtures: shares of tokens at every point, and nothing trained on that a part holds out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from stages.common.files import read_json, read_jsonl, write_json, write_jsonl
from stages.data import mixture
from stages.data.mixture import MixtureConfig
from stages.data.stage import run
from stages.errors import UserError
from stages.prune.calibration import calibration_ids
from stages.prune.config import Calibration, PruneConfig
from stages.rows.interleave import interleave
from stages.rows.packing import encode_whole
from stages.rows.stream import Stream
from stages.stage import Context


def part(directory: Path, task: str, texts: list[str], held: list[str], tasks: tuple[str, ...] = ()) -> Path:
    """Write the artifact of a data set with these texts."""
    for name, chosen in (("train", texts), ("validation", held)):
        rows = [{"prompt": "", "response": text, "task": task} for text in chosen]
        write_jsonl(directory / f"{name}.jsonl", rows)
    write_json(directory / "data.json", {"name": task, "tasks": list(tasks)})
    return directory


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    short = [f"short {index}" for index in range(60)]
    long = [f"long {index} " * 12 for index in range(15)]
    return {
        "long": part(tmp_path / "long", "long", [*long, short[0]], [f"held long {index} " * 12 for index in range(6)]),
        "short": part(tmp_path / "short", "short", short[8:], short[:8], tasks=("piqa",)),
    }


def mixed(tmp_path: Path, parts: dict[str, Path], **options: int) -> Path:
    shares, _ = mixture.pin(MixtureConfig(name="mixture", parts={"short": 3, "long": 1}), tmp_path)
    assert shares.parts == {"long": 0.25, "short": 0.75}
    output = tmp_path / "mixture"
    config = MixtureConfig(name="mixture", parts=shares.parts, **options)
    summary = run(config, parts, Context(output=output))
    assert summary["tasks"] == ["piqa"]
    return output


def test_what_any_part_holds_out_is_not_trained_on(tmp_path: Path, parts: dict[str, Path]) -> None:
    output = mixed(tmp_path, parts, validation_rows=9)
    train = [row["response"] for row in read_jsonl(output / "train.jsonl")]
    validation = list(read_jsonl(output / "validation.jsonl"))

    assert "short 0" in {row["response"] for row in read_jsonl(parts["long"] / "train.jsonl")}
    held = {row["response"] for path in parts.values() for row in read_jsonl(path / "validation.jsonl")}
    assert not held & set(train)
    assert len(train) == 15 + 52
    assert read_json(output / "data.json")["source"]["parts"] == [
        {"name": "long", "weight": 0.25, "rows": 15},
        {"name": "short", "weight": 0.75, "rows": 52},
    ]
    # A long row weighs as much as a dozen short ones: the first is due, then short ones for three times its bytes.
    assert [row["task"] for row in validation] == ["long"] + ["short"] * 8


def test_what_a_model_makes_up_changes_no_held_out_rows_of_a_mixture(tmp_path: Path, parts: dict[str, Path]) -> None:
    without = list(read_jsonl(mixed(tmp_path, parts, validation_rows=9) / "validation.jsonl"))
    made_up = part(tmp_path / "made", "sampled", ["drawn 1", "drawn 2", "drawn 3"], ["drawn 3", "drawn 4"])
    shares = {"short": 0.6, "long": 0.2, "made": 0.2}
    output = tmp_path / "with"
    config = MixtureConfig(name="mixture", parts=shares, validation_rows=9)
    run(config, parts | {"made": made_up}, Context(output=output))
    assert list(read_jsonl(output / "validation.jsonl")) == without
    drawn = [row["response"] for row in read_jsonl(output / "train.jsonl") if row["task"] == "sampled"]
    assert drawn == ["drawn 1", "drawn 2"]

    alone = MixtureConfig(name="mixture", parts={"made": 1.0}, validation_rows=2)
    run(alone, {"made": made_up}, Context(output=tmp_path / "alone"))
    assert len(list(read_jsonl(tmp_path / "alone" / "validation.jsonl"))) == 2


def test_the_parts_shares_are_of_tokens_at_every_point(tmp_path: Path, parts: dict[str, Path]) -> None:
    output = mixed(tmp_path, parts, validation_rows=6)
    encode = partial(encode_whole, tokenizer=byte_tokenizer(), length=64, label_prompts=True)
    rows = list(islice(Stream(output / "train.jsonl", encode, seed=1).rows(), 400))
    drawn: Counter[str] = Counter()
    longest = max(sum(len(document.ids) for document in documents) for documents in rows)
    for documents in rows:
        drawn[documents[0].task] += sum(len(document.ids) for document in documents)
        total = drawn.total()
        assert abs(drawn["long"] - total / 4) <= longest
    texts = [documents[0].row for documents in rows if documents[0].task == "short"]
    for first in range(0, len(texts) - 52, 52):
        assert len(set(texts[first : first + 52])) == 52, "an epoch of a part draws each of its rows once"
    assert rows == list(islice(Stream(output / "train.jsonl", encode, seed=1).rows(), 400))
    assert rows != list(islice(Stream(output / "train.jsonl", encode, seed=2).rows(), 400))


@given(
    weights=st.lists(st.floats(0.05, 1), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 9), min_size=5, max_size=60),
)
def test_interleaving_keeps_shares_to_within_an_item_of_each(weights: list[float], sizes: list[int]) -> None:
    def items(name: str) -> Iterator[tuple[str, int]]:
        while True:
            yield from ((name, size) for size in sizes)

    shares = {str(index): weight / sum(weights) for index, weight in enumerate(weights)}
    drawn = dict.fromkeys(shares, 0)
    for name, size in islice(interleave({name: items(name) for name in shares}, shares, lambda item: item[1]), 200):
        drawn[name] += size
        total = sum(drawn.values())
        assert all(abs(drawn[name] - share * total) <= 9 * len(shares) for name, share in shares.items())


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, r"a mixture has parts with weights, 'data\.parts=\{commonsense: 0\.7"),
        ({"passages": 0}, r"data\.parts\.passages: the weight must be a number above 0, and is 0"),
        ({"passages": -0.5}, "above 0, and is -0.5"),
        ({"passages": float("nan")}, "above 0, and is nan"),
        ({"passages": "much"}, "above 0, and is 'much'"),
        ({"passages": {"rows": 3}}, "above 0, and is None"),
        ({"mine": {"data": "mixture", "weight": 1}}, "a mixture can't be a part of a mixture"),
    ],
)
def test_weights_that_are_none_are_errors(tmp_path: Path, parts: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        mixture.pin(MixtureConfig(name="mixture", parts=parts), tmp_path)


def test_too_few_rows_set_aside_are_an_error(tmp_path: Path, parts: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"data\.validation_rows=99 .* \(\d+\).*data\.parts\.NAME\.validation_rows"):
        mixed(tmp_path, parts, validation_rows=99)


def test_a_part_that_others_hold_out_whole_is_an_error(tmp_path: Path, parts: dict[str, Path]) -> None:
    part(parts["long"], "long", ["short 1"], ["another long one"])
    with pytest.raises(UserError, match="the part 'long' has no row that another part does not hold out"):
        mixed(tmp_path, parts, validation_rows=2)


def test_held_out_questions_keep_their_choices(tmp_path: Path, parts: dict[str, Path]) -> None:
    question = {"prompt": "true? ", "response": "yes", "task": "short", "choices": ["no", "yes"]}
    (parts["short"] / "validation.jsonl").write_text(json.dumps(question) + "\n")
    output = mixed(tmp_path, parts, validation_rows=2)
    assert question in list(read_jsonl(output / "validation.jsonl"))


def test_pruning_is_calibrated_on_the_parts_shares_too(tmp_path: Path, parts: dict[str, Path]) -> None:
    data, model = mixed(tmp_path, parts, validation_rows=6), tmp_path / "base"
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(model)
    config = PruneConfig(calibration=Calibration(sequences=1, length=500))
    text = tokenizer.decode(calibration_ids(config, model=model, data=data, vocabulary=VOCABULARY)[0])
    long = sum(len(piece) for piece in text.split("<|end|>") if piece.startswith("long"))
    assert 0.25 - 0.1 < long / len(text) < 0.25 + 0.1
    rows = list(read_jsonl(data / "train.jsonl"))
    assert sum(len(row["response"]) for row in rows if row["task"] == "long") > 0.7 * len(
        "".join(r["response"] for r in rows)
    )

"""Continuations, against plain loops over the model's own forward pass and over n-grams."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import MODELS
from helpers.questions import PASSAGES, model_artifact, reader, tasks_artifact
from helpers.tiny_tokenizer import byte_tokenizer
from stages.common.files import read_json, read_jsonl, write_jsonl
from stages.errors import UserError
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.continuations import (
    FOLLOWING,
    LOOP,
    WORDS,
    beginnings,
    continuation_rows,
    in_loop,
    repeated_share,
)
from stages.evaluate.lm import FastLM
from stages.evaluate.perplexity import select
from stages.evaluate.plan import settled
from stages.evaluate.stage import run
from stages.inference.scorer import Scorer
from stages.stage import Context

LONG = [{"title": f"{number}", "text": f"Number {number}: " + "a few  words\nmore " * 20} for number in range(6)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("inputs")
    return {"model": model_artifact(directory / "model"), "tasks": tasks_artifact(directory / "tasks")}


def evaluated(inputs: dict[str, Path], output: Path, **options: Any) -> dict[str, Any]:
    given = {"tasks": [], "passages": 0, "generation_prompts": 2, "generation_tokens": 9} | options
    run(EvaluateConfig(**given), inputs, Context(output=output))
    results: dict[str, Any] = read_json(output / "results.json")
    return results


def test_repeated_n_grams_are_those_that_a_plain_loop_has_seen_before() -> None:
    draw = random.Random(0)
    for length in (0, 3, 4, 5, 30, 64):
        ids = [draw.randrange(3) for _ in range(length)]
        seen: list[list[int]] = []
        again = 0
        for start in range(length - 3):
            again += ids[start : start + 4] in seen
            seen.append(ids[start : start + 4])
        assert repeated_share(ids) == pytest.approx(again / len(seen) if seen else 0.0)
    assert repeated_share([7] * 64) == pytest.approx(60 / 61)
    assert repeated_share(range(64)) == 0


@pytest.mark.parametrize(
    ("ids", "looping"),
    [
        ([*range(40), *[7] * LOOP], True),
        ([*range(40), *[7] * (LOOP - 1)], False),
        ([*range(30), *range(100, 115), *range(100, 115)], True),
        ([*range(30), *range(100, 115), *range(100, 114)], False),
        ([*range(30), *[1, 2, 3] * 6, 1], True),
        ([*[1, 2, 3] * 6, *range(30)], False),
        ([], False),
        ([7], False),
    ],
)
def test_a_loop_is_a_cycle_that_fills_the_end(ids: list[int], looping: bool) -> None:
    assert in_loop(ids) is looping


def test_beginnings_are_the_same_whatever_the_order_and_not_those_of_the_perplexity() -> None:
    found = beginnings(LONG, 3)
    assert found == beginnings(reversed(LONG), 3)
    assert found[:2] == beginnings(LONG, 2)
    assert not {one.title for one in found} & {passage["title"] for passage in select("wikipedia", LONG, 3)}


def test_a_beginning_and_what_follows_are_the_passage() -> None:
    texts = {passage["title"]: passage["text"].strip() for passage in [*LONG, *PASSAGES]}
    found = beginnings([*LONG, *PASSAGES, {"title": "one word", "text": "one"}], 99)
    assert {one.title for one in found} == texts.keys()
    for one in found:
        assert one.prompt + one.following == texts[one.title]
        assert len(one.prompt.split()) == min(WORDS, len(texts[one.title].split()) // 2)
        assert not one.prompt[-1].isspace()


def test_no_passage_to_continue_is_an_error() -> None:
    with pytest.raises(UserError, match=r"evaluate\.generation_prompts=0"):
        beginnings([{"title": "one word", "text": "one"}], 2)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_writes_and_expects_what_its_own_forward_pass_finds_likeliest(kind: str) -> None:
    model, tokenizer = MODELS[kind](), byte_tokenizer()
    lm, prompts = FastLM(Scorer(model, tokenizer)), beginnings([LONG[0], *PASSAGES], 4)
    for one, row in zip(prompts, continuation_rows(lm, prompts, new_tokens=9), strict=True):
        start, whole = (tokenizer(text)["input_ids"] for text in (one.prompt, one.prompt + one.following))
        ids = list(start)
        with torch.inference_mode():
            while len(ids) < len(start) + 9 and ids[-1] not in lm.generator.ends:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            best = model(torch.tensor([whole])).logits[0].argmax(-1).tolist()
        assert row["ended"] == (ids[-1] in lm.generator.ends)
        assert row["tokens"] == ids[len(start) :][: -1 if row["ended"] else None]
        assert row["output"] == tokenizer.decode(row["tokens"], skip_special_tokens=True)
        assert row["repeated"] == repeated_share(row["tokens"])
        assert row["following"] == whole[len(start) : len(start) + 9]
        assert row["likeliest"] == best[len(start) - 1 :][: len(row["following"])]


def test_a_text_that_ended_is_in_no_loop_and_says_so() -> None:
    model, prompts = reader(), beginnings(LONG, 1)
    lm = FastLM(Scorer(model, byte_tokenizer()))
    (row,) = continuation_rows(lm, prompts, new_tokens=9)
    lm.generator.ends = frozenset([row["tokens"][0]])
    (ended,) = continuation_rows(lm, prompts, new_tokens=9)
    assert (row["ended"], ended["ended"]) == (False, True)
    assert (ended["tokens"], ended["output"], ended["repeated"], ended["loop"]) == ([], "", 0.0, False)


def test_a_prompt_too_long_for_the_model_is_cut_and_the_rest_still_fits() -> None:
    lm = FastLM(Scorer(reader(max_position_embeddings=40), byte_tokenizer()))
    (row,) = continuation_rows(lm, beginnings(LONG, 1), new_tokens=36)
    assert (len(row["tokens"]) or row["ended"], len(row["following"])) == (36, FOLLOWING)
    assert len(row["likeliest"]) == FOLLOWING
    with pytest.raises(UserError, match=r"evaluate\.generation_tokens=40 leaves no room"):
        continuation_rows(lm, beginnings(LONG, 1), new_tokens=40)


def test_the_stage_keeps_every_continuation_and_their_means(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = evaluated(inputs, tmp_path, protocol="likelihood")["generation"]
    rows = list(read_jsonl(tmp_path / "continuations.jsonl"))
    assert (found["prompts"], found["new_tokens"], len(rows)) == (2, 9, 2)
    assert found["length"] == sum(len(row["tokens"]) for row in rows) / 2
    for key in ("repeated", "loop", "ended"):
        assert found[key] == pytest.approx(sum(row[key] for row in rows) / 2)


def test_continuations_that_are_there_are_not_written_again(inputs: dict[str, Path], tmp_path: Path) -> None:
    whole = evaluated(inputs, tmp_path)
    (tmp_path / "results.json").unlink()
    (tmp_path / "perplexity.json").unlink(missing_ok=True)
    resumed = evaluated(inputs | {"model": tmp_path / "gone"}, tmp_path)
    assert resumed == whole


def test_without_prompts_nothing_is_written(inputs: dict[str, Path], tmp_path: Path) -> None:
    assert evaluated(inputs, tmp_path, texts=["wikipedia"], passages=2, generation_prompts=0)["generation"] is None
    assert not (tmp_path / "continuations.jsonl").exists()
    off, other = (EvaluateConfig(generation_prompts=0, generation_tokens=tokens) for tokens in (64, 9))
    assert settled(off) == settled(other)


def test_passages_that_are_missing_are_an_error(inputs: dict[str, Path], tmp_path: Path) -> None:
    tasks = tasks_artifact(tmp_path / "tasks")
    write_jsonl(tasks / "texts" / "wikipedia.jsonl", [])
    with pytest.raises(UserError, match=r"evaluate\.generation_prompts=0"):
        evaluated(inputs | {"tasks": tasks}, tmp_path / "output", tasks=["boolq"])

"""Rows that the dense model writes: its own answers, what is held out, and what a killed stage goes on with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.decoders import decoder
from helpers.hungry import make_hungry
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from helpers.toy import model_artifact
from stages.common.files import read_json, read_jsonl, write_json, write_jsonl
from stages.data import selfwritten
from stages.data.answers import Writer, as_message, beginning
from stages.data.selfwritten import SelfWrittenConfig
from stages.data.stage import run
from stages.data.text import place_to_end
from stages.decoders.checkpoint import load_model
from stages.errors import UserError
from stages.stage import JSON, Context

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
PASSAGE = "The correct answer is that questions have two answers, and one of these two is false. "
FILES = ("train.jsonl", "validation.jsonl", "data.json", "answers.jsonl")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, and rows of which half are questions and half are plain text."""
    root = tmp_path_factory.mktemp("inputs")
    questions = [{"prompt": f"What is {n} and {n}? ", "response": str(2 * n), "task": "sums"} for n in range(12)]
    passages = [{"prompt": "", "response": f"{n}: {PASSAGE}", "task": "text"} for n in range(12)]
    train = [row for pair in zip(questions[2:], passages[2:], strict=True) for row in pair]
    write_jsonl(root / "rows" / "train.jsonl", train)
    write_jsonl(root / "rows" / "validation.jsonl", [questions[0] | {"choices": ["0", "1"]}, passages[0]])
    write_json(root / "rows" / "data.json", {"tasks": ["piqa"], "rows": {"train": len(train), "validation": 2}})
    model = decoder(vocab_size=VOCABULARY, max_position_embeddings=256, tie_word_embeddings=True)
    return {"model": model_artifact(root / "model", model), "rows": root / "rows"}


def written(inputs: dict[str, Path], output: Path, **options: Any) -> list[JSON]:
    """Run the data stage; returns the rows to train on."""
    own = {"name": "selfwritten", "validation_rows": 2, "new_tokens": 10, "dtype": "float32"}
    config = SelfWrittenConfig(**own | options)
    output.mkdir(exist_ok=True)
    run(selfwritten.pin(config, output)[0], inputs, Context(output=output))
    return list(read_jsonl(output / "train.jsonl"))


def contents(output: Path) -> dict[str, bytes]:
    assert {path.name for path in output.iterdir()} == set(FILES)
    return {name: (output / name).read_bytes() for name in FILES}


def stock(model: Any, prompt: str, new_tokens: int) -> tuple[str, bool]:
    """Return transformers' greedy answer, and whether it ended by itself."""
    tokenizer = byte_tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        found = model.generate(ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    ended = tokenizer.eos_token_id in found
    return str(tokenizer.decode(found, skip_special_tokens=True)), ended


def test_responses_are_the_models_greedy_answers_to_the_prompts(inputs: dict[str, Path], tmp_path: Path) -> None:
    rows = written(inputs, tmp_path / "out")
    model = load_model(inputs["model"] / "model", dtype="float32")
    source = list(read_jsonl(inputs["rows"] / "train.jsonl"))
    expected = []
    for row in source:
        prompt = row["prompt"] or beginning(row["response"], byte_tokenizer(), 32)
        text, ended = stock(model, prompt, 10)
        response = text if ended else text[: place_to_end(text)].rstrip()
        expected += [{"prompt": prompt, "response": response, "task": row["task"]}] if response.strip() else []
    assert rows == expected
    assert len(rows) > 10
    record = read_json(tmp_path / "out" / "data.json")
    assert record["source"]["asked"] == len(source)
    assert record["source"]["left_out"] == len(source) - len(rows)
    assert record["tasks"] == ["piqa"]


def test_plain_text_is_continued_from_its_beginning() -> None:
    tokenizer, text = byte_tokenizer(), f"naïve {PASSAGE}"
    assert text.startswith(beginning(text, tokenizer, 9))
    assert len(tokenizer(beginning(text, tokenizer, 9))["input_ids"]) == 9
    whole = len(tokenizer(text)["input_ids"])
    assert len(tokenizer(beginning(text, tokenizer, 1000))["input_ids"]) == whole // 2
    assert beginning("x", tokenizer, 9) == "x"


def test_held_out_rows_are_the_sources_and_are_not_trained_on(inputs: dict[str, Path], tmp_path: Path) -> None:
    copied = inputs | {"rows": tmp_path / "rows"}
    shutil.copytree(inputs["rows"], copied["rows"])
    first = written(copied, tmp_path / "out")[0]
    assert (tmp_path / "out" / "validation.jsonl").read_bytes() == (copied["rows"] / "validation.jsonl").read_bytes()
    # What the model writes may happen to be a row that is held out.
    write_jsonl(copied["rows"] / "validation.jsonl", [first])
    assert first not in written(copied, tmp_path / "again")


def test_sampled_answers_are_those_of_the_seed(inputs: dict[str, Path], tmp_path: Path) -> None:
    greedy = written(inputs, tmp_path / "greedy")
    first, again, other = (
        written(inputs, tmp_path / name, temperature=1.0, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other
    assert first != greedy


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_that_do_not_fit_in_memory_together_are_written_in_parts_and_are_the_same(
    inputs: dict[str, Path], temperature: float, caplog: pytest.LogCaptureFixture
) -> None:
    rows = list(read_jsonl(inputs["rows"] / "train.jsonl"))
    seeds, answers = [str(number) for number in range(len(rows))], []
    for fits in (None, 150):
        writer = Writer(
            inputs["model"] / "model",
            dtype="float32",
            device="cpu",
            new_tokens=10,
            temperature=temperature,
            chat=False,
            prompt_tokens=32,
        )
        if fits is not None:
            make_hungry(writer.generator.scorer.model, fits)
        answers.append(writer.answer(rows, seeds))
    assert answers[1] == answers[0]
    assert 1 <= (writer.in_parts.most or 0) < len(rows)
    assert "prompts at a time do not fit in memory" in caplog.text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_wherever_a_kill_came_the_same_bytes_are_written(
    inputs: dict[str, Path], tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfwritten, "BLOCK", 8)
    written(inputs, tmp_path / "whole", temperature=temperature)
    lines = (tmp_path / "whole" / "answers.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 20
    for kept in (0, 3, 8, 13, 20):
        killed = tmp_path / f"killed after {kept}"
        killed.mkdir()
        kept_lines = [line.replace('"task": "', '"task": "kept ') for line in lines[:kept]]
        torn = '{"prompt": "torn' if kept < 20 else ""
        (killed / "answers.jsonl.unfinished").write_text("".join(kept_lines) + torn)
        written(inputs, killed, temperature=temperature)
        answers = (killed / "answers.jsonl").read_text()
        assert answers.startswith("".join(kept_lines)), "what was written before the kill is asked again"
        for name in ("answers.jsonl", "train.jsonl"):
            unmarked = (killed / name).read_text().replace("kept ", "")
            assert unmarked == (tmp_path / "whole" / name).read_text(), (name, kept)


def test_rows_and_tokens_bound_what_is_asked(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfwritten, "BLOCK", 4)
    written(inputs, tmp_path / "all", rows=None)
    lines = list(read_jsonl(tmp_path / "all" / "answers.jsonl"))
    written(inputs, tmp_path / "few", rows=7)
    assert read_json(tmp_path / "few" / "data.json")["source"]["asked"] == 7

    budget = sum(line["tokens"] for line in lines[:5])
    for _ in range(2):  # the second run finds all answers there
        written(inputs, tmp_path / "budget", tokens=budget)
        source = read_json(tmp_path / "budget" / "data.json")["source"]
        assert (source["asked"], source["tokens"]) == (5, budget)
        assert contents(tmp_path / "budget")["answers.jsonl"].count(b"\n") == 8, "a block is asked whole"


def test_a_chat_template_is_asked_and_is_in_the_row(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        written(inputs, tmp_path / "none", template="chat")
    chatty = inputs | {"model": tmp_path / "model"}
    shutil.copytree(inputs["model"], chatty["model"])
    (chatty["model"] / "model" / "chat_template.jinja").write_text(TEMPLATE)
    rows = written(chatty, tmp_path / "out", template="chat")
    asked = [row["prompt"] for row in rows if row["task"] == "sums"]
    assert asked
    assert all(prompt.startswith("<user>What is ") and prompt.endswith("? <assistant>") for prompt in asked)
    assert not any("<user>" in row["prompt"] for row in rows if row["task"] == "text")


def test_a_first_token_that_the_tokenizer_adds_is_not_written_twice() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    assert as_message("Hello", tokenizer) == "<|begin|><user>Hello<assistant>"

    class Beginning:
        bos_token, bos_token_id = tokenizer.bos_token, tokenizer.bos_token_id
        apply_chat_template = tokenizer.apply_chat_template

        def __call__(self, text: str) -> JSON:
            return {"input_ids": [self.bos_token_id, *tokenizer(text)["input_ids"]]}

    assert as_message("Hello", Beginning()) == "<user>Hello<assistant>"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "mixture"}, r"data\.source=mixture: its rows can't be asked"),
        ({"source": 3}, r"data\.source=3: name a data set"),
        ({"template": "chatt"}, r"\(data\.template\) 'chatt', did you mean 'chat'"),
        ({"temperature": -1.0}, r"data\.temperature must be at least 0"),
        ({"new_tokens": 0}, r"data\.new_tokens must be at least 1"),
        ({"tokens": 0}, r"data\.tokens must be at least 1"),
    ],
)
def test_options_outside_their_range_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        selfwritten.pin(SelfWrittenConfig(name="selfwritten", **options), tmp_path)

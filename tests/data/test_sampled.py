"""Text that the dense model makes up: its own probabilities, what a killed stage goes on with, and what is left out."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.decoders import decoder
from helpers.hungry import make_hungry
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from helpers.toy import model_artifact
from stages.common.files import read_json, read_jsonl
from stages.data import sampled
from stages.data.draws import Drawer
from stages.data.sampled import SampledConfig
from stages.data.stage import run
from stages.decoders.checkpoint import load_model
from stages.errors import UserError
from stages.inference.generator import Written
from stages.stage import JSON, Context


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a model whose next tokens have unequal probabilities."""
    tiny = decoder(vocab_size=VOCABULARY, max_position_embeddings=256, tie_word_embeddings=True)
    # The padding token, which ends a text here and begins it, has an embedding of zeros otherwise.
    torch.nn.init.normal_(tiny.get_input_embeddings().weight, std=0.3, generator=torch.Generator().manual_seed(8))
    return model_artifact(tmp_path_factory.mktemp("model"), tiny)


def drawn(model: Path, output: Path, **options: Any) -> list[JSON]:
    """Run the data stage; returns its texts, those that are left out among them."""
    config = SampledConfig(**{"name": "sampled", "rows": 16, "new_tokens": 12, "dtype": "float32"} | options)
    run(sampled.pin(config, output)[0], {"model": model}, Context(output=output))
    return list(read_jsonl(output / "texts.jsonl"))


def drawer(model: Path, new_tokens: int = 12, temperature: float = 1.0) -> Drawer:
    return Drawer(model / "model", dtype="float32", device="cpu", new_tokens=new_tokens, temperature=temperature)


def changed(model: Path, directory: Path, edit: Any) -> Path:
    """Return a copy of the artifact `model` with another tokenizer."""
    shutil.copytree(model, directory)
    tokenizer = byte_tokenizer()
    edit(tokenizer)
    tokenizer.save_pretrained(directory / "model")
    return directory


def test_rows_are_plain_text_and_an_eighth_is_held_out(model: Path, tmp_path: Path) -> None:
    texts = drawn(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl", "validation.jsonl", "data.json", "texts.jsonl"}
    train, held = (list(read_jsonl(tmp_path / f"{name}.jsonl")) for name in ("train", "validation"))
    long = [line["text"] for line in texts if line["tokens"] >= 8]
    assert sorted(row["response"] for row in [*train, *held]) == sorted(long)
    assert all((row["prompt"], row["task"]) == ("", "sampled") for row in [*train, *held])
    assert len(held) == 2
    source = read_json(tmp_path / "data.json")["source"]
    assert (source["drawn"], source["left_out"]) == (16, 16 - len(long))
    assert source["tokens"] == sum(line["tokens"] for line in texts)


def test_equal_seeds_draw_equal_texts_and_others_draw_others(model: Path, tmp_path: Path) -> None:
    first, again, other, cold = (
        drawn(model, tmp_path / str(number), **options)
        for number, options in enumerate([{"seed": 1}, {"seed": 1}, {"seed": 2}, {"seed": 1, "temperature": 0.2}])
    )
    assert first == again
    assert first != other
    assert first != cold
    assert len({line["text"] for line in first}) > 10


def test_wherever_a_kill_came_the_same_bytes_are_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled, "BLOCK", 6)
    drawn(model, tmp_path / "whole")
    lines = (tmp_path / "whole" / "texts.jsonl").read_text().splitlines(keepends=True)
    for kept in (0, 3, 6, 13, 16):
        killed = tmp_path / f"killed after {kept}"
        killed.mkdir()
        kept_lines = [line.replace('{"text": "', '{"text": "kept ') for line in lines[:kept]]
        torn = '{"text": "torn' if kept < 16 else ""
        (killed / "texts.jsonl.unfinished").write_text("".join(kept_lines) + torn)
        drawn(model, killed)
        texts = (killed / "texts.jsonl").read_text()
        assert texts.startswith("".join(kept_lines)), "what was drawn before the kill is drawn again"
        assert texts.replace("kept ", "") == (tmp_path / "whole" / "texts.jsonl").read_text()


def test_texts_that_do_not_fit_in_memory_together_are_drawn_in_parts_and_are_the_same(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To the character here, in float32. Other shapes of products round otherwise, so a draw within the rounding of two
    tokens' sums may give the other one."""
    seeds = [str(number) for number in range(32)]
    whole, halved = drawer(model), drawer(model)
    make_hungry(halved.generator.scorer.model, fits=10)
    assert halved.draw(seeds) == whole.draw(seeds)
    said = [record.getMessage() for record in caplog.records]
    assert [message.rpartition(": ")[2] for message in said] == ["going on with 16.", "going on with 8."]
    # The next block begins with what has fitted.
    assert halved.draw(seeds[:12]) == whole.draw(seeds[:12])
    assert len(caplog.records) == 2


def test_a_single_text_that_does_not_fit_is_an_error_with_the_remedy(model: Path) -> None:
    made = drawer(model)
    make_hungry(made.generator.scorer.model, fits=0)
    with pytest.raises(UserError, match=r"a single prompt does not fit in memory .*data\.dtype=bfloat16"):
        made.draw(["0", "1"])


@pytest.mark.parametrize("begins", ["<|end|>", "q"])
def test_first_tokens_have_the_models_probabilities_after_the_token_that_begins_a_text(
    model: Path, tmp_path: Path, begins: str
) -> None:
    # The tokenizer has no bos token unless one is given: then its eos token begins a text.
    if begins != "<|end|>":
        model = changed(model, tmp_path / "model", lambda tokenizer: setattr(tokenizer, "bos_token", begins))
    count, temperature = 2000, 0.7
    found = first_tokens(drawer(model, 1, temperature), count)
    first = byte_tokenizer().convert_tokens_to_ids(begins)
    with torch.inference_mode():
        logits_V = load_model(model / "model", dtype="float32")(torch.tensor([[first]])).logits[0, -1]
    wanted_V = (logits_V / temperature).softmax(-1)
    found_V = torch.tensor([found[token] for token in range(VOCABULARY)]) / count
    # Five standard deviations of each share.
    assert ((found_V - wanted_V).abs() <= 5 * (wanted_V * (1 - wanted_V) / count).sqrt() + 1e-3).all()
    # Far from equal shares, so that these would fail.
    assert ((1 / VOCABULARY - wanted_V).abs() > 5 * (wanted_V * (1 - wanted_V) / count).sqrt() + 1e-3).any()


def first_tokens(made: Drawer, count: int) -> Counter[int | None]:
    """Return how often each token was the first one, the end token among them."""
    seen: Counter[int | None] = Counter()
    line = made._line

    def noted(written: Written) -> JSON:
        seen[written.tokens[0] if written.tokens else written.end] += 1
        return line(written)

    made._line = noted  # type: ignore[method-assign]
    made.draw([str(number) for number in range(count)])
    assert seen.total() == count
    return seen


def test_a_torn_character_at_the_end_is_dropped(model: Path) -> None:
    made, tokenizer = drawer(model), byte_tokenizer()
    ids = tokenizer("naïve 東")["input_ids"]
    assert made._line(Written(ids, None)) == {"text": "naïve 東", "tokens": len(ids), "finished": False}
    assert made._line(Written(ids[:-1], None))["text"] == "naïve "
    assert made._line(Written(ids, tokenizer.eos_token_id))["finished"]


def test_a_text_ends_where_the_model_begins_another(model: Path, tmp_path: Path) -> None:
    other = changed(model, tmp_path / "model", lambda tokenizer: setattr(tokenizer, "bos_token", "e"))
    begin = byte_tokenizer().convert_tokens_to_ids("e")
    made = drawer(other, 200)
    encoder = made.generator.scorer.encoder
    assert encoder.prefix == begin
    lines = made.draw([str(number) for number in range(40)])
    assert any(line["finished"] for line in lines)
    assert not any("e" in byte_tokenizer()(line["text"]).tokens() for line in lines if line["tokens"] > 1)


def test_too_short_texts_are_left_out_and_counted(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = sorted(line["tokens"] for line in drawn(model, tmp_path / "all", rows=60, new_tokens=60))
    assert lengths[0] < 40 <= lengths[-1], "the model of this test ends some texts"
    monkeypatch.setattr(sampled, "SHORTEST", 40)
    drawn(model, tmp_path / "long", rows=60, new_tokens=60)
    record = read_json(tmp_path / "long" / "data.json")
    short = sum(length < 40 for length in lengths)
    assert record["source"]["left_out"] == short
    assert sum(record["rows"].values()) == 60 - short
    monkeypatch.setattr(sampled, "SHORTEST", 61)
    config = SampledConfig(name="sampled", rows=60, new_tokens=60, dtype="float32")
    with pytest.raises(UserError, match="the model ends every text before its 61th token"):
        run(config, {"model": model}, Context(output=tmp_path / "none"))


def test_what_can_begin_no_text_is_one_error(model: Path, tmp_path: Path) -> None:
    without = changed(model, tmp_path / "model", lambda tokenizer: setattr(tokenizer, "eos_token", None))
    with pytest.raises(UserError, match="neither a bos nor an eos token for a text to start from"):
        drawn(without, tmp_path / "out")


def test_a_model_that_reads_few_tokens_writes_texts_as_long_as_it_reads(tmp_path: Path) -> None:
    short = model_artifact(tmp_path / "model", decoder(vocab_size=VOCABULARY, max_position_embeddings=24))
    lengths = [line["tokens"] for line in drawn(short, tmp_path, new_tokens=256)]
    assert max(lengths) == 23


def test_the_number_held_out_does_not_depend_on_the_mixture_that_asks(tmp_path: Path) -> None:
    pinned = [sampled.pin(SampledConfig(rows=64, validation_rows=rows), tmp_path)[0] for rows in (256, 64, 8)]
    assert [config.validation_rows for config in pinned] == [8, 8, 8]
    assert sampled.pin(SampledConfig(rows=64, validation_rows=3), tmp_path)[0].validation_rows == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 1}, r"data\.rows must be at least 2"),
        ({"new_tokens": 7}, r"data\.new_tokens must be at least 8"),
        ({"temperature": 0.0}, r"data\.temperature must be above 0"),
    ],
)
def test_options_outside_their_range_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sampled.pin(SampledConfig(name="sampled", **options), tmp_path)

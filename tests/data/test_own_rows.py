"""Rows of the user's own files, plain text cut into rows, and what is said of those that can't be read."""

from __future__ import annotations

import csv
import gzip
import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.files import read_json, read_jsonl
from stages.data import file, text
from stages.data.columns import ColumnsConfig
from stages.data.file import FileConfig
from stages.data.rows import Row
from stages.data.stage import run
from stages.data.text import TextConfig, cut
from stages.errors import UserError
from stages.stage import Context

RECORDS = [{"question": f"{index}, doubled?", "answer": f" {2 * index}", "id": str(index)} for index in range(8)]
QUESTIONS = ColumnsConfig(prompt="question", response="answer")


def built(config: Any, cache: Path) -> list[Row]:
    """Return the rows of `config` as a run reads them."""
    of = file if isinstance(config, FileConfig) else text
    pinned, places = of.pin(config, cache)  # type: ignore[arg-type]
    rows = of.build(pinned, {}, Context(output=cache, cache=cache, locations=places)).rows  # type: ignore[arg-type]
    return list(rows)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    written(tmp_path / "rows.jsonl", lines)
    written(tmp_path / "lines.json", lines)
    written(tmp_path / "rows.json", json.dumps(RECORDS))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "rows.parquet")
    for name, delimiter in (("rows.csv", ","), ("rows.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as stream:
            table = csv.DictWriter(stream, RECORDS[0], delimiter=delimiter)
            table.writeheader()
            table.writerows(RECORDS)

    expected = [Row(record["question"], record["answer"], "file") for record in RECORDS]
    for path in sorted(tmp_path.glob("*.*")):
        config = FileConfig(name="file", path=str(path), columns=QUESTIONS)
        assert built(config, tmp_path / "cache") == expected, path
        assert built(replace(config, rows=3), tmp_path / "cache") == expected[:3], path


def test_instructions_get_stanford_alpacas_prompt_with_and_without_an_input(tmp_path: Path) -> None:
    given = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    path = written(tmp_path / "rows.json", json.dumps([given, given | {"input": ""}, given | {"output": ""}]))
    with_input, without = built(FileConfig(name="file", path=str(path)), tmp_path)

    assert with_input.text.endswith("### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:3")
    assert "paired with an input that provides further context. Write" in with_input.prompt
    assert without.text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:3"
    )


def test_a_key_holds_what_a_file_says_and_not_where_it_lies(tmp_path: Path) -> None:
    here, there = (written(tmp_path / name, '{"text": "a"}\n') for name in ("here.jsonl", "there.jsonl"))
    other = written(tmp_path / "other.jsonl", '{"text": "b"}\n')
    pins = [file.pin(FileConfig(name="file", path=str(path)), tmp_path)[0] for path in (here, there, other)]

    assert pins[0] == pins[1] != pins[2]
    assert str(tmp_path) not in str(pins[0])

    pinned, places = file.pin(FileConfig(name="file", path=str(here)), tmp_path)
    here.write_text('{"text": "c"}\n')
    with pytest.raises(UserError, match="has changed since the run was planned"):
        file.build(pinned, {}, Context(output=tmp_path, cache=tmp_path, locations=places))


def test_a_directory_and_a_pattern_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "notes.md"):
        written(tmp_path / name, json.dumps({"text": name}) + "\n")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        rows = built(FileConfig(name="file", path=str(path)), tmp_path / "cache")
        assert [row.response for row in rows] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "columns", "said"),
    [
        ("rows.jsonl", '{"text": "a"}\n{"text": \n', {}, r"rows\.jsonl line 2 is not JSON"),
        ("rows.jsonl", '{"text": "a"}\n\n["b"]\n', {}, r"rows\.jsonl line 3 is a list; each row must be an object"),
        ("rows.jsonl", '{"text": "a"}\n{"txt": "b"}\n', {}, r"line 2 has no 'text', did you mean 'txt'\?"),
        ("rows.jsonl", '{"text": "a"}\n{"text": 7}\n', {}, r"line 2: 'text' is 7 \(int\), .* must be text"),
        ("rows.jsonl", "", {}, r"rows\.jsonl has no rows"),
        ("rows.json", '[{"text": "a"}', {}, r"rows\.json is not JSON"),
        ("rows.csv", "text,id\na,1,2\n", {}, r"rows\.csv line 2 has more fields than the header"),
        ("rows.parquet", "PAR", {}, r"rows\.parquet is not Parquet"),
        ("rows.docx", "", {}, r"read by its suffix, which must be one of \.jsonl"),
        ("rows.jsonl", '{"body": "a"}\n', {"text": "bdy"}, r"no column 'bdy' \(data\.columns\.text\), did you mean"),
        ("rows.jsonl", '{"body": "a"}\n', {}, r"the columns body, .* data\.columns\.text=body"),
        ("rows.jsonl", '{"body": "a"}\n', {"prompt": "body"}, r"data\.columns: response is missing"),
        ("rows.jsonl", '{"a": "a"}\n', {"text": "a", "output": "a"}, r"output, text can't make a row together"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_error_that_says_where(
    tmp_path: Path, name: str, content: str, columns: dict[str, str], said: str
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(UserError, match=said):
        built(FileConfig(name="file", path=str(path), columns=ColumnsConfig(**columns)), tmp_path)


def test_bytes_that_are_no_text_and_files_that_are_not_there_are_errors(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(UserError, match="not text in UTF-8"):
        built(TextConfig(name="text", path=str(tmp_path / "latin.txt")), tmp_path)
    with pytest.raises(UserError, match=r"no file .*latim\.txt', did you mean 'latin\.txt'"):
        built(TextConfig(name="text", path=str(tmp_path / "latim.txt")), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no file that ends in \.txt"):
        built(TextConfig(name="text", path=str(tmp_path / "empty")), tmp_path)
    with pytest.raises(UserError, match="data=text reads files of yours: data.path="):
        text.pin(TextConfig(name="text"), tmp_path)


def test_text_is_cut_where_paragraphs_end() -> None:
    paragraphs = [f"{'word ' * 11}end {index}." for index in range(9)]
    rows = list(cut(["\n\n".join(paragraphs)], 150))
    assert [row.split("\n\n") for row in rows] == [paragraphs[i : i + 2] for i in (0, 2, 4, 6)] + [paragraphs[8:]]


@given(
    pieces=st.lists(st.text(alphabet="ab. \n", max_size=40), max_size=20),
    longest=st.integers(2, 30),
)
def test_no_row_of_text_is_too_long_and_none_of_it_is_lost(pieces: list[str], longest: int) -> None:
    rows = list(cut(pieces, longest))
    assert all(0 < len(row) <= longest for row in rows)
    assert re.sub(r"\s", "", "".join(rows)) == re.sub(r"\s", "", "".join(pieces))


def test_the_stage_divides_files_without_holding_them(tmp_path: Path) -> None:
    repeats = [f"text {index % 60} and so on" for index in range(200)]
    path = written(tmp_path / "rows.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in repeats))
    outputs = []
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        config, places = file.pin(FileConfig(name="file", path=str(path), validation_rows=7, seed=seed), tmp_path)
        output = tmp_path / name
        output.mkdir()
        summary = run(config, {}, Context(output=output, cache=tmp_path, locations=places))
        train, validation = (
            [row["response"] for row in read_jsonl(output / f"{part}.jsonl")] for part in ("train", "validation")
        )
        assert not set(train) & set(validation)
        assert set(train) | set(validation) == set(repeats)
        assert len(validation) == len(set(validation)) == summary["rows"]["validation"] == 7
        assert read_json(output / "data.json")["source"]["left_out"] == 0
        outputs.append(validation)
    assert outputs[0] == outputs[1] != outputs[2]


def test_setting_all_texts_aside_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", '{"text": "a"}\n{"text": "b"}\n{"text": "b"}\n')
    config, places = file.pin(FileConfig(name="file", path=str(path), validation_rows=2), tmp_path)
    with pytest.raises(UserError, match=r"data\.validation_rows=2 sets all of the 2 distinct rows aside"):
        run(config, {}, Context(output=tmp_path, cache=tmp_path, locations=places))
    assert not (tmp_path / "train.jsonl").exists()


def test_rows_without_a_text_are_counted_aloud_and_nothing_else_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = "".join(f'{{"text": "{index if index % 2 else ""}"}}\n' for index in range(40))
    for lines, said in ((half, "20 rows of data=file"), ('{"text": ""}\n' * 9, "every response is empty")):
        path = written(tmp_path / "rows.jsonl", lines)
        config, places = file.pin(FileConfig(name="file", path=str(path), validation_rows=2), tmp_path)
        context = Context(output=tmp_path, cache=tmp_path, locations=places)
        if "every" in said:
            with pytest.raises(UserError, match=said):
                run(config, {}, context)
        else:
            run(config, {}, context)
            assert said in caplog.text


def test_rows_are_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as lines:
        lines.writelines(json.dumps({"text": f"{index} " + "so on " * 400}) + "\n" for index in range(8000))
    config, places = file.pin(FileConfig(name="file", path=str(path), validation_rows=20), tmp_path)
    tracemalloc.start()
    try:
        run(config, {}, Context(output=tmp_path, cache=tmp_path, locations=places))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 19e6
    assert peak < 4e6

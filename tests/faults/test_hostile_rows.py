"""What anyone may hand in as rows or questions ends in rows or in one error that names the file."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from faults.hostile import DEEP, JSONS, LONG
from stages.common.files import read_jsonl
from stages.data.columns import ColumnsConfig
from stages.data.file import FileConfig
from stages.data.stage import run as run_data
from stages.data.text import TextConfig
from stages.errors import UserError
from stages.stage import Context
from stages.task_library.questions import read_questions

ROW = {"prompt": "1 + 1 = ", "response": "2"}
GOOD = "".join(json.dumps(ROW | {"prompt": f"{number} = "}) + "\n" for number in range(64))
VALUES: dict[str, Any] = {
    "null": None,
    "a number": 3,
    "a list": ["2"],
    "an object": {"a": 1},
    "true": True,
    "empty": "",
    "NUL bytes": "\0\0",
    "control characters": "\x1b[2J\x07",
    "only spaces": "   ",
}


FEW = ("no row of the data has a text to train on", "data.validation_rows=1 sets all")
"""How errors begin that are about all rows together."""


def parquet(damage: Callable[[bytes], bytes]) -> bytes:
    import io

    import pyarrow
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([ROW] * 5000), stream)
    return damage(stream.getvalue())


FILES: dict[str, tuple[str, bytes | str]] = {
    **{f"JSON Lines: {name}": (".jsonl", content) for name, content in JSONS.items()},
    **{f"JSON: {name}": (".json", content) for name, content in JSONS.items()},
    **{f"JSON Lines: a {name}": (".jsonl", json.dumps(ROW | {"response": value})) for name, value in VALUES.items()},
    "JSON Lines: a deep row among good ones": (".jsonl", GOOD + DEEP + "\n"),
    "JSON Lines: a long number among good rows": (".jsonl", GOOD + '{"prompt": "a", "response": ' + LONG + "}\n"),
    "JSON Lines: half a character among good rows": (".jsonl", GOOD + '{"prompt": "a", "response": "\\ud800"}\n'),
    "JSON: a list of numbers": (".json", "[1, 2]"),
    "JSON: deep in a list": (".json", '[{"prompt": "a", "response": ' + DEEP + "}]"),
    "CSV: an open quote": (".csv", 'prompt,response\n"1 + 1,2\n'),
    "CSV: more fields than the header": (".csv", "prompt,response\n1,2,3\n"),
    "CSV: fewer fields than the header": (".csv", "prompt,response\n1\n"),
    "CSV: NUL bytes": (".csv", "prompt,response\n1,\0\n"),
    "CSV: a header alone": (".csv", "prompt,response\n"),
    "CSV: a column twice": (".csv", "prompt,prompt\n1,2\n"),
    "CSV: not UTF-8": (".csv", b"prompt,response\n1,\xff\n"),
    "Parquet: empty": (".parquet", b""),
    "Parquet: cut": (".parquet", parquet(lambda data: data[: len(data) // 2])),
    "Parquet: no magic number": (".parquet", parquet(lambda data: b"XXXX" + data[4:])),
    "Parquet: a damaged page": (".parquet", parquet(lambda data: data[:64] + b"\xff" * 64 + data[128:])),
    "Parquet: a damaged footer": (".parquet", parquet(lambda data: data[:-60] + b"\xff" * 40 + data[-20:])),
    "gzip: cut": (".jsonl.gz", gzip.compress(GOOD.encode())[:-20]),
    "gzip: no gzip": (".jsonl.gz", GOOD),
    "text: NUL bytes": (".txt", "\0" * 1000),
    "text: not UTF-8": (".txt", b"good text \xff"),
    "text: nothing": (".txt", ""),
}


def hostile(tmp_path: Path, suffix: str, content: bytes | str) -> Path:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("case", FILES)
def test_hostile_rows_end_in_rows_or_one_error(tmp_path: Path, case: str) -> None:
    suffix, content = FILES[case]
    path = hostile(tmp_path, suffix, content)
    columns = ColumnsConfig(prompt="prompt", response="response")
    config: Any = FileConfig(name="file", path=str(path), columns=columns, validation_rows=1)
    if suffix == ".txt":
        config = TextConfig(name="text", path=str(path), validation_rows=1)
    told = ""
    try:
        build(config, tmp_path)
    except UserError as error:
        told = str(error)
    else:
        rows = list(read_jsonl(tmp_path / "out" / "train.jsonl"))
        assert all(isinstance(row["response"], str) for row in rows)
    assert not told or path.name in told or told.startswith(FEW), told
    assert len(told) < 1000


@pytest.mark.parametrize("case", [case for case in FILES if case.startswith("JSON")])
def test_hostile_questions_end_in_questions_or_one_error(tmp_path: Path, case: str) -> None:
    path = hostile(tmp_path, *FILES[case])
    with pytest.raises(UserError, match=path.name):
        read_questions(path)


@pytest.mark.parametrize("value", [*VALUES.values(), LONG, -1, 1.5, "C", 10**30])
@pytest.mark.parametrize("field", ["question", "choices", "answer"])
def test_a_hostile_field_of_a_question_ends_in_a_question_or_one_error(tmp_path: Path, field: str, value: Any) -> None:
    row = {"question": "1 + 1?", "choices": ["1", "2"], "answer": 1} | {field: value}
    with suppress(UserError):
        (found,) = read_questions(hostile(tmp_path, ".jsonl", json.dumps(row)))
        assert found["answer"] in (0, 1)


def test_a_link_to_itself_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    os.symlink(path, path)
    with pytest.raises(UserError, match="rows.jsonl"):
        build(FileConfig(name="file", path=str(path)), tmp_path)


def build(config: Any, root: Path) -> None:
    """Build the data artifact of a file of the user's."""
    from stages.data import file, text

    of = file if isinstance(config, FileConfig) else text
    pinned, places = of.pin(config, root)  # type: ignore[arg-type]
    run_data(pinned, {}, Context(output=root / "out", cache=root, locations=places))

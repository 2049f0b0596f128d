"""The tasks that are known without a search of lm-eval's thousands: names, definitions and rows in the wheel.

A new task is one entry in `TASKS`. Prompts, splits and metrics are in lm-eval's definition
(`stages.task_library.names`), not here. No torch, no lm-eval, because a plan reads these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from stages.common.choices import lookup
from stages.errors import UserError
from stages.task_library import olmo
from stages.task_library.olmo import Document, Reader, arrow, kept, lettered, requests
from stages.task_library.yaml_definition import Definition, lm_eval_tasks, read_definition


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task, by the names that people and lm-eval use.

    Attributes:
        label: its name in tables and pictures.
        definition: lm-eval's YAML file, relative to its `tasks` folder.
        rows: for each split in the wheel, the reader of its rows.
        leaves: the names of a group's tasks, each with an entry of its own.
    """

    label: str
    definition: str
    rows: Mapping[str, Reader] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()


SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
professional_law professional_medicine professional_psychology public_relations security_studies sociology
us_foreign_policy virology world_religions
""".split()  # noqa: SIM905 (a literal would be a page)
"""The subjects of MMLU (arXiv 2009.03300)."""

MMLU = {
    f"mmlu_{subject}": Task(
        label=f"MMLU {subject.replace('_', ' ')}",
        definition=f"mmlu/default/mmlu_{subject}.yaml",
        rows=arrow(f"hails/mmlu_no_train/{subject}", "dev", "validation", "test"),
    )
    for subject in SUBJECTS
}

TASKS: dict[str, Task] = {
    "boolq": Task(
        label="BoolQ",
        definition="super_glue/boolq/default.yaml",
        rows=requests("boolq", olmo.boolq, "train", "validation"),
    ),
    "piqa": Task(
        label="PIQA",
        definition="piqa/piqa.yaml",
        rows=requests("piqa", kept("goal", "sol1", "sol2", "label"), "train", "validation"),
    ),
    "social_iqa": Task(
        label="SIQA",
        definition="siqa/siqa.yaml",
        rows=requests(
            "socialiqa",
            kept("context", "question", "answerA", "answerB", "answerC", "label"),
            "train",
            "validation",
        ),
    ),
    "hellaswag": Task(
        label="HellaSwag",
        definition="hellaswag/hellaswag.yaml",
        rows=requests("hellaswag", olmo.hellaswag, "train") | arrow("hellaswag/none", "validation"),
    ),
    "winogrande": Task(
        label="WinoGrande",
        definition="winogrande/default.yaml",
        rows=requests("winogrande", kept("sentence", "option1", "option2", "answer"), "train", "validation"),
    ),
    "arc_easy": Task(
        label="ARC-e",
        definition="arc/arc_easy.yaml",
        rows=requests("arc_easy", lettered("question"), "train", "validation", "test"),
    ),
    "arc_challenge": Task(
        label="ARC-c",
        definition="arc/arc_challenge.yaml",
        rows=requests("arc_challenge", lettered("question"), "train", "validation", "test"),
    ),
    "openbookqa": Task(
        label="OBQA",
        definition="openbookqa/openbookqa.yaml",
        rows=requests("openbookqa", lettered("question_stem"), "train", "validation", "test"),
    ),
    "commonsense_qa": Task(
        label="CSQA",
        definition="commonsense_qa/default.yaml",
        rows=requests("csqa", lettered("question"), "train") | arrow("tau/commonsense_qa/none", "validation"),
    ),
    "sciq": Task(label="SciQ", definition="sciq/sciq.yaml", rows=arrow("sciq/none", "validation")),
    "copa": Task(label="COPA", definition="super_glue/copa/default.yaml", rows=arrow("super_glue/copa", "validation")),
    "mmlu": Task(label="MMLU", definition="mmlu/default/_mmlu.yaml", leaves=tuple(MMLU)),
    **MMLU,
}
"""Tasks by lm-eval's name, in the order of tables. Each processes its documents one by one and in order, so its first
rows are its first documents."""

RORA = ("boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
SUITES: dict[str, tuple[str, ...]] = {
    "rora": RORA,
    "llmpruner": tuple(name for name in RORA if name != "social_iqa"),
}
"""Tasks that papers report together: RoRA's eight (arXiv 2501.04315), LLM-Pruner's seven (arXiv 2305.11627)."""


@cache
def _carried() -> dict[tuple[str, str | None], str]:
    """Return the known task whose rows are in the wheel, by the data set and its configuration."""
    definitions = {
        name: read_definition(lm_eval_tasks() / task.definition) for name, task in TASKS.items() if task.rows
    }
    return {_data_set(definition): name for name, definition in definitions.items()}


def _data_set(definition: Definition) -> tuple[str, str | None]:
    return str(definition.get("dataset_path")), definition.get("dataset_name") or None


def wheel_rows(definition: Definition) -> Mapping[str, Reader]:
    """Return the readers, by split, of the rows of `definition`'s data set in the wheel; empty where it has none.

    The data set counts, not the task: another task on ARC's rows has them too.
    """
    name = _carried().get(_data_set(definition))
    return TASKS[name].rows if name else {}


def wheel_split(definition: Definition, split: str) -> str:
    """Return the split that the wheel carries for `split`: itself, or validation where lm-eval asks for test.

    Raises:
        UserError: the wheel has neither split.
    """
    rows = wheel_rows(definition)
    if split in rows:
        return split
    if split == "test" and "validation" in rows:
        return "validation"
    carried = f"only {', '.join(rows)}" if rows else "no rows of it"
    raise UserError(
        f"the wheel has no '{split}' of task '{definition.get('task')}' ({carried}). "
        "Take it from the hub: evaluate.source=hub."
    )


def read_documents(wheel: Path, task: str, split: str) -> Iterator[Document]:
    """Return the rows of `split` of `task` in order, from the wheel.

    Raises:
        UserError: the task is unknown, or the wheel has no such split.
    """
    return lookup(f"split of {task} in the wheel", split, lookup("task", task, TASKS).rows)(wheel)

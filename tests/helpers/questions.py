"""A few rows of each task with its hub data set's columns, a tiny model to read them, and lm-eval's own scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from helpers.decoders import decoder
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from stages.common.files import write_json, write_jsonl
from stages.task_library.check import evaluated_split, fewshot_split
from stages.task_library.definitions import leaf_folder
from stages.task_library.registry import TASKS
from stages.task_library.yaml_definition import lm_eval_tasks, read_definition, write_definition

Row = dict[str, Any]


def _arc(question: str, choices: list[str], key: str, labels: str = "ABCDE") -> Row:
    return {"question": question, "choices": {"text": choices, "label": list(labels[: len(choices)])}, "answerKey": key}


def _obqa(stem: str, choices: list[str], key: str) -> Row:
    return {"question_stem": stem, "choices": {"text": choices, "label": list("ABCD")}, "answerKey": key}


ROWS: dict[str, list[Row]] = {
    "boolq": [
        {"passage": "Kiwi -- The kiwi is a bird of New Zealand.", "question": "is a kiwi a bird", "label": 1},
        {
            "passage": "Tea -- Tea is a drink made of leaves, first drunk in China.",
            "question": "is tea soup",
            "label": 0,
        },
        {"passage": "Čapek -- Karel Čapek wrote „R.U.R.“ in 1920.", "question": "did čapek write r.u.r", "label": 1},
    ],
    "piqa": [
        {"goal": "Open a jar.", "sol1": "Turn the lid to the left.", "sol2": "Turn the lid to the right.", "label": 0},
        {"goal": "Dry wet boots.", "sol1": "Put them in the lake", "sol2": "Stuff them with newspaper", "label": 1},
        {"goal": "Keep naan soft.", "sol1": "Cover it with a cloth.", "sol2": "Cover it with sand.", "label": 0},
    ],
    "social_iqa": [
        {
            "context": "Riley lent Lee a pen.",
            "question": "How would Lee feel?",
            "answerA": "angry",
            "answerB": "grateful",
            "answerC": "grateful and late",
            "label": "2",
        },
        {
            "context": "Kai spilled the crème brûlée.",
            "question": "What will Kai do next?",
            "answerA": "clean the floor",
            "answerB": "sleep",
            "answerC": "clean nothing",
            "label": "1",
        },
    ],
    "hellaswag": [
        {
            "activity_label": "Roof shingle removal",
            "ctx_a": "A man is sitting on a roof.",
            "ctx_b": "he",
            "endings": [
                "starts pulling up roofing.",
                "is using wrap [substeps] to wrap skis.",
                "holds a cube.",
                "sings.",
            ],
            "label": "0",
        },
        {
            "activity_label": "Cooking",
            "ctx_a": "[header] How to boil an egg [title] Fill a pot.",
            "ctx_b": "",
            "endings": ["Boil the water.", "Boil the pot.", "Eat the shell.", "Wait — é — three minutes."],
            "label": "3",
        },
    ],
    "winogrande": [
        {
            "sentence": "Ann asked Mary a question, but _ did not answer.",
            "option1": "Ann",
            "option2": "Mary",
            "answer": "2",
        },
        {
            "sentence": "The cup is not in the box: _ is too big.",
            "option1": "the box",
            "option2": "the cup",
            "answer": "2",
        },
        {"sentence": "Zoë beat Eve because _ was quick.", "option1": "Zoë", "option2": "Eve", "answer": "1"},
    ],
    "arc_easy": [
        _arc("What gives plants energy?", ["The Sun", "The Moon", "Rocks", "Rain"], "A"),
        _arc("Which is a mammal?", ["a trout", "a bat", "a bee"], "B"),
    ],
    "arc_challenge": [
        _arc("Water boils at what temperature?", ["0 °C", "50 °C", "100 °C", "200 °C", "it never boils"], "C"),
        _arc("Which falls faster in a vacuum?", ["a feather", "a stone", "neither", "both"], "3", labels="1234"),
    ],
    "openbookqa": [
        _obqa("A person wants to save money, so they", ["spend it", "lend it", "burn it", "put it in a bank"], "D"),
        _obqa("Frogs lay", ["eggs", "eggs", "stones", "bread"], "A"),
    ],
    "commonsense_qa": [
        _arc("Where is milk kept cold?", ["oven", "fridge", "roof", "lake", "drawer"], "B"),
        _arc("What do bees make?", ["honey", "wax paper", "tea", "jam", "crème"], "A"),
    ],
    "sciq": [
        {
            "support": " Plants take in carbon dioxide.",
            "question": "What do plants take in?",
            "distractor1": "gold",
            "distractor2": "oxygen",
            "distractor3": "sand",
            "correct_answer": "carbon dioxide",
        },
        {
            "support": "",
            "question": "Who wrote R.U.R.?",
            "distractor1": "Kafka",
            "distractor2": "Čapek's brother",
            "distractor3": "Wells",
            "correct_answer": "Čapek",
        },
    ],
    "copa": [
        {
            "premise": "The man turned on the tap.",
            "choice1": "The toilet filled.",
            "choice2": "Water flowed.",
            "question": "effect",
            "label": 1,
        },
        {
            "premise": "It was wet.",
            "choice1": "It rained.",
            "choice2": "The sun shone.",
            "question": "cause",
            "label": 0,
        },
    ],
    "mmlu_anatomy": [
        {
            "question": "Where is the femur? ",
            "subject": "anatomy",
            "choices": ["In the arm", "In the leg", "In the skull", "In the hand"],
            "answer": 1,
        },
        {"question": "How many hearts?", "subject": "anatomy", "choices": ["1", "2", "3", "4"], "answer": 0},
    ],
}
"""Choices of differing number, length and alphabet, some equal, some the beginning of another."""

TEXTS: dict[str, list[Row]] = {
    "wikipedia": [
        {"title": "Kiwi", "text": "The kiwi is a flightless bird of New Zealand. It is about the size of a chicken."},
        {"title": "Smørrebrød", "text": "Smørrebrød is buttered rye bread with cold cuts — eaten in Denmark."},
        {"title": "Tea", "text": "Tea is an aromatic drink."},
    ],
    "narrative": [
        {"title": "Ducks", "text": "Once there was a duck.\n\nShe swam home, and no one saw her again."},
        {"title": "Tom", "text": "Tom had a red kite. The wind took it."},
    ],
    "news": [{"title": "Storm", "text": "(CNN) -- A storm has closed the harbour, officials said on Friday."}],
}
"""Held-out texts of some kinds."""

PASSAGES = TEXTS["wikipedia"]


def tasks_artifact(directory: Path, **changes: list[Row]) -> Path:
    """Write the rows as the tasks stage lays them out; `changes` replace a task's rows.

    The rows stand in for the split that examples are drawn from, too.
    """
    record: dict[str, Any] = {}
    for name, rows in (ROWS | changes).items():
        definition, folder = read_definition(lm_eval_tasks() / TASKS[name].definition), leaf_folder(directory, name)
        write_definition(definition, folder)
        splits = {"split": evaluated_split(definition), "fewshot_split": fewshot_split(definition)}
        for split in splits.values():
            write_jsonl(folder / f"{split}.jsonl", rows)
        leaf = {**splits, "rows": len(rows), "fewshot_rows": len(rows)}
        record[name] = {"label": TASKS[name].label, "kind": "lm-eval", "leaves": {name: leaf}}
    write_json(directory / "tasks.json", record)
    write_texts(directory)
    return directory


def write_texts(directory: Path) -> None:
    """Write `TEXTS` as the tasks stage lays them out."""
    for kind, documents in TEXTS.items():
        write_jsonl(directory / "texts" / f"{kind}.jsonl", documents)
    write_json(directory / "texts.json", {kind: {"rows": len(documents)} for kind, documents in TEXTS.items()})


def reader(family: str = "llama", **options: Any) -> PreTrainedModel:
    """Return a tiny model of the tiny tokenizer's vocabulary."""
    return decoder(family, **{"vocab_size": VOCABULARY, "max_position_embeddings": 512} | options)


def model_artifact(directory: Path, **options: Any) -> Path:
    """Save `reader(**options)` and its tokenizer as a model artifact."""
    reader(**options).save_pretrained(directory / "model")
    byte_tokenizer().save_pretrained(directory / "model")
    return directory


def stock(model: Any, tokenizer: PreTrainedTokenizerFast | None = None) -> Any:
    """Return lm-eval's own `HFLM` around `model`."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer or byte_tokenizer(), batch_size=3)


def stock_loglikelihoods(lm: Any, requests: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Return what `HFLM` finds for (context, continuation) pairs."""
    from lm_eval.api.instance import Instance

    instances = [Instance("loglikelihood", {}, request, index) for index, request in enumerate(requests)]
    answers: list[tuple[float, bool]] = lm.loglikelihood(instances, disable_tqdm=True)
    return answers

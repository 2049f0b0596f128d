"""`--help` says of every group and every option what it means, in the words of the schema."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.processes import same_imports
from pipeline.schema.documented import first_sentence
from pipeline.schema.help import text
from pipeline.schema.overrides import groups
from stages.errors import UserError


def told(*words: str) -> dict[str, str]:
    """Return the meanings in the help, by option and by group."""
    found: dict[str, str] = {}
    name = ""
    for line in text(words).splitlines():
        if head := re.match(r"  ([\w.]+)(?:=.*)?$|(\w+): (.*)", line):
            name = head[1] or head[2]
            found[name] = head[3] or ""
        elif line.startswith(" " * 6):
            found[name] += line.strip()
    return found


@pytest.mark.parametrize("prune", ["best", "sparseml"])
def test_every_group_and_option_has_a_line(prune: str) -> None:
    lines = told(f"prune={prune}")
    assert {*groups(), "action", "ratio", "reference", "seed", "force", "recover.tokens", "prune.dtype"} <= lines.keys()
    assert [name for name, meaning in lines.items() if not meaning] == []


def test_the_words_are_those_of_the_option_and_the_value_is_the_one_that_holds() -> None:
    assert told()["recover.distillation.weight"].startswith("Share")
    assert "prune.allocation=uniform" in text(["prune.allocation=uniform"])
    assert "  prune.norm=l2" in text(["prune=magnitude"])


def test_the_command_prints_it_and_a_mistake_beside_it_is_one_error(tmp_path: Path) -> None:
    done = [
        subprocess.run(
            [sys.executable, "-m", "pipeline", "--help", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=same_imports(),
        )
        for words in ([], ["prune=wnda"])
    ]
    assert [one.returncode for one in done] == [0, 1]
    assert "Share of all parameters to remove, in [0, 1)." in done[0].stdout
    assert "did you mean 'wanda'" in done[1].stderr


def test_a_mistake_is_an_error() -> None:
    with pytest.raises(UserError, match="did you mean 'prune'"):
        text(["prun=best"])


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("One. Two.", "One."),
        ("A share in [0. 1]. More.", "A share in [0. 1]."),
        ("As a paper (arXiv 2304.01933) has it. More.", "As a paper (arXiv 2304.01933) has it."),
        ("two\n    lines", "two lines"),
        ("about 0.5 of it. More.", "about 0.5 of it."),
    ],
)
def test_the_first_sentence_ends_at_a_full_stop(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring) == sentence

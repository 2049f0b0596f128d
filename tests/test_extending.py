"""docs/extending.md can be followed: its examples, added to a copy of the project as the page says, work and pass."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from helpers.commands import shell
from helpers.pages import blocks
from helpers.world import ROOT, make_world

PAGE = "docs/extending.md"
PLACE = re.compile(
    r"# (?P<file>\S+?)(?:, (?:in (?P<name>\w+)|(?P<end>at the end)|(?P<imports>among the imports)"
    r"|in the row of `(?P<row>\w+)`|in the table of `(?P<table>\w+=)`))?\n"
)
CODE = ("stages", "pipeline", "conf", "tests", "benchmarks")


def add(block: str, project: Path) -> None:
    """Do with a block what its first line says: a new file, or a place in one that is there."""
    place = PLACE.match(block)
    assert place, block.partition("\n")[0]
    file, text = project / place["file"], block[place.end() :]
    if not any(place.group("name", "end", "imports", "row", "table")):
        assert not file.exists(), file
        file.write_text(text)
        return
    before = file.read_text()
    if place["end"]:
        file.write_text(f"{before}\n\n{text}")
        return
    # A text goes to the beginning of a dictionary, of a table or of a row's second cell, or to the end of a class.
    line = {
        "imports": r"^from __future__ import annotations\n",
        "name": rf"^{place['name']}\b.*\{{\n|^class {place['name']}\b[^\0]*?\n(?=\n\n\S|\Z)",
        "row": rf"^\| `{place['row']}` \| ",
        "table": rf"^\| `{place['table']}` \|.*\n\|[ |:-]+\|\n",
    }[str(place.lastgroup)]
    if place["row"]:
        text = text.replace("\n", " ")
    found = re.findall(line, before, re.MULTILINE)
    assert len(found) == 1, f"{place['file']}: {line}"
    file.write_text(before.replace(found[0], f"{found[0]}{text}"))


def test_who_follows_the_page_adds_what_it_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    world = make_world(tmp_path_factory.mktemp("extending"))
    for name in CODE:
        shutil.copytree(ROOT / name, world.root / name, symlinks=True)
    shutil.copytree(ROOT / "docs", world.root / "docs")
    for file in (ROOT / "pyproject.toml", *ROOT.glob("*.md")):
        shutil.copy(file, world.root)
    for block in blocks(PAGE, "python", "yaml", "markdown"):
        add(block, world.root)
    copy = shell(world, everything_later=True)
    done = copy.run("\n".join(blocks(PAGE, "bash")))
    assert done.returncode == 0, done.stderr
    ours = ":".join(map(str, (world.root, world.root / "tests")))
    done = copy.start([sys.executable, "-m", "helpers.commands", str(copy.noted)], PYTHONPATH=ours)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    selected = re.findall(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert len(selected) == sum(" -m pytest " in line for line in "\n".join(blocks(PAGE, "bash")).splitlines())

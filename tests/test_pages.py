"""What the pages say is true: their commands and snippets run, the files they name are there, their links lead somewhere.

Every shell block runs as written, on a tiny model and tiny rows, with three exceptions. What only plans is planned in
this process, by the functions that the command calls. `make test` and its like run dry. A benchmark, which has a test
of its own, runs as far as its `--help`. The blocks of docs/extending.md run in `test_extending.py`.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from helpers.hubserver import serve_hub
from helpers.pages import PAGES, blocks, headings, links
from helpers.processes import same_imports
from helpers.world import ROOT, World, environment, make_world
from pipeline.execution import run
from pipeline.schema.config import Config, register
from pipeline.schema.overrides import check_arguments

EXTENDING = "docs/extending.md"
SHEARED = ("princeton-nlp/Sheared-LLaMA-1.3B", "a4b76938edbf571ea7d7d9904861cbdca08809b4")
LONGEST = 180
"""Lines of the README: what a stranger reads before deciding."""
FUNCTIONS = r"""
set -e
tiny() {
  more="$SMALL"
  case " $* " in *" data="*|*" recover=best"*) more="$(sed 's/data[.]wheel[^ ]*//g' <<< "$SMALL")";; esac
  case " $* " in *" runtime="*) more="${more/runtime=cpu/}";; esac
  case "$*" in *[mM][oO][dD][eE][lL]=*) echo "$more";; *) echo "$more $MODEL_HERE";; esac
}
make() {
  case "$1" in
    recover|plan)
      given=""; rest=(); run=()
      for word in "$@"; do case "$word" in ARGS=*) given="${word#ARGS=}";; *) rest+=("$word");; esac; done
      if [ "$1" = plan ]; then run=(RUN="$LATER"); fi
      more="$(tiny "$@")"; quote="'"
      command make -o .venv/.installed "${run[@]}" "${rest[@]}" ARGS="$given ${more//$quote/\\$quote}";;
    help|compare) command make -o .venv/.installed "$@";;
    *) command make --dry-run -o .venv/.installed "$@";;
  esac
}
python() {
  case " $* " in
    *" action=plan "*) "$LATER" "$@" $(tiny "$@");;
    *" -m pipeline "*) "$PYTHON" "$@" $(tiny "$@");;
    *" -m benchmarks."*) "$LATER" "$@" --help;;
    *) "$PYTHON" "$@";;
  esac
}
"""
LATER = r"""#!/bin/sh
# In the place of python: notes the module and its arguments, a line each, with an empty line after them.
shift
printf '%s\n' "$@" "" >> "$NOTED"
"""


@dataclass
class Checkout:
    """A directory that looks like a checkout, so that nothing lands in the real one."""

    world: World
    variables: dict[str, str]

    @property
    def noted(self) -> Path:
        return self.world.root / "noted"

    def sh(self, block: str) -> subprocess.CompletedProcess[str]:
        """Run a block as it is written, its commands tiny."""
        self.noted.write_text("")
        with serve_hub() as hub:
            repo, commit = SHEARED
            hub.repos[repo] = {commit: self.world.root / "model", "main": self.world.root / "model"}
            variables = same_imports() | self.variables | hub.environment(self.world.root / "hub")
            # What `make test` was told is not for the `make` of a block.
            variables = {name: value for name, value in variables.items() if name not in MAKE} | {"HF_HUB_OFFLINE": "0"}
            return subprocess.run(
                ["bash", "-c", FUNCTIONS + block], cwd=self.world.root, env=variables, capture_output=True, text=True
            )

    def later(self) -> list[tuple[str, list[str]]]:
        """Return the module and the arguments of every command of the last block that was not started."""
        return [(module, given) for module, *given in map(str.splitlines, self.noted.read_text().split("\n\n")[:-1])]


MAKE = ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    world = make_world(tmp_path_factory.mktemp("pages"))
    folders = ("conf", "pipeline", "stages", "benchmarks", "tests", "docs")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", *folders):
        (world.root / name).symlink_to(ROOT / name)
    (world.root / ".venv").symlink_to(sys.prefix)
    later = world.root / "later"
    later.write_text(LATER)
    later.chmod(0o755)
    model = [o for o in world.overrides if o.startswith(("model=", "model.path="))]
    small = [o for o in world.overrides if o not in model and not o.startswith(("ratio=", "tracker="))]
    variables = world.environment | {"PRUNE_RECOVER_ARTIFACTS": str(world.root / "artifacts"), "PYTHON": sys.executable}
    variables |= {"SMALL": " ".join(small), "MODEL_HERE": " ".join(model), "LATER": str(later)}
    return Checkout(world, variables | {"NOTED": str(world.root / "noted")})


def shell_blocks() -> Iterator[object]:
    for page in PAGES:
        for block in blocks(page, "bash") if page != EXTENDING else ():
            yield pytest.param(block, id=f"{page}: {block.splitlines()[0][:60]}")


@pytest.mark.parametrize("block", shell_blocks())
def test_a_shell_block_of_a_page_runs(
    block: str, checkout: Checkout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done = checkout.sh(block)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    monkeypatch.chdir(checkout.world.root)
    with environment(checkout.variables):
        for module, arguments in checkout.later():
            if module == "pipeline":
                caplog.clear()
                plan(arguments, checkout.world.root)
                assert "evaluate" in caplog.text or "report" in caplog.text
            else:
                with pytest.raises(SystemExit, match="^0$"):
                    importlib.import_module(module).main(arguments)


def plan(arguments: list[str], directory: Path) -> None:
    """Plan what `python -m pipeline` plans with `arguments`, in this process."""
    register()
    check_arguments(arguments)
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=arguments))
    assert isinstance(config, Config)
    run(config, directory / "outputs" / "planned", "a page")


def test_the_pages_have_the_commands_a_reader_looks_for() -> None:
    text = "".join(block for page in PAGES for block in blocks(page, "bash"))
    for command in ("make recover", "make test", "python -m pipeline -m", "pipeline.inspect ls", "make compare"):
        assert command in text


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_of_a_kind_that_is_run(page: str) -> None:
    languages = set(re.findall(r"^```(.*)$", (ROOT / page).read_text(), re.MULTILINE)) - {""}
    assert languages <= {"bash", "python", "text"} | ({"yaml"} if page == EXTENDING else set())


@pytest.mark.parametrize("page", PAGES)
def test_every_file_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    names = set(re.findall(r"`((?:conf|stages|pipeline|tests|docs|notebooks|benchmarks)/[\w/.-]+)`", text))
    # A page on adding files names files that are not there; its own test makes them.
    names -= set(re.findall(r"^# (\S+)$", text, re.MULTILINE)) if page == EXTENDING else set()
    assert not [name for name in sorted(names) if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: str) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


def test_every_page_is_reached_from_the_readme() -> None:
    reached = {Path(target.partition("#")[0]).as_posix() for target in links("README.md")}
    assert {page for page in PAGES if page != "README.md"} <= reached


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST

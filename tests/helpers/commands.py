"""The commands of the pages' shell blocks: made tiny, and run here instead of in a process each.

`python -m helpers.commands FILE` runs the commands that FILE notes, in order, with the code of the working directory.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import pipeline
from helpers import tiny
from helpers.hubserver import serve_hub
from helpers.plain import PLAIN
from helpers.processes import same_imports
from helpers.world import World
from pipeline.schema.config import Action

SERVED = {
    "princeton-nlp/Sheared-LLaMA-1.3B": "a4b76938edbf571ea7d7d9904861cbdca08809b4",
}
"""Models of the hub that pages name, by their commit; each is the tiny one here."""
OURS = ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")
"""What `make test` was told: not for the `make` of a block."""
FUNCTIONS = r"""
set -e
tiny() { "$ADDED" "$TINY" "$@"; }
make() {
  case "$1" in
    recover|plan)
      given=""; rest=(); run=()
      for word in "$@"; do case "$word" in ARGS=*) given="${word#ARGS=}";; *) rest+=("$word");; esac; done
      if [ "$1" = plan ]; then run=(RUN="$LATER"); fi
      more="$(tiny "$@" | tr '\n' ' ')"; quote="'"
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
NOTE = r"""#!/bin/sh
# In the place of python: notes the module and its arguments, a line each, with an empty line after them.
shift
printf '%s\n' "$@" "" >> "$NOTED"
"""


@dataclass
class Shell:
    """Where shell blocks run as they are written, on a tiny model and tiny rows.

    Attributes:
        world: its directory is the working directory.
        variables: the environment, beside the one of the tests.
        later: notes what it is started with, in the place of `python`.
        noted: where.
    """

    world: World
    variables: dict[str, str]
    later: Path
    noted: Path

    def run(self, block: str) -> subprocess.CompletedProcess[str]:
        """Run `block` to its end, but for the commands that are noted for later."""
        self.noted.write_text("")
        return self.start(["bash", "-c", FUNCTIONS + block])

    def start(self, command: list[str], given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end on the input `given`, a stand-in for the hub beside it; `more` are variables."""
        with serve_hub() as hub:
            model = self.world.root / "model"
            hub.repos |= {repo: {commit: model, "main": model} for repo, commit in SERVED.items()}
            variables = same_imports() | self.variables | hub.environment(self.world.root / "hub")
            variables |= {"HF_HUB_OFFLINE": "0"} | more
            for name in OURS:
                variables.pop(name, None)
            return subprocess.run(
                command, cwd=self.world.root, env=variables, input=given, capture_output=True, text=True
            )


def shell(world: World, *, everything_later: bool = False) -> Shell:
    """Return the shell of a world; `everything_later` starts no Python at all."""
    later, noted = world.root / "later", world.root / "noted"
    later.write_text(NOTE)
    later.chmod(0o755)
    model = [o for o in world.overrides if o.startswith(("model=", "model.path="))]
    small = [o for o in world.overrides if o not in (*model, *PLAIN) and not o.startswith(("ratio=", "tracker="))]
    variables = world.environment | {
        "PRUNE_RECOVER_ARTIFACTS": str(world.root / "artifacts"),
        "PYTHON": str(later) if everything_later else sys.executable,
        "SMALL": " ".join(small),
        "MODEL_HERE": " ".join(model),
        "LATER": str(later),
        "ADDED": sys.executable,
        "TINY": tiny.__file__,
        "NOTED": str(noted),
    }
    return Shell(world, variables, later, noted)


def noted(file: Path) -> list[tuple[str, list[str]]]:
    """Return the module and the arguments of every command that `file` notes."""
    return [(module, given) for module, *given in map(str.splitlines, file.read_text().split("\n\n")[:-1])]


def here(module: str, arguments: list[str]) -> None:
    """Run in this process what `python -m MODULE ARGUMENTS` does."""
    if module == "pytest":
        # Assertions of what is imported by now are not rewritten, and pytest says so.
        assert pytest.main(["-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments]) == 0
    elif module != "pipeline":
        importlib.import_module(module).main(arguments)
    else:
        config = pipeline.compose(*arguments)
        if config.action is Action.plan:
            print(pipeline.plan(config=config))
        else:
            pipeline.run(config=config)


if __name__ == "__main__":
    for command in noted(Path(sys.argv[1])):
        print(command, flush=True)
        here(*command)

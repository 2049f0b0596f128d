"""Every shell block of the README runs, as written, on a tiny model and tiny rows.

`make test` only in a dry run, and the benchmark, which has a test of its own, only as far as its `--help`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.hubserver import serve_hub
from helpers.world import ROOT, World, make_world

BLOCKS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
SHEARED = ("princeton-nlp/Sheared-LLaMA-1.3B", "a4b76938edbf571ea7d7d9904861cbdca08809b4")
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
    test) command make --dry-run test;;
    recover|plan)
      given=""; rest=()
      for word in "$@"; do case "$word" in ARGS=*) given="${word#ARGS=}";; *) rest+=("$word");; esac; done
      more="$(tiny "$@")"; quote="'"
      command make -o .venv/.installed "${rest[@]}" ARGS="$given ${more//$quote/\\$quote}";;
    *) command make -o .venv/.installed "$@";;
  esac
}
python() {
  case "$2" in
    pipeline) "$PYTHON" "$@" $(tiny "$@");;
    benchmarks.*) "$PYTHON" "$@" --help;;
    *) "$PYTHON" "$@";;
  esac
}
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose working directory looks like a checkout, so that nothing lands in the real one."""
    world = make_world(tmp_path_factory.mktemp("readme"))
    folders = ("conf", "pipeline", "stages", "benchmarks", "tests")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", *folders):
        (world.root / name).symlink_to(ROOT / name)
    (world.root / ".venv").symlink_to(sys.prefix)
    return world


def test_the_readme_has_the_blocks_this_runs() -> None:
    text = "".join(BLOCKS)
    for command in ("make recover", "make test", "python -m pipeline -m", "pipeline.inspect ls", "make compare"):
        assert command in text


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0][:60] for block in BLOCKS])
def test_a_shell_block_of_the_readme_runs(block: str, checkout: World) -> None:
    model = [o for o in checkout.overrides if o.startswith(("model=", "model.path="))]
    small = [o for o in checkout.overrides if o not in model and not o.startswith(("ratio=", "tracker="))]
    store = {"PRUNE_RECOVER_ARTIFACTS": str(checkout.root / "artifacts")}
    with serve_hub() as hub:
        repo, commit = SHEARED
        hub.repos[repo] = {commit: checkout.root / "model", "main": checkout.root / "model"}
        # What `make test` was told is not for the `make` of a block.
        ours = {name: value for name, value in os.environ.items() if name not in ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES")}
        environment = ours | checkout.environment | hub.environment(checkout.root / "hub") | store
        environment |= {"HF_HUB_OFFLINE": "0", "PYTHON": sys.executable}
        environment |= {"SMALL": " ".join(small), "MODEL_HERE": " ".join(model)}
        done = subprocess.run(
            ["bash", "-c", FUNCTIONS + block], cwd=checkout.root, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_every_file_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    names = re.findall(r"`((?:conf|stages|pipeline|tests|docs|notebooks|benchmarks)/[\w/.-]+)`", text)
    names += re.findall(r"\]\(([^)#:]+)\)", text)
    assert names
    missing = [name for name in names if not Path(ROOT / name).exists()]
    assert not missing

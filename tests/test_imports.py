"""The architecture's promises about imports: conf → pipeline → stages → libraries, and no torch in a plan."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.registry import STAGES

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {stage.function.split(".")[1] for stage in STAGES.values()}
"""The folders in which stages are, as the registry says."""
SHELVES = ("common", "processes", "fetch", "rows", "decoders", "task_library", "text_library", "inference", "adapters")
"""What stages share; a shelf may use those before it."""
FOREIGN = {"pipeline", "conf", "hydra", "omegaconf", "wandb"}


def modules() -> dict[str, Path]:
    """Return every module of `stages` and `pipeline` by its dotted name."""
    paths = [path for package in ("stages", "pipeline") for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Yield what a file imports, modules of ours by their own names, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


def test_no_stage_imports_another_and_no_shelf_a_stage() -> None:
    wrong = []
    for name, path in MODULES.items():
        own = name.split(".")[1] if name.startswith("stages.") else ""
        for found in imports(path):
            other = found.split(".")[1] if found.startswith("stages.") else ""
            across = own in FOLDERS and other in FOLDERS and own != other
            down = own in SHELVES and (
                other in FOLDERS or (other in SHELVES and SHELVES.index(other) > SHELVES.index(own))
            )
            if across or down:
                wrong.append(f"{name} imports {found}")
    assert not wrong


def test_stages_import_neither_the_pipeline_nor_what_belongs_to_it() -> None:
    found = {name: {i.split(".")[0] for i in imports(path)} & FOREIGN for name, path in MODULES.items()}
    assert not {name: foreign for name, foreign in found.items() if foreign and name.startswith("stages")}


def test_every_folder_of_stages_is_a_stage_or_a_shelf() -> None:
    folders = {path.name for path in (ROOT / "stages").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == FOLDERS | set(SHELVES)


def test_tests_take_what_they_share_from_the_helpers() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for found in imports(path):
            assert not found.startswith(("tests.", "test_", "conftest")), f"{path} imports {found}"


def test_a_package_says_what_it_holds_and_holds_no_code_itself() -> None:
    """What is looked up by name is in `registry.py`; only the two public faces are more than a docstring."""
    inner = [path for path in MODULES.values() if path.name == "__init__.py" and path.parent.parent != ROOT]
    assert inner
    assert not [path for path in inner if [type(node) for node in ast.parse(path.read_text()).body] != [ast.Expr]]


def test_no_module_imports_itself_in_a_circle() -> None:
    edges = {name: {found for found in imports(path) if found in MODULES} for name, path in MODULES.items()}
    while free := [name for name, wanted in edges.items() if not wanted]:
        for name in free:
            del edges[name]
        edges = {name: wanted - set(free) for name, wanted in edges.items()}
    assert not edges, "these import each other, or what does"


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.planning.build",
        "pipeline.engine.engine",
        "pipeline.execution",
        "pipeline.inspect",
        "pipeline.compare",
        "pipeline.schema.config",
    ],
)
def test_the_pipeline_loads_no_torch(module: str) -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'peft'}"
    code = f"import sys, {module}; sys.exit(','.join({heavy} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr

"""The architecture's promises about imports: conf → pipeline → stages → libraries, and no torch in a plan."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("model", "tasks", "data", "prune", "recover", "evaluate", "report", "export")
FOREIGN = {"pipeline", "conf", "hydra", "omegaconf", "wandb"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "stages").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_stages_import_neither_the_pipeline_nor_each_other(path: Path) -> None:
    relative = path.relative_to(ROOT / "stages")
    own = relative.parts[0] if len(relative.parts) > 1 else ""
    for name in imports(path):
        assert name.split(".")[0] not in FOREIGN, f"{relative} imports {name}"
        parts = name.split(".")
        if parts[0] == "stages" and len(parts) > 1 and parts[1] in STAGES and parts[1] != own:
            allowed = parts[2:3] == ["config"] or own == ""
            assert allowed, f"{relative} imports {name}"


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

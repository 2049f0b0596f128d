from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.synthetic import store
from stages.decoders.checkpoint import load_model

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NOTEBOOK = NOTEBOOKS / "recovery_curves.ipynb"


def executed(
    artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
    *,
    path: Path = NOTEBOOK,
    seconds: int = 120,
) -> list[Any]:
    """Run a notebook on a store, each cell in so many seconds, and return the outputs of all its cells."""
    monkeypatch.setenv("PRUNE_RECOVER_ARTIFACTS", str(artifacts))
    # A kernel of this interpreter, not one that the machine may have under the name python3.
    monkeypatch.setenv("IPYTHONDIR", str(directory / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": str(directory)}})
    client.execute(env=dict(os.environ))
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_notebook_overlays_the_curves_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path / "artifacts", adapters=("rora", "lora"))
    outputs = executed(tmp_path / "artifacts", monkeypatch, tmp_path)
    shown = "".join(str(output) for output in outputs)
    assert "2 recoveries in" in shown
    assert any("image/png" in output.get("data", {}) for output in outputs)
    table = next(output["data"]["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {}))
    assert "tiny-llama llmpruner −50%, rora r16" in table
    assert "21.3 → 142.6 → 43.0 | 63% [63%, 63%]" in table


def test_the_notebook_says_what_to_do_with_an_empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "".join(str(output) for output in executed(tmp_path / "none", monkeypatch, tmp_path))
    assert "run `make recover` first" in shown


@pytest.mark.real
@pytest.mark.timeout(1800)
def test_the_notebook_prunes_recovers_and_judges_the_embedded_model(
    real_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = NOTEBOOKS / "prune_a_model.ipynb"
    outputs = executed(real_store, monkeypatch, tmp_path, path=path, seconds=900)
    shown = "".join(str(output) for output in outputs)
    assert "134,515,008 parameters" in shown
    assert any("image/png" in output.get("data", {}) for output in outputs)
    table = next(output["data"]["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {}))
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in table.splitlines()[2:]}
    perplexity = {name: float(row[1]) for name, row in cells.items()}
    assert perplexity["dense"] < perplexity["recovered"] < perplexity["pruned"]
    assert cells["recovered"][0] == cells["pruned"][0]
    assert load_model(tmp_path / "recovered", dtype="float32").num_parameters() < 134_515_008


@pytest.mark.parametrize("path", NOTEBOOKS.glob("*.ipynb"), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.synthetic import store
from stages.common.files import read_json
from stages.decoders.checkpoint import load_model

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
GOLDEN = Path(__file__).parent / "golden" / "store" / "artifacts"
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


def test_the_notebook_lays_the_recoveries_of_a_store_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path / "artifacts", adapters=("rora", "lora"))
    outputs = executed(tmp_path / "artifacts", monkeypatch, tmp_path)
    shown = "".join(str(output) for output in outputs)
    assert "2 recoveries in" in shown
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "comparison.html" in next(
        output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})
    )
    page = (tmp_path / "comparison.html").read_text()
    assert "rora" in page
    assert "lora" in page


@pytest.mark.parametrize("name", ["recovery_curves", "what_was_pruned"])
def test_a_notebook_that_reads_a_store_says_what_to_do_with_an_empty_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = executed(tmp_path / "none", monkeypatch, tmp_path, path=NOTEBOOKS / f"{name}.ipynb")
    assert "run `make recover` first" in "".join(str(output) for output in outputs)


def test_the_notebook_shows_what_each_pruning_of_a_store_kept_and_what_it_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = executed(GOLDEN, monkeypatch, tmp_path, path=NOTEBOOKS / "what_was_pruned.ipynb")
    shown = "".join(str(output) for output in outputs)
    assert "4 pruned models in" in shown
    assert "sparseml" not in shown, "masks remove no groups"
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5, "what was kept, and scores of each"
    table = next(output["data"]["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {}))
    assert "| wanda-older-r0.20 | 20.2% | 6.097 → 6.141 |" in table
    assert "| surgeon-older-r0.20 | channels, mlp in competition | 0.0337 | 6.1169 |" in table


def test_the_notebook_adds_a_criterion_that_runs_and_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNE_RECOVER_CACHE", str(tmp_path / "cache"))
    executed(tmp_path / "none", monkeypatch, tmp_path, path=NOTEBOOKS / "add_a_criterion.ipynb", seconds=300)
    records = [read_json(path) for path in (tmp_path / "toy-artifacts" / "prune").glob("*/model/pruning.json")]
    kept = {record["method"]: record["layers"] for record in records}
    assert kept.keys() == {"magnitude", "largest_weight"}
    assert kept["magnitude"] != kept["largest_weight"], "the criteria disagree, so the new one was asked"
    assert "largest_weight" in (tmp_path / "toy-outputs" / "comparison.html").read_text()


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

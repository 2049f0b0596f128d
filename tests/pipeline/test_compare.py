from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline.recoveries import recoveries

from helpers.synthetic import FAIR, SKILL, add, evaluation, everything, store
from pipeline.compare import main
from stages.errors import UserError
from stages.report import wording as w

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("store") / "artifacts", adapters=("rora", "lora", "dora"))


def test_every_recovery_is_a_row_on_the_terminal_and_in_one_offline_page(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "deep" / "compare.html"
    main([f"artifact_root={artifacts}", f"output={page}"])
    printed = capsys.readouterr().out
    html = page.read_text()
    rows = [line for line in printed.splitlines() if "tiny-llama" in line]
    assert [row.split()[5:7] for row in rows] == [["dora", "r16"], ["lora", "r16"], ["rora", "r16"]]
    for said in ("llmpruner", "50.0", "40,960", "52.8", "1.281", "48.2", "[51, 68]", "67.3M"):
        assert all(said in row for row in rows), said
        assert html.count(said) >= 3
    assert html.count("<svg") == 1
    assert "<script" not in html
    assert "http" not in html.replace("http://www.w3.org/", "")
    assert str(page) in printed


def test_every_run_has_its_curve_under_its_number_in_the_table(artifacts: Path, tmp_path: Path) -> None:
    main([f"artifact_root={artifacts}", f"output={tmp_path / 'compare.html'}"])
    html = (tmp_path / "compare.html").read_text()
    for number, adapter in enumerate(("dora", "lora", "rora"), start=1):
        assert f"{number}  tiny-llama, llmpruner −50" in html
        assert f", {adapter} r16</text>" in html


def test_what_is_not_a_complete_recovery_is_left_out(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = store(tmp_path / "artifacts", adapters=("rora", "none"))
    (root / "report" / "killed-0.partial").mkdir()
    (root / "report" / "killed-0.partial" / "report.json").write_text("{}")
    for name, content in (("broken-1", '{"model": '), ("old-2", '{"schema": 0}')):
        (root / "report" / name).mkdir()
        (root / "report" / name / "manifest.json").write_text("{}")
        (root / "report" / name / "report.json").write_text(content)
    assert [one.report["adapter"] for (one,) in recoveries(root)] == ["rora"]
    said = capsys.readouterr().err
    assert "broken-1" in said
    assert "old-2" in said


def test_what_was_judged_differently_stands_in_another_table(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = everything(tmp_path / "inputs")
    root = tmp_path / "artifacts"
    add(root, 0, inputs)
    for place, changes in enumerate(({"protocol": "generation", "passages": 0}, {"documents": 150}), start=1):
        judged = {
            model: evaluation(tmp_path / f"{place}" / model, **skill, **changes) for model, skill in SKILL.items()
        }
        add(root, place, inputs | judged)
    fair = evaluation(tmp_path / "fair", **FAIR)
    add(root, 3, inputs | {"dense_recovered": fair}, reference="dense_recovered")
    main([f"artifact_root={root}", f"output={tmp_path / 'compare.html'}"])
    tables = capsys.readouterr().out.split("\n\n")
    assert [table.splitlines()[0] for table in tables[:3]] == [
        "Judged by generation, 3 tasks × 200 (BoolQ, PIQA, ARC-e)",
        "Judged by likelihood, 3 tasks × 150 (BoolQ, PIQA, ARC-e), zero-shot",
        "Judged by likelihood, 3 tasks × 200 (BoolQ, PIQA, ARC-e), zero-shot",
    ]
    assert [len(table.splitlines()) - 2 for table in tables[:3]] == [1, 1, 2]
    assert sum("recovered dense" in row for row in tables[2].splitlines()) == 1
    html = (tmp_path / "compare.html").read_text()
    assert html.count("<table") == 3
    assert "Over seeds" not in html


def test_repetition_of_the_recovered_model_is_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "artifacts"
    judged = {
        model: evaluation(tmp_path / model, **skill, repetition=share)
        for (model, skill), share in zip(SKILL.items(), (0.2, 0.6, 0.4), strict=True)
    }
    add(root, 0, everything(tmp_path / "inputs"))
    add(root, 1, everything(tmp_path / "inputs") | judged, adapter="lora")
    main([f"artifact_root={root}", f"output={tmp_path / 'compare.html'}"])
    _, heads, *rows = capsys.readouterr().out.splitlines()
    start = heads.index("repeated 4-grams")
    cells = [row[start : start + len("repeated 4-grams")].strip() for row in rows[:2]]
    assert len(cells) == 2
    assert w.DASH in cells
    assert any(cell.startswith(("39.", "40.")) for cell in cells)


def test_runs_that_differ_in_nothing_but_seeds_are_summed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, root = everything(tmp_path / "inputs"), tmp_path / "artifacts"
    for seed, accuracy in enumerate((0.45, 0.5, 0.55)):
        skill = SKILL["recovered"] | {"accuracy": accuracy, "bits": 1.2 + seed / 10}
        judged = inputs | {"recovered": evaluation(tmp_path / f"{seed}", **skill)}
        add(root, seed, judged, seed=seed)
    add(root, 3, judged, seed=2, resamples=200)
    add(root, 4, inputs, adapter="lora", seed=3)
    found = [one for group in recoveries(root) for one in group]
    hits = sorted({one.report["mean"]["recovered"]["acc"] for one in found if one.report["adapter"] == "rora"})
    main([f"artifact_root={root}", f"output={tmp_path / 'compare.html'}"])
    row = capsys.readouterr().out.split("Over seeds")[1].splitlines()[2]
    assert "rora r16" in row
    assert len(hits) == 3, "a run reported twice counts once"
    assert f"{100 * statistics.mean(hits):.1f}\u00a0% ± {100 * statistics.stdev(hits):.1f}" in row
    assert re.search(r"1\.28\d ± 0\.100", row)
    assert row.split("likelihood")[1].split()[:6] == ["3", "tasks", "×", "200", "0", "dense"]
    assert "Over seeds" in (tmp_path / "compare.html").read_text()


def test_runs_trained_on_judged_tasks_are_marked(tmp_path: Path) -> None:
    root = store(tmp_path / "artifacts", adapters=("rora",), trained_tasks=["piqa"])
    main([f"artifact_root={root}", f"output={tmp_path / 'compare.html'}"])
    assert "Run 1 trained on train splits of judged tasks" in (tmp_path / "compare.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["artifact_root={tmp}/none"], "make recover"),
        (["artifact_rot=x"], "did you mean 'artifact_root'"),
        (["artifact_root={store}", "output={tmp}/file/below.html"], "file"),
    ],
)
def test_bad_input_is_one_clear_error(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main([argument.format(tmp=tmp_path, store=artifacts) for argument in arguments])
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err


def test_an_empty_store_is_an_error_of_the_users(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recoveries in"):
        recoveries(tmp_path)


def test_a_comparison_loads_no_torch(artifacts: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pipeline.compare import main; main(sys.argv[1:])\n"
        "sys.exit('loads torch' if {'torch', 'transformers'} & set(sys.modules) else 0)"
    )
    arguments = [f"artifact_root={artifacts}", f"output={tmp_path / 'compare.html'}"]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, cwd=ROOT)

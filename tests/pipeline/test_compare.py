from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.compare import main, recoveries
from stages.errors import UserError
from tests.report.synthetic import store

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
    assert [one.report["adapter"] for one in recoveries(root)] == ["rora"]
    said = capsys.readouterr().err
    assert "broken-1" in said
    assert "old-2" in said


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

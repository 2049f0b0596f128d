from __future__ import annotations

import csv
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.many_runs import many
from helpers.synthetic import FAIR, SKILL, add, evaluation, everything, store
from helpers.world import environment, make_world
from pipeline.compare import main
from pipeline.comparison.lines import lines, ranges
from pipeline.comparison.runs import runs
from pipeline.comparison.tables import heading
from stages.common.files import read_json, sha256_of, write_json
from stages.errors import UserError
from stages.report.render import SCHEMA

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("store") / "artifacts", adapters=("rora", "lora", "dora"))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    main(arguments)
    return capsys.readouterr().out


def test_every_run_is_a_row_on_the_terminal_and_in_one_page(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "deep" / "compare.html"
    said = printed(capsys, f"artifact_root={artifacts}", f"output={page}")
    html = page.read_text()
    rows = [line for line in said.splitlines() if re.match(r"\d  ", line)]
    assert [row.split()[1:3] for row in rows] == [["dora", "r16"], ["lora", "r16"], ["rora", "r16"]]
    for value in ("52.8", "1.281", "48.2", "[51, 68]", "67.3M"):
        assert all(value in row for row in rows), value
        assert html.count(value) >= 3
    assert "Alike in all runs: model tiny-llama; pruned by llmpruner; removed 50.0" in said
    assert "default-src 'none'" in html, "the page forbids itself the network"
    assert page.stat().st_size < 6_000_000
    assert said.splitlines()[-1] == str(page)


def test_a_row_leads_to_the_runs_report(artifacts: Path, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    main([f"artifact_root={artifacts}", f"output={page}"])
    found = re.findall(r'<a href="([^"]+)"', page.read_text())
    assert len(found) == 3
    assert all((page.parent / target).resolve().is_file() for target in found)


def test_what_is_not_a_complete_report_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = store(tmp_path / "artifacts", adapters=("rora", "none"))
    (root / "report" / "killed-0.partial").mkdir()
    (root / "report" / "killed-0.partial" / "report.json").write_text("{}")
    for name, content in (("broken-1", '{"model": '), ("old-2", '{"schema": 0}')):
        (root / "report" / name).mkdir()
        (root / "report" / name / "manifest.json").write_text("{}")
        (root / "report" / name / "report.json").write_text(content)
    assert [run.report["adapter"] for group in runs(root) for run in group] == ["none", "rora"]
    said = capsys.readouterr().err
    assert "broken-1" in said
    assert "old-2" in said


def test_what_was_judged_differently_stands_in_another_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    found = runs(root)
    assert [heading(group) for group in found] == [
        "Judged by generation, 3 tasks × 200 (BoolQ, PIQA, ARC-e)",
        "Judged by likelihood, 3 tasks × 150 (BoolQ, PIQA, ARC-e), zero-shot",
        "Judged by likelihood, 3 tasks × 200 (BoolQ, PIQA, ARC-e), zero-shot",
    ]
    assert [len(group) for group in found] == [1, 1, 2]
    said = printed(capsys, f"artifact_root={root}", f"output={tmp_path / 'compare.html'}")
    assert [said.count(heading(group)) for group in found] == [1, 1, 1]
    assert [f"zero-shot: {numbers}\n" in said for numbers in ("run 2", "runs 3, 4", "runs 3–4")] == [True, True, False]
    assert sum("recovered dense" in row for row in said.splitlines()) == 1
    html = (tmp_path / "compare.html").read_text()
    assert html.count('<table class="folded">') == 3
    assert "Over seeds" not in html


def test_perplexities_in_other_tokens_are_never_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same texts and tasks, but a tokenizer with longer tokens: its perplexity of one text is another figure."""
    root = tmp_path / "artifacts"
    for place, (model, token, better) in enumerate((("tiny", 4, 0.0), ("tiny", 4, 0.8), ("large", 5, 1.6))):
        judged = {
            name: evaluation(tmp_path / f"{place}" / name, **skill | {"nll": skill["nll"] - better}, token=token)
            for name, skill in SKILL.items()
        }
        add(root, place, everything(tmp_path / "inputs") | judged, model=model, data=f"rows{place}")
    said = printed(capsys, f"artifact_root={root}", "format=md")
    assert [[run.report["model"] for run in group] for group in runs(root)] == [["large"], ["tiny", "tiny"]]
    assert "Judged by likelihood, 3 tasks × 200 (BoolQ, PIQA, ARC-e), zero-shot, large: run 1" in said
    assert "Judged by likelihood, 3 tasks × 200 (BoolQ, PIQA, ARC-e), zero-shot, tiny: runs 2, 3" in said
    assert "Best in held-out perplexity: run 3" in said
    assert said.count("Best in held-out perplexity") == 1


def test_repetition_of_the_recovered_model_is_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "artifacts"
    judged = {
        model: evaluation(tmp_path / model, **skill, repetition=share)
        for (model, skill), share in zip(SKILL.items(), (0.2, 0.6, 0.4), strict=True)
    }
    add(root, 0, everything(tmp_path / "inputs"))
    add(root, 1, everything(tmp_path / "inputs") | judged, adapter="lora")
    found = list(csv.DictReader(io.StringIO(printed(capsys, f"artifact_root={root}", "format=csv"))))
    assert sorted(row["repeated 4-grams"][:4] for row in found) == ["", "0.40"]


def test_runs_that_differ_in_nothing_but_seeds_are_one_line_and_are_summed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, root = everything(tmp_path / "inputs"), tmp_path / "artifacts"
    for seed, accuracy in enumerate((0.45, 0.5, 0.55)):
        skill = SKILL["recovered"] | {"accuracy": accuracy, "bits": 1.2 + seed / 10}
        judged = inputs | {"recovered": evaluation(tmp_path / f"{seed}", **skill)}
        add(root, seed, judged, seed=seed)
    add(root, 3, judged, seed=2, resamples=200)
    add(root, 4, inputs, adapter="lora", seed=3)
    found = runs(root)
    assert sorted(len(line.runs) for line in lines(found)) == [1, 3], "a run reported twice counts once"
    hits = [run.report["mean"]["recovered"]["acc"] for run in found[0] if run.report["adapter"] == "rora"]
    said = printed(capsys, f"artifact_root={root}", f"output={tmp_path / 'compare.html'}")
    row = said.split("Over seeds")[1].splitlines()[2]
    assert "rora r16" in row
    assert f"{100 * statistics.mean(hits):.1f}\u00a0% ± {100 * statistics.stdev(hits):.1f}" in row
    assert re.search(r"1\.28\d ± 0\.100", row)
    assert "Over seeds" in (tmp_path / "compare.html").read_text()


def test_runs_trained_on_judged_tasks_are_marked(tmp_path: Path) -> None:
    root = store(tmp_path / "artifacts", adapters=("rora",), trained_tasks=["piqa"])
    main([f"artifact_root={root}", f"output={tmp_path / 'compare.html'}"])
    assert "Run 1 trained on train splits of judged tasks" in (tmp_path / "compare.html").read_text()


def test_choices_that_set_runs_apart_come_first_and_those_that_are_alike_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = many(tmp_path / "artifacts", 4)
    for place, (path, rate) in enumerate(
        zip(sorted((root / "report").glob("*/report.json")), (1e-3, 2e-3) * 2, strict=True)
    ):
        report = read_json(path)
        del report["training"]["tuning"]
        report["configuration"]["recover"]["recover"] |= {"learning_rate": rate, "warmup": 0.1 * (place == 3)}
        write_json(path, report)
    header = printed(capsys, f"artifact_root={root}", "format=csv").splitlines()[0].split(",")
    results = header.index("held-out perplexity")
    assert {"adapter", "rate", "recover.warmup"} == set(header[3:results])
    assert header[-9:-1] == ["pruned by", "removed", "data", "objective", "loss", "tokens", "seed", "reference"]
    assert "test perplexity" in header


def test_csv_and_json_hold_the_numbers_of_every_run(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_ = f"artifact_root={artifacts}"
    rows = list(csv.DictReader(io.StringIO(printed(capsys, store_, "format=csv"))))
    records = json.loads(printed(capsys, store_, "format=json"))
    (report, *_) = [run.report for group in runs(artifacts) for run in group]
    assert [float(row["accuracy"]) for row in rows] == [record["accuracy"] for record in records]
    assert records[0]["accuracy"] == report["mean"]["recovered"]["acc"]
    assert records[0]["held-out perplexity, low"] == report["texts"]["mean"]["intervals"]["recovered"][0]
    assert "| 1 | dora r16 |" in printed(capsys, store_, "format=md")


def test_runs_are_chosen_by_the_beginning_of_a_key_or_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = many(tmp_path / "artifacts", 6)
    keys = [run.key for group in runs(root) for run in group]
    records = json.loads(printed(capsys, f"artifact_root={root}", "format=json", keys[1][:8], keys[4][:8]))
    assert {record["key"] for record in records} == {keys[1], keys[4]}
    assert len(json.loads(printed(capsys, f"artifact_root={root}", "format=json", "lora-"))) == 2
    assert len(json.loads(printed(capsys, f"artifact_root={root}", "format=json", "everything"))) == 6


def test_the_runs_of_an_experiment_are_those_that_its_command_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path)
    changes = ("prune=magnitude", "ratio=0.2", "recover.seed=1", "adapter.rank=2", "recover.tune=none")
    changes += ("recover.tune_tokens=null", "recover.tune_seed=null")
    changes += ("recover.tokens=500", "recover.validation_tokens=256", "recover.test_tokens=256")
    world.run("experiment=rank_sweep", *changes, "adapter=lora")
    world.run("experiment=rank_sweep", *changes, "adapter=lora", "recover.tokens=600")
    with environment(world.environment):
        main([*world.arguments("experiment=rank_sweep", *changes, "adapter=lora,rora"), "format=json"])
    told = capsys.readouterr()
    (record,) = json.loads(told.out)
    assert record["tokens"] < 600
    assert "1 of the 2 runs are in the store. Run the others: python -m pipeline -m " in told.err


def test_cells_outlive_the_store_and_are_compared_like_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, kept = many(tmp_path / "artifacts", 6), tmp_path / "kept"
    printed(capsys, f"artifact_root={root}", "format=cells", f"output={kept / 'sweep'}")
    assert len(list((kept / "sweep").iterdir())) == 6
    forms = ("md", "csv", "json")
    before, after = (
        [printed(capsys, f"artifact_root={place}", f"format={form}") for form in forms] for place in (root, kept)
    )
    assert before == after
    cut = [printed(capsys, f"artifact_root={place}", "format=svg", "chart=kept") for place in (root, kept)]
    assert cut[0] == cut[1]
    (kept / "sweep" / "other.json").write_text('{"a": 1}')
    main([f"artifact_root={kept}", "format=csv"])
    said = capsys.readouterr()
    assert said.out == before[1]
    assert "other.json is not a cell" in said.err


@pytest.mark.parametrize(
    "changed",
    [
        {"created": None},
        {"name": 5},
        {"seconds": "long"},
        {"layers": [{"heads": [1, "a"], "channels": [1, 2]}]},
        {"report": {"schema": SCHEMA}},
    ],
)
def test_a_cell_with_something_of_another_kind_is_left_out(
    changed: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, kept = store(tmp_path / "artifacts", adapters=("rora", "lora")), tmp_path / "kept"
    main([f"artifact_root={root}", "format=cells", f"output={kept}"])
    cell = sorted(kept.iterdir())[0]
    write_json(cell, read_json(cell) | changed)
    main([f"artifact_root={kept}", f"output={tmp_path / 'compare.html'}"])
    assert f"left out: {cell} is no" in capsys.readouterr().err
    assert [len(group) for group in runs(kept)] == [1]


def test_a_report_that_is_not_what_was_written_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = store(tmp_path / "artifacts", adapters=("rora", "lora"))
    for directory in (root / "report").iterdir():
        files = {"report.json": {"sha256": sha256_of(directory / "report.json")}}
        write_json(directory / "manifest.json", {"files": files})
    assert [len(group) for group in runs(root)] == [2]
    damaged = next((root / "report").glob("lora*")) / "report.json"
    content = bytearray(damaged.read_bytes())
    place = content.index(b'"ratio_achieved": 0.') + len(b'"ratio_achieved": 0.')
    content[place] ^= 1
    damaged.write_bytes(content)
    assert [run.report["adapter"] for group in runs(root) for run in group] == ["rora"]
    said = capsys.readouterr().err
    assert f"left out: {damaged} is not what was written (its SHA-256 differs)" in said
    assert "pipeline.inspect verify --repair" in said


def test_too_few_documents_are_called_that_and_not_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "artifacts"
    inputs = everything(tmp_path / "inputs", documents=4, passages=4)
    other = {"recovered": evaluation(tmp_path / "other", **FAIR, documents=4, passages=4)}
    add(root, 0, inputs)
    add(root, 1, inputs | other, adapter="lora")
    said = printed(capsys, f"artifact_root={root}", "format=md")
    assert not re.search("Within noise in (held-out|bits|accuracy)|loss within noise|≈ best", said)
    assert said.count("too few documents") > 6
    assert "Too few documents in held-out perplexity: fewer than 6." in said


NASTY = '<script>alert(1)</script> $x^{$ "quo\'te" `|` &amp; \x00\x1b[31m\u202e'


def test_names_of_configurations_are_shown_and_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A `$` is no formula, a tag no tag, a control character no character, in any form and picture of the page."""
    root = tmp_path / "artifacts"
    inputs = everything(tmp_path / "inputs")
    for place, adapter in enumerate(("rora", "lora")):
        add(root, place, inputs, adapter=adapter, model=NASTY, data=NASTY, prune=NASTY)
    said = printed(capsys, f"artifact_root={root}", f"output={tmp_path / 'compare.html'}")
    html = (tmp_path / "compare.html").read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    for text in (html, said, *(printed(capsys, f"artifact_root={root}", f"format={form}") for form in ("md", "csv"))):
        assert not re.search("[\x00-\x08\x1b\u202e]", text)
    drawn = printed(capsys, f"artifact_root={root}", "format=svg", "chart=curves")
    assert "<script>" not in drawn
    assert "$x^{$" in drawn
    assert all("<script>alert" not in path.read_text() for path in root.rglob("*.html"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["artifact_root={tmp}/none"], "make recover"),
        (["artifact_rot=x"], "did you mean 'artifact_root'"),
        (["artifact_root={store}", "output={tmp}/file/below.html"], "file"),
        (["artifact_root={store}", "format=pdf"], "format=pdf: there is none"),
        (["artifact_root={store}", "format=cells"], "output=DIR"),
        (["artifact_root={store}", "format=svg", "chart=rank"], "did you mean 'ranks'"),
        (["artifact_root={store}", "format=svg", "chart=kept"], "no numbers for it"),
        (["artifact_root={store}", "ffff"], "begins with 'ffff'"),
        (["artifact_root={store}", "everything", "ffff"], "stands alone"),
        (["artifact_root={store}", "experiment=rank_swep"], "rank_sweep"),
        (["artifact_root={store}", "experiment=smoke"], "Run it: python -m pipeline experiment=smoke"),
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


def test_a_store_without_reports_has_no_runs_and_no_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = store(tmp_path / "artifacts", adapters=("rora",))
    write_json(root / "model" / "tiny-1" / "manifest.json", {})
    shutil.rmtree(root / "report")
    with pytest.raises(UserError, match="no runs in"):
        runs(root)
    assert "left out" not in capsys.readouterr().err


def test_an_empty_store_is_an_error_of_the_users(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs in"):
        runs(tmp_path)


def test_a_comparison_loads_no_torch_and_a_table_no_chart_library(artifacts: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pipeline.compare import main; main(sys.argv[2:])\n"
        "sys.exit(', '.join(set(sys.argv[1].split(',')) & set(sys.modules)) or 0)"
    )
    store_ = f"artifact_root={artifacts}"
    for unwanted, arguments in (
        ("torch,transformers,matplotlib", [store_, f"output={tmp_path / 'compare.html'}"]),
        ("torch,altair,vl_convert,hydra", [store_, "format=csv"]),
        ("torch,altair,vl_convert,hydra", [store_, "format=md"]),
    ):
        subprocess.run([sys.executable, "-c", script, unwanted, *arguments], check=True, cwd=ROOT)


def test_ascending_numbers_are_written_as_ranges() -> None:
    assert [ranges(found) for found in ([3], [3, 5], [1, 2], [1, 2, 3, 4, 7])] == ["3", "3, 5", "1, 2", "1–4, 7"]


def test_a_layer_that_is_gone_and_a_damaged_record_leave_the_comparison_whole(tmp_path: Path) -> None:
    root = many(tmp_path / "store", 12)
    records = sorted(root.glob("prune/*/model/pruning.json"))
    record = read_json(records[0])
    record["layers"][2] = None
    write_json(records[0], record)
    records[1].write_text("{")
    found = [run for group in runs(root) for run in group]
    by_cut = {run.pruned: run.layers for run in found}
    assert by_cut[f"prune/{records[0].parts[-3]}"][2].heads == (0, 8)
    assert by_cut[f"prune/{records[1].parts[-3]}"] == []

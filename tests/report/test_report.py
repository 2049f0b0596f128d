from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers.processes import same_imports
from helpers.synthetic import SKILL, TASKS, config, evaluation, everything, report_of
from stages.common.files import read_json, write_json, write_jsonl
from stages.errors import UserError
from stages.report.render import write_run_report
from stages.report.stage import run
from stages.stage import Context

RUN = {
    "stages": [
        {"name": "model", "key": "a" * 64, "status": "hit", "seconds": 0.01, "peak_memory_bytes": None, "drift": {}},
        {
            "name": "recover",
            "key": "b" * 64,
            "status": "built",
            "seconds": 412.3,
            "peak_memory_bytes": 3 * 2**30,
            "peak_device_memory_bytes": 5 * 10**9,
            "peaks": {
                "this process": {"memory_bytes": 3 * 2**30, "device_memory_bytes": {}},
                "worker 0": {"memory_bytes": 4 * 10**9, "device_memory_bytes": {"cuda:0": 5 * 10**9}},
            },
            "drift": {"torch": ["2.12.0", "2.13.0"]},
        },
    ],
    "versions": {"torch": "2.13.0"},
    "hardware": {"processor": "a processor", "cores": 2},
    "commit": "abc1234",
    "command": "python -m pipeline ratio=0.5",
    "started": "2026-01-01T00:00:00+00:00",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return everything(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def artifact(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report")
    run(config(), inputs, Context(output=output))
    return output


def test_the_report_has_the_fields_that_readers_rely_on(artifact: Path) -> None:
    report = read_json(artifact / "report.json")
    assert {"model", "prune", "adapter", "reference"} <= report.keys()
    assert report["params"]["ratio_requested"] == 0.5
    assert report["params"]["ratio_achieved"] == pytest.approx(1 - 67.3 / 134.515008, abs=1e-6)
    assert set(report["tasks"]) == set(TASKS)
    for task in report["tasks"].values():
        for model in SKILL:
            assert {"acc", "acc_norm", "bits_per_byte", "n"} <= task[model].keys()
        assert 0 < task["chance"] < 1
    assert report["tasks"]["boolq"]["dense"]["acc_norm"] is None
    assert set(SKILL) <= report["perplexity"].keys()
    assert {"retained", "recovered", "interval"} <= report["recovery"].keys()
    assert report["curve"][0] == {"step": 0, "tokens": 0, "validation_loss": 5.0}
    assert "stages" not in report


def test_the_running_cost_of_every_model_is_shown(artifact: Path) -> None:
    for name in ("report.md", "report.html"):
        text = (artifact / name).read_text()
        for said in (
            "134,515,008",
            "67,300,000",
            "538 MB",
            "135 ms",
            "16.8 ms",
            "807 MB",
            "0.50×",
            "951",
            "a processor (2 cores)",
        ):
            assert said in text, (name, said)


def test_what_was_trained_on_how_much_is_shown(artifact: Path) -> None:
    assert "3.0M parameters trained beside the model's 67.3M, on 40,960 tokens" in (artifact / "report.md").read_text()


def test_what_came_back_is_computed_from_the_documents(artifact: Path) -> None:
    report = read_json(artifact / "report.json")
    accuracy = {model: report["mean"][model]["acc"] for model in SKILL}
    gain, loss = accuracy["recovered"] - accuracy["pruned"], accuracy["dense"] - accuracy["pruned"]
    assert report["recovery"]["recovered"] == pytest.approx(gain / loss)
    assert report["recovery"]["retained"] == pytest.approx(accuracy["recovered"] / accuracy["dense"])
    low, high = report["recovery"]["interval"]
    assert low < report["recovery"]["recovered"] < high
    assert report["perplexity"]["log"]["recovered"]["value"] == pytest.approx((5.0 - 3.8) / (5.0 - 3.1))


def test_the_summary_leads_with_what_is_clear_and_names_the_numbers(artifact: Path) -> None:
    lines = read_json(artifact / "report.json")["summary"].splitlines()
    assert lines[0].startswith("The recovered model is not as good as the dense one: ")
    assert lines[1].startswith("Pruning removed 50.0")
    of_text = (
        "Pruning raised perplexity of held-out text from 21.",
        "Pruning raised perplexity of Wikipedia passages from",
    )
    assert lines[2].startswith(of_text[0])
    assert lines[3].startswith(f"{of_text[1]} 23.9 to 159.9; recovery lowered it to 48.2, 63")
    assert "noise" not in " ".join(lines)


def test_masks_are_reported_as_zeros_among_parameters_that_stay_and_no_speed_up_is_claimed(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    record = {
        "masks": {"model.layers.0.mlp.up_proj": {}},
        "parameters": {"dense": 134_515_008, "pruned": 134_515_008},
        "nonzeros": {"dense": 134_515_008, "pruned": 81_435_000},
        "sparsity": {"requested": 0.5, "achieved": 0.5, "weights": 106_168_320},
    }
    write_json(tmp_path / "prune" / "model" / "pruning.json", record)
    judged = {name: path for name, path in inputs.items() if name not in ("cost", "prune")}
    report = report_of(tmp_path / "report", config(), judged | {"prune": tmp_path / "prune"})

    first = report["summary"].splitlines()[1]
    assert first.startswith("Masking set 50.0")
    assert "of 106.2M weights to zero: all 134.5M parameters stay, 81.4M of them not zero" in first
    assert "nothing here is faster" in first
    assert report["params"]["ratio_achieved"] == 0


def test_the_summary_claims_nothing_that_is_within_noise(tmp_path: Path) -> None:
    same = {"accuracy": 0.5, "bits": 1.0, "nll": 3.0}
    inputs = {model: evaluation(tmp_path / model, **same) for model in SKILL}
    report = report_of(tmp_path / "report", config(), inputs)
    assert report["summary"].splitlines()[1].startswith("No difference is clear at 95 %")
    for verb in ("raised", "lowered", "of the loss"):
        assert verb not in report["summary"]
    assert report["recovery"]["recovered"] is None
    assert "within noise" in report["recovery"]["reason"]


def test_an_effect_within_noise_is_named_after_the_clear_ones(tmp_path: Path) -> None:
    skills = {name: skill | {"accuracy": 0.5} for name, skill in SKILL.items()}
    inputs = {model: evaluation(tmp_path / model, **skill) for model, skill in skills.items()}
    _, *clear, last = report_of(tmp_path / "report", config(), inputs)["summary"].splitlines()
    assert all("accuracy" not in line for line in clear)
    assert last.startswith("Within noise: the effect of pruning on mean accuracy")


def test_training_on_the_judged_tasks_is_never_called_recovery(tmp_path: Path, inputs: dict[str, Path]) -> None:
    report = report_of(tmp_path, config(trained_tasks=["piqa", "arc_easy", "not_judged"]), inputs)
    assert "PIQA and ARC-e" in report["caution"]
    assert "the dense model, as it is" in report["caution"]
    _, *after = report["summary"].splitlines()
    accuracy = next(line for line in after if "accuracy" in line)
    assert "training raised it" in accuracy
    assert "recovery and task fitting mixed" in accuracy
    perplexity = next(line for line in after if "perplexity" in line)
    assert "recovery lowered it" in perplexity
    assert "fitting" not in perplexity
    assert "Caution" in (tmp_path / "report.md").read_text()
    assert "Caution" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("missing", "changes", "said"),
    [
        (["recovered", "recover"], {"adapter": "none", "data": "none"}, "adapter=none"),
        (["dense"], {"reference": "none"}, "reference=none"),
        (["dense", "recovered", "recover"], {"reference": "none", "adapter": "none"}, "reference=none"),
        (["dense", "pruned", "recovered", "cost"], {}, "evaluate=none"),
        (["prune", "cost"], {"prune": "sheared"}, "came pruned"),
        (["dense", "pruned", "recovered", "cost", "prune", "recover"], {"adapter": "none"}, "evaluate=none"),
    ],
)
def test_missing_parts_are_said_and_do_not_stop_the_report(
    tmp_path: Path, inputs: dict[str, Path], missing: list[str], changes: dict[str, Any], said: str
) -> None:
    present = {name: path for name, path in inputs.items() if name not in missing}
    report = report_of(tmp_path, config(**changes), present)
    assert said in " ".join(report["notes"])
    assert said in (tmp_path / "report.md").read_text()
    if "dense" in missing:
        assert report["recovery"]["recovered"] is None
        assert report["recovery"]["reason"]


def test_equal_inputs_give_equal_bytes_in_another_process(tmp_path: Path, artifact: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from helpers.synthetic import config, everything\n"
        "from stages.report.stage import run; from stages.stage import Context\n"
        "run(config(), everything(Path(sys.argv[1]) / 'in'), Context(output=Path(sys.argv[1]) / 'out'))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=same_imports())
    names = sorted(path.name for path in artifact.iterdir())
    assert names == ["curve.svg", "report.html", "report.json", "report.md", "results.md", "tasks.svg"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (artifact / name).read_bytes(), name


class Links(HTMLParser):
    """Collects what a page would load, and its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert tag not in ("script", "link", "iframe", "img")


def test_the_page_is_one_file_that_loads_nothing(artifact: Path) -> None:
    page = (artifact / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert page.count("<svg") == 2
    assert all(link.startswith("#") for link in links.loads)
    assert {link[1:] for link in links.loads} <= set(links.ids)
    assert len(links.ids) == len(set(links.ids))
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_names_from_outside_cannot_break_the_page(tmp_path: Path, inputs: dict[str, Path]) -> None:
    run(config(model="<script>alert(1)</script> | $x"), inputs, Context(output=tmp_path))
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_the_run_report_adds_the_run_and_leaves_the_artifact_alone(tmp_path: Path, artifact: Path) -> None:
    before = {path.name: path.read_bytes() for path in artifact.iterdir()}
    report = write_run_report(artifact, RUN, tmp_path)
    assert {path.name: path.read_bytes() for path in artifact.iterdir()} == before
    assert report == read_json(tmp_path / "report.json")
    assert report["stages"] == RUN["stages"]
    assert report["run"]["commit"] == "abc1234"
    assert {name: report[name] for name in json.loads(before["report.json"])} == json.loads(before["report.json"])
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    peaks = ("Peak memory of the processes of recover: this process 3,221 MB", "worker 0 4,000 MB, 5,000 MB on cuda:0")
    for said in ("aaaaaaaaaaaaaaaa", "412 s", "python -m pipeline ratio=0.5", "torch 2.12.0, now 2.13.0", *peaks):
        assert said in text
        assert said in page
    assert (tmp_path / "curve.svg").read_bytes() == before["curve.svg"]


def test_rendering_a_cached_report_imports_nothing_heavy(tmp_path: Path, artifact: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from stages.report.render import write_run_report\n"
        "write_run_report(Path(sys.argv[1]), {'stages': []}, Path(sys.argv[2]))\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(artifact), str(tmp_path)], check=True, cwd=Path(__file__).parents[2]
    )


def test_models_judged_on_other_documents_are_not_compared(tmp_path: Path, inputs: dict[str, Path]) -> None:
    fewer = evaluation(tmp_path / "fewer", **SKILL["pruned"], documents=150)
    with pytest.raises(UserError, match=r"not judged on the same documents of boolq.*evaluate\.\*"):
        run(config(), inputs | {"pruned": fewer}, Context(output=tmp_path / "report"))


def test_a_recovery_without_a_curve_has_no_picture_of_one(tmp_path: Path, inputs: dict[str, Path]) -> None:
    recover = tmp_path / "recover"
    write_jsonl(recover / "history.jsonl", [{"step": 0, "tokens": 0, "validation_loss": 5.0}])
    (recover / "recovery.json").write_text("{}")
    run(config(), inputs | {"recover": recover}, Context(output=tmp_path / "report"))
    assert not (tmp_path / "report" / "curve.svg").exists()


def test_models_that_count_tokens_differently_are_compared_per_byte(tmp_path: Path, inputs: dict[str, Path]) -> None:
    other = evaluation(tmp_path / "other", **SKILL["dense"])
    held_out = read_json(other / "perplexity.json")
    for text in held_out["texts"].values():
        for passage in text["documents"]:
            passage["tokens"] += 1
    (other / "perplexity.json").write_text(json.dumps(held_out))
    report = report_of(tmp_path / "report", config(), inputs | {"dense": other})
    assert report["perplexity"]["per"] == "byte"
    assert report["perplexity"]["log"]["recovered"]["value"] == pytest.approx((5.0 - 3.8) / (5.0 - 3.1))
    line = next(line for line in report["summary"].splitlines() if "Wikipedia" in line)
    assert line.startswith("Pruning raised bits per byte of Wikipedia passages from 1.1")

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from helpers import wandbfile
from helpers.serving import counting
from helpers.synthetic import config, everything, recovery
from helpers.toystages import Number
from pipeline.engine.engine import Engine
from pipeline.engine.store import Store
from pipeline.planning.graph import Graph, Node
from pipeline.tracking import wandb_file
from pipeline.tracking.findings import ranges, results
from pipeline.tracking.registry import open_tracker
from pipeline.tracking.run import conclude
from pipeline.tracking.tracker import Findings, Mode, Subject, Tracker, TrackerConfig, following
from stages.common.files import read_json, read_jsonl
from stages.errors import UserError
from stages.registry import STAGES
from stages.report.stage import run as run_report
from stages.report.summary import main_figures
from stages.stage import Context

KEY = "0123456789abcdef" * 4
ROOT = Path(__file__).parents[2]
OPEN = f"""
import sys
from pipeline.tracking import wandb_tracker
from pipeline.tracking.registry import open_tracker
from pipeline.tracking.tracker import Mode, Subject, TrackerConfig, following
def opened(**settings):
    subject = Subject(name="n", group="g", key="{KEY}", configuration={{}})
    return following(open_tracker(TrackerConfig(name="wandb", **settings), {{"recover": subject}}))
"""
"""Opens a tracker in a process of its own."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("report")
    run_report(config(), everything(tmp_path_factory.mktemp("inputs")), Context(output=output))
    content: dict[str, Any] = read_json(output / "report.json")
    return content


SUBJECTS = {
    "recover": Subject(
        name="rora-r16-tiny",
        group="llmpruner-tiny-r0.50",
        key=KEY,
        configuration={"recover": {"tokens": 40960}},
    )
}


@contextmanager
def tracker(directory: Path, **changes: Any) -> Iterator[Tracker]:
    settings = TrackerConfig(**({"name": "wandb", "directory": str(directory)} | changes))
    with following(open_tracker(settings, SUBJECTS)) as opened:
        yield opened


def found(report: dict[str, Any], **more: Any) -> Callable[[str], Findings]:
    figures = {name: value for name, value in main_figures(report).items() if value is not None}
    return lambda job: Findings(figures=figures, tables={"results": results(report)}, **more)


def runs(directory: Path) -> list[Path]:
    return [wandbfile.wait(path) for path in sorted(directory.glob("wandb/*run-*/*.wandb"))]


def curve(path: Path) -> list[dict[str, Any]]:
    """Return the logged points without W&B's own fields."""
    prefix = "recover/"
    return [
        {name.removeprefix(prefix): value for name, value in point.items() if name.startswith(prefix)}
        for point in wandbfile.history(path)
    ]


def test_an_offline_run_holds_the_curve_over_tokens_and_the_reports_figures(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    with tracker(tmp_path) as live:
        for point in report["curve"]:
            live.log(point)
        live.replay(report["curve"])
        live.conclude(found(report))
    (path,) = runs(tmp_path)
    assert "offline-run-" in str(path)
    assert curve(path) == report["curve"]
    assert wandbfile.metrics(path)["recover/*"] == "recover/tokens"
    summary = wandbfile.summary(path)
    assert summary["recovered"] == report["recovery"]["recovered"]
    assert summary["perplexity/pruned"] == report["perplexity"]["pruned"]
    run = wandbfile.run(path)
    assert (run.run_id, run.display_name) == (KEY[:16], "rora-r16-tiny")
    assert (run.project, run.run_group) == ("prune-recover", "llmpruner-tiny-r0.50")
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert settings["recover"] == {"tokens": 40960}


def test_a_cached_recovery_is_replayed_as_if_it_were_live(tmp_path: Path, report: dict[str, Any]) -> None:
    with tracker(tmp_path) as replayed:
        replayed.replay(report["curve"])
        replayed.conclude(found(report))
    (path,) = runs(tmp_path)
    assert curve(path) == report["curve"]


def test_a_replay_leaves_a_local_run_that_holds_it_all_and_writes_a_new_one_for_new_figures(
    tmp_path: Path, report: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with tracker(tmp_path) as live:
        for point in report["curve"]:
            live.log(point)
        live.conclude(found(report))
    with caplog.at_level(logging.INFO, "pipeline"), tracker(tmp_path) as again:
        again.replay(report["curve"])
        again.conclude(found(report))
    assert "already holds this recovery" in caplog.text
    assert len(runs(tmp_path)) == 1
    with tracker(tmp_path) as other:
        other.replay(report["curve"])
        other.conclude(found(report | {"params": report["params"] | {"pruned": 1}}))
    assert len(runs(tmp_path)) == 2


def test_a_long_curve_is_read_back_across_blocks(tmp_path: Path, report: dict[str, Any]) -> None:
    points = list(read_jsonl(recovery(tmp_path / "recover", steps=400, followed=40) / "history.jsonl"))
    with tracker(tmp_path) as replayed:
        replayed.replay(points)
        replayed.conclude(found(report))
    (path,) = runs(tmp_path)
    assert path.stat().st_size > 2 * wandb_file.BLOCK
    assert curve(path) == points


@pytest.mark.parametrize("steps", [0, 1, 250])
def test_a_copy_without_the_first_steps_has_all_else(tmp_path: Path, report: dict[str, Any], steps: int) -> None:
    points = list(read_jsonl(recovery(tmp_path / "recover", steps=400, followed=40) / "history.jsonl"))
    with tracker(tmp_path) as replayed:
        replayed.replay(points)
        replayed.conclude(found(report))
    (path,) = runs(tmp_path)
    copy = tmp_path / "copy.wandb"
    wandb_file.without_steps(path, copy, steps)
    assert curve(copy) == points[steps:]
    assert wandb_file.finished(copy)
    others = [
        [record for record in wandb_file.records(file) if record.WhichOneof("record_type") != "history"]
        for file in (path, copy)
    ]
    assert others[0] == others[1]


def test_a_cut_file_is_not_finished(tmp_path: Path, report: dict[str, Any]) -> None:
    with tracker(tmp_path) as replayed:
        replayed.conclude(found(report))
    (path,) = runs(tmp_path)
    content = path.read_bytes()
    for length in (0, 3, 7, 12, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert not wandb_file.finished(path), length


def test_the_table_of_results_has_every_models_score_and_intervals(tmp_path: Path, report: dict[str, Any]) -> None:
    with tracker(tmp_path) as replayed:
        replayed.conclude(found(report))
    (path,) = runs(tmp_path)
    table = wandbfile.table(path, "results")
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    row, accuracy = rows["mean accuracy"], report["mean"]["accuracy"]
    assert [row[model] for model in ("dense", "pruned", "recovered")] == [
        report["mean"][model]["acc"] for model in ("dense", "pruned", "recovered")
    ]
    for column, effect in (("pruned − dense", "pruned_minus_dense"), ("recovered share", "recovered")):
        shown = [row[name] for name in (column, f"{column}, low", f"{column}, high")]
        assert shown == [accuracy[effect]["value"], *accuracy[effect]["interval"]]


def test_a_pruning_says_nothing_of_a_recovery(report: dict[str, Any]) -> None:
    assert not [name for name in results(report, ("dense", "pruned")).columns if "recovered" in name]


@pytest.mark.parametrize(("indices", "text"), [([], ""), ([4], "4"), ([0, 1, 2, 5, 7, 8], "0-2 5 7-8")])
def test_kept_indices_are_written_as_ranges(indices: list[int], text: str) -> None:
    assert ranges(indices) == text


def test_a_manifest_is_recorded_by_reference_and_weights_only_when_asked_for(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    model, manifest = tmp_path / "model", tmp_path / "manifest.json"
    model.mkdir()
    (model / "weights").write_text("1")
    manifest.write_text("{}")
    for name, asked in (("without", False), ("with", True)):
        with tracker(tmp_path / name, model=asked) as replayed:
            replayed.conclude(found(report, manifest=manifest, model=model))
        (path,) = runs(tmp_path / name)
        logged = {artifact.type: artifact for artifact in wandbfile.artifacts(path)}
        assert logged.keys() - {"run_table"} == {"manifest"} | ({"model"} if asked else set())
        (entry,) = logged["manifest"].manifest.contents
        assert (entry.path, entry.ref) == ("manifest.json", manifest.as_uri())
        if asked:
            (entry,) = logged["model"].manifest.contents
            assert (entry.path, entry.ref) == ("weights", "")


def test_a_file_is_read_where_a_block_has_just_a_headers_room_left(tmp_path: Path) -> None:
    def record(length: int) -> bytes:
        made = wandb_internal_pb2.Record()
        made.output_raw.line = "x" * length
        return bytes(made.SerializeToString())

    def fragment(kind: int, data: bytes) -> bytes:
        return wandb_file.FRAGMENT.pack(zlib.crc32(bytes([kind]) + data), len(data), kind) + data

    header = wandb_file.HEADER.pack(b":W&B", 0xBEE1, 0)
    room = wandb_file.BLOCK - len(header) - 2 * wandb_file.FRAGMENT.size
    length = 2 * room - len(record(room))
    path = tmp_path / "run.wandb"
    whole, empty = fragment(wandb_file.WHOLE, record(length)), fragment(wandb_file.FIRST, b"")
    assert len(header + whole + empty) == wandb_file.BLOCK
    path.write_bytes(header + whole + empty + fragment(wandb_file.LAST, record(100)))
    assert [len(made.output_raw.line) for made in wandb_file.records(path)] == [length, 100]


def test_a_run_that_fails_is_finished_and_keeps_what_it_had(tmp_path: Path, report: dict[str, Any]) -> None:
    def fails() -> None:
        with tracker(tmp_path) as live:
            live.log(report["curve"][0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    (path,) = runs(tmp_path)
    assert curve(path) == report["curve"][:1]
    exits = [r.exit.exit_code for r in wandb_file.records(path) if r.WhichOneof("record_type") == "exit"]
    assert exits == [1]
    assert not list(tmp_path.rglob("tracked.json"))


def test_report_files_are_given_only_when_asked_for(tmp_path: Path, report: dict[str, Any]) -> None:
    (tmp_path / "report.html").write_text("<p>report</p>")
    for name, files in (("without", False), ("with", True)):
        with tracker(tmp_path / name, files=files) as replayed:
            replayed.replay(report["curve"])
            replayed.conclude(found(report, files=[tmp_path / "report.html"]))
        kept = list((tmp_path / name).glob("wandb/offline-run-*/files/report.html"))
        assert len(kept) == int(files)


def test_offline_stays_offline_whatever_the_environment_says_and_sends_nothing(tmp_path: Path) -> None:
    with counting() as (address, calls):
        surprises = {
            "WANDB_MODE": "online",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_BASE_URL": address,
            "WANDB_DIR": str(tmp_path / "elsewhere"),
            "WANDB_PROJECT": "elsewhere",
            "WANDB_RUN_ID": "elsewhere",
            "WANDB_RUN_GROUP": "elsewhere",
            "WANDB_NAME": "elsewhere",
            "WANDB_RESUME": "must",
            "WANDB_ERROR_REPORTING": "true",
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), address),
            "NO_PROXY": "",
            "no_proxy": "",
        }
        script = (
            f"{OPEN}with opened(directory=sys.argv[1]) as tracker:\n    tracker.log({{'tokens': 0, 'loss': 1.0}})\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=os.environ | surprises,
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
    assert calls == [], done.stderr
    (path,) = runs(tmp_path)
    assert "offline-run-" in str(path)
    run = wandbfile.run(path)
    assert (run.project, run.run_id, run.run_group, run.display_name) == ("prune-recover", KEY[:16], "g", "n")
    assert not run.git.remote_url
    assert not (tmp_path / "elsewhere").exists()
    files = {file.name for file in path.parent.rglob("*") if file.is_file()}
    assert {name for name in files if not name.endswith(".log")} == {path.name}


@pytest.mark.parametrize(
    "account", [{}, {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}], ids=["no login", "no network"]
)
def test_online_that_cannot_be_records_offline_and_says_so(tmp_path: Path, account: dict[str, str]) -> None:
    (tmp_path / "curve.jsonl").write_text('{"tokens": 0, "loss": 2.0}\n{"tokens": 9, "loss": 1.0}\n')
    script = (
        f"{OPEN}"
        "from pathlib import Path; from stages.common.files import read_jsonl\n"
        "wandb_tracker.PATIENCE = 2\n"
        "with opened(directory=sys.argv[1], mode=Mode.online) as tracker:\n"
        "    for point in read_jsonl(Path(sys.argv[1]) / 'curve.jsonl'): tracker.log(point)\n"
        "print('the run went on')"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment | account | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")},
        cwd=ROOT,
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
    )
    assert "the run went on" in done.stdout
    assert "recording offline instead" in done.stderr
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert curve(path) == [{"tokens": 0, "loss": 2.0}, {"tokens": 9, "loss": 1.0}]


def test_a_directory_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, report: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with tracker(tmp_path / "file" / "below") as live:
        for point in report["curve"]:
            live.log(point)
        live.conclude(found(report))
    assert caplog.text.count("the run goes on without it") == 1


@pytest.mark.parametrize("changes", [{"name": "none"}, {"mode": Mode.disabled}])
def test_no_tracker_writes_nothing(tmp_path: Path, report: dict[str, Any], changes: dict[str, Any]) -> None:
    with tracker(tmp_path, **changes) as silent:
        silent.log(report["curve"][0])
        silent.replay(report["curve"])
        silent.conclude(found(report))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "warnings"), [("wandb", 1), ("none", 0)])
def test_an_artifact_that_cannot_be_read_costs_the_tracker_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, warnings: int
) -> None:
    node = Node(STAGES["recover"], "rora", Number())
    graph, store = Graph({"recover": node}, device="cpu"), Store(tmp_path / "store")
    artifact = store.directory(node.stage.name, node.label, node.key)
    artifact.mkdir(parents=True)
    for file in ("manifest.json", "recovery.json", "history.jsonl"):
        (artifact / file).write_text("cut")
    engine = Engine(graph, store, cache=tmp_path / "cache", force=[])
    with tracker(tmp_path, name=name) as opened:
        conclude(opened, graph, engine, {}, tmp_path)
    assert caplog.text.count("the run goes on without it") == warnings


@pytest.mark.parametrize(("name", "warnings"), [("wandb", 1), ("none", 0)])
def test_findings_that_cannot_be_computed_cost_the_tracker_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, warnings: int
) -> None:
    def fails(job: str) -> Findings:
        raise KeyError(job)

    with tracker(tmp_path, name=name) as opened:
        opened.conclude(fails)
    assert caplog.text.count("the run goes on without it") == warnings


def test_an_unknown_tracker_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'wandb'"), tracker(tmp_path, name="wandbb"):
        pass

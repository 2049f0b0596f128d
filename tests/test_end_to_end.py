"""Whole runs over the real stages, on a tiny llama: what the commands promise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import wandbfile
from helpers.tiny_wheels import commonsense_files, howto_files, passage_files, write_wheel
from helpers.world import ROOT, World, make_world
from pipeline.engine.artifact import MANIFEST
from pipeline.engine.store import Store
from stages.common.files import read_json
from stages.common.questions import ENOUGH
from stages.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def statuses(report: dict) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in report["stages"]}


def test_a_run_reports_every_promised_field_and_a_second_one_builds_nothing(world: World) -> None:
    report = world.run()
    assert set(statuses(report).values()) == {"built"}
    assert {
        "model",
        "prune",
        "adapter",
        "reference",
        "params",
        "tasks",
        "perplexity",
        "recovery",
        "curve",
        "stages",
    } <= (report.keys())
    assert report["params"]["ratio_requested"] == 0.2
    assert abs(report["params"]["ratio_achieved"] - 0.2) <= 0.005
    assert report["params"]["recovered"] == report["params"]["pruned"] < report["params"]["dense"]
    for task in report["tasks"].values():
        assert {"acc", "acc_norm", "bits_per_byte", "n"} <= task["dense"].keys() & task["recovered"].keys()
        assert task["pruned"]["n"] == 6
    assert len(report["tasks"]) == 8
    assert report["tasks"]["boolq"]["dense"]["acc_norm"] is None, "BoolQ has no acc_norm, and no copy of acc"
    assert {"retained", "recovered", "interval"} <= report["recovery"].keys()
    assert all({"name", "key", "status", "seconds", "peak_memory_bytes"} <= stage.keys() for stage in report["stages"])
    assert len(report["curve"]) > 2

    again = world.run()
    assert set(statuses(again).values()) == {"hit"}
    for volatile in ("stages", "run"):
        del report[volatile], again[volatile]
    assert report == again


def test_a_sweep_evaluates_the_dense_model_once_and_prunes_once_a_ratio(world: World) -> None:
    world.run()
    lora = world.foreseen("adapter=lora")
    assert lora["recover"] == lora["evaluate-recovered"] == "build"
    assert {lora[role] for role in ("evaluate-dense", "evaluate-pruned", "prune", "data")} == {"hit"}
    half = world.foreseen("ratio=0.4")
    assert half["prune"] == half["recover"] == half["evaluate-pruned"] == "build"
    assert half["evaluate-dense"] == half["scores"] == "hit"


def test_against_the_recovered_dense_model_only_its_branch_is_built(world: World) -> None:
    world.run()
    report = world.run("reference=dense_recovered")
    built = {name for name, status in statuses(report).items() if status == "built"}
    assert built == {"recover-dense", "evaluate-dense_recovered", "report"}
    accuracy = {model: report["mean"][model]["acc"] for model in ("dense_recovered", "recovered")}
    assert report["recovery"]["reference"] == "dense_recovered"
    if report["recovery"]["retained"] is not None:
        assert report["recovery"]["retained"] == accuracy["recovered"] / accuracy["dense_recovered"]
    assert set(statuses(world.run("reference=dense_recovered")).values()) == {"hit"}


def test_the_recommended_road_recovers_a_tiny_model(world: World) -> None:
    files = commonsense_files(rows=12) | howto_files(rows=12) | passage_files(rows=12)
    wheel = write_wheel(world.root / "wheels", "tinymixture", files)
    pin = f"wheel: {{requirement: '{wheel.requirement}', sha256: {wheel.sha256}}}"
    of_wheel = ", ".join(f"{name}: {{weight: 1, {pin}}}" for name in ("passages", "howto", "commonsense"))
    road = replace(world, overrides=[word for word in world.overrides if not word.startswith("data.wheel")])
    report = road.run(
        *(f"{group}=best" for group in ("prune", "adapter", "data", "recover")),
        f"data.parts={{{of_wheel}, sampled: {{weight: 2, rows: 8}}}}",
        "+data.parts.sampled.new_tokens=32",
        "prune.calibration.data=null",
        "prune.calibration.length=32",
        "adapter.rank=8",
        "evaluate=none",
    )
    assert {name for name, status in statuses(report).items() if status == "built"} >= {"data", "prune", "recover"}
    assert (report["prune"], report["adapter"]) == ("surgeon", "rora")
    assert report["training"]["objective"]["name"] == "distillation"
    trained = report["training"]["training"]["rows_by_task"]
    assert {"passages", "sampled"} <= trained.keys()
    validation = report["training"]["validation"]
    assert validation["final_loss"] < validation["initial_loss"]


def test_the_tracker_has_the_curve_of_a_cached_recovery_but_no_scores_of_few_questions(
    world: World, tmp_path: Path
) -> None:
    world.run()
    report = world.run("tracker=wandb", f"tracker.directory={tmp_path}")
    paths = [wandbfile.wait(path) for path in tmp_path.glob("wandb/*run-*/*.wandb")]
    runs = {wandbfile.run(path).job_type: path for path in paths}
    assert sorted(runs) == ["prune", "recover"]
    assert len({wandbfile.run(path).run_group for path in paths}) == 1
    assert not wandbfile.history(runs["prune"])
    kept = wandbfile.table(runs["prune"], "kept")
    place = kept["columns"].index("MLP channels kept")
    record = read_json(world.artifact("prune") / "model" / "pruning.json")
    assert [row[place] for row in kept["data"]] == [len(layer["mlp"]) for layer in record["layers"]]
    points = wandbfile.history(runs["recover"])
    assert len(points) == len(report["curve"])
    assert 0 < report["training"]["validation"]["questions"] < ENOUGH
    assert "curve_accuracy" in report["curve"][0]
    assert not [name for point in points for name in point if "curve_" in name]


def test_the_merged_model_loads_in_plain_transformers_elsewhere(world: World, tmp_path: Path) -> None:
    world.run()
    model = world.artifact("recover") / "model"
    code = (
        "import sys, importlib.util\n"
        "assert importlib.util.find_spec('stages') is None and importlib.util.find_spec('pipeline') is None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = AutoTokenizer.from_pretrained(sys.argv[1])('Question: why?', return_tensors='pt').input_ids\n"
        "print(model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] - ids.shape[1])\n"
    )
    hide = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()];"
    done = subprocess.run(
        [sys.executable, "-I", "-c", hide + code, str(model)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "4"


def test_a_model_that_came_pruned_is_recovered_and_nothing_is_pruned(world: World) -> None:
    report = world.run("prune=sheared", "reference=none")
    assert "prune" not in statuses(report)
    assert report["params"]["dense"] is None
    assert report["params"]["pruned"] == report["params"]["recovered"]
    assert report["recovery"]["recovered"] is None


def test_without_adapter_evaluation_and_tracker_the_model_is_only_pruned(world: World, tmp_path: Path) -> None:
    golden = ROOT / "tests" / "golden" / "llmpruner"
    report = world.run(
        f"model.path={golden}",
        f"prune.calibration_ids={golden / 'calibration_ids.json'}",
        "prune.layers=1-4",
        "prune.channel_ratio=0.25",
        "adapter=none",
        "evaluate=none",
        f"runtime.artifact_root={tmp_path}",
    )
    assert set(statuses(report)) == {"model", "scores", "prune", "report"}
    pruning = read_json(next((tmp_path / "prune").glob("*/model/pruning.json")))
    selections = json.loads((golden / "selections.json").read_text())
    kept = selections["param_first-sum-0.25"]["kept"]
    for index, layer in enumerate(pruning["layers"]):
        assert layer["heads"] == kept[str(index)]["heads"]
        assert layer["mlp"] == kept[str(index)]["mlp"]


def test_layers_of_different_shapes_go_through_every_stage(world: World) -> None:
    report = world.run("prune.layers=1-2", "ratio=0.1")
    assert report["params"]["recovered"] == report["params"]["pruned"]
    assert report["tasks"]["piqa"]["recovered"]["n"] == 6


def test_a_corrupted_artifact_is_rebuilt_and_said_so(world: World) -> None:
    world.run("evaluate=none", store="corrupt")
    weights = world.artifact("prune", store="corrupt") / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    report = world.run("evaluate=none", store="corrupt")
    prune = next(stage for stage in report["stages"] if stage["name"] == "prune")
    assert prune["status"] == "built"
    assert "1000 bytes" in prune["why"]
    assert statuses(report)["recover"] == "hit", "the rebuilt model is the same to the byte"


def name_of(path: Path) -> str:
    """Return `stage/label` of an artifact's directory, as the log names it: without the key."""
    return f"{path.parent.name}/{path.name[:-17]}"


STAGES = ("model/", "data/", "prune/", "recover/", "tasks/", "evaluate/local", "evaluate/llmpruner", "report/")


@pytest.mark.slow
def test_killed_in_every_stage_it_finishes_with_the_work_done_kept(world: World) -> None:
    world.run(store="whole")
    finished: set[str] = set()
    for stage in STAGES:
        with world.start(store="killed") as process:
            assert process.stdout is not None
            for line in process.stdout:
                assert not any(line.startswith(("build  " + done, "resume " + done)) for done in finished), line
                if line.startswith(("build  " + stage, "resume " + stage)):
                    process.send_signal(signal.SIGKILL)
                    break
        finished = {name_of(manifest.parent) for manifest in world.root.glob("killed/*/*/manifest.json")}
    world.run(store="killed")
    for role in ("model", "data", "prune", "recover", "tasks"):
        manifests = [read_json(world.artifact(role, store=store) / "manifest.json") for store in ("whole", "killed")]
        assert manifests[0]["digest"] == manifests[1]["digest"], role


def test_terminated_in_the_middle_of_recovery_it_says_how_to_go_on_to_the_same_bytes(world: World) -> None:
    unjudged = "evaluate=none"
    world.run(unjudged, store="whole")
    with world.start(unjudged, store="middle") as process:
        partial = world.root / "middle" / "recover"
        while process.poll() is None and not list(partial.glob("*.partial/checkpoint*")):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert list(partial.glob("*.partial/checkpoint/step-*")), "it was stopped while recovering"
    report = world.run(unjudged, store="middle")
    assert statuses(report)["recover"] == "resumed"
    whole, middle = (world.artifact("recover", store=store) for store in ("whole", "middle"))
    for name in ("adapter/adapter_model.safetensors", "history.jsonl"):
        assert (middle / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_full_disk_is_one_clear_error_and_the_same_command_finishes_later(world: World, tmp_path: Path) -> None:
    """A store on a file system of a few MB, where the machine lets us mount one."""
    mount = tmp_path / "small"
    mount.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(mount)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system")
    try:
        with pytest.raises(UserError, match="no space left"):
            world.run("evaluate=none", f"runtime.artifact_root={mount}")
        subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
        assert world.run("evaluate=none", f"runtime.artifact_root={mount}")["params"]["pruned"]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_the_command_works_from_any_directory_and_points_at_the_report(world: World) -> None:
    world.run()
    status, output = world.call("hydra.run.dir=here")
    assert status == 0, output
    assert (world.root / "here" / "report.html").is_file()
    status, output = world.call()
    assert status == 0, output
    assert (world.root / "outputs" / "latest" / "report.md").is_file()


@pytest.mark.parametrize("role", ["model", "data", "prune", "recover", "evaluate", "report"])
def test_damaged_small_files_are_built_again_before_a_plan_or_a_report_reads_them(world: World, role: str) -> None:
    store = Store(world.root / "damaged")
    before = world.run(store="damaged")
    artifact = next(store.artifacts(role))
    for file in sorted(path for path in artifact.path.rglob("*.json") if path.name != MANIFEST):
        file.write_text("{")
    again = world.run(store="damaged")
    assert (again["summary"], again["recovery"]) == (before["summary"], before["recovery"])
    assert not [one.name for one in store.artifacts() if store.changed(one)]


def test_an_empty_name_of_the_store_is_one_error(world: World) -> None:
    with pytest.raises(UserError, match="empty name.*PRUNE_RECOVER_ARTIFACTS"):
        world.run("runtime.artifact_root=''")


def test_a_fully_cached_run_loads_no_torch(world: World) -> None:
    world.run()
    code = (
        "import sys, runpy\n"
        "try:\n    runpy.run_module('pipeline', run_name='__main__', alter_sys=True)\n"
        "finally:\n    print('loaded:', sorted({'torch', 'transformers', 'lm_eval'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *world.arguments()],
        cwd=world.root,
        env=os.environ | world.environment,
        capture_output=True,
        text=True,
    )
    assert "loaded: []" in done.stdout, done.stdout + done.stderr


def test_a_sweep_goes_on_after_a_job_that_cannot_be_done(world: World) -> None:
    with world.start("--multirun", "action=plan", "ratio=0.2,0.99,0.4") as process:
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert output.count("artifact ") == 2, "the other two are planned"
    assert "ratio=0.99" in output.splitlines()[-1]


def test_multirun_writes_a_report_for_each_job(world: World) -> None:
    world.run()
    with world.start("--multirun", "adapter=rora,lora", "evaluate=none", "hydra.sweep.dir=sweep") as process:
        output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    adapters = [read_json(world.root / "sweep" / job / "report.json")["adapter"] for job in "01"]
    assert adapters == ["rora", "lora"]

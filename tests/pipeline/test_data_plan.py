"""Data sets of every kind through the whole pipeline: what enters their keys, and a recovery on a mixture of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.configurations import configuration
from helpers.world import World, make_world
from pipeline import load_rows
from pipeline.planning.build import build_graph
from pipeline.planning.graph import Graph
from pipeline.schema.written import written
from stages.common.files import read_json, read_jsonl
from stages.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("data")
    records = [{"instruction": f"Add {index} and 1.", "output": str(index + 1)} for index in range(60)]
    (root / "sums.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (root / "books").mkdir()
    for book in range(3):
        text = "\n\n".join(f"Paragraph {index} of book {book}. " + "And so on. " * 30 for index in range(12))
        (root / "books" / f"{book}.txt").write_text(text)
    made = make_world(root)
    made.overrides = [override for override in made.overrides if not override.startswith("data.wheel")]
    return made


def plan(world: World, *overrides: str) -> Graph:
    return world.plan(*overrides)


def parts(world: World, **weights: float) -> str:
    options = {"text": f"path: {world.root}/books", "sums": f"data: file, path: {world.root}/sums.jsonl"}
    said = (f"{name}: {{weight: {weight}, {options[name]}}}" for name, weight in weights.items())
    return f"data.parts={{{', '.join(said)}}}"


def test_a_part_is_the_artifact_of_its_data_set_alone_and_weights_are_shares(world: World) -> None:
    mixture = plan(world, "data=mixture", parts(world, text=3, sums=1), "prune=magnitude")
    assert list(mixture.roles)[1:4] == ["data-sums", "data-text", "data"]
    assert mixture.roles["data-text"].key == plan(world, "data=text", f"data.path={world.root}/books").roles["data"].key
    assert mixture.roles["data"].config.parts == {"sums": 0.25, "text": 0.75}
    assert plan(world, "data=mixture", parts(world, sums=0.2, text=0.6)).roles["data"].key == mixture.roles["data"].key
    other = plan(world, "data=mixture", parts(world, sums=0.3, text=0.6))
    assert other.roles["data"].key != mixture.roles["data"].key
    assert other.roles["data-text"].key == mixture.roles["data-text"].key
    assert mixture.roles["report"].config.data == "sums 0.25 + text 0.75"


def test_moving_a_file_changes_no_key_and_editing_it_does(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root / "books", tmp_path / "moved")
    here = plan(world, "data=text", f"data.path={world.root}/books").roles["data"]
    there = plan(world, "data=text", f"data.path={tmp_path}/moved").roles["data"]
    assert here.key == there.key
    assert here.name == there.name
    (tmp_path / "moved" / "0.txt").write_text("another book")
    assert plan(world, "data=text", f"data.path={tmp_path}/moved").roles["data"].key != here.key


def test_calibration_may_be_on_other_text_and_a_mixture_counts_its_parts_tasks(world: World) -> None:
    commonsense = "data.parts={commonsense: 1, passages: 1}"
    graph = plan(world, "data=mixture", commonsense, "prune.calibration.data=passages")
    assert graph.roles["prune"].inputs["data"].name == "data/passages"
    assert "piqa" in graph.roles["report"].config.trained_tasks
    graph = plan(world, "data=mixture", commonsense, "adapter=none")
    assert list(graph.roles)[1:4] == ["calibration-commonsense", "calibration-passages", "calibration"]
    assert graph.roles["report"].config.trained_tasks == []


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        (["prune=wanda"], {"calibration": [], "recovery": []}),
        (["prune=wanda", "prune.calibration.data=passages"], {"calibration": ["wikipedia"], "recovery": []}),
        (["prune=wanda", "data=mixture"], {"calibration": ["wikipedia"], "recovery": ["wikipedia"]}),
        (["prune=magnitude", "data=passages"], {"recovery": ["wikipedia"]}),
        (["prune=magnitude", "adapter=none"], {}),
    ],
)
def test_the_report_knows_which_kinds_of_text_were_read(
    world: World, overrides: list[str], kinds: dict[str, list[str]]
) -> None:
    mixed = ["data.parts={commonsense: 1, passages: 1}"] if "data=mixture" in overrides else []
    assert plan(world, *overrides, *mixed).roles["report"].config.resembles == kinds


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=file"], r"data=file reads files of yours: data\.path=FILE"),
        (["data=file", "data.path=nowhere.jsonl"], r"no file 'nowhere\.jsonl'"),
        (["data=hub"], r"data=hub needs data\.repo=OWNER/NAME"),
        (["data=alpaca", "data.rows=0"], r"data\.rows must be at least 1, and is 0"),
        (["data=mixture"], "data.parts=None: a mixture has parts with weights"),
        (["data=mixture", "data.parts={alpacca: 1}"], r"\(data\.parts\.alpacca\) 'alpacca', did you mean 'alpaca'"),
        (["data=mixture", "data.parts={text: {weight: 1, pth: a}}"], r"data\.parts\.text\.pth.* did you mean 'path'"),
        (["data=mixture", "data.parts={text: {weight: 1, characters: many}}"], r"data\.parts\.text: .*'many'.*Integer"),
        (["data=mixture", "data.parts={text: -1}"], "must be a number above 0, and is -1"),
        (["prune.calibration.data=pasages"], r"\(prune\.calibration\.data\) 'pasages', did you mean 'passages'"),
    ],
)
def test_a_mistake_is_one_error_before_anything_runs(world: World, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(world, *overrides)


def test_a_recovery_on_a_mixture_draws_tokens_in_its_shares(world: World) -> None:
    run = ["data=mixture", parts(world, text=3, sums=1), "prune=none", "evaluate=none", "recover.loss=response"]
    world.run(*run, "recover.tokens=4000", "recover.sequence_length=64")
    (recovery,) = (world.root / "artifacts" / "recover").glob("*/recovery.json")
    training = read_json(recovery)["training"]
    assert training["rows_cut"] > 0, "prompts of instructions are longer than 64 bytes"
    assert training["tokens"] >= 4000
    # Text has no prompt: all of its tokens but each document's first are labelled; sums have a few digits each.
    assert 0.70 < training["labelled_tokens"] / training["tokens"] < 0.80
    (data,) = (world.root / "artifacts" / "data").glob("sums-0.25*")
    assert {row["task"] for row in read_jsonl(data / "validation.jsonl")} == {"file", "text"}
    assert len(list((world.root / "cache" / "tokens").glob("*/ids.u32"))) == 1


DRAWN = ("data=sampled", "data.rows=24", "data.new_tokens=16")
WRITTEN = ("data=selfwritten", "data.rows=20", "data.new_tokens=8")


def said(value: Any) -> str:
    """Return nested mappings as the command line writes them."""
    if not isinstance(value, dict):
        return str(value)
    return "{" + ", ".join(f"{name}: {said(inner)}" for name, inner in value.items()) + "}"


def sums(world: World, **more: str) -> str:
    said = {"data": "file", "path": f"{world.root}/sums.jsonl"} | more
    return "{" + ", ".join(f"{name}: {value}" for name, value in said.items()) + "}"


def test_the_dense_model_and_the_source_are_inputs_of_what_it_writes(world: World) -> None:
    graph = plan(world, *WRITTEN, f"data.source={sums(world)}")
    assert graph.roles["data"].inputs == {"rows": graph.roles["data-rows"], "model": graph.roles["model"]}
    alone = plan(world, "data=file", f"data.path={world.root}/sums.jsonl").roles["data"]
    assert graph.roles["data-rows"].key == alone.key
    assert graph.roles["report"].config.data == "selfwritten file"
    # Pruning and the recovery leave the rows as they are; how they are asked does not.
    other = plan(world, *WRITTEN, f"data.source={sums(world)}", "prune=magnitude", "ratio=0.4", "recover.tokens=99")
    assert other.roles["data"].key == graph.roles["data"].key
    warm = plan(world, *WRITTEN, f"data.source={sums(world)}", "data.temperature=0.7")
    assert warm.roles["data"].key != graph.roles["data"].key
    assert "piqa" in plan(world, *WRITTEN).roles["report"].config.trained_tasks


def test_what_a_model_writes_may_be_a_part_of_a_mixture(world: World) -> None:
    asked = f"mine: {{data: selfwritten, weight: 1, rows: 20, new_tokens: 8, source: {sums(world)}}}"
    graph = plan(world, "data=mixture", f"data.parts={{{asked}, text: {{path: {world.root}/books, weight: 3}}}}")
    assert list(graph.roles)[:5] == ["model", "data-mine-rows", "data-mine", "data-text", "data"]
    alone = plan(world, *WRITTEN, f"data.source={sums(world)}")
    assert graph.roles["data-mine"].key == alone.roles["data"].key


def test_a_model_that_comes_pruned_does_not_write_its_rows_itself(world: World) -> None:
    graph = build_graph(configuration("model=sheared-llama-1.3b", "reference=none", *WRITTEN))
    writer = graph.roles["data"].inputs["model"]
    assert writer is graph.roles["writer"]
    assert writer.key == build_graph(configuration("model=sheared-llama-1.3b")).roles["dense"].key
    assert writer.key != graph.roles["model"].key


def test_the_dense_model_is_the_input_of_what_it_makes_up(world: World) -> None:
    graph = plan(world, *DRAWN)
    assert graph.roles["data"].inputs == {"model": graph.roles["model"]}
    assert graph.roles["report"].config.data == "sampled"
    assert graph.roles["report"].config.resembles["recovery"] == []
    assert plan(world, *DRAWN, "prune=magnitude", "ratio=0.4").roles["data"].key == graph.roles["data"].key
    assert plan(world, *DRAWN, "data.temperature=0.7").roles["data"].key != graph.roles["data"].key


def test_calibration_and_recovery_share_what_the_model_makes_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {"weight": 1, "rows": 24, "new_tokens": 16}

    def with_drawn(group: str, name: str) -> dict[str, Any]:
        return written(group, name) | ({"parts": {"passages": 2, "sampled": drawn}} if name == "general" else {})

    monkeypatch.setattr("pipeline.planning.data.written", with_drawn)
    trained = f"data.parts={said({'commonsense': 1, 'sampled': drawn | {'weight': 3}})}"
    graph = plan(world, "data=mixture", trained, "prune.calibration.data=general")
    calibration, data = graph.roles["prune"].inputs["data"], graph.roles["data"]
    assert calibration.key != data.key
    assert calibration.inputs["sampled"].key == data.inputs["sampled"].key
    alone = plan(world, *DRAWN).roles["data"]
    assert alone.key == data.inputs["sampled"].key, "the same artifact as alone, whatever a mixture holds out"
    fewer = plan(world, "data=mixture", trained, "data.validation_rows=6")
    assert fewer.roles["data"].inputs["sampled"].key == alone.key


def test_the_recommended_calibration_and_recovery_share_what_the_model_makes_up(world: World) -> None:
    for held_out in ("data.validation_rows=256", "data.validation_rows=8"):
        graph = plan(world, "data=best", "prune=best", "recover=best", held_out)
        calibration, data = graph.roles["calibration"], graph.roles["data"]
        assert calibration.inputs["sampled"].key == data.inputs["sampled"].key
        assert calibration.config.parts == {"howto": 0.25, "passages": 0.5, "sampled": 0.25}


@pytest.mark.parametrize(
    ("vendor", "flags", "dtype"),
    [
        ("AuthenticAMD", "avx512_bf16", "bfloat16"),
        ("GenuineIntel", "avx512_bf16", "float32"),
        ("GenuineIntel", "avx512_bf16 amx_bf16", "bfloat16"),
        ("", "bf16", "bfloat16"),
        ("", "", "float32"),
    ],
)
@pytest.mark.parametrize("asked", [DRAWN, WRITTEN], ids=["sampled", "selfwritten"])
def test_a_precision_left_open_is_what_the_device_multiplies_and_is_keyed_as_that(
    world: World, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], vendor: str, flags: str, dtype: str
) -> None:
    monkeypatch.setattr("stages.common.machine.cpu_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr("stages.common.machine.cpu_vendor", lambda: vendor)
    graph = plan(world, *asked)
    assert graph.roles["data"].config.dtype == dtype
    assert graph.roles["data"].key == plan(world, *asked, f"data.dtype={dtype}").roles["data"].key
    other = "float32" if dtype == "bfloat16" else "bfloat16"
    assert graph.roles["data"].key != plan(world, *asked, f"data.dtype={other}").roles["data"].key


def test_calibration_alone_may_be_what_the_model_makes_up(world: World) -> None:
    graph = plan(world, "data=passages", "prune=wanda", "prune.calibration.data=sampled")
    assert graph.roles["prune"].inputs["data"].inputs == {"model": graph.roles["model"]}
    assert graph.roles["report"].config.resembles == {"calibration": [], "recovery": ["wikipedia"]}


def test_a_model_that_comes_pruned_does_not_make_up_its_rows_itself(world: World) -> None:
    part = "data.parts={passages: 1, sampled: {weight: 1, rows: 24}}"
    graph = build_graph(configuration("model=sheared-llama-1.3b", "reference=none", "data=mixture", part))
    assert graph.roles["data"].inputs["sampled"].inputs["model"] is graph.roles["writer"]
    assert graph.roles["writer"].key == build_graph(configuration("model=sheared-llama-1.3b")).roles["dense"].key


def test_a_run_calibrates_and_recovers_on_what_the_dense_model_makes_up(world: World) -> None:
    text = {"path": f"{world.root}/books", "weight": 2}
    mixed = f"data.parts={said({'sampled': {'weight': 1, 'rows': 24, 'new_tokens': 16}, 'text': text})}"
    short = ["prune=wanda", "prune.calibration.sequences=2", "prune.calibration.length=16"]
    short += ["evaluate=none", "recover.tokens=1500"]
    run = ["data=mixture", mixed, "data.validation_rows=4", *short]
    world.run(*run)
    rows = list(read_jsonl(world.artifact("data", *run) / "train.jsonl"))
    drawn = [row for row in rows if row["task"] == "sampled"]
    assert 0 < len(drawn) <= 21
    assert all(row["prompt"] == "" for row in drawn)
    held = list(read_jsonl(world.artifact("data", *run) / "validation.jsonl"))
    assert {row["task"] for row in held} == {"text"}
    assert world.foreseen(*run, "ratio=0.3")["data-sampled"] == "hit"
    world.run(*DRAWN, *short)


def test_rows_that_no_run_can_write_are_one_error(world: World) -> None:
    with pytest.raises(UserError, match=r"data\.source\.pth: .*did you mean 'path'"):
        plan(world, *WRITTEN, f"data.source={sums(world, pth='a')}")
    for data, asking in {"selfwritten": "selfwritten", "sampled": "sampled", "general": "sampled"}.items():
        with pytest.raises(UserError, match=f"the dense model writes the rows of data={asking}.*model=model"):
            load_rows(data)
    with pytest.raises(UserError, match=r"data\.parts\.sampled\.tokns"):
        plan(world, "data=mixture", "data.parts={sampled: {weight: 1, tokns: 3}}")


def test_a_recovery_on_what_the_dense_model_writes(world: World) -> None:
    run = [*WRITTEN, f"data.source={sums(world)}", "prune=magnitude", "evaluate=none", "recover.tokens=1500"]
    report = world.run(*run, "recover.objective=on_policy", "recover.on_policy.new_tokens=6")
    assert any("on-policy" in sentence for sentence in report["training"]["objective"]["sentences"])
    data = world.artifact("data", *run)
    assert len(list(read_jsonl(data / "answers.jsonl"))) == 20
    held = list(read_jsonl(data / "validation.jsonl"))
    assert held == list(read_jsonl(world.artifact("data-rows", *run) / "validation.jsonl"))
    assert world.foreseen(*run)["data"] == "hit"

"""The check of a GPU, at toy size on a processor: that every check works, never how fast anything is."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu.check import DONE, FAILED, MISSING, SKIPPED, UNREACHED, Check, Found, Part, Row, Setting, Skipped
from benchmarks.gpu.running import outcomes
from helpers.world import ROOT
from stages.adapters.registry import ADAPTERS
from stages.prune.criteria.registry import CRITERIA
from stages.recover.objectives.registry import OBJECTIVES

pytestmark = pytest.mark.timeout(1800)
ON_A_GPU = {"compiled", "halving"}
"""Checks that a processor skips."""
TOY = Setting(device="cpu")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict], str]:
    """Return the checks of a whole run by name, and what the run said."""
    output = tmp_path_factory.mktemp("gpu-check")
    said = output / "said"
    with said.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        # Many minutes, because a busy machine is not what is tested.
        gpu_check.main(["--device", "cpu", "--minutes", "60", "--output", str(output / "results")])
    (result,) = (output / "results").glob("*/result.json")
    return json.loads(result.read_text())["checks"], said.read_text()


def test_every_check_runs_on_a_processor_or_says_why_it_is_skipped(checked: tuple[dict[str, dict], str]) -> None:
    checks, _ = checked
    assert list(checks) == [check.name for check in gpu_check.CHECKS]
    assert {name: check["reason"] for name, check in checks.items() if check["state"] not in (DONE, SKIPPED)} == {}
    assert {name for name, check in checks.items() if check["state"] == SKIPPED} == ON_A_GPU
    assert all(checks[name]["reason"] for name in ON_A_GPU)


def test_all_that_has_a_name_is_compared_with_a_processor(checked: tuple[dict[str, dict], str]) -> None:
    checks, _ = checked
    for name, registry in (("adapters", ADAPTERS), ("objectives", OBJECTIVES), ("criteria", CRITERIA)):
        assert set(checks[name]["numbers"]["differences"]) == set(registry)


def test_the_table_comes_last_with_the_figures_that_are_extrapolated_marked(
    checked: tuple[dict[str, dict], str],
) -> None:
    checks, said = checked
    lines = said.splitlines()
    assert lines[-1].endswith("result.json")
    table = lines[len(checks) + 1 : -2]
    assert len(table) == sum(len(check["rows"]) for check in checks.values())
    whole = [line for line in table if "(32 layers)" in line or "32 layers" in line]
    assert len(whole) == 3
    assert all("(extrapolated)" in line for line in whole)


def test_a_share_is_operations_over_the_measured_rate(checked: tuple[dict[str, dict], str]) -> None:
    checks, _ = checked
    step = checks["lora"]["numbers"]["steps"]["128"]
    # Two layers of the toy: q and o of 64, k and v of 32, gate, up and down of 160 channels; the head of 257 tokens.
    assert step["operations_per_token"] == 4 * (2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160) + 64 * 257)
    stock = checks["stock"]["numbers"]["steps"]["128"]
    assert stock["operations_per_token"] == step["operations_per_token"]
    assert stock["ours_over_stock"] == pytest.approx(step["tokens_per_second"] / stock["tokens_per_second"])


def fails(setting: Setting, found: Found) -> Part:
    raise ValueError("it\nbroke")


def differs(setting: Setting, found: Found) -> Part:
    return Part({"apart": 1.0}, [Row("numbers", "1 apart")], ["numbers: 1 apart"])


def lacks(setting: Setting, found: Found) -> Part:
    raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")


def skips(setting: Setting, found: Found) -> Part:
    raise Skipped("a processor has none")


def dies(setting: Setting, found: Found) -> Part:
    os._exit(3)


def works(setting: Setting, found: Found) -> Part:
    return Part({"before": sorted(found)}, [])


def test_a_check_that_fails_is_a_line_with_its_reason_and_the_next_one_runs(tmp_path: Path) -> None:
    names = ("fails", "differs", "lacks", "skips", "dies", "works")
    checks = [Check(name=name, function=f"{__name__}:{name}") for name in names]
    ended = {outcome.name: outcome for outcome in outcomes(checks, TOY, minutes=60, logs=tmp_path)}
    assert [outcome.state for outcome in ended.values()] == [FAILED, FAILED, MISSING, SKIPPED, FAILED, DONE]
    assert "ValueError: it broke" in ended["fails"].reason
    assert "Traceback" in (tmp_path / "fails.log").read_text()
    assert ended["differs"].numbers == {"apart": 1.0}
    assert "nowhere" in ended["lacks"].reason
    assert "process died" in ended["dies"].reason
    assert ended["works"].numbers == {"before": sorted(names[:-1])}


def test_no_check_begins_once_the_time_is_over(tmp_path: Path) -> None:
    checks = [Check(name="works", function=f"{__name__}:works")]
    (outcome,) = outcomes(checks, TOY, minutes=-1, logs=tmp_path)
    assert outcome.state == UNREACHED


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused_in_one_line() -> None:
    with pytest.raises(SystemExit, match=r"^error: torch .* can't use a GPU .*--device cpu$"):
        gpu_check.main([])


def test_an_old_torch_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "version", lambda name: "2.10.1+cu128" if name == "torch" else version(name))
    with pytest.raises(SystemExit, match=r"^error: torch is 2\.10\.1\+cu128, and 2\.11 or newer is needed\.$"):
        gpu_check.main([])


def test_the_page_shows_the_packages_and_the_checks() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    for name, oldest in gpu_check.NEEDED.items():
        assert f"| `{name}` | {oldest}" in page
        assert name == "torch" or version(name) == oldest
    assert not [check.name for check in gpu_check.CHECKS if f"`{check.name}`" not in page]

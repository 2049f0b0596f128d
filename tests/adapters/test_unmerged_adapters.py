"""Adapters that can't be merged: the model they make is the same one wherever it is run, and reaches every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from helpers.decoders import decoder, saved, token_ids
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from helpers.world import World, make_world
from pipeline import compare, inspect
from stages.adapters.bottleneck_layer import Bottleneck
from stages.adapters.loading import Source
from stages.adapters.registry import ADAPTERS
from stages.common.files import read_json, write_json
from stages.decoders.checkpoint import load_model
from stages.decoders.packed_attention import hidden_states, stock_attention, use_packed_attention
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.inference.encoding import Query
from stages.inference.generator import Generator
from stages.inference.scorer import Scorer
from stages.rows.packing import Document, collate

OPTIONS: dict[str, dict[str, Any]] = {
    "prefix": {"virtual_tokens": 5},
    "series": {"bottleneck": 7, "targets": ["o_proj", "down_proj"], "scaling": 0.5},
    "parallel": {"bottleneck": 7, "activation": "relu"},
}
NAMES = sorted(OPTIONS)


def adapted(model: PreTrainedModel, name: str, recovery: Path) -> PreTrainedModel:
    """Give `model` an adapter as the recover stage does, far from where it starts, and save it as that stage does."""
    use_packed_attention(model)
    adapter, options = ADAPTERS[name], ADAPTERS[name].config(name=name, **OPTIONS[name])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        attached = adapter.attach(model, options, ())
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    assert adapter.save is not None
    adapter.save(attached, recovery / "adapter")
    write_json(recovery / "recovery.json", {"adapter": {"name": name}})
    return model


def documents() -> list[Document]:
    return [Document(ids, 0, "", cut=False) for ids in token_ids(3, 12).tolist()]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_plain_peft_computes_and_writes_what_a_prefix_does_here(tmp_path: Path, family: str) -> None:
    model = decoder(family)
    saved(model, tmp_path)
    adapted(model, "prefix", tmp_path)
    peft = PeftModel.from_pretrained(load_model(tmp_path / "model", dtype="float32"), tmp_path / "adapter").eval()
    (tmp_path / "model").rename(tmp_path / "base")  # a recovery leaves no model of its own
    loaded = Source(tmp_path / "base", tmp_path).load(dtype="float32")
    ids = token_ids(2, 12)
    wanted = peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert (wanted - decoder(family)(input_ids=ids).logits).abs().max() > 1
    torch.testing.assert_close(model(input_ids=ids[:1]).logits, wanted[:1], atol=1e-4, rtol=1e-4)
    for other in (loaded, model):
        with stock_attention(other):
            torch.testing.assert_close(other(input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-4)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padding before a prompt
    loaded = Source(tmp_path / "base", tmp_path).load(dtype="float32")
    for beams in (1, 3):
        options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "num_beams": beams}
        assert torch.equal(loaded.generate(ids, **options), peft.generate(input_ids=ids, **options))


@torch.no_grad()
@pytest.mark.parametrize("name", ["series", "parallel"])
def test_a_bottleneck_adds_what_the_paper_says(tmp_path: Path, name: str) -> None:
    model, plain = adapted(decoder(), name, tmp_path), decoder()
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, Bottleneck)}
    assert len(layers) == 2 * 3

    def add(layer: Bottleneck, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if name == "series":
            return y + 0.5 * torch.tanh(y @ layer.down.T) @ layer.up.T
        return y + torch.relu(x @ layer.down.T) @ layer.up.T

    for path, layer in layers.items():
        plain.get_submodule(path).register_forward_hook(lambda _, args, y, layer=layer: add(layer, args[0], y))
    ids = token_ids(1)
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["series", "parallel"])
def test_a_bottleneck_starts_at_the_base_model_and_trains_nothing_else(name: str) -> None:
    model, ids = decoder(), token_ids(1)
    before = model(input_ids=ids).logits
    ADAPTERS[name].attach(model, ADAPTERS[name].config(name=name, **OPTIONS[name]), ())
    assert torch.equal(model(input_ids=ids).logits, before)
    trained = {parameter for parameter, value in model.named_parameters() if value.requires_grad}
    assert all(parameter.endswith((".down", ".up")) for parameter in trained)
    assert len(trained) == 2 * 2 * 3


@pytest.mark.parametrize("name", NAMES)
def test_a_document_and_its_gradient_are_the_same_alone_and_packed(tmp_path: Path, name: str) -> None:
    model = adapted(decoder(), name, tmp_path)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    alone = torch.cat([hidden_states(model, collate([document], "cpu")) for document in documents()])
    packed = hidden_states(model, collate(documents(), "cpu"))
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-4)
    ones, others = (torch.autograd.grad(states.pow(2).sum(), trained) for states in (alone, packed))
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_scorer_and_generator_see_the_adapted_model(tmp_path: Path, name: str) -> None:
    base = saved(decoder(vocab_size=VOCABULARY, eos_token_id=None), tmp_path / "base")
    adapted(load_model(base / "model", dtype="float32"), name, tmp_path / "recovery")
    model = Source.of(tmp_path / "recovery", base).load(dtype="float32")
    scorer = Scorer(model, byte_tokenizer())
    beginning, *rest = token_ids(4, 10, VOCABULARY).tolist()
    queries = [Query(inputs=(beginning + more)[:-1], targets=more, truncated=False) for more in rest]
    for query, (found, _) in zip(queries, scorer.score(queries), strict=True):
        ids = torch.tensor([[*query.inputs, query.targets[-1]]])
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        assert found == pytest.approx(float(logprobs[-len(query.targets) :].sum()), abs=1e-3)
    prompt = "what does the cow say?"
    (text,) = Generator(scorer).generate([prompt], new_tokens=6)
    ids = torch.tensor([scorer.encoder.tokenizer(prompt)["input_ids"]])
    for _ in range(6):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert text == scorer.encoder.tokenizer.decode(ids[0, -6:], skip_special_tokens=True)


def test_what_can_have_no_prefix_says_so() -> None:
    prefix = ADAPTERS["prefix"]
    options = prefix.config(name="prefix")
    with pytest.raises(UserError, match="sliding window"):
        prefix.attach(decoder("gemma2"), options, ())
    uneven = DecoderShape.from_config(decoder().config.to_dict()).with_layers(
        [LayerShape(6, 3, 8), LayerShape(4, 2, 8)]
    )
    with pytest.raises(UserError, match="the layers have 2, 3 key/value heads"):
        prefix.fits(options, uneven)


def test_an_adapter_is_loaded_on_its_own_base_alone(tmp_path: Path) -> None:
    for name in NAMES:
        adapted(decoder(), name, tmp_path / name)
        other = saved(decoder(num_hidden_layers=2), tmp_path / "other")
        with pytest.raises(UserError, match="of another model"):
            Source.of(tmp_path / name, other).load(dtype="float32")
        with pytest.raises(UserError, match="not the model to attach it to"):
            Source.of(tmp_path / name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("unmerged"))
    world.overrides += [f"evaluate.cost.{name}" for name in ("prompt_tokens=8", "new_tokens=2", "batch_sizes=[1]")]
    world.overrides += ["evaluate.tasks=[arc_easy,piqa]", "evaluate.corpora=[]", "recover.tokens=1000"]
    return world


def test_every_stage_takes_base_and_adapter_where_nothing_is_merged(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    report = world.run("adapter=series", "adapter.bottleneck=8", "reference=dense_recovered")
    artifacts = {stage: next((world.root / "artifacts" / stage).glob("*series-*")) for stage in ("evaluate", "cost")}
    for stage, path in artifacts.items():
        assert read_json(path / "manifest.json")["inputs"]["base"].startswith(("prune/", "model/")), stage
    (recovery,) = (world.root / "artifacts" / "recover").glob("series-b8-llmpruner*")
    assert {path.name for path in recovery.iterdir()} >= {"adapter", "recovery.json"}
    assert not (recovery / "model").exists()
    assert report["training"]["adapter"]["merged"] is False
    (note,) = (note for note in report["notes"] if "can't be merged" in note)
    assert "tanh stands between its matrices" in note
    cost = report["cost"]["models"]
    weights = 3 * 2 * 8 * 48
    assert cost["recovered"]["parameters"] == cost["pruned"]["parameters"] + weights
    assert cost["recovered"]["multiply_accumulates"] == cost["pruned"]["multiply_accumulates"] + weights
    assert cost["recovered"]["bytes"] > cost["pruned"]["bytes"] + 4 * weights
    assert report["perplexity"]["recovered"] != report["perplexity"]["pruned"]
    assert inspect.main(["--root", str(world.root / "artifacts"), "verify"]) == 0
    compare.main([f"artifact_root={world.root / 'artifacts'}", f"output={world.root / 'compare.html'}"])
    assert "series b8" in " ".join(capsys.readouterr().out.split())


def test_what_needs_one_model_refuses_an_adapter_apart_before_anything_runs(world: World) -> None:
    for format in ("hf", "gguf"):
        with pytest.raises(UserError, match="adapter=prefix can't be merged into one"):
            world.run("adapter=prefix", f"export={format}", "action=plan")

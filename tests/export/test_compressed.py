"""`export=compressed`: models in few bits as compressed-tensors has them, loaded and computed by transformers too."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.decoders import token_ids
from helpers.pruned_models import pruned
from helpers.tiny_tokenizer import VOCABULARY
from helpers.world import World, make_world
from stages.adapters.loading import Source
from stages.common.files import read_json, write_jsonl
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.decoders.compressed import RoundedLinear, unrounded
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.export.compressed import run
from stages.export.config import CompressConfig, ExportConfig
from stages.export.gguf import convert
from stages.export.grouping import group_of
from stages.export.plan import check_export, outlook
from stages.inference.scorer import Scorer
from stages.stage import Context

BRIEF = ("adapter=none", "export=compressed", "export.sequences=4", "export.length=32")


Quantise = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Quantise:
    """Returns a function that quantises a tiny model, each once, and returns its directory and the artifact."""
    root = tmp_path_factory.mktemp("quantised")

    @cache
    def made(scheme: str, family: str = "llama", kind: str = "differing") -> tuple[Path, Path]:
        return quantise(root / f"{scheme}-{family}", scheme, family, kind)

    return made


def quantise(root: Path, scheme: str, family: str, kind: str) -> tuple[Path, Path]:
    model = pruned(root, family, kind, hidden_size=192, tie_word_embeddings=True)
    write_jsonl(root / "train.jsonl", [{"prompt": f"the answer is {n} ", "response": "true, " * 20} for n in range(40)])
    output = root / "artifact"
    output.mkdir(parents=True)
    config = CompressConfig(scheme=scheme, sequences=8, length=32)
    run(config, {"model": model.parent, "data": root}, Context(output=output))
    return model, output


@pytest.mark.parametrize(
    ("scheme", "family", "kind"),
    [("w4a16", "llama", "differing"), ("w8a8", "llama", "differing"), ("fp8", "qwen2", "heads")],
)
def test_transformers_own_loading_computes_what_is_judged(
    scheme: str, family: str, kind: str, quantised: Quantise, capfd: pytest.CaptureFixture[str]
) -> None:
    model, artifact = quantised(scheme, family, kind)
    assert "Compressing" not in capfd.readouterr().err, "a bar of another library"
    ours = load_model(artifact / "model", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(
        artifact / "model",
        dtype=torch.float32,
        trust_remote_code=kind == "differing",
    )
    ids = token_ids(2, 24)
    with torch.no_grad():
        logits, dense = ours(ids).logits, load_model(model, dtype="float32")(ids).logits
        torch.testing.assert_close(logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)
    assert not torch.equal(logits, dense)
    rounds = [type(module) is RoundedLinear for module in ours.modules() if isinstance(module, torch.nn.Linear)]
    assert any(rounds) == (scheme != "w4a16")


def test_weights_are_near_the_models_and_the_file_is_smaller(quantised: Quantise) -> None:
    model, artifact = quantised("w8a8", "llama", "differing")
    before, after = (load_model(path, dtype="float32").state_dict() for path in (model, artifact / "model"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        # The largest weight of a row is 127.5 steps, and GPTQ moves a weight by several of them.
        step = weight.abs().amax(-1, keepdim=True) / 127.5
        assert ((after[name] - weight).abs() <= 8 * step + 1e-6).all(), name
    record = read_json(artifact / "quantisation.json")
    assert record["bytes"]["after"] < record["bytes"]["before"] / 2
    assert (record["method"], record["calibration"]) == ("gptq", {"sequences": 8, "length": 32})
    assert {path.name for path in (artifact / "model").iterdir()} >= {"tokenizer.json", "pruning.json", "README.md"}


def test_a_model_whose_inputs_are_rounded_is_judged_with_them_rounded(quantised: Quantise) -> None:
    _, artifact = quantised("fp8", "qwen2", "heads")
    model, tokenizer = load_model(artifact / "model", dtype="float32"), load_tokenizer(artifact / "model")
    scorer = Scorer(model, tokenizer)
    assert all(module.rounds for module in model.modules() if isinstance(module, RoundedLinear))
    (found, _), (other, _) = (one for one in scorer.loglikelihoods([("the answer is", " true"), ("the", " answer")]))
    with unrounded(model):
        (plain, _), _ = scorer.loglikelihoods([("the answer is", " true"), ("the", " answer")])
    assert found != plain
    assert found == pytest.approx(plain, abs=2)
    assert other < 0


def test_as_many_inputs_share_a_scale_as_divide_the_width() -> None:
    assert [group_of("w4a16", width) for width in (4096, 576, 1120, 40)] == [128, 64, 32, 0]
    assert group_of("fp8", 4096) == 0


def test_the_groups_of_every_matrix_are_in_the_record(quantised: Quantise) -> None:
    _, artifact = quantised("w4a16", "llama", "differing")
    record = read_json(artifact / "quantisation.json")
    # 192 inputs are 3 × 64; one attention has 128; no group divides the MLPs' 40 and 31 channels.
    assert record["groups"] == {"0": 3, "64": 17, "128": 1}
    assert record["matrices"] == 21
    assert any("trust_remote_code=True" in remark for remark in record["remarks"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_a_quantised_model_is_judged_in_a_column_of_its_own_and_published(world: World) -> None:
    report = world.run(*BRIEF)
    assert {"dense", "pruned", "quantised"} <= report["mean"].keys()
    assert report["texts"]["mean"]["quantised"] > 1
    assert "quantised_minus_pruned" in report["texts"]["mean"]["log"]
    assert report["quantisation"]["scheme"] == "w4a16"
    markdown = (world.artifact("report", *BRIEF) / "report.md").read_text()
    assert "| quantised |" in markdown
    assert "judged as transformers loads it with compressed-tensors" in markdown
    directory = world.artifact("export", *BRIEF)
    card = (directory / "README.md").read_text()
    assert "vllm serve ." in card
    assert "Quantised as w4a16 by GPTQ, calibrated on 4 sequences of 32 tokens" in card
    AutoModelForCausalLM.from_pretrained(directory)

    plain = world.plan("adapter=none")
    keys = {role: node.key for role, node in world.plan(*BRIEF).roles.items()}
    assert {role: node.key for role, node in plain.roles.items() if keys[role] != node.key}.keys() == {"report"}
    assert set(world.foreseen(*BRIEF).values()) == {"hit"}
    fp8 = world.plan(*BRIEF, "export.scheme=fp8").roles
    assert set(fp8["quantise"].inputs) == {"model"}, "nothing is calibrated"
    assert fp8["quantise"].key == world.plan(*BRIEF, "export.scheme=fp8", "export.length=64").roles["quantise"].key


def test_what_no_scheme_is_is_refused_and_what_servers_want_is_said_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"export\.scheme 'w4a61', did you mean 'w4a16'"):
        check_export(ExportConfig(format="compressed", scheme="w4a61"))
    with pytest.raises(UserError, match=r"export\.length must be at least 2"):
        check_export(ExportConfig(format="compressed", length=1))
    fields = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": VOCABULARY}
    shape = DecoderShape.from_config(fields)
    assert "multiples of 128, and this model has 576 (" in outlook(ExportConfig(format="compressed"), shape)
    assert "can't load" not in outlook(ExportConfig(format="compressed"), shape)
    odd = DecoderShape.from_config(fields | {"intermediate_size": 1229})
    assert "that 8 does not divide, and this model has 1229 (" in outlook(ExportConfig(format="compressed"), odd)
    assert outlook(ExportConfig(format="compressed", scheme="fp8"), odd) == ""
    assert outlook(ExportConfig(), shape) == ""


@pytest.mark.parametrize(("family", "kind"), [("llama", "attention"), ("phi3", "differing"), ("gemma2", "heads")])
def test_a_gguf_file_is_judged_by_its_own_dequantised_weights(family: str, kind: str, tmp_path: Path) -> None:
    model = pruned(tmp_path / "base", family, kind, hidden_size=96)
    (tmp_path / "file").mkdir()
    for dtype in ("f32", "q8_0"):
        convert(model, tmp_path / "file" / "model.gguf", dtype=dtype)
        judged = Source.of(tmp_path / "file", base=model.parent).load(dtype="float32").state_dict()
        stored = load_model(model, dtype="float32").state_dict()
        same = {name: torch.allclose(judged[name], weight, atol=1e-6) for name, weight in stored.items()}
        assert all(same.values()) == (dtype == "f32")
        assert all(torch.allclose(judged[name], weight, atol=0.01) for name, weight in stored.items())


def test_a_gguf_file_in_few_bits_has_the_column_too(world: World) -> None:
    asked = ("adapter=none", "export=gguf", "export.dtype=q4_0")
    report = world.run(*asked)
    assert report["texts"]["mean"]["quantised"] != report["texts"]["mean"]["pruned"]
    assert report["quantisation"]["scheme"] in ("q4_0", "f16")
    assert "evaluate-quantised" not in world.plan("adapter=none", "export=gguf", "export.dtype=f16").roles

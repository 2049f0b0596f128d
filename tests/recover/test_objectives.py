"""Distillation: its loss and gradient, what a teacher's top k stand for, its cache, and what it does for a student."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, kl_div, linear, log_softmax
from transformers import AutoModelForCausalLM

from helpers.decoders import decoder
from helpers.tiny_tokenizer import VOCABULARY
from helpers.toy import config, data_artifact, model_artifact
from stages.common.files import read_jsonl
from stages.decoders.logits import PLAIN, Logits
from stages.errors import UserError
from stages.prune.groups import Kept, Selection
from stages.prune.surgery import cut
from stages.recover.config import RecoverStageConfig
from stages.recover.objectives import divergence
from stages.recover.objectives.distillation import DIVERGENCES, DistillationConfig
from stages.recover.objectives.divergence import Exact, TopK, divergence_of, summed_mixture
from stages.recover.objectives.teacher import Teacher
from stages.recover.stage import run
from stages.rows.packing import Document, collate
from stages.stage import JSON, Context

TOKENS, VOCAB = 19, 23


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "CHUNK", 8)  # the last one short


def heads(*, bias: bool = False) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor, torch.nn.Linear, torch.Tensor]:
    """Return hidden states and head of a student and of a wider teacher, and labels."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for width in (6, 10):
        head = torch.nn.Linear(width, VOCAB, bias=bias)
        torch.nn.init.normal_(head.weight, generator=generator)
        made.append((torch.randn(TOKENS, width, generator=generator), head))
    labels = torch.randint(VOCAB, (TOKENS,), generator=generator)
    return made[0][0].requires_grad_(), made[0][1], *made[1], labels


@pytest.mark.parametrize("logits", [PLAIN, Logits(softcap=2.0), Logits(scaling=3.0), Logits(3.0, 0.5)])
@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_loss_and_gradients_are_those_of_the_plain_formula(temperature: float, share: float, logits: Logits) -> None:
    hidden, head, taught, teacher, labels = heads(bias=True)
    student_logits, teacher_logits = linear(hidden, head.weight, head.bias), teacher(taught).detach()
    student_logits, teacher_logits = (z / logits.scaling for z in (student_logits, teacher_logits))
    if (cap := logits.softcap) is not None:
        student_logits, teacher_logits = (cap * torch.tanh(z / cap) for z in (student_logits, teacher_logits))
    said = cross_entropy(student_logits, labels, reduction="sum")
    divergence = temperature**2 * kl_div(
        log_softmax(student_logits / temperature, 1),
        log_softmax(teacher_logits / temperature, 1),
        reduction="sum",
        log_target=True,
    )
    expected = (1 - share) * said + share * divergence
    trained = (hidden, head.weight, head.bias)
    gradients = torch.autograd.grad(expected * 0.5, trained)

    parts = summed_mixture(
        hidden,
        head,
        labels,
        Exact(taught, teacher, logits, temperature),
        temperature=temperature,
        share=share,
        logits=logits,
    )

    torch.testing.assert_close(parts, (expected, said, divergence))
    torch.testing.assert_close(torch.autograd.grad(parts[0] * 0.5, trained), gradients)


def plain_divergence(name: str, beta: float, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the divergence of distributions [N, V], summed over N, as the papers write it."""
    m = {"forward": q, "reverse": p, "jensen": beta * p + (1 - beta) * q}[name]
    of_teacher, of_student = ((x * (x / m).log()).sum() for x in (p, q))
    return {"forward": of_teacher, "reverse": of_student, "jensen": beta * of_teacher + (1 - beta) * of_student}[name]


KINDS = [("reverse", 0.5), ("jensen", 0.5), ("jensen", 0.1)]


@pytest.mark.parametrize("logits", [PLAIN, Logits(3.0, 0.5)])
@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("name", "beta"), KINDS)
def test_other_divergences_and_their_gradients_are_those_of_the_plain_formula(
    name: str, beta: float, temperature: float, share: float, logits: Logits
) -> None:
    hidden, head, taught, teacher, labels = heads(bias=True)
    student_logits, teacher_logits = (logits(z) for z in (linear(hidden, head.weight, head.bias), teacher(taught)))
    p, q = (torch.softmax(z / temperature, 1) for z in (teacher_logits.detach(), student_logits))
    divergence = temperature**2 * plain_divergence(name, beta, p, q)
    expected = (1 - share) * cross_entropy(student_logits, labels, reduction="sum") + share * divergence
    trained = (hidden, head.weight, head.bias)
    gradients = torch.autograd.grad(expected * 0.5, trained)

    exact = Exact(taught, teacher, logits, temperature)
    kind = divergence_of(name, beta)
    parts = summed_mixture(
        hidden, head, labels, exact, temperature=temperature, share=share, logits=logits, diverging=kind
    )

    torch.testing.assert_close((parts[0], parts[2]), (expected, divergence))
    torch.testing.assert_close(torch.autograd.grad(parts[0] * 0.5, trained), gradients, rtol=1e-4, atol=1e-5)


def test_jensen_over_its_beta_tends_to_forward_and_to_reverse() -> None:
    hidden, head, taught, teacher, labels = heads()
    # At a temperature at which no ratio of probabilities is as large as 1 / β.
    exact = Exact(taught, teacher, PLAIN, 4.0)

    def found(name: str, beta: float = 0.5) -> torch.Tensor:
        kind = divergence_of(name, beta)
        loss = summed_mixture(hidden, head, labels, exact, temperature=4.0, diverging=kind)[0]
        return torch.autograd.grad(loss, hidden)[0]

    for name, beta in (("forward", 1e-3), ("reverse", 1 - 1e-3)):
        wanted = found(name)
        assert (found("jensen", beta) / 1e-3 - wanted).norm() < 0.02 * wanted.norm(), name


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("count", [1, 5, VOCAB])
@pytest.mark.parametrize(("name", "beta"), [("forward", 0.5), *KINDS])
def test_a_top_k_teacher_is_a_distribution_of_k_tokens_and_the_rest(
    name: str, beta: float, count: int, temperature: float
) -> None:
    hidden, head, taught, teacher, labels = heads()
    p = torch.softmax(teacher(taught).detach() / temperature, 1)
    q = torch.softmax(head(hidden) / temperature, 1)
    named = p.topk(count, 1).indices
    coarse = [
        torch.cat([x.gather(1, named), 1 - x.gather(1, named).sum(1, keepdim=True)], 1)[:, : min(count + 1, VOCAB)]
        for x in (p, q)
    ]
    expected = temperature**2 * plain_divergence(name, beta, *coarse)
    gradient = torch.autograd.grad(expected, hidden)[0]

    targets = TopK.of(Exact(taught, teacher, PLAIN, temperature), count)
    kind = divergence_of(name, beta)
    loss = summed_mixture(hidden, head, labels, targets, temperature=temperature, diverging=kind)[0]

    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], gradient, rtol=1e-3, atol=1e-4)


def test_all_of_the_vocabulary_as_top_k_is_the_exact_teacher() -> None:
    hidden, head, taught, teacher, labels = heads()
    exact = Exact(taught, teacher, PLAIN, 2.0)
    losses = [
        summed_mixture(hidden, head, labels, targets, temperature=2.0)[0]
        for targets in (exact, TopK.of(exact, VOCAB), TopK.of(exact, 10 * VOCAB))
    ]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])
    gradients = [torch.autograd.grad(loss, hidden)[0] for loss in losses]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn() -> None:
    hidden, head, _, _, labels = heads()
    exact = Exact(hidden.detach(), head, PLAIN, 3.0)
    for targets, name in product((exact, TopK.of(exact, 4)), DIVERGENCES):
        kind = divergence_of(name, 0.5)
        loss = summed_mixture(hidden, head, labels, targets, temperature=3.0, diverging=kind)[0]
        assert abs(loss.item()) < 1e-4
        assert torch.autograd.grad(loss, hidden)[0].abs().max() < 1e-4


def test_no_labels_make_a_loss_of_nothing() -> None:
    hidden, head, taught, teacher, labels = heads()
    exact = Exact(taught[:0], teacher, PLAIN, 1.0)
    for targets in (exact, TopK.of(exact, 4)):
        parts = summed_mixture(hidden[:0], head, labels[:0], targets)
        assert [part.item() for part in parts] == [0, 0, 0]


def test_bfloat16_heads_are_close_to_float32_ones() -> None:
    hidden, head, taught, teacher, labels = heads()
    wanted = summed_mixture(hidden, head, labels, Exact(taught, teacher, PLAIN, 1.0))[0]
    exact = Exact(taught.bfloat16(), teacher.bfloat16(), PLAIN, 1.0)
    found = summed_mixture(hidden.bfloat16(), head.bfloat16(), labels, exact)[0]
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=0.0)


@pytest.mark.parametrize("family", ["llama", "granite"])
def test_a_teacher_sees_each_document_alone(family: str, tmp_path: Path) -> None:
    model = decoder(family, vocab_size=VOCABULARY, max_position_embeddings=256)
    artifact = model_artifact(tmp_path / "dense", model)
    documents = [Document(list(range(start, start + 9)), 3, "", cut=False) for start in (30, 60)]
    batch = collate(documents)

    found = Teacher(artifact / "model", "float32", Context(output=tmp_path), temperature=2.0).targets(batch)

    logits = torch.cat([model(torch.tensor([document.ids])).logits[0, 2:8] for document in documents])
    expected = log_softmax(logits / 2.0, 1)
    got = found.log_probabilities(slice(None), torch.empty_like(expected))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


# Below, whole recoveries: a tiny model is pruned, and taught by what it was.


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs: a dense model, the same with a sixth of its hidden and half of its MLP channels gone, and rows."""
    root = tmp_path_factory.mktemp("taught")
    data_artifact(root / "data", choices=False)
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "tie_word_embeddings": True}
    pruned = decoder("mistral", sliding_window=None, **sizes)
    model_artifact(root / "dense", pruned)
    cut(pruned, Selection([Kept(list(range(6)), [0, 1, 2], list(range(20))) for _ in range(3)], list(range(40))))
    pruned.config.hidden_size, pruned.config.intermediate_size = 40, 20
    model_artifact(root / "base", pruned)
    return root


def settings(adapter: dict[str, Any] | None = None, **options: Any) -> RecoverStageConfig:
    """Return a short recovery by distillation."""
    own = {name: options.pop(name) for name in tuple(options) if name in DistillationConfig.__slots__}
    distillation = DistillationConfig(**{"temperature": 2.0} | own)
    short: dict[str, Any] = {"objective": "distillation", "loss": "all", "tokens": 800, "distillation": distillation}
    return config(adapter, **short | options)


def recover(root: Path, output: Path, chosen: RecoverStageConfig, **context: Any) -> JSON:
    inputs = {"model": root / "base", "data": root / "data", "teacher": root / "dense"}
    output.mkdir(exist_ok=True)
    return run(chosen, inputs, Context(output=output, cache=output.parent / "cache", checkpoint_seconds=0, **context))


def steps(output: Path) -> list[JSON]:
    points = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    return [point for point in points if point["step"] > 0]


@pytest.mark.parametrize("adapter", [{"rank": 16}, {"name": "full"}])
def test_distillation_brings_the_student_nearer_to_its_teacher_than_cross_entropy(
    taught: Path, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    distances = {"pruned": distance(taught / "dense", taught / "base", taught)}
    for objective in ("cross_entropy", "distillation"):
        chosen = settings(adapter, objective=objective, temperature=1.0, tokens=2000, learning_rate=5e-3)
        recover(taught, tmp_path / objective, chosen)
        distances[objective] = distance(taught / "dense", tmp_path / objective, taught)

    assert distances["distillation"] < 0.9 * min(distances["cross_entropy"], distances["pruned"]), distances


def test_the_parts_of_the_loss_are_recorded_beside_it(taught: Path, tmp_path: Path) -> None:
    summary = recover(taught, tmp_path / "out", settings(weight=0.25, tokens=500))

    for point in steps(tmp_path / "out"):
        mixed = 0.75 * point["cross_entropy"] + 0.25 * point["divergence"]
        assert point["loss"] == pytest.approx(mixed, rel=1e-5)
    sentence = (
        "Distilled from the dense model at temperature 2, weight 0.25; 75.0 % of the loss is cross-entropy of the "
        "tokens themselves."
    )
    assert summary["objective"] == {
        "name": "distillation",
        "temperature": 2.0,
        "weight": 0.25,
        "divergence": "forward",
        "teacher_top_k": None,
        "teacher": {},
        "sentences": [sentence],
    }
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert sentence in card


def test_what_is_cached_is_what_would_be_computed(taught: Path, tmp_path: Path) -> None:
    recover(taught, tmp_path / "fly", settings(teacher_top_k=8, tokens=500))
    cached = settings(teacher_top_k=8, tokens=500, cache_teacher=True)
    recover(taught, tmp_path / "first", cached)
    short, flipped, *others = sorted((tmp_path / "cache").rglob("*.safetensors"))
    whole = flipped.read_bytes()
    short.write_bytes(short.read_bytes()[:100])
    flipped.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    stamps = [file.stat().st_mtime_ns for file in others]
    recover(taught, tmp_path / "again", cached)

    assert others
    assert [file.stat().st_mtime_ns for file in others] == stamps, "what is there is not read"
    assert load_file(short), "what is damaged is not written again"
    assert flipped.read_bytes() == whole, "what is damaged is not written again"
    for name in ("first", "again"):
        for file in ("adapter/adapter_model.safetensors", "history.jsonl"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "fly" / file).read_bytes(), (name, file)


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_that_was_stopped_ends_in_the_same_bytes(taught: Path, tmp_path: Path, cached: bool) -> None:
    chosen = settings(tokens=500, weight=0.5, teacher_top_k=8 if cached else None, cache_teacher=cached)
    recover(taught, tmp_path / "whole", chosen)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # so that the stopped run fills it
    with pytest.raises(Stopped):
        recover(taught, tmp_path / "stopped", chosen, log=stop_at(2))
    recover(taught, tmp_path / "stopped", chosen)

    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors", "history.jsonl", "recovery.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_teacher_of_another_vocabulary_is_refused(taught: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(taught, other)
    small = decoder(vocab_size=VOCABULARY + 8, max_position_embeddings=256, tie_word_embeddings=True)
    model_artifact(other / "dense", small)

    with pytest.raises(UserError, match=rf"teacher's vocabulary has {VOCABULARY + 8} tokens and .* {VOCABULARY}: "):
        recover(other, tmp_path / "out", settings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "recover.distillation.temperature must be above 0"),
        ({"divergence": "revers"}, "did you mean 'reverse'"),
        ({"beta": 1.0}, r"recover.distillation.beta must be in \(0, 1\)"),
        ({"weight": 0.0}, r"recover.distillation.weight must be in \(0, 1\]"),
        ({"teacher_top_k": 0}, "recover.distillation.teacher_top_k must be at least 1 token"),
        ({"cache_teacher": True}, "recover.distillation.teacher_top_k=64"),
        ({"objective": "destillation"}, "did you mean 'distillation'"),
    ],
)
def test_options_outside_their_range_are_refused(
    taught: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        recover(taught, tmp_path / "out", settings(**options))


class Stopped(Exception):
    """Raised where the process would have been killed."""


def stop_at(step: int) -> Any:
    def log(point: JSON) -> None:
        if point["step"] == step:
            raise Stopped

    return log


@torch.no_grad()
def distance(dense: Path, student: Path, root: Path) -> float:
    """Return the divergence of the student from the dense model on the validation rows, in nats a token."""
    models = [AutoModelForCausalLM.from_pretrained(artifact / "model") for artifact in (student, dense)]
    ids = [torch.tensor([list(row["prompt"].encode())]) for row in read_jsonl(root / "data" / "validation.jsonl")]
    log_q, log_p = (torch.cat([log_softmax(model(row).logits[0], 1) for row in ids]) for model in models)
    return kl_div(log_q, log_p, reduction="batchmean", log_target=True).item()

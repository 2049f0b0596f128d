"""Scorer and generator with a kernel for variable lengths, and what they ask of a device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.models import MODELS
from helpers.questions import ROWS, reader
from helpers.tiny_tokenizer import byte_tokenizer
from helpers.variable_length import StandIn, stand_in
from stages.decoders.variable_length import KERNELS, Kernel
from stages.inference import tree_attention
from stages.inference.cache import GRAIN, EndToEnd
from stages.inference.generator import Generator, Sampling
from stages.inference.prefix_tree import branches, plant, side_by_side
from stages.inference.scorer import Scorer
from stages.task_library.definitions import documents, load_task

FAST = ["llama", "one shape a layer", "biases on q, k and v", "norms on q and k"]
TEMPLATE = "Below is an instruction that describes a task.\n\n### Instruction:\n"
PROMPTS = [TEMPLATE + "Is a kiwi a bird?", TEMPLATE + "Is tea soup?", "Something else: 東京, naïve café.", "", "x"]
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=12)


def requests(*names: str) -> list[tuple[str, str]]:
    return [one for name in names for document in documents(load_task(name, ROWS[name])) for one in document.requests]


@given(SEQUENCES, st.sampled_from([1, 8, 1000]))
def test_branches_ask_once_with_every_node_and_see_their_sequences(sequences: list[list[int]], largest: int) -> None:
    row = side_by_side(plant(sequences, largest=largest))
    own, reach, nodes = branches(row)
    assert sum(own) == len(row)
    assert sum(reach) == len(nodes)
    ends = torch.tensor(reach).cumsum(0).tolist()
    asking = 0
    for count, length, end in zip(own, reach, ends, strict=True):
        path = nodes[end - length : end]
        assert path in row.paths.values()
        assert path[-count:] == list(range(asking, asking + count))
        asking += count


@pytest.mark.parametrize("kind", FAST)
def test_scores_are_the_same_in_one_call_a_layer_and_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests("piqa", "winogrande", "arc_easy")
    expected = Scorer(MODELS[kind](), byte_tokenizer()).loglikelihoods(asked)
    kernel = stand_in(monkeypatch)
    scorer = Scorer(MODELS[kind](), byte_tokenizer(), batch_tokens=10_000)
    kernel.shapes.clear()
    found = scorer.loglikelihoods(asked)
    for (one, _), (other, _) in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    nodes = sum(map(len, plant([query.inputs for query in scorer.encoder.queries(asked)], largest=10_000)))
    passes = sum(shapes[0][0] for shapes in kernel.shapes) // nodes
    assert scorer.flat is not None
    assert passes == len(scorer.flat.layers)
    assert len(kernel.shapes) <= passes * (nodes // scorer.pass_tokens + 1)


def test_long_examples_are_not_gathered_for_every_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [("Question: one? Answer: two\n\n" * 6 + context, answer) for context, answer in requests("piqa")]
    expected = Scorer(reader(), byte_tokenizer()).loglikelihoods(asked)
    kernel = stand_in(monkeypatch)
    monkeypatch.setattr(tree_attention, "GATHERED", 1)
    scorer = Scorer(reader(), byte_tokenizer())
    kernel.shapes.clear()
    assert scorer.loglikelihoods(asked) == expected
    assert not kernel.shapes


@pytest.mark.parametrize("kind", FAST)
def test_the_same_is_written_from_a_cache_laid_end_to_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(text: str) -> bool:
        return len(text) >= 3 and "e" in text

    expected = [written(MODELS[kind](), **options) for options in ({}, {"stop": stop})]
    kernel = stand_in(monkeypatch)
    assert [written(MODELS[kind](), **options) for options in ({}, {"stop": stop})] == expected
    assert kernel.shapes


def written(model: Any, **options: Any) -> list[str]:
    return Generator(Scorer(model, byte_tokenizer())).generate(PROMPTS, new_tokens=12, **options)


def test_the_same_is_sampled_from_a_cache_laid_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sampled()
    stand_in(monkeypatch)
    assert sampled() == expected


def sampled() -> Any:
    generator = Generator(Scorer(reader(), byte_tokenizer()))
    contexts = [byte_tokenizer()(prompt)["input_ids"] for prompt in PROMPTS if prompt]
    return generator.continuations(contexts, new_tokens=8, sampling=Sampling(1.0, list("abcd")))


def test_no_shape_of_a_step_depends_on_how_much_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = stand_in(monkeypatch)
    generator = Generator(Scorer(reader(), byte_tokenizer()))
    generator.ends = frozenset()
    kernel.shapes.clear()
    generator.generate(PROMPTS, new_tokens=12)
    layers = len(generator.scorer.flat.layers) if generator.scorer.flat else 0
    steps = kernel.shapes[-11 * layers :]
    assert len(set(steps)) == 1


def test_a_masked_cache_that_is_read_in_large_steps_gives_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = written(reader())
    monkeypatch.setitem(GRAIN, "cpu", 16)
    assert written(reader()) == expected


def on_meta(monkeypatch: pytest.MonkeyPatch) -> Scorer:
    """Return a scorer whose device has no numbers, so that reading one is an error."""
    monkeypatch.setitem(KERNELS, "meta", replace(KERNELS["cuda"], lacking=lambda device: None))
    scorer = Scorer(reader().to(torch.bfloat16), byte_tokenizer(), joined=False)
    scorer.model.to("meta")
    return scorer


@pytest.mark.parametrize("gathered", [0, 8])
def test_all_passes_are_on_their_way_before_the_device_is_read(gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "GATHERED", gathered)
    scorer = on_meta(monkeypatch)
    scorer.limit(64)
    queries = scorer.encoder.queries(requests("piqa"))
    asked: list[int] = []
    with pytest.raises(NotImplementedError, match="meta"):
        scorer.score(queries, asked.append)
    assert sum(asked) == len(queries)
    assert len(asked) > 1
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        scorer.likeliest(queries)


def test_a_step_of_the_cache_reads_nothing_from_the_device() -> None:
    meta = torch.device("meta")
    kernel = Kernel(lambda q, *others: torch.empty_like(q), frozenset({torch.bfloat16}))
    cache = EndToEnd(meta, [3, 5, 4], 6, kernel)
    q, k, v = (torch.empty(3, heads, 8, dtype=torch.bfloat16, device=meta) for heads in (4, 2, 2))
    for _ in range(2):
        assert cache.next_positions().shape == (len(q),)
        assert cache.attend(0, q, k, v, 0.3).shape == q.shape
        cache.keep([0, 2])
        q, k, v = (part[:2] for part in (q, k, v))


def test_a_stand_in_is_asked_for_what_the_kernel_takes() -> None:
    """Fails if the stand-in's checks were dropped: they are all that a processor can say about the kernel's call."""
    ends = EndToEnd(torch.device("cpu"), [3, 5], 2, Kernel(StandIn(), frozenset()))._bounds(2)
    with pytest.raises(AssertionError):
        StandIn()(torch.randn(4, 2, 7), torch.randn(14, 2, 7), torch.randn(14, 2, 7), ends, (-1, -1), 1.0)

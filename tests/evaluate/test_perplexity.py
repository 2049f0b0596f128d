"""Perplexity, against plain loops over the model's own forward pass and against lm-eval's rolling windows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from helpers.questions import PASSAGES, TEXTS, reader, stock, write_texts
from helpers.tiny_tokenizer import byte_tokenizer
from stages.errors import UserError
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.perplexity import corpora, document_rows, joined_ids, judged_mean, select, texts, totals
from stages.inference.scorer import Scorer


def test_perplexity_is_that_of_each_passage_read_alone() -> None:
    model, tokenizer = reader(), byte_tokenizer()
    total = count = 0.0
    for passage in PASSAGES:
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer.encode(passage["text"])])
        with torch.inference_mode():
            logprobs = model(ids[None]).logits[0].log_softmax(-1)
        total -= sum(float(logprobs[place, ids[place + 1]]) for place in range(len(ids) - 1))
        count += len(ids) - 1
    found = totals(document_rows(Scorer(model, tokenizer), PASSAGES, "wikipedia"))
    assert found["tokens"] == count
    assert found["nll"] == pytest.approx(total, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)
    size = sum(len(passage["text"].encode()) for passage in PASSAGES)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-6)


def test_a_passage_longer_than_the_model_reads_is_scored_as_lm_eval_rolls_over_it() -> None:
    from lm_eval.api.instance import Instance

    model = reader(max_position_embeddings=20)
    requests = [Instance("loglikelihood_rolling", {}, (passage["text"],), 0) for passage in PASSAGES]
    wanted = stock(model).loglikelihood_rolling(requests, disable_tqdm=True)
    rows = document_rows(Scorer(model, byte_tokenizer()), PASSAGES, "wikipedia")
    assert [-row["nll"] for row in rows] == pytest.approx(wanted, abs=1e-3)
    assert [row["tokens"] for row in rows] == [len(byte_tokenizer().encode(passage["text"])) for passage in PASSAGES]


def test_the_same_documents_are_taken_in_whatever_order_they_lie() -> None:
    chosen = select("wikipedia", PASSAGES, 2)
    assert chosen == select("wikipedia", reversed(PASSAGES), 2)
    assert select("wikipedia", PASSAGES, 1) == chosen[:1]
    assert len(select("wikipedia", PASSAGES, 99)) == len(PASSAGES)


def test_a_kind_without_documents_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no held-out texts of the kind 'news'"):
        select("news", [], 3)
    write_texts(tmp_path)
    with pytest.raises(UserError, match="has no texts of the kind 'papers'"):
        texts(Scorer(reader(), byte_tokenizer()), tmp_path, EvaluateConfig(texts=["papers"]))


def test_each_kind_has_the_figures_that_it_has_alone(tmp_path: Path) -> None:
    write_texts(tmp_path)
    scorer = Scorer(reader(), byte_tokenizer())
    together = texts(scorer, tmp_path, EvaluateConfig(texts=list(TEXTS), passages=2))
    assert {kind: len(found["documents"]) for kind, found in together.items()} == {
        "wikipedia": 2,
        "narrative": 2,
        "news": 1,
    }
    for kind in TEXTS:
        assert texts(scorer, tmp_path, EvaluateConfig(texts=[kind], passages=2)) == {kind: together[kind]}
    assert texts(scorer, tmp_path, EvaluateConfig(texts=list(TEXTS), passages=0)) == {}


def test_the_mean_is_over_the_logarithms_of_the_kinds_that_nothing_is_fitted_to() -> None:
    def found(perplexity: float, bits: float) -> dict[str, float]:
        return {"nll": 10 * math.log(perplexity), "tokens": 10, "bits_per_byte": bits}

    kinds = {"wikipedia": found(999, 9), "narrative": found(10, 1), "news": found(1000, 3), "code": found(5, 9)}
    mean = judged_mean({**kinds, "exams": found(7, 7)})
    assert mean == {"kinds": ["narrative", "news"], "perplexity": pytest.approx(100), "bits_per_byte": 2}
    assert judged_mean({"wikipedia": kinds["wikipedia"]}) is None


def test_a_hopeless_model_still_has_a_finite_perplexity() -> None:
    assert math.isfinite(totals([{"title": "", "nll": 1e9, "tokens": 3, "bytes": 9}])["perplexity"])


TEXT = "the correct answer is one. " * 40 + "Smørrebrød,\r\nquestion and answer. " * 30
"""Windows that begin alike, as in a text that repeats itself, and windows that do not."""


def corpus_artifact(directory: Path, **texts: str) -> Path:
    (directory / "corpora").mkdir()
    for name, text in texts.items():
        (directory / "corpora" / f"{name}.txt").write_bytes(text.encode())
    return directory


def papers_perplexity(length: int) -> tuple[float, int]:
    """Return what LLM-Pruner's way of chunking and averaging gives for `TEXT`, and how many windows it takes."""
    ids = torch.tensor(byte_tokenizer()(TEXT, verbose=False)["input_ids"])
    windows_NL = torch.stack([ids[index * length : (index + 1) * length] for index in range(len(ids) // length)])
    with torch.no_grad():
        logits_NLV = reader()(windows_NL).logits
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    losses = loss(logits_NLV[:, :-1].reshape(-1, logits_NLV.shape[-1]), windows_NL[:, 1:].reshape(-1))
    return math.exp(losses.mean()), len(windows_NL)


def test_a_corpus_has_the_perplexity_that_the_papers_code_gives(tmp_path: Path) -> None:
    artifact = corpus_artifact(tmp_path, wiki=TEXT)
    config = EvaluateConfig(corpora=["wiki"], corpus_lengths=[16, 64])
    found = corpora(Scorer(reader(), byte_tokenizer()), artifact, config)["wiki"]
    for length in (16, 64):
        wanted, windows = papers_perplexity(length)
        assert found[str(length)]["perplexity"] == pytest.approx(wanted, rel=1e-5)
        assert len(found[str(length)]["windows"]) == windows
        assert found[str(length)]["tokens"] == windows * (length - 1)
        assert found[str(length)]["nll"] == pytest.approx(math.fsum(found[str(length)]["windows"]))


def test_the_tokenizers_own_first_token_stands_once_before_the_whole_text() -> None:
    tokenizer = byte_tokenizer()
    plain = tokenizer.encode("tea\n\ntea")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    assert joined_ids(tokenizer, "tea\n\ntea") == [tokenizer.eos_token_id, *plain]


def test_fewer_windows_are_the_first_ones(tmp_path: Path) -> None:
    artifact, scorer = corpus_artifact(tmp_path, wiki=TEXT), Scorer(reader(), byte_tokenizer())
    few, many = (
        corpora(scorer, artifact, EvaluateConfig(corpora=["wiki"], corpus_lengths=[16], corpus_windows=windows))
        for windows in (3, 10_000)
    )
    assert few["wiki"]["16"]["windows"] == pytest.approx(many["wiki"]["16"]["windows"][:3], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "text", "length", "message"),
    [
        ("wiki", "short", 64, r"'wiki' has \d+ tokens, fewer than one window of 64"),
        ("wiki", "", 2, "'wiki' has 0 tokens"),
        ("wiki", TEXT, 513, "513, and the model reads 512"),
        ("ptb", TEXT, 64, "no corpus 'ptb'"),
    ],
)
def test_a_corpus_that_fills_no_window_is_one_clear_error(
    tmp_path: Path, name: str, text: str, length: int, message: str
) -> None:
    artifact = corpus_artifact(tmp_path, wiki=text)
    with pytest.raises(UserError, match=message):
        corpora(Scorer(reader(), byte_tokenizer()), artifact, EvaluateConfig(corpora=[name], corpus_lengths=[length]))

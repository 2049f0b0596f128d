"""From documents to a task's scores."""

from __future__ import annotations

from typing import Any

import pytest

from stages.evaluate.metrics import average, standard_error, summarise


def row(acc: float, choices: int = 2, **fields: Any) -> dict[str, Any]:
    base = {
        "acc": acc,
        "acc_norm": None,
        "loglikelihoods": [-1.0] * choices,
        "bits": 6.0,
        "bytes": 3,
        "truncated": False,
    }
    return base | fields


def test_chance_is_the_mean_over_documents() -> None:
    assert summarise([row(1.0, choices=4), row(0.0, choices=2)])["chance"] == pytest.approx((1 / 4 + 1 / 2) / 2)


def test_bits_per_byte_weighs_documents_by_their_bytes() -> None:
    assert summarise([row(1.0, bits=1.0, bytes=1), row(0.0, bits=9.0, bytes=9)])["bits_per_byte"] == 1.0
    assert summarise([row(1.0, bytes=0)])["bits_per_byte"] is None


def test_a_task_without_a_normalised_metric_says_null() -> None:
    scores = summarise([row(1.0), row(0.0)])
    assert (scores["acc"], scores["acc_norm"], scores["acc_norm_stderr"]) == (0.5, None, None)


def test_one_document_has_no_standard_error() -> None:
    assert summarise([row(1.0)])["acc_stderr"] is None


def test_standard_error_is_lm_evals() -> None:
    from lm_eval.api.metrics import mean_stderr

    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert standard_error(values) == pytest.approx(mean_stderr(values))


def test_cut_documents_are_counted() -> None:
    assert summarise([row(1.0), row(1.0, truncated=True)])["truncated"] == 1


def test_the_mean_over_tasks_counts_each_task_once() -> None:
    many = summarise([row(1.0, acc_norm=1.0)] * 9 + [row(0.0, acc_norm=0.0)])
    few = summarise([row(0.0), row(1.0)])
    found = average([many, few])
    assert found["acc"] == pytest.approx((0.9 + 0.5) / 2)
    assert (found["acc_norm"], found["acc_norm_tasks"]) == (pytest.approx(0.9), 1)
    assert found["acc_stderr"] == pytest.approx((0.1**2 + 0.5**2) ** 0.5 / 2)


def test_the_mean_of_no_tasks_is_null() -> None:
    assert average([])["acc"] is None

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import UserError
from stages.report.statistics import MINIMUM_UNITS, Paired, difference, interval, mean, paired, retained, share

MODELS = ("dense", "pruned", "recovered")


def scores(*totals: Any, models: tuple[str, ...] = MODELS, resamples: int = 400, seed: int = 0) -> Paired:
    totals_MN = np.array(totals, dtype=np.float64)
    return paired(models, totals_MN, np.ones(totals_MN.shape[1]), resamples=resamples, seed=[seed])


def whole_share(scored: Paired, *, higher_is_better: bool = True) -> dict[str, Any]:
    return share(scored, dense="dense", pruned="pruned", recovered="recovered", higher_is_better=higher_is_better)


hits = st.lists(st.integers(0, 1), min_size=MINIMUM_UNITS, max_size=60)


@settings(max_examples=40, deadline=None)
@given(hits)
def test_a_model_against_itself_loses_nothing_and_recovers_nothing(hit: list[int]) -> None:
    scored = scores(hit, hit, hit)
    assert difference(scored, "pruned", "dense") == {"value": 0.0, "interval": [0.0, 0.0], "clear": False}
    part = whole_share(scored)
    assert part["value"] is None
    assert "within noise" in part["reason"]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_swapping_two_models_flips_the_signs(data: st.DataObject) -> None:
    one = data.draw(hits)
    other = data.draw(st.lists(st.integers(0, 1), min_size=len(one), max_size=len(one)))
    scored = scores(one, other, models=("a", "b"), resamples=399)
    forth, back = difference(scored, "a", "b"), difference(scored, "b", "a")
    assert forth["value"] == -back["value"]
    assert forth["clear"] == back["clear"]
    assert np.allclose(forth["interval"], [-end for end in reversed(back["interval"])])


@settings(max_examples=40, deadline=None)
@given(hits, st.integers(0, 5))
def test_full_recovery_is_one_and_no_recovery_is_zero_where_a_number_is_given(hit: list[int], seed: int) -> None:
    worse = [0] * len(hit)
    for recovered, expected in ((hit, 1.0), (worse, 0.0)):
        part = whole_share(scores(hit, worse, recovered, seed=seed))
        assert part["value"] in (expected, None)
        assert part["value"] is not None or "loss" in part["reason"]


def test_intervals_cover_the_truth_at_their_stated_rate() -> None:
    random, covered_gain, covered_share, numbers, trials = np.random.default_rng(7), 0, 0, 0, 300
    for trial in range(trials):
        hardness_N = random.random(150)
        noise_MN = random.normal(0, 0.05, (3, 150))
        dense, pruned, recovered = (hardness_N + noise_MN[i] < skill for i, skill in enumerate((0.7, 0.4, 0.55)))
        scored = scores(dense, pruned, recovered, resamples=300, seed=trial)
        low, high = difference(scored, "recovered", "pruned")["interval"]
        covered_gain += low <= 0.15 <= high
        part = whole_share(scored)
        if part["value"] is not None:
            numbers += 1
            covered_share += part["interval"][0] <= 0.5 <= part["interval"][1]
    # Two standard errors of a rate over 300 trials are 2.5 points; percentile intervals run a little narrow.
    assert 0.90 <= covered_gain / trials <= 0.99
    assert numbers > 0.95 * trials
    assert 0.90 <= covered_share / numbers <= 0.99


def test_a_share_has_a_finite_interval_even_where_some_resamples_show_no_loss() -> None:
    random, given_numbers = np.random.default_rng(3), 0
    for seed in range(60):
        dense, pruned, recovered = (random.random(40) < skill for skill in (0.75, 0.5, 0.6))
        scored = scores(dense, pruned, recovered, resamples=2000, seed=seed)
        part = whole_share(scored)
        if part["value"] is not None and (scored.draws_MB[0] <= scored.draws_MB[1]).any():
            given_numbers += 1
            assert np.isfinite(part["interval"]).all()
            assert part["interval"][0] <= part["value"] <= part["interval"][1]
    assert given_numbers > 0


def test_a_pruned_model_that_is_better_has_no_loss_to_recover() -> None:
    hit = np.arange(100) < 60
    part = whole_share(scores(hit, np.ones(100), hit))
    assert part["value"] is None
    assert "no loss" in part["reason"]


def test_less_is_better_for_bits_and_perplexity() -> None:
    base = np.linspace(1, 2, 50)
    part = whole_share(scores(base, base + 1, base + 0.25), higher_is_better=False)
    assert part["value"] == pytest.approx(0.75)


def test_nothing_is_concluded_from_a_handful_of_documents() -> None:
    few = MINIMUM_UNITS - 1
    scored = scores(np.ones(few), np.zeros(few), np.ones(few))
    assert not difference(scored, "dense", "pruned")["clear"]
    assert "fewer than" in whole_share(scored)["reason"]


def test_weights_make_long_documents_count_more() -> None:
    totals_MN, weights_N = np.array([[10.0, 2.0]]), np.array([10.0, 1.0])
    scored = paired(["dense"], totals_MN, weights_N, resamples=10, seed=[0])
    assert scored.score_M[0] == pytest.approx(12 / 11)


def test_the_mean_over_tasks_is_unweighted_and_narrower_than_a_task() -> None:
    random = np.random.default_rng(0)
    tasks = [scores(random.random(n) < 0.5, models=("dense",), seed=n) for n in (100, 101, 102, 103)]
    together = mean(tasks)
    assert together.score_M[0] == pytest.approx(np.mean([task.score_M[0] for task in tasks]))
    width = [np.ptp(interval(task.draws_MB[0])) for task in (*tasks, together)]
    assert width[-1] < 0.7 * min(width[:-1])
    assert together.units == 100, "it claims no more documents than its smallest task has"


def test_equal_seeds_give_equal_intervals_whatever_the_number_of_documents_at_a_time(monkeypatch: Any) -> None:
    hit = np.arange(80) % 3 == 0
    one, same = scores(hit, models=("dense",)), scores(hit, models=("dense",))
    assert (one.draws_MB == same.draws_MB).all()
    assert (scores(hit, models=("dense",), seed=1).draws_MB != one.draws_MB).any()
    monkeypatch.setattr("stages.report.statistics.CHUNK", 100)
    assert (scores(hit, models=("dense",)).draws_MB == one.draws_MB).all()


def test_retained_has_no_number_where_the_dense_model_scores_nothing() -> None:
    scored = scores(np.zeros(20), np.zeros(20), np.ones(20))
    assert retained(scored, dense="dense", recovered="recovered")["value"] is None


def test_no_documents_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="at least one document"):
        paired(["dense"], np.zeros((1, 0)), np.zeros(0), resamples=10, seed=[0])

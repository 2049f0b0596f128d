from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import UserError
from stages.report.effects import PAIRS, effects
from stages.report.statistics import (
    MINIMUM_UNITS,
    Paired,
    above_chance,
    difference,
    interval,
    mcnemar,
    mean,
    paired,
    retained,
    score_intervals,
    share,
)

MODELS = ("dense", "pruned", "recovered")


def scores(*totals: Any, models: tuple[str, ...] = MODELS, resamples: int = 400, seed: int = 0) -> Paired:
    totals_MN = np.array(totals, dtype=np.float64)
    return paired(models, totals_MN, np.ones(totals_MN.shape[1]), resamples=resamples, seed=[seed])


def whole_share(scored: Paired, *, higher_is_better: bool = True) -> dict[str, Any]:
    return share(scored, reference="dense", pruned="pruned", recovered="recovered", higher_is_better=higher_is_better)


hits = st.lists(st.integers(0, 1), min_size=MINIMUM_UNITS, max_size=60)


@settings(max_examples=40, deadline=None)
@given(hits)
def test_a_model_against_itself_loses_nothing_and_recovers_nothing(hit: list[int]) -> None:
    models = ("dense", "dense_recovered", "pruned", "recovered")
    hits_MN = np.array([hit] * 4, dtype=np.float64)
    found = effects(scores(*hits_MN, models=models), higher_is_better=True, hits_MN=hits_MN)
    for one, other in PAIRS:
        assert found[f"{one}_minus_{other}"] == {
            "value": 0.0,
            "interval": [0.0, 0.0],
            "clear": False,
            "mcnemar": {"only_one": 0, "only_other": 0, "p": 1.0},
        }
    assert found["recovered"]["value"] is None
    assert "within noise" in found["recovered"]["reason"]
    assert found["retained"]["value"] in (1.0, None)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_swapping_two_models_flips_the_signs_and_mirrors_the_interval(data: st.DataObject) -> None:
    one = data.draw(hits)
    other = data.draw(st.lists(st.integers(0, 1), min_size=len(one), max_size=len(one)))
    hits_MN = np.array([one, other], dtype=np.float64)
    scored = scores(one, other, models=("a", "b"), resamples=data.draw(st.integers(100, 500)))
    forth, back = difference(scored, "a", "b", hits_MN), difference(scored, "b", "a", hits_MN)
    assert forth["value"] == -back["value"]
    assert forth["clear"] == back["clear"]
    assert forth["interval"] == [-end for end in reversed(back["interval"])]
    assert forth["mcnemar"]["p"] == back["mcnemar"]["p"]
    assert forth["mcnemar"]["only_one"] == back["mcnemar"]["only_other"]


@settings(max_examples=40, deadline=None)
@given(hits, st.integers(0, 5))
def test_full_recovery_is_one_and_no_recovery_is_zero_where_a_number_is_given(hit: list[int], seed: int) -> None:
    worse = [0] * len(hit)
    for recovered, expected in ((hit, 1.0), (worse, 0.0)):
        part = whole_share(scores(hit, worse, recovered, seed=seed))
        assert part["value"] in (expected, None)
        assert part["value"] is not None or "loss" in part["reason"]


def simulated(random: np.random.Generator, documents: int) -> np.ndarray[Any, Any]:
    """Return hits of dense, pruned and recovered, on average 0.7, 0.4 and 0.55; a document is hard for all alike."""
    hardness_N, noise_MN = random.random(documents), random.normal(0, 0.05, (3, documents))
    return hardness_N + noise_MN < np.array([[0.7], [0.4], [0.55]])


TRIALS = 1200
"""Three standard errors of a rate of 95 % over these are 1.9 points."""


def covers(found: list[float], truth: float) -> bool:
    return found[0] - 1e-9 <= truth <= found[1] + 1e-9


@pytest.mark.parametrize("documents", [20, 200])
def test_intervals_of_accuracies_and_of_shares_cover_the_truth_at_their_stated_rate(documents: int) -> None:
    random = np.random.default_rng(7)
    one, gain, part, numbers = 0, 0, 0, 0
    for trial in range(TRIALS):
        scored = scores(*simulated(random, documents), resamples=300, seed=trial)
        one += covers(score_intervals(scored)["dense"], 0.7)
        gain += covers(difference(scored, "recovered", "pruned")["interval"], 0.15)
        found = whole_share(scored)
        if found["value"] is not None:
            numbers += 1
            part += covers(found["interval"], 0.5)
    assert 0.92 <= one / TRIALS <= 0.98
    assert 0.92 <= gain / TRIALS <= 0.98
    assert 0.92 <= part / numbers <= 0.98
    assert numbers > 0.99 * TRIALS or documents == 20


def test_intervals_of_ratios_of_sums_cover_the_truth_at_their_stated_rate() -> None:
    random, one, gain = np.random.default_rng(8), 0, 0
    for trial in range(TRIALS):
        sizes_N = random.integers(5, 40, 150).astype(float)
        hardness_N = random.normal(0, 0.4, 150)
        bits_MN = sizes_N * (hardness_N + random.normal(0, 0.1, (2, 150)) + np.array([[1.0], [1.3]]))
        scored = paired(("dense", "pruned"), bits_MN, sizes_N, resamples=500, seed=[trial])
        one += covers(score_intervals(scored)["dense"], 1.0)
        gain += covers(difference(scored, "pruned", "dense")["interval"], 0.3)
    assert 0.92 <= one / TRIALS <= 0.98
    assert 0.92 <= gain / TRIALS <= 0.98


def test_intervals_of_the_mean_over_tasks_cover_the_truth_at_their_stated_rate() -> None:
    random, one, gain = np.random.default_rng(9), 0, 0
    for trial in range(TRIALS):
        tasks = [
            scores(*simulated(random, size), resamples=300, seed=3 * trial + place)
            for place, size in enumerate((40, 60, 80))
        ]
        average = mean(tasks)
        one += covers(score_intervals(average)["pruned"], 0.4)
        gain += covers(difference(average, "dense", "recovered")["interval"], 0.15)
    assert 0.92 <= one / TRIALS <= 0.98
    assert 0.92 <= gain / TRIALS <= 0.98


def test_intervals_of_rare_hits_cover_the_truth_where_all_resamples_would_be_alike() -> None:
    random, one, together = np.random.default_rng(12), 0, 0
    for trial in range(TRIALS):
        tasks = [scores(random.random(100) < 0.02, models=("pruned",), resamples=100, seed=trial) for _ in range(3)]
        one += covers(score_intervals(tasks[0])["pruned"], 0.02)
        together += covers(score_intervals(mean(tasks))["pruned"], 0.02)
    assert 0.92 <= one / TRIALS <= 0.98
    assert 0.92 <= together / TRIALS <= 0.98
    low, high = score_intervals(scores(np.zeros(100), models=("pruned",)))["pruned"]
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(0.037, abs=5e-4), "Wilson's for none of 100"


def test_equal_models_are_told_apart_no_more_often_than_the_level_allows() -> None:
    random, false = np.random.default_rng(10), 0
    for trial in range(TRIALS):
        hits_MN = (random.random(80) + random.normal(0, 0.2, (2, 80)) < 0.5).astype(float)
        false += difference(scores(*hits_MN, models=("a", "b"), seed=trial), "a", "b", hits_MN)["clear"]
    assert false / TRIALS <= 0.05


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_mcnemar_is_the_two_sided_binomial_test_of_the_discordant_documents(one: int, other: int, both: int) -> None:
    binomtest = pytest.importorskip("scipy.stats").binomtest
    hits_MN = np.array([[1] * one + [0] * other + [1] * both, [0] * one + [1] * other + [1] * both])
    found = mcnemar(*hits_MN)
    assert found is not None
    assert (found["only_one"], found["only_other"]) == (one, other)
    assert found["p"] == pytest.approx(binomtest(one, one + other).pvalue if one + other else 1.0)


def test_mcnemar_is_exact_where_a_float_would_vanish_and_silent_where_scores_are_not_right_or_wrong() -> None:
    right, wrong = np.ones(3000), np.zeros(3000)
    found = mcnemar(right, wrong)
    assert found is not None
    assert 0 <= found["p"] < 1e-300
    assert mcnemar(np.array([0.5, 1.0]), np.array([1.0, 0.0])) is None


def test_what_mcnemar_does_not_find_is_not_clear() -> None:
    hits_MN = np.zeros((2, 200))
    hits_MN[0, :5] = 1
    scored = scores(*hits_MN, models=("a", "b"), resamples=1000)
    assert difference(scored, "a", "b")["clear"], "the bootstrap alone is sure: no draw turns the sign"
    found = difference(scored, "a", "b", hits_MN)
    assert found["mcnemar"]["p"] == pytest.approx(2 / 2**5)
    assert not found["clear"]


def test_standard_errors_are_those_of_the_sample_and_of_independent_tasks() -> None:
    hit = np.array([1, 1, 1, 0, 0, 1, 0, 1])
    task = scores(hit, models=("dense",))
    assert task.error_M[0] == pytest.approx(hit.std(ddof=1) / np.sqrt(8))
    assert mean([task, task]).error_M[0] == pytest.approx(task.error_M[0] / np.sqrt(2))
    sizes = np.array([10.0, 20.0, 30.0, 40.0])
    ratio = paired(["dense"], np.array([[11.0, 18.0, 36.0, 35.0]]), sizes, resamples=4000, seed=[0])
    assert ratio.error_M[0] == pytest.approx(ratio.draws_MB[0].std() * np.sqrt(4 / 3), rel=0.1)


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


def test_the_recovered_dense_model_is_the_reference_where_there_is_one() -> None:
    models = ("dense", "dense_recovered", "pruned", "recovered")
    places = np.arange(100)
    found = effects(scores(places < 60, places < 80, places < 30, places < 50, models=models), higher_is_better=True)
    assert found["retained"]["value"] == pytest.approx(50 / 80)
    assert found["recovered"]["value"] == pytest.approx((50 - 30) / (80 - 30))
    assert found["recovered_minus_dense"]["value"] == pytest.approx(-0.1)


def test_above_chance_is_nothing_at_chance_and_one_at_all_right() -> None:
    scored = scores(np.ones(40), np.arange(40) < 10, models=("sure", "guessing"))
    above = above_chance(scored, 0.25)
    assert above.score_M == pytest.approx([1, 0])
    assert above.error_M == pytest.approx(scored.error_M / 0.75)
    assert retained(above, reference="guessing", recovered="sure", floor="chance") == {
        "value": None,
        "interval": None,
        "reason": "reference not above chance",
    }


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
    width = [np.ptp(score_intervals(task)["dense"]) for task in (*tasks, together)]
    assert width[-1] == pytest.approx(np.ptp(interval(together.draws_MB[0], together.units)), rel=0.15)
    assert width[-1] < 0.7 * min(width[:-1])
    assert together.units == 100, "it claims no more documents than its smallest task has"


def test_equal_seeds_give_equal_intervals_whatever_the_number_of_documents_at_a_time(monkeypatch: Any) -> None:
    hit = np.arange(80) % 3 == 0
    one, same = scores(hit, models=("dense",)), scores(hit, models=("dense",))
    assert (one.draws_MB == same.draws_MB).all()
    assert (scores(hit, models=("dense",), seed=1).draws_MB != one.draws_MB).any()
    monkeypatch.setattr("stages.report.statistics.CHUNK", 100)
    assert (scores(hit, models=("dense",)).draws_MB == one.draws_MB).all()


def test_retained_has_no_number_where_the_reference_scores_nothing() -> None:
    scored = scores(np.zeros(20), np.zeros(20), np.ones(20))
    assert retained(scored, reference="dense", recovered="recovered")["value"] is None


def test_no_documents_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="at least one document"):
        paired(["dense"], np.zeros((1, 0)), np.zeros(0), resamples=10, seed=[0])

"""What the comparison claims: only what lies outside its interval, for every seed, on documents enough."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparison.columns import columns
from pipeline.comparison.costs import points
from pipeline.comparison.findings import findings
from pipeline.comparison.lines import lines
from pipeline.comparison.published import published
from pipeline.comparison.run import Run
from pipeline.comparison.scores import ACCURACY, REPEATED, TEXT


def run(number: int, perplexity: float, *, width: float = 0.05, seed: int = 0, **changes: Any) -> Run:
    """Return a run whose perplexity is e^±width known, beside a dense model of 20, with what else is named changed."""
    nats = math.log(perplexity / 20)
    ends = [perplexity * math.exp(-width), perplexity * math.exp(width)]
    documents, accuracy = changes.pop("documents", 48), changes.pop("accuracy", 0.5)
    effect = {"value": accuracy - 0.6, "interval": [accuracy - 0.65, accuracy - 0.55], "clear": True}
    name, size = changes.pop("name", f"rows{number}"), changes.pop("size", 100)
    ratio, seconds = changes.pop("ratio", 0.5), changes.pop("seconds", 0.05)
    latency = {"batch": 1, "decode_ratio": ratio, "decode_ratio_range": [0.9 * ratio, 1.1 * ratio]}
    latency |= {"decode_seconds": seconds, "decode_seconds_range": [seconds, seconds]}
    report = {
        "model": "tiny",
        "prune": "wanda",
        "adapter": "lora",
        "data": name,
        "reference": "dense",
        "params": {"dense": 200, "pruned": size, "recovered": size, "ratio_achieved": 1 - size / 200},
        "protocol": {"name": "likelihood"},
        "tasks": {"piqa": {"label": "PIQA", "dense": {"n": documents}, "recovered": {"n": documents}}},
        "mean": {
            "dense": {"acc": 0.6, "acc_interval": [0.55, 0.65]},
            "recovered": {"acc": accuracy, "acc_interval": [accuracy - 0.05, accuracy + 0.05]},
            "accuracy": {"recovered_minus_dense": effect},
        },
        "texts": {
            "kinds": {"news": {"documents": documents}},
            "mean": {
                "over": ["news"],
                "per": "token",
                "dense": 20.0,
                "recovered": perplexity,
                "intervals": {"recovered": ends},
                "log": {"recovered_minus_dense": {"value": nats, "interval": [nats - width, nats + width]}},
            },
        },
        "cost": {"repeats": 5, "models": {"recovered": {"latency": [latency], "peak_memory_bytes": 4 * size}}},
        "curve": [],
        "training": {},
        "configuration": {"recover": {"adapter": {"name": "lora", "rank": 8}, "seed": seed}},
    }
    return Run(number=number, name=f"run-{number}", key="", directory=Path(), report=report | changes)


def said(*group: Run) -> str:
    return "\n".join(findings(lines([group])))


def test_a_difference_inside_its_interval_is_never_called_one() -> None:
    near, far = said(run(1, 30.0), run(2, 31.0)), said(run(1, 30.0), run(2, 35.0))
    assert "Within noise in held-out perplexity: runs 1, 2." in near
    assert "Best in held-out perplexity" not in near
    assert "Best in held-out perplexity: run 1 (wanda −50\u00a0%, lora r8" in far
    assert "The other is clearly worse." in far


def test_the_interval_of_a_difference_is_the_root_of_both_distances_squares() -> None:
    """0.05 each gives √2 · 0.05 = 0.0707 nats (Zou and Donner 2008): 7 % apart is noise, 7.2 % is not."""
    assert TEXT.apart(run(1, 30.0), run(2, 30.0 * math.exp(0.0706))) == 0
    assert TEXT.apart(run(1, 30.0), run(2, 30.0 * math.exp(0.0708))) == 1
    assert TEXT.apart(run(2, 30.0 * math.exp(0.0708)), run(1, 30.0)) == -1


def test_runs_beside_different_dense_models_are_compared_by_their_own_intervals() -> None:
    one, other = run(1, 30.0, width=0.01), run(2, 31.0, width=0.01)
    assert TEXT.apart(one, other) == 1
    other.report["texts"]["mean"] |= {"dense": 40.0, "intervals": {"recovered": [20.0, 50.0]}}
    assert TEXT.apart(one, other) == 0


def test_more_is_better_where_it_is() -> None:
    assert ACCURACY.apart(run(1, 30.0, accuracy=0.7), run(2, 30.0, accuracy=0.5)) == 1


def test_one_seed_that_is_no_better_takes_the_claim_away() -> None:
    other = run(3, 40.0, name="other")
    alike = [run(1, 30.0, seed=0, name="same"), run(2, 31.0, seed=1, name="same")]
    assert "Best in held-out perplexity: runs 1, 2 (" in said(*alike, other)
    assert "30.0 to 31.0 over 2 seeds" in said(*alike, other)
    unlucky = [alike[0], run(2, 39.0, seed=1, name="same")]
    assert "Within noise in held-out perplexity: runs 1–3." in said(*unlucky, other)


def test_fewer_than_six_documents_tell_nothing_apart() -> None:
    text = said(run(1, 30.0, documents=5), run(2, 90.0, documents=5))
    assert "Too few documents in held-out perplexity: fewer than 6." in text
    assert "Best in" not in text


def test_the_smallest_and_the_smallest_that_is_as_good_are_named() -> None:
    text = said(run(1, 30.0, size=150), run(2, 30.5, size=120), run(3, 60.0, size=80))
    assert "Smallest: run 3" in text
    assert "The smallest not clearly worse than the best in held-out perplexity: run 2, with 120." in text


@pytest.mark.parametrize(("ratio", "claim"), [(0.8, "Run 2 is clearly slower"), (0.55, "Within noise in the time")])
def test_a_time_is_better_where_the_ranges_of_the_repeats_do_not_meet(ratio: float, claim: str) -> None:
    assert claim in said(run(1, 30.0), run(2, 30.0, ratio=ratio))


def test_a_time_that_few_turns_measured_is_not_compared() -> None:
    text = said(run(1, 30.0), run(2, 30.0, ratio=0.8, cost=run(2, 30.0, ratio=0.8).report["cost"] | {"repeats": 1}))
    assert "Fastest" not in text
    assert "the time a token takes" not in text


def test_a_name_has_no_more_settings_than_tell_runs_apart() -> None:
    recovery = {"adapter": {"name": "lora", "rank": 8}}
    configuration = {"recover": recovery, "data": {"name": "a", "parts": 3}, "recover-dense": recovery}
    other = configuration | {"data": {"name": "b", "parts": 5}}
    third = other | {"recover": recovery | {"recover": {"learning_rate": 0.1, "warmup": 2}}}
    found = [
        run(1, 30.0, name="a", configuration=configuration),
        run(2, 30.0, name="b", configuration=other, reference="dense_recovered"),
        run(3, 30.0, name="b", configuration=third, reference="dense_recovered"),
    ]
    names = [line.name.partition("(")[2] for line in lines([found])]
    assert names == [
        "data=a, recover.learning_rate=null)",
        "data=b, recover.learning_rate=null)",
        "data=b, recover.learning_rate=0.1)",
    ]


def test_a_machine_that_was_busier_makes_no_model_slower() -> None:
    assert "Within noise in the time a token takes" in said(run(1, 30.0), run(2, 30.0, seconds=0.2))


def test_times_at_other_batch_sizes_are_not_compared() -> None:
    other = run(2, 30.0, ratio=0.8)
    other.report["cost"]["models"]["recovered"]["latency"][0]["batch"] = 8
    text = said(run(1, 30.0), other)
    assert "Fastest" not in text
    assert "the time a token takes" not in text


def test_repetition_in_continuations_of_another_length_is_not_compared() -> None:
    found = []
    for number, (share, length) in enumerate([(0.3, 64), (0.1, 16), (0.2, 64)], start=1):
        own = {"repeated": share, "repeated_interval": [share - 0.01, share + 0.01]}
        generation = {"prompts": 16, "new_tokens": length, "recovered": own}
        found.append(run(number, 30.0, generation=generation))
    column = next(column for column in columns([found]) if column.score is REPEATED)
    cells = [column.cell(one) for one in found]
    assert ["best" in str(cell) for cell in cells] == [False, False, True]


def test_the_pareto_front_has_the_runs_that_no_other_beats_in_both() -> None:
    group = [run(1, 30.0, size=150), run(2, 40.0, size=100), run(3, 45.0, size=120)]
    drawn = [p for p in points(lines([group]), [group]) if p["cost"].startswith("param") and p["measure"] == TEXT.name]
    assert {point["run"]: point["front"] for point in drawn} == {1: True, 2: True, 3: False}


def test_published_rows_stand_beside_the_same_model_and_protocol_alone() -> None:
    tasks = ("boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
    protocol = {"name": "generation", "beams": 4, "new_tokens": 32, "limit": None}
    same = {"model": "llama-7b", "prune": "none", "protocol": protocol, "tasks": {name: {} for name in tasks}}
    found = published([run(1, 30.0, **same)])
    assert found is not None
    assert ["llama-7b", "dora r32", "78.4\u00a0%", "published: DoRA, arXiv 2402.09353"] in found.rows
    for change in (
        {"model": "llama-7b-pruned"},
        {"prune": "llmpruner"},
        {"protocol": protocol | {"limit": 200}},
        {"protocol": protocol | {"beams": 1}},
        {"tasks": {name: {} for name in tasks[:7]}},
    ):
        assert published([run(1, 30.0, **same | change)]) is None

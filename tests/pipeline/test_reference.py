"""What `reference=dense_recovered` adds to a plan: the dense model after the same recovery, and nothing else."""

from __future__ import annotations

from helpers.configurations import configuration
from pipeline.planning.build import build_graph


def test_the_dense_model_takes_the_same_recovery_and_is_judged_like_the_others() -> None:
    plain, fair = (build_graph(configuration(f"reference={name}")).roles for name in ("dense", "dense_recovered"))
    assert fair.keys() - plain.keys() == {"recover-dense", "evaluate-dense_recovered"}
    assert all(fair[role].key == node.key for role, node in plain.items() if role != "report")
    assert fair["recover-dense"].payload["config"] == fair["recover"].payload["config"]
    assert fair["recover-dense"].inputs == {"model": fair["model"], "data": fair["data"]}
    assert fair["evaluate-dense_recovered"].inputs["model"] is fair["recover-dense"]
    assert fair["evaluate-dense_recovered"].payload["config"] == fair["evaluate-dense"].payload["config"]
    assert fair["report"].inputs["dense_recovered"] is fair["evaluate-dense_recovered"]
    assert set(fair["cost"].inputs) == {"dense", "pruned", "recovered"}


def test_a_model_that_came_pruned_is_compared_with_what_it_was_cut_from() -> None:
    roles = build_graph(configuration("model=sheared-llama-1.3b", "reference=dense_recovered")).roles
    assert roles["recover-dense"].inputs["model"] is roles["dense"]
    assert roles["recover"].inputs["model"] is roles["model"]


def test_every_ratio_shares_the_recovered_dense_model() -> None:
    half, fifth = (build_graph(configuration("reference=dense_recovered", f"ratio={r}")).roles for r in (0.5, 0.2))
    assert half["recover-dense"].key == fifth["recover-dense"].key
    assert half["recover"].key != fifth["recover"].key


def test_nothing_is_trained_that_nobody_judges() -> None:
    assert "recover-dense" not in build_graph(configuration("reference=dense_recovered", "evaluate=none")).roles

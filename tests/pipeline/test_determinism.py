"""`runtime.deterministic`: what a stage runs under. A plan for "cuda" whose toy stages use no GPU stands in for one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.toystages import chain
from pipeline.engine.engine import Engine
from pipeline.engine.store import Store
from pipeline.planning.graph import Graph
from stages.common.determinism import WORKSPACE, ordered_sums
from stages.errors import UserError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv(WORKSPACE, "")  # so that it is as before after the test
    monkeypatch.delenv(WORKSPACE)

    def go(device: str, *, deterministic: bool) -> None:
        graph = Graph(dict(chain(1, 2, function="unordered").roles), device)
        store = Store(tmp_path / f"store-{device}-{deterministic}")
        Engine(graph, store, cache=tmp_path / "cache", force=[], deterministic=deterministic).run()

    return go


def test_an_operation_without_an_order_ends_a_deterministic_run_with_the_remedy(run: Callable[..., None]) -> None:
    with pytest.raises(UserError, match=r"put_ has no kernel .*runtime.deterministic=false"):
        run("cuda", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_runs_elsewhere(run: Callable[..., None]) -> None:
    run("cuda", deterministic=False)
    run("cpu", deterministic=True)
    assert WORKSPACE not in os.environ


def test_torch_is_told_while_the_block_runs(run: Callable[..., None]) -> None:
    with ordered_sums(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ[WORKSPACE] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()

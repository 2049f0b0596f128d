"""What the key of a cost measurement holds of the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.common.machine import card, processor
from stages.evaluate.config import CostConfig
from stages.evaluate.plan import planned_cost

DRIVER = """#!/bin/sh
case "$*" in
  "--id=0 --query-gpu=name --format=csv,noheader") echo "NVIDIA H100 80GB HBM3" ;;
  "--id=GPU-7a --query-gpu=name --format=csv,noheader") echo "NVIDIA L4" ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def card_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], str]]:
    """Return what a cost measurement's key names on a machine with an nvidia-smi, by CUDA_VISIBLE_DEVICES."""
    program = tmp_path / "nvidia-smi"
    program.write_text(DRIVER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def named(visible: str | None) -> str:
        card.cache_clear()
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return planned_cost(CostConfig(), "cuda", None).processor

    yield named
    card.cache_clear()


def test_on_a_gpu_the_key_holds_the_card(card_of: Callable[[str | None], str]) -> None:
    assert card_of(None) == f"{processor()}, NVIDIA H100 80GB HBM3"
    assert card_of("GPU-7a,GPU-3b") == f"{processor()}, NVIDIA L4"
    assert card_of("5") == f"{processor()}, a GPU without a name"


def test_on_a_processor_it_is_what_it_was() -> None:
    assert planned_cost(CostConfig(), "cpu", None).processor == processor()

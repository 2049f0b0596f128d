"""What the check of a GPU runs on a GPU alone, with stand-ins for what torch says of one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from benchmarks.gpu import memory
from benchmarks.gpu.check import Setting
from benchmarks.gpu.device import GIB, kernels, waits
from benchmarks.gpu.machine import machine
from benchmarks.gpu.memory import LEFT, halving, kept
from benchmarks.gpu.training import COUNTED, LARGE, SMALL, WARM, Windows, step_row
from stages.stage import JSON

ON_CUDA = Setting(device="cuda")
CARD = 80 * GIB


class Card:
    """What torch tells of a card, and what it is asked for."""

    def __init__(self) -> None:
        self.fractions: list[float] = []
        self.modes: list[str] = []
        self.events: list[FunctionEvent] = []
        self.watched = False

    @contextmanager
    def profile(self, activities: Any) -> Iterator[SimpleNamespace]:
        self.events, self.watched = [], True
        yield SimpleNamespace(events=lambda: self.events)
        self.watched = False

    def launch(self, name: str, device: DeviceType = DeviceType.CUDA) -> None:
        """Take microseconds for a kernel, which is known where the profiler watches."""
        if self.watched:
            self.events.append(FunctionEvent(1, name, 0, 10, 40, device_type=device))  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Let the processor wait, which torch warns of where it was asked to."""
        if self.modes[-1:] == ["warn"]:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Put a card in the place of what torch says of CUDA."""
    card = Card()
    told = SimpleNamespace(name="Toy 80", total_memory=CARD, major=9, minor=0, multi_processor_count=132)
    functions = {
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 0,
        "get_device_properties": lambda number: told,
        "mem_get_info": lambda: (CARD // 2, CARD),
        "device_count": lambda: 1,
        "set_per_process_memory_fraction": card.fractions.append,
        "set_sync_debug_mode": card.modes.append,
    }
    for name, function in functions.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch.profiler, "profile", card.profile)
    return card


def test_launches_are_kernels_and_neither_copies_nor_work_of_the_processor(card: Card) -> None:
    with kernels() as found:
        for name in ("gemm", "Memcpy HtoD", "gemm", "Memset (Device)", "norm"):
            card.launch(name)
        card.launch("aten::mm", DeviceType.CPU)
    assert found.names == {"gemm": 2, "norm": 1}
    assert found.count == 3
    assert found.busy == pytest.approx(3 * 30e-6)


def test_waits_are_the_places_where_the_processor_waits_for_the_card(card: Card) -> None:
    with waits() as found:
        card.wait()
        card.wait()
        warnings.warn("of something else", stacklevel=1)
    card.wait()
    assert len(found) == 2
    assert all(__file__ in place for place in found)
    assert card.modes == ["warn", "default"]
    with pytest.raises(ValueError), waits():
        raise ValueError
    assert card.modes[-1] == "default"


def test_steps_are_timed_or_counted_and_never_both(card: Card) -> None:
    windows, timed = Windows("cuda", 3), 3
    windows({"step": 0, "tokens": 0})
    slowed = []
    for step in range(1, windows.steps + 1):
        slowed.append(card.watched or card.modes[-1:] == ["warn"])
        for _ in range(5):
            card.launch("gemm")
        card.wait()
        card.wait()
        windows({"step": step, "tokens": 10 * step, "loss": 6 - step / 10})
    # None before and within the timed ones, then those with waits and those with launches, and none in the last.
    assert slowed == [False] * (WARM + timed) + [True] * 2 * COUNTED + [False]
    found = windows.numbers()
    assert (found["launches"], found["waits"]) == (5, 2)
    assert found["kernel_seconds"] == pytest.approx(5 * 30e-6)
    assert [tokens for tokens, _ in windows.marks] == [10 * WARM, 10 * (WARM + timed)]
    sizes = {"layers": 8, "batch_tokens": 10, "micro_batch_tokens": 10, "operations_per_token": 1, "peak_bytes": 0}
    assert "5 launches and 2 waits a step" in step_row("LoRA", found | sizes, {}).value


def test_the_card_is_told_first(card: Card) -> None:
    part = machine(ON_CUDA, {})
    assert part.rows[0].value == "Toy 80, 80 GiB, compute 9.0"
    assert part.numbers["card"]["free_bytes"] == CARD // 2


def test_a_stage_that_keeps_the_memory_of_the_card_is_named() -> None:
    left = {
        "prune": {"held_bytes": 0, "cached_bytes": LEFT + 1},
        "recover": {"held_bytes": LEFT, "cached_bytes": LEFT},
        "evaluate": {"held_bytes": LEFT + 1, "cached_bytes": None},
    }
    assert kept(left) == {"prune": LEFT + 1}


@pytest.mark.parametrize(
    ("obeyed", "apart", "said"), [(True, 0.0, ""), (False, 0.0, "nothing was halved"), (True, 0.5, "apart")]
)
def test_halving_gives_a_step_too_little_memory_and_compares_its_loss(
    obeyed: bool, apart: float, said: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, each = 4 * GIB, GIB // 1024

    def measured(setting: Setting, *, batch_tokens: int, layers: int, timed: int) -> JSON:
        """A recovery whose memory grows with its tokens, on a card that may have a cap."""
        tokens = batch_tokens
        capped = obeyed and bool(card.fractions)
        while capped and weights + tokens * each > card.fractions[-1] * CARD:
            tokens //= 2
        loss = 6.0 + apart * capped
        return {"peak_bytes": weights + tokens * each, "micro_batch_tokens": tokens, "losses": [loss, loss]}

    monkeypatch.setattr(memory, "measured", measured)
    part = halving(ON_CUDA, {})
    assert weights + LARGE // 4 * each < part.numbers["cap_bytes"] < weights + LARGE // 2 * each
    assert SMALL < LARGE // 4
    # The cap ends with the check.
    assert card.fractions == [pytest.approx(part.numbers["cap_bytes"] / CARD), 1.0]
    assert said in "".join(part.wrong)
    assert bool(part.wrong) == bool(said)

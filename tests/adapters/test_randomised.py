"""The randomised decomposition, and where the random numbers of adapters are drawn."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.decoders import decoder
from helpers.toy import adapter_config
from helpers.waits import Waits
from stages.adapters.randomised import leading
from stages.adapters.registry import ADAPTERS
from stages.adapters.shira import chosen

RANDOM = ("rand", "normal_", "uniform_", "bernoulli_", "multinomial")


class Drawn(TorchDispatchMode):
    """Keeps the devices that random numbers were drawn on."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        if any(name in str(func) for name in RANDOM):
            self.devices.add(found.device.type)
        return found


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (30, 30)])
def test_on_a_processor_it_is_torchs_own_to_the_bit(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    expected = torch.svd_lowrank(matrix, 6, niter=3)
    torch.manual_seed(1)
    for one, other in zip(leading(matrix, 6, 3), expected, strict=True):
        assert torch.equal(one, other)


DRAWING = {"rora", "lora", "dora", "dora_rs", "lora_plus", "pissa", "olora", "hira", "prefix", "series", "parallel"}
"""Adapters that draw random numbers when they are attached, as far as the meta device lets them run."""


@pytest.mark.parametrize("name", sorted(set(ADAPTERS) - {"shira"}))
def test_an_adapter_draws_on_the_processor_wherever_its_model_is(name: str) -> None:
    """The meta device stands in for a GPU: numbers that were drawn there would be seen as drawn there."""
    options = {"iterations": 2} if name == "pissa" else {}
    settings = adapter_config(name, **options)
    if name in ("series", "parallel"):
        settings.targets = ["up_proj"]
    model = decoder().to("meta")
    with Drawn() as drawn:
        ADAPTERS[name].attach(model, settings, ())
    assert drawn.devices == ({"cpu"} if name in DRAWING else set())


def test_shira_draws_its_places_on_the_processor_wherever_its_model_is() -> None:
    """By its choice of places alone: PEFT then looks at where the places are, which the meta device can't tell."""
    layer = torch.nn.Linear(8, 6).to("meta")
    with Drawn() as drawn, Waits(number=1000):
        mask_OI = chosen("random")(layer, 2)
    assert drawn.devices == {"cpu"}
    assert (mask_OI.device.type, mask_OI.shape) == ("meta", (6, 8))

"""Linear layers whose weights are held in few bits: what they compute, what they keep, and how exact they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.decoders import decoder
from helpers.packings import PACKINGS, needs_library, packed_by
from stages.decoders.checkpoint import count_parameters
from stages.decoders.quantised import QuantisedLinear, hold, packing, quantise


def layers(packing: str, *, bias: bool = True) -> tuple[QuantisedLinear, nn.Linear]:
    """Return a packed layer, and a plain one with the weight that it holds."""
    torch.manual_seed(0)
    plain = nn.Linear(48, 40, bias=bias).requires_grad_(False)
    packed = QuantisedLinear(plain, packed_by(packing), "cpu")
    plain.weight.data = packed.weight.clone()
    return packed, plain


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("packing", PACKINGS)
def test_outputs_and_gradients_are_those_of_the_weight_that_is_held(packing: str, autocast: bool) -> None:
    found: list[tuple[Tensor, ...]] = []
    for layer in layers(packing):
        x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = layer(x)
        output.float().pow(2).sum().backward()
        assert x.grad is not None
        found.append((output.detach(), x.grad))
    torch.testing.assert_close(*found, rtol=1e-2 if autocast else 1e-5, atol=1e-2 if autocast else 1e-5)


def test_no_whole_weight_waits_for_the_backward_pass() -> None:
    packed, _ = layers("plain")
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        packed(torch.randn(3, 48, requires_grad=True)).sum()
    assert all(tensor.shape != packed.weight.shape for tensor in kept)
    assert not packed.state_dict().keys() - {"bias"}


def test_a_bias_is_trained_where_it_is_asked_for() -> None:
    packed, _ = layers("plain")
    packed.bias.requires_grad_()
    packed(torch.randn(3, 48)).sum().backward()
    torch.testing.assert_close(packed.bias.grad, torch.full((40,), 3.0))


def test_the_linear_layers_of_the_decoder_are_packed_and_nothing_else_and_the_parameters_count_as_before() -> None:
    model = decoder()
    before, head = count_parameters(model), model.get_output_embeddings()
    quantise(model, packed_by("plain"), "cpu")
    packed = [name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, QuantisedLinear)]
    assert set(packed) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(packed) == 7 * model.config.num_hidden_layers
    assert type(model.get_output_embeddings()) is type(head) is nn.Linear
    assert count_parameters(model) == before


@needs_library
@pytest.mark.parametrize(("way", "bits", "error"), [("nf4", 4.5, 0.12), ("8bit", 8.2, 0.015)])
def test_bits_and_rounding_are_those_of_the_way(way: str, bits: float, error: float) -> None:
    weight = torch.randn(511, 257, generator=torch.Generator().manual_seed(0)).bfloat16()  # odd, as pruned ones are
    pack, whole = packing(way)
    codes, state = pack(weight)
    assert 8 * (codes.nbytes + state.absmax.nbytes) / weight.numel() < bits + 0.05
    again = whole(codes, state)
    assert again.shape == weight.shape
    assert again.dtype == weight.dtype
    assert float((again.float() - weight.float()).norm() / weight.float().norm()) < error


@needs_library
def test_nf4_is_the_number_of_the_paper_nearest_to_each_weight() -> None:
    # Appendix E of QLoRA (arXiv 2305.14314).
    paper = "-1.0 -0.6961928 -0.52507305 -0.39491749 -0.28444138 -0.18477343 -0.09105004 0.0 0.0795803 0.1609302 "
    paper += "0.2461123 0.33791524 0.44070983 0.562617 0.72295684 1.0"
    numbers = torch.tensor([float(number) for number in paper.split()])
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    largest = weight.abs().amax(1, keepdim=True)
    nearest = numbers[((weight / largest)[..., None] - numbers).abs().argmin(-1)] * largest
    pack, whole = packing("nf4")
    torch.testing.assert_close(whole(*pack(weight)), nearest, rtol=1e-5, atol=1e-6)


@needs_library
def test_a_model_in_four_bits_says_what_its_rounded_weights_say() -> None:
    ids = torch.arange(3, 40)[None]
    plain, held = decoder(), hold(decoder(), "nf4", "cpu")
    with torch.no_grad():
        before = plain(ids).logits
        for name, layer in held.named_modules():
            if isinstance(layer, QuantisedLinear):
                plain.get_submodule(name).weight.copy_(layer.weight)
        torch.testing.assert_close(held(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(plain(ids).logits, before, rtol=0.1)

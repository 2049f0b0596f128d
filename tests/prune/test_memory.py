"""The estimate of what pruning needs: refused in time, near what is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.decoders import decoder
from helpers.peak import has_mark, peak_bytes
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.config import PruneConfig
from stages.prune.groups import Kept, Selection
from stages.prune.memory.estimate import GRAPH, STREAMS, Work, check_memory, estimate
from stages.prune.sequential import fit_in_sequence

LLAMA_7B = DecoderShape(
    family="llama", hidden=4096, head_dim=128, vocabulary=32000, tied=False, layers=(LayerShape(32, 32, 11008),) * 32
)
ENORMOUS = replace(LLAMA_7B, layers=(LayerShape(32, 32, 10**10),) * 32)
WORK = Work(
    shape=LLAMA_7B,
    dtype="bfloat16",
    stored="bfloat16",
    sequences=10,
    length=64,
    gradients=True,
)


def test_taylor_scores_of_a_7b_in_bfloat16_fit_into_24_gb() -> None:
    assert 2 * LLAMA_7B.parameters() < estimate(WORK).total < 24e9
    assert estimate(replace(WORK, sequences=64, length=128)).total < 24e9


def test_layers_on_disk_need_the_memory_of_few() -> None:
    assert estimate(replace(WORK, gradients=False, offload=True)).total < 0.2 * 2 * LLAMA_7B.parameters()


def test_text_beyond_the_bound_adds_only_what_lies_between_layers() -> None:
    one, twice = (estimate(replace(WORK, sequences=count, length=64)) for count in (20, 40))
    assert GRAPH < one.activations < twice.activations < 1.1 * GRAPH


def check(shape: DecoderShape, *, gradients: bool, **options: object) -> None:
    config = PruneConfig(method="llmpruner", **options)  # type: ignore[arg-type]
    check_memory(shape, config, gradients=gradients, stored="bfloat16", calibration=(10, 64), device="cpu")


def test_what_does_not_fit_is_refused_with_the_estimate_and_what_needs_less() -> None:
    with pytest.raises(
        UserError, match=r"needs about [\d.]+ GiB on cpu .* GiB are free.*prune\.dtype=bfloat16 \([\d.]+"
    ):
        check(ENORMOUS, gradients=True)
    with pytest.raises(UserError, match=r"What needs less: prune\.offload=layer \(\d"):
        check(ENORMOUS, gradients=False, dtype="bfloat16")


def test_what_fits_is_let_through() -> None:
    check(replace(LLAMA_7B, layers=LLAMA_7B.layers[:1]), gradients=True, dtype="bfloat16", offload="none")


def test_sequential_compensation_needs_more_text_in_memory_and_a_copy_of_a_layer() -> None:
    without = replace(WORK, gradients=False, least_squares=True)
    plain, sequential = estimate(without), estimate(replace(without, sequential=True))
    assert sequential.weights - plain.weights == 2 * LLAMA_7B.layer_parameters(LLAMA_7B.layers[0])
    assert sequential.activations > plain.activations
    assert sequential.matrices == plain.matrices
    more = estimate(replace(without, sequential=True, sequences=100))
    assert more.activations - sequential.activations > 2 * STREAMS * 4096 * (100 - WORK.sequences) * WORK.length


def test_a_family_that_norms_its_outputs_needs_what_least_squares_needs() -> None:
    def need(family: str, how: str) -> int:
        shape = replace(LLAMA_7B, family=family, layers=LLAMA_7B.layers[:1])
        config = PruneConfig(method="magnitude", compensate=how, dtype="bfloat16")
        given = {"stored": "bfloat16", "calibration": (64, 256), "device": "cpu"}
        return check_memory(shape, config, gradients=False, **given).total  # type: ignore[arg-type]

    assert need("gemma2", "sequential") == need("gemma2", "least_squares")
    assert need("llama", "sequential") > need("llama", "least_squares")


@has_mark
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_sequential_compensation_holds_is_about_what_is_foreseen(dtype: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = decoder(num_hidden_layers=2, max_position_embeddings=512, **sizes)
    shape = DecoderShape.from_config(model.config.to_dict())
    ids = torch.randint(1, 96, (32, 512), generator=torch.Generator().manual_seed(0))
    selection = Selection([Kept([0, 1, 2], [0, 1, 2], list(range(400)))] * 2)
    taken = peak_bytes(lambda: fit_in_sequence(model, selection, ids, dtype=dtype))
    work = replace(WORK, shape=shape, dtype=dtype, stored="float32", sequences=32, length=512, gradients=False)
    need = estimate(replace(work, least_squares=True, sequential=True))
    # The model was in memory before, and no logits are computed.
    assert need.activations == pytest.approx(taken, rel=0.4)


@has_mark
def test_activations_are_about_those_of_a_forward_pass() -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 8}
    model = decoder(num_hidden_layers=12, max_position_embeddings=1024, **sizes)
    shape = DecoderShape.from_config(model.config.to_dict())
    ids = torch.randint(1, 96, (2, 1024), generator=torch.Generator().manual_seed(0))
    taken = peak_bytes(lambda: model(ids, labels=ids, use_cache=False).loss)
    work = replace(WORK, shape=shape, dtype="float32", stored="float32", sequences=2, length=1024)
    assert estimate(work).activations == pytest.approx(taken, rel=0.35)

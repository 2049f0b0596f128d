"""The estimate of what pruning needs: refused in time, and within a tenth of what is taken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from helpers.decoders import decoder
from helpers.peak import has_mark, held_bytes
from helpers.processes import same_imports
from stages.common.machine import free_memory_bytes
from stages.decoders.anatomy import decoder_layers
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.allocation import search
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.compensation import compensate
from stages.prune.config import Calibration, PruneConfig, Search
from stages.prune.criteria.registry import CRITERIA
from stages.prune.groups import Kept, Selection
from stages.prune.memory import phases as counted
from stages.prune.memory import quantities
from stages.prune.memory.estimate import check_memory, estimate, work_of
from stages.prune.memory.phases import STREAMS, phases
from stages.prune.memory.quantities import Estimate, Work
from stages.prune.memory.sizes import GRAPH
from stages.prune.statistics import gradients, products, second_moments
from stages.prune.statistics.activations import outputs
from stages.prune.statistics.gradients import calibration_loss
from stages.prune.statistics.taylor import slice_scores

LLAMA_7B = DecoderShape(
    family="llama", hidden=4096, head_dim=128, vocabulary=32000, tied=False, layers=(LayerShape(32, 32, 11008),) * 32
)
LLAMA_13B = DecoderShape(
    family="llama", hidden=5120, head_dim=128, vocabulary=32000, tied=False, layers=(LayerShape(40, 40, 13824),) * 40
)
ENORMOUS = replace(LLAMA_7B, layers=(LayerShape(32, 32, 10**9),) * 32)
WORK = Work(
    shape=LLAMA_7B,
    dtype="bfloat16",
    stored="bfloat16",
    sequences=10,
    length=64,
    scores="taylor",
    device="cuda",
)
BEST: dict[str, Any] = {
    "granularity": ["heads", "queries", "channels", "attention", "mlp"],
    "allocation": "searched",
    "compensate": "sequential",
    "calibration": Calibration(sequences=192, length=256),
    "dtype": "bfloat16",
}


def test_taylor_scores_of_a_7b_in_bfloat16_fit_into_24_gb() -> None:
    assert 2 * LLAMA_7B.parameters() < estimate(WORK).total < 24e9
    assert estimate(replace(WORK, sequences=64, length=128)).total < 24e9


def best(shape: DecoderShape) -> Work:
    config = CRITERIA["surgeon"].config(**BEST)
    given = {"stored": "float16", "calibration": (192, 256), "device": "cuda"}
    return work_of(shape, config, scores=True, cuts=True, **given)  # type: ignore[arg-type]


def test_the_recommended_pruning_of_a_7b_fits_into_24_gb_and_that_of_a_13b_into_40() -> None:
    need = {need.phase: need.total for need in phases(best(LLAMA_7B))}
    assert {"second moments", "elimination", "trials of allocations", "sequential compensation"} < set(need)
    assert max(need.values()) < 24e9
    assert estimate(best(LLAMA_13B)).total < 40e9


def test_layers_on_disk_need_the_memory_of_few() -> None:
    assert estimate(replace(WORK, scores="activations", offload=True)).total < 0.2 * 2 * LLAMA_7B.parameters()


def test_text_beyond_the_bound_adds_only_what_lies_between_layers() -> None:
    for count in (20, 40, 80):
        assert GRAPH < estimate(replace(WORK, sequences=count)).activations < 1.5 * GRAPH


def test_second_moments_need_no_more_graph_however_much_text_there_is() -> None:
    one, twice = (replace(best(LLAMA_7B), sequences=count, curvature=64) for count in (96, 192))
    assert of(one, "second moments") == of(twice, "second moments")


def of(work: Work, phase: str) -> Estimate:
    return next(need for need in phases(work) if need.phase == phase)


def check(shape: DecoderShape, method: str, **options: object) -> None:
    config = CRITERIA[method].config(**options)
    given = {"stored": "bfloat16", "calibration": (10, 64), "device": "cpu"}
    check_memory(work_of(shape, config, scores=True, cuts=True, **given), config.method)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_with_the_estimate_and_what_needs_less() -> None:
    with pytest.raises(
        UserError,
        match=r"needs about [\d.]+ GiB on cpu for the gradients .* GiB are free.*prune\.dtype=bfloat16 \([\d.]+",
    ):
        check(ENORMOUS, "llmpruner")
    with pytest.raises(UserError, match=r"What needs less: prune\.offload=layer \(\d"):
        check(ENORMOUS, "wanda", dtype="bfloat16")
    config = CRITERIA["wanda"].config(dtype="bfloat16", compensate="sequential")
    given = {"stored": "bfloat16", "calibration": (10**6, 256), "device": "cpu"}
    with pytest.raises(UserError, match=r"What needs less: .*prune\.compensate=least_squares \(\d"):
        check_memory(work_of(LLAMA_7B, config, scores=False, cuts=True, **given), config.method)  # type: ignore[arg-type]


def test_what_fits_is_let_through() -> None:
    check(replace(LLAMA_7B, layers=LLAMA_7B.layers[:1]), "llmpruner", dtype="bfloat16")


def test_sequential_compensation_needs_more_text_in_memory_and_a_copy_of_a_layer() -> None:
    without = replace(WORK, scores="", compensate="least_squares", sequences=64, length=256)
    plain, sequential = estimate(without), estimate(replace(without, compensate="sequential"))
    assert sequential.weights - plain.weights == 2 * LLAMA_7B.layer_parameters(LLAMA_7B.layers[0])
    more = estimate(replace(without, compensate="sequential", sequences=100))
    assert more.activations - sequential.activations >= 2 * STREAMS * 4096 * (100 - 64) * 256


def test_a_family_that_norms_its_outputs_needs_what_least_squares_needs() -> None:
    def need(family: str, how: str) -> int:
        shape = replace(LLAMA_7B, family=family, layers=LLAMA_7B.layers[:1])
        config = PruneConfig(method="magnitude", compensate=how, dtype="bfloat16")
        given = {"stored": "bfloat16", "calibration": (64, 256), "device": "cpu"}
        return check_memory(work_of(shape, config, scores=False, cuts=True, **given), config.method).total  # type: ignore[arg-type]

    assert need("gemma2", "sequential") == need("gemma2", "least_squares")
    assert need("llama", "sequential") > need("llama", "least_squares")


def test_what_torch_has_reserved_of_a_gpu_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * 2**30)
    assert free_memory_bytes("cuda:0") == 18 * 2**30


SIZES = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
KEPT = Kept([0, 1, 2], [0, 1, 2], list(range(480)))


def small(dtype: torch.dtype, layers: int = 3) -> PreTrainedModel:
    return decoder(num_hidden_layers=layers, max_position_embeddings=512, **SIZES).to(dtype)


def tokens(sequences: int, length: int) -> torch.Tensor:
    return torch.randint(1, 96, (sequences, length), generator=torch.Generator().manual_seed(0))


def scored(model: PreTrainedModel, ids: torch.Tensor, method: str) -> None:
    criterion = CRITERIA[method]
    criterion.score(model, decoder_layers(model), ids, criterion.config())


def swept(model: PreTrainedModel, ids: torch.Tensor, curvature: int) -> None:
    maps = [output.linear for layer in decoder_layers(model) for output in outputs(layer)]
    for _, own in second_moments.moments(model, maps, ids, seed=0, curvature=curvature):
        del own


def tried(model: PreTrainedModel, ids: torch.Tensor) -> None:
    plan = PrunePlan(dense=LLAMA_7B, layers=(), hidden=128, requested=None)
    drafts = [search.Trial(plan, "", Selection([KEPT] * 3), 0.0)] * 3
    config: Any = SimpleNamespace(search=Search(sequences=8), compensate="least_squares")
    search._tried(model, drafts, ids, config)


TAKEN: dict[str, tuple[Callable[[PreTrainedModel, torch.Tensor], object], dict[str, Any]]] = {
    "the loss": (lambda model, ids: calibration_loss(model, ids[: counted.LOSS]), {}),
    "the gradients": (
        lambda model, ids: slice_scores(
            model, [p for layer in decoder_layers(model) for p in layer.projections], ids, ["param_first"]
        ),
        {"scores": "taylor"},
    ),
    "the activations": (lambda model, ids: scored(model, ids, "wanda"), {"scores": "activations"}),
    "second moments": (lambda model, ids: swept(model, ids, 8), {"scores": "surgeon", "curvature": 8}),
    "trials of allocations": (tried, {"trials": 3, "judges": 8, "fits": True}),
    "compensation": (
        lambda model, ids: compensate(model, Selection([KEPT] * 3), ids, "least_squares"),
        {"compensate": "least_squares"},
    ),
    "sequential compensation": (
        lambda model, ids: compensate(model, Selection([KEPT] * 3), ids, "sequential"),
        {"compensate": "sequential"},
    ),
}


@pytest.mark.parametrize(("dtype", "native"), [("float32", True), ("bfloat16", True), ("bfloat16", False)])
@pytest.mark.parametrize("phase", TAKEN)
def test_the_estimate_is_within_a_tenth_of_what_a_phase_holds(
    phase: str, dtype: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (products, quantities):
        monkeypatch.setattr(module, "multiplies_bfloat16", lambda: native)
    run, options = TAKEN[phase]
    model, ids = small(getattr(torch, dtype)), tokens(32, 128)
    shape = DecoderShape.from_config(model.config.to_dict())
    work = Work(shape=shape, dtype=dtype, stored=dtype, sequences=32, length=128, **options)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert of(work, phase).total == pytest.approx(weights + held_bytes(lambda: run(model, ids), model), rel=0.1)


@pytest.mark.parametrize("method", ["flap", "block_influence", "ziplm"])
def test_other_criteria_of_activations_hold_what_is_estimated(method: str) -> None:
    model, ids = small(torch.float32), tokens(32, 128)
    shape = DecoderShape.from_config(model.config.to_dict())
    config = CRITERIA[method].config(dtype="float32")
    given = {"stored": "float32", "calibration": (32, 128), "device": "cpu"}
    work = work_of(shape, config, scores=True, cuts=False, **given)  # type: ignore[arg-type]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    held = held_bytes(lambda: scored(model, ids, method), model)
    assert of(work, "the activations").total == pytest.approx(weights + held, rel=0.1)


@pytest.mark.parametrize("phase", ["the gradients", "second moments"])
def test_the_estimate_knows_of_layers_that_are_passed_in_parts(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gradients, second_moments, counted):
        monkeypatch.setattr(module, "GRAPH", 14 * 2**20)
    monkeypatch.setattr(second_moments, "MEMORY", 2**20)
    monkeypatch.setattr(counted, "MOMENTS", 2**20)
    run, options = TAKEN[phase]
    model, ids = small(torch.float32, layers=6), tokens(10, 128)
    shape = DecoderShape.from_config(model.config.to_dict())
    work = Work(shape=shape, dtype="float32", stored="float32", sequences=10, length=128, **options)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert of(work, phase).total == pytest.approx(weights + held_bytes(lambda: run(model, ids), model), rel=0.1)


ELIMINATION = """
import sys
import torch
from helpers.peak import peak_bytes
from stages.prune.statistics.curvature import Elimination
from stages.prune.statistics.second_moments import SecondMoments

rows, columns = map(int, sys.argv[1:])
weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
own = SecondMoments(torch.eye(columns) + 0.1, torch.eye(rows))
print(peak_bytes(lambda: Elimination(weight, own)))
"""


@has_mark
def test_the_estimate_is_within_a_third_of_what_elimination_takes() -> None:
    """LAPACK's own copies are no tensors, so the memory of a fresh process is measured."""
    rows, columns = 512, 2048
    shape = replace(LLAMA_7B, hidden=rows, head_dim=columns, layers=(LayerShape(1, 1, columns),))
    command = [sys.executable, "-c", ELIMINATION, str(rows), str(columns)]
    taken = int(subprocess.run(command, env=same_imports(), capture_output=True, text=True, check=True).stdout)
    assert counted._eliminated(replace(WORK, shape=shape)) == pytest.approx(taken, rel=0.33)

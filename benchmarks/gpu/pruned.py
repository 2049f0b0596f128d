"""Pruning on the device beside that on a processor, and its time and memory on slices of a 7B."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import yaml

from benchmarks.gpu.agreement import agreed, difference, said
from benchmarks.gpu.check import Found, Part, Row, Setting
from benchmarks.gpu.device import GIB, emptied, once, peak
from benchmarks.gpu.slices import CONF, TOY_LAYERS, WHOLE, calibration, llama, shape_of, toy, whole
from stages.decoders.shapes import DecoderShape
from stages.prune.config import PruneConfig
from stages.prune.criteria.registry import CRITERIA
from stages.prune.criteria.surgeon import SurgeonConfig
from stages.prune.memory.weights import Weights
from stages.prune.plan import planned
from stages.prune.scores import score_groups
from stages.prune.sparse.registry import MASKS
from stages.prune.sparse.stage import masked_model
from stages.prune.stage import Cut, cut_model
from stages.stage import JSON

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SCORES = 1e-3
"""The largest difference of a score, as a share of the layer's largest."""
ROUNDING = 1e-5
"""The share of a weight by which it is changed to see what rounding may decide."""
ROUNDED = 8
"""How many times weights are so changed."""


def criteria(setting: Setting, found: Found) -> Part:
    """Compare the scores of every criterion, with its own options and a short text."""
    differences, wrong = dict[str, float](), list[str]()
    for name, criterion in CRITERIA.items():
        try:
            differences[name] = _scores_apart(setting, criterion.config(method=name))
        except Exception as error:  # of any kind, since the other criteria are still to be compared
            wrong.append(said(name, error))
    return agreed("scores of criteria", differences, allowed=SCORES, wrong=wrong)


def _scores_apart(setting: Setting, config: PruneConfig) -> float:
    kinds = [kind for kind in config.granularity if kind in CRITERIA[config.method].granularities]
    asked = replace(config, granularity=kinds or list(CRITERIA[config.method].granularities[:1]), layers="all")
    one, other = (_scores(device, asked) for device in ("cpu", setting.device))
    return max(
        float((other[name] - score).abs().max() / score.abs().max().clamp_min(1e-30)) for name, score in one.items()
    )


def _scores(device: str, config: PruneConfig) -> dict[str, Tensor]:
    model = toy(device)
    ids_BT = calibration(4, 32, vocabulary=model.config.vocab_size, device=device)
    scores = score_groups(Weights(model), ids_BT, config)
    return {f"{layer} {kind}": values for layer, kinds in scores.layers.items() for kind, values in kinds.items()}


def search(setting: Setting, found: Found) -> Part:
    """Compare what `prune=best` keeps of a toy, and the losses that it finds: dense, cut, and of its trials."""
    return compared(*(best_cut(device) for device in ("cpu", setting.device)))


def compared(one: JSON, other: JSON) -> Part:
    """Return how another device's `best_cut` compares with a processor's.

    Groups may tie, and then rounding decides. So what the device keeps is right as well if a processor keeps it of
    weights that differ by rounding.
    """
    same = one["layers"] == other["layers"]
    alike = one if same else tied(other["layers"])
    wrong = [] if alike else ["the search keeps other groups than on a processor, and not for a tie"]
    part = agreed("losses of prune=best", losses_apart(alike or one, other), allowed=SCORES, wrong=wrong)
    words = "a processor's" if same else "a processor's after a tie" if alike else "others than a processor's"
    row = Row("groups that prune=best keeps", words, "a processor's")
    return Part(part.numbers | {"same": same, "tie": not same and bool(alike)}, [*part.rows, row], part.wrong)


def tied(layers: JSON) -> JSON | None:
    """Return a processor's cut, of weights that differ by rounding, that keeps `layers`; None where there is none."""
    return next((cut for seed in range(ROUNDED) if (cut := best_cut("cpu", seed))["layers"] == layers), None)


def losses_apart(one: JSON, other: JSON) -> dict[str, float]:
    """Return by name how far the losses of two cuts are apart. A tie may have led to other trials."""
    names = [name for name in one["losses"] if name in other["losses"]]
    return {name: difference([one["losses"][name]], [other["losses"][name]]) for name in names}


def best_cut(device: str, seed: int | None = None) -> JSON:
    """Return what `prune=best` keeps of a toy, and its losses by name; with a `seed` every weight is a bit off."""
    config = best(device, sequences=8, length=32, dtype="float32")
    with _cut(config, lambda dtype: _off(toy(device), seed), _toy_shape(), device) as made:
        record = made.record
        tried = {trial["allocation"]: trial["loss"] for trial in record["search"]}
        return {"losses": record["calibration"]["loss"] | tried, "layers": record["layers"]}


def _off(model: PreTrainedModel, seed: int | None) -> PreTrainedModel:
    """Return `model` with every weight changed at random by a share of about `ROUNDING`; None: by nothing."""
    if seed is None:
        return model
    drawn = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=drawn).to(parameter.device)
        parameter.data *= 1 + ROUNDING * noise
    return model


def best(device: str, *, sequences: int | None = None, length: int | None = None, **options: Any) -> PruneConfig:
    """Return `prune=best` as the command line has it, on another number of sequences where one is given."""
    fields = yaml.safe_load((CONF / "prune" / "best.yaml").read_text(encoding="utf-8"))
    text = SurgeonConfig().calibration
    text = replace(text, sequences=sequences or fields["calibration"]["sequences"], length=length or text.length)
    given = {name: value for name, value in fields.items() if name not in ("defaults", "seed", "calibration")}
    found = planned(SurgeonConfig(**given | {"calibration": text} | options), ratio=0.2, device=device, seed=0)
    assert found is not None
    return found.config


def _toy_shape() -> DecoderShape:
    return DecoderShape.from_config(shape_of(Setting(device="cpu"), TOY_LAYERS))


@contextmanager
def _cut(
    config: PruneConfig, load: Callable[[str], PreTrainedModel], shape: DecoderShape, device: str
) -> Iterator[Cut]:
    """Yield what `prune` makes of the model that `load` gives in a precision."""
    text = config.calibration

    @contextmanager
    def weights(dtype: str) -> Iterator[Weights]:
        yield Weights(load(dtype))

    def read() -> Tensor:
        return calibration(text.sequences, text.length, vocabulary=shape.vocabulary)

    with cut_model(weights, read, config, shape, stored=config.dtype, device=device) as made:
        yield made


def masks(setting: Setting, found: Found) -> Part:
    """Compare the zeros and the losses of every way to mask."""
    differences, wrong = dict[str, float](), list[str]()
    for name, kind in MASKS.items():
        config: Any = kind.settled(kind.config(method=name, ratio=0.5, layers="all"))
        one, other = (_masked(device, config) for device in ("cpu", setting.device))
        differences[name] = difference(one.pop("losses"), other.pop("losses"))
        wrong += [] if one == other else [f"{name}: other numbers of zeros than on a processor"]
    return agreed("masks", differences, allowed=SCORES, wrong=wrong)


def _masked(device: str, config: Any) -> JSON:
    shape = _toy_shape()

    def read() -> Tensor:
        return calibration(8, 32, vocabulary=shape.vocabulary)

    _, record = masked_model(lambda dtype: toy(device), read, config, shape, stored="float32")
    return {"losses": list(record["calibration"]["loss"].values()), "nonzeros": record["nonzeros"]}


def taylor(setting: Setting, found: Found) -> Part:
    """Measure LLM-Pruner's scores at two depths, from which a 7B's follow, or on a whole 7B."""

    def work(layers: int) -> None:
        model = llama(setting, layers=layers)
        config = CRITERIA["llmpruner"].config(method="llmpruner", dtype=setting.dtype, layers="all")
        sequences, length = config.calibration.sequences, config.calibration.length
        ids_BT = calibration(sequences, length, vocabulary=model.config.vocab_size, device=setting.device)
        score_groups(Weights(model), ids_BT, config)

    work(1)  # the libraries set themselves up before anything is measured
    depths = (1, 2) if setting.toy else (WHOLE,) if setting.full else (4, 8)
    costs = [_cost(setting, depth, work) for depth in depths]
    return _costs("Taylor scores", costs, "24 GiB and 60 s")


def whole_prune(setting: Setting, found: Found) -> Part:
    """Measure `prune=best` at two depths, from which a 7B's cost follows, or on a whole 7B."""
    text = {"sequences": 4, "length": 32} if setting.toy else {}

    def work(layers: int) -> None:
        config = best(setting.device, **text, dtype=setting.dtype)
        shape = DecoderShape.from_config(shape_of(setting, layers))
        with _cut(config, lambda dtype: llama(setting, layers=layers, dtype=dtype), shape, setting.device):
            pass

    if not setting.toy:
        best_cut(setting.device)  # of a toy: the libraries set themselves up before anything is measured
    depths = (2, 3) if setting.toy else (WHOLE,) if setting.full else (2, 4)
    costs = [_cost(setting, depth, work) for depth in depths]
    return _costs("prune=best", costs, "80 GiB and 600 s")


def _cost(setting: Setting, layers: int, work: Callable[[int], None]) -> JSON:
    """Return time and memory of `work` on so many layers, whose weights it makes first."""
    emptied(setting.device)
    seconds = once(partial(work, layers), setting.device)
    return {"layers": layers, "seconds": seconds, "peak_bytes": peak(setting.device)}


def _costs(what: str, costs: list[JSON], wanted: str) -> Part:
    """Return the measured costs, and with two of them that of 32 layers, as if each further layer cost the same."""
    lines = [Row(f"{what} ({cost['layers']} layers)", _cost_words(cost)) for cost in costs]
    numbers: JSON = {"costs": costs}
    if len(costs) == 2:
        numbers["whole"] = whole(*costs, names=("seconds", "peak_bytes"))
        lines.append(Row(f"{what} ({WHOLE} layers)", f"{_cost_words(numbers['whole'])} (extrapolated)", wanted))
    else:
        lines[-1] = Row(lines[-1].what, lines[-1].value, wanted)
    return Part(numbers, lines)


def _cost_words(cost: JSON) -> str:
    return f"{cost['seconds']:.1f} s, {cost['peak_bytes'] / GIB:.1f} GiB"

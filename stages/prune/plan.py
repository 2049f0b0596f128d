"""The plan of the prune group before anything runs: checked options, ratio, label, inputs and preview. No torch."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.common.checks import require
from stages.common.choices import lookup
from stages.common.files import read_json
from stages.common.machine import precision
from stages.decoders.decilm import width_multiple
from stages.decoders.registry import FAMILIES
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.prune.allocation.allocate import (
    allocation,
    check_options,
    decided_by_shapes,
    for_scores,
    foreseen,
    notes,
    reads_text,
    ruled,
)
from stages.prune.allocation.budget import budget_of
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.allocation.rounding import price, rounded
from stages.prune.config import COMPENSATIONS, OFFLOADS, PruneConfig
from stages.prune.criteria.registry import CRITERIA
from stages.prune.like import Earlier, earlier, liked
from stages.prune.registry import METHODS
from stages.prune.sparse.config import SparseMLConfig
from stages.prune.sparse.recipe import table as masks_table
from stages.prune.sparse.registry import MASKS

UNCUT = ("none", "sheared")
"""Values of `prune` that cut nothing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """The checked options of a pruning, worked out once for every question of a plan.

    Attributes:
        config: the options as they enter the prune stage's key.
        scored: the options as they enter the scores stage's key; None for masks, which score no groups.
        reads_text: whether the prune stage reads calibration text from the data stage.
        scores_read_text: whether the scores stage reads calibration text from the data stage.
        ratio: the share asked for; None where another option decides how much is removed.
        like: the earlier cut that is made again; None where groups are chosen anew.
    """

    config: PruneConfig
    scored: PruneConfig | None
    reads_text: bool
    scores_read_text: bool
    ratio: float | None
    like: Earlier | None = None

    @property
    def masks(self) -> bool:
        """Whether weights are masked, and nothing is cut."""
        return self.config.method in MASKS

    def of(self, fields: Mapping[str, Any] | None) -> Pruning:
        """Return this pruning with `round_to` settled for the model whose config.json has `fields`; None: not known.

        `fields` have to be the same before and after the model has come, because the number enters a key.

        Raises:
            UserError: the architecture is unknown.
        """
        groups = self.config.method in CRITERIA and self.config.round_to is None
        shape = DecoderShape.from_config(fields) if groups and fields is not None else None
        return dataclasses.replace(self, config=rounded(self.config, shape))

    @property
    def label(self) -> str:
        """The amount that is pruned, for the name of a directory."""
        config = self.config
        if self.like is not None:
            fitted = "" if config.compensate == "none" else f"-{config.compensate}"
            return f"{self.like.digest[:8]}{fitted}"
        share = f"{'m' if config.budget == 'macs' else 'r'}{config.ratio or 0:.2f}"
        if config.channel_ratio is not None:
            share = f"c{config.channel_ratio:.2f}"
        if config.layer_ratios is not None:
            share = "by-layer"
        if config.megabytes is not None:
            share = f"{config.megabytes:g}MB"
        return share if config.layers in (None, "all") else f"{share}-l{re.sub('[^0-9-]', '_', config.layers)}"


TWO_STEPS = 0.4
"""The ratio from which `prune.steps=0` scores the groups anew halfway. That pays at 0.5, and not at 0.3
(docs/pruning.md)."""


def planned(options: PruneConfig, *, ratio: float, device: str, seed: int, like: Path | None = None) -> Pruning | None:
    """Return the checked options of a pruning; None where nothing is cut.

    Args:
        options: the prune group.
        ratio: the run's ratio, which holds unless the group has a ratio of its own.
        device: where the stage runs.
        seed: the seed of the stage.
        like: the record of the earlier cut that is made again, where `options.like` names one.

    Raises:
        UserError: an option is unknown, outside its range, or excludes another.
    """
    asked = ratio if options.ratio is None else options.ratio
    for where, value in (("ratio", ratio), ("prune.ratio", asked)):
        require(math.isfinite(value), where, "a share in [0, 1)", value)
    if like is not None:
        return _again(options, like, device=device, seed=seed)
    if options.method in UNCUT:
        return None
    options = dataclasses.replace(options, ratio=asked)
    criterion = CRITERIA.get(options.method)
    lookup("criterion", options.method, METHODS).check(options)
    if criterion is not None:
        check_options(options)
    for name in ("sequences", "length"):
        count = getattr(options.calibration, name)
        require(count >= 1, f"prune.calibration.{name}", "at least 1", count)
    governs = not ruled(options) and options.megabytes is None
    settled = MASKS[options.method].settled(options) if options.method in MASKS else options
    config = dataclasses.replace(
        settled,
        calibration_ids=_calibration_ids(options.calibration_ids),
        dtype=precision("prune.dtype", options.dtype, device),
        seed=seed,
        # Where no shape is asked for that a server reads, the server decides nothing here.
        serve=settled.serve if settled.shapes == "served" else "vllm",
        # Where another option decides how much goes, a constant keeps the ratio out of the key.
        ratio=asked if governs else 0.0,
        steps=settled.steps or (2 if governs and asked >= TWO_STEPS else 1),
    )
    reads = reads_text(options) if criterion is not None else MASKS[options.method].reads_text
    from_data = config.calibration_ids is None
    return Pruning(
        config=config,
        scored=None if criterion is None else for_scores(config),
        reads_text=reads and from_data,
        scores_read_text=criterion is not None and criterion.reads_text and from_data,
        ratio=asked if governs else None,
    )


def _again(options: PruneConfig, like: Path, *, device: str, seed: int) -> Pruning:
    """Return the checked options of a cut that is made like the one recorded at `like`."""
    if options.method in (*UNCUT, *MASKS):
        raise UserError(
            f"prune.like={options.like} cuts groups, and prune={options.method} does not. Choose a criterion, whose "
            "compensation is then fitted: prune=best."
        )
    lookup("prune.compensate", options.compensate, dict.fromkeys(COMPENSATIONS))
    lookup("prune.offload", options.offload, dict.fromkeys(OFFLOADS))
    for name in ("sequences", "length"):
        count = getattr(options.calibration, name)
        require(count >= 1, f"prune.calibration.{name}", "at least 1", count)
    found = earlier(like)
    options = dataclasses.replace(options, calibration_ids=_calibration_ids(options.calibration_ids))
    config = liked(options, found, dtype=precision("prune.dtype", options.dtype, device), seed=seed)
    reads = config.compensate != "none" and config.calibration_ids is None
    return Pruning(config=config, scored=None, reads_text=reads, scores_read_text=False, ratio=None, like=found)


def preview(pruning: Pruning, fields: Mapping[str, Any] | None) -> PrunePlan | None:
    """Return the plan of every layer's shape for the model whose config.json has `fields`.

    Return None where the config.json or the scores have to be there first, and where weights are masked.

    Raises:
        UserError: the ratio can't be reached, or the architecture is unknown.
    """
    config = pruning.config
    if config.method in MASKS or fields is None:
        return None
    shape, stored = DecoderShape.from_config(fields), fields.get("dtype") or fields.get("torch_dtype")
    if pruning.like is not None:
        return pruning.like.plan(shape, config)
    if config.megabytes is not None and stored is None:
        return None  # megabytes are of a precision, which this config.json does not tell
    return foreseen(shape, config, None if ruled(config) else budget_of(shape, config, stored))


def check_servable(pruning: Pruning, server: str) -> None:
    """Raise a `UserError` where scores decide shapes that DeciLM may not be able to say for `server`.

    Where shapes alone decide, the outcome itself is checked (`stages.export.plan.check_export`).
    """
    config = pruning.config
    # An earlier cut has one outcome, which its record tells.
    if config.method in MASKS or config.shapes == "served" or pruning.like is not None:
        return
    if config.compensate == "bias":
        raise UserError(
            "export=decilm: prune.compensate=bias gives output projections a bias, for which DeciLM has no place. Use "
            "prune.compensate=none, least_squares or sequential."
        )
    same_heads = config.shapes == "alike" or set(config.granularity) <= {"channels", "mlp", "layers"}
    if decided_by_shapes(config) or (same_heads and config.multiple % width_multiple(server) == 0):
        return
    raise UserError(
        f"export=decilm: scores decide what goes, and DeciLM can't say every outcome of prune.granularity="
        f"[{','.join(config.granularity)}] for {server}: it has one number of query heads, and an attention in the "
        "first layer. prune.shapes=served takes the nearest allocation that it can say."
    )


def check_writable(pruning: Pruning, family: str) -> None:
    """Raise a `UserError` where scores decide shapes that llama.cpp's own architecture of `family` may not take.

    Where shapes alone decide, the outcome itself is checked (`stages.export.plan.check_export`).
    """
    config, rules = pruning.config, FAMILIES[family].gguf
    if config.method in MASKS or pruning.like is not None or rules is None or rules.differing is not None:
        return
    kinds, instead = set(config.granularity), "or publish the Hugging Face directory: export=hf."
    if rules.windows and "layers" in kinds:
        raise UserError(
            f"export=gguf: llama.cpp's {rules.architecture} has sliding windows in fixed layers, and without some "
            f"layers the others would not be there. Leave layers out of prune.granularity, {instead}"
        )
    if decided_by_shapes(config):
        return
    if config.shapes != "alike" and not kinds <= {"layers"}:
        raise UserError(
            f"export=gguf: scores decide what each layer loses, and llama.cpp's {rules.architecture} takes one shape "
            f"for all layers. Search for one (prune.allocation=searched prune.shapes=alike), prune all layers alike "
            f"(prune.allocation=uniform prune.layers=all), {instead}"
        )
    if rules.filling_heads and kinds & {"heads", "queries"}:
        raise UserError(
            f"export=gguf: llama.cpp's {rules.architecture} takes only heads that fill the hidden size. Leave heads "
            f"and queries out of prune.granularity, {instead}"
        )


def unread(pruning: Pruning) -> dict[str, str]:
    """Return the options that are in a pruning's keys and that nothing reads, each with the reason."""
    config, found = pruning.config, {}
    if pruning.like is not None:
        return {}  # what nothing reads is in no key
    if config.method in CRITERIA:
        way = allocation(config)
        if way != "searched":
            found["prune.search"] = f"nothing is searched; the allocation is {way} (prune.allocation=searched)"
        if way not in ("global", "searched"):
            found["prune.max_per_layer"] = f"it limits a ranking across layers, and the allocation is {way}"
    if config.calibration_ids is not None:
        found["prune.calibration"] = "prune.calibration_ids takes the place of rows"
    elif not (pruning.reads_text or pruning.scores_read_text):
        found["prune.calibration"] = f"prune={config.method} reads no text"
    return found


def outlook(pruning: Pruning, foreseen: PrunePlan | None) -> str:
    """Return the text that is printed of a pruning before it runs; `foreseen` is its preview."""
    if foreseen is not None:
        told = [] if pruning.like is not None else notes(pruning.config, foreseen)
        return "\n".join([foreseen.totals(), *told])
    if isinstance(pruning.config, SparseMLConfig):
        return masks_table(pruning.config)
    if pruning.like is None and not decided_by_shapes(pruning.config):
        waits = "which layers lose how much follows from the scores, and is printed before anything is cut"
        return "\n".join([waits, *price(pruning.config)])
    return "what pruning cuts is known, and printed, once the model's config.json is here"


def _calibration_ids(given: Any) -> list[list[int]] | None:
    """Return the token ids in the JSON file that `prune.calibration_ids` names, so that a key holds its content."""
    if given is None:
        return None
    ids = read_json(Path(given).expanduser()) if isinstance(given, str) else given
    # `type(token) is int` below, because True is an int to `isinstance`.
    rows = isinstance(ids, list) and ids and all(isinstance(row, list) and row for row in ids)
    if not rows or not all(type(token) is int and token >= 0 for row in ids for token in row):
        raise UserError(
            f"prune.calibration_ids={given if isinstance(given, str) else '…'} must be a JSON list of lists "
            "of token ids (whole numbers, not negative), one inner list a sequence."
        )
    return [list(row) for row in ids]

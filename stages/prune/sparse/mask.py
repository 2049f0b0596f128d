"""A masked live model: its layers chosen, masked by an algorithm each, and the outcome checked.

The outcome is never taken on trust. Every matrix is counted afterwards and every group of N:M is checked. Every tensor
that was to stay is compared byte for byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stages.common.choices import nearest
from stages.errors import UserError
from stages.prune.allocation.budget import parse_layers
from stages.prune.sparse.config import SparseMLConfig
from stages.prune.sparse.magnitude import mask_smallest
from stages.prune.sparse.recipe import TOLERANCE, Masking, check_share, maskings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Work = list[tuple[Masking, list[str]]]
"""Each masking with the full names of its modules."""


def mask(model: PreTrainedModel, ids_BT: Tensor, config: SparseMLConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Set weights of `model` to zero in place, cast it to `dtype`, and return the masks' entries of pruning.json.

    Returns:
        "masks": by module, {algorithm, structure, requested, achieved, zeros, weights}; "sparsity": {requested,
        achieved, weights}, of all masked matrices together.

    Raises:
        UserError: a target names no layer, or one that another modifier targets too; a matrix does not divide into
            groups of M; the shares together are not `config.ratio`; or the outcome is not what was asked.
    """
    work = plan(model, config)
    before = {name: _zeros(_linear(model, name)) for _, names in work for name in names}
    others = _digests(model, except_for=before)
    with torch.no_grad():
        for masking, names in work:
            for name in names if masking.algorithm == "magnitude" else ():
                mask_smallest(_linear(model, name).weight, masking.sparsity, masking.zeros, masking.of)
    calibrated = [(masking, names) for masking, names in work if masking.algorithm != "magnitude"]
    if calibrated:
        from stages.prune.sparse.compressor import compress

        compress(model, ids_BT, calibrated)
    # Before the cast below, which changes the bytes of every tensor.
    _require_untouched(others, _digests(model, except_for=before))
    model.to(dtype)
    masks = {name: _outcome(model, name, masking, before[name]) for masking, names in work for name in names}
    weights, zeros = (sum(entry[key] for entry in masks.values()) for key in ("weights", "zeros"))
    return {"masks": masks, "sparsity": {"requested": config.ratio, "achieved": zeros / weights, "weights": weights}}


def plan(model: PreTrainedModel, config: SparseMLConfig) -> Work:
    """Return each masking with its modules: the decoder's linear layers that a target names and no `ignore` does."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    found = {f"{prefix}.{name}": module for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    layers = set(parse_layers(config.layers or "all", model.config.num_hidden_layers))
    linears = {name: module for name, module in found.items() if _layer(name) in layers}
    work = [(masking, _matching(linears, masking)) for masking in maskings(config)]
    names = [name for _, matched in work for name in matched]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"prune.recipe: two modifiers target {name}. Let each layer be masked by one.")
    sizes = {name: module.weight.numel() for name, module in linears.items()}
    asked = sum(masking.sparsity * sizes[name] for masking, matched in work for name in matched)
    check_share(asked / sum(sizes[name] for name in names), config.ratio or 0.0)
    return work


def _matching(linears: Mapping[str, nn.Linear], masking: Masking) -> list[str]:
    """Return the names that `masking` targets; every target is checked to name a layer."""
    for target in masking.targets:
        if not any(_names(target, name, module) for name, module in linears.items()):
            known = sorted({name.rpartition(".")[2] for name in linears})
            plain = re.sub(r"[^\w]|re:", "", target)
            raise UserError(
                f"prune=sparseml: target '{target}' names no linear layer of the decoder{nearest(plain, known)} "
                f"Known: {', '.join(known)}, by full name or as 're:.*NAME$'. (The embeddings and the output head are "
                "left alone.)"
            )
    names = [
        name
        for name, module in linears.items()
        if any(_names(target, name, module) for target in masking.targets)
        and not any(_names(ignored, name, module) for ignored in masking.ignore)
    ]
    if not names:
        raise UserError(f"prune.recipe: ignore={list(masking.ignore)} leaves nothing of {list(masking.targets)}.")
    for name in names:
        inputs = linears[name].in_features
        if masking.of and inputs % masking.of:
            raise UserError(
                f"prune=sparseml: {name} has {inputs} inputs, which {masking.structure} does not divide into groups of "
                f"{masking.of}. Choose another mask structure, or leave the layer out of the targets."
            )
    return names


def _names(target: str, name: str, module: nn.Module) -> bool:
    """Return whether `target` names the module: in full, by its class, or by an expression for the name's beginning."""
    if target.startswith("re:"):
        return re.match(target[3:], name) is not None
    return target in (name, type(module).__name__)


def _layer(name: str) -> int:
    """Return the index of the layer that a module is in."""
    return next(int(part) for part in name.split(".") if part.isdecimal())


def _linear(model: PreTrainedModel, name: str) -> nn.Linear:
    return cast("nn.Linear", model.get_submodule(name))


def _zeros(linear: nn.Linear) -> int:
    return linear.weight.numel() - int(linear.weight.count_nonzero())


def _outcome(model: PreTrainedModel, name: str, masking: Masking, zeros_before: int) -> dict[str, Any]:
    """Return the entry of pruning.json for one matrix, checked.

    The tolerance is there because Wanda rounds down within a row and SparseGPT up within a block. Weights that were
    zero before may stay zero, even beyond the share that was asked for.
    """
    linear = _linear(model, name)
    weight_OI, weights, zeros = linear.weight.detach(), linear.weight.numel(), _zeros(linear)
    achieved, slack = zeros / weights, TOLERANCE + 1 / linear.in_features  # one weight a row is rounding
    if not bool(weight_OI.isfinite().all()):
        raise UserError(
            f"prune=sparseml: {name} has weights that are not finite. Score in another precision with "
            "prune.dtype=float32, raise prune.dampening, or calibrate on other text."
        )
    if not masking.sparsity - slack <= achieved <= max(masking.sparsity, zeros_before / weights) + slack:
        raise UserError(
            f"prune=sparseml: {achieved:.4f} of {name} are zero, and {masking.sparsity:.4f} were asked for. Nothing is "
            "saved. Try another algorithm: prune.algorithm=wanda or magnitude."
        )
    if masking.of and int((weight_OI.view(-1, masking.of) == 0).sum(1).min()) < masking.zeros:
        raise UserError(f"prune=sparseml: {name} has groups of {masking.of} with fewer than {masking.zeros} zeros.")
    asked = {"algorithm": masking.algorithm, "structure": masking.structure, "requested": masking.sparsity}
    return asked | {"achieved": achieved, "zeros": zeros, "weights": weights}


def _digests(model: PreTrainedModel, *, except_for: Iterable[str]) -> dict[str, str]:
    """Return a digest of every tensor but the weights of the named modules."""
    masked = {f"{name}.weight" for name in except_for}
    # As bytes, because numpy has no bfloat16.
    return {
        name: hashlib.sha256(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()).hexdigest()
        for name, tensor in model.state_dict().items()
        if name not in masked
    }


def _require_untouched(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    changed: Sequence[str] = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    if changed:
        raise UserError(
            f"prune=sparseml: masking changed {changed[0]} ({len(changed)} tensors), which was to be left alone. "
            "Nothing is saved. Name the layers exactly in prune.targets."
        )

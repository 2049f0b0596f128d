"""The `quantise` stage: a model directory in few bits, in the format of compressed-tensors, which vLLM reads.

Weights of the decoder's linear layers are rounded by GPTQ (arXiv 2210.17323), or to the nearest where the scheme reads
no text. llm-compressor does both. Embeddings, norms and the output projection stay in 16 bits.

Output: `model/`, and `quantisation.json`:

    scheme, method, engine   the scheme, how weights were rounded, and the library with its version
    matrices, groups         how many matrices, and of how many of them as many inputs share a scale (0: all of a row)
    bytes                    {before, after} of the weight files
    calibration              {sequences, length}, or null
    remarks                  sentences for users
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from stages.common.files import read_json, write_json
from stages.decoders.checkpoint import load_model, load_tokenizer, save_model, stored_dtype
from stages.decoders.one_shot import one_shot
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.export.config import CALIBRATED, SCHEMES, CompressConfig
from stages.export.grouping import group_of, remarks
from stages.rows.calibration import Asked, sequences_in
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BATCH_TOKENS = 2048
"""Calibration tokens that run through a layer together."""
RECORD = "quantisation.json"


def run(config: CompressConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write the model of `inputs["model"]` in few bits, calibrated on the rows of `inputs["data"]`; return the record.

    Raises:
        UserError: there is too little text, or a Hessian can't be inverted.
    """
    if context.cards:
        raise UserError("export=compressed quantises a model on one GPU. Leave out runtime.device_map=auto.")
    source, target = inputs["model"] / "model", context.output / "model"
    stored = stored_dtype(source)
    # vLLM's kernels for few bits compute in 16 bits, and scales are stored in the model's precision.
    model = load_model(source, dtype="bfloat16" if stored == "float32" else stored, device=context.device)
    groups = _groups(model, config.scheme)
    ids_BT = _text(config, source, inputs["data"]) if config.scheme in CALIBRATED else None
    compress(model, groups, config.scheme, ids_BT, target, like=source)
    record = _record(config, groups, source, target)
    write_json(context.output / RECORD, record)
    return record


def compress(
    model: PreTrainedModel,
    groups: Mapping[int, list[str]],
    scheme: str,
    ids_BT: Tensor | None,
    target: Path,
    *,
    like: Path,
) -> None:
    """Round the named matrices of `model` and write it to `target`, with the companions of the directory `like`.

    Raises:
        UserError: a Hessian can't be inverted.
    """
    bar = ("quantise", sum(map(len, groups.values())))

    def modifiers() -> list[Any]:
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier

        kind = QuantizationModifier if ids_BT is None else GPTQModifier
        return [kind(config_groups=_config_groups(groups, scheme))]

    with one_shot(model, modifiers, ids_BT, batch_tokens=BATCH_TOKENS, bar=bar, done=_done) as told:
        if any("invert hessian" in text.lower() for text in told):
            raise UserError(
                "export=compressed: the Hessian of a layer could not be inverted. Give more text with "
                "export.sequences=, or choose export.scheme=fp8, which reads none."
            )
        recovery = like.parent / "recovery.json"
        with warnings.catch_warnings():
            # The library's way of holding a layer at a time looks like offloading, also where all is in memory.
            warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
            save_model(model, target, like=like, recovery=read_json(recovery) if recovery.is_file() else None)
    # The library's own record: every module by name, which config.json has too.
    (target / "recipe.yaml").unlink(missing_ok=True)


def _done(text: str) -> int:
    found = re.match(r"Quantizing (\d+) module", text)
    return int(found[1]) if found else 0


def _groups(model: PreTrainedModel, scheme: str) -> dict[int, list[str]]:
    """Return the decoder's linear layers by the number of inputs that share a scale; 0 where all inputs of a row do."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    found: dict[int, list[str]] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear):
            found.setdefault(group_of(scheme, module.in_features), []).append(f"{prefix}.{name}")
    return found


def _config_groups(groups: Mapping[int, list[str]], scheme: str) -> JSON:
    """Return each group as the library describes it, by full names, so that the library's matching decides nothing."""
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

    found: JSON = {}
    for number, (size, names) in enumerate(groups.items()):
        preset = dict(PRESET_SCHEMES[SCHEMES[scheme]])
        if scheme == "w4a16":
            shared = {"strategy": "group", "group_size": size} if size else {"strategy": "channel", "group_size": None}
            preset["weights"] = preset["weights"].model_dump() | shared
        found[f"group_{number}"] = {**preset, "targets": names}
    return found


def _text(config: CompressConfig, source: Path, data: Path) -> Tensor:
    asked = Asked(sequences=config.sequences, length=config.length, seed=config.seed, options="export")
    return sequences_in(data / "train.jsonl", load_tokenizer(source), asked)


def _record(config: CompressConfig, groups: Mapping[int, list[str]], source: Path, target: Path) -> JSON:
    reads = config.scheme in CALIBRATED
    sizes = Counter({size: len(names) for size, names in groups.items()})
    return {
        "scheme": config.scheme,
        "method": "gptq" if reads else "nearest",
        "engine": f"llmcompressor {version('llmcompressor')}",
        "matrices": sizes.total(),
        "groups": {str(size): count for size, count in sorted(sizes.items())},
        "bytes": {"before": _bytes(source), "after": _bytes(target)},
        "calibration": {"sequences": config.sequences, "length": config.length} if reads else None,
        "remarks": remarks(config.scheme, DecoderShape.from_config(read_json(source / "config.json"))),
    }


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))

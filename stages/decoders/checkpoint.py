"""The one format in which models cross stages: a Hugging Face directory with safetensors, config and tokenizer.

This module owns loading and saving such directories. Code that comes with a checkpoint is never executed unless asked.
The architecture that a pruned shape is saved as is decided in `.architecture`; models that are built without a
directory are in `.copies`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.common.files import COMPANIONS, read_json, read_object, write_json
from stages.common.progress import others_quiet
from stages.decoders.architecture import DTYPES, MODELLING_FILE, PRUNED_MODELS, config_class, cut_to
from stages.decoders.card import CARD, model_card
from stages.decoders.compressed import QUANTISED, made_ordinary, unbarred
from stages.decoders.headers import INDEX, numbers_by_precision, read_header
from stages.decoders.holding import STORED
from stages.decoders.lineage import base_of, lineage
from stages.decoders.quantised import QuantisedLinear, hold
from stages.decoders.registry import PRUNED_PREFIX
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError

REASON = 500
"""Characters of a library's reason that an error shows."""

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_config(directory: Path) -> PreTrainedConfig:
    """Return the configuration of the model in `directory`.

    Raises:
        UserError: there is none, or its fields can't be what they are.
    """
    with _explained(directory, "a model's configuration"):
        kind = config_class(read_object(directory / "config.json")["model_type"])
        config: PreTrainedConfig = kind.from_pretrained(directory)
    return config


def load_model(
    directory: Path,
    *,
    dtype: str,
    device: str = "cpu",
    trust_remote_code: bool = False,
    config: PreTrainedConfig | None = None,
    held: str = STORED,
) -> PreTrainedModel:
    """Return the causal language model in `directory`, in evaluation mode, with weights cast to `dtype`.

    Layers that differ in shape are built by this project's own copy of their class, so nothing in `directory` is
    executed. Compressed weights are made whole. A `config` takes the place of the directory's. Weights that it has no
    use for are not read. The weights of a frozen model may be `held` in fewer bits (`.holding`).

    Raises:
        UserError: the directory lacks its config or some of its weights, or weights are truncated or of another shape.
    """
    fields = read_object(directory / "config.json")
    kind = fields.get("model_type")
    loader = PRUNED_MODELS.get(kind, AutoModelForCausalLM) if isinstance(kind, str) else AutoModelForCausalLM
    # Only the automatic class knows the flag. Left unset, it would ask on the terminal.
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code} if loader is AutoModelForCausalLM else {}
    trust |= {} if config is None else {"config": config}
    # Weights that are held as they are stored go from the file to the device. Others are packed on the way.
    if device != "cpu" and held == STORED:
        # With its number: safetensors takes "cuda" for the first GPU, torch for the one that this process has chosen.
        trust["device_map"] = {"": torch.empty(0, device=device).device}
    with _explained(directory, "a model"), others_quiet(), unbarred() if QUANTISED in fields else nullcontext():
        model, report = loader.from_pretrained(
            directory,
            dtype=DTYPES[dtype],
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # transformers then reports them, and `incomplete` refuses them
            **trust,
        )
    if problem := incomplete(report):
        raise UserError(f"{directory} is not a whole checkpoint: {problem}. Fetch or build it again.")
    if QUANTISED in fields:
        model = made_ordinary(model)
    return hold(model, held, device).eval()


def incomplete(report: Mapping[str, Any]) -> str:
    """Return what transformers reports of weights that are missing or of another shape; empty where none are."""
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report[problem])
        if names:
            return f"{len(names)} {problem.replace('_', ' ')}, first {names[0]}"
    return ""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in `directory`.

    Raises:
        UserError: there is none, or none that can be read.
    """
    if not has_tokenizer(directory):
        raise UserError(
            f"{directory} has no tokenizer, and this stage reads text. Put the tokenizer's files beside the weights, "
            "or run without text: prune.calibration_ids=FILE.json adapter=none evaluate=none."
        )
    config = directory / "config.json"
    model_type = read_object(config).get("model_type") if config.is_file() else None
    # transformers chooses a tokenizer's class by the model's, and knows only the family of a pruned model.
    known = {"config": config_class(model_type.removeprefix(PRUNED_PREFIX))()} if model_type in PRUNED_MODELS else {}
    with _explained(directory, "a tokenizer"), _without_code(directory):
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False, **known)


def save_model(model: PreTrainedModel, directory: Path, *, like: Path, recovery: dict[str, Any] | None = None) -> None:
    """Write `model` to `directory`, with the tokenizer and companion files of the model directory `like`.

    The card tells what is recorded beside `like`, and `recovery` (the contents of recovery.json). The directory appears
    whole, in one rename, and replaces an earlier one.
    """
    with _beside(directory) as beside:
        model.save_pretrained(beside)
        copy_companions(like, beside)
        if model.config.model_type in PRUNED_MODELS:
            shutil.copyfile(MODELLING_FILE, beside / MODELLING_FILE.name)
        known = lineage(beside, base=base_of(like), recovery=recovery)
        (beside / CARD).write_text(model_card(known), encoding="utf-8")


def save_cut_model(
    model: PreTrainedModel,
    shape: DecoderShape,
    directory: Path,
    *,
    like: Path,
    dtype: str,
    record: dict[str, Any],
    resident: Callable[[int], AbstractContextManager[Any]] | None = None,
) -> None:
    """Write `model`, whose projections have been cut in place to `shape`, as the architecture that takes this shape.

    Args:
        model: a live decoder. Its class and config are still the dense model's.
        shape: the shape that its layers now have.
        directory: the directory to write. It appears whole, in one rename.
        like: the model directory that the model was cut from, for the tokenizer and other companion files.
        dtype: precision of the saved weights.
        record: the contents of `pruning.json`, from which the card is written too. Architecture and base are added.
        resident: holds a layer's weights in memory, where not all are. Each layer is then written to a file of its own.
    """
    config, architecture = cut_to(model, shape, dtype)
    with _beside(directory) as beside:
        copy_companions(like, beside)
        # Beside another architecture, transformers may read the tokenizer's files by another class.
        if config.model_type != model.config.model_type and has_tokenizer(like):
            write_tokenizer(load_tokenizer(like), beside)
        _write_weights(model, beside, dtype=dtype, tied=shape.tied, resident=resident)
        config.save_pretrained(beside)
        if config.model_type in PRUNED_MODELS:
            shutil.copyfile(MODELLING_FILE, beside / MODELLING_FILE.name)
        saved_as = {"architecture": architecture, "base": base_of(like)}
        (beside / "pruning.json").write_text(json.dumps(record | saved_as) + "\n", encoding="utf-8")
        (beside / CARD).write_text(model_card(lineage(beside)), encoding="utf-8")


def _write_weights(
    model: PreTrainedModel,
    directory: Path,
    *,
    dtype: str,
    tied: bool,
    resident: Callable[[int], AbstractContextManager[Any]] | None,
) -> None:
    """Write the weights as `transformers` shards them, or each layer to its own file while `resident` holds it."""

    def stored() -> dict[str, torch.Tensor]:
        # A tied output matrix is saved as the embedding alone; a weight on the meta device is not in memory now.
        found = {
            name: tensor.to("cpu", DTYPES[dtype])
            for name, tensor in model.state_dict().items()
            if not (tied and name in model.all_tied_weights_keys) and (resident is None or not tensor.is_meta)
        }
        for name, tensor in found.items():
            if not bool(tensor.isfinite().all()):
                raise UserError(
                    f"{name} of the pruned model holds NaN or infinity in {dtype}. The dense checkpoint holds them "
                    "too, or larger numbers than this precision has. Fetch it again, or set prune.dtype=float32."
                )
        return found

    if resident is None:
        save_torch_state_dict(stored(), directory, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    size, count = 0, model.config.num_hidden_layers
    for index in range(-1, count):  # −1: the weights that are in memory all the time
        with nullcontext() if index < 0 else resident(index):
            weights = {name: tensor for name, tensor in stored().items() if name not in weight_map}
            file = f"model-{index + 2:05d}-of-{count + 1:05d}.safetensors"
            save_file(weights, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(weights, file)
        size += sum(tensor.nbytes for tensor in weights.values())
    write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def stored_dtype(directory: Path) -> str:
    """Return the precision in which most weights of `directory` are stored, as the safetensors headers say.

    Raises:
        UserError: there are no safetensors, a header can't be read, or the precision is none of float32, bfloat16,
        float16.
    """
    headers = [read_header(path) for path in sorted(directory.glob("*.safetensors"))]
    if not headers:
        raise UserError(f"{directory} has no safetensors weights. Fetch or convert the checkpoint.")
    stored = numbers_by_precision(headers).most_common(1)[0][0]
    if stored not in DTYPES:
        raise UserError(f"{directory} stores its weights as {stored}; pruning reads {', '.join(DTYPES)}.")
    return stored


def copy_companions(source: Path, target: Path) -> None:
    """Copy the tokenizer and the other small files that belong to the weights."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def count_nonzeros(model: torch.nn.Module) -> int:
    """Return how many parameters are not zero. Tied parameters count once."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())


def count_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters. Tied parameters count once."""
    # A weight that is held in fewer bits is no parameter of torch's.
    packed = (layer for layer in model.modules() if isinstance(layer, QuantisedLinear))
    whole = sum(parameter.numel() for parameter in model.parameters())
    return whole + sum(layer.in_features * layer.out_features for layer in packed)


def has_tokenizer(directory: Path) -> bool:
    """Return whether `directory` has a tokenizer."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write `tokenizer` so that it splits text the same way beside a model of another architecture.

    The architecture helps decide which class reads tokenizer.json, and a class named for a family builds parts of its
    own. Those parts are saved as built, under the class that takes tokenizer.json as it is.
    """
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    write_json(path, read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"})


@contextmanager
def _explained(directory: Path, kind: str) -> Iterator[None]:
    """Turn what a library says of files that it can't use into a `UserError` that names the directory."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    # transformers takes the fields of a JSON file as they are, so a wrong one may fail anywhere.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{directory} can't be loaded as {kind}: {type(error).__name__}: {reason[:REASON]} Fetch or build it again."
        ) from error


@contextmanager
def _without_code(directory: Path) -> Iterator[None]:
    """Say it in a user's words where transformers asks for leave to run a tokenizer's own code."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"the tokenizer in {directory} wants Python code of its own (auto_map), which is never run. Where it has a "
            'tokenizer.json, "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json reads it without.'
        ) from None


@contextmanager
def _beside(directory: Path) -> Iterator[Path]:
    """Yield an empty directory beside `directory`. It replaces `directory` if the block succeeds, else it vanishes."""
    beside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        with others_quiet():
            yield beside
        shutil.rmtree(directory, ignore_errors=True)
        beside.rename(directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)

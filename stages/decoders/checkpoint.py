"""The one format in which models cross stages: a Hugging Face directory with safetensors, config and tokenizer.

This module owns loading and saving such directories. It also decides the architecture that a pruned shape is saved as:
a stock one where one takes the shape, else one whose modelling file is copied beside the weights. Code that comes with
a checkpoint is never executed unless asked. Shapes are in `stages.decoders.shapes`, pruning is in `stages.prune`.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoTokenizer

from stages.common.files import COMPANIONS, read_json, write_json
from stages.decoders import modeling_pruned
from stages.decoders.card import CARD, model_card
from stages.decoders.headers import INDEX, numbers_by_precision, read_header
from stages.decoders.lineage import base_of, lineage
from stages.decoders.registry import FAMILIES, PRUNED_PREFIX
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODELLING_FILE = Path(modeling_pruned.__file__)
"""The file that is copied into checkpoints whose layers differ in shape."""
PRUNED_MODELS: dict[str, Any] = {
    model.config_class.model_type: model for model in modeling_pruned.PrunedForCausalLM.__subclasses__()
}
"""The classes of that file, by `model_type`."""
NOT_COPIED = {
    "model_type",
    "architectures",
    "auto_map",
    "layer_shapes",
    "output_bias",
    "transformers_version",
    "_name_or_path",
}
"""Fields of the dense model's configuration that say nothing about the cut one."""


def load_config(directory: Path) -> PreTrainedConfig:
    """Return the configuration of the model in `directory`."""
    config: PreTrainedConfig = config_class(read_json(directory / "config.json")["model_type"]).from_pretrained(
        directory
    )
    return config


def load_model(
    directory: Path,
    *,
    dtype: str,
    device: str = "cpu",
    trust_remote_code: bool = False,
    config: PreTrainedConfig | None = None,
) -> PreTrainedModel:
    """Return the causal language model in `directory`, in evaluation mode, with weights cast to `dtype`.

    Layers that differ in shape are built by this project's own copy of their class, so nothing in `directory` is
    executed. A `config` takes the place of the directory's. Weights that it has no use for are not read.

    Raises:
        UserError: the directory lacks its config or some of its weights, or weights are truncated or of another shape.
    """
    loader = PRUNED_MODELS.get(read_json(directory / "config.json").get("model_type"), AutoModelForCausalLM)
    # Only the automatic class knows the flag. Left unset, it would ask on the terminal.
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code} if loader is AutoModelForCausalLM else {}
    trust |= {} if config is None else {"config": config}
    try:
        model, report = loader.from_pretrained(
            directory,
            dtype=DTYPES[dtype],
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # transformers then reports them, and `_incomplete` refuses them
            **trust,
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"{directory} can't be loaded as a model: {error} Fetch or build the checkpoint again."
        ) from error
    if problem := _incomplete(report):
        raise UserError(f"{directory} is not a whole checkpoint: {problem}. Fetch or build it again.")
    return model.to(device).eval()  # type: ignore[no-any-return]


def model_of(
    weights: Mapping[str, torch.Tensor], config: PreTrainedConfig, *, dtype: str, device: str = "cpu"
) -> PreTrainedModel:
    """Return the causal language model of `config` with `weights`, as `load_model` would load it from a directory.

    Weights that already have the precision `dtype` and are on `device` are shared with the model, not copied.

    Raises:
        UserError: transformers has no causal language model of such a config, or weights are missing or of another
            shape.
    """
    kind = PRUNED_MODELS.get(config.model_type) or MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise UserError(f"transformers has no causal language model of model_type '{config.model_type}'.")
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        dtype=DTYPES[dtype],
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # transformers then reports them, and `_incomplete` refuses them
    )
    if problem := _incomplete(report):
        raise UserError(
            f"the model's weights are not those of a plain {kind.__name__}: {problem}. Where adapters are attached to "
            "it, merge them first (PEFT: model.merge_and_unload())."
        )
    return model.to(device).eval()  # type: ignore[no-any-return]


def copy_of(
    model: PreTrainedModel, *, dtype: str, config: PreTrainedConfig | None = None, shared: bool = False
) -> PreTrainedModel:
    """Return a copy of a live model on its device in evaluation mode, as saving and loading would give it.

    The copy has no hooks, no gradients and nothing compiled.

    Args:
        model: the model to copy. It is left as it is.
        dtype: precision of the copy's weights.
        config: takes the place of the model's config.
        shared: whether weights that are in `dtype` already are shared instead of copied. Only for a model whose
            weights nobody changes afterwards.

    Raises:
        UserError: as `model_of`.
    """
    config = model.config if config is None else config
    # transformers ties them again, so a tied weight is passed on once.
    tied = model.all_tied_weights_keys if config.tie_word_embeddings else {}
    weights = {
        name: tensor.detach().to(DTYPES[dtype], copy=not shared)
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    made = model_of(weights, config, dtype=dtype, device=str(model.device))
    made.generation_config = copy.deepcopy(model.generation_config)
    return made


def cut_copy(
    model: PreTrainedModel, shape: DecoderShape, *, dtype: str, record: dict[str, Any], base: JSON
) -> PreTrainedModel:
    """Return `model`, whose projections have been cut in place to `shape`, as the architecture that takes this shape.

    The result shares the weights of `model`. It equals what `load_model` returns after `save_cut_model`. Its attribute
    `pruning` holds what pruning.json would hold.
    """
    config, architecture = _cut_to(model, shape, dtype)
    made = copy_of(model, dtype=dtype, config=config, shared=True)
    made.pruning = record | {"architecture": architecture, "base": base}
    return made


def _incomplete(report: Mapping[str, Any]) -> str:
    """Return what transformers reports of weights that are missing or of another shape; empty where none are."""
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report[problem])
        if names:
            return f"{len(names)} {problem.replace('_', ' ')}, first {names[0]}"
    return ""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in `directory`.

    Raises:
        UserError: there is none.
    """
    if not _has_tokenizer(directory):
        raise UserError(
            f"{directory} has no tokenizer, and this stage reads text. Put the tokenizer's files beside the weights, "
            "or run without text: prune.calibration_ids=FILE.json adapter=none evaluate=none."
        )
    config = directory / "config.json"
    model_type = read_json(config).get("model_type") if config.is_file() else None
    # transformers chooses a tokenizer's class by the model's, and knows only the family of a pruned model.
    known = {"config": config_class(model_type.removeprefix(PRUNED_PREFIX))()} if model_type in PRUNED_MODELS else {}
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
    config, architecture = _cut_to(model, shape, dtype)
    with _beside(directory) as beside:
        copy_companions(like, beside)
        # Beside another architecture, transformers may read the tokenizer's files by another class.
        if config.model_type != model.config.model_type and _has_tokenizer(like):
            _write_tokenizer(load_tokenizer(like), beside)
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
        return {
            name: tensor.to("cpu", DTYPES[dtype])
            for name, tensor in model.state_dict().items()
            if not (tied and name in model.all_tied_weights_keys) and (resident is None or not tensor.is_meta)
        }

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


def _cut_to(model: PreTrainedModel, shape: DecoderShape, dtype: str) -> tuple[PreTrainedConfig, JSON]:
    """Return the configuration of `model` cut to `shape` in `dtype`, and the record of its architecture."""
    config, reason = cut_config(model.config, shape)
    config.dtype = DTYPES[dtype]
    return config, {"model_type": config.model_type, "reason": reason}


def config_class(model_type: str) -> Any:
    """Return the configuration class of a `model_type`: a stock one, or one of this project's for differing layers."""
    model = PRUNED_MODELS.get(model_type)
    return CONFIG_MAPPING[model_type] if model is None else model.config_class


def cut_config(dense: PreTrainedConfig, shape: DecoderShape) -> tuple[PreTrainedConfig, str]:
    """Return the configuration that a model of `dense`, cut to `shape`, is saved with, and the reason for it.

    The architecture is the family's stock one. Where that refuses the shape, it is another stock one that computes the
    same to the bit. Where there is none, it is the family's class in `.modeling_pruned`.
    """
    fields = {name: value for name, value in dense.to_dict().items() if name not in NOT_COPIED}
    # head_dim is written out, because configs derive it from the hidden size and the number of heads, which change.
    fields |= {"head_dim": shape.head_dim, "hidden_size": shape.hidden, "num_hidden_layers": len(shape.layers)}
    needs = _beyond_stock(shape)
    if not needs:
        layer = shape.layers[0]
        fields_of_layer = {"num_attention_heads": layer.heads, "num_key_value_heads": layer.kv_heads}
        fields_of_layer["intermediate_size"] = layer.mlp
        try:
            return _stock_config(shape.family, fields | fields_of_layer), "the stock architecture takes this shape"
        except (StrictDataclassError, ValueError):
            needs = f"{config_class(shape.family).__name__} refuses {layer.heads} heads at hidden size {shape.hidden}"
        # A stand-in has no biases.
        other = FAMILIES[shape.family].stand_in
        if other is not None and not (shape.qkv_bias or shape.o_bias or shape.mlp_bias):
            known = {name: value for name, value in fields.items() if name not in other.unknown}
            config = _stock_config(other.family, known | fields_of_layer | dict(other.fixed))
            return config, f"{needs}; {other.called} computes the same"
    return _pruned_config(fields, shape), f"{needs}; loads with trust_remote_code=True"


def _beyond_stock(shape: DecoderShape) -> str:
    """Return what `shape` has that no stock architecture has; empty where there is nothing."""
    if not shape.uniform:
        return "layers differ in shape"
    if not (shape.layers[0].heads and shape.layers[0].mlp):
        return "layers lack a sub-layer"
    if shape.output_bias and not (shape.o_bias and shape.mlp_bias):
        return "the output projections have got a bias"
    return ""


def _stock_config(family: str, fields: dict[str, Any]) -> PreTrainedConfig:
    config: PreTrainedConfig = config_class(family)(**fields)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    return config


def _pruned_config(fields: dict[str, Any], shape: DecoderShape) -> PreTrainedConfig:
    model_class, stem = PRUNED_MODELS[PRUNED_PREFIX + shape.family], MODELLING_FILE.stem
    shapes = [[layer.heads, layer.kv_heads, layer.mlp] for layer in shape.layers]
    config: PreTrainedConfig = model_class.config_class(**fields, layer_shapes=shapes, output_bias=shape.output_bias)
    config.architectures = [model_class.__name__]
    config.auto_map = {
        "AutoConfig": f"{stem}.{type(config).__name__}",
        "AutoModelForCausalLM": f"{stem}.{model_class.__name__}",
    }
    return config


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
    return sum(parameter.numel() for parameter in model.parameters())


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write `tokenizer` so that it splits text the same way beside a model of another architecture.

    The architecture helps decide which class reads tokenizer.json, and a class named for a family builds parts of its
    own. Those parts are saved as built, under the class that takes tokenizer.json as it is.
    """
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    write_json(path, read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"})


@contextmanager
def _beside(directory: Path) -> Iterator[Path]:
    """Yield an empty directory beside `directory`. It replaces `directory` if the block succeeds, else it vanishes."""
    beside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        shutil.rmtree(directory, ignore_errors=True)
        beside.rename(directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)

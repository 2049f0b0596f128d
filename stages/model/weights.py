"""The files that make up a checkpoint, placed into a model directory. No torch here, except to convert pickles.

Safetensors are preferred, and linked to instead of copied. Pickled weights are read as tensors and nothing else. They
are written as safetensors at once, shard by shard.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.checks import short
from stages.common.files import COMPANIONS, read_json, read_object, write_json
from stages.common.progress import progress
from stages.decoders.headers import INDEX, numbers_by_precision, read_header
from stages.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = (("model.safetensors", INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
"""(one file, index of many) for each format, the preferred one first."""
SHARD_BYTES = 2_000_000_000
"""Bytes at which a converted shard is closed. The conversion holds as much in memory."""
LEFT_OUT = ".rotary_emb.inv_freq"
"""A buffer that old checkpoints carry and that models compute themselves."""


def weight_files(names: Collection[str], read_index: Callable[[str], Any], where: str) -> list[str]:
    """Return the files among `names` that hold the weights. An index comes first.

    Raises:
        UserError: there are none, or an index names a shard that is missing. `where` names the place in the message.
    """
    for single, index in FORMATS:
        if single in names:
            return [single]
        if index in names:
            shards = _shards(read_index(index), f"{index} of {where}")
            missing = [shard for shard in shards if shard not in names]
            if missing:
                raise UserError(
                    f"{where} is not a whole checkpoint: {index} names {len(missing)} of {len(shards)} shards that "
                    f"are not there, first {missing[0]}. Fetch it again, or point to the directory that has them."
                )
            return [index, *shards]
    known = ", ".join(name for names_ in FORMATS for name in names_)
    raise UserError(f"{where} has no weights. Looked for: {known}.")


def _shards(index: Any, where: str) -> list[str]:
    """Return the files that an index names, sorted.

    Raises:
        UserError: the index has another form, or names a file elsewhere.
    """
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{where} must hold {{weight_map: {{tensor: file, …}}}}, and does not. Fetch it again.")
    files = set(map(str, weight_map.values()))
    elsewhere = sorted(file for file in files if file != Path(file).name or not file)
    if elsewhere:
        raise UserError(f"{where} names {short(repr(elsewhere[0]))}, which is no file beside it. Fetch it again.")
    return sorted(files)


def model_files(directory: Path) -> list[str]:
    """Return the names of a model directory's files that matter: config, weights, tokenizer, modelling code.

    Raises:
        UserError: `directory` is no directory, or lacks its config or weights.
    """
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not a directory. model.path must be one with config.json and safetensors, or a GGUF file."
        )
    names = {path.name for path in directory.iterdir() if path.is_file()}
    if "config.json" not in names:
        raise UserError(f"{directory} has no config.json, so it is not a Hugging Face model directory.")
    weights = weight_files(names, lambda index: read_json(directory / index), str(directory))
    code = sorted(name for name in names if name.endswith(".py"))
    small = [name for name in COMPANIONS if name in names]
    return ["config.json", *weights, *small, *(code if read_object(directory / "config.json").get("auto_map") else [])]


def place(source: Path, target: Path) -> None:
    """Make `target` a model directory with the model of `source`: weights linked or converted, small files copied.

    Raises:
        UserError: a file is missing or truncated, or a pickle holds more than tensors.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = model_files(source)
    pickled = [source / name for name in names if name.endswith(".bin")]
    for name in names:
        if name.endswith(".safetensors"):
            # Read only to refuse a truncated file, which the link would hide until the weights are needed.
            read_header(source / name)
            (target / name).unlink(missing_ok=True)
            # A snapshot of the hub is itself links into blobs. The link made here goes to the blob.
            (target / name).symlink_to((source / name).resolve())
        elif not name.startswith("pytorch_model"):
            if name.endswith(".json"):
                # Read only to name the file. A library that meets it later names none.
                read_object(source / name)
            shutil.copyfile(source / name, target / name)
    if pickled:
        convert(pickled, target, tied=bool(read_object(source / "config.json").get("tie_word_embeddings")))


def summarise(directory: Path) -> dict[str, Any]:
    """Return {"parameters", "dtype", "model_type", "bytes"} of a model directory. Tied embeddings count once."""
    config = read_object(directory / "config.json")
    headers = {path: read_header(path) for path in sorted(directory.glob("*.safetensors"))}
    tensors = {name: entry for header in headers.values() for name, entry in header.items()}
    skipped = {"lm_head.weight"} if config.get("tie_word_embeddings") and len(tensors) > 1 else set()
    counted = {n: e for n, e in tensors.items() if n not in skipped and not n.endswith(LEFT_OUT)}
    numbers = numbers_by_precision([counted])
    if not numbers:
        raise UserError(f"the safetensors of {directory} hold no tensors. Fetch the checkpoint again.")
    return {
        "parameters": numbers.total(),
        "dtype": numbers.most_common(1)[0][0],
        "model_type": config.get("model_type"),
        "bytes": sum(path.stat().st_size for path in headers),
    }


def convert(pickled: Iterable[Path], target: Path, *, tied: bool) -> None:
    """Write the tensors of pickled files to `target` as safetensors. With `tied` embeddings the head is left out.

    Raises:
        UserError: a file is truncated or holds more than tensors. Nothing in a file is executed.
    """
    from safetensors.torch import save_file

    shards: list[tuple[Path, list[str]]] = []
    for group in _groups(pickled, tied):
        beside = target / f".converting-{len(shards):05}.tmp"
        save_file(group, beside, metadata={"format": "pt"})
        shards.append((beside, list(group)))
    if len(shards) == 1:
        os.replace(shards[0][0], target / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (beside, names) in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        os.replace(beside, target / name)
        weight_map |= dict.fromkeys(names, name)
    total = sum((target / name).stat().st_size for name in set(weight_map.values()))
    write_json(target / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _groups(pickled: Iterable[Path], tied: bool) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of all files in groups of about SHARD_BYTES. Each tensor has memory of its own."""
    group: dict[str, Tensor] = {}
    with progress("converting to safetensors", total=None, unit="B", scale=True) as bar:
        for path in pickled:
            for name, tensor in _read_pickled(path).items():
                if name.endswith(LEFT_OUT) or (tied and name == "lm_head.weight"):
                    continue
                # Copied, because safetensors refuses tensors that share storage or are slices of a larger one.
                group[name] = tensor.detach().clone().contiguous()
                bar.update(tensor.nbytes)
                if sum(held.nbytes for held in group.values()) >= SHARD_BYTES:
                    yield group
                    group = {}
    if group:
        yield group


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.bin` file, mapped into memory where its format allows."""
    import torch

    try:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # The format of torch before 1.6 can't be mapped.
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is refused: it holds more than tensors, and loading it would execute what it holds. "
            "Use a checkpoint with safetensors."
        ) from None
    except (RuntimeError, EOFError) as error:
        raise UserError(f"{path} can't be read, it is probably truncated ({error}). Fetch it again.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} is not a checkpoint: it must hold one flat dictionary of tensors.")
    return tensors

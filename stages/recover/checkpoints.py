"""Checkpoints from which a killed recovery resumes exactly: adapter, optimizer moments, position in the data, curve.

A checkpoint is a directory `checkpoint/step-00000012/` of two files. It is written under another name, flushed to the
disk and renamed. So a half-written checkpoint is never seen, not even after a loss of power. The previous checkpoint is
removed only afterwards.

A checkpoint says what was written: its record is sealed and has the SHA-256 of every tensor. A damaged one is refused.

A checkpoint has no random state: each step seeds its own (`stages.recover.loop`), and the data's position is one
integer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stages.common.files import THREADS, read_object
from stages.common.machine import processor
from stages.common.sealed import SEAL, is_sealed, write_sealed
from stages.errors import UserError
from stages.recover.workers import SINGLE, Workers
from stages.stage import JSON

log = logging.getLogger(__name__)

FOLDER = "checkpoint"
STATE, PROGRESS = "state.safetensors", "progress.json"
HASHES = "sha256"
"""The entry of the record that holds the SHA-256 of each tensor, by its name."""
SHARE = 0.03
"""The most of a recovery's time that saving takes."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """The progress of a recovery, and its curve so far."""

    step: int = 0
    """Optimizer steps taken."""
    tokens: int = 0
    """Tokens that passed through the model."""
    labelled: int = 0
    """Tokens that the loss was taken on."""
    documents: int = 0
    """Documents drawn: the position in the stream."""
    written: int = 0
    """Tokens among them that the model had written itself."""
    cut: int = 0
    """Documents that were cut to the sequence length."""
    tasks: dict[str, int] = field(default_factory=dict)
    """Documents drawn by task."""
    history: list[JSON] = field(default_factory=list)
    """Points of the curve."""
    micro_batch_tokens: int | None = None
    """Tokens that run at a time, where the configured number did not fit in memory; else None."""
    best: JSON | None = None
    """Step, tokens and validation loss of the best parameters so far, where the best ones are kept."""


def interval(asked: float, saving: float) -> float:
    """Return the seconds between two checkpoints: those `asked` for, or more where one takes `saving` seconds.

    A 7B model in float32 with its moments is 81 GB, which would otherwise be written every minute. Where 0 seconds are
    asked for, every step is saved.
    """
    return max(asked, saving / SHARE) if asked else 0.0


def newest(output: Path) -> Path | None:
    """Return the directory of the newest whole checkpoint under `output`, or None."""
    # Step numbers have leading zeros, so the last name is the newest.
    return max((output / FOLDER).glob("step-*"), default=None)


def save(
    output: Path,
    progress: Progress,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: JSON,
    best: Mapping[str, torch.Tensor],
    workers: Workers = SINGLE,
) -> Path:
    """Write a checkpoint, remove the older ones and return its path.

    Args:
        output: the stage's output directory.
        progress: written with all its fields.
        parameters: the trained parameters, by name.
        optimizer: its state must be tensors, as AdamW's is.
        identity: a recovery resumes from the checkpoint only if its identity is equal.
        best: the best parameters so far, by name, where those are kept.
        workers: all of them call this, and the leader writes. Their number is not in the checkpoint, so another number
            of workers can resume from it.
    """
    final = output / FOLDER / f"step-{progress.step:08d}"
    tensors = {f"parameter {name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        tensors |= {f"{key} {name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    tensors |= {f"best {name}": tensor for name, tensor in best.items()}
    # To gather a sharded tensor takes all workers, and the leader alone keeps it, in the processor's memory.
    wholes = {}
    for name, tensor in tensors.items():
        whole = workers.whole(tensor)
        if workers.leads:
            wholes[name] = whole.cpu().contiguous()
    if not workers.leads:
        return final
    beside = final.with_name(f"writing-{final.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        save_file(wholes, beside / STATE)
        facts = {"identity": identity, "progress": asdict(progress), "computed": _computed(parameters)}
        write_sealed(beside / PROGRESS, facts | {HASHES: _hashes(wholes)})
        for path in (beside / STATE, beside / PROGRESS, beside):
            _to_disk(path)
        os.replace(beside, final)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)  # gives a full disk its room back
        raise
    # The rename has to survive a loss of power before the checkpoint that it replaces is removed.
    _to_disk(final.parent)
    for older in final.parent.iterdir():
        if older != final:
            shutil.rmtree(older)
    return final


def resume(
    output: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: JSON,
    best: dict[str, torch.Tensor],
    workers: Workers = SINGLE,
) -> Progress:
    """Load the newest checkpoint into `parameters`, `optimizer` and `best`; without one, return a fresh `Progress`.

    Raises:
        UserError: the checkpoint is of another recovery, or is damaged.
    """
    directory = newest(output)
    if directory is None:
        return Progress()
    saved, tensors = _read(directory)
    shapes = {name: tensors[f"parameter {name}"].shape for name in parameters if f"parameter {name}" in tensors}
    # Compared in the form that JSON gives back, where tuples are lists.
    if saved["identity"] != json.loads(json.dumps(identity)) or shapes != {
        name: parameter.shape for name, parameter in parameters.items()
    }:
        raise UserError(f"{directory} is a checkpoint of another recovery. Remove {output} to start afresh.")
    for name, parameter in parameters.items():
        parameter.data.copy_(workers.placed(tensors.pop(f"parameter {name}"), parameter))
    for entry, tensor in tensors.items():
        key, _, name = entry.partition(" ")
        if key == "best":
            best[name] = tensor
        else:
            optimizer.state[parameters[name]][key] = workers.placed(tensor, parameters[name])
    _warn_of_rounding(saved["computed"], _computed(parameters))
    return Progress(**saved["progress"])


def _read(directory: Path) -> tuple[JSON, dict[str, torch.Tensor]]:
    try:
        saved, tensors = read_object(directory / PROGRESS), load_file(directory / STATE)
        # Checkpoints of older versions have neither a seal nor hashes.
        if SEAL in saved and not is_sealed(saved):
            raise UserError(f"{PROGRESS} is not what was written")
        changed = [name for name, found in _hashes(tensors).items() if found != saved.get(HASHES, {}).get(name, found)]
        if changed:
            raise UserError(f"its tensor '{changed[0]}' is not what was written: another SHA-256")
        return {key: saved[key] for key in ("identity", "progress", "computed")}, tensors
    except (UserError, OSError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"the checkpoint {directory} is damaged ({error}). Remove it to go on from the one before it, or from "
            "the beginning where there is none."
        ) from error


def _hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the SHA-256 of each tensor's bytes. Tensors are hashed side by side."""
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(tensors, threads.map(_sha256, tensors.values()), strict=True))


def _sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _computed(parameters: Mapping[str, torch.nn.Parameter]) -> JSON:
    """Return the facts about this machine, apart from the configuration, on which the rounding of sums depends.

    Threads split a sum among themselves. Libraries choose the kernel of a product by the processor, and by the
    instructions that torch was told to use (`ATEN_CPU_CAPABILITY`).
    """
    device = next((parameter.device.type for parameter in parameters.values()), "cpu")
    computed = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    return computed | {"processor": processor(), "instructions": torch.backends.cpu.get_cpu_capability()}


def _warn_of_rounding(before: JSON, now: JSON) -> None:
    known = {name: before[name] for name in now if name in before}  # older checkpoints say less
    changed = [f"{name} {value}, now {now[name]}" for name, value in known.items() if value != now[name]]
    if changed:
        log.warning(
            "this recovery was begun with %s: its end will differ from an uninterrupted one's by rounding.",
            "; ".join(changed),
        )


def _to_disk(path: Path) -> None:
    """Wait until a file, or a directory's entries, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(output: Path) -> None:
    """Remove all checkpoints, which are no part of the artifact.

    One rename hides them before they are deleted, so a kill in between leaves no half-deleted checkpoint behind.
    """
    removed = output / f".{FOLDER}-removed"
    shutil.rmtree(removed, ignore_errors=True)
    if (output / FOLDER).exists():
        os.replace(output / FOLDER, removed)
        shutil.rmtree(removed, ignore_errors=True)

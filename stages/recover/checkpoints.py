"""Checkpoints that a killed recovery resumes from, exactly: adapter, optimizer moments, position and curve.

A checkpoint is a directory `checkpoint/step-00000012/` of two files, written under another name and renamed, so a
half-written one is never seen; the one before it goes only afterwards. There is no random state in it: each step
seeds its own (`stages.recover.loop`), and the data's position is one integer.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.errors import UserError
from stages.files import read_json, write_json
from stages.stage import JSON

FOLDER = "checkpoint"


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a recovery has come, and the curve so far."""

    step: int = 0
    """Optimizer steps taken."""
    tokens: int = 0
    """Tokens that passed through the model."""
    labelled: int = 0
    """Tokens that the loss was taken on."""
    documents: int = 0
    """Documents drawn: the position in the stream."""
    cut: int = 0
    """Documents that were cut to the sequence length."""
    tasks: dict[str, int] = field(default_factory=dict)
    """Documents drawn by task."""
    history: list[JSON] = field(default_factory=list)
    """Points of the curve."""
    best: JSON | None = None
    """Step, tokens and validation loss of the parameters to keep, where the best ones are kept."""


def newest(output: Path) -> Path | None:
    """Return the newest whole checkpoint under `output`, or None."""
    return max((output / FOLDER).glob("step-*"), default=None)


def save(
    output: Path,
    progress: Progress,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: JSON,
    best: Mapping[str, torch.Tensor],
) -> Path:
    """Write a checkpoint, remove the older ones and return its path.

    Args:
        output: the stage's output directory.
        progress: written whole.
        parameters: what is trained, by name.
        optimizer: its state must be tensors, as AdamW's is.
        identity: what must be equal for the checkpoint to be resumed from.
        best: the best parameters so far, by name, where those are kept.
    """
    tensors = {f"parameter {name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        tensors |= {f"{key} {name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    tensors |= {f"best {name}": tensor for name, tensor in best.items()}
    final = output / FOLDER / f"step-{progress.step:08d}"
    beside = final.with_name(f"writing-{final.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, beside / "state.safetensors")
    write_json(beside / "progress.json", {"identity": identity, "progress": asdict(progress)})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(beside, final)
    for older in (output / FOLDER).iterdir():
        if older != final:
            shutil.rmtree(older)
    return final


def resume(
    output: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: JSON,
    best: dict[str, torch.Tensor],
) -> Progress:
    """Load the newest checkpoint into `parameters`, `optimizer` and `best`; without one, return a fresh `Progress`.

    Raises:
        UserError: the checkpoint is of another recovery.
    """
    directory = newest(output)
    if directory is None:
        return Progress()
    saved = read_json(directory / "progress.json")
    tensors = load_file(directory / "state.safetensors")
    shapes = {name: tensors[f"parameter {name}"].shape for name in parameters if f"parameter {name}" in tensors}
    if saved["identity"] != identity or shapes != {name: parameter.shape for name, parameter in parameters.items()}:
        raise UserError(f"{directory} is a checkpoint of another recovery. Remove {output} to start afresh.")
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors.pop(f"parameter {name}"))
    for entry, tensor in tensors.items():
        key, _, name = entry.partition(" ")
        if key == "best":
            best[name] = tensor
            continue
        # AdamW keeps its step count on the CPU wherever the parameter is.
        device = "cpu" if tensor.dim() == 0 else parameters[name].device
        optimizer.state[parameters[name]][key] = tensor.to(device)
    return Progress(**saved["progress"])


def remove(output: Path) -> None:
    """Remove all checkpoints: they are no part of the artifact."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)

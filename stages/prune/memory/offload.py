"""A decoder with its layers on disk, one at a time in memory (`prune.offload=layer`): for models larger than memory.

Embeddings, the last norm and the output projection stay in memory. A layer's weights are read when it is needed and
freed afterwards. Whatever runs, scores, cuts or saves a decoder layer by layer works on it, through `resident`.

The results are those of a decoder in memory to the bit. Weights then begin at other addresses, but products with a
dozen tokens or more don't depend on that, and compensation copies the weights that it multiplies. Gradients need all
layers at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import logging

from stages.common.machine import return_freed_memory
from stages.decoders import checkpoint
from stages.decoders.architecture import DTYPES
from stages.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Places = dict[str, tuple[Path, str]]
"""By a parameter's name in its layer: the safetensors file that has it, and its name there."""


class Offloaded:
    """The model in a directory, its layers on the meta device until `resident` holds them in memory.

    Attributes:
        model: the model, which `stages.prune.statistics.layerwise` runs.
    """

    def __init__(self, directory: Path, *, dtype: str, device: str, scratch: Path) -> None:
        """Open `directory`; changed layers are written to `scratch`, an empty directory that the caller owns.

        Raises:
            UserError: a weight is missing, or has another shape than the config describes.
        """
        self.dtype, self.device, self.scratch = DTYPES[dtype], device, scratch
        self.model = _without_layers(directory, dtype, device)
        self.held: set[nn.Module] = set()
        self.written = 0
        decoder: Any = self.model.get_decoder()
        prefix = next(name for name, module in self.model.named_modules() if module is decoder.layers)
        files = _tensor_files(directory)
        self.places: dict[nn.Module, Places] = {
            layer: _places(directory, layer, f"{prefix}.{index}", files) for index, layer in enumerate(decoder.layers)
        }

    @contextmanager
    def resident(self, index: int) -> Iterator[None]:
        """Hold the weights of layer `index` in memory; changes that the block makes to them are kept."""
        layer = self.model.get_decoder().layers[index]  # type: ignore[union-attr,index]
        if layer in self.held:
            yield
            return
        self.held.add(layer)
        try:
            self._read(layer)
            before = _state(layer)
            yield
            if _state(layer) != before:
                self._write(layer)
        finally:
            layer.to("meta")
            self.held.remove(layer)
            return_freed_memory()

    def _read(self, layer: nn.Module) -> None:
        weights: dict[str, Tensor] = {}
        by_file: dict[Path, list[tuple[str, str]]] = defaultdict(list)
        for name, (path, stored) in self.places[layer].items():
            by_file[path].append((name, stored))
        for path, names in by_file.items():
            with safe_open(path, framework="pt") as file:
                for name, stored in names:
                    weights[name] = file.get_tensor(stored).to(self.device, self.dtype, copy=True)
        layer.load_state_dict(weights, assign=True)
        layer.requires_grad_(False)

    def _write(self, layer: nn.Module) -> None:
        weights = {name: parameter.detach().cpu().contiguous() for name, parameter in layer.named_parameters()}
        # A new file each time, so that the old one is there until the new one is whole.
        path = self.scratch / f"layer-{self.written}.safetensors"
        self.written += 1
        save_file(weights, path)
        outdated = {place for place, _ in self.places[layer].values() if place.parent == self.scratch}
        self.places[layer] = {name: (path, name) for name in weights}
        for file in outdated:
            file.unlink()


def _without_layers(directory: Path, dtype: str, device: str) -> PreTrainedModel:
    """Return the model with its layers on the meta device and all else in memory."""
    # Loaded twice: without layers for the weights around them, and on the meta device for the layers without weights.
    config = checkpoint.load_config(directory)
    config.num_hidden_layers = 0
    if getattr(config, "layer_shapes", None):
        config.layer_shapes = []
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers would warn that the weights of the layers are not used
    try:
        outside = checkpoint.load_model(directory, dtype=dtype, device=device, config=config)
    finally:
        logging.set_verbosity(verbosity)
    with torch.device("meta"):
        model: PreTrainedModel = type(outside)(checkpoint.load_config(directory))
    for whole, part in ((model, outside), (model.get_decoder(), outside.get_decoder())):
        for name, child in part.named_children():
            if child is not outside.get_decoder() and name != "layers":
                setattr(whole, name, child)
    model.config.dtype = DTYPES[dtype]
    return model.eval()


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Return the file of every tensor in a model directory."""
    files: dict[str, Path] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    return files


def _places(directory: Path, layer: nn.Module, prefix: str, files: dict[str, Path]) -> Places:
    places = {}
    for name, _ in layer.named_parameters():
        stored = f"{prefix}.{name}"
        if stored not in files:
            raise UserError(f"{directory} is not a whole checkpoint: {stored} is missing. Fetch or build it again.")
        places[name] = (files[stored], stored)
    return places


def _state(layer: nn.Module) -> list[tuple[str, int, int]]:
    """Return a state that differs once a parameter has been replaced or written to."""
    return [(name, id(parameter), parameter._version) for name, parameter in layer.named_parameters()]

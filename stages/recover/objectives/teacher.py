"""A teacher's probabilities at the labelled tokens of a batch: computed on demand, or read from a cache on disk.

The cache has one file for every batch that it has met, named by the batch's content. The file is in a directory named
by the teacher's weights and the options of its answers. So recoveries with other adapters, rates or students share the
cache wherever they draw the same documents. A resumed run finds its own entries. The probabilities that are read equal
those that would be computed, bit for bit. The cache is under `Context.cache` and may be deleted.

Shapes: N labelled tokens, E hidden size.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.common.files import sha256_of_each
from stages.common.sealed import SEAL
from stages.decoders.checkpoint import load_config, load_model, load_tokenizer
from stages.decoders.copies import copy_of
from stages.decoders.holding import STORED
from stages.decoders.logits import Logits
from stages.decoders.packed_attention import hidden_states, use_packed_attention
from stages.decoders.quantised import hold
from stages.errors import UserError
from stages.recover.mapped import load_mapped
from stages.recover.objectives.divergence import Exact, Targets, TopK
from stages.recover.sharding import everywhere, shard_layers
from stages.rows.bounds import sent
from stages.rows.packing import Batch
from stages.stage import Context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


class Teacher:
    """A model that gives its probabilities; it is loaded or copied at the first batch that no cache has."""

    def __init__(
        self,
        source: Path | PreTrainedModel,
        dtype: str,
        context: Context,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        cached: bool = False,
        held: str = STORED,
    ) -> None:
        """Load the teacher, or find its cache.

        Args:
            source: a model directory, or a live model, whose weights are shared where they have the precision `dtype`.
            dtype: the precision in which the teacher computes.
            context: device and cache directory.
            temperature: temperature of the probabilities.
            top_k: number of likeliest tokens that the teacher names, or None for all.
            cached: whether the probabilities are kept on disk; this needs `top_k`.
            held: how the weights are held (`stages.decoders.holding`).
        """
        self._source, self._dtype, self._device = source, dtype, context.device
        self._sharded, self._scratch = context.engine == "fsdp", context.cache
        self._temperature, self._top_k, self._held = temperature, top_k, held
        self._loaded: PreTrainedModel | None = None
        self._cache = self._cache_directory(context.cache / "teacher") if cached else None
        if self._cache is None:
            self._model()

    def targets(self, batch: Batch) -> Targets:
        """Return the teacher's probabilities at the labelled tokens of `batch`."""
        count = self._top_k
        if count is None:
            return self.exact(batch)
        if self._cache is None:
            return TopK.of(self.exact(batch), count)
        path = self._cache / f"{_digest(batch)}.safetensors"
        found = _read(path, self._device)
        # A sharded teacher is run by all workers or by none.
        everyone = everywhere(found is not None) if self._sharded else found is not None
        if found is None or not everyone:
            found = TopK.of(self.exact(batch), count)
            _write(found, path)
        return found

    @torch.no_grad()
    def exact(self, batch: Batch, temperature: float | None = None) -> Exact:
        """Return all of the teacher's probabilities at the labelled tokens, at its own temperature or another."""
        model = self._model()
        hidden_NE = batch.predicting(hidden_states(model, batch))
        return Exact(hidden_NE, model.get_output_embeddings(), Logits.of(model), temperature or self._temperature)

    def _model(self) -> PreTrainedModel:
        if self._loaded is None:
            self._loaded = self._load().requires_grad_(False)
            if self._sharded:
                shard_layers(self._loaded, self._device)
            use_packed_attention(self._loaded)
        return self._loaded

    def _load(self) -> PreTrainedModel:
        if not isinstance(self._source, Path):
            return hold(copy_of(self._source, dtype=self._dtype, shared=True), self._held, self._device)
        if self._sharded:
            return load_mapped(self._source, dtype=self._dtype, scratch=self._scratch)
        return load_model(self._source, dtype=self._dtype, device=self._device, held=self._held)

    def _cache_directory(self, root: Path) -> Path:
        """Return the directory of this teacher's answers, named by everything that decides them but the batch."""
        # A teacher as it is stored keeps the names that it had before there were other ways.
        asked = [self._dtype, self._temperature, self._top_k, *([self._held] if self._held != STORED else [])]
        decisive = json.dumps([_digests(self._source), *asked])
        return root / hashlib.sha256(decisive.encode()).hexdigest()[:32]


def check_vocabulary(teacher: Path, student: Path) -> None:
    """Raise unless both models' vocabularies are the same tokens.

    Raises:
        UserError: their sizes differ, or their tokenizers map text to other numbers.
    """
    check_sizes(load_config(teacher), load_config(student))
    try:
        taught_by = load_tokenizer(teacher)
    except UserError:  # no tokenizer beside the teacher's weights, so only sizes can be compared
        return
    if taught_by.get_vocab() != load_tokenizer(student).get_vocab():
        raise UserError(
            "the teacher's tokenizer numbers its tokens differently from the pruned model's: their probabilities can't "
            "be compared. Distil from the model that was pruned, or set recover.objective=cross_entropy."
        )


def check_sizes(teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
    """Raise a `UserError` unless the vocabularies of both configurations have the same size."""
    sizes = [config.get_text_config().vocab_size for config in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the teacher's vocabulary has {sizes[0]:,} tokens and the pruned model's {sizes[1]:,}: their probabilities"
            " can't be compared. Distil from the model that was pruned, or set recover.objective=cross_entropy."
        )


def _digests(source: Path | PreTrainedModel) -> list[str]:
    """Return the SHA-256 of a teacher's configuration and of its files or tensors."""
    if isinstance(source, Path):
        return sha256_of_each([source / "config.json", *sorted(source.glob("*.safetensors"))])
    # As bytes, because numpy has no bfloat16.
    tensors = (tensor.detach().cpu().contiguous().view(-1) for tensor in source.state_dict().values())
    numbers = [hashlib.sha256(tensor.view(torch.uint8).numpy()).hexdigest() for tensor in tensors]
    return [hashlib.sha256(source.config.to_json_string().encode()).hexdigest(), *numbers]


def _digest(batch: Batch) -> str:
    """Return the SHA-256 of a batch: its tokens, the ends of its documents, and its labelled tokens."""
    digest = hashlib.sha256(repr(batch.layout.lengths).encode())
    # Which beginnings are shared decides the rounding, and what is cached equals what would be computed to the bit. So
    # the places of shared tokens count too.
    for tensor in batch.on_host:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, device: str) -> TopK | None:
    """Return the cached probabilities; None where there are none, or they are not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(SEAL)
            tensors = {name: file.get_tensor(name) for name in TopK.__slots__}
    except (OSError, SafetensorError):
        return None
    if written != _seal(tensors):
        return None
    return TopK(**{name: sent(tensor, device) for name, tensor in tensors.items()})


def _seal(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors on the host: of their names, types, shapes and bytes."""
    seal = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        seal.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        # As bytes, because numpy has no bfloat16.
        seal.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return seal.hexdigest()


def _write(targets: TopK, path: Path) -> None:
    """Write `targets` by one rename, so that a reader finds a whole file or none.

    Raises:
        UserError: the file can't be written.
    """
    # Several recoveries may write the same batch at once, each to a name of its own.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    names = TopK.__slots__
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Waits for the device, in the one recovery that fills the cache.
        tensors = {name: getattr(targets, name).cpu().contiguous() for name in names}
        save_file(tensors, beside, {SEAL: _seal(tensors)})
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the teacher's probabilities can't be kept in {path.parent} ({error}). Make room there, set runtime.cache,"
            " or run without: recover.distillation.cache_teacher=false."
        ) from error
    finally:
        beside.unlink(missing_ok=True)

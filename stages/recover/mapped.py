"""Models whose weights stay in their files until they are read, for workers that keep a piece of each (FSDP).

A safetensors file is mapped into memory, not read: what has been read belongs to the system's page cache, which all
workers share, and is no worker's own memory. So an adapter is attached to the whole model, as one process attaches it,
and a worker then copies no more than its pieces. Weights of another precision are cast first, once for all workers, a
tensor at a time, into files that are removed as soon as they are mapped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.common.files import write_json
from stages.decoders.architecture import DTYPES
from stages.decoders.checkpoint import load_model
from stages.decoders.headers import INDEX, numbers_by_precision, read_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_mapped(directory: Path, *, dtype: str, scratch: Path) -> PreTrainedModel:
    """Return the model in `directory` on the processor, in `dtype`, with mapped weights; all workers call this.

    `scratch` is a directory with room for the weights in `dtype`, where they are stored in another precision.

    Raises:
        UserError: as `load_model`.
    """
    stored = numbers_by_precision(read_header(file) for file in sorted(directory.glob("*.safetensors")))
    if set(stored) <= {dtype}:
        return load_model(directory, dtype=dtype)
    with _cast(directory, dtype, scratch) as beside:
        return load_model(beside, dtype=dtype)


@contextmanager
def _cast(directory: Path, dtype: str, scratch: Path) -> Iterator[Path]:
    """Yield a copy of a model directory, with weights in `dtype`, that the leader writes and removes again."""
    leads = torch.distributed.get_rank() == 0
    named: list[str | None] = [None]
    if leads:
        scratch.mkdir(parents=True, exist_ok=True)
        named = [mkdtemp(prefix="cast-", dir=scratch)]
        cast_copy(directory, Path(str(named[0])), dtype)
    # The others wait here for the name.
    torch.distributed.broadcast_object_list(named, src=0)
    beside = Path(str(named[0]))
    try:
        yield beside
        # A file that is mapped can be removed, and not before.
        torch.distributed.barrier()
    finally:
        if leads:
            shutil.rmtree(beside)


def cast_copy(source: Path, target: Path, dtype: str) -> None:
    """Write the model in `source` to `target` with all weights in `dtype`, each to a file of its own."""
    shutil.copyfile(source / "config.json", target / "config.json")
    places: dict[str, str] = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # no dictionary: it has no other way to list its names
                places[name] = f"model-{len(places):05d}.safetensors"
                weight = weights.get_tensor(name).to(DTYPES[dtype])
                save_file({name: weight}, target / places[name], metadata={"format": "pt"})
    write_json(target / INDEX, {"metadata": {}, "weight_map": places})

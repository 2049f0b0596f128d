"""Options of masks. No torch here: a plan reads this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stages.prune.config import Calibration, PruneConfig


@dataclass(kw_only=True, slots=True)
class SparseMLConfig(PruneConfig):
    """Options of unstructured and N:M masks.

    `ratio` is here the share of the targeted weights that is set to zero. No parameter goes, so `ratio` says nothing
    about the model's size. For N:M it is N/M. Options about groups (granularity, allocation, budget, …) have no meaning
    here and are refused.
    """

    method: str = "sparseml"
    algorithm: str = "sparsegpt"
    """The choice of weights: sparsegpt (arXiv 2301.00774; changes the other weights to make up for the zeros), wanda
    (arXiv 2306.11695) or magnitude (the smallest of each matrix; text is read for the calibration loss alone)."""
    mask_structure: str = "0:0"
    """"0:0": zeros anywhere; "N:M": N zeros in every M consecutive inputs of every output, "2:4" for sparse tensor
    cores."""
    recipe: Any = None
    """An llm-compressor recipe in place of algorithm, mask_structure, targets, block_size and dampening: a YAML file or
    the name of one in `stages/prune/sparse/recipes`. The plan reads the file, so that its content enters the key."""
    targets: list[str] = field(default_factory=lambda: ["re:.*_proj$"])
    """Linear layers of the decoder to mask: full names, class names, or "re:" and a regular expression of names.
    Embeddings and the output head are out of reach."""
    block_size: int = 128
    """SparseGPT: number of inputs whose mask is chosen together; a multiple of M."""
    dampening: float = 0.01
    """SparseGPT: added to the Hessian's diagonal, as a share of its mean; a higher share is steadier and less exact."""
    calibration: Calibration = field(default_factory=lambda: Calibration(sequences=64, length=256))

"""The gradient of a weight as the factors of a product, which is taken block by block.

A linear map y = x Wᵀ has ∂L/∂W = Σ (∂L/∂y)ᵀ x over tokens, and an embedding adds ∂L/∂y to the rows of its tokens. So
the weights themselves need no gradient. The inputs of a map and the gradients of its outputs determine it. Any block of
rows, of all sequences together or of each by itself, is one small product.

Shape legend: B sequences, T tokens, R rows (outputs) and C columns (inputs) of a weight, S sequences kept apart (B, or
1 for all of them together), N tokens of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]
"""The inputs of a map, and the gradient of its outputs."""


@dataclass(slots=True)
class Gradient:
    """The gradient of one weight, made block by block.

    The loss is the mean over all sequences, so the gradients of single sequences add up to the whole.

    Attributes:
        linear: one entry a use in a linear map: the input [b, T, C], and the gradient of the output [b, T, R].
        embedding: one entry a use as a table: token ids [b, T], and the gradient of the rows looked up [b, T, C].
        vector_BR: the gradient of a vector (the weight of a norm), sequence by sequence.
    """

    linear: list[Factors] = field(default_factory=list)
    embedding: list[Factors] = field(default_factory=list)
    vector_BR: Tensor | None = None

    def blocks(self, weight: Tensor, size: int, *, apart: bool) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Yield rows of the weight and their gradient [S, rows, C] in float32, about `size` numbers at a time.

        S is B where the sequences are to be kept `apart`. A weight that is used only as a table comes by the indices of
        its rows. Rows that no token looked up are left out, because their gradient is zero.
        """
        if self.vector_BR is not None:
            # A vector is a matrix of one column here.
            vector_SR = self.vector_BR.float() if apart else self.vector_BR.float().sum(0, keepdim=True)
            yield slice(0, len(weight)), vector_SR[..., None]
            return
        sequences = sum(len(given) for given, _ in self.linear or self.embedding) if apart else 1
        step = max(1, size // (sequences * weight.shape[1]))
        table = _joined(self.embedding, apart) if self.embedding else None
        if not self.linear:
            assert table is not None
            for indices in torch.split(torch.unique(table[0]), step):
                yield indices, _looked_up(table, indices)
            return
        linear = _joined(self.linear, apart)
        for start in range(0, len(weight), step):
            rows = slice(start, min(start + step, len(weight)))
            gradient = _product(linear, rows)
            if table is not None:
                gradient += _looked_up(table, torch.arange(rows.start, rows.stop, device=weight.device))
            yield rows, gradient


def _joined(uses: Sequence[Factors], apart: bool) -> Factors:
    """Return the factors of all sequences, [S, N, …]."""
    given, gradient = (torch.cat(side) if len(side) > 1 else side[0] for side in zip(*uses, strict=True))
    if not apart:
        given, gradient = given.flatten(0, 1)[None], gradient.flatten(0, 1)[None]
    return given, gradient


def _product(factors: Factors, rows: slice) -> Tensor:
    """Return the rows of a linear map's gradient, [S, rows, C]."""
    x_SNC, dy_SNR = factors
    return torch.bmm(dy_SNR[..., rows].to(x_SNC.dtype).transpose(1, 2), x_SNC).float()


def _looked_up(factors: Factors, rows: Tensor) -> Tensor:
    """Return the given rows, ascending, of a table's gradient [S, rows, C]: sums over the places of each token."""
    ids_SN, gradient_SNC = factors
    # `searchsorted` places every token, those outside `rows` too: the comparison below keeps only true matches.
    place_SN = torch.searchsorted(rows, ids_SN).clamp(max=len(rows) - 1)
    sequence, token = (rows[place_SN] == ids_SN).nonzero(as_tuple=True)
    sums = gradient_SNC.new_zeros(len(ids_SN), len(rows), gradient_SNC.shape[-1], dtype=torch.float32)
    found = (sequence, place_SN[sequence, token])
    return sums.index_put_(found, gradient_SNC[sequence, token].float(), accumulate=True)

"""Keys and values of the sequences that a generator writes, and attention over them.

`cache_for` chooses between two kinds: `EndToEnd` where the device has a kernel for variable lengths, and `Masked`
elsewhere. On CUDA the shapes that attention sees stay as they are from step to step, or grow in large steps, and no
step makes the host wait.

Shapes: B sequences, S places of each, T nodes of a pass, N of them that are kept, Q query and K key/value heads,
G = Q / K, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.decoders.variable_length import EVERYTHING, Kernel, kernel_for, precision
from stages.inference.decoder import Attend
from stages.inference.prefix_tree import Tree
from stages.rows.bounds import Bounds, on_device, sent

GRAIN = {"cpu": 1}
"""Places by which what is read of a masked cache grows. A processor takes a new length as it takes any other."""


def cache_for(
    device: torch.device, dtype: torch.dtype, head_size: int, lengths: Sequence[int], new_tokens: int
) -> Cache:
    """Return an empty cache for prompts of these lengths, each with room for `new_tokens` more."""
    kernel = kernel_for(device, dtype, head_size)
    return EndToEnd(device, lengths, new_tokens, kernel) if kernel else Masked(device, lengths, new_tokens)


class Cache(ABC):
    """Keys and values of a batch, written in place into one allocation a layer. A prompt fills a row's first places."""

    heads_first: bool
    """Whether the places of a head lie side by side [B, K, S, D], or the heads of a place [B, S, K, D]."""

    def __init__(self, device: torch.device, lengths: Sequence[int], size: int) -> None:
        self.device = device
        self.count = len(lengths)
        self.size = size
        self.positions_B = on_device(lengths, device, torch.long)
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def filled_by(self, row: Tree, attend: Attend) -> Attend:
        """Return an `attend` that also keeps the keys and values of the sequences in `row`."""
        paths = row.paths.items()
        nodes_N = on_device([node for _, path in paths for node in path], self.device, torch.long)
        rows_N = on_device([index for index, path in paths for _ in path], self.device, torch.long)
        places_N = on_device([place for _, path in paths for place in range(len(path))], self.device, torch.long)

        def keep(layer: int, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, scaling: float) -> Tensor:
            for kept_BKSD, x_TKD in zip(self._by_head(layer, k_TKD, v_TKD), (k_TKD, v_TKD), strict=True):
                kept_BKSD[rows_N, :, places_N] = x_TKD[nodes_N].to(kept_BKSD.dtype)
            return attend(layer, q_TQD, k_TKD, v_TKD, scaling)

        return keep

    def next_positions(self) -> Tensor:
        """Open the next place for every sequence, and return the positions of the tokens that go there, [B]."""
        # A position counts the tokens of its own sequence, not the places of its row.
        opened_B, self.positions_B = self.positions_B, self.positions_B + 1
        return opened_B

    @abstractmethod
    def attend(self, layer: int, q_BQD: Tensor, k_BKD: Tensor, v_BKD: Tensor, scaling: float) -> Tensor:
        """Keep the key and value of one token a sequence, and return what attention gives the token, [B, Q, D]."""

    def keep(self, rows: Sequence[int]) -> Tensor:
        """Continue with these sequences alone, and return their numbers on the device, [B]."""
        rows_B = on_device(rows, self.device, torch.long)
        self.count = len(rows)
        self.positions_B = self.positions_B[rows_B]
        # Layer by layer, so that only one is in memory twice.
        for layer, (keys, values) in self.pairs.items():
            self.pairs[layer] = (keys[rows_B], values[rows_B])
        return rows_B

    def _by_head(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, each [B, K, S, D]; the first call allocates them."""
        if layer not in self.pairs:
            self.pairs[layer] = (self._allocated(k_TKD), self._allocated(v_TKD))
        keys, values = self.pairs[layer]
        return (keys, values) if self.heads_first else (keys.transpose(1, 2), values.transpose(1, 2))

    def _allocated(self, like_TKD: Tensor) -> Tensor:
        _, heads, head_size = like_TKD.shape
        middle = (heads, self.size) if self.heads_first else (self.size, heads)
        # Zeros, not empty memory: a masked place's value is multiplied by a weight of 0, and 0 × NaN is NaN. Under
        # autocast rotated keys are in float32, and attention casts them.
        dtype = precision(self.device, like_TKD.dtype)
        return like_TKD.new_zeros((self.count, *middle, head_size), dtype=dtype)


class Masked(Cache):
    """A cache for attention that reads as many places of every row, under a mask.

    Written tokens follow from one place on for all rows, after the longest prompt.
    """

    # Attention reads a head's places one after the other.
    heads_first = True

    def __init__(self, device: torch.device, lengths: Sequence[int], new_tokens: int) -> None:
        self.grain = GRAIN.get(device.type, 256)
        self.stop = max(lengths)
        super().__init__(device, lengths, self._rounded(self.stop + new_tokens))
        sees_BS = torch.zeros(self.count, self.size, dtype=torch.bool)
        for row, length in enumerate(lengths):
            sees_BS[row, :length] = True
        self.sees_BS = sent(sees_BS, device)

    def next_positions(self) -> Tensor:
        """Open the next place, the same in all rows."""
        self.sees_BS[:, self.stop] = True
        self.stop += 1
        return super().next_positions()

    def attend(self, layer: int, q_BQD: Tensor, k_BKD: Tensor, v_BKD: Tensor, scaling: float) -> Tensor:
        """Attend to all places up to the newest, and to no masked one."""
        keys_BKSD, values_BKSD = self._by_head(layer, k_BKD, v_BKD)
        keys_BKSD[:, :, self.stop - 1], values_BKSD[:, :, self.stop - 1] = k_BKD, v_BKD
        reach = self._rounded(self.stop)
        # The query heads of a group take the place of queries, so keys and values are read once for all of them.
        out_BKGD = F.scaled_dot_product_attention(
            torch.unflatten(q_BQD, 1, (k_BKD.shape[1], -1)),
            keys_BKSD[:, :, :reach],
            values_BKSD[:, :, :reach],
            attn_mask=self.sees_BS[:, None, None, :reach],
            scale=scaling,
        )
        return out_BKGD.flatten(1, 2)

    def keep(self, rows: Sequence[int]) -> Tensor:
        """Continue with these sequences and their masks."""
        rows_B = super().keep(rows)
        self.sees_BS = self.sees_BS[rows_B]
        return rows_B

    def _rounded(self, places: int) -> int:
        return -(-places // self.grain) * self.grain


class EndToEnd(Cache):
    """A cache whose rows are sequences of variable length for a kernel, so that no mask is needed.

    Written tokens follow each row's own prompt. The free places behind them are the keys of sequences without a query.
    """

    heads_first = False

    def __init__(self, device: torch.device, lengths: Sequence[int], new_tokens: int, kernel: Kernel) -> None:
        super().__init__(device, lengths, max(lengths) + new_tokens)
        self.kernel = kernel
        self._lay_out()

    def next_positions(self) -> Tensor:
        """Open the next place of every row, each behind its own tokens."""
        self.opened_B = super().next_positions()
        self.ends_N[1::2] += 1
        return self.opened_B

    def attend(self, layer: int, q_BQD: Tensor, k_BKD: Tensor, v_BKD: Tensor, scaling: float) -> Tensor:
        """Attend to the places of every row that hold a token, in one call."""
        for kept_BKSD, x_BKD in zip(self._by_head(layer, k_BKD, v_BKD), (k_BKD, v_BKD), strict=True):
            kept_BKSD[self.rows_B, :, self.opened_B] = x_BKD.to(kept_BKSD.dtype)
        # The query heads of a group are queries of one head, so keys and values are read once for all of them.
        q_BGKD = torch.unflatten(q_BQD, 1, (k_BKD.shape[1], -1)).transpose(1, 2)
        group = q_BGKD.shape[1]
        keys, values = (kept_BSKD.flatten(0, 1) for kept_BSKD in self.pairs[layer])
        out = self.kernel(q_BGKD.flatten(0, 1), keys, values, self._bounds(group), EVERYTHING, scaling)
        return torch.unflatten(out, 0, (-1, group)).transpose(1, 2).flatten(1, 2)

    def keep(self, rows: Sequence[int]) -> Tensor:
        """Continue with these sequences, laid out anew."""
        rows_B = super().keep(rows)
        self._lay_out()
        return rows_B

    def _lay_out(self) -> None:
        """Number the rows, and say where the places that are read end in each, and where the row does."""
        self.rows_B = torch.arange(self.count, device=self.device)
        starts_B = self.rows_B * self.size
        ends_B2 = torch.stack([starts_B + self.positions_B, starts_B + self.size], dim=1)
        self.ends_N = F.pad(ends_B2.flatten(), (1, 0)).int()
        self.groups: dict[int, Bounds] = {}

    def _bounds(self, group: int) -> Bounds:
        """Return the boundaries for so many query heads a group; their keys' grow with every step."""
        if group not in self.groups:
            # All queries of a row are for the places that are read.
            queries_B2 = ((self.rows_B + 1) * group)[:, None].expand(-1, 2)
            queries_N = F.pad(queries_B2.flatten(), (1, 0)).int()
            self.groups[group] = Bounds(queries_N, self.ends_N, group, self.size)
        return self.groups[group]

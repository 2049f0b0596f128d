"""Sequences that begin alike, laid out so that what they share is computed once.

A tree's nodes are tokens in preorder, its branches are sequences. In that order the descendants of node j are the
nodes j+1 … end(j)−1, so "i may attend to j" is j ≤ i < end(j), and one number a node is the whole attention mask.
Every choice of a question, and every question with the same examples before it, then shares its context.

Shapes: B rows of a batch, L nodes of its longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Ids = list[int]
PAIR_COST = 1 / 3000
"""Cost of one attended pair of tokens over the cost of one token's matrix products: about 1 / (6 × hidden size)."""


@dataclass(slots=True)
class Tree:
    """Token sequences as a prefix tree in preorder.

    Attributes:
        tokens: id of each node.
        depths: position of each node in its sequences.
        ends: one past the last descendant of each node.
        paths: for each sequence, by its index in what was planted, the nodes it passes through.
    """

    tokens: Ids = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether this is one sequence and no more, so that plain causal attention is its own."""
        return self.depths[-1] + 1 == len(self)

    def grow(self, index: int, sequence: Ids, stem: list[int]) -> None:
        """Add sequence `index`, which passes through the nodes `stem` and then leaves the tree's last branch."""
        size = len(self) + len(sequence) - len(stem)
        self.paths[index] = stem + list(range(len(self), size))
        self.tokens += sequence[len(stem) :]
        self.depths += range(len(stem), len(sequence))
        self.ends += [size] * (size - len(self.ends))
        for node in stem:
            self.ends[node] = size


def plant(sequences: Sequence[Ids], *, largest: int, share: bool = True) -> list[Tree]:
    """Return trees that hold all `sequences`, each of at most `largest` nodes, or twice its last sequence.

    In sorted order, a sequence joins the tree of the one before it when the tokens it saves cost more than the
    attention that a longer row adds. With `share` off every sequence is a tree of its own.
    """
    trees: list[Tree] = []
    path: list[int] = []
    previous: Ids = []
    for index in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[index]
        shared = common_prefix(previous, sequence)
        if not (share and trees and _joins(len(trees[-1]), len(sequence), shared, largest)):
            trees.append(Tree())
            shared = 0
        trees[-1].grow(index, sequence, path[:shared])
        path, previous = trees[-1].paths[index], sequence
    return trees


def common_prefix(one: Ids, other: Ids) -> int:
    """Return how many leading ids two sequences have in common."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def _joins(size: int, length: int, shared: int, largest: int) -> bool:
    joined = size + length - shared
    return joined <= max(largest, 2 * length) and shared >= PAIR_COST * (joined**2 - size**2 - length**2)


def batches(trees: Sequence[Tree], *, tokens: int, pack: bool = True) -> Iterator[list[Tree]]:
    """Yield rows of about equal length, each batch at most `tokens` nodes with padding, or one row.

    A row is as long as the longest tree left, and with `pack` on smaller trees stand side by side in it, which costs no
    more than the padding would. Longest first, so that memory runs out at once or never.
    """
    left = sorted(trees, key=len, reverse=True)
    while left:
        length = len(left[0])
        rows: list[list[Tree]] = []
        room: list[int] = []
        later: list[Tree] = []
        for tree in left:
            row = next((row for row, free in enumerate(room) if pack and len(tree) <= free), len(rows))
            if row == len(rows) and rows and (row + 1) * length > tokens:
                later.append(tree)
                continue
            if row == len(rows):
                rows.append([])
                room.append(length)
            rows[row].append(tree)
            room[row] -= len(tree)
        yield [side_by_side(row) for row in rows]
        left = later


def side_by_side(trees: Sequence[Tree]) -> Tree:
    """Return one row of several trees, none of which sees another."""
    row = Tree()
    for tree in trees:
        offset = len(row)
        row.tokens += tree.tokens
        row.depths += tree.depths
        row.ends += [end + offset for end in tree.ends]
        row.paths |= {index: [node + offset for node in path] for index, path in tree.paths.items()}
    return row


def tensors(batch: Sequence[Tree], device: str) -> dict[str, Tensor]:
    """Return a decoder's keyword arguments for the rows `batch`: ids, and unless all are chains positions and a mask.

    Rows are padded on the right. A padding node attends to itself only, and nothing attends to it.
    """
    length = max(map(len, batch))
    ids_BL = _padded([tree.tokens for tree in batch], length).to(device)
    if all(tree.is_chain for tree in batch):
        return {"input_ids": ids_BL}
    ends_BL = torch.arange(1, length + 1).repeat(len(batch), 1)
    for row, tree in enumerate(batch):
        ends_BL[row, : len(tree)] = torch.tensor(tree.ends)
    node_L = torch.arange(length, device=device)
    sees_BLL = (node_L <= node_L[:, None]) & (node_L[:, None] < ends_BL.to(device)[:, None])
    depths_BL = _padded([tree.depths for tree in batch], length).to(device)
    return {"input_ids": ids_BL, "position_ids": depths_BL, "attention_mask": sees_BLL[:, None]}


def _padded(rows: Sequence[list[int]], length: int) -> Tensor:
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])

"""Prefix trees of sequences that begin alike, laid out so that what they share is computed once.

A tree's nodes are tokens in preorder, and its branches are sequences. In preorder the descendants of node j are the
nodes j+1 … end(j)−1. So "i may attend to j" is j ≤ i < end(j), and one number a node is the whole attention mask. All
choices of a question share its context, and so do all questions with the same examples before them.

Shapes: L nodes of a tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.rows.bounds import on_device

Ids = list[int]
PAIR_COST = 1 / 2000
"""Cost of one attended pair of tokens, in units of one token's matrix products: about 1 / (3 × hidden size)."""


@dataclass(slots=True)
class Tree:
    """Token sequences as a prefix tree in preorder.

    Attributes:
        tokens: id of each node.
        depths: position of each node in its sequences.
        ends: one past the last descendant of each node.
        paths: for each sequence, by its index in what was planted, the nodes that it passes through.
    """

    tokens: Ids = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether the tree is a single sequence, for which plain causal attention is right."""
        return self.depths[-1] + 1 == len(self)

    def grow(self, index: int, sequence: Ids, stem: list[int]) -> None:
        """Add sequence `index`, which passes through the nodes `stem` and then leaves the tree's last branch."""
        size = len(self) + len(sequence) - len(stem)
        self.paths[index] = stem + list(range(len(self), size))
        self.tokens += sequence[len(stem) :]
        self.depths += range(len(stem), len(sequence))
        self.ends += [size] * (size - len(self.ends))
        # The stem's nodes have a new last descendant.
        for node in stem:
            self.ends[node] = size


def plant(sequences: Sequence[Ids], *, largest: int, share: bool = True) -> list[Tree]:
    """Return trees that hold all `sequences`. Each has at most `largest` nodes, or twice its last sequence.

    In sorted order, a sequence joins the tree of the sequence before it where the tokens it saves cost more than the
    attention that a longer row adds. With `share` off, every sequence is a tree of its own.
    """
    trees: list[Tree] = []
    path: list[int] = []
    previous: Ids = []
    # In sorted order, sequences with a common beginning follow one another.
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
    # Attention's work grows with the square of a row's length.
    return joined <= max(largest, 2 * length) and shared >= PAIR_COST * (joined**2 - size**2 - length**2)


def passes(trees: Sequence[Tree], *, tokens: int, segment: int) -> Iterator[list[Tree]]:
    """Yield what goes through the model at once: segments of at most `tokens` nodes together, or a single segment.

    A segment is one tree, or several small trees side by side with at most `segment` nodes together. Attention over
    nodes that do not see each other costs less than one more call. The longest come first, so that memory runs out at
    once or never.
    """
    batch: list[Tree] = []
    for piece in _segments(trees, segment):
        if batch and sum(map(len, batch)) + len(piece) > tokens:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _segments(trees: Sequence[Tree], segment: int) -> list[Tree]:
    found: list[list[Tree]] = []
    room = 0
    # Longest first: a long tree opens a segment, and smaller ones fill it.
    for tree in sorted(trees, key=len, reverse=True):
        if len(tree) > room:
            found.append([])
            room = max(segment, len(tree))
        found[-1].append(tree)
        room -= len(tree)
    return [side_by_side(group) for group in found]


def side_by_side(trees: Sequence[Tree]) -> Tree:
    """Return one row of several trees. No tree sees another."""
    row = Tree()
    for tree in trees:
        offset = len(row)
        row.tokens += tree.tokens
        row.depths += tree.depths
        row.ends += [end + offset for end in tree.ends]
        row.paths |= {index: [node + offset for node in path] for index, path in tree.paths.items()}
    return row


def branches(row: Tree) -> tuple[tuple[int, ...], tuple[int, ...], Ids]:
    """Return the branches of trees side by side, in the order of their nodes: what each sequence adds to its tree.

    For each branch that is the number of its own nodes, and the number of nodes from the root to its end. With the
    latter come those nodes themselves, of one branch after another. Within a branch attention is causal: its last own
    node sees all of them.
    """
    own, reach, nodes = [], [], []
    size = 0
    for path in row.paths.values():
        # A sequence grows at the end of the row, so its last node tells how many it added: none if it was there before.
        added = path[-1] + 1 - size
        if added > 0:
            own.append(added)
            reach.append(len(path))
            nodes += path
            size += added
    return tuple(own), tuple(reach), nodes


def tensors(tree: Tree, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Return the ids and the positions of the nodes, each [L]."""
    return on_device(tree.tokens, device, torch.long), on_device(tree.depths, device, torch.long)


def mask(tree: Tree, device: str | torch.device) -> Tensor:
    """Return which nodes each node attends to, [L, L]: itself and the nodes before it in its own sequences."""
    node_L = torch.arange(len(tree), device=device)
    ends_L = on_device(tree.ends, device, torch.long)
    return (node_L <= node_L[:, None]) & (node_L[:, None] < ends_L)

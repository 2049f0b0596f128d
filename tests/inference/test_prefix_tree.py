"""Shared beginnings: what a tree of sequences shows to attention is what each sequence alone would."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.inference.prefix_tree import Tree, mask, passes, plant

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=12)


@given(SEQUENCES, st.sampled_from([1, 8, 1000]), st.booleans())
def test_every_sequence_sees_itself_and_nothing_else(sequences: list[list[int]], largest: int, share: bool) -> None:
    trees = plant(sequences, largest=largest, share=share)
    planted = [index for tree in trees for index in tree.paths]
    assert sorted(planted) == list(range(len(sequences)))
    for tree in trees:
        sees = mask(tree, "cpu")
        for index, path in tree.paths.items():
            assert [tree.tokens[node] for node in path] == sequences[index]
            assert [tree.depths[node] for node in path] == list(range(len(path)))
            for depth, node in enumerate(path):
                assert sees[node].nonzero().flatten().tolist() == path[: depth + 1]


@given(SEQUENCES, st.integers(1, 20), st.integers(1, 20))
def test_passes_hold_every_sequence_once_within_their_tokens(
    sequences: list[list[int]], tokens: int, segment: int
) -> None:
    trees = plant(sequences, largest=1000)
    found = list(passes(trees, tokens=tokens, segment=segment))
    pieces = [piece for batch in found for piece in batch]
    assert sum(map(len, pieces)) == sum(map(len, trees))
    for batch in found:
        assert len(batch) == 1 or sum(map(len, batch)) <= tokens
    longest = max(map(len, trees))
    assert all(len(piece) <= max(segment, longest) for piece in pieces)
    assert {index: ids for piece in pieces for index, ids in spelled(piece).items()} == dict(enumerate(sequences))


def spelled(row: Tree) -> dict[int, list[int]]:
    """Read each sequence of a row back, by the nodes its last one sees."""
    sees = mask(row, "cpu")
    seen = {index: sees[path[-1]].nonzero().flatten().tolist() for index, path in row.paths.items()}
    return {index: [row.tokens[node] for node in nodes] for index, nodes in seen.items()}


def test_small_trees_share_a_segment() -> None:
    sequences = [[1] * 10, *([number] * 3 for number in range(2, 8))]
    (batch,) = passes(plant(sequences, largest=1000), tokens=30, segment=9)
    assert [len(piece) for piece in batch] == [10, 9, 9]


@pytest.mark.parametrize(
    ("sequences", "nodes"),
    [
        ([[1, 2, 3], [1, 2, 3]], 3),
        ([[1, 2, 3, 4], [1, 2, 3], [1, 2, 5]], 5),
        ([[9, 9, 9, *range(20)], [9, 9, 9, *range(20, 40)]], 43),
    ],
)
def test_what_is_shared_is_laid_out_once(sequences: list[list[int]], nodes: int) -> None:
    assert [len(tree) for tree in plant(sequences, largest=1000)] == [nodes]


def test_a_chain_needs_no_mask() -> None:
    (tree,) = plant([[1, 2], [1, 2, 3]], largest=9)
    assert tree.is_chain
    assert torch.equal(mask(tree, "cpu"), torch.ones(3, 3, dtype=torch.bool).tril())


def test_unrelated_sequences_do_not_grow_one_long_row() -> None:
    sequences = [[1, number, *range(100)] for number in range(2, 40)]
    assert max(map(len, plant(sequences, largest=10_000))) < 400

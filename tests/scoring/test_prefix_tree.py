"""Shared beginnings: what a tree of sequences shows to attention is what each sequence alone would."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.scoring.prefix_tree import Tree, batches, plant, tensors

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=12)


@given(SEQUENCES, st.sampled_from([1, 8, 1000]), st.booleans())
def test_every_sequence_sees_itself_and_nothing_else(sequences: list[list[int]], largest: int, share: bool) -> None:
    trees = plant(sequences, largest=largest, share=share)
    planted = [index for tree in trees for index in tree.paths]
    assert sorted(planted) == list(range(len(sequences)))
    for tree in trees:
        mask = tensors([tree, tree], "cpu").get("attention_mask")
        for index, path in tree.paths.items():
            assert [tree.tokens[node] for node in path] == sequences[index]
            assert [tree.depths[node] for node in path] == list(range(len(path)))
            for depth, node in enumerate(path):
                seen = range(node + 1) if mask is None else mask[1, 0, node].nonzero().flatten().tolist()
                assert list(seen) == path[: depth + 1]


@given(SEQUENCES, st.integers(1, 20), st.booleans())
def test_batches_hold_every_sequence_once_within_their_tokens(
    sequences: list[list[int]], tokens: int, pack: bool
) -> None:
    trees = plant(sequences, largest=1000)
    found = list(batches(trees, tokens=tokens, pack=pack))
    rows = [row for batch in found for row in batch]
    assert sum(map(len, rows)) == sum(map(len, trees))
    assert pack or len(rows) == len(trees)
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= tokens
    assert {index: ids for row in rows for index, ids in spelled(row).items()} == dict(enumerate(sequences))


def spelled(row: Tree) -> dict[int, list[int]]:
    """Read each sequence of a row back, by the nodes its last one sees."""
    mask = tensors([row, row], "cpu").get("attention_mask")
    seen = {i: range(p[-1] + 1) if mask is None else mask[0, 0, p[-1]].nonzero()[:, 0] for i, p in row.paths.items()}
    return {index: [row.tokens[int(node)] for node in nodes] for index, nodes in seen.items()}


def test_small_trees_fill_the_row_that_a_long_one_needs() -> None:
    sequences = [[1] * 10, *([number] * 3 for number in range(2, 8))]
    (batch,) = batches(plant(sequences, largest=1000), tokens=30)
    assert sorted(map(len, batch)) == [9, 9, 10]


def test_padding_sees_itself_alone_and_is_seen_by_nothing() -> None:
    short, long = plant([[1, 2], [1, 3]], largest=9)[0], plant([[4, 5, 6, 7], [4, 5, 8]], largest=9)[0]
    mask = tensors([long, short], "cpu")["attention_mask"][1, 0]
    assert torch.equal(mask[3:], torch.eye(5, dtype=torch.bool)[3:])
    assert torch.equal(mask[:, 3:], torch.eye(5, dtype=torch.bool)[:, 3:])


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
    assert tensors([tree], "cpu").keys() == {"input_ids"}


def test_unrelated_sequences_do_not_grow_one_long_row() -> None:
    sequences = [[1, number, *range(100)] for number in range(2, 40)]
    assert max(map(len, plant(sequences, largest=10_000))) < 400

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning import keys
from stages.common.sealed import digest


@dataclass
class Inner:
    rank: int = 4


@dataclass
class Outer:
    inner: Inner
    alpha: float = 16.0
    names: tuple[str, ...] = ("a",)


class Colour(Enum):
    red = 1


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(leaves, lambda t: st.lists(t) | st.dictionaries(st.text(), t), max_leaves=10)


@given(st.dictionaries(st.text(), trees))
def test_a_key_does_not_depend_on_the_order_of_fields(value: dict[str, object]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert digest(keys.canonical(value)) == digest(keys.canonical(backwards))


def test_dataclasses_enums_and_tuples_become_json() -> None:
    assert keys.canonical(Outer(Inner(8))) == {"inner": {"rank": 8}, "alpha": 16.0, "names": ["a"]}
    assert keys.canonical([Colour.red]) == ["red"]


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, object(), b"x", {"a": {1: 2}}])
def test_what_has_no_canonical_form_raises_and_says_where(value: object) -> None:
    with pytest.raises(TypeError, match="config"):
        keys.canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_raise(value: float) -> None:
    with pytest.raises(ValueError, match=r"config\.x"):
        keys.canonical({"x": value})


def test_every_part_of_the_payload_changes_the_key() -> None:
    base = digest(keys.payload("prune", 1, Inner(4), {"model": "k"}))
    others = [
        keys.payload("recover", 1, Inner(4), {"model": "k"}),
        keys.payload("prune", 2, Inner(4), {"model": "k"}),
        keys.payload("prune", 1, Inner(5), {"model": "k"}),
        keys.payload("prune", 1, Inner(4), {"model": "l"}),
        keys.payload("prune", 1, Inner(4), {"dense": "k"}),
    ]
    assert len({base, *map(digest, others)}) == 6


def test_seeds_of_stages_differ_and_stay() -> None:
    assert keys.derive_seed(0, "prune") != keys.derive_seed(0, "recover")
    assert keys.derive_seed(0, "prune") != keys.derive_seed(1, "prune")
    assert keys.derive_seed(0, "prune") == 26_251_154


def test_differences_name_the_fields() -> None:
    ours, theirs = {"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3}}
    assert keys.differences(ours, theirs) == {"a.c": (2, 3), "d": (None, None)}

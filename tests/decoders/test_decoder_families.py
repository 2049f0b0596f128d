"""A family is one record; what has to stand elsewhere agrees with it."""

from __future__ import annotations

import pytest

from helpers.decoders import KINDS
from stages.decoders.architecture import PRUNED_MODELS
from stages.decoders.registry import FAMILIES, PRUNED_PREFIX


def test_every_family_has_its_class_for_differing_layers_and_no_other_has_one() -> None:
    assert PRUNED_MODELS.keys() == {PRUNED_PREFIX + family for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_that_travels_in_checkpoints_removes_the_norms_that_the_record_names(family: str) -> None:
    travels = PRUNED_MODELS[PRUNED_PREFIX + family]
    assert travels.attention_norms == FAMILIES[family].attention_norms
    assert travels.mlp_norms == FAMILIES[family].mlp_norms


def test_every_family_has_a_tiny_decoder_in_the_tests() -> None:
    assert KINDS.keys() == FAMILIES.keys()

"""Pruning with a model's layers spread over cards; the processor stands in for both cards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.decoders import decoder, saved, token_ids
from stages.errors import UserError
from stages.prune.criteria.registry import CRITERIA
from stages.prune.sparse.config import SparseMLConfig
from stages.prune.stage import run
from stages.stage import Context

CARDS = ("cpu", "cpu")


@pytest.mark.parametrize(
    "options",
    [{"method": "llmpruner"}, {"method": "surgeon", "compensate": "sequential"}, {"method": "2ssp"}],
)
def test_a_spread_model_is_cut_to_the_same_bytes(options: dict[str, Any], tmp_path: Path) -> None:
    source = saved(decoder(tie_word_embeddings=True), tmp_path)
    config = CRITERIA[options["method"]].config(**{"ratio": 0.3, "calibration_ids": token_ids().tolist()} | options)
    for name, cards in (("one", ()), ("spread", CARDS)):
        (tmp_path / name).mkdir()
        run(config, {"model": source}, Context(output=tmp_path / name, cards=cards))
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "spread")]
    assert weights[0] == weights[1]


def test_what_does_not_go_with_cards_is_refused(tmp_path: Path) -> None:
    source, context = saved(decoder(), tmp_path), Context(output=tmp_path / "out", cards=CARDS)
    config = CRITERIA["magnitude"].config(ratio=0.3)
    with pytest.raises(UserError, match=r"prune\.offload=layer.*runtime\.device_map=auto"):
        run(replace(config, offload="layer"), {"model": source}, context)
    with pytest.raises(UserError, match=r"prune=sparseml.*runtime\.device_map=auto"):
        run(SparseMLConfig(ratio=0.5), {"model": source}, context)

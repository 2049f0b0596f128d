"""A loss that is not finite: where, on which rows, and what is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from helpers.tiny_tokenizer import byte_tokenizer
from helpers.toy import config, data_artifact, model_artifact
from stages.common.files import read_jsonl, write_jsonl
from stages.errors import Diverged
from stages.recover.checkpoints import newest
from stages.recover.objectives.registry import OBJECTIVES
from stages.recover.stage import run
from stages.rows.packing import Batch
from stages.stage import Context

CULPRIT = 31


def test_the_step_the_rows_and_the_last_good_checkpoint_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": model_artifact(tmp_path / "base"), "data": data_artifact(tmp_path / "data")}
    train = inputs["data"] / "train.jsonl"
    rows = list(read_jsonl(train))
    rows[CULPRIT - 1]["response"] = "∅" * 5
    write_jsonl(train, rows)
    poison = byte_tokenizer()("∅")["input_ids"][0]
    plain = OBJECTIVES["cross_entropy"]

    def build(*arguments: Any) -> Callable[[Tensor, Batch], Mapping[str, Tensor]]:
        summed = plain.build(*arguments)
        return lambda hidden_TE, batch: {
            name: value * (float("nan") if (batch.labels_N == poison).any() else 1.0)
            for name, value in summed(hidden_TE, batch).items()
        }

    monkeypatch.setitem(OBJECTIVES, "cross_entropy", replace(plain, build=build))
    output = tmp_path / "out"

    # Checkpoints are rare, so what is named was written when the loss was met.
    with pytest.raises(Diverged) as error:
        run(config(), inputs, Context(output=output, cache=tmp_path / "cache"))

    said = str(error.value)
    checkpoint = newest(output)
    assert f"the loss of step {error.value.step} is nan (after {error.value.tokens:,} tokens)" in said
    named = re.search(rf"on lines? ([\d, ]+) of {re.escape(str(train))} \(", said)
    assert named is not None, said
    lines = [int(line) for line in named[1].split(", ")]
    assert CULPRIT in lines
    assert len(lines) <= 5, "those of the micro-batch, not of the step"
    assert f"{lines[0]}: “question" in said
    assert said.endswith(f"Last good checkpoint: {checkpoint}.")
    assert checkpoint is not None
    assert checkpoint.name == f"step-{error.value.step - 1:08d}"

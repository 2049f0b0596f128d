"""`recover.compile`: the same curve from compiled layers, whatever lengths the batches have, and a clear refusal."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from helpers.toy import config, recovered
from stages.common.files import read_jsonl
from stages.errors import UserError
from stages.recover.config import RecoverConfig
from stages.recover.plan import COMPILERS, check_recover

COMPILER = next(filter(None, map(shutil.which, COMPILERS)), None)


def losses(path: Path) -> list[float]:
    rows = list(read_jsonl(path / "history.jsonl"))
    return [row[name] for row in rows for name in ("loss", "validation_loss") if name in row]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, where its graph breaks
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_compiled_layers_give_the_same_curve_from_one_compilation(tmp_path: Path) -> None:
    eager, _ = recovered(tmp_path / "eager", config({"name": "rora"}, tokens=1500))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, _ = recovered(tmp_path / "compiled", config({"name": "rora"}, tokens=1500, compile=True))
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-4)
    assert len(losses(eager)) >= 7
    assert 0 < counted <= 8, "compiled once for the first layer and once for the others, not for every batch"


def test_without_a_compiler_it_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_recover(RecoverConfig())
    with pytest.raises(UserError, match="no-such-compiler"):
        check_recover(RecoverConfig(compile=True))

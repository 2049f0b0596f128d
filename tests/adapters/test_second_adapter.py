"""An adapter brings its sizes: a new one has them on its card, in the report and in the comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from helpers.synthetic import add, everything
from helpers.toy import config, recovered
from pipeline.compare import main
from stages.adapters.registry import ADAPTERS
from stages.adapters.started import StartedConfig
from stages.common.files import read_json
from stages.decoders.card import adapter_sizes

OLDER = Path(__file__).resolve().parents[1] / "golden" / "store" / "artifacts" / "recover"


@dataclass(kw_only=True, slots=True)
class WovenConfig(StartedConfig):
    """Options of the toy: LoRA's, and a size of its own."""

    threads: int = 3
    rank: int = 2
    targets: list[str] = field(default_factory=lambda: ["o_proj"])


TOY = replace(
    ADAPTERS["lora"],
    config=WovenConfig,
    label=lambda settings: f"t{settings.threads}",
    sizes=lambda settings: {"threads": settings.threads},
)


def test_a_new_adapters_sizes_are_on_its_card_in_the_report_and_in_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ADAPTERS, "woven", TOY)
    settings = config({"name": "woven", "threads": 7}, tokens=300)
    output, _ = recovered(tmp_path, settings)
    assert (
        "Adapter `woven` of threads 7, on o_proj, merged into the weights" in (output / "model/README.md").read_text()
    )

    store = tmp_path / "artifacts"
    told = {"recover": {"adapter": asdict(settings.adapter)}}
    inputs = everything(tmp_path / "inputs") | {"recover": output}
    add(store, 1, inputs, adapter="woven", configuration=told)
    (report,) = (store / "report").glob("*/report.md")
    assert "adapter=woven (threads 7)" in report.read_text()
    main([f"artifact_root={store}", f"output={tmp_path / 'compare.html'}"])
    assert "woven t7" in capsys.readouterr().out


def test_recoveries_of_earlier_versions_keep_their_sizes() -> None:
    adapters = [read_json(path)["adapter"] for path in sorted(OLDER.glob("*/recovery.json"))]
    said = {adapter["name"]: adapter_sizes(adapter) for adapter in adapters}
    assert said["rora"].startswith("rank 2, alpha 16, scaling 11.3")
    assert said["parallel"] == "bottleneck 2, scaling 1"

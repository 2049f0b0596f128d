from __future__ import annotations

import json

import pytest

from benchmarks.sharing import SETTINGS, main


def test_every_setting_is_measured_beside_every_load(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--loads", "0", "--seconds", "0.01", "--rounds", "1"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["tokens_per_second"]["0"]) == set(SETTINGS)
    assert found["shares"]["0"]["all"] == 1.0
    assert all(rate > 0 for rate in found["tokens_per_second"]["0"].values())

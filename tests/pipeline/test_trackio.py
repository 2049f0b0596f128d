"""`tracker=trackio`: the curves in a local dashboard."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.follower import ID, PRUNED, SUBJECT, follower, point
from helpers.serving import counting
from pipeline.tracking.registry import open_tracker
from pipeline.tracking.tracker import TrackerConfig
from stages.errors import UserError

needs_trackio = pytest.mark.skipif(
    importlib.util.find_spec("trackio") is None, reason="pip install -e '.[trackio]' brings trackio"
)
NAME = f"rora-r16-tiny-{ID[:8]}"


def rows(directory: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """Return what trackio's own file holds: the run, the step and the figures of each entry, in order."""
    (file,) = (directory / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        found = database.execute("select run_name, step, metrics from metrics order by step, id").fetchall()
    return [(name, step, json.loads(metrics)) for name, step, metrics in found]


@needs_trackio
def test_a_curve_is_in_one_local_file_and_a_resumed_or_replayed_run_repeats_nothing(tmp_path: Path) -> None:
    for count, fails in ((4, True), (9, False), (9, False)):
        with follower({}, name="trackio", directory=str(tmp_path)) as run:
            run.log(count)
            printed = run.end(fails=fails)
    assert printed[-1] == "the run went on"
    found = rows(tmp_path)
    assert {name for name, _, _ in found} == {NAME}
    curve = [figures for _, _, figures in found if "recover/tokens" in figures]
    assert curve == [{f"recover/{name}": value for name, value in point(place).items()} for place in range(9)]
    (last,) = [figures for _, _, figures in found if "recover/tokens" not in figures]
    assert last["recovered"] == 0.26
    assert last["results"]["_value"] == [{"measure": "perplexity", "dense": 24.9}]


@needs_trackio
def test_nothing_is_sent_whatever_the_environment_says_and_no_line_of_another_library_is_printed(
    tmp_path: Path,
) -> None:
    with counting() as (address, calls):
        surprises = {
            "TRACKIO_SERVER_URL": f"{address}?write_token=x",
            "TRACKIO_SPACE_ID": "someone/else",
            "TRACKIO_WEBHOOK_URL": address,
            "TRACKIO_DIR": str(tmp_path / "elsewhere"),
            "HF_ENDPOINT": address,
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), address),
        }
        with follower(surprises, name="trackio", directory=str(tmp_path)) as run:
            run.log(3)
            printed = run.end()
    assert calls == []
    assert printed == [
        f"trackio: TRACKIO_DIR={tmp_path / 'trackio'} trackio show --project prune-recover",
        "the run went on",
    ]
    assert not (tmp_path / "elsewhere").exists()
    assert len(rows(tmp_path)) == 4


@needs_trackio
@pytest.mark.parametrize("account", [{"HF_TOKEN": "hf_x"}, {"TRACKIO_BUCKET_ID": "someone/else"}], ids=str)
def test_no_address_is_asked_for_whatever_account_the_user_has(tmp_path: Path, account: dict[str, str]) -> None:
    online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
    with follower(online | account, name="trackio", directory=str(tmp_path), names=True) as run:
        run.log(3)
        printed = run.end()
    assert not [line for line in printed if line.startswith("asks for")]
    assert len(rows(tmp_path)) == 4


@needs_trackio
def test_a_pruning_is_a_run_of_its_own_beside_a_recovery_that_was_built_again(tmp_path: Path) -> None:
    for prunes in (False, True):
        with follower({}, name="trackio", directory=str(tmp_path), prunes=prunes) as run:
            run.log(3)
            run.end()
    pruned = [name for name, _, figures in rows(tmp_path) if "pruned" in figures]
    assert pruned == [f"{PRUNED.name}-{PRUNED.key[:8]}"]


@needs_trackio
def test_a_directory_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with follower({}, name="trackio", directory=str(tmp_path / "file" / "below")) as run:
        run.log(3)
        printed = run.end()
    assert "the run goes on without it" in printed[0]
    assert printed[1:] == ["the run went on"]


def test_without_the_package_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)  # as Python has it for what cannot be imported
    with pytest.raises(UserError, match=r"pip install 'prune-recover\[trackio\]'"):
        open_tracker(TrackerConfig(name="trackio", directory=str(tmp_path)), {"recover": SUBJECT})

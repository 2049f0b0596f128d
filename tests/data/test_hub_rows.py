"""Rows of the hub, from a stand-in for it on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.hubserver import Hub

REPO = "someone/rows"
SCRIPT = """
import json, logging, sys
from pathlib import Path
from stages.data.hub import HubConfig, build, pin
from stages.data.columns import ColumnsConfig
from stages.errors import UserError
from stages.stage import Context
logging.basicConfig(level="INFO", stream=sys.stderr, format="%(message)s")
cache = Path(sys.argv[2])
for options in json.loads(sys.argv[1]):
    columns = ColumnsConfig(**options.pop("columns", {}))
    try:
        config, _ = pin(HubConfig(name="hub", columns=columns, **options), cache)
        built = build(config, {}, Context(output=cache, cache=cache))
        print(json.dumps([list(built.rows), built.source]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def read(home: Path, environment: dict[str, str], *asked: dict[str, Any]) -> tuple[list[Any], str]:
    """Return what a process of its own reads for each of `asked` (rows and source, or the error), and its log."""
    variables = os.environ | environment | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    options = json.dumps([{"repo": REPO} | one for one in asked])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, options, str(home / "ours")],
        capture_output=True,
        text=True,
        env=variables,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", 3), ("test", 1)):
        for shard in range(count):
            rows = [{"question": f"{split} {shard} {row}?", "answer": "yes", "n": row} for row in range(2)]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "data" / f"{split}-{shard:05}-of-{count:05}.jsonl").write_text(lines)
    return folder


def test_a_split_is_read_at_its_commit_and_again_without_the_hub(hub: Hub, tmp_path: Path, repository: Path) -> None:
    commit = hub.add(f"datasets/{REPO}", repository)
    environment = hub.environment(tmp_path / "home")
    columns = {"prompt": "question", "response": "answer"}

    [[rows, source]], printed = read(tmp_path, environment, {"columns": columns, "rows": 3})
    assert rows == [[f"train {shard} {row}?", "yes", "hub", []] for shard, row in ((0, 0), (0, 1), (1, 0))]
    assert source["repo"] == REPO
    assert source["revision"] == commit
    assert f"'train' of {REPO} at {commit[:12]} from the hub: 3 files" in printed
    fetched = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert {"train-00000-of-00003.jsonl", "train-00001-of-00003.jsonl"} <= fetched
    assert not {"train-00002-of-00003.jsonl", "test-00000-of-00001.jsonl"} & fetched

    away = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    (again, more), _ = read(tmp_path, away, {"columns": columns, "rows": 3}, {"columns": columns})
    assert again[0] == rows
    assert "can't be reached" in more


def test_what_the_hub_does_not_have_is_one_error(hub: Hub, tmp_path: Path, repository: Path) -> None:
    hub.add(f"datasets/{REPO}", repository)
    wrong: dict[str, dict[str, Any]] = {
        "has no split 'tran', did you mean 'train'?": {"split": "tran"},
        "data.columns.text=question": {},
        "datasets/someone/rosw does not exist": {"repo": "someone/rosw"},
        "no revision 'nain'. Take a branch, tag or commit it has: data.revision=": {"revision": "nain"},
        "'other' not found": {"subset": "other"},
        "needs data.repo=OWNER/NAME": {"repo": None},
    }
    errors, _ = read(tmp_path, hub.environment(tmp_path / "home"), *wrong.values())
    for said, error in zip(wrong, errors, strict=True):
        assert said in error


@pytest.mark.parametrize("how", ["mute", "wrong"])
def test_a_listing_that_never_comes_or_is_none_is_one_error(
    how: str, hub: Hub, tmp_path: Path, repository: Path
) -> None:
    commit = hub.add(f"datasets/{REPO}", repository)
    environment = hub.environment(tmp_path / "home") | {"HF_HUB_ETAG_TIMEOUT": "1"}
    columns = {"prompt": "question", "response": "answer"}
    # `datasets` lists folder by folder, and we ask for all sizes at once.
    for call in (f"{commit}/data?", f"{commit}?recursive=true"):
        setattr(hub, how, call)
        [error], _ = read(tmp_path, environment, {"columns": columns})
        assert "can't be " in error
        assert REPO in error
    setattr(hub, how, "")
    [[rows, _]], _ = read(tmp_path, environment, {"columns": columns})
    assert len(rows) == 6


def test_rows_of_a_commit_that_no_hub_answers_for_are_one_error(tmp_path: Path) -> None:
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    [error], _ = read(tmp_path, away, {"revision": "a" * 40})
    assert "can't be reached" in error
    [error], _ = read(tmp_path, away | {"HF_HUB_OFFLINE": "1"}, {"revision": "a" * 40})
    assert "HF_HUB_OFFLINE" in error

"""Threads of long stages beside other work, which real processes do here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.toystages import chain
from pipeline.engine.engine import Engine
from pipeline.engine.sharing import Share, measured
from pipeline.engine.store import Store
from pipeline.engine.unfinished import threads_of
from pipeline.planning.graph import Graph
from stages.common import progress
from stages.common.cores import cpu_quota, processor_ticks, usable_cores
from stages.decoders.work import Work


@pytest.fixture
def busy() -> Iterator[None]:
    """As many processes as there are cores that do nothing but count, while the test lasts."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(usable_cores())]
    time.sleep(0.2)
    yield
    for process in counting:
        process.kill()
        process.wait()


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch with two threads, as on a machine where nobody set their number."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "others", "most", "threads"),
    [
        (2, 0.0, 2, 2),
        (2, 0.4, 2, 2),
        (2, 1.0, 2, 1),
        (2, 2.0, 2, 1),
        (16, 4.2, 16, 12),
        (16, 4.2, 8, 8),
        (3, 0.0, 8, 3),
    ],
)
def test_a_thread_is_taken_for_each_core_that_nothing_else_keeps_busy(
    cores: int, others: float, most: int, threads: int
) -> None:
    assert Share(cores, others).threads(most) == threads


def test_other_processes_are_counted(busy: None) -> None:
    assert measured().others > 0.4 * usable_cores()


@pytest.mark.skipif(os.nice(0) > 0, reason="these tests have a low priority themselves, so nothing makes way for them")
def test_work_of_a_lower_priority_is_not_counted() -> None:
    """All that a core did in a time is at most that time, so what was niced is in no other number."""
    command = ["nice", "-n", "19", sys.executable, "-c", "while True: pass"]
    counting = [subprocess.Popen(command) for _ in range(usable_cores())]
    began, busy, low = time.monotonic(), processor_ticks(), niced_ticks()
    time.sleep(0.5)
    passed, busy, low = time.monotonic() - began, processor_ticks() - busy, niced_ticks() - low
    for process in counting:
        process.kill()
        process.wait()
    assert busy + low <= 1.1 * passed * usable_cores() * os.sysconf("SC_CLK_TCK") + 4


def niced_ticks() -> int:
    """Return the ticks of low priority, as the first line of /proc/stat has them for all cores."""
    return int(Path("/proc/stat").read_text().split()[2])


@pytest.mark.skipif(usable_cores() < 2, reason="one core has no thread to give up")
def test_a_stage_takes_fewer_threads_beside_other_work_and_goes_on_with_as_many(
    tmp_path: Path, busy: None, two_threads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = chain(1, fail=0)
    begun = _engine(graph, tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        begun.run()
    (partial,) = begun.store.partials()
    assert threads_of(partial) == torch.get_num_threads() == 1
    (tmp_path / "mended").touch()
    torch.set_num_threads(2)
    ended = _engine(graph, tmp_path)
    ended.run()
    assert torch.get_num_threads() == 1
    assert [run.status for run in ended.runs.values()] == ["resumed"]


def test_a_stage_that_nobody_counts_takes_what_torch_takes(tmp_path: Path, busy: None, two_threads: None) -> None:
    engine = _engine(chain(1), tmp_path)
    engine.works = {}
    engine.run()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"a/b/cpu.max": "max 100000"}, None),
        ({"a/b/cpu.max": "150000 100000"}, 1.5),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_the_tightest_quota_of_the_control_groups_counts(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/other\n0::/a/b\n")
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    assert cpu_quota(membership, tmp_path / "root") == quota
    assert cpu_quota(tmp_path / "none", tmp_path / "root") is None


def test_a_bar_says_where_its_process_waits_for_a_core(
    busy: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.2)
    with progress.progress("training", total=100, unit="step") as bar:
        bar.set_postfix(loss="1.0", refresh=False)
        ends = time.monotonic() + 10
        while time.monotonic() < ends and progress.SHARED not in capsys.readouterr().err:
            for _ in range(200_000):
                pass
            bar.refresh()
        else:
            assert time.monotonic() < ends, "ten seconds beside busy processes, and the bar has not said it"


def _engine(graph: Graph, root: Path) -> Engine:
    engine = Engine(graph, Store(root / "store"), cache=root, force=[])
    engine.works = {
        node.key: Work(operations={"float32": 1.0}, efficiency=0.5, kind="toy") for node in graph.roles.values()
    }
    return engine
